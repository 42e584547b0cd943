"""Schedules with a warm-up: linear, cosine, polynomial, with restarts, with a plateau, untuned."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import Count, Decay, Fraction, NonNegative, NonNegativeInt, Scalar
from gradtx.base import torch_names as _torch
from gradtx.base.exact import Schedule, exact
from gradtx.execution.context import bias_correction
from gradtx.schedules._factory import check_schedule, entry_at, schedule

__all__ = [
    "cosine_warmup_restarts_schedule",
    "explore_exploit_schedule",
    "proportion_schedule",
    "rectification_schedule",
    "restart_warmup_schedule",
    "untuned_exponential_warmup",
    "untuned_linear_warmup",
    "warmup_cosine_schedule",
    "warmup_linear_schedule",
    "warmup_poly_schedule",
    "wsd_schedule",
]


def _after_warmup(
    who: str, step: Tensor, t_max: int, warmup_steps: int
) -> tuple[Tensor, Tensor]:
    """Return the steps since the warmup, and their share of all steps after it."""
    if warmup_steps > t_max:
        raise ValueError(
            f"{who}: warmup_steps must be at most t_max = {t_max}, got {warmup_steps}"
        )
    since = (step - warmup_steps).clamp(min=0)
    return since, (since / max(t_max - warmup_steps, 1)).clamp(max=1)


def _risen(
    step: Tensor, warmup_steps: int, init_lr: Scalar, max_lr: Scalar, falling: Tensor
) -> Tensor:
    """Return a linear rise from `init_lr` to `max_lr` before the value after it."""
    rising = init_lr + (max_lr - init_lr) * step / max(warmup_steps, 1)
    return torch.where(step < warmup_steps, rising, falling)


@schedule
def warmup_linear_schedule(
    step,
    t_max: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
):
    r"""Rise linearly from `init_lr` to `max_lr`, then fall linearly to `min_lr` at `t_max` and stay there.

    With $w$ warm-up steps: $\eta_0 + (\eta - \eta_0) s/w$ for $s < w$, then
    $\eta + (\eta_{min} - \eta)(s - w)/(T - w)$.

    Args:
        t_max: $T \ge 1$, the step at which `min_lr` is reached.
        max_lr: $\eta \ge 0$, the value at step `warmup_steps`.
        min_lr: $\eta_{min} \ge 0$.
        init_lr: $\eta_0 \ge 0$, the value of the first update.
        warmup_steps: $w$ in [0, t_max].

    Raises:
        ValueError: If an argument is out of range, or if `warmup_steps` exceeds `t_max`.

    Example:
        >>> s = gradtx.warmup_linear_schedule(6, max_lr=1.0, warmup_steps=2)
        >>> [s(i) for i in range(8)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    Source: juntang-zhuang/GSAM, LinearScheduler. Departures: holds `min_lr` after `t_max`.
    """
    _, share = _after_warmup("warmup_linear_schedule", step, t_max, warmup_steps)
    falling = max_lr + (min_lr - max_lr) * share
    return _risen(step, warmup_steps, init_lr, max_lr, falling)


@schedule
def warmup_cosine_schedule(
    step,
    t_max: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
):
    r"""Rise linearly from `init_lr` to `max_lr`, then fall along a half cosine to `min_lr` at `t_max` and stay there.

    With $w$ warm-up steps: $\eta_0 + (\eta - \eta_0) s/w$ for $s < w$, then
    $\eta_{min} + (\eta - \eta_{min})(1 + \cos(\pi (s - w)/(T - w)))/2$.

    Args:
        t_max: $T \ge 1$, the step at which `min_lr` is reached.
        max_lr: $\eta \ge 0$, the value at step `warmup_steps`.
        min_lr: $\eta_{min} \ge 0$.
        init_lr: $\eta_0 \ge 0$, the value of the first update.
        warmup_steps: $w$ in [0, t_max].

    Raises:
        ValueError: If an argument is out of range, or if `warmup_steps` exceeds `t_max`.

    Example:
        >>> s = gradtx.warmup_cosine_schedule(6, max_lr=1.0, warmup_steps=2)
        >>> [round(s(i), 3) for i in range(8)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Source: juntang-zhuang/GSAM, CosineScheduler. Departures: holds `min_lr` after `t_max`.
    """
    _, share = _after_warmup("warmup_cosine_schedule", step, t_max, warmup_steps)
    falling = min_lr + (max_lr - min_lr) * (1 + (math.pi * share).cos()) / 2
    return _risen(step, warmup_steps, init_lr, max_lr, falling)


@schedule
def warmup_poly_schedule(
    step,
    t_max: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
    poly_order: Scalar = -0.5,
):
    r"""Rise linearly from `init_lr` to `max_lr`, then fall as a power of the steps since, until `t_max`.

    With $w$ warm-up steps: $\eta_0 + (\eta - \eta_0) s/w$ for $s < w$, $\eta$ at $s = w$, then
    $\eta_{min} + (\eta - \eta_{min})(\min(s, T) - w)^q$.

    Args:
        t_max: $T \ge 1$, the step from which the value is constant.
        max_lr: $\eta \ge 0$, the value at steps `warmup_steps` and, since $1^q = 1$, `warmup_steps + 1`.
        min_lr: $\eta_{min} \ge 0$.
        init_lr: $\eta_0 \ge 0$, the value of the first update.
        warmup_steps: $w$ in [0, t_max].
        poly_order: $q$; if positive, the value grows above `max_lr`.

    Raises:
        ValueError: If an argument is out of range, or if `warmup_steps` exceeds `t_max`.

    Example:
        >>> s = gradtx.warmup_poly_schedule(6, max_lr=1.0, warmup_steps=2)
        >>> [round(s(i), 3) for i in range(8)]
        [0.0, 0.5, 1.0, 1.0, 0.707, 0.577, 0.5, 0.5]

    Source: juntang-zhuang/GSAM, PolyScheduler. Departures: holds its value after `t_max`. This is not torch's
    PolynomialLR, see `polynomial_schedule`.
    """
    since, _ = _after_warmup("warmup_poly_schedule", step, t_max, warmup_steps)
    # Clamp 0 to 1 step, so that negative powers are finite.
    steps = since.clamp(1, max(t_max - warmup_steps, 1))
    falling = min_lr + (max_lr - min_lr) * steps**poly_order
    return _risen(step, warmup_steps, init_lr, max_lr, falling)


@functools.lru_cache(maxsize=64)
def _table(decaying: int, growth: float, rising: int) -> tuple[tuple[int, ...], int]:
    """Return the starts of the cycles until their length is constant, and the length from the last start on."""
    starts = [0]
    # Larger integers are not exact in float64. The second limit bounds the table if cycles barely grow.
    while starts[-1] < 2**53 and len(starts) < 10_000:
        following = max(1, int(decaying * growth))
        if following == decaying:
            break
        starts.append(starts[-1] + decaying + rising)
        decaying = following
    return tuple(starts), decaying + rising


@_torch.assume_constant
def _cycles(decaying: int, growth: float, rising: int) -> tuple[tuple[int, ...], int]:
    return _table(decaying, growth, rising)


@schedule
def cosine_warmup_restarts_schedule(
    step,
    first_cycle_steps: Count,
    cycle_mult: Annotated[int | float, "(0, inf)"] = 1.0,
    max_lr: NonNegative = 1e-4,
    min_lr: NonNegative = 1e-6,
    warmup_steps: NonNegativeInt = 0,
    gamma: NonNegative = 0.9,
):
    r"""Repeat a linear rise from `min_lr` and a half cosine back to it, with decreasing peaks.

    In cycle $c$ (from 0) of $L$ steps, with $w$ warm-up steps and $\eta_c = \eta \gamma^c$, at step $i$ of the cycle:
    $\eta_{min} + (\eta_c - \eta_{min}) i/w$ for $i < w$, then
    $\eta_{min} + (\eta_c - \eta_{min})(1 + \cos(\pi (i - w)/(L - w)))/2$. The next cycle has
    $\max(1, \lfloor (L - w) m \rfloor) + w$ steps, up to the 10,000th, after which the length is constant.

    Args:
        first_cycle_steps: $L$ of the first cycle, >= 1.
        cycle_mult: $m > 0$, the ratio of the lengths of consecutive falls; a plain number.
        max_lr: $\eta \ge 0$.
        min_lr: $\eta_{min} \ge 0$.
        warmup_steps: $w$ in [0, first_cycle_steps).
        gamma: $\gamma \ge 0$.

    Raises:
        TypeError: If `cycle_mult` is not a plain number.
        ValueError: If an argument is out of range, or if `warmup_steps` is not less than `first_cycle_steps`.

    Example:
        >>> s = gradtx.cosine_warmup_restarts_schedule(
        ...     4, 1.0, max_lr=1.0, min_lr=0.0, warmup_steps=2, gamma=0.5
        ... )
        >>> [round(s(i), 3) for i in range(8)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]

    Source: katsura-jp/pytorch-cosine-annealing-with-warmup. Departures: without a warm-up, that class uses `min_lr`
    for the first update; this schedule uses `max_lr`.
    """
    if warmup_steps >= first_cycle_steps:
        raise ValueError(
            "cosine_warmup_restarts_schedule: warmup_steps must be below first_cycle_steps = "
            f"{first_cycle_steps}, got {warmup_steps}"
        )

    starts, last_length = _cycles(
        first_cycle_steps - warmup_steps, float(cycle_mult), warmup_steps
    )
    firsts = torch.tensor(starts, dtype=step.dtype, device=step.device)
    last = exact(last_length, step.device)[None]
    lengths = torch.cat([firsts[1:] - firsts[:-1], last])
    cycle = (firsts <= step).sum() - 1
    position = step - entry_at(firsts, cycle)
    length = entry_at(lengths, cycle)
    # Nonzero only in the last row, whose cycles repeat indefinitely.
    again = position // length
    top = max_lr * gamma ** (cycle + again)
    position = position - again * length
    rising = position / max(warmup_steps, 1)
    angle = math.pi * (position - warmup_steps) / (length - warmup_steps)
    falling = (1 + angle.cos()) / 2
    height = torch.where(position < warmup_steps, rising, falling)
    return min_lr + (top - min_lr) * height


@schedule
def proportion_schedule(
    step,
    lr_schedule: Schedule,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    max_value: Scalar = 2.0,
    min_value: Scalar = 2.0,
):
    r"""Vary another hyperparameter in proportion to a learning rate, such as GSAM's radius.

    $v_{min} + (v_{max} - v_{min})(\eta_s - \eta_{min})/(\eta_{max} - \eta_{min})$, and $v_{max}$ if
    $\eta_{max} \le \eta_{min}$.

    Args:
        lr_schedule: $\eta_s$, the schedule of the learning rate.
        max_lr: $\eta_{max} \ge 0$.
        min_lr: $\eta_{min} \ge 0$.
        max_value: $v_{max}$, the value at `max_lr`.
        min_value: $v_{min}$, the value at `min_lr`.

    Raises:
        TypeError: If `lr_schedule` is not a Schedule.
        ValueError: If an argument is out of range.

    Example:
        >>> rate = gradtx.linear_schedule(1.0, start_factor=1.0, end_factor=0.0, total_iters=2)
        >>> s = gradtx.proportion_schedule(rate, max_lr=1.0, max_value=0.4, min_value=0.2)
        >>> [round(s(i), 3) for i in range(4)]
        [0.4, 0.3, 0.2, 0.2]

    Source: Zhuang et al. 2022, arXiv:2203.08065; juntang-zhuang/GSAM, ProportionScheduler.
    """
    check_schedule("proportion_schedule: lr_schedule", lr_schedule)

    span: Any = max_lr - min_lr
    most: Any = max_value
    above = exact(lr_schedule(step), step.device) - min_lr
    share = above / torch.where(span > 0, span, 1.0)
    return torch.where(span > 0, min_value + (max_value - min_value) * share, most)


@schedule
def explore_exploit_schedule(
    step,
    peak_lr: NonNegative,
    warmup_steps: NonNegativeInt = 0,
    explore_steps: NonNegativeInt = 0,
    total_steps: NonNegativeInt = 0,
):
    r"""Rise linearly, stay at the peak to find wide minima, then fall linearly to 0: the knee schedule.

    With $t = s + 1$, $w$ and $e$ the steps of warm-up and exploration, and $N$ the total: $\eta t/w$ for $t \le w$,
    $\eta$ for $t \le w + e$, then $\eta (1 - (t - w - e)/(N - w - e))$, and finally 0.

    Args:
        peak_lr: $\eta \ge 0$.
        warmup_steps: $w \ge 0$.
        explore_steps: $e \ge 0$.
        total_steps: $N \ge w + e$.

    Raises:
        ValueError: If an argument is out of range, or if `warmup_steps + explore_steps` exceeds `total_steps`.

    Example:
        >>> s = gradtx.explore_exploit_schedule(
        ...     1.0, warmup_steps=2, explore_steps=1, total_steps=5
        ... )
        >>> [s(i) for i in range(6)]
        [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]

    Source: Iyer et al. 2020, arXiv:2003.03977.
    """
    flat = warmup_steps + explore_steps
    if flat > total_steps:
        raise ValueError(
            f"explore_exploit_schedule: total_steps must be at least warmup_steps + explore_steps = {flat}, "
            f"got {total_steps}"
        )

    t = step + 1
    rising = (t / max(warmup_steps, 1)).clamp(max=1)
    falling = (1 - (t - flat) / max(total_steps - flat, 1)).clamp(min=0)
    return peak_lr * torch.where(t <= flat, rising, falling)


@schedule
def wsd_schedule(
    step,
    lr,
    num_warmup_steps: NonNegativeInt,
    num_stable_steps: NonNegativeInt | None = None,
    num_decay_steps: NonNegativeInt | None = None,
    min_lr_ratio: Fraction = 0.0,
    num_cycles: NonNegative = 0.5,
    cooldown_type: Literal["1-sqrt", "linear", "1-square", "cosine"] = "1-sqrt",
    *,
    total_steps: NonNegativeInt | None = None,
    min_lr: NonNegative | None = None,
    init_lr: NonNegative = 0.0,
):
    r"""Rise linearly, stay constant, and cool down: warm-up, stable phase, decay (WSD).

    $\eta_0 + (\eta - \eta_0) s/w$ in the warm-up, $\eta$ in the stable phase, $\eta (r + (1 - r) f(x))$ in the
    cooldown, where $x$ is the completed fraction of the cooldown, then $\eta r$. $f(x)$ is $1 - \sqrt x$ ("1-sqrt"),
    $1 - x$ ("linear"), $1 - x^2$ ("1-square") or $\max(0, (1 + \cos(2\pi k x))/2)$ ("cosine").

    Args:
        lr: $\eta \ge 0$.
        num_warmup_steps: $w \ge 0$.
        num_stable_steps: >= 0.
        num_decay_steps: >= 0.
        min_lr_ratio: $r$ in [0, 1].
        num_cycles: $k \ge 0$, used only by "cosine".
        cooldown_type: The form of the cooldown.
        total_steps: The total of the three phases, instead of `num_stable_steps` or `num_decay_steps`.
        min_lr: $\eta r$, >= 0, instead of `min_lr_ratio`.
        init_lr: $\eta_0 \ge 0$, the value of the first update of a warm-up.

    Raises:
        TypeError: If the lengths of the phases are incomplete or overdetermined, or if both `min_lr` and `min_lr_ratio`
            are given.
        ValueError: If an argument is out of range, if `cooldown_type` is unknown, or if the other phases exceed
            `total_steps`.

    Example:
        >>> s = gradtx.wsd_schedule(1.0, 2, 1, 4, min_lr_ratio=0.2)
        >>> [round(s(i), 3) for i in range(8)]
        [0.0, 0.5, 1.0, 1.0, 0.6, 0.434, 0.307, 0.2]
        >>> s = gradtx.wsd_schedule(
        ...     lr=1.0, total_steps=7, warmup_steps=2, num_decay_steps=4, min_lr=0.2
        ... )
        >>> [round(s(i), 3) for i in range(8)]
        [0.0, 0.5, 1.0, 1.0, 0.6, 0.434, 0.307, 0.2]

    Source: Hu et al. 2024, arXiv:2404.06395. Departures: `min_lr_ratio` applies to every form; code that applies it
    only to the cosine jumps at the end of the other forms.
    """
    stable, decaying = _stable_and_decaying(
        num_warmup_steps, num_stable_steps, num_decay_steps, total_steps
    )
    flat = num_warmup_steps + stable
    floor = lr * min_lr_ratio
    if min_lr is not None:
        if min_lr_ratio != 0.0:
            raise TypeError(
                "wsd_schedule: got both min_lr and min_lr_ratio, which are alternatives; pass one"
            )
        floor = min_lr

    progress = step / max(num_warmup_steps, 1)
    progress = torch.where(step < num_warmup_steps, progress, 1.0)
    rising = init_lr + (lr - init_lr) * progress
    share = ((step - flat) / max(decaying, 1)).clamp(0, 1)
    if cooldown_type == "cosine":
        height = (1 + (2 * math.pi * num_cycles * share).cos()) / 2
    else:
        exponents = {"1-sqrt": 0.5, "linear": 1, "1-square": 2}
        height = 1 - share ** exponents[cooldown_type]
    height = torch.where(step < flat + decaying, height, 0.0)
    falling = floor + (lr - floor) * height
    return torch.where(step < flat, rising, falling)


def _stable_and_decaying(
    warmup: int, stable: int | None, decaying: int | None, total: int | None
) -> tuple[int, int]:
    """Return the steps of the last two phases, one of which may be derived from the total."""
    if [stable, decaying, total].count(None) != 1:
        raise TypeError(
            "wsd_schedule: pass two of num_stable_steps, num_decay_steps and total_steps, got "
            f"{stable}, {decaying} and {total}"
        )
    if stable is None:
        stable = (total or 0) - warmup - (decaying or 0)
    if decaying is None:
        decaying = (total or 0) - warmup - stable
    if min(stable, decaying) < 0:
        raise ValueError(
            f"wsd_schedule: total_steps={total} is less than the total of the phases"
        )
    return stable, decaying


@schedule
def untuned_linear_warmup(step, lr=1.0, beta2: Decay = 0.999):
    r"""Rise linearly for as long as the average of squares needs, without a tuned length.

    $\eta \min(1, t (1 - \beta_2)/2)$ with $t = s + 1$.

    Args:
        lr: $\eta \ge 0$; a schedule here also starts at step 0 and is multiplied by the warm-up.
        beta2: $\beta_2$ of the optimizer, in [0, 1).

    Example:
        >>> s = gradtx.untuned_linear_warmup(1.0, beta2=0.5)
        >>> [s(i) for i in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]

    Source: Ma and Yarats 2019, arXiv:1910.04209. The period $2/(1-\beta_2)$ is not rounded.
    """
    share = (step + 1) * (1 - beta2) / 2
    return lr * share.clamp(max=1)


@schedule
def untuned_exponential_warmup(step, lr=1.0, beta2: Decay = 0.999):
    r"""Rise exponentially for as long as the average of squares needs, without a tuned length.

    $\eta (1 - e^{-(1 - \beta_2) t})$ with $t = s + 1$.

    Args:
        lr: $\eta \ge 0$; a schedule here also starts at step 0 and is multiplied by the warm-up.
        beta2: $\beta_2$ of the optimizer, in [0, 1).

    Example:
        >>> s = gradtx.untuned_exponential_warmup(
        ...     gradtx.exponential_schedule(1.0, 0.5), beta2=0.0
        ... )
        >>> [round(s(i), 3) for i in range(3)]
        [0.632, 0.432, 0.238]

    Source: Ma and Yarats 2019, arXiv:1910.04209.
    """
    return lr * -torch.expm1((step + 1) * (beta2 - 1))


def rectification_at(
    time: Tensor, correction: Tensor, beta2: Any, threshold: Any
) -> tuple[Tensor, Tensor]:
    r"""Return RAdam's factor $r_t$ (1 until it applies) and whether $\rho_t >$ threshold (at least 4), both 0-d.

    $\rho_\infty = 2 / (1 - \beta_2) - 1$, $\rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t)$ and
    $r_t^2 = (\rho_t - 4)(\rho_t - 2) \rho_\infty / ((\rho_\infty - 4)(\rho_\infty - 2) \rho_t)$.
    """
    limit = exact(2 / (1 - beta2) - 1, correction.device)
    rho = limit - 2 * time * (1 - correction) / correction
    rectified = rho > threshold
    # Until then the root may be of a negative number, or of 0/0 at beta2 = 0.6, so substitute an arbitrary value.
    rho = torch.where(rectified, rho, 5.0)
    limit = torch.where(rectified, limit, 5.0)
    square = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    return square.sqrt(), rectified


@schedule
def rectification_schedule(step, lr, beta2: Decay = 0.999, silent=True):
    r"""Multiply the rate by RAdam's variance rectification: its warm-up as a schedule.

    With $t = s + 1$, $\rho_\infty = 2/(1-\beta_2) - 1$ and $\rho_t = \rho_\infty - 2 t \beta_2^t / (1-\beta_2^t)$:
    $\eta \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}$ if $\rho_t > 4$,
    before that 0, or $\eta$ if not silent.

    Args:
        lr: $\eta \ge 0$, the limit of the rate.
        beta2: $\beta_2$ in [0, 1), the decay of the average of squares; up to 0.6, rectification never starts.
        silent: Use rate 0 in the first steps instead of stepping like SGD.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> s = gradtx.rectification_schedule(1.0)
        >>> [round(s(i), 4) for i in range(7)]
        [0.0, 0.0, 0.0, 0.0, 0.0173, 0.0258, 0.0327]

    Source: Liu et al. 2019, arXiv:1908.03265; the threshold is that of Schedule-Free RAdam. Departures: none.
    """
    time = step + 1
    factor, rectified = rectification_at(time, bias_correction(beta2, time), beta2, 4.0)
    return lr * torch.where(rectified, factor, 0.0 if silent else 1.0)


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
