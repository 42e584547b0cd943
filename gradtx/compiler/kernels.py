"""A phase of a program as kernels in the language of a device, C++ or Triton: what compiles and launches them."""

from __future__ import annotations

import ctypes
import functools
import itertools
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base.recent import SharedPrograms
from gradtx.compiler import cpp, triton
from gradtx.compiler.constants import (
    LITERAL,
    Constants,
    with_arguments,
    with_totals_of_leaves,
)
from gradtx.compiler.lower import lower
from gradtx.compiler.record import Recording
from gradtx.compiler.scalars import PYTHON_NUMBERS, Scalars
from gradtx.compiler.tables import CHUNK, ChunkLayout, Rows, Table
from gradtx.compiler.write_cpp import CppWriter
from gradtx.compiler.write_kernels import KernelText, KernelWriter
from gradtx.compiler.write_triton import CONSTANTS, TritonWriter

LARGE = 2**15  # entries of all leaves from which several threads are faster
# Of a phase without results by leaf.
NO_RESULTS = torch.empty((0, 0), dtype=torch.float64, device="cpu")


class Phase(Protocol):
    """A phase of a program, as far as kernels know it.

    Attributes:
        recording: Its operations.
        text: A text that identifies it, but for the shapes of leaves.
        names: The names of its results; those of a leaf are ints.
    """

    recording: Recording
    text: str
    names: tuple[Any, ...]


class Variant(NamedTuple):
    """What of the shape of leaves is an argument of the kernels of a phase.

    Attributes:
        constants: The constants that follow from it.
        fixes_row: Whether the text may contain the number of entries of a row.
        shared: How many scalars come before totals of earlier phases; None without any.
        by_row: Whether leaves may be absent, and have scalars of their own, those of one of several sets; see `Rows`.
    """

    constants: Constants = LITERAL
    fixes_row: bool = True
    shared: int | None = None
    by_row: bool = False


AS_RECORDED = Variant()


class Inputs(NamedTuple):
    """What the kernels of a phase run with.

    Attributes:
        kernels: The kernels: those of leaves with the same scalars, or those by row.
        scalars: All scalars of the program; by row, those of each set.
        table: Where the arguments are.
        layout: The chunks of leaves, and where kernels keep values.
        rows: The set of each leaf, by row.
        copies: Copies of tensors that kernels read: they live until the kernels have run.
    """

    kernels: PhaseKernels
    scalars: Sequence[Any]
    table: Table
    layout: ChunkLayout
    rows: Rows | None = None
    copies: Sequence[Tensor] = ()


@dataclass(eq=False)
class PhaseKernels(ABC):
    """The kernels of a phase, in a language.

    Attributes:
        chunk: The most entries of a chunk of entries or rows.
        computes_with_totals: Whether kernels compute what follows from totals of earlier phases.
        shares_launches: Whether kernels of several texts may share a launch; these have `calls`.
        text: Their text.
        outputs: The results of the phase: nodes, or Python scalars.
        order: The index of each scalar among all scalars of the program.
        key: The texts that identify them: programs of leaves of several shapes may differ in constants only.
        scalars: All scalars of the program.
        by_row: As in `Variant`.
    """

    writer: ClassVar[type[KernelWriter]]
    chunk: ClassVar[int]
    computes_with_totals: ClassVar[bool] = False
    shares_launches: ClassVar[bool] = False
    text: KernelText
    outputs: list[Any]
    order: dict[Node, int]
    key: tuple[str, ...]
    scalars: Scalars
    by_row: bool = False

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

    @staticmethod
    def compile_all(kernels: Iterable[PhaseKernels]) -> None:
        """Compile kernels side by side, if `compile` would do so one by one, which then says what has failed."""
        cpp.compile_all(x.text.source for x in kernels if isinstance(x, CppKernels))

    @abstractmethod
    def run(self, inputs: Inputs) -> Tensor:
        """Launch the kernels; return the results by leaf, a row for each. Those of absent leaves may be anything."""

    def calls(self, inputs: Inputs) -> tuple[list[triton.Call], Tensor]:
        """Return the launches of the kernels in order, and the results by leaf, which are there after these."""
        raise NotImplementedError

    @property
    def variant(self) -> Any:
        """What tells kernels of one text apart: the lengths of rows, or the axes of each group."""
        return self.key, self.text.groups.key

    def layout(self, sizes: list[list[int]], device: torch.device) -> ChunkLayout:
        """Return the chunks of leaves with these numbers of indices of each group, and where values are kept."""
        return ChunkLayout(self.text, sizes, device, self.chunk)

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
    def _packing(self) -> struct.Struct:
        return struct.Struct(f"={self.kinds}")

    def packed(self, scalars: Sequence[Any]) -> tuple[bytes, dict[int, Tensor]]:
        """Return the scalars of the kernels as words of 64 bits, and those that the host does not know, by index."""
        values = list(map(scalars.__getitem__, self._positions))
        on_device: dict[int, Tensor] = {}
        if not PYTHON_NUMBERS.issuperset(map(type, values)):
            for i, (scalar, kind) in enumerate(zip(values, self.kinds, strict=True)):
                if isinstance(scalar, Tensor):
                    wide = torch.float64 if kind == "d" else torch.int64
                    on_device[i] = scalar.to(wide).view(torch.int64)
                    values[i] = 0
        return self._packing.pack(*values), on_device

    @functools.cached_property
    def rows(self) -> int:
        """The number of results by leaf."""
        return sum(row is not None for row in self.text.rows)

    def results(self, inputs: Inputs, by_leaf: Tensor) -> list[Any]:
        """Return the results of the phase: a vector of one entry per leaf, or a scalar.

        Args:
            inputs: As for `run`. A scalar that differs between sets is a vector, too.
            by_leaf: What `run` returned; entries of absent leaves may be anything, those of the results as well.
        """
        scalars, rows = inputs.scalars, inputs.rows
        if rows is not None:
            columns = zip(*scalars, strict=True)
            scalars = [_of_sets(column, by_leaf.device, rows) for column in columns]
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
        phase: Phase,
        device: torch.device,
        leaf: int,
        variant: Variant = AS_RECORDED,
    ) -> PhaseKernels:
        """Return the kernels of a phase, the same for equal phases.

        Args:
            phase: The phase.
            device: The device of the leaves.
            leaf: As in `KernelWriter`.
            variant: What of the leaf's shape is an argument.

        Raises:
            UnsuitableProgramError: If kernels cannot run it.
        """
        kernels_of_text = _KERNELS.of(phase.text)
        columns = columns_of(phase)
        key = device, leaf, columns, shape_of(phase, leaf), variant
        if key not in kernels_of_text:
            language = language_of(device)
            assert language is not None
            recording = phase.recording
            if variant.constants.count:
                recording = with_arguments(recording, variant.constants)
            if variant.shared is not None and language.computes_with_totals:
                recording = with_totals_of_leaves(recording, variant.shared)
            program = lower(recording, decides=False)
            writer = language.writer(program, leaf, variant.fixes_row, variant.by_row)
            text = writer.written(columns)
            order = {node: i for i, node in enumerate(program.scalars())}
            scalars = Scalars(program, device)
            outputs = list(program.results)
            texts = (
                text.source,
                scalars.where_on_device(frozenset()).text,
                repr(outputs),
            )
            kernels_of_text[key] = language(
                text, outputs, order, texts, scalars, variant.by_row
            )
        return kernels_of_text[key]


def _of_sets(values: Sequence[Any], device: torch.device, rows: Rows) -> Any:
    """Return the value of a scalar in all sets if it is the same; else that of each leaf as a vector."""
    first, *others = values
    if all(value is first for value in others):
        return first
    if PYTHON_NUMBERS.issuperset(map(type, values)):
        if len(set(map(repr, values))) == 1:
            return first
        column = list(map(values.__getitem__, rows.which))
        return rows.with_these(column, torch.float64)
    entries: list[Tensor] = []
    for value in values:
        is_tensor = isinstance(value, Tensor)
        options: Any = {"dtype": torch.float64, "device": device}
        entries.append(
            value.to(**options) if is_tensor else torch.full((), value, **options)
        )
    return torch.stack(entries)[rows.sets]


def columns_of(phase: Phase) -> int:
    """Return the number of results of a leaf, which a program that writes nothing returns first."""
    return sum(isinstance(name, int) for name in phase.names)


def shape_of(phase: Phase, leaf: int) -> torch.Size | None:
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
    chunk = CONSTANTS["BLOCK"]
    computes_with_totals = True
    shares_launches = True

    @staticmethod
    def missing() -> str:
        if triton.is_importable():
            return ""
        return "Triton cannot be imported; install the version of Triton that belongs to this torch"

    def compile(self) -> None:
        pass

    def run(self, inputs: Inputs) -> Tensor:
        calls, results = self.calls(inputs)
        # Triton launches on the current device, which may be another one.
        with torch.accelerator.device_index(inputs.table.device.index):
            triton.launch_in_turn([calls])
        return results

    def calls(self, inputs: Inputs) -> tuple[list[triton.Call], Tensor]:
        _, scalars, table, layout, rows, _ = inputs
        functions = triton.compiled(self.text.source)
        results = table.memory(self.rows, table.leaves)
        kept = table.memory(1, layout.total)
        if rows is None:
            arguments = self._arguments(scalars, table.pointers)
        else:
            arguments = self._arguments_of_sets(scalars, table.pointers, rows)
        arguments += (table.pointers,)
        arguments += (layout.blocks, layout.chunk_leaf, layout.chunk_start)
        arguments += (layout.leaf_chunks, table.leaves, kept, results)
        is_aligned = table.is_aligned and layout.has_aligned_rows
        constants = {**CONSTANTS, "ALIGNED": is_aligned}
        calls = []
        for kernel in self.text.kernels:
            count = table.leaves if kernel.is_by_leaf else layout.chunks
            function = functions[kernel.name]
            calls.append(triton.Call(function, count, arguments, constants))
        return calls, results

    def _arguments(self, scalars: Sequence[Any], unused: Tensor) -> tuple[Any, ...]:
        """Return scalars as arguments: bits, words on the device (`unused` if there are none), and words.

        If a scalar's bit is set, its word is the index of its value among those on the device.
        """
        packed, on_device = self.packed(scalars)
        words = list(struct.unpack(f"={len(self._positions)}q", packed))
        bits = 0
        for index, i in enumerate(on_device):
            bits |= 1 << i
            words[i] = index
        stored = torch.stack(list(on_device.values())) if on_device else unused
        return bits, stored, *words

    def _arguments_of_sets(
        self, sets: Sequence[Sequence[Any]], unused: Tensor, rows: Rows
    ) -> tuple[Any, ...]:
        """Return scalars as arguments: bits, the words of all sets, words on the device, and the set of each leaf.

        If a scalar's bit is set, its word in a set is the index of its value among those on the device.
        """
        values = [[scalars[i] for i in self._positions] for scalars in sets]
        columns = list(zip(*values, strict=True))
        on_device = [i for i, x in enumerate(columns) if any(map(_is_tensor, x))]
        kinds, stored = list(self.kinds), unused
        if on_device:
            stored, starts = _on_device({i: columns[i] for i in on_device}, self.kinds)
            for i, start in starts.items():
                kinds[i] = "q"
                for at, of_set in enumerate(values, start):
                    of_set[i] = at
        flat = list(itertools.chain.from_iterable(values))
        packed = struct.pack(f"={''.join(kinds) * len(sets)}", *flat)
        words = unused
        if packed:
            words = rows.with_these(list(struct.unpack(f"={len(flat)}q", packed)))
        return sum(1 << i for i in on_device), words, stored, rows.sets


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


# The dtypes of words.
_WIDE = {"d": torch.float64, "q": torch.int64}


def _on_device(
    columns: Mapping[int, Sequence[Any]], kinds: str
) -> tuple[Tensor, dict[int, int]]:
    """Return the words of scalars that the host does not know in all sets, and where those of each scalar begin.

    Args:
        columns: The values of each in all sets, 0-d tensors, or numbers in some of them.
        kinds: The kind of each scalar.
    """
    alike = {i: _alike(column, _WIDE[kinds[i]]) for i, column in columns.items()}

    def kind_of_output(index: int) -> tuple[str, str]:
        return kinds[index], str(alike[index][0].dtype)

    parts: list[Tensor] = []
    starts: dict[int, int] = {}
    begin = 0
    # Together as many as possible, so that there are few launches.
    for (kind, _), group in itertools.groupby(
        sorted(alike, key=kind_of_output), kind_of_output
    ):
        entries: list[Tensor] = []
        for i in group:
            starts[i] = begin + len(entries)
            entries += alike[i]
        parts.append(torch.stack(entries).to(_WIDE[kind]).view(torch.int64))
        begin += len(entries)
    return torch.cat(parts) if len(parts) > 1 else parts[0], starts


def _alike(values: Sequence[Any], wide: torch.dtype) -> list[Tensor]:
    """Return 0-d tensors of one dtype."""
    tensors = list(filter(_is_tensor, values))
    if len(tensors) == len(values) and len({x.dtype for x in tensors}) == 1:
        return tensors
    options: Any = {"dtype": wide, "device": tensors[0].device}
    return [
        x.to(**options) if isinstance(x, Tensor) else torch.full((), x, **options)
        for x in values
    ]


class CppKernels(PhaseKernels):
    """Kernels in C++, one call for all."""

    writer = CppWriter
    chunk = CHUNK

    @staticmethod
    def missing() -> str:
        return "" if cpp.compiler_or_none() else cpp.MISSING

    def compile(self) -> None:
        cpp.compiled(self.text.source)

    def run(self, inputs: Inputs) -> Tensor:
        _, scalars, table, layout, rows, _ = inputs
        packed, on_device = (
            self.packed(scalars) if rows is None else self._packed_sets(scalars)
        )
        words = (ctypes.c_char * len(packed)).from_buffer_copy(packed)
        for i, word in on_device.items():
            torch.frombuffer(words, dtype=torch.int64)[i].copy_(word)
        results, address = NO_RESULTS, 0
        if self.rows:
            results = table.memory(self.rows, table.leaves)
            address = results.data_ptr()
        kept, memory = 0, None
        if layout.total:
            memory = table.memory(1, layout.total)
            kept = memory.data_ptr()
        threads = torch.get_num_threads() if layout.entries >= LARGE else 1
        arguments = (
            *(ctypes.addressof(words), table.address, *layout.addresses),
            *(kept, address, table.leaves, threads),
        )
        if rows is None:
            self._function(cpp.ARGUMENTS.pack(*arguments))
        else:
            self._function(cpp.ARGUMENTS_OF_ROWS.pack(*arguments, rows.address))
        return results

    def _packed_sets(
        self, sets: Sequence[Sequence[Any]]
    ) -> tuple[bytes, dict[int, Tensor]]:
        """Return the scalars of sets, one after another, as `packed` does for one."""
        flat = [scalars[i] for scalars in sets for i in self._positions]
        if PYTHON_NUMBERS.issuperset(map(type, flat)):  # a shortcut
            return struct.pack(f"={self.kinds * len(sets)}", *flat), {}
        packed: list[bytes] = []
        on_device: dict[int, Tensor] = {}
        for at, scalars in enumerate(sets):
            words, of_set = self.packed(scalars)
            packed.append(words)
            for i, word in of_set.items():
                on_device[at * len(self._positions) + i] = word
        return b"".join(packed), on_device

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


# By the text of a recording, as list functions are.
_KERNELS = SharedPrograms()
