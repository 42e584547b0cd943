"""Programs of flat leaves, compiled as operators for pure updates inside `torch.compile`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.optim.engine import compiled, torch_compiler
from gradtx.optim.engine.base import report_fault
from gradtx.optim.engine.family import first_entries, operations_of
from gradtx.optim.engine.inductor import compile_with_inductor
from gradtx.optim.engine.trace import Compile, TracedPhase
from gradtx.optim.engine.views import resized
from gradtx.programs import graphs
from gradtx.programs.function import LeafFunction
from gradtx.programs.phases import RunPhase, phases_of
from gradtx.programs.record import PhaseResult
from gradtx.programs.write_inductor import is_by_leaf

WITHOUT_KERNELS = (
    "gradtx cannot compile kernels for this update, which becomes operations on lists"
)
SUMMED_AT_ONCE = 4096  # entries up to which inductor sums without intermediate sums


class FlatPhase(TracedPhase):
    """A phase for any number of flat leaves, in calls of `width`; the last call is padded.

    Attributes:
        key: Its name in graphs.
        width: The number of leaves of a call.
    """

    def __init__(
        self, run: RunPhase, common: list[Tensor], leaves: list[Tensor], width: int
    ):
        super().__init__(run, common, leaves, width, flat=True)
        self.key = graphs.key_for(self)
        self.width = width
        self._per_leaf = len(leaves) // width - 1
        self._is_real = torch.tensor(True)
        self._padding = [torch.tensor(False)]
        for tensor in leaves[1 : self._per_leaf + 1]:
            is_short = tensor.numel() <= SUMMED_AT_ONCE
            length = 5 if is_short else SUMMED_AT_ONCE + 1
            self._padding.append(tensor.new_zeros([length] * tensor.ndim))

    def set_numbers(self, numbers: Sequence[Any]) -> list[Tensor]:
        """Keep the scalars that are constants of the graph, and return the others, which are its arguments."""
        self._known = [None if isinstance(x, Tensor) else x for x in numbers]
        return [x for x in numbers if isinstance(x, Tensor)]

    def note(self, result: PhaseResult) -> None:
        super().note(result)
        outputs = zip(result.names, result.outputs, strict=True)
        self._form_of = {name: (x.dtype, x.ndim == 0) for name, x in outputs}

    def compile(self, compile: Compile) -> None:
        super().compile(compile)
        # The vectors of a leaf.
        _, *like = self._leaves[0]
        self._vectors = [i for i, tensor in enumerate(like) if tensor.ndim]
        # The index of the gradient of each result's leaf in a call, which has its shape.
        self._like: list[int] = []
        # The dtype of each result, and whether it is a scalar.
        self._forms: list[tuple[torch.dtype, bool]] = []
        for name in self.names:
            leaf = int(name.leaf) if is_by_leaf(name) else 0
            self._like.append(leaf * self._per_leaf + self._per_leaf - 1)
            # One leaf may stand for all in the trace.
            first = name._replace(leaf="0") if is_by_leaf(name) else name
            self._forms.append(self._form_of[first])

    def places(
        self, leaves: Sequence[Tensor]
    ) -> Iterator[tuple[int, int, Any, Tensor]]:
        """Yield the call of each result, its index and name there, and the gradient of its leaf; skip padding."""
        entries = list(zip(range(len(self.names)), self.names, self._like, strict=True))
        step = self.width * self._per_leaf
        for start in range(0, len(leaves), step):
            for i, name, at in entries:
                if start + at < len(leaves):
                    yield start // step, i, name, leaves[start + at]

    def arguments(self, leaves: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yield the arguments of each call."""
        step = self._per_leaf
        full = self.width * (step + 1)
        call: list[Tensor] = []
        for start in range(0, len(leaves), step):
            leaf = list(leaves[start : start + step])
            if leaf[-1].ndim > 1:
                for i in self._vectors:
                    leaf[i] = leaf[i].reshape(-1)
            call += self._is_real, *leaf
            if len(call) == full:
                yield call
                call = []
        if call:
            yield call + self._padding * ((full - len(call)) // (step + 1))

    def accepts(self, leaves: Sequence[Tensor]) -> bool:
        """Whether leaves satisfy the assumptions made while tracing and compiling."""
        flat = [tensor.reshape(-1) if tensor.ndim else tensor for tensor in leaves]
        return all(map(self.fits, self.arguments(flat)))

    def __call__(
        self, numbers: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> list[Tensor]:
        """Run the kernel."""
        given = iter(numbers)
        numbers = [next(given) if x is None else x for x in self._known]
        prepared = self.prepare(numbers, leaves[0].device, True)
        results = []
        with torch_compiler.without_autograd():
            calls = [self.call(prepared, each) for each in self.arguments(leaves)]
            for call, i, _, like in self.places(leaves):
                value = calls[call][i]
                if not value.ndim:
                    value = value.clone()  # it may be an argument
                elif like.ndim > 1:
                    value = value.view_as(like)  # `view` takes three times as long
                results.append(value)
        return results

    def like(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return stand-ins for the results."""
        results = []
        for _, i, _, like in self.places(leaves):
            dtype, is_scalar = self._forms[i]
            shape = () if is_scalar else like.shape
            results.append(like.new_empty(shape, dtype=dtype))
        return results


Programs: TypeAlias = list[tuple[list[FlatPhase], list[Any]]]


def compile_flat(function: LeafFunction, rows: list[Any]) -> tuple[Programs, list[Any]]:
    """Compile programs for rows of flat leaves; return the phases and rows of each, and the rows that have none."""
    try:
        with compiled.COMPILING:
            programs = _programs(function, rows)
    except Exception as error:
        programs = []
        if not compiled.is_of_rule(error):
            report_fault(WITHOUT_KERNELS, error.__cause__ or error, logging.ERROR)
    names = {row.leaf.name for _, some in programs for row in some}
    return programs, [row for row in rows if row.leaf.name not in names]


def _programs(function: LeafFunction, rows: list[Any]) -> Programs:
    by_pattern: dict[Any, list[Any]] = {}
    for row in rows:
        shape = row.leaf.shape
        # Slots of a 0-d leaf cannot be told from 0-d ones.
        if shape and shape.numel() and all(x.is_contiguous() for x in row.tensors):
            pattern = tuple(size == 1 for size in shape)
            by_pattern.setdefault(pattern, []).append(row)
    by_size: dict[int, list[Any]] = {}
    for some in by_pattern.values():
        for row in _independent_of_shape(function, some):
            size = row.leaf.shape.numel()
            kind = (size > SUMMED_AT_ONCE) + (size >= compiled.LARGE)
            by_size.setdefault(kind, []).append(row)
    programs: Programs = []
    phases: list[FlatPhase] = []
    for kind, some in sorted(by_size.items()):
        leaves = [tensor for row in some for tensor in row.tensors]
        is_large = kind == 2
        if is_large or not _accept(phases, leaves):
            length = (64, 2 * SUMMED_AT_ONCE, 4 * compiled.LARGE)[kind]
            phases = _compiled(function, some[0], length, is_large)
        if _accept(phases, leaves):
            programs.append((phases, some))
    return programs


def _accept(phases: Sequence[FlatPhase], leaves: list[Tensor]) -> bool:
    return bool(phases) and all(phase.accepts(leaves) for phase in phases)


def _independent_of_shape(function: LeafFunction, rows: list[Any]) -> list[Any]:
    """Return the rows whose program depends only on the number of entries, given rows with equal sizes of 1."""
    first, *_ = rows
    shape = first.leaf.shape
    if len(shape) > 1:
        flat = function.record(first_entries(first.tensors, shape.numel()))
        if operations_of(flat) != operations_of(function.record(first.tensors)):
            return []
    # The assumptions of a trace are what rules ask of a shape in Python.
    make_phase = functools.partial(TracedPhase, width=1, flat=False)
    common = function.signature.shared_arguments()
    phases = phases_of(function, common, first.tensors, make_phase)
    return [row for row in rows if all(each.fits(row.tensors) for each in phases)]


def _compiled(
    function: LeafFunction, row: Any, length: int, is_large: bool
) -> list[FlatPhase]:
    """Return compiled phases."""
    width = compiled.WIDTH
    function = function.signed(width=width, padded=True)
    examples = []
    for i in range(width):
        examples.append(torch.tensor(True))
        for tensor in row.tensors:
            vector = tensor.reshape(-1) if tensor.ndim else tensor
            examples.append(resized(vector, length + i))
    make_phase = functools.partial(FlatPhase, width=width)
    options = {} if is_large else {"cpp.threads": 1}
    common = function.signature.shared_arguments()
    phases = phases_of(function, common, examples, make_phase)
    try:
        for phase in phases:
            phase.compile(
                lambda graph, examples: compile_with_inductor(graph, examples, options)
            )
    except Exception as error:
        raise compiled.CompilationError(row.leaf.name) from error
    return phases
