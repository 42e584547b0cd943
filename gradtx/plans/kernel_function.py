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
from gradtx.compiler.kernels import PhaseKernels, columns_of, language_of
from gradtx.compiler.tables import ChunkLayout, Table
from gradtx.compiler.write_expressions import UnsuitableProgramError
from gradtx.plans.bundle import list_function_of
from gradtx.plans.phases import RecordedPhase


def list_by_leaf(value: Any, dtype: torch.dtype) -> Any:
    """Return the list of a result by leaf; another result as it is."""
    is_by_leaf = isinstance(value, Tensor) and value.ndim
    return list(value.to(dtype).unbind()) if is_by_leaf else value


class KernelFunction:
    """A phase as kernels that write to new memory, with the attributes of its list function, which runs other leaves.

    Args:
        kernels: The kernels.
        phase, device, on_device: As in `list_function_of`.
    """

    def __init__(
        self,
        kernels: PhaseKernels,
        phase: RecordedPhase,
        device: torch.device,
        on_device: frozenset[int],
    ):
        self._kernels = kernels
        self.form = kernels.form
        self._scalars_of_step = kernels.scalars.given(on_device).function
        self._of_lists = phase, device, on_device
        self._dtypes = phase.dtypes
        self._columns = columns_of(phase)
        # By the shapes of leaves.
        self._tables: dict[tuple[torch.Size, ...], Table] = {}
        self._layouts: dict[tuple[torch.Size, ...], ChunkLayout] = {}

    def prepare(self, scalars: Sequence[Any]) -> Sequence[Any]:
        return scalars

    def run(self, scalars: Sequence[Any], columns: Sequence[list[Tensor]]) -> list[Any]:
        tensors = list(itertools.chain.from_iterable(columns))
        gradients = columns[-1]
        if is_captured(tensors[0].device) or not all(map(is_usual, tensors)):
            lists = list_function_of(*self._of_lists)
            assert lists is not None  # no scalar varies
            return lists.run(lists.prepare(scalars), columns)
        # New slots, the last results, are like the columns before the gradients.
        like = [gradients, *columns[-self._columns : -1]]
        new_columns: list[list[Tensor]] = []
        for column, dtype in zip(like[: self._columns], self._dtypes, strict=False):
            new_columns.append(
                [torch.empty_like(tensor, dtype=dtype) for tensor in column]
            )
        addresses = [
            list(map(Tensor.data_ptr, column)) for column in (*columns, *new_columns)
        ]
        scalars = self._scalars_of_step(scalars)
        shapes = tuple(gradient.shape for gradient in gradients)
        table = self._table(shapes, addresses, gradients[0].device)
        by_leaf = self._kernels.run(scalars, table, self._layouts[shapes])
        results = self._kernels.results(scalars, by_leaf)
        for i, (value, dtype) in enumerate(zip(results, self._dtypes, strict=True)):
            if isinstance(value, Node):
                results[i] = new_columns[i]
            else:
                results[i] = list_by_leaf(value, dtype)
        return results

    def _table(
        self,
        shapes: tuple[torch.Size, ...],
        addresses: list[list[int]],
        device: torch.device,
    ) -> Table:
        """Return where the arguments are, and keep the layout."""
        known = self._tables.get(shapes)
        if known is not None:
            table = copy.copy(known)  # another thread may run
            table.point_to(addresses)
            return table
        sizes = list(map(self._kernels.text.groups.sizes, shapes))
        self._layouts[shapes] = self._kernels.layout(sizes, device)
        table = self._tables[shapes] = Table(len(shapes), addresses, device)
        return table


def kernel_function_of(
    phase: RecordedPhase,
    device: torch.device,
    on_device: frozenset[int],
    varying: frozenset[int] = frozenset(),
) -> Any:
    """Return the function of a phase as kernels if there are any, else as operations on lists.

    If scalars vary by row, there is none: each set of scalars is a call of its own.
    """
    if varying:
        return None
    language = language_of(device)
    if language is not None and not language.missing():
        with contextlib.suppress(UnsuitableProgramError, cpp.CompilerError):
            kernels = PhaseKernels.of(phase, device, -1)  # the last is the gradient
            kernels.compile()
            return KernelFunction(kernels, phase, device, on_device)
    return list_function_of(phase, device, on_device)
