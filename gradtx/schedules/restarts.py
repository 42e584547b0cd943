"""Warm-ups after restarts of an optimizer's state, as in SPAM."""

from __future__ import annotations

import math

import torch

from gradtx.arguments import Count, NonNegativeInt
from gradtx.schedules._factory import schedule

__all__ = ["restart_warmup_schedule"]


@schedule
def restart_warmup_schedule(step, lr, every: Count, warmup_steps: NonNegativeInt):
    r"""Rise along a half cosine from 1 % of the rate after each restart of the optimizer's state.

    With $c = (s + 1) \bmod N$, from the first restart $s + 1 = N$ on, while $c < W$:
    $\eta (1 - 0.99 (1 + \cos(\pi c / (W + 1)))/2)$; else $\eta$.

    Args:
        lr: $\eta \ge 0$.
        every: $N \ge 1$, the number of steps between restarts, as in `restart`.
        warmup_steps: $W \ge 0$. With $W \ge N$ the warm-ups never end.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> s = gradtx.restart_warmup_schedule(1.0, every=4, warmup_steps=3)
        >>> [round(s(i), 3) for i in range(8)]
        [1.0, 1.0, 1.0, 0.01, 0.155, 0.505, 1.0, 0.01]

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: none from the authors' code. pytorch_optimizer's is one
    step ahead, and wrong from the second restart on.
    """
    since = (step + 1) % every
    rising = 1 - 0.99 * (1 + (math.pi * since / (warmup_steps + 1)).cos()) / 2
    is_rising = (step + 1 >= every) & (since < warmup_steps)
    return lr * torch.where(is_rising, rising, 1.0)
