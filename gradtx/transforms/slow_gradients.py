"""Grokfast's two filters: amplify the component that gradients share over many steps."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import running_mean, zeros

__all__ = ["amplify_slow_gradients", "amplify_slow_gradients_window"]


@per_tensor(elementwise=True, ranges={"alpha": "[0, 1)", "lamb": "[0, inf)"})
def amplify_slow_gradients(alpha: Scalar = 0.98, lamb: Scalar = 2.0):
    r"""Add a multiple of the average gradient to each gradient: Grokfast's filter.

    $e_1 = g_1$, $e_t = \alpha e_{t-1} + (1-\alpha) g_t$; returns $g_t + \lambda e_t$. First link of a chain, before a
    coupled decay. A constant gradient is multiplied by $1 + \lambda$, which does not affect methods such as Adam.

    Args:
        alpha: $\alpha$ in [0, 1), decay of the average.
        lamb: $\lambda \ge 0$, weight of the average.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_ema`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.amplify_slow_gradients(alpha=0.5, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([1.0, 1.0], [1.0, -1.0]):  # entries that keep their sign are amplified
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([2., 2.])
        tensor([ 2., -1.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """

    def update(update, state, param, ctx):
        average = running_mean(state["grad_ema"], update, alpha)
        average = torch.where(ctx.step == 1, update, average)
        return update + lamb * average, {"grad_ema": average}

    return zeros("grad_ema"), update


@per_tensor(
    elementwise=True,
    ranges={"window_size": "[1, inf)", "lamb": "[0, inf)"},
    example={"window_size": 2},  # the default stores a hundred gradients
)
def amplify_slow_gradients_window(
    window_size: int = 100,
    lamb: Scalar = 5.0,
    filter_type: str = "mean",
    warmup: bool = True,
):
    r"""Add a multiple of the mean of the last gradients to each gradient: Grokfast's filter with a window.

    Returns $g_t + \lambda \bar g_t$, where $\bar g_t$ is the mean or the sum of the last $n = \min(t, w)$ gradients,
    including the current one. `amplify_slow_gradients` is a close approximation with only one slot.

    Args:
        window_size: $w \ge 1$, the number of gradients to keep.
        lamb: $\lambda \ge 0$, weight of the mean.
        filter_type: "mean" or "sum".
        warmup: Pass gradients unchanged until the window is full, while t < w.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_0` ... `grad_{w-1}`, the last gradients, newest
        first, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if `filter_type` is unknown.

    Example:
        >>> tx = gradtx.amplify_slow_gradients_window(window_size=2, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 3.0, -3.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([5.])
        tensor([-3.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """
    if filter_type not in ("mean", "sum"):
        raise ValueError(
            f"amplify_slow_gradients_window: filter_type must be 'mean' or 'sum', got {filter_type!r}"
        )

    def init(param):
        return {"grad": [torch.zeros_like(param) for _ in range(window_size)]}

    def update(update, state, param, ctx):
        window = [update, *state["grad"][:-1]]
        slow = sum(window[1:], window[0])  # gradients before the first are zeros
        if filter_type == "mean":
            slow = slow / ctx.time.clamp(max=window_size)
        amplified = update + lamb * slow
        if warmup:
            amplified = torch.where(ctx.step < window_size, update, amplified)
        return amplified, {"grad": window}

    return init, update
