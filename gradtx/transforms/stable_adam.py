"""StableAdamW: shorten Adam's step where its second moment lags behind the gradient."""

from __future__ import annotations

from gradtx.arguments import is_off
from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    plus_decay,
    quotient,
    safe_sqrt,
)

__all__ = ["scale_by_stable_adam"]


@per_tensor(
    needs=lambda arguments: () if is_off(arguments["weight_decay"]) else ("params",),
    nonnegative=("exp_avg_sq",),
)
def scale_by_stable_adam(
    betas: Betas = (0.9, 0.99), eps: Scalar = 1e-8, weight_decay: Scalar = 0.0
):
    r"""Shorten Adam's direction, including its decay, where gradients outgrow $v$: StableAdamW's direction.

    With Adam's $\hat m_t$, $\hat v_t$ and $r_t = \sqrt{\mathrm{mean}(g_t^2 / \max(\hat v_t, \epsilon^2))}$ over the
    leaf: $(\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda p) / \max(1, r_t)$. This is Adafactor's clipping with
    Adam's squares.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        weight_decay: $\lambda \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if another argument is negative, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.scale_by_stable_adam(betas=(0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, 10.0):  # Adam's last direction is 1.3179
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([1.])
        tensor([1.])

    Source: Wortsman et al. 2023, arXiv:2304.13013. Departures: none from torch-optimi.
    """
    beta1, beta2 = betas
    init, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        square = square / ctx.bias_correction(beta2)
        direction = mean / ctx.bias_correction(beta1) / (safe_sqrt(square) + eps)
        direction = plus_decay(direction, weight_decay, param)
        ratio = quotient(update.square(), at_least(square, eps * eps), floor=eps * eps)
        excess = safe_sqrt(ratio.sum() / max(update.numel(), 1))
        return direction / at_least(excess, 1.0), new

    return init, update
