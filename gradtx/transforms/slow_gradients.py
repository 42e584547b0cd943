"""Amplify the component that gradients share over many steps: Grokfast's two filters."""

from __future__ import annotations

import torch

from gradtx._arguments import Scalar
from gradtx.factories import per_tensor

__all__ = ["amplify_slow_gradients", "amplify_slow_gradients_window"]


@per_tensor(elementwise=True, ranges={"alpha": "[0, 1)", "lamb": "[0, inf)"})
def amplify_slow_gradients(alpha: Scalar = 0.98, lamb: Scalar = 2.0):
    r"""Add a multiple of the average of gradients to each of them: Grokfast's filter.

    $e_1 = g_1$, $e_t = \alpha e_{t-1} + (1-\alpha) g_t$; gives $g_t + \lambda e_t$. First in a chain, before a coupled
    decay. A constant gradient becomes $1 + \lambda$ times as long, which methods like Adam do not feel.

    Args:
        alpha: $\alpha$ in [0, 1), of the average.
        lamb: $\lambda \ge 0$, how much the average counts.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_ema`, shaped as the parameter.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> tx = gradtx.amplify_slow_gradients(alpha=0.5, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([1.0, 1.0], [1.0, -1.0]):  # what keeps its sign is amplified
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([2., 2.])
        tensor([ 2., -1.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """

    def init(param):
        return {"grad_ema": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        average = alpha * state["grad_ema"] + (1 - alpha) * update
        average = torch.where(ctx.step == 1, update, average)
        return update + lamb * average, {"grad_ema": average}

    return init, update


@per_tensor(
    elementwise=True,
    ranges={"window_size": "[1, inf)", "lamb": "[0, inf)"},
    example={"window_size": 2},  # the default keeps a hundred gradients
)
def amplify_slow_gradients_window(
    window_size: int = 100, lamb: Scalar = 5.0, filter_type: str = "mean", warmup: bool = True
):
    r"""Add a multiple of the mean of the last gradients to each of them: Grokfast's filter with a window.

    Gives $g_t + \lambda \bar g_t$ with $\bar g_t$ the mean or the sum of the last $n = \min(t, w)$ gradients, this one
    included. `amplify_slow_gradients` does nearly the same with one slot.

    Args:
        window_size: $w \ge 1$; as many gradients are kept.
        lamb: $\lambda \ge 0$, how much the mean counts.
        filter_type: "mean" or "sum".
        warmup: Let gradients pass unchanged until the window is full, while t < w.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_0` ... `grad_{w-1}`, the last gradients, the newest
        first, shaped as the parameter.

    Raises:
        ValueError: numbers out of range, an unknown filter.

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
        raise ValueError(f"amplify_slow_gradients_window: filter_type must be 'mean' or 'sum', got {filter_type!r}")

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
