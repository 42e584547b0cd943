"""Factors, learning rates, and scales from norms and root mean squares."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.arguments import (
    AtLeastFour,
    Decay,
    NonNegative,
    NonNegativeInt,
    Positive,
    Scalar,
)
from gradtx.base.exact import exact
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.links.clipping import rms_of_sums
from gradtx.maths.entries import (
    at_least,
    at_most,
    corrected_root,
    hat_rate,
    peak,
    quotient,
    rectification,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.rules import per_tensor
from gradtx.slots import filled, linear, scalar, square

__all__ = [
    "descend",
    "hold_until",
    "hold_until_rectified",
    "power_entries",
    "scale",
    "scale_by_gradient_rms",
    "scale_by_inverse_time",
    "scale_by_late_rms",
    "scale_by_layer_rms",
    "scale_by_learning_rate",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_rectified_rms",
    "scale_by_rms",
    "scale_by_trust_ratio",
]


@per_tensor(elementwise=True, length="sets")
def scale_by_rms(
    alpha: NonNegative = 0.99,
    eps=1e-8,
    eps_in_root=False,
    centered=False,
    initial_accumulator_value: NonNegative = 0.0,
):
    r"""Divide by the root mean square of the gradient: RMSprop's direction.

    $q_t = \alpha q_{t-1} + (1-\alpha) g_t^2$, direction $g_t / (\sqrt{q_t} + \epsilon)$; no bias correction.

    Args:
        alpha: Weight of the old average, in [0, inf), below 1 in practice.
        eps: $\epsilon \ge 0$: in the units of a gradient outside the root, of a squared gradient inside.
        eps_in_root: Use $g_t / \sqrt{q_t + \epsilon}$, as TensorFlow does.
        centered: Subtract the square of the mean gradient from $q_t$ (clamped at 0).
        initial_accumulator_value: $q_0 \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `square_avg` and, if centered, `grad_avg`, shaped as
        the parameter.

    Example:
        >>> tx = gradtx.scale_by_rms(alpha=0.75)
        >>> # 1 / sqrt(1 - alpha)
        >>> tx.update({"w": torch.tensor([3.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([2.])

    Source: Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv:1308.0850. Departures: none from
    torch.optim.RMSprop, except that the centered average cannot round to a negative value (NaN there).
    """

    def update(g, state, p, ctx):
        v = running_mean(state["square_avg"], g.square(), alpha)
        new_state = {"square_avg": v}
        if centered:
            m = new_state["grad_avg"] = running_mean(state["grad_avg"], g, alpha)
            # Rounding can make the difference negative.
            v = at_least(v - m.square(), 0)
        root = safe_sqrt(v + eps) if eps_in_root else safe_sqrt(v) + eps
        return g / root, new_state

    return {
        "square_avg": square(filled(initial_accumulator_value), decay=alpha),
        "grad_avg": linear(decay=alpha) if centered else None,
    }, update


def norm_sums(p: Tensor, u: Tensor) -> OfLeaf:
    return OfLeaf(weights=p.square().sum(), size=u.square().sum())


@per_tensor(whole="sums", takes_complex=True, needs="params", length="sets")
def scale_by_trust_ratio(clip=False, weight_decay=0.0, always_adapt=True):
    r"""Rescale each update to the norm of its leaf's weights: $u \mapsto u \lVert p \rVert / \lVert u \rVert$.

    The ratio is 1 where either norm is 0, 0 where the update's norm is infinite, and NaN where it is NaN.

    Args:
        clip: Limit the ratio to 1 (LAMBC).
        weight_decay: The decay already included in the update, >= 0; only read without `always_adapt`.
        always_adapt: If False, the ratio is 1 where `weight_decay` is 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_trust_ratio()
        >>> params = {"w": torch.tensor([1.5, 2.0]), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.0, 1e-3]), "b": torch.ones(1)}, tx.init(params), params
        ... )
        >>> updates
        {'w': tensor([0.0000, 2.5000]), 'b': tensor([1.])}

    Source: You et al. 2019, arXiv:1904.00962; without clip and decay: Bernstein et al. 2020, arXiv:2002.03432.
    Departures: the optional bounds on the norm of the weights in LAMB's paper are omitted.
    """

    def update(u, state, p, ctx):
        sums = yield norm_sums(p, u)
        weights, size = safe_sqrt(sums["weights"]), safe_sqrt(sums["size"])
        ratio = quotient(weights, size, (weights > 0) & (size > 0), 1.0)
        if clip:
            ratio = at_most(ratio, 1)
        if not always_adapt:
            ratio = torch.where(exact(weight_decay, p.device) == 0, 1.0, ratio)
        yield ratio * u, state

    return update


@per_tensor(takes_complex=True, length="sets", by_rows=True)
def scale_by_layer_rms(beta: Decay = 0.98, eps=1e-8, amsgrad=False):
    r"""Divide the gradient of each leaf by a running average of its norm: NovoGrad's direction.

    $v_t = \beta v_{t-1} + (1-\beta) \lVert g_t \rVert^2$, with $v_t = \lVert g_t \rVert^2$ where $v_{t-1} = 0$;
    direction $g_t / (\sqrt{v_t} + \epsilon)$.

    Args:
        beta: $\beta$, in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient. Use a positive value if a gradient may be 0.
        amsgrad: Use the running maximum of $v$ instead of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, both
        0-d float64 for each leaf.

    Example:
        >>> tx = gradtx.scale_by_layer_rms()
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([3.0, 4.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> updates["w"], state["scale_by_layer_rms"]["exp_avg_sq"]["w"]
        (tensor([0.6000, 0.8000]), tensor(25., dtype=torch.float64))

    Source: Ginsburg et al. 2019, arXiv:1905.11286. Departures: none; the average restarts while it is
    exactly 0, as in the authors' code.
    """

    def update(g, state, p, ctx):
        old, square = state["exp_avg_sq"], g.square().sum()
        v = torch.where(old == 0, square, running_mean(old, square, beta))
        new_state = {"exp_avg_sq": v}
        root = safe_sqrt(peak(new_state, state, "exp_avg_sq", amsgrad)) + eps
        return g / root, new_state

    slots = {
        "exp_avg_sq": scalar(),
        "max_exp_avg_sq": scalar() if amsgrad else None,
    }
    return slots, update


@per_tensor(whole="sums", needs="params")
def scale_by_param_block_rms(min_scale: NonNegative = 1e-3):
    r"""Make updates relative to the size of a leaf's weights: $u \max(\epsilon, \mathrm{rms}(p))$.

    Args:
        min_scale: $\epsilon \ge 0$, which allows zero weights to learn.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_param_block_rms()
        >>> params = {"w": torch.tensor([5.0, -5.0])}
        >>> tx.update({"w": torch.tensor([1.0, 0.5])}, tx.init(params), params)[0]["w"]
        tensor([5.0000, 2.5000])

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: none.
    """

    def update(update, state, param, ctx):
        sums = yield OfLeaf(square=param.square().sum())
        yield update * at_least(rms_of_sums(sums, param), min_scale), state

    return update


@per_tensor(needs="params", whole="sums")
def scale_by_param_block_norm(min_scale: NonNegative = 1e-3):
    r"""Make updates relative to the norm of a leaf's weights: $u \max(\epsilon, \lVert p \rVert)$.

    Args:
        min_scale: $\epsilon \ge 0$, which allows zero weights to learn.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_param_block_norm()
        >>> params = {"w": torch.tensor([3.0, -4.0])}
        >>> tx.update({"w": torch.tensor([1.0, 0.5])}, tx.init(params), params)[0]["w"]
        tensor([5.0000, 2.5000])

    Source: optax 0.2.8, which names none. Departures: none.
    """

    def update(update, state, param, ctx):
        sums = yield OfLeaf(square=param.square().sum())
        yield update * at_least(safe_sqrt(sums["square"]), min_scale), state

    return update


@per_tensor(elementwise=True, length="sets")
def scale_by_rectified_rms(beta2: Decay = 0.999, eps=1e-8):
    r"""Divide by the root mean square of all gradients once there are enough of them: Schedule-Free RAdam.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$; where $\rho_t > 4$ (see `scale_by_radam`), the direction is
    $g_t / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$; before that, it is $g_t$. The factor $r_t$ is part of the rate:
    see `rectification_schedule`.

    Args:
        beta2: $\beta_2$ in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_rectified_rms(0.999)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(5):
        ...     updates, state = tx.update({"w": torch.tensor([100.0])}, state)
        ...     print(round(updates["w"].item(), 4))
        100.0
        100.0
        100.0
        100.0
        1.0

    Source: Defazio et al. 2024, arXiv:2405.15682, RAdamScheduleFree; Liu et al. 2019, arXiv:1908.03265. Departures:
    none.
    """

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        _, rectified = rectification(ctx, beta2, 4.0)
        root = torch.where(rectified, corrected_root(v, ctx, beta2) + eps, 1.0)
        return quotient(g, root, floor=eps), {"exp_avg_sq": v}

    return {"exp_avg_sq": square(decay=beta2)}, update


@per_tensor(elementwise=True)
def hold_until_rectified(beta2: Decay = 0.999, rho_threshold: AtLeastFour = 5.0):
    r"""Return zero updates before RAdam's first rectified step, while earlier links update their state.

    Last link of a chain; zero where $\rho_t$ of `scale_by_radam` is not above the threshold.

    Args:
        beta2: $\beta_2$ in [0, 1).
        rho_threshold: Threshold of $\rho_t$, >= 4.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(1.0), gradtx.hold_until_rectified(0.999))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(6):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"].item())
        0.0
        0.0
        0.0
        0.0
        0.0
        6.0

    Source: Liu et al. 2019, arXiv:1908.03265. Departures: none from the authors' package with
    `degenerated_to_sgd=False`.
    """

    def update(update, state, param, ctx):
        _, rectified = rectification(ctx, beta2, rho_threshold)
        return torch.where(rectified, update, 0.0), state

    return update


@per_tensor(elementwise=True, sign="either")
def scale(factor: Scalar):
    r"""Multiply every update by a number: $u \mapsto c u$.

    Args:
        factor: Any number, of either sign.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale(-2.0)
        >>> tx.update({"w": torch.tensor([1.0, 3.0])}, tx.init({}))[0]["w"]
        tensor([-2., -6.])
    """

    def update(update, state, param, ctx):
        return factor * update, state

    return update


@per_tensor(elementwise=True)
def power_entries(power: Positive = 1.2):
    r"""Raise the size of every entry to a power, and keep its sign: $u \mapsto \mathrm{sign}(u) |u|^p$.

    As the first link, GradPower: `chain(power_entries(1.2), adamw())` is AdamPower, whose steps favor large entries.
    Directly after `trace`, with a power below 1, PowerStep: the steps of a heavy ball, whose entries are more alike.

    Args:
        power: $p > 0$; above 1, large entries grow and small ones shrink, below 1 the other way round. 1 changes
            nothing.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.power_entries(0.5)
        >>> tx.update({"w": torch.tensor([4.0, -9.0, 0.0])}, tx.init({}))[0]["w"]
        tensor([ 2., -3.,  0.])

    Source: Wang et al. 2025, arXiv:2505.24275 (GradPower); Lu et al. 2026, arXiv:2605.10335 (PowerStep). Departures:
    none; GradPower's paper does not say whether gradients are clipped before or after. For a power of 0, use
    `scale_by_sign`.
    """

    def update(update, state, param, ctx):
        return update.sign() * safe_pow(update.abs(), power), state

    return update


@per_tensor(elementwise=True, rate="before", sign="flips")
def scale_by_learning_rate(lr):
    r"""Turn a direction into a step downhill: $u \mapsto -\eta_t u$.

    Args:
        lr: The learning rate $\eta$, in [0, inf); a schedule returns $\eta_t$, and the first update uses `lr(0)`.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_learning_rate(gradtx.Schedule(lambda step: 0.1 * (step + 1)))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> first, state = tx.update({"w": torch.ones(1)}, state)
        >>> second, state = tx.update({"w": torch.ones(1)}, state)
        >>> first["w"], second["w"]
        (tensor([-0.1000]), tensor([-0.2000]))
    """
    factor = -lr

    def update(update, state, param, ctx):
        return factor * update, state

    return update


@per_tensor(elementwise=True, owns_lr=True, sign="flips")
def descend():
    r"""Turn a direction that includes its rate into a step downhill: $u \mapsto -u$.

    Last link of a chain with `scale_by_prodigy` or one of `scale_by_dadapt_*`, which determine a rate themselves.

    Returns:
        A transformation that keeps shapes and dtypes; no state. Its updates are added to the parameters.

    Example:
        >>> tx = gradtx.chain(gradtx.scale_by_prodigy(d0=0.5), gradtx.descend())
        >>> params = {"w": torch.tensor([3.0])}
        >>> # 0.1 / sqrt(0.001) of d0
        >>> tx.update({"w": torch.tensor([7.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.5811])
    """

    def update(update, state, param, ctx):
        return -update, state

    return update


@per_tensor(elementwise=True)
def scale_by_inverse_time(lr_decay: NonNegative):
    r"""Decrease the learning rate with time: $u \mapsto u / (1 + (t-1) \kappa)$.

    Place it directly before `scale_by_learning_rate`, so that decoupled weight decay decreases as well.

    Args:
        lr_decay: $\kappa \ge 0$, per step; the first step uses the full rate.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_inverse_time(1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([0.5000])
        tensor([0.3333])

    Source: the `lr_decay` of torch.optim.Adagrad. Departures: none.
    """

    def update(update, state, param, ctx):
        return update / (1 + (ctx.time - 1) * lr_decay), state

    return update


@per_tensor(elementwise=True)
def hold_until(t0: NonNegativeInt):
    """Return zero updates before step `t0`, while earlier links update their state.

    Last link of a chain. Steps count from 1, so `hold_until(1)` has no effect.

    Args:
        t0: The first step whose update passes, >= 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(1.0), gradtx.hold_until(2))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([2.])
    """

    def update(update, state, param, ctx):
        direction = ctx.when(
            lambda step: step < t0, lambda: torch.zeros_like(update), lambda: update
        )
        return direction, state

    return update


@per_tensor(elementwise=True, length="sets")
def scale_by_late_rms(beta: Decay = 0.9, eps=1e-8):
    r"""Divide updates by their root mean square from the second step on; the first update passes unchanged.

    From t = 2: $v \leftarrow \beta v + (1-\beta) u^2$ from 0, result $u / \sqrt{\max(v, \epsilon^2)}$; no bias
    correction. For use before links that normalize, such as `orthogonalize`.

    Args:
        beta: $\beta$ in [0, 1).
        eps: $\epsilon \ge 0$, the smallest root. Use a positive value if entries may be 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

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


@per_tensor(elementwise=True, length="sets")
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

    return {"exp_avg_sq": square(decay=beta2)}, update
