"""Programs of flat leaves, compiled as operators for pure updates inside `torch.compile`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.optim.engine import compiled
from gradtx.optim.engine.family import first_entries, operations_of
from gradtx.optim.engine.inductor import compile_with_inductor
from gradtx.optim.engine.trace import Compile, TracedPhase, is_by_leaf
from gradtx.optim.engine.views import resized
from gradtx.programs import graphs
from gradtx.programs.bundle import phases_of
from gradtx.programs.function import LeafFunction


class FlatPhase(TracedPhase):
    """A phase for any number of flat leaves, in calls of `width`; the last call is padded.

    Attributes:
        key: Its name in graphs.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.key = graphs.key_for(self)
        self._width = len(self._leaves)
        flag, *like = self._leaves[0]
        self._per_leaf = len(like)
        self._vectors = [i for i, tensor in enumerate(like) if tensor.ndim]
        self._is_real = torch.ones((), dtype=flag.dtype)
        self._padding = [torch.zeros((), dtype=flag.dtype)]
        for tensor in like:
            size = [5] * tensor.ndim
            self._padding.append(torch.zeros(size, dtype=tensor.dtype))

    def set_numbers(self, numbers: Sequence[Any]) -> list[Tensor]:
        """Keep the scalars that are constants of the graph, and return the others, which are its arguments."""
        self._known = [None if isinstance(x, Tensor) else x for x in numbers]
        return [x for x in numbers if isinstance(x, Tensor)]

    def compile(self, compile: Compile) -> None:
        super().compile(compile)
        # The index of the gradient of each result's leaf in a call, which has its shape.
        self._like: list[int] = []
        for name in self.names:
            leaf = int(name.leaf) if is_by_leaf(name) else 0
            self._like.append(leaf * self._per_leaf + self._per_leaf - 1)

    def calls(self, leaves: Sequence[Tensor]) -> Iterator[tuple[int, list[Any]]]:
        """Yield the index of the first leaf of each call, and the names of its results."""
        for start in range(0, len(leaves), self._width * self._per_leaf):
            names = []
            for name, at in zip(self.names, self._like, strict=True):
                if start + at < len(leaves):  # the others are padding
                    names.append(name)
            yield start // self._per_leaf, names

    def arguments(self, leaves: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yield the arguments of each call."""
        step = self._per_leaf
        full = self._width * (step + 1)
        call: list[Tensor] = []
        for start in range(0, len(leaves), step):
            leaf = list(leaves[start : start + step])
            for i in self._vectors:
                leaf[i] = leaf[i].reshape(-1)
            call += self._is_real, *leaf
            if len(call) == full:
                yield call
                call = []
        if call:
            yield call + self._padding * ((full - len(call)) // (step + 1))

    def accepts(self, leaves: Sequence[Tensor]) -> bool:
        """Whether the sizes of these tensors satisfy the assumptions made while tracing and compiling."""
        if not all(map(self.fits, self.arguments(leaves))):
            return False
        if self.reads_only_memory:  # the sizes of the first vector
            del self._vectors[1:]
        return True

    def __call__(
        self, numbers: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> list[Tensor]:
        """Run the kernel."""
        given = iter(numbers)
        numbers = [next(given) if x is None else x for x in self._known]
        prepared = self.prepare(numbers, leaves[0].device, True)
        results = []
        start = 0
        for arguments in self.arguments(leaves):
            for at, value in zip(
                self._like, self.call(prepared, arguments), strict=True
            ):
                if start + at < len(leaves):
                    # A scalar may be an argument. `view` takes three times as long.
                    like = leaves[start + at]
                    results.append(value.view_as(like) if value.ndim else value.clone())
            start += self._width * self._per_leaf
        return results

    def like(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return stand-ins for the results."""
        results = []
        for start in range(0, len(leaves), self._width * self._per_leaf):
            for at, (dtype, dims) in zip(self._like, self.forms, strict=True):
                if start + at < len(leaves):
                    shape = leaves[start + at].shape if dims else ()
                    results.append(leaves[0].new_empty(shape, dtype=dtype))
        return results


def compile_flat(
    function: LeafFunction, rows: list[Any]
) -> tuple[list[tuple[list[FlatPhase], list[Any]]], list[Any]]:
    """Compile programs for rows of flat leaves; return the phases and rows of each, and the rows that have none."""
    flat: dict[bool, list[Any]] = {}
    rest = []
    reads_shape: dict[torch.Size, bool] = {}
    for row in rows:
        shape = row.leaf.shape
        if shape not in reads_shape:
            reads_shape[shape] = not shape.numel() or _reads_shape(function, row)
        if reads_shape[shape] or not all(x.is_contiguous() for x in row.tensors):
            rest.append(row)
        else:
            flat.setdefault(shape.numel() >= compiled.LARGE, []).append(row)
    programs = []
    for is_large, of_size in flat.items():
        phases = _compiled(function, of_size, is_large)
        if phases:
            programs.append((phases, of_size))
        else:
            rest.extend(of_size)
    return programs, rest


def _reads_shape(function: LeafFunction, row: Any) -> bool:
    """Whether the program of a leaf depends on its shape beyond the number of entries."""
    if row.leaf.shape == row.leaf.shape[:1]:
        return not row.leaf.shape  # 0-d slots cannot be told from those with its shape
    flat = first_entries(row.tensors, row.leaf.shape.numel())
    recorded = operations_of(function.record(row.tensors))
    return operations_of(function.record(flat)) != recorded


def _compiled(
    function: LeafFunction, rows: list[Any], is_large: bool
) -> list[FlatPhase]:
    """Return the compiled phases; none if they cannot be compiled."""
    width = compiled.WIDTH
    function = function.signed(width=width, padded=True)
    length = 4 * compiled.LARGE if is_large else 64  # as for optimizers
    examples = []
    for i in range(width):
        examples.append(torch.ones((), dtype=torch.bool))
        examples.extend(resized(x, length + i) for x in rows[0].tensors)
    make_phase = functools.partial(FlatPhase, width=width, flat=True)
    options = {} if is_large else {"cpp.threads": 1}
    try:
        with compiled.COMPILING:
            common = function.signature.shared_arguments()
            phases = phases_of(function, common, examples, make_phase)
            for phase in phases:
                phase.compile(
                    lambda graph, args: compile_with_inductor(graph, args, options)
                )
    except Exception:
        return []  # then the graph has their operations on lists
    leaves = [x for row in rows for x in row.tensors]
    return phases if all(phase.accepts(leaves) for phase in phases) else []
