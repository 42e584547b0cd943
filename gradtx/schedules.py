"""Hyperparameters that change with the step: pure functions of the number of updates already done.

Step 0 is the first update. A schedule of a Python int and plain numbers gives a float, otherwise a 0-d float64
tensor, without reading any tensor on the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor

from gradtx._arguments import Arguments, Range, Scalar, Schedule, describe, exact

P = ParamSpec("P")


class _Made(Schedule):
    """The call of a schedule's factory: shown, pickled and copied as such."""

    def __init__(self, factory: Any, arguments: dict[str, Any]):
        self._factory, self._arguments = factory, arguments
        self._plain = not any(isinstance(value, Tensor) for value in arguments.values())
        factory.function(**self._exact(torch.device("cpu")))  # its own checks belong to construction
        super().__init__(self._value)

    def _exact(self, device: torch.device) -> dict[str, Any]:
        """Numbers as float64 tensors: `torch.where` of two Python numbers would be float32."""
        return {
            name: exact(value, device) if isinstance(value, float | Tensor) else value
            for name, value in self._arguments.items()
        }

    def _value(self, step: Any) -> Any:
        tensor = exact(step, step.device if isinstance(step, Tensor) else torch.device("cpu"))
        value = self._factory.function(**self._exact(tensor.device))(tensor)
        return value if isinstance(step, Tensor) or not self._plain else value.item()

    def __reduce__(self) -> tuple:
        return _Made, (self._factory, self._arguments)

    def __repr__(self) -> str:
        shown = []
        for argument in self._factory.arguments.all:
            value = self._arguments[argument.name]
            if argument.required:
                shown.append(describe(value))
            elif isinstance(value, Tensor) or value != argument.default:
                shown.append(f"{argument.name}={describe(value)}")
        return f"{self._factory.__name__}({', '.join(shown)})"


def schedule(**ranges: str) -> Callable[[Callable[P, Callable[[Tensor], Tensor]]], Callable[P, Schedule]]:
    """Make a schedule's factory from a function that returns `value(step)`, written in float64 tensors."""

    def decorated(function: Any) -> Any:
        arguments = Arguments(function.__name__, function, {n: Range(r) for n, r in ranges.items()}, (), False)

        @functools.wraps(function)
        def factory(*args: Any, **kwargs: Any) -> Schedule:
            return _Made(factory, arguments.bind(args, kwargs))

        factory.function, factory.arguments = function, arguments  # type: ignore[attr-defined]
        return factory

    return decorated


@schedule(factor="[0, inf)", total_iters="[0, inf)")
def constant_schedule(lr: Scalar, factor: Scalar = 1.0, total_iters: int = 0):
    """`lr * factor` for the first `total_iters` steps, then `lr`. As torch's ConstantLR.

    Args:
        lr: The value, >= 0.
        factor: Multiplier of the first steps, >= 0.
        total_iters: Their number, >= 0.

    Example:
        >>> s = gradtx.constant_schedule(0.1, factor=0.5, total_iters=2)
        >>> [s(i) for i in range(4)]
        [0.05, 0.05, 0.1, 0.1]
    """
    return lambda step: lr * factor ** (step < total_iters).to(step.dtype)


@schedule(start_factor="(0, 1]", end_factor="[0, 1]", total_iters="[1, inf)")
def linear_schedule(lr: Scalar, start_factor: Scalar = 1 / 3, end_factor: Scalar = 1.0, total_iters: int = 5):
    r"""$\eta (a + (b - a) \min(s, n)/n)$, from `lr * start_factor` to `lr * end_factor`. As torch's LinearLR.

    Args:
        lr: $\eta \ge 0$.
        start_factor: $a$ in (0, 1].
        end_factor: $b$ in [0, 1].
        total_iters: $n \ge 1$.

    Example:
        >>> s = gradtx.linear_schedule(1.0, start_factor=0.5, total_iters=2)
        >>> [s(i) for i in range(4)]
        [0.5, 0.75, 1.0, 1.0]
    """
    return lambda step: lr * (start_factor + (end_factor - start_factor) * step.clamp(max=total_iters) / total_iters)


@schedule(T_max="[1, inf)", eta_min="[0, inf)")
def cosine_schedule(lr: Scalar, T_max: int, eta_min: Scalar = 0.0):
    r"""$\eta_{min} + (\eta - \eta_{min})(1 + \cos(\pi s/T))/2$. As torch's CosineAnnealingLR: it rises again after $T$.

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
    return lambda step: eta_min + (lr - eta_min) * (1 + (math.pi * step / T_max).cos()) / 2


@schedule(t_max="[1, inf)", max_lr="[0, inf)", min_lr="[0, inf)", init_lr="[0, inf)", warmup_steps="[0, inf)")
def warmup_cosine_schedule(
    t_max: int, max_lr: Scalar, min_lr: Scalar = 0.0, init_lr: Scalar = 0.0, warmup_steps: int = 0
):
    r"""Rise linearly from `init_lr` to `max_lr`, then fall as half a cosine to `min_lr` at `t_max`, and stay there.

    With $w$ warm-up steps: $\eta_0 + (\eta - \eta_0) s/w$ for $s < w$, then
    $\eta_{min} + (\eta - \eta_{min})(1 + \cos(\pi (s - w)/(T - w)))/2$.

    Args:
        t_max: $T \ge 1$, the step at which `min_lr` is reached.
        max_lr: $\eta \ge 0$, the value at step `warmup_steps`.
        min_lr: $\eta_{min} \ge 0$.
        init_lr: $\eta_0 \ge 0$, the value of the first update.
        warmup_steps: $w$ in [0, t_max].

    Raises:
        ValueError: more warm-up steps than `t_max`.

    Example:
        >>> s = gradtx.warmup_cosine_schedule(6, max_lr=1.0, warmup_steps=2)
        >>> [round(s(i), 3) for i in range(8)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Source: juntang-zhuang/GSAM, CosineScheduler. Departures: holds `min_lr` after `t_max`.
    """
    if warmup_steps > t_max:
        raise ValueError(f"warmup_cosine_schedule: warmup_steps must be at most t_max = {t_max}, got {warmup_steps}")

    def value(step: Tensor) -> Tensor:
        rising = init_lr + (max_lr - init_lr) * step / max(warmup_steps, 1)
        share = ((step - warmup_steps) / max(t_max - warmup_steps, 1)).clamp(0, 1)
        falling = min_lr + (max_lr - min_lr) * (1 + (math.pi * share).cos()) / 2
        return torch.where(step < warmup_steps, rising, falling)

    return value


@schedule()
def join_schedules(schedules: Sequence[Schedule], milestones: Sequence[int]):
    """One schedule after another, each from its own step 0. As torch's SequentialLR and optax's `join_schedules`.

    Args:
        schedules: At least one.
        milestones: The steps at which the second, third, ... begin; one fewer than schedules, rising.

    Raises:
        TypeError: something that is no Schedule.
        ValueError: a wrong number of milestones, or milestones that don't rise.

    Example:
        >>> s = gradtx.join_schedules([gradtx.constant_schedule(0.1), gradtx.cosine_schedule(1.0, 2)], [2])
        >>> [round(s(i), 3) for i in range(5)]
        [0.1, 0.1, 1.0, 0.5, 0.0]
    """
    if not schedules:
        raise ValueError("join_schedules: needs at least one schedule")
    for i, part in enumerate(schedules):
        if not isinstance(part, Schedule):
            raise TypeError(f"join_schedules: schedules[{i}] must be a gradtx.Schedule, got {describe(part)}")
    if len(milestones) != len(schedules) - 1:
        raise ValueError(
            f"join_schedules: {len(schedules)} schedules need {len(schedules) - 1} milestones, got {len(milestones)}"
        )
    if any(late <= early for early, late in zip([0, *milestones], milestones, strict=False)):
        raise ValueError(f"join_schedules: milestones must rise from above 0, got {list(milestones)}")

    def value(step: Tensor) -> Tensor:
        now = exact(schedules[0](step), step.device)
        for start, part in zip(milestones, schedules[1:], strict=True):
            now = torch.where(step < start, now, exact(part((step - start).clamp(min=0)), step.device))
        return now

    return value


def _chebyshev_factors(number: int, small_m: float = 0.1, big_m: float = 1.0) -> list[float]:
    """The inverses of Chebyshev's nodes on [small_m, big_m], in fractal order: large and small ones in turn."""
    middle, half = (big_m + small_m) / 2, (big_m - small_m) / 2
    order = [0]
    while len(order) < number:
        last = 2 * len(order) - 1
        order = [x for i in order for x in (i, last - i)]
    return [1 / (middle - half * math.cos(math.pi * (i + 0.5) / number)) for i in order if i < number]


@schedule(
    lr="[0, inf)",
    num_iterations="[1, inf)",
    beta2="[0, 1)",
    num_warm_up_iterations="[0, inf)",
    num_warm_down_iterations="[0, inf)",
    warm_down_min_lr="[0, inf)",
    chebyshev_epochs="[3, inf)",
)
def ranger21_schedule(
    lr: Scalar,
    num_iterations: int,
    beta2: Scalar = 0.999,
    num_warm_up_iterations: int | None = None,
    num_warm_down_iterations: int | None = None,
    warm_down_min_lr: Scalar = 3e-5,
    chebyshev_epochs: int | None = None,
):
    r"""Rise linearly from near 0, stay (or follow Chebyshev's factors), and fall linearly at the end: Ranger21's rate.

    With $t = s + 1$, $u$ and $d$ the lengths of rise and fall and $N$ that of all: $\eta t / u$ for $t \le u$; then
    $\eta$; from $t = N - d$ on $\max(\eta - (\eta - \eta_{min}) \min((t + 1 - N + d)/(d + 1), 1), \eta_{min})$.

    Args:
        lr: $\eta \ge 0$.
        num_iterations: $N \ge 1$.
        beta2: Decay of the optimizer's squares, in [0, 1).
        num_warm_up_iterations: $u \ge 0$; None: $2/(1-\beta_2)$ rounded up, or 22 % of $N$ where that exceeds 45 %.
        num_warm_down_iterations: $d \ge 0$; None: 28 % of $N$.
        warm_down_min_lr: $\eta_{min} \ge 0$.
        chebyshev_epochs: $E$ in [3, N]: between rise and fall the rate of each epoch (of $\lfloor N/E \rfloor$ steps)
            is multiplied by the inverse of a Chebyshev node on [0.1, 1], a number in (1, 10), in fractal order.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> s = gradtx.ranger21_schedule(1.0, 8, num_warm_up_iterations=2, num_warm_down_iterations=3)
        >>> [round(s(i), 3) for i in range(8)]
        [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

    Source: Wright and Demeure 2021, arXiv:2106.13731; factors: Agarwal et al. 2021, arXiv:2103.01338.
    """
    total, epochs = num_iterations, chebyshev_epochs
    if epochs is not None and epochs > total:
        raise ValueError(f"ranger21_schedule: chebyshev_epochs must be at most num_iterations = {total}, got {epochs}")
    down = total - int(0.72 * total) if num_warm_down_iterations is None else num_warm_down_iterations
    start = total - down

    def value(step: Tensor) -> Tensor:
        t = step + 1
        up: Any = num_warm_up_iterations
        if up is None:
            up = exact(2 / (1 - beta2), step.device).ceil()
            up = torch.where(up / total > 0.45, math.floor(0.22 * total), up)
        up = exact(up, step.device)
        now = lr * torch.ones_like(step)
        if epochs is not None:
            factors = torch.tensor(_chebyshev_factors(epochs - 2), dtype=step.dtype, device=step.device)
            epoch = (t // (total // epochs) - 1).clamp(0, epochs - 3)
            # A sum in place of an index, which vmap could not take.
            now = now * (factors * (torch.arange(epochs - 2, device=step.device) == epoch)).sum()
        now = torch.where(t <= up, lr * t / up.clamp(min=1), now)
        falling = lr - (lr - warm_down_min_lr) * ((t + 1 - start) / (down + 1)).clamp(max=1)
        return torch.where(t >= start, torch.maximum(falling, exact(warm_down_min_lr, step.device)), now)

    return value
