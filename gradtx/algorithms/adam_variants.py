"""Adam with another denominator or numerator: AdamAtan2, ADOPT, LaProp, AdEMAMix, SimplifiedAdEMAMix."""

from __future__ import annotations

import functools
from typing import Annotated

import torch

from gradtx.algorithms.adam import orthogonalize_against_ema
from gradtx.algorithms.clipping import soft_row_clip
from gradtx.algorithms.projection import map_after_step
from gradtx.algorithms.scaling import hold_until, scale_by_learning_rate
from gradtx.algorithms.weight_decay import (
    add_decayed_weights,
    regenerate_towards_init,
    with_decay,
)
from gradtx.arguments import (
    Decay,
    FractionOffAtOne,
    NonNegative,
    NonNegativeInt,
    Positive,
    Scalar,
    is_off,
)
from gradtx.maths.entries import (
    MOMENTS,
    adam_moments,
    at_least,
    atan2,
    caution,
    corrected_root,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.schedules.special import ademamix_alpha_schedule, half_life_schedule
from gradtx.slots import linear, scalar, square
from gradtx.transform import chain

__all__ = [
    "adam_atan2",
    "ademamix",
    "adopt",
    "adopt_atan2",
    "laprop",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_adopt_atan2",
    "scale_by_atan2",
    "scale_by_laprop",
    "scale_by_simplified_ademamix",
    "simplified_ademamix",
]


def _no_caution(arguments):
    return is_off(arguments["cautious_factor"], 1.0)


@per_tensor(elementwise=_no_caution)
def scale_by_atan2(
    betas=(0.9, 0.99),
    a: Positive = 1.27,
    b: Positive = 1.0,
    cautious_factor: FractionOffAtOne = 1.0,
):
    r"""Combine Adam's two moments with the arc tangent, which needs no eps and is scale-invariant.

    $u_t = a \, \mathrm{atan2}(\hat m_t, b \sqrt{\hat v_t})$, with Adam's $\hat m_t$ and $\hat v_t$. With caution,
    entries whose sign differs from the gradient's are multiplied by $f$, then all are divided by the mean weight.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        a: Scale of the result, > 0. $|u| \le a \pi / 2$.
        b: Scale of the denominator, > 0.
        cautious_factor: $f$ in [0, 1]; a literal 1.0 disables caution.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `cautious_factor` is outside [0, 1], or if `a` or `b` is not above
            0.

    Example:
        >>> tx = gradtx.scale_by_atan2(a=4 / torch.pi)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1e-9, -5.0, 0.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"].round(decimals=4)
        tensor([ 1., -1.,  0.])

    Source: Everett et al. 2024, arXiv:2407.05872; caution: Liang et al. 2024, arXiv:2411.16085. Departures: none from
    adam-atan2-pytorch 0.4.1, which also provides the defaults of `a` and `b`; inside `torch.compile`, where
    $m$ and $v$ are infinite, the result is NaN instead of 45 degrees.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        root = corrected_root(square, ctx, beta2)
        # A common positive factor does not change the angle, so only one operand is rescaled.
        direction = atan2(mean, b * ctx.bias_correction(beta1) * root)
        if not is_off(cautious_factor, 1.0):
            direction = direction * caution(direction, update, cautious_factor)
        return a * direction, new

    return moments, update


def _after_first(normal, g, state, betas, ctx):
    """Return the averages of normalized gradients, from the second on, and of squares, which start at the first."""
    m, v, square, seen = state["exp_avg"], state["exp_avg_sq"], g.square(), ctx.seen
    return {
        "exp_avg": torch.where(seen, running_mean(m, normal, betas[0]), m),
        "exp_avg_sq": torch.where(seen, running_mean(v, square, betas[1]), square),
    }


@per_tensor(elementwise=True)
def scale_by_adopt(
    betas=(0.9, 0.9999),
    eps=1e-6,
    clip_exponent: NonNegative | None = 0.25,
):
    r"""Average gradients that are divided by the size of earlier gradients: ADOPT's direction.

    $n_t = g_t / \max(\sqrt{v_{t-1}}, \epsilon)$ clamped to $\pm (t-1)^{c}$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) n_t$,
    then $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$. The first step only sets $v_1 = g_1^2$ and returns 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Lower bound of the denominator, >= 0.
        clip_exponent: $c \ge 0$; None disables clamping.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), or if `eps` or `clip_exponent` is negative.

    Example:
        >>> tx = gradtx.scale_by_adopt()
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([2.0])}, tx.init({"w": torch.zeros(1)})
        ... )
        >>> updates["w"], state["scale_by_adopt"]["exp_avg_sq"]["w"]
        (tensor([0.]), tensor([4.]))

    Source: Taniguchi et al. 2024, arXiv:2411.02853. Departures: none (the clamp counts earlier calls, as in the paper).
    """

    def update(g, state, p, ctx):
        root = torch.where(ctx.seen, safe_sqrt(state["exp_avg_sq"]), 1.0)
        normal = g / at_least(root, eps)
        if clip_exponent is not None:
            bound = (ctx.time - 1) ** clip_exponent
            normal = normal.clamp(-bound, bound)
        new = _after_first(normal, g, state, betas, ctx)
        return new["exp_avg"], new

    return MOMENTS, update


@per_tensor(elementwise=_no_caution)
def scale_by_adopt_atan2(
    betas=(0.9, 0.99),
    a: Positive = 1.27,
    b: Positive = 1.0,
    cautious_factor: FractionOffAtOne = 1.0,
):
    r"""Replace the division and clamp of ADOPT's direction by the arc tangent.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) \mathrm{atan2}(g_t, b \sqrt{v_{t-1}})$, $u_t = a m_t$, then
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$. The first step only sets $v_1 = g_1^2$ and returns 0. Caution compares
    $g_t$ with the old $m_{t-1}$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        a: Scale of the result, > 0.
        b: Scale of the denominator, > 0.
        cautious_factor: As in `scale_by_atan2`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `cautious_factor` is outside [0, 1], or if `a` or `b` is not above
            0.

    Example:
        >>> tx = gradtx.scale_by_adopt_atan2(betas=(0.0, 0.5), a=4 / torch.pi)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([-3.0])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-1.])

    Source: adam-atan2-pytorch 0.4.1, after Taniguchi et al. 2024, arXiv:2411.02853. Departures: none from the former.
    """

    def update(g, state, p, ctx):
        old, v = state["exp_avg"], state["exp_avg_sq"]
        new = _after_first(atan2(g, b * safe_sqrt(v)), g, state, betas, ctx)
        direction = new["exp_avg"]
        if not is_off(cautious_factor, 1.0):
            direction = direction * caution(old, g, cautious_factor)
        return a * direction, new

    return MOMENTS, update


# Steps; until then the mean in the authors' code is too noisy to be subtracted.
CENTERED_AFTER = 10


@per_tensor(elementwise=True)
def scale_by_laprop(
    betas=(0.9, 0.999),
    eps=1e-15,
    amsgrad=False,
    centered=False,
):
    r"""Average gradients that are divided by their root mean square: LaProp's direction.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$,
    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$, direction
    $m_t / (1-\beta_1^t)$. Adam averages first, which couples its $\beta_1$ and $\beta_2$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        centered: From t = 11 on, subtract the square of the mean gradient from $v$; amsgrad's maximum starts there.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, with `centered`
        `exp_mean_avg_beta2` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> # only the sign of each gradient counts
        >>> tx = gradtx.scale_by_laprop(betas=(0.5, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, -100.0):  # Adam: 1.0, then -0.6633
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([-0.3333])

    Source: Ziyin et al. 2020, arXiv:2002.04839. Departures: the learning rate is outside the average, as in the
    paper; the authors' code averages steps. $v$ less the squared mean is clamped so that it cannot round below 0.
    """
    beta1, beta2 = betas
    slots = {
        **MOMENTS,
        "exp_mean_avg_beta2": linear() if centered else None,
        "max_exp_avg_sq": square() if amsgrad else None,
    }

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        new = {"exp_avg_sq": v}
        late = ctx.step > (CENTERED_AFTER if centered else 0)
        if centered:
            mean = running_mean(state["exp_mean_avg_beta2"], g, beta2)
            new["exp_mean_avg_beta2"] = mean
            v = torch.where(late, at_least(v - mean.square(), 0.0), v)
        if amsgrad:
            largest = torch.maximum(state["max_exp_avg_sq"], v)
            # The first phase collects no maximum.
            new["max_exp_avg_sq"] = torch.where(late, largest, 0.0)
            v = torch.where(late, largest, v)
        normalized = g / (corrected_root(v, ctx, beta2) + eps)
        m = new["exp_avg"] = running_mean(state["exp_avg"], normalized, beta1)
        return m / ctx.bias_correction(beta1), new

    return slots, update


@per_tensor(elementwise=True)
def scale_by_ademamix(
    betas=(0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    eps=1e-8,
):
    r"""Add a slow average of gradients to Adam's mean: AdEMAMix's direction.

    Adam's $m_t$, $v_t$ and $l_t = \beta_3 l_{t-1} + (1-\beta_3) g_t$, which is not bias-corrected; direction
    $(\hat m_t + \alpha l_t) / (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1). To warm up $\beta_3$, pass `half_life_schedule`.
        alpha: $\alpha \ge 0$, weight of the slow average; to warm it up, pass `ademamix_alpha_schedule`.
        eps: $\epsilon \ge 0$, outside the root.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_slow`, `exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), or if another argument is negative.

    Example:
        >>> tx = gradtx.scale_by_ademamix(betas=(0.0, 0.0, 0.5), alpha=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # the slow average remembers the earlier direction
        >>> for grad in (1.0, 1.0, 1.0, -1.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.5000])
        tensor([1.7500])
        tensor([1.8750])
        tensor([-1.0625])

    Source: Pagliardini et al. 2024, arXiv:2409.03137. Departures: none.
    """
    beta1, beta2, beta3 = betas
    moments, average = adam_moments((beta1, beta2))

    def update(g, state, p, ctx):
        m, v, new = average(g, state)
        slow = new["exp_avg_slow"] = running_mean(state["exp_avg_slow"], g, beta3)
        root = corrected_root(v, ctx, beta2) + eps
        return (m / ctx.bias_correction(beta1) + alpha * slow) / root, new

    return {**moments, "exp_avg_slow": linear(slow=True)}, update


@per_tensor(elementwise=True)
def scale_by_simplified_ademamix(
    betas=(0.99, 0.95),
    alpha: NonNegative = 0.0,
    eps=1e-8,
    bias_correction1=False,
    bias_correction2=True,
):
    r"""Divide a sum of gradients, with extra weight on the newest, by their root mean square: simplified AdEMAMix.

    $m_t = \beta_1 m_{t-1} + g_t$, $n_t = \beta_1 n_{t-1} + 1$, $v_t$ as in Adam; direction
    $(\alpha g_t + m_t) / (\sqrt{\hat v_t} + \epsilon)$, divided by $n_t$ with `bias_correction1`. Otherwise it grows to
    $1/(1-\beta_1)$ times Adam's.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1). To warm up $\beta_1$, pass `half_life_schedule`.
        alpha: $\alpha \ge 0$, additional weight of the newest gradient.
        eps: $\epsilon \ge 0$, outside the root.
        bias_correction1: Divide by $n_t$, the sum of the weights in $m_t$; this includes the term with $\alpha$.
        bias_correction2: False divides the direction by $\sqrt{1-\beta_2^t}$, which cancels the correction of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter, and
        `num_sum` ($n$), 0-d float64 for each leaf.

    Raises:
        ValueError: If a beta is outside [0, 1), or if another argument is negative.

    Example:
        >>> tx = gradtx.scale_by_simplified_ademamix(betas=(0.5, 0.9), alpha=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, -1.0):  # m is 1, 1.5, -0.25
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([2.])
        tensor([2.5000])
        tensor([-1.2500])

    Source: Morwani et al. 2025, arXiv:2502.02431. Departures: none. pytorch_optimizer 4.1.0 has a different rule, with
    $1-\beta_1$ as a factor of $g_t$ and $v$ corrected twice.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        total, weight = beta1 * state["exp_avg"] + g, beta1 * state["num_sum"] + 1
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        root = ctx.bias_correction(beta2).sqrt()
        direction = (alpha * g + total) / (safe_sqrt(v) / root + eps)
        if bias_correction1:
            direction = direction / weight
        if not bias_correction2:
            direction = direction / root
        return direction, {"exp_avg": total, "exp_avg_sq": v, "num_sum": weight}

    return {**MOMENTS, "num_sum": scalar()}, update


@alias
def adam_atan2(
    lr=1e-4,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    regen_reg_rate: NonNegative = 0.0,
    decoupled_wd=False,
    cautious_wd=False,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    *,
    wasserstein_reg=False,
    orthog_grad=False,
    orig_grad_ema_beta: Decay = 0.9,
    clip_to_grok=False,
    clip_to_grok_max_norm: Annotated[Scalar, "(1, inf)"] = 2.0,
):
    r"""Adam-atan2: Adam without eps, invariant to the scale of the loss, with options that preserve plasticity.

    $p \leftarrow p (1 - \eta \lambda) - \eta a \, \mathrm{atan2}(\hat m, b \sqrt{\hat v})$.

    When to use: gradients whose scale varies widely or drifts (mixed losses, reinforcement learning, long runs), so
    that no single eps fits.

    Args:
        lr: $\eta$ in [0, inf); a weight moves by at most $\eta a \pi / 2$.
        betas: Decay rates of the two averages, each in [0, 1).
        weight_decay: $\lambda \ge 0$.
        regen_reg_rate: Strength of the pull toward the initial weights, >= 0, which replaces the decay toward 0.
        decoupled_wd: Divide both rates by the initial learning rate.
        cautious_wd: Decay only where update and weight have the same sign.
        cautious_factor: Factor in [0, 1] for entries whose update opposes the gradient; 1.0 disables it.
        a: Scale of the update, > 0.
        b: Scale of the denominator, > 0.
        wasserstein_reg: Pull the distribution of a leaf's weights toward its initial distribution.
        orthog_grad: Remove the component of the gradient along the mean of earlier gradients.
        orig_grad_ema_beta: Decay rate of that mean, in [0, 1).
        clip_to_grok: Divide rows of weights by their softly clamped norm after each step.
        clip_to_grok_max_norm: Upper bound of the clamp, > 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` and, depending on the
        options, `grad_ema`, `param_init`, `initial_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, if both rates are above 0, or if an option needs `params` and
            it is missing.

    Example:
        >>> tx = gradtx.adam_atan2(lr=0.1, a=4 / torch.pi)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1e-20, -3.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> updates["w"]
        tensor([-0.1000,  0.1000])

    Source: Everett et al. 2024, arXiv:2407.05872; options: arXiv 2308.11958, 2406.06811, 2411.16085, 2504.01961,
    2510.12402. The form is that of adam-atan2-pytorch 0.4.1. Departures: `decoupled_wd` is an option of that package
    and differs from `decoupled_weight_decay` (the decay is decoupled in both cases).
    """
    return chain(
        orthogonalize_against_ema(orig_grad_ema_beta) if orthog_grad else chain(),
        scale_by_atan2(betas, a, b, cautious_factor),
        _decay_or_regenerate(
            weight_decay, regen_reg_rate, lr, decoupled_wd, cautious_wd, wasserstein_reg
        ),
        scale_by_learning_rate(lr),
        map_after_step(functools.partial(soft_row_clip, max_norm=clip_to_grok_max_norm))
        if clip_to_grok
        else chain(),
    )


def _decay_or_regenerate(
    weight_decay,
    rate,
    lr,
    relative: bool,
    cautious: bool = False,
    wasserstein: bool = False,
):
    if not (is_off(weight_decay) or is_off(rate)):
        raise ValueError(
            "weight_decay and regen_reg_rate are mutually exclusive; set one of them to 0.0"
        )
    relative_to = lr if relative else None
    if is_off(rate):
        return add_decayed_weights(
            weight_decay, cautious=cautious, relative_to=relative_to
        )
    return regenerate_towards_init(rate, wasserstein, relative_to=relative_to)


@alias(class_name="ADOPT")
def adopt(
    lr=1e-3,
    betas=(0.9, 0.9999),
    eps=1e-6,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    clip_exponent: NonNegative | None = 0.25,
):
    r"""ADOPT: Adam that divides by the size of earlier gradients only, and therefore converges with any $\beta_2$.

    $n_t = g_t / \max(\sqrt{v_{t-1}}, \epsilon)$ clamped to $\pm (t-1)^c$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) n_t$,
    $p \leftarrow p - \eta m_t$; the first step only sets $v_1 = g_1^2$.

    When to use: when Adam diverges, or needs a beta2 tuned for each problem; in that case a drop-in replacement for
    `adam`.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: Lower bound of the denominator, >= 0.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.
        clip_exponent: $c \ge 0$; None disables clamping.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adopt(lr=0.1, betas=(0.0, 0.99))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([5.0])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-0.1000])

    Source: Taniguchi et al. 2024, arXiv:2411.02853. Departures: none from the authors' code, except that their function
    `clip_lambda` is replaced by its exponent.
    """
    return chain(
        with_decay(
            scale_by_adopt(betas, eps, clip_exponent),
            weight_decay,
            decoupled_weight_decay,
            lr,
        ),
        hold_until(2),  # neither the update nor the decay acts in the first step
    )


@alias
def adopt_atan2(
    lr=1e-4,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    regen_reg_rate: NonNegative = 0.0,
    decoupled_wd=True,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
):
    r"""ADOPT-atan2: ADOPT with the arc tangent instead of its division and clamp.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) \mathrm{atan2}(g_t, b \sqrt{v_{t-1}})$,
    $p \leftarrow p (1 - \eta \lambda) - \eta a m_t$; the first step only decays and sets $v_1 = g_1^2$.

    When to use: like `adopt`, if gradients also vary widely in scale, so that neither eps nor the clamp should need
    tuning.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the two averages, each in [0, 1).
        weight_decay: $\lambda \ge 0$.
        regen_reg_rate: Strength of the pull toward the initial weights, >= 0, which replaces the decay toward 0.
        decoupled_wd: Divide both rates by the initial learning rate.
        cautious_factor: Factor in [0, 1] for entries whose old momentum opposes the gradient; 1.0 disables it.
        a: Scale of the update, > 0.
        b: Scale of the denominator, > 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` and, depending on the
        options, `param_init`, `initial_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, if both rates are above 0, or if an option needs `params` and
            it is missing.

    Example:
        >>> tx = gradtx.adopt_atan2(lr=0.1, betas=(0.0, 0.99), a=4 / torch.pi)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([1e-12])}, state)
        ...     print(updates["w"])
        tensor([-0.])
        tensor([-0.1000])

    Source: adam-atan2-pytorch 0.4.1, after Taniguchi et al. 2024, arXiv:2411.02853. Departures: `decoupled_wd` also
    applies to the pull toward the initial weights, which that package always divides by the initial rate.
    """
    return chain(
        scale_by_adopt_atan2(betas, a, b, cautious_factor),
        _decay_or_regenerate(weight_decay, regen_reg_rate, lr, decoupled_wd),
        scale_by_learning_rate(lr),
    )


@alias(class_name="LaProp")
def laprop(
    lr=4e-4,
    betas=(0.9, 0.999),
    eps=1e-15,
    weight_decay=0.0,
    amsgrad=False,
    centered=False,
    fixed_decay=False,
):
    r"""LaProp: the average of normalized gradients, where Adam normalizes the average.

    $m \leftarrow \beta_1 m + (1-\beta_1) g / (\sqrt{\hat v} + \epsilon)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m$ with Adam's $\hat v$.

    When to use: instead of Adam if gradients vary widely in size or $\beta_2$ has to be small: steps stay bounded for
    any pair of betas, unlike Adam's.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        amsgrad: Use the running maximum of $v$.
        centered: From t = 11 on, subtract the square of the mean gradient from $v$.
        fixed_decay: Use $p (1 - \lambda)$, without the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`exp_mean_avg_beta2`], [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.laprop(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1000.0):  # Adam's second step would be -0.0745
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([-0.1218])

    Source: Ziyin et al. 2020, arXiv:2002.04839. Departures: see `scale_by_laprop`; the decay is subtracted from the
    weights before the step. pytorch_optimizer also adds eps to the root, and with amsgrad and centered takes the
    maximum of $v$ from the first step on.
    """
    return with_decay(
        scale_by_laprop(betas, eps, amsgrad, centered),
        weight_decay,
        True,
        lr,
        fixed_decay,
    )


@alias(class_name="AdEMAMix")
def ademamix(
    lr=1e-3,
    betas=(0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    eps=1e-8,
    weight_decay=0.0,
    alpha_warmup: NonNegativeInt | None = None,
    beta3_warmup: NonNegativeInt | None = None,
):
    r"""AdEMAMix: AdamW with a second average of gradients that remembers thousands of steps.

    $l \leftarrow \beta_3 l + (1-\beta_3) g$,
    $p \leftarrow p (1 - \eta \lambda) - \eta (\hat m + \alpha l) / (\sqrt{\hat v} + \epsilon)$ with Adam's $\hat m$ and
    $\hat v$.

    When to use: long runs, in which AdamW forgets gradients that would still help; the paper reports AdamW's loss with
    about half of the tokens. Needs one more float per weight. Set both warm-ups to the length of the run, because a
    slow average at full weight makes the first steps unstable.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step, up to $1 + \alpha$ times that where
            gradients agree.
        betas: Decay rates of the mean, of the mean square and of the slow average, each in [0, 1).
        alpha: $\alpha \ge 0$, the weight of the slow average.
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        alpha_warmup: Number of steps over which $\alpha$ rises from 0, >= 0 (`ademamix_alpha_schedule`); None for no
            warm-up.
        beta3_warmup: Number of steps over which $\beta_3$ rises from $\beta_1$, >= 0 (`half_life_schedule`); None for
            no warm-up.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_slow`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> # the slow average holds half of the first gradient
        >>> tx = gradtx.ademamix(lr=0.1, betas=(0.9, 0.999, 0.5))
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.2000,  0.2000])

    Source: Pagliardini et al. 2024, arXiv:2409.03137. Departures: none from the authors' code. The default in optax and
    pytorch_optimizer is alpha = 5, and pytorch_optimizer has a single length for both warm-ups.
    """
    beta1, beta2, beta3 = betas
    if alpha_warmup is not None:
        alpha = ademamix_alpha_schedule(alpha, alpha_warmup)
    if beta3_warmup is not None:
        beta3 = half_life_schedule(beta3, beta3_warmup, beta1)
    return with_decay(
        scale_by_ademamix((beta1, beta2, beta3), alpha, eps), weight_decay, True, lr
    )


@alias(class_name="SimplifiedAdEMAMix")
def simplified_ademamix(
    lr=1e-3,
    betas=(0.99, 0.95),
    alpha: NonNegative = 0.0,
    eps=1e-8,
    weight_decay=0.0,
    min_beta1: Decay = 0.9,
    beta1_warmup: NonNegativeInt | None = None,
    bias_correction1=False,
    bias_correction2=True,
):
    r"""Simplified AdEMAMix: AdamW with one long sum of gradients, and extra weight on the newest.

    $m \leftarrow \beta_1 m + g$,
    $p \leftarrow p (1 - \eta \lambda) - \eta (\alpha g + m) / (\sqrt{\hat v} + \epsilon)$.

    When to use: AdEMAMix with AdamW's memory; the paper reports equal results for small batches with $\alpha$ up to
    100, and for large ones with 0. Use a learning rate about $1/(1-\beta_1)$ times smaller than AdamW's.

    Args:
        lr: $\eta$ in [0, inf). Each weight changes by up to $\eta (\alpha + 1/(1-\beta_1))$ per step.
        betas: Decay rates of the sum and of the mean square, each in [0, 1).
        alpha: $\alpha \ge 0$, the extra weight of the newest gradient.
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        min_beta1: Initial value of $\beta_1$, in [0, 1); read only with `beta1_warmup`.
        beta1_warmup: Number of steps over which $\beta_1$ rises, >= 0 (`half_life_schedule`); None keeps it constant.
        bias_correction1: Divide by the sum of the weights in $m$, which makes the steps as long as AdamW's.
        bias_correction2: If False, divide the direction by $\sqrt{1-\beta_2^t}$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `num_sum`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.simplified_ademamix(lr=0.01, alpha=9.0)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Morwani et al. 2025, arXiv:2502.02431. Departures: none from the authors' code, and none from optax at
    these defaults. pytorch_optimizer 4.1.0 has another rule, see `scale_by_simplified_ademamix`.
    """
    beta1, beta2 = betas
    if beta1_warmup is not None:
        beta1 = half_life_schedule(beta1, beta1_warmup, min_beta1)
    direction = scale_by_simplified_ademamix(
        (beta1, beta2), alpha, eps, bias_correction1, bias_correction2
    )
    return with_decay(direction, weight_decay, True, lr)
