"""Adam and others in the eigenbases of Shampoo: SOAP, KL-SOAP, KL-Shampoo."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.adam_variants import scale_by_laprop
from gradtx.algorithms.momentum import trace_ema
from gradtx.algorithms.muon import Adjustment, muon_like, orthogonalize
from gradtx.algorithms.projection import decay_after_step
from gradtx.algorithms.scaling import hold_until, scale_by_learning_rate
from gradtx.arguments import Betas, Count, Decay, NonNegative, Scalar, Static
from gradtx.combinators._spaces import Space
from gradtx.combinators.coordinates import (
    Factors,
    Rotation,
    change_basis,
    is_empty,
    kl_scales,
    rotated,
    whitened,
)
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    hat_rate,
    rms,
    running_mean,
    safe_sqrt,
)
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias, per_tensor
from gradtx.slots import init_of, square
from gradtx.transform import GradientTransformation, chain

__all__ = [
    "kl_shampoo",
    "kl_soap",
    "scale_by_gradient_rms",
    "scale_by_kl_shampoo",
    "scale_by_late_rms",
    "scale_by_soap",
    "soap",
    "soap_laprop",
    "soap_muon",
]


@per_tensor
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

    Raises:
        ValueError: If an argument is out of range.

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


@per_tensor(whole=True, compiles="lists", capturable="after first")
def scale_by_kl_shampoo(
    betas=(0.95, 0.95),
    eps=1e-8,
    adam_eps: NonNegative = 1e-8,
    **options: Annotated[Any, Factors],
):
    r"""Whiten the momentum with Kronecker factors that minimize a Kullback-Leibler divergence: KL-Shampoo.

    The first gradient that is not 0 initializes the factors; until then the result is 0. Then, with $s = t - 1$:
    $m \leftarrow \beta_1 m + (1-\beta_1) g$, direction
    $m \times_i Q_i\, \mathrm{diag}(\lambda_i^{-1/2})\, Q_i^\top / (1-\beta_1^s)$ with
    $\lambda_i = \max(\mathrm{diag}(Q_i^\top S_i Q_i), \epsilon)$. The factors $S_i$ and their bases are then updated as
    in `rotated` with "kl", $\beta$ = $\beta_2$ and "qr". Leaves without factors use `scale_by_adam_hat`.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, the least eigenvalue.
        adam_eps: eps of Adam, >= 0.
        precondition_frequency: Steps between two refreshes of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this, >= 1, have no factor.
        merge_dims: Merge neighboring dimensions, left to right, while their product is at most that limit.
        stagger: Refresh the bases of each leaf at its own step within the period, derived from its name, so that no
            step after the first refreshes all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, and `GG_i` ($S_i$)
        and `Q_i`, n x n, for each dimension with a factor; `exp_avg_sq` for a leaf without any. Time: n^3.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_kl_shampoo(betas=(0.0, 0.0))
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update(
        ...         {"w": torch.tensor([[2.0, 0.0], [0.0, 50.0]])}, state
        ...     )
        >>> updates["w"]  # the factors' entries are half the squares of the singular values
        tensor([[1.0000, 0.0000],
                [0.0000, 0.0400]])

    Source: Lin et al. 2025, arXiv:2509.03378. Departures: $m$ is bias-corrected. As for `scale_by_soap`, results depend
    on rounding where statistics are rank-deficient.
    """
    beta1, beta2 = betas
    rotation = Rotation(beta=beta2, **options)
    moments, average = adam_moments(betas)

    def init(param):
        if not rotation.dims(param.shape):
            return init_of(moments)(param)
        return {"exp_avg": torch.zeros_like(param), **rotation.init(param)}

    def update(g, state, p, ctx):
        dims = rotation.dims(g.shape)
        count = at_least(ctx.time - 1, 1)  # the first step returns 0 in any case
        correction = ctx.bias_correction(beta1, count)
        if not dims:
            m, v, new = average(g, state)
            rate = ctx.bias_correction(beta2, count).sqrt() / correction
            u = rate * m / (safe_sqrt(v) + adam_eps)
            for slot, value in new.items():
                new[slot] = torch.where(ctx.seen, value, state[slot])
            return torch.where(ctx.seen, u, 0.0), new
        m, GG, Q = state["exp_avg"], state["GG"], state["Q"]
        first = is_empty(GG[0])
        m = torch.where(first, m, running_mean(m, g, beta1))
        scales = kl_scales(GG, Q, eps)
        white = whitened(rotation.inside(m), dims, Q, scales)
        u = change_basis(white, dims, Q, back=True).reshape(g.shape) / correction
        GG = rotation.kl_averages(rotation.inside(g), dims, GG, Q, scales, ctx)
        Q = rotation.next_bases(GG, Q, ctx)
        return torch.where(first, 0.0, u), {"exp_avg": m, "GG": GG, "Q": Q}

    return init, update


@per_tensor(elementwise=True)
def scale_by_late_rms(beta: Decay = 0.9, eps=1e-8):
    r"""Divide updates by their root mean square from the second step on; the first update passes unchanged.

    From t = 2: $v \leftarrow \beta v + (1-\beta) u^2$ from 0, result $u / \sqrt{\max(v, \epsilon^2)}$; no bias
    correction. For use before links that normalize, such as `orthogonalize`.

    Args:
        beta: $\beta$ in [0, 1).
        eps: $\epsilon \ge 0$, the smallest root. Use a positive value if entries may be 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If `beta` is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_late_rms(beta=0.75)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        ...     print(updates["w"])
        tensor([3.])
        tensor([2.])

    Source: the preconditioner of SOAP-Muon, in the track 3 records of modded-nanogpt. Departures: none.
    """

    def update(update, state, param, ctx):
        seen, old = ctx.seen, state["exp_avg_sq"]
        square = torch.where(seen, running_mean(old, update.square(), beta), old)
        root = torch.where(seen, safe_sqrt(at_least(square, eps**2)), 1.0)
        return torch.where(seen, update / root, update), {"exp_avg_sq": square}

    return {"exp_avg_sq": square()}, update


@per_tensor(elementwise=True)
def scale_by_gradient_rms(betas=(0.9, 0.999), eps=1e-8):
    r"""Divide a momentum by the root mean square of the gradient: the second half of Adam's direction.

    $v \leftarrow \beta_2 v + (1-\beta_2) g^2$ with the gradient $g$ (`ctx.grad`), result
    $\frac{u}{1-\beta_1^t} \frac{\sqrt{1-\beta_2^t}}{\sqrt v + \epsilon}$. After `trace_ema(beta1)` it equals
    `scale_by_adam_hat`; links between the two may transform the momentum.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1); $\beta_1$ is that of the preceding momentum.
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> halves = gradtx.chain(
        ...     gradtx.trace_ema(0.9), gradtx.scale_by_gradient_rms((0.9, 0.999))
        ... )
        >>> for tx in (halves, gradtx.scale_by_adam_hat((0.9, 0.999))):
        ...     state = tx.init({"w": torch.zeros(1)})
        ...     updates, _ = tx.update({"w": torch.tensor([3.0])}, state)
        ...     print(round(updates["w"].item(), 4))
        1.0
        1.0

    Source: Kingma and Ba 2014, arXiv:1412.6980. Departures: none.
    """
    _, beta2 = betas

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], ctx.grad.square(), beta2)
        return hat_rate(safe_sqrt(square) + eps, ctx, betas) * update, {
            "exp_avg_sq": square
        }

    return {"exp_avg_sq": square()}, update


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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

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


@alias(class_name="KLSOAP")
def kl_soap(
    lr=3e-3,
    betas=(0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps=1e-8,
    weight_decay=0.01,
    *,
    correct_bias=True,
    **options: Annotated[Any, Factors],
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
        **options,
    )
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
        **options,
    )
    return decayed_from_second_step(direction, lr, weight_decay)


@alias(class_name="KLShampoo")
def kl_shampoo(
    lr=3e-3,
    betas=(0.95, 0.95),
    eps=1e-8,
    adam_eps: NonNegative = 1e-8,
    weight_decay=0.01,
    **options: Annotated[Any, scale_by_kl_shampoo],
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
    direction = scale_by_kl_shampoo(betas, eps, adam_eps, **options)
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
