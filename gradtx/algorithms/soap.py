"""SOAP: Adam in the eigenbasis of Shampoo's statistics. Also `soap_laprop` and `soap_muon`."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.laprop import scale_by_laprop
from gradtx.algorithms.muon import muon_like
from gradtx.arguments import Betas, Count, Decay, Scalar, Static
from gradtx.combinators._spaces import Space
from gradtx.combinators.coordinates import Factors, Rotation, rotated
from gradtx.links.decay import decay_after_step
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import Adjustment, orthogonalize
from gradtx.links.scaling import hold_until, scale_by_late_rms, scale_by_learning_rate
from gradtx.maths.entries import hat_rate, rms
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias, per_tensor
from gradtx.transform import GradientTransformation, chain

__all__ = [
    "scale_by_soap",
    "soap",
    "soap_laprop",
    "soap_muon",
]


@per_tensor(amplifies=True, length="sets")
def scale_by_soap(
    betas=(0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps=1e-8,
    *,
    precondition_1d=False,
    normalize_gradient=False,
    correct_bias=True,
    **options: Annotated[Any, Factors],
):
    r"""Run Adam on the gradient rotated into the eigenbases of its Kronecker factors: SOAP.

    The first step returns 0: it sets $G_i = (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$ for each dimension
    i and $Q_i$ to its eigenvectors, largest eigenvalue first. Then, with $s = t - 1$ and a prime denoting rotation by
    all $Q_i^\top$: $m \leftarrow \beta_1 m + (1-\beta_1) g$, $v \leftarrow \beta_2 v + (1-\beta_2) g'^2$, and the
    direction is $m' / (\sqrt{v} + \epsilon)$ rotated back, times $\sqrt{1-\beta_2^s} / (1-\beta_1^s)$. Afterwards,
    $G_i \leftarrow \beta_s G_i + (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$, and where $s \bmod n = 0$,
    $Q_i \leftarrow \mathrm{QR}(G_i Q_i)$, column by column in decreasing order of
    $\mathrm{diag}(Q_i^\top G_i Q_i)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        shampoo_beta: $\beta_s$ in [0, 1); None for $\beta_2$.
        eps: $\epsilon \ge 0$, added to the root before its bias correction.
        precondition_frequency: $n \ge 1$. An optimizer from `as_optimizer` computes bases only when they are due, and
            so does pure use of plain tensors on the CPU without `stagger`; otherwise, it computes bases at every step
            and selects.
        max_precondition_dim: Dimensions larger than this, >= 1, are not rotated.
        merge_dims: Merge neighboring dimensions, left to right, while their product is at most that limit.
        precondition_1d: Whether to rotate 1-d leaves as well.
        normalize_gradient: Divide the direction by its root mean square.
        correct_bias: Whether to apply the factor of the two bias corrections.
        stagger: Refresh the bases of each leaf at its own step within the period, derived from its name, so that no
            step after the first refreshes all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` and `exp_avg_sq` (in the rotated basis), shaped
        as the parameter, and `GG_i`, `Q_i`, n x n, for each rotated dimension in order. A leaf without any uses plain
        Adam. Time: n^3.

    Example:
        >>> tx = gradtx.scale_by_soap(eps=1e-2)
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([[1.0, 1.0], [2.0, 2.0]])}, state)
        >>> # along one pair of eigenvectors, whereas Adam's direction would be all ones
        >>> updates["w"]
        tensor([[0.3118, 0.3118],
                [0.6236, 0.6236]])

    Source: Vyas et al. 2024, arXiv:2409.11321. Departures: none from the authors' code, without its casts to float32;
    columns keep their places in $Q_i$ and $v$, where the authors' code sorts them.
    Where statistics are rank-deficient (a rotated vector, a zero gradient, or, at the first step, a dimension that
    exceeds the product of the others by two or more, as in a 5 x 2 matrix), part of the basis is arbitrary, so results
    depend on the back end. There is then no derivative with respect to the inputs of these statistics (the first
    weights and gradients, $\beta_s$, and $\beta_2$ if it replaces $\beta_s$): the computed one omits the arbitrary
    part, is finite, and does not match difference quotients. Second derivatives through the bases are not available.
    """
    beta = betas[1] if shampoo_beta is None else shampoo_beta
    rotation = Rotation(beta=beta, precondition_1d=precondition_1d, **options)
    adam = adam_along_bases(betas, eps, correct_bias, normalize_gradient)
    return Space(adam, rotation, reads_grad=False)


def adam_along_bases(
    betas: Betas, eps: Scalar, corrects: bool, normalizes: bool = False
) -> GradientTransformation:
    """Return Adam's direction, optionally without its bias correction or normalized before it."""
    adam = scale_by_adam_hat(betas, eps)
    return (
        adam
        if corrects and not normalizes
        else chain(adam, corrected_later(betas, normalizes, corrects))
    )


@per_tensor
def corrected_later(betas, normalizes: bool, corrects: bool):
    """Remove the bias correction from Adam's direction, normalize the result, and apply the correction again."""

    def update(update, state, param, ctx):
        factor = hat_rate(1.0, ctx, betas)
        if not normalizes:
            return update / factor, state
        update = update / (1e-30 + rms(update))
        return factor * update if corrects else update, state

    return update


def decayed(
    direction: GradientTransformation, lr, weight_decay
) -> GradientTransformation:
    """Chain a direction, its rate, and decay after the step."""
    return chain(
        direction, scale_by_learning_rate(lr), decay_after_step(lr, weight_decay)
    )


def decayed_from_second_step(
    direction: GradientTransformation, lr, weight_decay
) -> GradientTransformation:
    """Chain the same with a first step that only initializes the bases, in which the decay does not act either."""
    return chain(decayed(direction, lr, weight_decay), hold_until(2))


@alias(class_name="SOAP")
def soap(
    lr=3e-3,
    betas=(0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps=1e-8,
    weight_decay=0.01,
    **options: Annotated[Any, scale_by_soap],
):
    r"""SOAP: Adam in the eigenbasis of Shampoo's statistics.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with the direction $d$ of `scale_by_soap`; the first step only
    initializes the bases.

    When to use: fewest steps at moderate batch sizes, mainly for transformers, with memory for two bases per matrix.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$ of Adam's averages, each in [0, 1).
        shampoo_beta: Decay rate of the statistics, in [0, 1); None for $\beta_2$.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        precondition_frequency: Number of steps between updates of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this (>= 1) are not rotated.
        merge_dims: Merge adjacent dimensions as long as their product does not exceed `max_precondition_dim`.
        precondition_1d: Also rotate one-dimensional leaves.
        normalize_gradient: Divide the direction by its root mean square.
        correct_bias: Whether to correct the bias of Adam's averages.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` (in the rotated
        basis), `GG_i` and `Q_i` for every rotated dimension.

    Example:
        >>> tx = gradtx.soap(lr=0.1, weight_decay=0.5)
        >>> params = {"w": torch.ones(2, 2)}
        >>> # nothing moves in the first step
        >>> tx.update({"w": torch.eye(2)}, tx.init(params), params)[0]["w"]
        tensor([[0., 0.],
                [0., 0.]])

    Source: Vyas et al. 2024, arXiv:2409.11321. Departures: none from the authors' code, except that its casts to
    float32 are omitted.
    """
    direction = scale_by_soap(betas, shampoo_beta, eps, **options)
    return decayed_from_second_step(direction, lr, weight_decay)


@alias(class_name="SOAPLaProp")
def soap_laprop(
    lr=3e-3,
    betas=(0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps=1e-8,
    weight_decay=0.01,
    **options: Annotated[Any, Factors],
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
        **options,
    )
    return decayed_from_second_step(direction, lr, weight_decay)


@alias(class_name="SOAPMuon")
def soap_muon(
    lr=0.02,
    weight_decay=0.0,
    momentum: Decay = 0.95,
    nesterov=True,
    beta2: Decay = 0.9,
    eps=1e-8,
    precondition_frequency: Count = 1,
    max_precondition_dim: Count = 10000,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Steps = 12,
    adjust_lr_fn: Adjustment | None = "original",
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
        ValueError: If a leaf is not a matrix and there is no `fallback`.

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
