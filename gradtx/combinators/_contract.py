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


def checked_ticks(
    owner: str, result: Any, start: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the checked result of a clock's `ticks`."""
    counts, new = result if isinstance(result, tuple) and len(result) == 2 else (0, 0)
    if not isinstance(new, Mapping):
        raise TypeError(
            f"{owner}: ticks must return (counts, values), got {describe(result)}"
        )
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
        if not isinstance(value, Tensor) or value.ndim or value.dtype.is_floating_point:
            raise TypeError(
                f"{owner}: ticks must return 0-d int64 tensors as values, got {describe(value)} for {name!r}"
            )
    return counts, values


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
