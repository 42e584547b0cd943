"""Schedules of single methods: Chebyshev step sizes, Ranger21, AdEMAMix."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import Count, Decay, NonNegative, NonNegativeInt, Positive
from gradtx.base.exact import exact
from gradtx.schedules._factory import entry_at, schedule

__all__ = [
    "ademamix_alpha_schedule",
    "chebyshev_schedule",
    "get_chebyshev_schedule",
    "half_life_schedule",
    "ranger21_schedule",
]


def _cosines(number: int) -> list[float]:
    """Return the Chebyshev nodes on [-1, 1] in fractal order, which alternates large and small nodes."""
    order = [0]
    while len(order) < number:
        last = 2 * len(order) - 1
        doubled: list[int] = []
        for i in order:
            doubled += [i, last - i]
        order = doubled
    return [math.cos(math.pi * (i + 0.5) / number) for i in order if i < number]


def _factor_at(position: Tensor, number: int, small_m, big_m) -> Tensor:
    """Return the inverse node at an index, clamped to the first and the last one."""
    nodes = torch.tensor(_cosines(number), dtype=position.dtype, device=position.device)
    mapped = (big_m + small_m) / 2 - (big_m - small_m) / 2 * nodes
    return entry_at(1 / mapped, position.clamp(0, number - 1))


def get_chebyshev_schedule(
    num_epochs: int, small_m: float = 0.1, big_m: float = 1.0
) -> list[float]:
    r"""Return the inverses of the Chebyshev nodes on [small_m, big_m] in fractal order, for all but two epochs.

    With $T$ = `num_epochs` - 2: $\gamma_i = 1/((M + m)/2 - (M - m)/2 \cos(\pi (i + 1/2)/T))$. These are step sizes for
    the spectrum $[m, M]$ of a Hessian, at most $1/m$, not fractions of a rate.

    Args:
        num_epochs: >= 3.
        small_m: $m > 0$.
        big_m: $M \ge m$.

    Raises:
        TypeError: If `num_epochs` is not an int.
        ValueError: If `num_epochs` is less than 3, or if [small_m, big_m] is not an interval of positive numbers.

    Example:
        >>> [round(factor, 3) for factor in gradtx.get_chebyshev_schedule(6)]
        [7.449, 1.035, 2.647, 1.385]

    Source: Agarwal et al. 2021, arXiv:2103.01338. Departures: any number of epochs; published code requires a power of
    two plus 2.
    """
    if small_m > big_m:
        raise ValueError(
            f"get_chebyshev_schedule: needs small_m <= big_m, got {small_m} and {big_m}"
        )
    factor = chebyshev_schedule(1.0, num_epochs, small_m, big_m)
    return [float(factor(epoch)) for epoch in range(1, num_epochs - 1)]


@schedule
def chebyshev_schedule(
    step,
    lr,
    num_epochs: Annotated[int, "[3, inf)"],
    small_m: Positive = 0.1,
    big_m: Positive = 1.0,
):
    r"""Multiply the rate of each epoch by a factor of `get_chebyshev_schedule`.

    $\eta \gamma_i$ with $i = e - 1$ for epoch $e$ (a step here is an epoch). The first and the last factor each apply
    to two epochs.

    Args:
        lr: $\eta \ge 0$.
        num_epochs: >= 3.
        small_m: $m > 0$.
        big_m: $M > 0$, at least $m$.

    Example:
        >>> s = gradtx.chebyshev_schedule(1.0, num_epochs=6)
        >>> [round(s(i), 3) for i in range(7)]
        [7.449, 7.449, 1.035, 2.647, 1.385, 1.385, 1.385]

    Source: Agarwal et al. 2021, arXiv:2103.01338.
    """
    return lr * _factor_at(step - 1, num_epochs - 2, small_m, big_m)


@schedule
def ranger21_schedule(
    step,
    lr,
    num_iterations: Count,
    beta2: Decay = 0.999,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-5,
    chebyshev_epochs: Annotated[int, "[3, inf)"] | None = None,
):
    r"""Rise linearly, stay constant (or use Chebyshev factors), and fall linearly at the end: Ranger21's schedule.

    With $t = s + 1$, $u$ and $d$ the lengths of rise and fall and $N$ the total: $\eta t / u$ for $t \le u$; then
    $\eta$; from $t = N - d$ on $\max(\eta - (\eta - \eta_{min}) \min((t + 1 - N + d)/(d + 1), 1), \eta_{min})$.

    Args:
        lr: $\eta \ge 0$.
        num_iterations: $N \ge 1$.
        beta2: Decay of the optimizer's average of squares, in [0, 1).
        num_warm_up_iterations: $u \ge 0$; None: $2/(1-\beta_2)$ rounded up, or 22 % of $N$ if that exceeds 45 %.
        num_warm_down_iterations: $d \ge 0$; None: 28 % of $N$.
        warm_down_min_lr: $\eta_{min} \ge 0$.
        chebyshev_epochs: $E$ in [3, N]: between rise and fall, the rate of each epoch (of $\lfloor N/E \rfloor$ steps)
            is multiplied by the inverse of a Chebyshev node on [0.1, 1], a number in (1, 10), in fractal order.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> s = gradtx.ranger21_schedule(
        ...     1.0, 8, num_warm_up_iterations=2, num_warm_down_iterations=3
        ... )
        >>> [round(s(i), 3) for i in range(8)]
        [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

    Source: Wright and Demeure 2021, arXiv:2106.13731; factors: Agarwal et al. 2021, arXiv:2103.01338.
    """
    total, epochs = num_iterations, chebyshev_epochs
    if epochs is not None and epochs > total:
        raise ValueError(
            f"ranger21_schedule: chebyshev_epochs must be at most num_iterations = {total}, got {epochs}"
        )
    down = (
        total - int(0.72 * total)
        if num_warm_down_iterations is None
        else num_warm_down_iterations
    )
    start = total - down

    t = step + 1
    up: Any = num_warm_up_iterations
    if up is None:
        up = exact(2 / (1 - beta2), step.device).ceil()
        up = torch.where(up / total > 0.45, math.floor(0.22 * total), up)
    up = exact(up, step.device)
    now = lr * torch.ones_like(step)
    if epochs is not None:
        epoch = t // (total // epochs)
        least = exact(0.1, step.device)
        now = now * _factor_at(epoch - 1, epochs - 2, least, 1.0)
    now = torch.where(t <= up, lr * t / up.clamp(min=1), now)
    share = ((t + 1 - start) / (down + 1)).clamp(max=1)
    falling = lr - (lr - warm_down_min_lr) * share
    floor = exact(warm_down_min_lr, step.device)
    return torch.where(t >= start, torch.maximum(falling, floor), now)


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
