"""Errors of combinators that break the contract of `Frame` and `InnerClock`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.messages import describe, nearest


class Sums(dict[str, Tensor]):
    """The sums passed to a clock; a missing one raises an error that gives the reason."""

    def __init__(self, values: Mapping[str, Tensor], owner: str, measured: bool):
        super().__init__(values)
        self._owner = owner
        self._measured = measured

    def __missing__(self, name: str) -> Tensor:
        if self._measured and not self:  # no leaf had a gradient
            return torch.zeros((), dtype=torch.float64)
        known = (
            f"measure returns {sorted(self)}"
            if self._measured
            else "no measure= is given"
        )
        raise ValueError(f"{self._owner}: ticks requests the sum {name!r}, but {known}")


def check_start(start: Mapping[str, Any]) -> None:
    """Raise an error unless these are valid initial values of a clock."""
    for name, value in start.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(
                f"InnerClock: start[{name!r}] must be an int, got {describe(value)}"
            )
        if name == "step":
            raise ValueError(
                "InnerClock: start: 'step' is reserved for the clock's count; use another name"
            )


def check_inner_slots(names: Any) -> None:
    """Raise an error unless this is a tuple of slot names."""
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"Frame: inner_slots must be a tuple of slot names, got {describe(names)}"
        )


def checked_ticks(
    owner: str, result: Any, start: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the checked result of a clock's `ticks`."""
    if (
        not isinstance(result, tuple)
        or len(result) != 2
        or not isinstance(result[1], Mapping)
    ):
        raise TypeError(
            f"{owner}: ticks must return (counts, values), got {describe(result)}"
        )
    counts, new = result
    if not isinstance(counts, Tensor) or counts.dtype != torch.bool or counts.ndim:
        raise TypeError(
            f"{owner}: ticks must return a 0-d bool tensor as its first value, got {describe(counts)}"
        )
    # The library counts steps itself.
    values = {name: value for name, value in new.items() if name != "step"}
    if set(values) != set(start):
        raise ValueError(
            f"{owner}: ticks must return the values {sorted(start)} of start, got {sorted(values)}"
        )
    for name, value in values.items():
        _check_integer(owner, name, value)
    return counts, values


def _check_integer(owner: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim or value.dtype.is_floating_point:
        raise TypeError(
            f"{owner}: ticks must return 0-d int64 tensors as values, got {describe(value)} for {name!r}"
        )


def checked_sums(owner: str, sums: Any) -> dict[str, Tensor]:
    """Return the checked result of a clock's `measure` for one leaf."""
    if not isinstance(sums, Mapping):
        raise TypeError(
            f"{owner}: measure must return a dict of 0-d tensors, got {describe(sums)}"
        )
    for name, value in sums.items():
        if not isinstance(value, Tensor) or value.ndim:
            raise TypeError(
                f"{owner}: measure must return 0-d tensors, got {describe(value)} for {name!r}"
            )
    return dict(sums)


def check_inner(owner: str, new: Mapping[str, Any], old: Mapping[str, Tensor]) -> None:
    """Raise an error unless these values can replace inner slots."""
    for name, value in new.items():
        if name not in old:
            raise ValueError(
                f"{owner}: leave returns {name!r}, which is not an inner slot; {nearest(name, old)}"
            )
        if not isinstance(value, Tensor) or value.shape != old[name].shape:
            shape = tuple(old[name].shape)
            raise ValueError(
                f"{owner}: leave returns the inner slot {name!r} as {describe(value)}, needs shape {shape}"
            )
