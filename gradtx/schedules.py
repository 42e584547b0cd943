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
