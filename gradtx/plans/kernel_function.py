"""A phase of a program as a function on lists that runs as kernels, for results in new memory."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base.plain import is_usual
from gradtx.base.torch_names import is_captured
from gradtx.compiler import cpp
from gradtx.compiler.kernels import (
    AS_RECORDED,
    Inputs,
    PhaseKernels,
    columns_of,
    language_of,
)
from gradtx.compiler.tables import ChunkLayout, Rows, Table
from gradtx.compiler.write_expressions import UnsuitableProgramError
from gradtx.plans.bundle import list_function_of
from gradtx.plans.phases import RecordedPhase

# Tables and layouts that a function keeps: which leaves have a gradient decides the shapes of a call.
MOST_TABLES = 8


def list_by_leaf(value: Any, dtype: torch.dtype) -> Any:
    """Return the list of a result by leaf; another result as it is."""
    is_by_leaf = isinstance(value, Tensor) and value.ndim
    return list(value.to(dtype).unbind()) if is_by_leaf else value


class KernelFunction:
    """A phase as kernels that write to new memory, with the attributes of its list function, which runs other leaves.

    Args:
        kernels: The kernels.
        phase, device, on_device, varying: As in `list_function_of`.
    """

    def __init__(
        self,
        kernels: PhaseKernels,
        phase: RecordedPhase,
        device: torch.device,
        on_device: frozenset[int],
        varying: frozenset[int] = frozenset(),
    ):
        self._kernels = kernels
        self.variant = kernels.variant
        self._scalars = kernels.scalars.where_on_device(on_device)
        self._varying = varying
        self._of_lists = phase, device, on_device, varying
        self._dtypes = phase.dtypes
        self._columns = columns_of(phase)
        # By the shapes of leaves.
        self._tables: dict[tuple[torch.Size, ...], tuple[Table, ChunkLayout]] = {}

    def prepare(self, scalars: Sequence[Any]) -> Sequence[Any]:
        return scalars

    def run(self, scalars: Sequence[Any], columns: Sequence[list[Tensor]]) -> list[Any]:
        if not _are_addressed(columns):
            lists = list_function_of(*self._of_lists)
            assert lists is not None  # no scalar varies
            return lists.run(lists.prepare(scalars), columns)
        return self._computed(self._scalars.function(scalars), None, columns)

    def _computed(
        self,
        scalars: Sequence[Any],
        rows: Rows | None,
        columns: Sequence[list[Tensor]],
    ) -> list[Any]:
        """Return the results of kernels; scalars and rows are as in `Inputs`."""
        new_columns = self._new_columns(columns)
        table, layout = self._located([*columns, *new_columns], like=columns[-1])
        inputs = Inputs(self._kernels, scalars, table, layout, rows)
        results = self._kernels.results(inputs, self._kernels.run(inputs))
        for i, (value, dtype) in enumerate(zip(results, self._dtypes, strict=True)):
            if isinstance(value, Node):
                results[i] = new_columns[i]
            else:
                results[i] = list_by_leaf(value, dtype)
        return results

    def _new_columns(self, columns: Sequence[list[Tensor]]) -> list[list[Tensor]]:
        """Return memory for updates and new slots."""
        # New slots, the last results, are like the columns before the gradients.
        like = [columns[-1], *columns[-self._columns : -1]]
        new_columns: list[list[Tensor]] = []
        for column, dtype in zip(like[: self._columns], self._dtypes, strict=False):
            new_columns.append(
                [torch.empty_like(tensor, dtype=dtype) for tensor in column]
            )
        return new_columns

    def _located(
        self, columns: list[list[Tensor]], like: list[Tensor]
    ) -> tuple[Table, ChunkLayout]:
        """Return where the arguments are, and the chunks of leaves, which are shaped like these tensors."""
        addresses = [list(map(Tensor.data_ptr, column)) for column in columns]
        shapes = tuple(tensor.shape for tensor in like)
        device = like[0].device
        entry = self._tables.get(shapes)
        if entry is not None:
            table, layout = entry
            table = copy.copy(table)  # another thread may run
            table.point_to(addresses)
            return table, layout
        sizes = list(map(self._kernels.text.groups.sizes, shapes))
        layout = self._kernels.layout(sizes, device)
        table = Table(len(shapes), addresses, device)
        while len(self._tables) >= MOST_TABLES:
            # Another thread may have dropped it.
            self._tables.pop(next(iter(self._tables), shapes), None)
        self._tables[shapes] = table, layout
        return table, layout


class KernelFunctionOfRows(KernelFunction):
    """Like `KernelFunction`, for leaves with a set of scalars each."""

    @property
    def spread(self) -> KernelFunctionOfRows:
        """What turns sets of scalars into the first argument of `run`."""
        return self

    def case_of(self, scalars: Sequence[Any]) -> Any:
        """Return what all sets of a call have to share: lists may run it."""
        return self._lists().spread.case_of(scalars)

    def __call__(self, sets: Sequence[Sequence[Any]], which: Sequence[int]) -> Any:
        """Return the first argument of `run`: sets of scalars, and the index of each leaf's set."""
        return sets, which

    def _lists(self) -> Any:
        return list_function_of(*self._of_lists)

    def run(self, scalars: Any, columns: Sequence[list[Tensor]]) -> list[Any]:
        sets, which = scalars
        if not _are_addressed(columns):
            lists = self._lists()
            return lists.run(lists.spread(sets, which), columns)
        rows = Rows(which, columns[-1][0].device)
        of_sets = self._scalars.function_of_sets(self._varying)
        return self._computed(of_sets(sets), rows, columns)


def _are_addressed(columns: Sequence[list[Tensor]]) -> bool:
    """Whether kernels may run on these tensors now."""
    tensors = list(itertools.chain.from_iterable(columns))
    return not is_captured(tensors[0].device) and all(map(is_usual, tensors))


def kernel_function_of(
    phase: RecordedPhase,
    device: torch.device,
    on_device: frozenset[int],
    varying: frozenset[int] = frozenset(),
) -> Any:
    """Return the function of a phase as kernels if there are any, else as operations on lists."""
    arguments = phase, device, on_device, varying
    language = language_of(device)
    if language is None or language.missing():
        return list_function_of(*arguments)
    if varying and list_function_of(*arguments) is None:
        return None
    variant = AS_RECORDED._replace(by_row=bool(varying))
    function = KernelFunctionOfRows if varying else KernelFunction
    with contextlib.suppress(UnsuitableProgramError, cpp.CompilerError):
        kernels = PhaseKernels.of(
            phase, device, -1, variant
        )  # the last is the gradient
        kernels.compile()
        return function(kernels, *arguments)
    return list_function_of(*arguments)
