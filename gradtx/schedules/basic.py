"""The schedules of torch.optim.lr_scheduler in closed form."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from gradtx.arguments import (
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Scalar,
    is_number,
)
from gradtx.base.exact import Schedule, exact
from gradtx.base.messages import describe
from gradtx.schedules._factory import check_schedule, schedule

__all__ = [
    "constant_schedule",
    "cosine_schedule",
    "cosine_warm_restarts_schedule",
    "cyclic_schedule",
    "exponential_schedule",
    "join_schedules",
    "linear_schedule",
    "multistep_schedule",
    "one_cycle_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_schedule",
    "sigmoid_schedule",
    "step_schedule",
]


@schedule
def constant_schedule(
    step, lr, factor: NonNegative = 1.0, total_iters: NonNegativeInt = 0
):
    """Use `lr * factor` for the first `total_iters` steps, then `lr`, like torch's ConstantLR.

    Args:
        lr: The value, >= 0.
        factor: Multiplier for the first steps, >= 0.
        total_iters: The number of first steps, >= 0.

    Example:
        >>> s = gradtx.constant_schedule(0.1, factor=0.5, total_iters=2)
        >>> [s(i) for i in range(4)]
        [0.05, 0.05, 0.1, 0.1]
    """
    return lr * factor ** (step < total_iters).to(step.dtype)


@schedule
def linear_schedule(
    step,
    lr,
    start_factor: Fraction = 1 / 3,
    end_factor: Fraction = 1.0,
    total_iters: Count = 5,
):
    r"""Change linearly from `lr * start_factor` to `lr * end_factor`, like torch's LinearLR.

    $\eta (a + (b - a) \min(s, n)/n)$.

    Args:
        lr: $\eta \ge 0$.
        start_factor: $a$ in [0, 1]; torch excludes 0.
        end_factor: $b$ in [0, 1].
        total_iters: $n \ge 1$.

    Example:
        >>> s = gradtx.linear_schedule(1.0, start_factor=0.5, total_iters=2)
        >>> [s(i) for i in range(4)]
        [0.5, 0.75, 1.0, 1.0]
    """
    steps = step.clamp(max=total_iters)
    factor = start_factor + (end_factor - start_factor) * steps / total_iters
    return lr * factor


@schedule
def polynomial_schedule(step, lr, total_iters: Count = 5, power: NonNegative = 1.0):
    r"""Decay polynomially to 0, like torch's PolynomialLR.

    $\eta (1 - \min(s, n)/n)^q$, which is 0 from step $n$ on.

    Args:
        lr: $\eta \ge 0$, the value at step 0.
        total_iters: $n \ge 1$.
        power: $q \ge 0$.

    Example:
        >>> s = gradtx.polynomial_schedule(1.0, total_iters=4, power=2.0)
        >>> [s(i) for i in range(6)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    return lr * (1 - step.clamp(max=total_iters) / total_iters) ** power


@schedule
def sigmoid_schedule(
    step,
    start: Scalar,
    end: Scalar,
    total_steps: Count,
    center: Scalar,
    width: Positive,
):
    r"""Change from one value to another along a sigmoid.

    $b + (a - b) / (1 + e^{(s/n - c)/w})$.

    Args:
        start: $a$, the value long before the center.
        end: $b$, the value long after it.
        total_steps: $n \ge 1$, by which steps are divided.
        center: $c$, the share of the steps after which half of the change is done.
        width: $w > 0$, as a share of the steps; most of the change takes about six widths.

    Example:
        >>> s = gradtx.sigmoid_schedule(
        ...     0.25, -0.25, total_steps=100, center=0.5, width=0.04
        ... )
        >>> [round(s(i), 4) for i in (0, 46, 50, 100)]
        [0.25, 0.1155, 0.0, -0.25]
    """
    return end + (start - end) * torch.sigmoid((center - step / total_steps) / width)


@schedule
def exponential_schedule(step, lr, gamma: NonNegative):
    r"""Multiply the rate by `gamma` at each step, like torch's ExponentialLR: $\eta \gamma^s$.

    Args:
        lr: $\eta \ge 0$.
        gamma: $\gamma \ge 0$, the factor of each step.

    Example:
        >>> s = gradtx.exponential_schedule(1.0, gamma=0.5)
        >>> [s(i) for i in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """
    return lr * gamma**step


@schedule
def step_schedule(step, lr, step_size: Count, gamma: NonNegative = 0.1):
    r"""Multiply the rate by `gamma` every `step_size` steps, like torch's StepLR: $\eta \gamma^{\lfloor s/n \rfloor}$.

    Args:
        lr: $\eta \ge 0$.
        step_size: $n \ge 1$, the number of steps between decays.
        gamma: $\gamma \ge 0$.

    Example:
        >>> s = gradtx.step_schedule(1.0, step_size=2, gamma=0.5)
        >>> [s(i) for i in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return lr * gamma ** (step // step_size)


@schedule
def multistep_schedule(
    step, lr, milestones: Sequence[NonNegativeInt], gamma: NonNegative = 0.1
):
    r"""Multiply the rate by `gamma` at each milestone, like torch's MultiStepLR.

    $\eta \gamma^k$, where $k$ is the number of milestones reached.

    Args:
        lr: $\eta \ge 0$.
        milestones: Steps >= 0, in any order; a repeated one counts twice.
        gamma: $\gamma \ge 0$.

    Raises:
        TypeError: If `milestones` is not a list of ints.
        ValueError: If a milestone or `gamma` is negative.

    Example:
        >>> s = gradtx.multistep_schedule(1.0, milestones=[1, 3, 3], gamma=0.5)
        >>> [s(i) for i in range(5)]
        [1.0, 0.5, 0.5, 0.125, 0.125]
    """
    steps = torch.tensor(milestones, dtype=step.dtype, device=step.device)
    reached = (steps <= step).sum()
    return lr * gamma ** reached.to(step.dtype)


@schedule
def piecewise_constant_schedule(
    step, lr, boundaries_and_scales: Mapping[int, float] | None = None
):
    r"""Multiply the rate by a factor of its own at each boundary.

    $\eta \prod_{i : b_i \le s} f_i$.

    Args:
        lr: $\eta \ge 0$, the value before the first boundary.
        boundaries_and_scales: Boundary $b_i \ge 0$ -> factor $f_i \ge 0$, boundaries in increasing order.

    Raises:
        TypeError: If a boundary is not an int, or a factor not a number.
        ValueError: If boundaries are negative or not in increasing order, or if a factor is negative.

    Example:
        >>> s = gradtx.piecewise_constant_schedule(1.0, {2: 0.5, 3: 0.1})
        >>> [s(i) for i in range(5)]
        [1.0, 1.0, 0.5, 0.05, 0.05]
    """
    pieces = _pieces("piecewise_constant_schedule", boundaries_and_scales)
    value = lr
    for boundary, factor in pieces.items():
        value = torch.where(step >= boundary, value * factor, value)
    return value


@schedule
def piecewise_interpolate_schedule(
    step,
    interpolate_type: Literal["linear", "cosine"],
    lr,
    boundaries_and_scales: Mapping[int, float] | None = None,
):
    r"""Move from one value to the next between boundaries, along a line or half a cosine.

    At boundary $b_i$ the value is $\eta f_1 \cdots f_i$; before it, it moves there from the previous one, the first
    time from $\eta$ at step 0. It stays after the last boundary.

    Args:
        interpolate_type: "linear" or "cosine".
        lr: $\eta \ge 0$, the value at step 0.
        boundaries_and_scales: Boundary $b_i \ge 0$ -> factor $f_i \ge 0$, boundaries in increasing order.

    Raises:
        TypeError: If a boundary is not an int, or a factor not a number.
        ValueError: If boundaries are negative or not in increasing order, if a factor is negative, or if the type is
            unknown.

    Example:
        >>> s = gradtx.piecewise_interpolate_schedule("linear", 1.0, {4: 0.5, 6: 0.0})
        >>> [s(i) for i in range(0, 8)]
        [1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.0, 0.0]
    """
    pieces = _pieces("piecewise_interpolate_schedule", boundaries_and_scales)
    value, start = lr, 0
    for boundary, factor in pieces.items():
        length = max(boundary - start, 1)
        share = ((step - start) / length).clamp(0.0, 1.0)
        if interpolate_type == "cosine":
            share = (1 - torch.cos(math.pi * share)) / 2
        share = torch.where(step >= boundary, 1.0, share)  # also for a boundary at 0
        value = torch.where(step >= start, value + (factor - 1) * share * value, value)
        start = boundary
    return value


def _pieces(who: str, factors: Mapping[int, float] | None) -> dict[int, float]:
    """Check boundaries and factors."""
    if not isinstance(factors or {}, Mapping):
        raise TypeError(
            f"{who}: boundaries_and_scales must be a dict of boundary -> factor, got {describe(factors)}"
        )
    pieces = dict(factors or {})
    for boundary, factor in pieces.items():
        if not is_number(boundary, numbers.Integral) or not is_number(factor):
            raise TypeError(
                f"{who}: boundaries_and_scales must map ints to numbers, got {boundary!r}: {describe(factor)}"
            )
        if boundary < 0 or not factor >= 0:
            raise ValueError(
                f"{who}: boundaries and factors must be at least 0, got {boundary!r}: {factor!r}"
            )
    if list(pieces) != sorted(pieces):
        raise ValueError(
            f"{who}: boundaries must be in increasing order, got {', '.join(map(str, pieces))}"
        )
    return pieces


@schedule
def cosine_schedule(step, lr, T_max: Count, eta_min: NonNegative = 0.0):
    r"""Follow a cosine from `lr` to `eta_min`, like torch's CosineAnnealingLR.

    $\eta_{min} + (\eta - \eta_{min})(1 + \cos(\pi s/T))/2$, which rises again after $T$.

    Args:
        lr: $\eta \ge 0$, the value at step 0.
        T_max: $T \ge 1$, half a period.
        eta_min: The lowest value, >= 0.

    Example:
        >>> s = gradtx.cosine_schedule(1.0, T_max=4)
        >>> [round(s(i), 3) for i in (0, 1, 2, 4, 8)]
        [1.0, 0.854, 0.5, 0.0, 1.0]

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983.
    """
    angle = math.pi * step / T_max
    return eta_min + (lr - eta_min) * (1 + angle.cos()) / 2


@schedule
def cosine_warm_restarts_schedule(
    step, lr, T_0: Count, T_mult: Count = 1, eta_min: NonNegative = 0.0
):
    r"""Repeat a half cosine from `lr` to `eta_min`, like torch's CosineAnnealingWarmRestarts.

    $\eta_{min} + (\eta - \eta_{min})(1 + \cos(\pi i/T))/2$ at step $i$ of a cycle of $T$ steps. The first cycle has
    $T_0$ steps, and each is `T_mult` times as long as the previous one.

    Args:
        lr: $\eta \ge 0$, the value at the start of each cycle.
        T_0: Steps of the first cycle, >= 1.
        T_mult: The growth factor of the cycles, >= 1.
        eta_min: $\eta_{min} \ge 0$, never reached exactly.

    Example:
        >>> s = gradtx.cosine_warm_restarts_schedule(1.0, T_0=2, T_mult=2)
        >>> [round(s(i), 3) for i in range(8)]
        [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0, 0.962]

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983.
    """
    start = step - step % T_0
    if T_mult > 1:
        starts = [0]
        while starts[-1] < 2**53:  # larger integers are not exact in float64
            starts.append(starts[-1] * T_mult + T_0)
        reached = torch.tensor(starts, dtype=step.dtype, device=step.device)
        start = torch.where(reached <= step, reached, 0.0).amax()
    length = start * (T_mult - 1) + T_0
    angle = math.pi * (step - start) / length
    return eta_min + (lr - eta_min) * (1 + angle.cos()) / 2


@schedule
def one_cycle_schedule(
    step,
    max_lr: NonNegative,
    total_steps: Count,
    pct_start: Fraction = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
    three_phase=False,
    *,
    warmup_steps: NonNegativeInt | None = None,
    min_lr: NonNegative | None = None,
):
    r"""Rise to `max_lr`, then fall to nearly 0: the 1cycle policy, like torch's OneCycleLR.

    From $\eta/D$ at step 0 to $\eta$ at $e = pN - 1$, then to $\eta/(D F)$ at $N - 1$; with `three_phase` via $\eta/D$
    at $2e$. The value is constant afterward. To cycle the momentum as well, use a second schedule that falls while
    this one rises, such as `cyclic_schedule`.

    Args:
        max_lr: $\eta \ge 0$.
        total_steps: $N \ge 1$.
        pct_start: $p$ in [0, 1], the fraction of steps in the rise.
        anneal_strategy: "cos" for half a cosine, "linear" for a straight line.
        div_factor: $D > 0$.
        final_div_factor: $F > 0$.
        three_phase: First fall as fast as the rise, then fall further.
        warmup_steps: $e$ in [0, total_steps), the step of the peak, instead of `pct_start`; with `three_phase` at
            most half of the steps.
        min_lr: $\eta/(D F) \ge 0$, the final value, instead of `final_div_factor`.

    Raises:
        TypeError: If two arguments specify the same value.
        ValueError: If an argument is out of range, if `anneal_strategy` is unknown, or if the warm-up is too long.

    Example:
        >>> s = gradtx.one_cycle_schedule(
        ...     1.0, 6, pct_start=0.5, anneal_strategy="linear", div_factor=5.0
        ... )
        >>> [round(s(i), 3) for i in range(8)]
        [0.2, 0.6, 1.0, 0.667, 0.333, 0.0, 0.0, 0.0]
        >>> s = gradtx.one_cycle_schedule(lr=1.0, total_steps=6, warmup_steps=3, min_lr=0.1)
        >>> [round(s(i), 3) for i in range(8)]
        [0.04, 0.28, 0.76, 1.0, 0.55, 0.1, 0.1, 0.1]

    Source: Smith and Topin 2017, arXiv:1708.07120. Departures: torch raises after `total_steps`.
    """
    end = total_steps - 1
    peak = cast("Tensor", max_lr)  # numbers are passed as tensors
    rise = pct_start * total_steps - 1
    if warmup_steps is not None:
        _check_instead("warmup_steps", "pct_start", pct_start, 0.3)
        most = end // 2 if three_phase else end
        # The fall after the rise needs a step.
        if warmup_steps > most:
            raise ValueError(
                f"one_cycle_schedule: warmup_steps must be at most {most} with total_steps={total_steps}, "
                f"got {warmup_steps}"
            )
        rise = exact(warmup_steps, peak.device)
    low = peak / div_factor
    floor = low / final_div_factor
    if min_lr is not None:
        _check_instead("min_lr", "final_div_factor", final_div_factor, 1e4)
        floor = cast("Tensor", min_lr)
    # First and last step, first and last value.
    phases: list[tuple[Any, Any, Tensor, Tensor]] = [(0, rise, low, peak)]
    if three_phase:
        phases += [(rise, 2 * rise, peak, low), (2 * rise, end, low, floor)]
    else:
        phases += [(rise, end, peak, floor)]

    now = floor * torch.ones_like(step)
    for first, last, start, goal in reversed(phases):
        length = last - first
        share = (step - first) / torch.where(length > 0, length, 1.0)
        share = torch.where(length > 0, share, 1.0).clamp(0, 1)
        if anneal_strategy == "cos":
            share = (1 - (math.pi * share).cos()) / 2
        now = torch.where(step <= last, start + (goal - start) * share, now)
    return torch.where(step > end, floor, now)


def _check_instead(name: str, other: str, value: Scalar, default: float) -> None:
    """Raise an error if both of two alternative arguments were given."""
    if value != default:
        raise TypeError(
            f"one_cycle_schedule: got both {name} and {other}, which are alternatives; pass one"
        )


@schedule
def cyclic_schedule(
    step,
    base_lr: NonNegative,
    max_lr: NonNegative,
    step_size_up: Count = 2000,
    step_size_down: Count | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: NonNegative = 1.0,
):
    r"""Cycle linearly between two values, like torch's CyclicLR.

    $\eta_0 + (\eta_1 - \eta_0) h_s r_s$, where $h_s$ is the height in [0, 1] at this position in the cycle, and $r_s$
    is 1 ("triangular"), $2^{-c}$ in cycle $c$ (from 0, "triangular2"), or $\gamma^s$ ("exp_range").

    Args:
        base_lr: $\eta_0 \ge 0$.
        max_lr: $\eta_1 \ge 0$.
        step_size_up: Steps of the rise, >= 1.
        step_size_down: Steps of the fall, >= 1; None: as many as in the rise.
        mode: How the triangles shrink.
        gamma: $\gamma \ge 0$.

    Raises:
        ValueError: If an argument is out of range, or if `mode` is unknown.

    Example:
        >>> s = gradtx.cyclic_schedule(
        ...     0.0, 1.0, step_size_up=1, step_size_down=2, mode="triangular2"
        ... )
        >>> [s(i) for i in range(7)]
        [0.0, 1.0, 0.5, 0.0, 0.5, 0.25, 0.0]

    Source: Smith 2015, arXiv:1506.01186.
    """
    up = step_size_up
    down = up if step_size_down is None else step_size_down
    period = up + down

    position = step % period
    height = torch.where(position <= up, position / up, (period - position) / down)
    scale = {
        "triangular": 1.0,
        "triangular2": 0.5 ** (step // period),
        "exp_range": gamma**step,
    }[mode]
    return base_lr + (max_lr - base_lr) * height * scale


@schedule
def join_schedules(step, schedules: Sequence[Schedule], milestones: Sequence[int]):
    """Run schedules in sequence, each from its own step 0, like torch's SequentialLR and optax's `join_schedules`.

    Args:
        schedules: At least one schedule.
        milestones: The steps at which the second, third, ... begin, in increasing order; one fewer than schedules.

    Raises:
        TypeError: If an entry is not a Schedule.
        ValueError: If there are no schedules, if the number of milestones is wrong, or if the milestones are not
            positive and increasing.

    Example:
        >>> s = gradtx.join_schedules(
        ...     [gradtx.constant_schedule(0.1), gradtx.cosine_schedule(1.0, 2)], [2]
        ... )
        >>> [round(s(i), 3) for i in range(5)]
        [0.1, 0.1, 1.0, 0.5, 0.0]
    """
    if not schedules:
        raise ValueError("join_schedules: needs at least one schedule")
    for i, part in enumerate(schedules):
        check_schedule(f"join_schedules: schedules[{i}]", part)
    if len(milestones) != len(schedules) - 1:
        raise ValueError(
            f"join_schedules: {len(schedules)} schedules need {len(schedules) - 1} milestones, got {len(milestones)}"
        )
    if any(
        late <= early for early, late in zip([0, *milestones], milestones, strict=False)
    ):
        raise ValueError(
            f"join_schedules: milestones must be positive and increasing, got {list(milestones)}"
        )

    now = exact(schedules[0](step), step.device)
    for start, part in zip(milestones, schedules[1:], strict=True):
        since = (step - start).clamp(min=0)
        later = exact(part(since), step.device)
        now = torch.where(step < start, now, later)
    return now
