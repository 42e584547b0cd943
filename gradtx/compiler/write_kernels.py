"""Write a program as kernels that process all leaves of a bundle: what their languages, Triton and C++, share.

A table of pointers has a row per argument and a column per leaf, and each instance of a kernel takes one chunk of one
leaf. Sums over a leaf need all its chunks, so they divide the program into stages: each but the last stores partial
sums per chunk, which a small kernel adds in a fixed order. A stage computes what it needs again from the leaf's
arguments; only the last one writes.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.compiler.graph import args_of, dtype_of, is_list, is_scalar
from gradtx.compiler.lower import Program
from gradtx.compiler.simplify import SAME_ENTRIES, reduced_dimensions
from gradtx.compiler.write_expressions import (
    CONSTANTS,
    MEANS,
    REDUCTIONS,
    ExpressionWriter,
    UnsuitableProgramError,
)

aten = torch.ops.aten

# Blocks that have one scale: numbers of entries that a tile of a kernel can have in its second dimension.
BLOCKS = (16, 32, 64, 128, 256)
# The index of a value in memory, by its extent.
INDICES = {"entry": "i", "block": "b", "leaf": "0"}

# Reductions by the names of their totals.
Totals: TypeAlias = Mapping[str, Node]
# Why there are no kernels.
ROWS = "it has values of rows or columns that kernels cannot compute"


class Moved(NamedTuple):
    """An argument that a kernel reads or writes.

    Attributes:
        extent: What it has one value for: each "entry", each "block", a "leaf", or each index of some groups of axes.
        itemsize: The bytes of a value.
    """

    extent: Any
    itemsize: int


class Kernel(NamedTuple):
    """A kernel, and what it moves.

    Attributes:
        name: The name of its function.
        reads: What it reads, by the argument's index.
        writes: What it writes.
    """

    name: str
    reads: dict[int, Moved]
    writes: dict[int, Moved]


class Store(NamedTuple):
    """What a kernel writes.

    Attributes:
        row: The row of the table with the tensors that it writes to.
        like: A node like one of these tensors.
        node: The value.
    """

    row: int
    like: Node
    node: Node


@dataclass
class KernelText:
    """A phase of a program as the text of kernels.

    Attributes:
        source: The functions.
        kernels: These in the order of their launches: `stage0` and `reduce0`, ..., `last_stage` if there are entries to
            write, and `finish` if there are 0-d values of leaves to write.
        scalars: The scalars that they read, each a word of 64 bits.
        sums: The number of sums of each stage but the last.
        rows: For each result of the phase, its row in the buffer of values by leaf; None for others.
        block: The number of entries that have one value of a row, or one scale; a chunk contains whole blocks.
        grid: What the kernels need to know of the shape of a leaf, if they have values of columns, channels, ...
    """

    source: str
    kernels: list[Kernel]
    scalars: list[Node]
    sums: list[int]
    rows: list[int | None]
    block: int
    grid: Any = None


class PhaseWriter(ExpressionWriter):
    """What writers of the kernels of a program share.

    Args:
        program: The program.
    """

    def __init__(self, program: Program):
        super().__init__()
        self._program, self._leaves = program, program.leaves
        self._lines: dict[Node, str] = {}
        self._sources: dict[Node, Node] = {}  # what views have the values of
        self._depths: dict[Node, int] = {}
        self._stores: list[Store] = []
        self._kernels: list[Kernel] = []

    @abstractmethod
    def _extent(self, node: Node) -> Any:
        """Return what a value has one number for."""

    def _note(self, name: str, read: Iterable[Node], written: Sequence[Store]) -> None:
        """Add a kernel, and what it moves."""
        reads = {self._leaves.index(leaf): self._moved(leaf) for leaf in read}
        writes = {store.row: self._moved(store.like) for store in written}
        self._kernels.append(Kernel(name, reads, writes))

    def _moved(self, leaf: Node) -> Moved:
        return Moved(self._extent(leaf), dtype_of(leaf).itemsize)

    def _result_rows(self, columns: int) -> list[int | None]:
        """Return the row of each result in the buffer of values by leaf; see `KernelText`."""
        row = itertools.count()
        rows: list[int | None] = [None] * len(self._program.results[:columns])
        for result in self._program.results[columns:]:
            rows.append(next(row) if is_list(result) else None)
        return rows


class KernelWriter(PhaseWriter):
    """Write one line for each operation, and each stage with the lines that it needs.

    Args:
        program: The program.
        leaf: The index of an argument with the shape of the leaf.
        block: The number of entries of a row, if other phases have rows: then chunks contain whole rows.
        fixes_block: Whether the text contains that number; otherwise it suits rows of all lengths.

    Attributes:
        total: A template of the code of a sum over the leaf, which an earlier stage computed, given the stage and the
            index of the sum.
    """

    total: ClassVar[str]

    def __init__(
        self, program: Program, leaf: int, block: int = 1, fixes_block: bool = True
    ):
        super().__init__(program)
        self._fixes_block = fixes_block
        like: Any = program.leaves[leaf].meta["val"]
        self._size = like.numel()
        self._is_0d = like.ndim == 0  # then so are its slots
        self._block = block  # entries with one scale
        # The reductions of each stage, and the code of their operands and of those of reductions over rows.
        self._reductions: list[list[Node]] = []
        self._reduced: dict[Node, str] = {}
        self._of_rows: dict[Node, str] = {}

    def written(self, columns: int) -> KernelText:
        """Return the kernels.

        Args:
            columns: The number of first results that a leaf has tensors for; their rows in the table follow those of
                its arguments.

        Raises:
            UnsuitableProgramError: If the language has no form of an operation.
        """
        for node in self._program.graph.nodes:
            if node.op == "placeholder" and node in self._leaves:
                self._names[node] = f"x{self._leaves.index(node)}"
                self._depths[node] = 0
                # Phases of sums often read few slots.
                if node.users and not self._is_mark(node):
                    self._extent(node)
            elif node.op == "call_function" and not is_scalar(node):
                self._add(node)
        results = self._program.results
        for result in results:
            if isinstance(result, Node) and not (is_list(result) or is_scalar(result)):
                raise UnsuitableProgramError("what leaves share is computed by views")
        for i, result in enumerate(results[:columns], len(self._leaves)):
            if is_list(result) and not self._is_mark(result):
                self._stores.append(Store(i, result, result))
        by_leaf = [result for result in results[columns:] if is_list(result)]
        for result in by_leaf:
            if self._extent(result) != "leaf":
                raise UnsuitableProgramError("a result has an entry per element")
        functions: list[str] = []
        for depth, stage in enumerate(self._reductions):
            functions.append(self._chunk(f"stage{depth}", (), stage))
            self._note(f"reduce{depth}", (), ())
            functions.append(self._reduce(depth))
        entries = [
            store for store in self._stores if self._extent(store.like) != "leaf"
        ]
        of_leaf = [store for store in self._stores if store not in entries]
        if entries:
            functions.append(self._chunk("last_stage", entries, ()))
        # After the last stage, when all chunks of a leaf have read its old values.
        if by_leaf or of_leaf:
            functions.append(self._finish(by_leaf, of_leaf))
        return KernelText(
            self._joined(functions),
            self._kernels,
            self._scalars,
            list(map(len, self._reductions)),
            self._result_rows(columns),
            self._block,
        )

    # The language.

    @abstractmethod
    def _pointers(self, rows: dict[int, Node]) -> list[str]:
        """Return the lines that load the addresses of a leaf's tensors."""

    @abstractmethod
    def _line(self, node: Node) -> str:
        """Return the line that loads or computes a value."""

    @abstractmethod
    def _store(self, store: Store) -> str:
        """Return the line that writes a value."""

    @abstractmethod
    def _begun(self, name: str, node: Node) -> str:
        """Return what comes before a loop with a reduction of this name."""

    @abstractmethod
    def _added(self, name: str, node: Node) -> str:
        """Return the line in the loop."""

    @abstractmethod
    def _ended(self, name: str, node: Node) -> str:
        """Return the line after the loop, which gives the total its name."""

    @abstractmethod
    def _looped(self, lines: Sequence[str], totals: Totals) -> list[str]:
        """Return a loop of these lines over the entries of a row, which adds up totals."""

    @abstractmethod
    def _chunk(self, name: str, stored: Sequence[Store], stage: Sequence[Node]) -> str:
        """Return a kernel that writes entries and the scales of blocks, or stores the partial sums of a stage."""

    @abstractmethod
    def _reduce(self, depth: int) -> str:
        """Return the kernel that combines the partial sums of each leaf, in a fixed order."""

    @abstractmethod
    def _finish(self, results: Sequence[Node], stores: Sequence[Store]) -> str:
        """Return the kernel that writes 0-d values of leaves, with an instance per leaf."""

    @abstractmethod
    def _joined(self, functions: Sequence[str]) -> str:
        """Return the whole text."""

    # Operations.

    def _position(self, node: Node) -> str:
        if self._extent(node) != "entry" or args_of(node) != (self._size,):
            raise UnsuitableProgramError("positions within a row")
        return "i"

    def _is_mark(self, node: Node) -> bool:
        """Whether a value has no entries, although the leaf has some: slots that only mark a choice."""
        return node.meta["val"].numel() == 0 < self._size

    def _extent(self, node: Node) -> str:
        """Return what a value has one number for: each "entry", each "block" of entries with one scale, or a "leaf"."""
        value: Any = node.meta["val"]
        if not isinstance(value, Tensor) or value.dtype not in self.types:
            raise UnsuitableProgramError(f"kernels have no {_kind(value)}")
        if value.ndim == 0 or (self._is_0d and value.numel() == 1):
            return "leaf"
        if value.numel() == self._size:
            return "entry"
        block = self._size // max(value.numel(), 1)
        is_whole = block * value.numel() == self._size and block > 1
        if not is_whole or self._block not in (1, block):
            raise UnsuitableProgramError(ROWS)
        self._block = block
        return "block"

    def _add(self, node: Node) -> None:
        """Write the line of an operation."""
        inputs = [item for item in node.all_input_nodes if item in self._depths]
        self._depths[node] = max((self._depths[item] for item in inputs), default=0)
        operand: Any = next(iter(args_of(node)), None)
        if _torch.writes(node.target):
            row = self._leaves.index(operand)
            self._stores.append(Store(row, operand, node))
        if self._is_same(node):
            self._names[node] = self._names[operand]
            source: Any = self._sources.get(operand, operand)
            self._sources[node] = source
            return
        name = f"t{len(self._lines)}"
        self._names[node] = name
        if not self._is_reduction(node, name):
            if self._extent(node) == "entry":
                self._check_rows(node, inputs)
            self._lines[node] = self._assigned(name, node, self._expression(node))
        if _torch.writes(node.target):  # later operations read the new value
            self._names[self._stores[-1].like] = name

    def _is_same(self, node: Node) -> bool:
        """Whether an operation returns the values of its operand: a view, which leaves of other shapes may lack."""
        if node.target not in SAME_ENTRIES:
            return False
        operand: Any = node.args[0]
        has_values = operand in self._depths and not self._is_mark(operand)
        return has_values and self._extent(node) == self._extent(operand)

    def _check_rows(self, node: Node, inputs: Sequence[Node]) -> None:
        """Raise if an operation on entries takes the values of blocks in another order."""
        shape = node.meta["val"].shape
        for item in inputs:
            if self._is_mark(item) or self._extent(item) != "block":
                continue
            own = item.meta["val"].shape
            own = (1,) * (len(shape) - len(own)) + tuple(own)
            rest = list(shape)
            for size in own:
                if size == rest[0]:
                    rest.pop(0)
                else:
                    break
            kept = len(shape) - len(rest)
            if set(own[kept:]) - {1} or math.prod(rest) != self._block:
                raise UnsuitableProgramError(ROWS)

    def _is_reduction(self, node: Node, name: str) -> bool:
        """Write a reduction of a leaf or of rows; that of a single entry, or of rows of one entry, is none."""
        if node.target not in REDUCTIONS:
            return False
        operand: Any = node.args[0]
        of, dims = self._extent(operand), reduced_dimensions(node)
        is_norm = node.target is aten.linalg_vector_norm.default
        if is_norm and node.args[1:2] not in ((), (2,)):
            raise UnsuitableProgramError("kernels have the Euclidean norm only")
        if of == "leaf" or (dims and self._extent(node) == of):
            return False
        if not dims:
            self._reduce_entries(node, operand, name)
            return True
        shape = operand.meta["val"].shape
        reduced = sorted(dim % len(shape) for dim in dims)
        is_last = reduced == list(range(len(shape) - len(reduced), len(shape)))
        if of != "entry" or not is_last or self._extent(node) != "block":
            raise UnsuitableProgramError(ROWS)
        self._of_rows[node] = self._operand(operand, wide(dtype_of(node)))
        self._lines[node] = self._of_total(name, node, f"{name}_total", "block")
        return True

    def _reduce_entries(self, node: Node, operand: Node, name: str) -> None:
        depth = self._depths[operand]
        while len(self._reductions) <= depth:
            self._reductions.append([])
        stage = self._reductions[depth]
        row = len(stage)
        stage.append(node)
        self._reduced[node] = self._operand(operand, wide(dtype_of(node)))
        self._depths[node] = depth + 1
        count = "size" if self._extent(operand) == "entry" else "(size / block)"
        self._lines[node] = self._of_total(
            name, node, self.total.format(depth, row), count
        )

    def _of_total(self, name: str, node: Node, total: str, count: str) -> str:
        """Return the line of a reduction, given the total."""
        if node.target in MEANS:
            total = f"{total} / {count}"
        if node.target is aten.linalg_vector_norm.default:
            total = self._root(total, torch.float64)
        return self._assigned(name, node, self._converted(f"({total})", dtype_of(node)))

    # Kernels.

    def _needed(self, nodes: Sequence[Node]) -> tuple[list[Node], list[Node]]:
        """Return the operations that some nodes need, in order, and the arguments that these read."""
        waiting, needed = list(nodes), set(nodes)
        while waiting:
            node = waiting.pop()
            if node in self._reduced:
                continue  # its value is loaded
            inputs = set(node.all_input_nodes)
            if node.target in (*CONSTANTS, aten.full_like.default):
                inputs.intersection_update(node.args[1:])  # the first gives its shape
            for item in inputs:
                if item in self._depths and item not in needed:
                    needed.add(item)
                    waiting.append(item)
        operations = [node for node in self._lines if node in needed]
        return operations, [leaf for leaf in self._leaves if leaf in needed]

    def _values_of_leaf(
        self, results: Sequence[Node], stores: Sequence[Store]
    ) -> list[str]:
        """Return the lines that compute results, and write other 0-d values of a leaf."""
        operations, read = self._needed([*results, *(store.node for store in stores)])
        if any(self._extent(leaf) != "leaf" for leaf in read):
            raise UnsuitableProgramError(
                "a 0-d value of a leaf depends on single entries"
            )
        self._note("finish", (), ())  # 0-d values of leaves only
        lines = self._pointers(self._rows(read, stores))
        lines += map(self._line, [*read, *operations])
        lines += map(self._store, stores)
        return lines

    def _values_of_row(self, nodes: Sequence[Node]) -> list[str]:
        """Return the lines that compute the values of a row, among some operations and arguments, in several passes."""
        passes: dict[Node, int] = {}
        for node in nodes:
            if self._extent(node) != "leaf":
                sources = (self._sources.get(x, x) for x in node.all_input_nodes)
                before = max((passes.get(x, 0) for x in sources), default=0)
                passes[node] = before + (node in self._of_rows)
        lines: list[str] = []
        for i in range(1 + max(passes.values(), default=0)):
            of_pass = [node for node in passes if passes[node] == i]
            totals = {self._names[x]: x for x in of_pass if x in self._of_rows}
            lines += map(self._begun, totals, totals.values())
            lines += self._loop((), totals)
            lines += map(self._ended, totals, totals.values())
            lines += [self._line(x) for x in of_pass if self._extent(x) == "block"]
        return lines

    def _loop(self, stored: Sequence[Store], totals: Totals) -> list[str]:
        """Return a loop over the entries of a row that stores some and adds up others."""
        outputs = outputs_of(stored, totals.values())
        entries = [output for output in outputs if self._extent(output) == "entry"]
        if not entries:
            return []
        operations, read = self._needed(entries)
        nodes = [x for x in (*read, *operations) if self._extent(x) == "entry"]
        added = {name: x for name, x in totals.items() if not self._adds_rows(x)}
        lines = [*map(self._line, nodes), *map(self._added, added, added.values())]
        lines += [self._store(x) for x in stored if self._extent(x.like) == "entry"]
        return self._looped(lines, added)

    def _after_loop(self, stored: Sequence[Store], totals: Totals) -> list[str]:
        """Return the lines at the end of a row that store its values and add them up."""
        added = {name: x for name, x in totals.items() if self._adds_rows(x)}
        lines = list(map(self._added, added, added.values()))
        lines += [self._store(x) for x in stored if self._extent(x.like) == "block"]
        return lines

    def _adds_rows(self, node: Node) -> bool:
        """Whether a reduction adds up the values of rows."""
        operand: Any = node.args[0]
        return self._extent(operand) == "block"

    def _term(self, node: Node) -> str:
        """Return the code of what a reduction reduces."""
        return self._of_rows[node] if node in self._of_rows else self._reduced[node]

    def _rows(self, read: Collection[Node], stored: Sequence[Store]) -> dict[int, Node]:
        """Return the rows of the table with what is read and stored, and what the tensors there are like."""
        rows = {i: leaf for i, leaf in enumerate(self._leaves) if leaf in read}
        rows.update({store.row: store.like for store in stored})
        return dict(sorted(rows.items()))


def outputs_of(stored: Iterable[Store], reductions: Iterable[Node]) -> list[Any]:
    """Return what a kernel stores or adds up."""
    return [
        *(store.node for store in stored),
        *(node.args[0] for node in reductions),
    ]


def kind_of(node: Node) -> str:
    """Return how a reduction combines two values."""
    return REDUCTIONS[node.target]


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
