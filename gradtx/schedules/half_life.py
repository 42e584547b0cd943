"""AdEMAMix's schedules: the weight of its slow average, and decay factors by half-life."""

from __future__ import annotations

import math
from typing import Any

import torch

from gradtx.arguments import Decay, NonNegative, NonNegativeInt
from gradtx.schedules._factory import schedule

__all__ = ["ademamix_alpha_schedule", "half_life_schedule"]


@schedule
def ademamix_alpha_schedule(
    step, alpha: NonNegative, warmup_steps: NonNegativeInt | None
):
    r"""Rise linearly to `alpha`, starting with one step's share: $\alpha \min(1, (s + 1)/T)$.

    Args:
        alpha: $\alpha \ge 0$.
        warmup_steps: $T \ge 0$, the number of the first update at `alpha`; None for no warm-up.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> s = gradtx.ademamix_alpha_schedule(2.0, 4)
        >>> [s(i) for i in range(5)]
        [0.5, 1.0, 1.5, 2.0, 2.0]

    Source: Pagliardini et al. 2024, arXiv:2409.03137. Departures: none; it counts from t = 1.
    """
    return alpha * ((step + 1) / max(warmup_steps or 0, 1)).clamp(max=1)


@schedule
def half_life_schedule(
    step, end: Decay, warmup_steps: NonNegativeInt | None, start: Decay
):
    r"""Move a decay factor from `start` to `end` so that its half-life changes linearly.

    With $h(\beta) = \ln 0.5 / \ln(\beta + 10^{-8}) - 1$ and $a = (s + 1)/T < 1$:
    $0.5^{1 / ((1-a) h(\beta_0) + a h(\beta_1) + 1)}$; from $s + 1 = T$ on $\beta_1$. A linear change of $\beta$ itself
    would spend most of the time at short half-lives.

    Args:
        end: $\beta_1$ in [0, 1).
        warmup_steps: $T \ge 0$, the number of the first update at `end`; None for no warm-up.
        start: $\beta_0$ in [0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> s = gradtx.half_life_schedule(0.9999, 4, 0.9)
        >>> # half-lives of 7, 1737, 3469, 5200 and 6931 steps
        >>> [round(s(i), 4) for i in range(4)]
        [0.9996, 0.9998, 0.9999, 0.9999]

    Source: Pagliardini et al. 2024, arXiv:2409.03137. Departures: none from the authors' code; the closed form in the
    paper lacks the $10^{-8}$.
    """
    constant: Any = end

    def steps(beta):
        return math.log(0.5) / (beta + 1e-8).log() - 1

    if not warmup_steps:
        return constant + 0 * step
    share = ((step + 1) / warmup_steps).clamp(max=1)
    h = (1 - share) * steps(start) + share * steps(end)
    rising = 0.5 ** (1 / (h + 1))
    return torch.where(step + 1 < warmup_steps, rising, constant)
