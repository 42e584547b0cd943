"""Methods in eigenbases: KL-SOAP, KL-Shampoo, SOAP with LaProp, SOAP-Muon, SPlus, Conda."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Count, Decay, Decays, NonNegative, Static
from gradtx.combinators.rotated import rotated
from gradtx.optimizers.matrix import (
    by_matrix,
    decayed_from_second_step,
    muon_like,
)
from gradtx.rules import alias
from gradtx.transform import GradientTransformation, chain
from gradtx.transforms._polynomials import Coefficients
from gradtx.transforms.adam import scale_by_adam_hat
from gradtx.transforms.adam_variants import scale_by_laprop
from gradtx.transforms.averaging import average
from gradtx.transforms.momentum import trace_ema
from gradtx.transforms.muon import orthogonalize
from gradtx.transforms.projection import decay_after_step, map_after_step
from gradtx.transforms.scaling import scale, scale_by_learning_rate
from gradtx.transforms.shampoo import (
    adam_along_bases,
    mean_side_factor,
    scale_by_gradient_rms,
    scale_by_kl_shampoo,
    scale_by_late_rms,
    scale_by_mean_side,
)
from gradtx.transforms.sign import scale_by_sign

__all__ = ["conda", "kl_shampoo", "kl_soap", "soap_laprop", "soap_muon", "splus"]

_UNLIMITED = 2**62  # larger than any dimension: all are rotated


@alias(class_name="KLSOAP")
def kl_soap(
    lr: NonNegative = 3e-3,
    betas: Decays = (0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    correct_bias: bool = True,
    *,
    stagger: Static[bool] = False,
):
    r"""KL-SOAP: SOAP with factors that minimize a Kullback-Leibler divergence.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with Adam's direction $d$ in the bases of `rotated` with "kl"; the
    first step only initializes the bases.

    When to use: like `soap`, if its factors, which are sums over the other dimensions, are dominated by a few large
    directions.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$ of Adam's averages, each in [0, 1).
        shampoo_beta: Decay rate of the factors, in [0, 1); None for $\beta_2$.
        eps: Adam's eps, >= 0. The lower bound of eigenvalues in the whitening is 1e-8.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        precondition_frequency: Number of steps between updates of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this (>= 1) are not rotated.
        merge_dims: Merge adjacent dimensions as long as their product does not exceed `max_precondition_dim`.
        correct_bias: Whether to correct the bias of Adam's averages.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` (in the rotated
        basis), `GG_i` and `Q_i` for every rotated dimension.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.kl_soap(lr=0.1)
        >>> params = {"w": torch.ones(2, 3)}
        >>> _, state = tx.update({"w": torch.eye(2, 3)}, tx.init(params), params)
        >>> # from the first gradient, divided by the 3 columns, without bias
        >>> state["rotated"]["GG_0"]["w"]
        tensor([[0.3333, 0.0000],
                [0.0000, 0.3333]])

    Source: Lin et al. 2025, arXiv:2509.03378. Departures: the loop follows SOAP: the first step is skipped, and bases
    are updated after the step.
    """
    direction = rotated(
        adam_along_bases(betas, eps, correct_bias),
        statistics="kl",
        beta=betas[1] if shampoo_beta is None else shampoo_beta,
        precondition_frequency=precondition_frequency,
        max_precondition_dim=max_precondition_dim,
        merge_dims=merge_dims,
        stagger=stagger,
    )
    return decayed_from_second_step(direction, lr, weight_decay)


@alias(class_name="SOAPLaProp")
def soap_laprop(
    lr: NonNegative = 3e-3,
    betas: Decays = (0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    *,
    stagger: Static[bool] = False,
):
    r"""SOAP with LaProp instead of Adam: gradients are normalized in the eigenbasis first, then averaged.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with the direction $d$ of `scale_by_laprop` in `rotated`; the first
    step only initializes the bases.

    When to use: like `soap`, with a $\beta_1$ above $\beta_2$ or other pairs that Adam does not tolerate.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$ of LaProp's averages, each in [0, 1).
        shampoo_beta: Decay rate of the factors, in [0, 1); None for $\beta_2$.
        eps: LaProp's eps, >= 0.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        precondition_frequency: Number of steps between updates of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this (>= 1) are not rotated.
        merge_dims: Merge adjacent dimensions as long as their product does not exceed `max_precondition_dim`.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` (in the rotated
        basis), `GG_i` and `Q_i` for every rotated dimension.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.soap_laprop(lr=0.1, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [0.0, 5.0]])}
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(grads, state, params)
        >>> updates["w"]  # in the eigenbasis every entry has size 1
        tensor([[-0.1000,  0.0000],
                [ 0.0000, -0.1000]])

    Source: Vyas et al. 2024, arXiv:2409.11321; Ziyin et al. 2020, arXiv:2002.04839. Departures: HeavyBall's SOLP keeps
    its momentum in the basis, which is equivalent.
    """
    direction = rotated(
        scale_by_laprop(betas, eps),
        beta=betas[1] if shampoo_beta is None else shampoo_beta,
        precondition_frequency=precondition_frequency,
        max_precondition_dim=max_precondition_dim,
        merge_dims=merge_dims,
        stagger=stagger,
    )
    return decayed_from_second_step(direction, lr, weight_decay)


@alias(class_name="KLShampoo")
def kl_shampoo(
    lr: NonNegative = 3e-3,
    betas: Decays = (0.95, 0.95),
    eps: NonNegative = 1e-8,
    adam_eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    *,
    stagger: Static[bool] = False,
):
    r"""KL-Shampoo: momentum, whitened by factors that minimize a Kullback-Leibler divergence.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with the direction $d$ of `scale_by_kl_shampoo`; the first step only
    initializes the factors.

    When to use: a Shampoo that needs no grafting to Adam, with the memory of SOAP minus Adam's second moments.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, the decay rates of the momentum and of the factors, each in [0, 1).
        eps: Lower bound of the eigenvalues, >= 0.
        adam_eps: Adam's eps, for leaves without factors, >= 0.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        precondition_frequency: Number of steps between updates of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this (>= 1) have no factor.
        merge_dims: Merge adjacent dimensions as long as their product does not exceed `max_precondition_dim`.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `GG_i` and `Q_i` for every
        dimension with a factor; `exp_avg_sq` for leaves without any.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.kl_shampoo()
        >>> state = tx.init({"w": torch.zeros(3, 2), "b": torch.zeros(2)})
        >>> slots = state["scale_by_kl_shampoo"]
        >>> {slot: sorted(leaves) for slot, leaves in slots.items()}
        {'exp_avg': ['b', 'w'], 'GG_0': ['w'], 'GG_1': ['w'], 'Q_0': ['w'], 'Q_1': ['w'], 'exp_avg_sq': ['b']}

    Source: Lin et al. 2025, arXiv:2509.03378. Departures: the loop follows SOAP, and the momentum is bias-corrected.
    """
    direction = scale_by_kl_shampoo(
        betas,
        eps,
        adam_eps,
        precondition_frequency=precondition_frequency,
        max_precondition_dim=max_precondition_dim,
        merge_dims=merge_dims,
        stagger=stagger,
    )
    return decayed_from_second_step(direction, lr, weight_decay)


@alias(class_name="SOAPMuon")
def soap_muon(
    lr: NonNegative = 0.02,
    weight_decay: NonNegative = 0.0,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    beta2: Decay = 0.9,
    eps: NonNegative = 1e-8,
    precondition_frequency: Count = 1,
    max_precondition_dim: Count = 10000,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Annotated[int, "[0, 100)"] = 12,
    adjust_lr_fn: str | None = "original",
    fallback: GradientTransformation | None = None,
    *,
    stagger: Static[bool] = False,
):
    r"""SOAP-Muon: the momentum divided by its root mean square in the gradients' eigenbasis, then orthogonalized.

    $U$ = `trace_ema`; in the eigenbases of the gradient's factors (decay $\beta_2$), from the second step on,
    $v \leftarrow \beta_2 v + (1-\beta_2) U'^2$, $U' \leftarrow U' / \sqrt{\max(v, \epsilon^2)}$; rotated back, $X$ =
    `orthogonalize`$(U)$, $p \leftarrow p (1 - \eta \lambda) - \eta r X$ with $r$ of `scale_by_shape`.

    When to use: fewest steps for the hidden matrices of transformers; one step costs several times as much as one of
    `muon`.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        momentum: $\mu$ in [0, 1).
        nesterov: Use Nesterov momentum.
        beta2: $\beta_2$ in [0, 1), the decay rate of the second moments and of the factors.
        eps: $\epsilon \ge 0$.
        precondition_frequency: Number of steps between updates of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this (>= 1) are not rotated.
        ns_coefficients: Coefficients of the iteration, as `coefs` of `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100).
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `exp_avg_sq` (in the
        rotated basis), `GG_i`, `Q_i`; with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if a leaf is not a matrix and there
            is no `fallback`.

    Example:
        >>> tx = gradtx.soap_muon(lr=1.0)  # the first step is Muon's
        >>> params = {"w": torch.zeros(2, 2)}
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [0.0, -0.5]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"].round(decimals=3) + 0.0
        tensor([[-1.,  0.],
                [ 0.,  1.]])

    Source: N. Vyas, SOAP-Muon, and records of track 3 of modded-nanogpt. Departures: their rescaling of the divided
    momentum is omitted, because the orthogonalization cancels it.
    """
    return muon_like(
        "soap_muon",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        rotated(
            scale_by_late_rms(beta2, eps),
            start="identity",
            of="grad",
            beta=beta2,
            precondition_frequency=precondition_frequency,
            max_precondition_dim=max_precondition_dim,
            stagger=stagger,
        ),
        orthogonalize(ns_coefficients, ns_steps),
    )


@alias(class_name="SPlus")
def splus(
    lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    weight_decay: NonNegative = 1e-2,
    ema_rate: Decay = 0.999,
    inverse_steps: Count = 100,
    nonstandard_constant: NonNegative = 1e-3,
    max_dim: Count = 10000,
    *,
    stagger: Static[bool] = False,
):
    r"""SPlus: signs of the momentum in Shampoo's eigenbases, and an average of the weights for evaluation.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$; matrices are rotated into the eigenbases of their factors (decay
    $\beta_2$), $u = \mathrm{sign}(m')$ is rotated back; $p \leftarrow p - \eta' u$ with
    $\eta' = 2 \eta / (\mathrm{rows} + \mathrm{columns})$; $p$ enters the average of the weights; then
    $p \leftarrow p (1 - \eta' \lambda)$. Other leaves are not rotated, and $\eta' = c\, \eta$.

    When to use: large batches, where Shampoo's directions stay valid for a hundred steps; evaluate with `eval_params`.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the weights after the step and after they enter the average.
        ema_rate: Decay rate of the average of the weights, in [0, 1).
        inverse_steps: Number of steps between computations of the bases, >= 1.
        nonstandard_constant: $c \ge 0$.
        max_dim: Sides larger than this (>= 1) are not rotated, and a leaf with such a side is treated like the other
            leaves.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `average`, and, for
        matrices, `GG_i` and `Q_i` under `partition`. `eval_params` returns `average`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.splus(lr=1.0, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 2), "b": torch.zeros(1)}
        >>> grads = {"w": torch.tensor([[3.0, -4.0], [0.1, 0.2]]), "b": torch.ones(1)}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> updates["w"], updates["b"]
        (tensor([[-0.5000,  0.5000],
                [-0.5000, -0.5000]]), tensor([-0.0010]))

    Source: Frans et al. 2025, arXiv:2506.07254. Departures: the average is stored without its bias.
    """
    signs = rotated(
        scale_by_sign(),
        beta=betas[1],
        precondition_frequency=inverse_steps,
        max_precondition_dim=max_dim,
        start="identity",
        refresh="eigh",
        offset=0,
        of="grad",
        stagger=stagger,
    )

    def decayed(weights):
        factor = mean_side_factor(weights.shape, nonstandard_constant, max_dim)
        return (1 - lr * factor * weight_decay) * weights

    return chain(
        trace_ema(betas[0]),
        by_matrix(signs, scale_by_sign()),
        scale_by_mean_side(nonstandard_constant, max_dim),
        scale_by_learning_rate(lr),
        average(ema_rate, debias=True),
        # After the average, which takes the weights before this decay.
        map_after_step(decayed),
    )


@alias
def conda(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    weight_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-8,
    update_proj_gap: Count = 2000,
    scale: NonNegative = 1.0,
    *,
    stagger: Static[bool] = False,
):
    r"""Conda: Adam along the singular vectors of the momentum, on the shorter side of a matrix.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$; $Q$: the singular vectors of $m$;
    $v \leftarrow \beta_2 v + (1-\beta_2) (g Q)^2$; $p \leftarrow (p - \eta\, c\, \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}
    \frac{m Q}{\sqrt v + \epsilon} Q^\top) (1-\eta\lambda)$; a matrix with fewer rows than columns is projected from the
    other side. Other leaves use Adam.

    When to use: transformers, with Adam's state plus one rarely computed basis per matrix.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        eps: $\epsilon \ge 0$.
        update_proj_gap: $Q$ is computed at the first step and at every step that is a multiple of this, >= 1.
        scale: $c \ge 0$, for matrices.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State of matrices: `momentum_buffer`, `exp_avg_sq`
        (in the basis), `Q_0`; of other leaves: `exp_avg`, `exp_avg_sq`; all under `partition`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.conda(lr=0.1)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [4.0, 0.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"]  # m Q has one nonzero column
        tensor([[-0.1000,  0.0000],
                [-0.1000,  0.0000]])

    Source: Wang et al. 2025, arXiv:2509.24218. Departures: none.
    """
    along = rotated(
        scale_by_gradient_rms(betas, eps),
        sides="short",
        max_precondition_dim=_UNLIMITED,
        start="identity",
        refresh="svd",
        precondition_frequency=update_proj_gap,
        offset=0,
        stagger=stagger,
    )
    matrices = chain(trace_ema(betas[0]), along, _scaled(scale))
    return chain(
        by_matrix(matrices, scale_by_adam_hat(betas, eps)),
        scale_by_learning_rate(lr),
        decay_after_step(lr, weight_decay),
    )


_scaled = scale  # `conda` has an argument of this name
