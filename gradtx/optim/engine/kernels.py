"""The engine that compiles: it runs the phases of a program as kernels, each for all leaves at once.

Kernels are written in C++ for CPUs and in Triton for GPUs; see `gradtx.compiler.write_kernels`.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import itertools
import math
import operator
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.fx import Node

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local
from gradtx.base.messages import warn_user
from gradtx.base.torch_names import NEVER_CAPTURED, is_captured
from gradtx.compiler import cpp, triton
from gradtx.compiler.cache import SharedPrograms
from gradtx.compiler.constants import (
    LITERAL,
    Constants,
    skeleton_of,
    with_arguments,
    with_totals_of_leaves,
)
from gradtx.compiler.lower import Program, lower
from gradtx.compiler.scalars import Scalars
from gradtx.compiler.tables import CHUNK, Layout, Table
from gradtx.compiler.write_cpp import CppWriter
from gradtx.compiler.write_cpp_grids import CppGridWriter
from gradtx.compiler.write_expressions import UnsuitableProgramError
from gradtx.compiler.write_grids import GridWriter
from gradtx.compiler.write_kernels import ROWS, KernelText, KernelWriter, Moved
from gradtx.compiler.write_triton import TritonWriter
from gradtx.compiler.write_triton_grids import TritonGridWriter
from gradtx.execution.execute import Leaf, LeafTerms
from gradtx.optim.engine.base import GRADIENT, Engine
from gradtx.optim.engine.family import MemberFamily
from gradtx.optim.engine.joint import tasks_of
from gradtx.optim.engine.lists import ListEngine, MemberBundle
from gradtx.optim.engine.views import (
    RefusedError,
    alias,
    entries_of,
    is_positional,
    is_usual,
    view_or_copy,
)
from gradtx.optim.explain import Launch
from gradtx.optim.run import Member
from gradtx.optim.step import Step
from gradtx.plans.bundle import (
    PYTHON_NUMBERS,
    NamedLeaf,
    list_function_of,
    scalars_for,
)
from gradtx.plans.phases import RecordedPhase

BLOCK = 1024  # entries of a chunk of Triton, which one instance of a kernel processes
LARGE = 2**15  # entries of all leaves from which several threads are faster
# Of a tile that reduces columns, ...: results, and what is reduced.
LANES, STEPS = 32, 32
WIDTH = 256  # partial sums that are added at a time
# Of a call without sums, and of a phase without results by leaf.
NO_MEMORY = (0, 0)
NO_RESULTS = torch.empty((0, 0), dtype=torch.float64, device="cpu")
# Where the arguments of captured steps are; graphs may replay these at any time.
CAPTURED: list[Any] = []


class Form(NamedTuple):
    """What of the shape of leaves is an argument of the kernels of a phase.

    Attributes:
        constants: The constants that follow from it.
        fixes_block: Whether the text contains the number of entries of a block.
        shared: How many scalars come before totals of earlier phases; None without any.
    """

    constants: Constants = LITERAL
    fixes_block: bool = True
    shared: int | None = None


AS_RECORDED = Form()


@dataclass(eq=False)
class PhaseKernels(ABC):
    """The kernels of a phase, in a language.

    Attributes:
        has_tiles: Whether kernels without rows take as many entries as a chunk usually has.
        computes_with_totals: Whether kernels compute what follows from totals of earlier phases.
        shares_launches: Whether kernels of several texts may share a launch; these have `calls`.
        text: Their text.
        outputs: The results of the phase: nodes, or Python scalars.
        order: The index of each scalar among all scalars of the program.
        key: The texts that identify them: programs of leaves of several shapes may differ in constants only.
        scalars: All scalars of the program.
    """

    writer: ClassVar[type[KernelWriter]]
    grid_writer: ClassVar[type[GridWriter]]
    chunk: ClassVar[int]
    has_tiles: ClassVar[bool] = False
    computes_with_totals: ClassVar[bool] = False
    shares_launches: ClassVar[bool] = False
    text: KernelText
    outputs: list[Any]
    order: dict[Node, int]
    key: tuple[str, ...]
    scalars: Scalars

    @classmethod
    def written(
        cls, program: Program, leaf: int, block: int, form: Form, columns: int
    ) -> KernelText:
        """Return the text of a program: of entries and rows, or else of all directions."""
        try:
            return cls.writer(program, leaf, block, form.fixes_block).written(columns)
        except UnsuitableProgramError as refusal:
            try:
                return cls.grid_writer(program, leaf).written(columns)
            except UnsuitableProgramError as error:
                raise (error if str(refusal) == ROWS else refusal) from None

    @staticmethod
    @abstractmethod
    def missing() -> str:
        """Say what the language needs and this machine lacks, and how to get it; empty if there is nothing."""

    @abstractmethod
    def compile(self) -> None:
        """Compile the kernels, unless the first launch does.

        Raises:
            CompilerError: If that is impossible.
        """

    @abstractmethod
    def run(
        self, scalars: Sequence[Any], table: Table, layout: Layout | None = None
    ) -> Tensor:
        """Launch the kernels; return the results by leaf, a row for each.

        Args:
            scalars: All scalars of the program.
            table: Where the arguments are.
            layout: Where values of columns, ... are, if there are some.
        """

    def calls(
        self, scalars: Sequence[Any], table: Table, layout: Layout | None = None
    ) -> tuple[list[triton.Call], Tensor]:
        """Return the launches of the kernels in order, and the results by leaf, which are there after these."""
        raise NotImplementedError

    @property
    def form(self) -> Any:
        """What tells kernels of one text apart: the lengths of rows, or the axes of each group."""
        grid = self.text.grid
        return self.key, self.text.block, None if grid is None else grid.groups.axes

    @functools.cached_property
    def kinds(self) -> str:
        """The kind of each scalar of the kernels, as `struct` names it."""
        are_floats = (
            node.meta["val"].is_floating_point() for node in self.text.scalars
        )
        return "".join("d" if is_float else "q" for is_float in are_floats)

    @functools.cached_property
    def _positions(self) -> list[int]:
        """The index of each scalar of the kernels among all scalars of the program."""
        return [self.order[node] for node in self.text.scalars]

    @functools.cached_property
    def _form(self) -> struct.Struct:
        return struct.Struct(f"={self.kinds}")

    def packed(self, scalars: Sequence[Any]) -> tuple[bytes, dict[int, Tensor]]:
        """Return the scalars of the kernels as words of 64 bits, and those that the host does not know, by index."""
        values = list(map(scalars.__getitem__, self._positions))
        unknown: dict[int, Tensor] = {}
        if not PYTHON_NUMBERS.issuperset(map(type, values)):
            for i, (scalar, kind) in enumerate(zip(values, self.kinds, strict=True)):
                if isinstance(scalar, Tensor):
                    wide = torch.float64 if kind == "d" else torch.int64
                    unknown[i] = scalar.to(wide).view(torch.int64)
                    values[i] = 0
        return self._form.pack(*values), unknown

    @functools.cached_property
    def rows(self) -> int:
        """The number of results by leaf."""
        return sum(row is not None for row in self.text.rows)

    def results(self, scalars: Sequence[Any], by_leaf: Tensor) -> list[Any]:
        """Return the results of the phase: a vector of one entry per leaf, or a scalar."""
        results: list[Any] = []
        for row, output in zip(self.text.rows, self.outputs, strict=True):
            if row is not None:
                results.append(by_leaf[row])
            elif output in self.order:
                results.append(scalars[self.order[output]])
            else:
                results.append(output)
        return results

    @staticmethod
    def of(
        phase: RecordedPhase,
        device: torch.device,
        leaf: int,
        block: int = 1,
        form: Form = AS_RECORDED,
    ) -> PhaseKernels:
        """Return the kernels of a phase, the same for equal phases.

        Args:
            phase: The phase.
            device: The device of the leaves.
            leaf, block: As in `KernelWriter`.
            form: What of the leaf's shape is an argument.

        Raises:
            UnsuitableProgramError: If kernels cannot run it.
        """
        known = _KERNELS.of(phase.text)
        columns = columns_of(phase)
        key = device, leaf, block, columns, shape_of(phase, leaf), form
        if key not in known:
            language = language_of(device)
            assert language is not None
            recording = phase.recording
            if form.constants.count:
                recording = with_arguments(recording, form.constants)
            if form.shared is not None and language.computes_with_totals:
                recording = with_totals_of_leaves(recording, form.shared)
            program = lower(recording, decides=False)
            text = language.written(program, leaf, block, form, columns)
            order = {node: i for i, node in enumerate(program.scalars())}
            scalars = Scalars(program, device)
            outputs = list(program.results)
            texts = text.source, scalars.given(frozenset()).text, repr(outputs)
            known[key] = language(text, outputs, order, texts, scalars)
        return known[key]


def columns_of(phase: RecordedPhase) -> int:
    """Return the number of results of a leaf, which a program that writes nothing returns first."""
    return sum(isinstance(name, int) for name in phase.names)


def shape_of(phase: RecordedPhase, leaf: int) -> torch.Size | None:
    """Return the shape of the leaf if kernels may have rows, whose length depends on it; else they suit all shapes."""
    values = [node.meta["val"] for node in phase.recording.graph.nodes]
    tensors = [value for value in values if isinstance(value, Tensor) and value.ndim]
    if len({tensor.shape for tensor in tensors}) < 2:
        return None
    shape: torch.Size = phase.recording.leaves[leaf].meta["val"].shape
    return shape


class TritonKernels(PhaseKernels):
    """Kernels in Triton, each in one launch for all leaves."""

    writer = TritonWriter
    grid_writer = TritonGridWriter
    chunk = BLOCK
    has_tiles = True
    computes_with_totals = True
    shares_launches = True

    @staticmethod
    def missing() -> str:
        if triton.is_importable():
            return ""
        return "Triton cannot be imported; install the version of Triton that belongs to this torch"

    def compile(self) -> None:
        pass

    def run(
        self, scalars: Sequence[Any], table: Table, layout: Layout | None = None
    ) -> Tensor:
        calls, results = self.calls(scalars, table, layout)
        # Triton launches on the current device, which may be another one.
        with torch.accelerator.device_index(table.device.index):
            triton.launch_in_turn([calls])
        return results

    def calls(
        self, scalars: Sequence[Any], table: Table, layout: Layout | None = None
    ) -> tuple[list[triton.Call], Tensor]:
        if layout is not None:
            return self._calls_of_grid(scalars, table, layout)
        return self._calls(scalars, table)

    def _calls_of_grid(
        self, scalars: Sequence[Any], table: Table, layout: Layout
    ) -> tuple[list[triton.Call], Tensor]:
        text = self.text
        functions = triton.compiled(text.source)
        results = table.memory(self.rows, table.leaves)
        kept = table.memory(1, layout.total)
        arguments = (*self._arguments(scalars, table.pointers), table.pointers)
        arguments += (layout.blocks, layout.chunk_leaf, layout.chunk_start)
        arguments += (layout.leaf_chunks, table.leaves, kept, results)
        constants = {"BLOCK": BLOCK, "LANES": LANES, "STEPS": STEPS}
        calls = []
        for kernel in text.kernels:
            is_by_leaf = kernel.name in text.grid.of_leaves
            count = table.leaves if is_by_leaf else layout.chunks
            function = functions[kernel.name]
            calls.append(triton.Call(function, count, arguments, constants))
        return calls, results

    def _calls(
        self, scalars: Sequence[Any], table: Table
    ) -> tuple[list[triton.Call], Tensor]:
        text = self.text
        words = self._arguments(scalars, table.pointers)
        functions = triton.compiled(text.source)
        fixed = (table.pointers, table.sizes, table.blocks, table.chunk_leaf)
        fixed += (table.chunk_start, table.leaf_chunks)
        constants = {"BLOCK": BLOCK, "ALIGNED": table.is_aligned}
        n_leaves, n_chunks = table.leaves, table.chunks
        sums = [table.memory(count, n_leaves) for count in text.sums]
        common = (*words, *fixed, n_leaves, *sums)
        calls: list[triton.Call] = []

        def call(name: str, count: int, arguments: Any, **constants: Any) -> None:
            calls.append(triton.Call(functions[name], count, arguments, constants))

        for depth, count in enumerate(text.sums):
            partials = table.memory(count, n_chunks)
            stage = (*common, partials, n_chunks)
            call(f"stage{depth}", n_chunks, stage, **constants)
            reduce = (partials, sums[depth], table.leaf_chunks, n_leaves, n_chunks)
            call(f"reduce{depth}", n_leaves, reduce, WIDTH=WIDTH)
        names = [kernel.name for kernel in text.kernels]
        if "last_stage" in names:
            call("last_stage", n_chunks, common, **constants)
        results = table.memory(self.rows, n_leaves)
        if "finish" in names:
            call("finish", n_leaves, (*common, results))
        return calls, results

    def _arguments(self, scalars: Sequence[Any], unused: Tensor) -> tuple[Any, ...]:
        """Return scalars as arguments: bits, words on the device (`unused` if there are none), and words.

        If a scalar's bit is set, its word is the index of its value among those on the device.
        """
        packed, unknown = self.packed(scalars)
        words = list(struct.unpack(f"={len(self._positions)}q", packed))
        on_device = 0
        for index, i in enumerate(unknown):
            on_device |= 1 << i
            words[i] = index
        stored = torch.stack(list(unknown.values())) if unknown else unused
        return on_device, stored, *words


class CppKernels(PhaseKernels):
    """Kernels in C++, one call for all."""

    writer = CppWriter
    grid_writer = CppGridWriter
    chunk = CHUNK

    @staticmethod
    def missing() -> str:
        return "" if cpp.compiler_or_none() else cpp.MISSING

    def compile(self) -> None:
        cpp.compiled(self.text.source)

    def run(
        self, scalars: Sequence[Any], table: Table, layout: Layout | None = None
    ) -> Tensor:
        text = self.text
        packed, unknown = self.packed(scalars)
        words = self._words.from_buffer_copy(packed)
        for i, word in unknown.items():
            torch.frombuffer(words, dtype=torch.int64)[i].copy_(word)
        results, address = NO_RESULTS, 0
        if self.rows:
            results = table.memory(self.rows, table.leaves)
            address = results.data_ptr()
        memory: list[Tensor] = []
        chunks, of_chunks = table.chunks, table.addresses
        if layout is not None:
            chunks, of_chunks = layout.chunks, [*of_chunks[:2], *layout.addresses]
            memory = [table.memory(1, layout.total)] * 2
        elif text.sums:
            memory.append(table.memory(sum(text.sums), table.leaves))
            memory.append(table.memory(max(text.sums), table.chunks))
        addresses = [*map(Tensor.data_ptr, memory)] or NO_MEMORY
        threads = torch.get_num_threads() if table.entries >= LARGE else 1
        arguments = cpp.ARGUMENTS.pack(
            ctypes.addressof(words),
            *(*of_chunks, *addresses, address),
            *(table.leaves, chunks, threads),
        )
        self._function(arguments)
        return results

    @functools.cached_property
    def _words(self) -> Any:
        """The type of memory for the scalars."""
        return ctypes.c_char * self._form.size

    @functools.cached_property
    def _function(self) -> Callable[[bytes], None]:
        return cpp.compiled(self.text.source)


LANGUAGES: Mapping[str, type[PhaseKernels]] = {
    "cpu": CppKernels,
    "cuda": TritonKernels,  # ROCm, too
    "xpu": TritonKernels,
}


def language_of(device: torch.device) -> type[PhaseKernels] | None:
    """Return the language of a device's kernels; None if no kernels run there."""
    return LANGUAGES.get(device.type)


class Inputs(NamedTuple):
    """What the kernels of a phase run with; see `PhaseKernels.run`.

    Attributes:
        copies: The copies of gradients that they read, if there are some.
    """

    scalars: Sequence[Any]
    table: Table
    layout: Layout | None
    copies: list[Tensor]


# By the text of a recording, as list functions are.
_KERNELS = SharedPrograms()


class KernelBundle(MemberBundle):
    """Parameters whose program runs as kernels."""

    def __init__(self, members: list[Member], *arguments: Any):
        super().__init__(members, *arguments)
        self._chunks = []  # kernels take addresses
        self._table: Table | None = None
        self._may_be_captured = self.device.type not in NEVER_CAPTURED
        self._written = 0  # the number of arguments that kernels write
        self._params = [member.param for member in members]
        # The tensors that kernels write: parameters, and the slots of each key.
        self._columns: list[list[Any]] = [self._params]
        for key in self.signature.slots_by_leaf:
            self._columns.append([member.state[key] for member in members])
        self.leaf_names = [[member.name for member in members]]
        self._blocks: list[int] = []  # the number of entries in each block of each leaf
        # The sizes of the groups of axes of each leaf, by phase, and where the values are that have these.
        self._sizes: list[list[list[int]]] = []
        self._layouts: dict[int, Layout] = {}
        # What the kernels take as arguments, by phase, and the constants among these of each leaf.
        self._forms = [AS_RECORDED] * len(self.operations)
        self._constants: list[tuple[float, ...]] = [()] * len(members)
        # Whether the memory of a contiguous gradient has the order of its parameter's.
        self._are_usual = all(map(is_usual, self._params))
        # Whether kernels read gradients like those of the plan where they are.
        self._are_read_in_place = False

    def key(self) -> tuple[Any, ...]:
        """Compile the kernels, and return what identifies them.

        Raises:
            UnsuitableProgramError: If there are none.
            CompilerError: If they cannot be compiled.
        """
        if self.signature.has_owners:
            raise UnsuitableProgramError("the owners of some leaves compute")
        blocks = {kernel.text.block for kernel in self.kernels} - {1}
        if len(blocks) > 1:
            raise UnsuitableProgramError("rows of several lengths")
        grids = [kernel.text.grid for kernel in self.kernels]
        has_rows = bool(blocks) or any(grids)
        if has_rows and not all(local(param).is_contiguous() for param in self._params):
            raise UnsuitableProgramError("its rows are not contiguous")
        self._blocks = [max(blocks, default=1)] * len(self.members)
        shapes = [as_real(local(param)).shape for param in self._params]
        self._sizes = []
        for grid in grids:
            self._sizes.append([grid.groups.sizes(x) for x in shapes] if grid else [])
        for kernels in self.kernels:
            kernels.compile()
        return tuple(kernel.key for kernel in self.kernels)

    def key_with_constants(self) -> tuple[Any, ...]:
        """Return the key if kernels take constants as arguments; empty if some operation refuses them."""
        if not any(self._constants):
            return ()
        try:
            return self.key()
        except UnsuitableProgramError:
            self._forms = [AS_RECORDED] * len(self.operations)
            self._constants = [()] * len(self.members)
            return ()

    @staticmethod
    def merged(bundles: list[KernelBundle]) -> KernelBundle:
        """Return one bundle for those with equal kernels."""
        first, *others = bundles
        if not others:
            return first
        members = [member for bundle in bundles for member in bundle.members]
        merged = type(first)(members, first.signature, first.operations, False)
        merged._blocks = [block for bundle in bundles for block in bundle._blocks]
        for of_phase in zip(*(bundle._sizes for bundle in bundles), strict=True):
            merged._sizes.append(list(itertools.chain.from_iterable(of_phase)))
        merged._forms = first._forms
        merged._constants = [row for bundle in bundles for row in bundle._constants]
        return merged

    @staticmethod
    def share_text(bundles: list[KernelBundle]) -> None:
        """Let the kernels of bundles whose programs differ in constants and lengths only take these as arguments."""
        constants_of = [bundle._all_constants() for bundle in bundles]
        forms: list[Form] = []
        fixes_block = bool(bundles[0].signature.layout.codes)
        columns = [
            list(zip(*phase, strict=True)) for phase in zip(*constants_of, strict=True)
        ]
        differ = [
            [len(set(map(repr, column))) > 1 for column in phase] for phase in columns
        ]
        count, first = sum(map(sum, differ)), 0
        for of_phase in differ:
            positions = tuple(itertools.compress(range(len(of_phase)), of_phase))
            forms.append(Form(Constants(positions, first, count), fixes_block))
            first += len(positions)
        for bundle, of_bundle in zip(bundles, constants_of, strict=True):
            of_leaf = itertools.chain.from_iterable(of_bundle)
            selectors = itertools.chain.from_iterable(differ)
            row = tuple(map(float, itertools.compress(of_leaf, selectors)))
            bundle._forms, bundle._constants = forms, [row] * len(bundle.members)

    def skeleton(self) -> tuple[str, ...]:
        """Return what is equal in programs that differ in constants and lengths only."""
        return tuple(skeleton_of(phase.recording)[0] for phase in self.operations)

    def _all_constants(self) -> list[list[int | float]]:
        """Return the constants in each phase."""
        return [skeleton_of(phase.recording)[1] for phase in self.operations]

    @functools.cached_property
    def kernels(self) -> list[PhaseKernels]:
        """The kernels of each phase.

        Raises:
            UnsuitableProgramError: If there are none.
        """
        kernels = self._kernels(1)
        block = max(of_phase.text.block for of_phase in kernels)
        if not (kernels[0].has_tiles and kernels[0].chunk % block):
            return kernels
        return self._kernels(block)

    def _kernels(self, block: int) -> list[PhaseKernels]:
        """Return the kernels of each phase, with rows of this length, or of another one if they have some."""
        kernels = []
        shared = len(self.operations[0].common)
        for phase, form in zip(self.operations, self._forms, strict=True):
            if phase is not self.operations[0]:
                form = form._replace(shared=shared)
            # The first argument is the parameter.
            kernels.append(PhaseKernels.of(phase, self.device, 0, block, form))
        return kernels

    def process(self, phase: RecordedPhase) -> Any:
        kernels = self.kernels[self.at]
        inputs = self.inputs(phase, kernels)
        by_leaf = kernels.run(inputs.scalars, inputs.table, inputs.layout)
        return self.processed(phase, inputs, by_leaf)

    def inputs(self, phase: RecordedPhase, kernels: PhaseKernels) -> Inputs:
        """Return what the kernels of a phase run with."""
        scalars, on_device = scalars_for(
            self._scalars, phase.common, self.device, self._on_host
        )
        scalars = kernels.scalars.given(on_device).function(scalars)
        table, copies = self._located()
        layout = None if kernels.text.grid is None else self._layout(kernels)
        return Inputs(scalars, table, layout, copies)

    def processed(self, phase: RecordedPhase, inputs: Inputs, by_leaf: Tensor) -> Any:
        """Return the terms of a phase whose kernels have run, given their results by leaf."""
        if self._may_be_captured and is_captured(self.device):
            CAPTURED.append((inputs.table, inputs.layout))
            self._table = None  # later steps do not change this one
        if not phase.names:
            increment_version(self._params)
            return self.end(phase, [])
        results = self.kernels[self.at].results(inputs.scalars, by_leaf)
        if phase.operation is not None:
            return self._totals(phase, results)
        increment_version(self._params)
        pairs = zip(results, phase.dtypes, strict=True)
        return self.end(phase, [[_by_leaf(*pair) for pair in pairs]])

    # Arguments.

    def _layout(self, kernels: PhaseKernels) -> Layout:
        """Return where the values of columns, ... of the present phase are."""
        if self.at not in self._layouts:
            layout = Layout(kernels.text.grid, self._sizes[self.at], self.device)
            self._layouts[self.at] = layout
        return self._layouts[self.at]

    def _located(self) -> tuple[Table, list[Tensor]]:
        """Return where the arguments are, and copies that were made of some."""
        copies: list[Tensor] = []
        gradients = list(map(GRADIENT, self._params))
        if self.are_as_planned and self._are_read_in_place:
            rows = [list(map(Tensor.data_ptr, gradients))]
        else:
            rows = [self._addresses(gradients, copies)]
            self._are_read_in_place = not copies and self.are_as_planned
        for name in self.signature.by_leaf:
            tree = self.run.leaf_extras[name]
            column = [tree[member.name] for member in self.members]
            rows.append(self._addresses(column, copies))
        table = self._table
        if table is None:
            table = self._table = self._first_table(rows)
        elif not table.has(rows, self._written):
            table.update(dict(enumerate(rows, self._written)))
        return table, copies

    def _first_table(self, read: list[list[int]]) -> Table:
        """Return where parameters and slots are, and the arguments in `read`."""
        self._written = len(self._columns)
        rows: list[list[int]] = []
        for column in self._columns:
            pairs = zip(column, self._params, strict=True)
            aliases = [alias(tensor, param, True) for tensor, param in pairs]
            rows.append(list(map(Tensor.data_ptr, aliases)))
        sizes = [entries_of(param) for param in self._params]
        chunk = self.kernels[0].chunk
        return Table(
            *(sizes, rows + read, self.device, chunk, self._blocks, self._constants)
        )

    def locate(self) -> None:
        if self._table is None:
            return
        columns: list[list[Any]] = self._columns
        if self.signature.sharded:
            columns = [list(map(local, column)) for column in columns]
        # An alias begins where its tensor does.
        rows = [list(map(Tensor.data_ptr, column)) for column in columns]
        self._table.update(dict(enumerate(rows)))

    def _addresses(self, column: list[Any], copies: list[Tensor]) -> list[int]:
        """Return where tensors are that programs only read, or copies of them in their parameters' layout."""
        if self._are_usual and all(map(is_usual, column)):
            return [tensor.data_ptr() for tensor in column]
        pairs = zip(column, self._params, strict=True)
        views = [view_or_copy(tensor, param, True) for tensor, param in pairs]
        copies += views
        return [view.data_ptr() for view in views]

    def launches(self) -> list[list[Launch]]:
        """Return the launches of each phase."""
        known: set[int] = set()  # arguments that an earlier kernel has read
        phases: list[list[Launch]] = []
        for at, kernels in enumerate(self.kernels):
            phases.append([])
            for kernel in kernels.text.kernels:
                read = {i: self._bytes(at, moved) for i, moved in kernel.reads.items()}
                written = sum(self._bytes(at, x) for x in kernel.writes.values())
                again = sum(read[i] for i in known & read.keys())
                known |= read.keys()
                sizes = sum(read.values()), written, again
                phases[-1].append(Launch(kernel.name, len(self.members), *sizes))
        return phases

    def _bytes(self, at: int, moved: Moved) -> int:
        """Return the bytes of an argument of all leaves in a phase; one value for each leaf counts as none."""
        extent, itemsize = moved
        if extent in ("leaf", ()):
            return 0
        if isinstance(extent, tuple):
            sizes = self._sizes[at]
            return itemsize * sum(math.prod(x[i] for i in extent) for x in sizes)
        counts = list(map(entries_of, self._params))
        if extent == "block":
            counts = list(map(operator.floordiv, counts, self._blocks))
        return itemsize * sum(counts)

    # Results.

    def _totals(self, phase: RecordedPhase, results: list[Any]) -> LeafTerms:
        """Return the sums over the leaves of the bundle, which take part in larger sums as one leaf.

        Sums for the next step have the terms of all leaves, so that their bits do not depend on bundles.
        """
        totals: dict[Any, Tensor] = {}
        for name, dtype, value in zip(phase.names, phase.dtypes, results, strict=True):
            if isinstance(value, Tensor) and value.ndim:
                totals[name] = value.sum().to(dtype)
            else:
                totals[name] = self.as_tensor(value, dtype) * len(self.members)
        return LeafTerms([(NamedLeaf(self.name, self.device), totals)])


def _by_leaf(value: Any, dtype: torch.dtype) -> Any:
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
        self._layouts: dict[tuple[torch.Size, ...], Layout | None] = {}

    def prepare(self, scalars: Sequence[Any]) -> Sequence[Any]:
        return scalars

    def run(self, scalars: Sequence[Any], columns: Sequence[list[Tensor]]) -> list[Any]:
        tensors = list(itertools.chain.from_iterable(columns))
        gradients = columns[-1]
        if is_captured(tensors[0].device) or not all(map(is_usual, tensors)):
            lists = list_function_of(*self._of_lists)
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
                results[i] = _by_leaf(value, dtype)
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
        text, chunk = self._kernels.text, self._kernels.chunk
        if text.grid is None:
            self._layouts[shapes] = None
        else:
            sizes = list(map(text.grid.groups.sizes, shapes))
            self._layouts[shapes] = Layout(text.grid, sizes, device)
        blocks = [text.block] * len(shapes)
        counts = list(map(math.prod, shapes))
        table = Table(counts, addresses, device, chunk, blocks)
        self._tables[shapes] = table
        return table


def kernel_function_of(
    phase: RecordedPhase, device: torch.device, on_device: frozenset[int]
) -> Any:
    """Return the function of a phase as kernels if there are any, else as operations on lists."""
    language = language_of(device)
    if language is not None and not language.missing():
        with contextlib.suppress(UnsuitableProgramError, cpp.CompilerError):
            kernels = PhaseKernels.of(phase, device, -1)  # the last is the gradient
            kernels.compile()
            return KernelFunction(kernels, phase, device, on_device)
    return list_function_of(phase, device, on_device)


class KernelsOfShape(NamedTuple):
    """In place of a function of a phase: kernels are written when the shapes of all leaves are known.

    Attributes:
        form: The shape of the leaves if kernels may depend on it.
    """

    form: torch.Size | None

    @classmethod
    def of(
        cls, phase: RecordedPhase, device: torch.device, on_device: frozenset[int]
    ) -> KernelsOfShape:
        return cls(shape_of(phase, 0))  # of the parameter, the first argument


def engine_for(compile: Any) -> Engine:
    """Return the engine that `compile=` asks for, which takes parameters before those of other engines.

    Raises:
        ValueError: If the engine belongs to another optimizer, whose programs it would mix with the new one's.
        TypeError: If `compile` is neither True nor an engine.
    """
    if compile is True:
        return KernelEngine()
    if not isinstance(compile, Engine):
        raise TypeError(
            f"compile must be True, False or an Engine, got {compile!r}; gradtx writes its own kernels, which take no "
            "modes or options of torch.compile"
        )
    if compile.is_taken:
        raise ValueError(
            f"compile: this {type(compile).__name__} belongs to another optimizer; create one for each"
        )
    return compile


class KernelEngine(ListEngine):
    """Run steps as kernels."""

    way = "kernels"
    skips_work = False
    divides_by_slots = False  # one launch for all
    bundle_type = KernelBundle
    function_of = staticmethod(KernelsOfShape.of)
    consequence = "steps run over lists of tensors"
    _has_warned = False

    def runs_on(self, device: torch.device) -> bool:
        has_kernels = language_of(device) is not None
        if not has_kernels and device.type != "meta":
            self._warn(f"there are no kernels for {device.type}")
        return has_kernels

    def _check(self, leaf: Leaf, step: Step) -> None:
        language = language_of(local(leaf.key.param).device)
        missing = language.missing() if language is not None else ""
        if missing:
            self._warn(missing)
            raise RefusedError(missing)
        needs_order = leaf.layout.codes or is_positional(leaf.operations)
        if needs_order and not local(leaf.key.param).is_contiguous():
            raise RefusedError("a link needs the positions of its entries")
        super()._check(leaf, step)

    def tasks(self, bundles: list[Any]) -> list[Any]:
        return tasks_of(bundles)

    def launches(self, task: Any) -> list[Launch]:
        return list(itertools.chain.from_iterable(task.launches()))

    def _check_shard(self, leaf: Leaf, flat: bool) -> None:
        # Terms of a bundle are added up here, but leaves may be in other bundles on other ranks.
        Engine._check_shard(self, leaf, flat)

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            warn_user(
                f"compile=True runs steps over lists of tensors: {reason}",
                RuntimeWarning,
            )
        self._has_warned = True

    def _bundles_of_signature(self, family: MemberFamily) -> list[MemberBundle]:
        return self._bundles(family, False)

    def _bundles(self, family: MemberFamily, splits: bool) -> list[MemberBundle]:
        """Return bundles of leaves with equal kernels, which those of several shapes often have."""
        bundles: list[Any] = super()._bundles(family, splits)
        of_skeleton: dict[Any, list[KernelBundle]] = {}
        for bundle in bundles if len(bundles) > 1 else []:
            of_skeleton.setdefault(bundle.skeleton(), []).append(bundle)
        for alike in of_skeleton.values():
            if len(alike) > 1:
                KernelBundle.share_text(alike)
        of_key: dict[Any, list[KernelBundle]] = {}
        for bundle in bundles:
            try:
                key = bundle.key_with_constants() or bundle.key()
                of_key.setdefault(key, []).append(bundle)
            except cpp.CompilerError as error:
                self._warn(str(error))
                first, *_ = str(error).splitlines()
                self._refuse(bundle.members, f"its kernels cannot be compiled: {first}")
            except UnsuitableProgramError as refusal:
                self._refuse(bundle.members, str(refusal))
        return list(map(KernelBundle.merged, of_key.values()))
