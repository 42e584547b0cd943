"""Divide by a running estimate of the gradient's size: Adam, RMSprop, ADOPT."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    corrected_root,
    filled_like,
    running_mean,
    safe_sqrt,
    zeros,
)

__all__ = ["scale_by_adam", "scale_by_adopt", "scale_by_rms"]


@per_tensor(
    elementwise=True,
    nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
    averages=lambda arguments: {"exp_avg": arguments["betas"][0]},
)
def scale_by_adam(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    amsgrad: bool = False,
    nesterov: bool = False,
):
    r"""Divide the mean gradient by its root mean square: Adam's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$ with $\hat m_t = m_t/(1-\beta_1^t)$, $\hat v_t = v_t/(1-\beta_2^t)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        nesterov: Use $\beta_1 m_t + (1-\beta_1) g_t$ instead of $m_t$, with the same bias correction (as in AdamP).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_adam()
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 1.0000, -1.0000])

    Source: Kingma and Ba 2014, arXiv:1412.6980; amsgrad: Reddi et al. 2018, arXiv:1904.09237. Departures: the
    maximum is taken before bias correction, as in torch.optim.
    """
    beta1, beta2 = betas
    init, average = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        ahead = running_mean(mean, update, beta1) if nesterov else mean
        root = corrected_root(square, ctx, beta2)
        return ahead / ctx.bias_correction(beta1) / (root + eps), new

    return init, update


@per_tensor(
    elementwise=True,
    ranges={"initial_accumulator_value": "[0, inf)", "alpha": "[0, inf)"},
    nonnegative=("square_avg",),
)
def scale_by_rms(
    alpha: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_in_root: bool = False,
    centered: bool = False,
    initial_accumulator_value: Scalar = 0.0,
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

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> tx = gradtx.scale_by_rms(alpha=0.75)
        >>> # 1 / sqrt(1 - alpha)
        >>> tx.update({"w": torch.tensor([3.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([2.])

    Source: Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv:1308.0850. Departures: none from
    torch.optim.RMSprop, except that the centered average cannot round to a negative value (NaN there).
    """

    def init(param):
        start = filled_like(param, initial_accumulator_value)
        return {"square_avg": start, **zeros(grad_avg=centered)(param)}

    def update(update, state, param, ctx):
        square = running_mean(state["square_avg"], update.square(), alpha)
        new, variance = {"square_avg": square}, square
        if centered:
            mean = new["grad_avg"] = running_mean(state["grad_avg"], update, alpha)
            # Rounding can make the difference negative.
            variance = (square - mean.square()).clamp(min=0)
        root = safe_sqrt(variance + eps) if eps_in_root else safe_sqrt(variance) + eps
        return update / root, new

    return init, update


@per_tensor(
    ranges={"clip_exponent": "[0, inf)"}, elementwise=True, nonnegative=("exp_avg_sq",)
)
def scale_by_adopt(
    betas: Betas = (0.9, 0.9999),
    eps: Scalar = 1e-6,
    clip_exponent: Scalar | None = 0.25,
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
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        first = ctx.step == 1
        normal = update / at_least(torch.where(first, 1.0, safe_sqrt(square)), eps)
        if clip_exponent is not None:
            bound = (ctx.time - 1) ** clip_exponent
            normal = normal.clamp(-bound, bound)
        mean = torch.where(first, mean, running_mean(mean, normal, beta1))
        update_square = update.square()
        return mean, {
            "exp_avg": mean,
            "exp_avg_sq": torch.where(
                first, update_square, running_mean(square, update_square, beta2)
            ),
        }

    return zeros("exp_avg", "exp_avg_sq"), update
