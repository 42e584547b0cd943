"""Errors of combinators that break the contract of `Frame` and `InnerClock`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from gradtx.base.messages import describe


def checked_ticks(
    owner: str, result, start: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the checked result of a clock's `ticks`."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    counts, new = result if is_pair else (None, None)
    if not _is_number(counts, torch.bool) or not isinstance(new, Mapping):
        raise TypeError(
            f"{owner}: ticks must return (counts, values), a 0-d bool tensor and a dict, got {describe(result)}"
        )
    # The library counts steps itself.
    values = {name: value for name, value in new.items() if name != "step"}
    if values.keys() != set(start) or not all(map(_is_number, values.values())):
        raise TypeError(
            f"{owner}: ticks must return 0-d int64 tensors for {sorted(start)}, got {describe(values)}"
        )
    return counts, values


def _is_number(value, dtype: torch.dtype = torch.int64) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and not value.ndim and value.dtype == dtype


def checked_sums(owner: str, sums) -> dict[str, Tensor]:
    """Return the checked result of a clock's `measure` for one leaf."""
    if not isinstance(sums, Mapping) or any(value.ndim for value in sums.values()):
        raise TypeError(
            f"{owner}: measure must return a dict of 0-d tensors, got {describe(sums)}"
        )
    return dict(sums)


def check_inner(owner: str, new: Mapping[str, Any], old: Mapping[str, Tensor]) -> None:
    """Raise an error unless these values can replace inner slots."""
    for name, value in new.items():
        shape = old[name].shape if name in old else None
        if not isinstance(value, Tensor) or value.shape != shape:
            raise ValueError(
                f"{owner}: leave must return inner slots in their shapes, which are {describe(old)}; got {name!r}: "
                f"{describe(value)}"
            )
