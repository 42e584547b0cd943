"""FOCUS: attraction to the average of past weights."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import plus_decay, running_mean, zeros

__all__ = ["scale_by_focus"]


@per_tensor(elementwise=True, needs=("params",), ranges={"gamma": "[0, inf)"})
def scale_by_focus(
    betas: Betas = (0.9, 0.999), gamma: Scalar = 0.1, weight_decay: Scalar = 0.0
):
    r"""Step along the sign of the momentum and back toward the average of the weights: FOCUS's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $\bar p_t = \beta_2 \bar p_{t-1} + (1-\beta_2) p$,
    $\hat p = \bar p / (1-\beta_2^t)$, direction
    $\mathrm{sign}(m_t) + \gamma\, \mathrm{sign}(p - \hat p) + \lambda \hat p$. At $t = 1$, where $\hat p = p$, the
    middle term is 0.

    Args:
        betas: $(\beta_1, \beta_2)$, for the momentum and for the average of the weights, each in [0, 1).
        gamma: $\gamma \ge 0$, strength of the attraction; above 1 it dominates the momentum.
        weight_decay: $\lambda \ge 0$, a pull of the average toward 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `pbar`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_focus(gamma=0.25)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # the gradient is positive; the weight is above, then below its average
        >>> for at in (0.0, 1.0, -1.0):
        ...     updates, state = tx.update(
        ...         {"w": torch.ones(1)}, state, {"w": torch.tensor([at])}
        ...     )
        ...     print(updates["w"])
        tensor([1.])
        tensor([1.2500])
        tensor([0.7500])

    Source: Liu, Liu and Gore 2025, arXiv:2501.12243. Departures: in the authors' code, the sign at $t = 1$ is that of a
    rounding error.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        place = beta2 * state["pbar"] + (1 - beta2) * param
        usual = place / ctx.bias_correction(beta2)
        pull = torch.where(ctx.step == 1, 0.0, (param - usual).sign())
        direction = plus_decay(mean.sign() + gamma * pull, weight_decay, usual)
        return direction, {"exp_avg": mean, "pbar": place}

    return zeros("exp_avg", "pbar"), update
