"""Adam-atan2: Adam without eps, invariant to the scale of the loss, with options that preserve plasticity."""

from __future__ import annotations

import functools
from typing import Annotated

from gradtx.arguments import (
    Decay,
    FractionOffAtOne,
    NonNegative,
    Positive,
    Scalar,
    is_off,
)
from gradtx.links.caution import is_without_caution
from gradtx.links.clipping import soft_row_clip
from gradtx.links.decay import decay_or_regenerate
from gradtx.links.projection import map_after_step, orthogonalize_against_ema
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import adam_moments, atan2, caution, corrected_root
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["adam_atan2", "scale_by_atan2"]


@per_tensor(elementwise=is_without_caution, length="sets")
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
        mean, square, new_state = average(update, state)
        root = corrected_root(square, ctx, beta2)
        # A common positive factor does not change the angle, so only one operand is rescaled.
        direction = atan2(mean, b * ctx.bias_correction(beta1) * root)
        if not is_off(cautious_factor, 1.0):
            direction = direction * caution(direction, update, cautious_factor)
        return a * direction, new_state

    return moments, update


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
        ValueError: If both rates are above 0, or if an option needs `params` and it is missing.

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
        decay_or_regenerate(
            weight_decay, regen_reg_rate, lr, decoupled_wd, cautious_wd, wasserstein_reg
        ),
        scale_by_learning_rate(lr),
        map_after_step(functools.partial(soft_row_clip, max_norm=clip_to_grok_max_norm))
        if clip_to_grok
        else chain(),
    )
