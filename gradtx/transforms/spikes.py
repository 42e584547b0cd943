"""SPAM and Stable-SPAM: clip single entries that exceed earlier ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    hat_rate,
    largest,
    quotient,
    running_mean,
    safe_sqrt,
    scalar_zero,
    zeros,
)

__all__ = ["clip_spikes", "clip_to_peak_history", "scale_by_spam"]

SPIKE_RANGES = {"threshold": "(0, inf)", "clip_after": "[0, inf)", "every": "[1, inf)"}


def _cut(
    update: Tensor,
    square: Tensor,
    ctx: Any,
    threshold: Any,
    clip_after: int,
    every: int,
) -> Tensor:
    """Clip entries whose square exceeds the threshold times its average, except shortly after a restart."""
    due = (ctx.step >= clip_after) & (ctx.step % every >= clip_after)
    spike = due & (update.square() > threshold * square)
    return torch.where(spike, update.sign() * safe_sqrt(threshold * square), update)


@per_tensor(
    elementwise=True,
    ranges={**SPIKE_RANGES, "beta2": "[0, 1)"},
    example={"every": 5, "clip_after": 1},
    nonnegative=("exp_avg_sq",),
)
def clip_spikes(
    threshold: Scalar = 5000.0,
    beta2: Scalar = 0.999,
    clip_after: int = 20,
    every: int = 500,
):
    r"""Clip entries whose square is many times its average: SPAM's clipping.

    With $v$ the average of squares before this step, from 0 and without bias correction: where $g^2 > \theta v$, $g$
    becomes $\mathrm{sign}(g) \sqrt{\theta v}$, if $t \ge c$ and $t \bmod N \ge c$. Then
    $v \leftarrow \beta_2 v + (1-\beta_2) g^2$ with the clipped $g$. Use it inside `restart` with the same period, which
    resets $v$ to 0. Before Adam, use `scale_by_spam` instead, which shares one $v$.

    Args:
        threshold: $\theta > 0$.
        beta2: $\beta_2$ in [0, 1).
        clip_after: $c \ge 0$, number of steps after a restart without clipping. Use at least 2: where $v$ is still 0,
            the gradient is clipped to 0, as are all later ones.
        every: $N \ge 1$, the number of steps between restarts.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.clip_spikes(threshold=4.0, beta2=0.75, clip_after=2)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([2.0, 2.0], [1.0, -9.0]):  # v is 1, so entries are clipped to 2
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([2., 2.])
        tensor([ 1., -2.])

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: none.
    """

    def update(update, state, param, ctx):
        square = state["exp_avg_sq"]
        update = _cut(update, square, ctx, threshold, clip_after, every)
        return update, {"exp_avg_sq": running_mean(square, update.square(), beta2)}

    return zeros("exp_avg_sq"), update


@per_tensor(
    elementwise=True,
    ranges=SPIKE_RANGES,
    example={"every": 5, "clip_after": 1},
    nonnegative=("exp_avg_sq",),
)
def scale_by_spam(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-6,
    threshold: Scalar = 5000.0,
    clip_after: int = 20,
    every: int = 500,
):
    r"""Clip spikes using Adam's own average of squares: SPAM's direction.

    Equivalent to `clip_spikes` with the same $\beta_2$ before `scale_by_adam_hat`, with one $v$ for both.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root and before its bias correction, in the units of a gradient.
        threshold: $\theta > 0$: entries with $g^2 > \theta v$ are clipped.
        clip_after: $c \ge 0$, number of steps after a restart without clipping. Use at least 2: where $v$ is still 0,
            the gradient is clipped to 0, as are all later ones.
        every: $N \ge 1$, the number of steps between restarts.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_spam(betas=(0.0, 0.75), threshold=4.0, clip_after=2)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([2.0, 2.0], [1.0, -9.0]):  # -9 is clipped to -2
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([1.0000, 1.0000])
        tensor([ 0.6614, -1.0000])

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: none.
    """
    init, average = adam_moments(betas)

    def update(update, state, param, ctx):
        update = _cut(update, state["exp_avg_sq"], ctx, threshold, clip_after, every)
        mean, square, new = average(update, state)
        return hat_rate(safe_sqrt(square) + eps, ctx, betas) * mean, new

    return init, update


@per_tensor(ranges={"theta": "[0, 1)"})
def clip_to_peak_history(theta: Scalar = 0.999):
    r"""Scale down entries that exceed the usual largest entry: Stable-SPAM's clipping.

    With $G = \max |g|$ over a leaf, $M \leftarrow \theta M + (1-\theta) G$ and $\hat M = M / (1-\theta^t)$: where
    $|g| > \hat M$, $g$ becomes $g \hat M / G$.

    Args:
        theta: $\theta$ in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `max_avg`, 0-d float64 for each leaf.

    Raises:
        ValueError: If `theta` is outside [0, 1).

    Example:
        >>> tx = gradtx.clip_to_peak_history(theta=0.5)
        >>> state = tx.init({"w": torch.zeros(3)})
        >>> # the mean of the largest entries is 5
        >>> for grad in ([1.0, 1.0, 1.0], [1.0, 6.0, 7.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([1., 1., 1.])
        tensor([1.0000, 4.2857, 5.0000])

    Source: Huang et al. 2025, arXiv:2502.17055. Departures: none from the paper.
    """

    def init(param):
        return {"max_avg": scalar_zero(param)}

    def update(update, state, param, ctx):
        sizes = update.abs()
        peak = largest(sizes)
        average = running_mean(state["max_avg"], peak, theta)
        usual = average / ctx.bias_correction(theta)
        clipped = update * quotient(usual, peak)
        return torch.where(sizes > usual, clipped, update), {"max_avg": average}

    return init, update
