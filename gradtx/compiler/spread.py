"""Scalars of several sets as arguments of leaves: where each leaf of a call has one of the sets."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.compiler.write_expressions import UnsuitableProgramError

# What memory of a dtype consists of, where numbers are written into tensors that exist.
KINDS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


class Spread:
    """Turns several sets of scalars into the first argument of a function of lists, whose leaves have a set each.

    Args:
        prepare: Computes what sets share, and lists of the values of each: decisions, lists by leaf, numbers that are
            needed as lists of tensors.
        decisions: How many values say what is skipped.
        dtypes: The dtypes of these tensors.
        device: The device of the leaves.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[Any]], tuple[tuple[Any, ...], list[Any]]],
        decisions: int,
        dtypes: Sequence[torch.dtype],
        device: torch.device,
    ):
        self._prepare = prepare
        self._decisions = decisions
        self._tensors = [Tensors(dtype, device) for dtype in dtypes]

    def case_of(self, scalars: Sequence[Any]) -> tuple[Any, ...]:
        """Return the decisions of a set, which must be those of all other sets of a call."""
        if not self._decisions:
            return ()
        _, columns = self._prepare([scalars])
        return tuple([value for [value] in columns[: self._decisions]])

    def __call__(
        self, sets: Sequence[Sequence[Any]], which: Sequence[int]
    ) -> tuple[Any, ...]:
        """Return the first argument of `ListFunction.run`, valid until the thread's next call with other sets.

        Args:
            sets: What `ListFunction.prepare` returned for each set.
            which: The index of each leaf's set.

        Raises:
            UnsuitableProgramError: If sets differ in a decision.
        """
        return self.by_leaf(self.columns(sets), which)

    def columns(self, sets: Sequence[Sequence[Any]]) -> tuple[list[Any], list[Any]]:
        """Return what leaves share, and the values of each set, for several calls of `by_leaf`; see `__call__`."""
        shared, columns = self._prepare(sets)
        decisions, first = self._decisions, len(columns) - len(self._tensors)
        for column in columns[:decisions]:
            if len(set(column)) > 1:
                raise UnsuitableProgramError("scalars of some leaves skip work")
        for i, tensors in enumerate(self._tensors, first):
            columns[i] = tensors.of(columns[i])
        agreed = [column[0] for column in columns[:decisions]]
        return [*shared, *agreed], columns[decisions:]

    def by_leaf(
        self, columns: tuple[list[Any], list[Any]], which: Sequence[int]
    ) -> tuple[Any, ...]:
        """Return the first argument of `ListFunction.run`, given the values of each set; see `__call__`."""
        shared, of_sets = columns
        lists = [list(map(column.__getitem__, which)) for column in of_sets]
        return (*shared, *lists)


class Tensors(threading.local):
    """0-d tensors, others in each thread, that the numbers of a call are written into: new ones take ten times as long.

    Args:
        dtype: Their dtype.
        device: Their device.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._dtype = dtype
        self._device = device
        self._views: tuple[Any, ...] = ()
        self._memory: Any = None

    def of(self, numbers: Sequence[Any]) -> Any:
        """Return a tensor for each number at least, in order."""
        if self._device.type != "cpu":
            # A copy from the host would wait for the device.
            options: Any = {"dtype": self._dtype, "device": self._device}
            return [torch.full((), number, **options) for number in numbers]
        if self._dtype not in KINDS:
            return torch.tensor(numbers, dtype=self._dtype, device="cpu").unbind()
        if len(numbers) > len(self._views):
            self._grow(2 * len(numbers))
        self._memory[: len(numbers)] = numbers
        return self._views

    def _grow(self, size: int) -> None:
        with _torch.without_modes(), torch.inference_mode(False):
            whole: Tensor = torch.zeros(size, dtype=self._dtype, device="cpu")
            self._views = whole.unbind()
        words = KINDS[self._dtype] * size
        self._memory = words.from_address(whole.data_ptr())
