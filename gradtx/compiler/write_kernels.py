"""Write a lowered graph as kernels that process all leaves of a bundle: what their languages, Triton and C++, share.

The axes of a leaf form groups; see `Groups`. A value has one number for each index of some of them, its extent: entries
of all, a leaf of none. A table of pointers has a row per argument and a column per leaf, and each instance of a kernel
takes one chunk of one leaf. Kernels alternate: a *stage* goes through the entries of each chunk and reduces them to
partial values of its own; the kernel `combine` that follows adds these up in a fixed order, and computes from them what
depends on less than all groups, in *sweeps* over the indices of an extent. Later kernels load what it keeps, and
compute what else they need again from the leaf's arguments; only the last stage writes entries.

Where the only other values are those of rows, stages compute these, too: chunks contain whole rows, which a stage goes
through in several passes.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.compiler.axes import (
    FILLED,
    UNRELATED,
    Extent,
    Groups,
    groups_of,
    is_mark,
)
from gradtx.compiler.graph import args_of, dtype_of, is_list, is_scalar
from gradtx.compiler.lower import LoweredGraph
from gradtx.compiler.simplify import SAME_ENTRIES
from gradtx.compiler.write_expressions import (
    MEANS,
    REDUCTIONS,
    ExpressionWriter,
    UnsuitableProgramError,
)

aten = torch.ops.aten

# Numbers of entries of a row that are part of the text, for which compilers unroll loops and tiles have a second
# dimension: those of blocks of codes.
FIXED_ROWS = (16, 32, 64, 128, 256)


class Moved(NamedTuple):
    """An argument that a kernel reads or writes.

    Attributes:
        extent: The groups of axes for each index of which it has a value.
        itemsize: The bytes of a value.
    """

    extent: Extent
    itemsize: int


class Kernel(NamedTuple):
    """A kernel, and what it moves.

    Attributes:
        name: The name of its function.
        is_by_leaf: Whether it has an instance for each leaf; others have one for each chunk.
        reads: What it reads, by the argument's index.
        writes: What it writes.
    """

    name: str
    is_by_leaf: bool
    reads: dict[int, Moved]
    writes: dict[int, Moved]


class Write(NamedTuple):
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
        kernels: These in the order of their launches: `stage0` and `combine0`, ..., `last_stage` if there are entries
            to write, and `finish` if there are other values to write that earlier kernels could not.
        scalars: The scalars that they read, each a word of 64 bits.
        rows: For each result of the phase, its row in the buffer of values by leaf; None for others.
        groups: The groups of axes of a leaf.
        kept: The extents of values that kernels keep for later ones.
        partial: Those of the reductions of entries.
    """

    source: str
    kernels: list[Kernel]
    scalars: list[Node]
    rows: list[int | None]
    groups: Groups
    kept: list[Extent]
    partial: list[Extent]


class Needed(NamedTuple):
    """What a kernel loads and computes, in order.

    Attributes:
        read: Arguments of the leaf.
        kept: Values that an earlier kernel has kept.
        computed: Operations.
    """

    read: list[Node]
    kept: list[Node]
    computed: list[Node]


@dataclass
class Combine:
    """A kernel between two stages, or after the last one.

    Attributes:
        name: The name of its function.
        sweeps: The values that it computes in each sweep, in order.
        by_block: Whether the indices of the first group are divided among its instances, each of which has those of a
            chunk; otherwise there is an instance for each leaf.
        stores: What it writes into slots.
    """

    name: str
    sweeps: list[list[Node]] = field(default_factory=list)
    by_block: bool = False
    stores: list[Write] = field(default_factory=list)

    @property
    def computes(self) -> bool:
        """Whether it computes values of sweeps, and keeps them; the last kernel loads what earlier ones have kept."""
        return self.name != "finish"


class KernelWriter(ExpressionWriter):
    """Write one line for each operation, and each kernel with the lines that it needs.

    Args:
        lowered: The lowered graph.
        leaf: The index of an argument with the shape of the leaf.
        fixes_row: Whether the text may contain the number of entries of a row; otherwise it suits rows of all lengths.
        by_row: Whether leaves may be absent, and have scalars of their own; see `Rows`.

    Raises:
        UnsuitableProgramError: If a value depends on anything but axes of the leaf.
    """

    # Whether tiles help where values of single columns are reduced, too; if not, short and long rows share texts.
    has_tiles_of_columns: ClassVar[bool] = False

    def __init__(
        self,
        lowered: LoweredGraph,
        leaf: int,
        fixes_row: bool = True,
        by_row: bool = False,
    ):
        super().__init__()
        self._by_row = by_row
        self._lowered, self._leaves = lowered, lowered.leaves
        shape = lowered.leaves[leaf].meta["val"].shape
        self._size: int = shape.numel()
        self._groups = groups_of(lowered, lowered.leaves[leaf])
        if not (self.has_tiles_of_columns or self._groups.are_batches):
            self._groups = replace(self._groups, tile=None)
        self._full = self._groups.full
        self._last = self._full[-1]
        self._are_batches = self._groups.are_batches
        self._sizes = self._groups.sizes(shape)
        has_fixed_row = fixes_row and self._groups.row in FIXED_ROWS
        self._fixed_row = self._groups.row if has_fixed_row else None
        self._lines: dict[Node, str] = {}
        self._sources: dict[Node, Node] = {}  # what views have the values of
        self._inputs: dict[Node, list[Node]] = {}
        self._depths: dict[Node, int] = {}
        self._stores: list[Write] = []
        self._kernels: list[Kernel] = []
        # Reductions of entries for a combining kernel, those that stages compute alone, and what all of them reduce.
        self._partial: list[Node] = []
        self._of_rows: list[Node] = []
        self._terms: dict[Node, str] = {}
        self._kept: list[Node] = []
        self._combines: list[Combine] = []
        # What stages before the last one write, and the values that later ones load therefore.
        self._early: dict[int, list[Write]] = {}
        self._reloaded: set[Node] = set()

    def written(self, columns: int) -> KernelText:
        """Return the kernels.

        Args:
            columns: The number of first results that a leaf has tensors for; their rows in the table follow those of
                its arguments.

        Raises:
            UnsuitableProgramError: If the language cannot express an operation.
        """
        for node in self._lowered.graph.nodes:
            if node.op == "placeholder" and node in self._leaves:
                self._names[node] = f"x{self._leaves.index(node)}"
                self._depths[node] = 0
            elif node.op == "call_function" and not is_scalar(node):
                self._add(node)
        results = self._lowered.results
        for result in results:
            if isinstance(result, Node) and not (is_list(result) or is_scalar(result)):
                raise UnsuitableProgramError("what leaves share is computed by views")
        for i, result in enumerate(results[:columns], len(self._leaves)):
            if is_list(result) and not is_mark(result, self._size):
                self._stores.append(Write(i, result, self._source(result)))
        by_leaf = [self._source(x) for x in results[columns:] if is_list(x)]
        if any(map(self._extent, by_leaf)):
            raise UnsuitableProgramError("a result has an entry per element")
        functions = self._functions(by_leaf)
        return KernelText(
            self._joined(functions),
            self._kernels,
            self._scalars,
            self._result_rows(columns),
            self._groups,
            list(map(self._extent, self._kept)),
            list(map(self._extent, self._partial)),
        )

    def _result_rows(self, columns: int) -> list[int | None]:
        """Return the row of each result in the buffer of values by leaf; see `KernelText`."""
        row = itertools.count()
        rows: list[int | None] = [None] * len(self._lowered.results[:columns])
        for result in self._lowered.results[columns:]:
            rows.append(next(row) if is_list(result) else None)
        return rows

    # Kernels.

    def _functions(self, results: list[Node]) -> list[str]:
        """Return all kernels, in order; the first pass finds out what each needs of earlier ones."""
        depth = max(self._depths.values(), default=0)
        entries = [x for x in self._stores if self._is_in_stage(self._extent(x.like))]
        others = [x for x in self._stores if x not in entries]
        stages = [
            [node for node in self._partial if self._depths[node] == i + 1]
            for i in range(depth)
        ]
        outputs = [[self._operand_of(x) for x in stage] for stage in stages]
        outputs.append([store.node for store in entries])
        read_later: list[set[Node]] = [
            set(self._needed(of_kernel).read) for of_kernel in outputs
        ]
        self._needed(results)
        combines = [self._combine(i, others) for i in reversed(range(depth))][::-1]
        self._combines = combines
        late = [x for x in others if not self._is_written(x, read_later)]
        self._needed([store.node for store in late])
        functions: list[str] = []
        self._early = self._early_writes(entries, stages, outputs)
        for i, combine in enumerate(combines):
            early = self._early.get(i, [])
            if stages[i]:
                read = self._needed([*outputs[i], *(x.node for x in early)]).read
                self._note(f"stage{i}", False, read, early)
                functions.append(self._stage(f"stage{i}", early, stages[i]))
                self._reload(early)
            read = self._read_in(combine)
            self._note(combine.name, not combine.by_block, read, combine.stores)
            functions.append(self._combined(combine))
        entries = [x for x in entries if not any(x in y for y in self._early.values())]
        if entries:
            read = self._needed([store.node for store in entries]).read
            self._note("last_stage", False, read, entries)
            functions.append(self._stage("last_stage", entries, ()))
        if late or results:
            finish = Combine("finish", self._late_sweeps(late), stores=late)
            read = self._needed([*results, *(store.node for store in late)]).read
            self._note("finish", True, read, late)
            functions.append(self._combined(finish, results))
        return functions

    def _early_writes(
        self,
        stored: Sequence[Write],
        stages: Sequence[Sequence[Node]],
        outputs: Sequence[Sequence[Node]],
    ) -> dict[int, list[Write]]:
        """Return what stages before the last one write: new values that later ones load, and need no old ones beside.

        Args:
            stored: What the last stage writes otherwise.
            stages: What each stage before it reduces.
            outputs: What each stage computes, the last one included.
        """
        early: dict[int, list[Write]] = {}
        for store in stored if self._are_batches else ():
            depth = self._depths[store.node]
            # Of a function, results are in other memory than arguments.
            is_slot = store.like in self._leaves
            is_exact = dtype_of(store.like) == dtype_of(store.node)
            if self._extent(store.like) == self._full or not (is_slot and is_exact):
                continue
            if depth < len(stages) and stages[depth]:
                early.setdefault(depth, []).append(store)
        while outdated := self._needed_as_they_were(early, outputs):
            for depth, stores in early.items():
                early[depth] = [x for x in stores if x not in outdated]
        return early

    def _needed_as_they_were(
        self, early: Mapping[int, list[Write]], outputs: Sequence[Sequence[Node]]
    ) -> list[Write]:
        """Return which slots later stages still read as they were before, if stages write these early."""
        lines, inputs = {**self._lines}, {**self._inputs}
        written = [store.node for stores in early.values() for store in stores]
        earlier: list[Write] = []
        outdated: list[Write] = []
        for depth, of_stage in enumerate(outputs):
            own = early.get(depth, [])
            others = [x for x in of_stage if x not in written]
            needed = self._needed([*others, *(store.node for store in own)])
            outdated += [x for x in earlier if self._reads_old(x, needed)]
            self._reload(own)
            earlier += own
        self._lines, self._inputs = lines, inputs
        self._reloaded.clear()
        return outdated

    def _value_of(self, store: Write) -> Node:
        """Return the value that is written, which later operations read."""
        node = store.node
        if node.target is aten.copy_.default:
            value = self._source(node.args[1])  # type: ignore[arg-type]
            if value in self._lines and dtype_of(value) == dtype_of(node):
                return value
        return node

    def _reads_old(self, store: Write, needed: Needed) -> bool:
        value = self._value_of(store)
        return any(store.like in self._inputs[x] for x in needed.computed if x != value)

    def _reload(self, written: Iterable[Write]) -> None:
        """Let later kernels load values that an earlier one has written."""
        for store in written:
            value = self._value_of(store)
            loaded = f"x{self._leaves.index(store.like)}"
            self._lines[value] = self._assigned(self._names[value], value, loaded)
            self._inputs[value] = [store.like]
            self._reloaded.add(value)

    def _late_sweeps(self, late: Sequence[Write]) -> list[list[Node]]:
        """Return what the last kernel writes, by extent: a sweep reads all old values that it needs before it writes.

        Sweeps over more groups come first, since they also read slots with fewer.
        """
        sweeps: dict[Extent, list[Node]] = {}
        for store in sorted(late, key=lambda x: -len(self._extent(x.like))):
            sweeps.setdefault(self._extent(store.like), []).append(store.node)
        return list(sweeps.values())

    def _note(
        self,
        name: str,
        is_by_leaf: bool,
        read: Iterable[Node],
        written: Sequence[Write],
    ) -> None:
        """Add a kernel, and what it moves."""
        reads = {self._leaves.index(leaf): self._moved(leaf) for leaf in read}
        writes = {store.row: self._moved(store.like) for store in written}
        self._kernels.append(Kernel(name, is_by_leaf, reads, writes))

    def _moved(self, leaf: Node) -> Moved:
        return Moved(self._extent(leaf), dtype_of(leaf).itemsize)

    def _is_written(self, store: Write, read: list[set[Node]]) -> bool:
        """Let the kernel that computes the new value of a slot write it, unless another one reads the old value."""
        depth = self._depths[store.node]
        if not depth:
            return False
        later = [self._read_in(combine) for combine in self._combines[depth:]]
        own = self._combines[depth - 1]
        of_sweeps = [self._needed_in(sweep).read for sweep in own.sweeps]
        others = [
            x
            for sweep, x in zip(own.sweeps, of_sweeps, strict=True)
            if store.node not in sweep
        ]
        if any(store.like in read_by for read_by in (*read[depth:], *later, *others)):
            return False
        own.stores.append(store)
        return True

    def _read_in(self, combine: Combine) -> set[Node]:
        return {x for sweep in combine.sweeps for x in self._needed_in(sweep).read}

    # The language.

    @abstractmethod
    def _stage(self, name: str, stored: Sequence[Write], stage: Sequence[Node]) -> str:
        """Return a kernel that writes entries, or reduces those of each chunk."""

    @abstractmethod
    def _combined(self, combine: Combine, results: Sequence[Node] = ()) -> str:
        """Return a kernel between stages, or after the last one."""

    @abstractmethod
    def _joined(self, functions: Sequence[str]) -> str:
        """Return the whole text."""

    def _index(self, extent: Extent, first: str = "c0") -> str:
        """Return the code of the index of a value, given that of its index in the first group."""
        code = ""
        for i in extent:
            index = first if i == 0 else f"c{i}"
            code = f"({code}) * n{i} + {index}" if code else index
        return code or "0"

    # Operations.

    def _position(self, node: Node) -> str:
        if self._extent(node) != self._full or args_of(node) != (self._size,):
            raise UnsuitableProgramError("positions within a row")
        return self._index(self._full)

    def _extent(self, node: Node) -> Extent:
        if dtype_of(node) not in self.types:
            raise UnsuitableProgramError(f"kernels have no {dtype_of(node)}")
        if node not in self._groups.extents:
            raise UnsuitableProgramError("leaves share a value with entries")
        return self._groups.extents[node]

    def _is_in_stage(self, extent: Extent) -> bool:
        """Whether stages compute and write values of an extent: of entries, and of rows where there is nothing else."""
        if self._groups.are_rows or self._are_batches:
            return 0 in extent
        return extent == self._full

    def _source(self, node: Node) -> Node:
        return self._sources.get(node, node)

    def _read_by(self, node: Node) -> list[Node]:
        """Return the values that an operation reads."""
        inputs = dict.fromkeys(node.all_input_nodes)
        # The first gives its shape, or is written.
        if node.target in (*FILLED, aten.copy_.default):
            inputs = dict.fromkeys(x for x in node.args[1:] if isinstance(x, Node))
        return [self._source(x) for x in inputs if self._source(x) in self._depths]

    def _add(self, node: Node) -> None:
        """Write the line of an operation."""
        operand: Any = next(iter(args_of(node)), None)
        extent = self._extent(node)
        is_view = node.target in SAME_ENTRIES and operand in self._names
        if is_view and extent == self._groups.extents.get(operand):
            self._names[node] = self._names[operand]
            self._sources[node] = self._source(operand)
            return
        self._inputs[node] = self._read_by(node)
        depths = [self._depths[x] for x in self._inputs[node]]
        self._depths[node] = max(depths, default=0)
        name = self._names[node] = f"t{len(self._lines)}"
        if self._is_reduction(node):
            self._add_reduction(node)
        else:
            self._lines[node] = self._assigned(name, node, self._expression(node))
        if _torch.writes(node.target):
            row = self._leaves.index(operand)
            self._stores.append(Write(row, operand, node))
            # Later operations read the new value.
            self._names[operand], self._sources[operand] = name, node

    def _is_reduction(self, node: Node) -> bool:
        """Whether an operation reduces more than one value to one."""
        if node.target not in REDUCTIONS:
            return False
        operand: Any = node.args[0]
        return self._extent(node) != self._extent(operand)

    def _add_reduction(self, node: Node) -> None:
        is_norm = node.target is aten.linalg_vector_norm.default
        if is_norm and node.args[1:2] not in ((), (2,)):
            raise UnsuitableProgramError("kernels have the Euclidean norm only")
        operand: Any = node.args[0]
        if self._is_in_stage(self._extent(node)):
            self._of_rows.append(node)
        elif self._is_in_stage(self._extent(operand)):
            self._partial.append(node)
            self._depths[node] += 1
        else:
            self._depths[node] = max(self._depths[node], 1)
        self._terms[node] = self._operand(operand, wide(dtype_of(node)))
        self._lines[node] = self._of_total(node)

    def _operand_of(self, reduction: Node) -> Node:
        [operand] = self._inputs[reduction]
        return operand

    def _of_total(self, node: Node) -> str:
        """Return the line of a reduction, given the total."""
        name = self._names[node]
        total = f"{name}_total"
        if node.target in MEANS:
            total = f"{total} / ({self._count(node)})"
        if node.target is aten.linalg_vector_norm.default:
            # Totals of entries are float64.
            is_of_entries = node in self._partial or node in self._of_rows
            dtype = torch.float64 if is_of_entries else wide(dtype_of(node))
            total = self._root(total, dtype)
        return self._assigned(name, node, self._converted(f"({total})", dtype_of(node)))

    def _reduced(self, node: Node) -> Extent:
        """Return the groups over which a reduction goes."""
        operand = self._extent(self._operand_of(node))
        return tuple(i for i in operand if i not in self._extent(node))

    def _count(self, node: Node) -> str:
        return " * ".join(f"n{i}" for i in self._reduced(node))

    # What kernels need.

    def _is_kept(self, node: Node) -> bool:
        """Whether a value is computed between stages."""
        return self._depths[node] > 0 and not self._is_in_stage(self._extent(node))

    def _needed(self, outputs: Iterable[Node], own: Sequence[Node] = ()) -> Needed:
        """Return what a kernel needs for some values; `own` are those of a sweep, which it computes itself."""
        waiting = list(outputs)
        reached = set(waiting)
        while waiting:
            node = waiting.pop()
            if node in self._leaves:
                continue
            if self._is_kept(node) and node not in own:
                if node not in self._kept:
                    self._kept.append(node)
                continue
            # The operand of a reduction is read by a loop of its own, unless that is one over the same row.
            is_read = node in self._of_rows or not self._is_reduction(node)
            for item in self._inputs[node] if is_read else ():
                if item not in reached:
                    reached.add(item)
                    waiting.append(item)
        order = [node for node in self._lines if node in reached]
        kept = [node for node in order if self._is_kept(node) and node not in own]
        computed = [node for node in order if node not in kept]
        return Needed([x for x in self._leaves if x in reached], kept, computed)

    def _with_operands(self, sweep: list[Node], needed: Needed) -> Needed:
        """Add the operands of reductions."""
        read, kept = [*needed.read], [*needed.kept]
        for node in sweep:
            if self._is_reduction(node) and node not in self._partial:
                operand = self._operand_of(node)
                into = read if operand in self._leaves else kept
                if operand not in into and operand not in sweep:
                    into.append(operand)
        return Needed(read, kept, needed.computed)

    def _needed_in(self, sweep: list[Node]) -> Needed:
        """Return what a sweep needs, operands of its reductions included."""
        return self._with_operands(sweep, self._needed(sweep, sweep))

    def _combine(self, i: int, others: Sequence[Write]) -> Combine:
        """Return the kernel after a stage, which computes what depends on its reductions."""
        outputs = [x for x in self._kept if self._depths[x] == i + 1]
        outputs += [x.node for x in others if self._depths[x.node] == i + 1]
        nodes = self._computed_by(outputs, i + 1)
        levels: dict[Node, int] = {}
        for node in nodes:
            levels[node] = self._level(node, levels)
        sweeps: dict[Any, list[Node]] = {}
        for node in sorted(nodes, key=lambda x: (levels[x], self._extent(x))):
            sweeps.setdefault((levels[node], self._extent(node)), []).append(node)
        order = list(self._lines)
        combine = Combine(f"combine{i}")
        for sweep in sweeps.values():
            combine.sweeps.append(sorted(sweep, key=order.index))
        combine.by_block = self._is_by_block(nodes)
        for sweep in combine.sweeps:
            self._needed(sweep, sweep)  # what earlier kernels keep for it
        return combine

    def _computed_by(self, outputs: list[Node], depth: int) -> list[Node]:
        """Return the values of a depth that some need, in order, and operands of their reductions."""
        waiting, reached = list(outputs), set(outputs)
        while waiting:
            node = waiting.pop()
            is_reduction = self._is_reduction(node)
            if node in self._partial:
                continue
            for item in self._inputs[node]:
                is_computed = self._is_kept(item) and self._depths[item] == depth
                is_operand = is_reduction and item not in self._leaves
                if is_operand and not self._depths[item]:
                    raise UnsuitableProgramError("a sum of rows that no entry changes")
                if is_computed and item not in reached:
                    reached.add(item)
                    waiting.append(item)
        return [node for node in self._lines if node in reached]

    def _level(self, node: Node, levels: dict[Node, int]) -> int:
        """Return the number of the sweep that computes a value, and keep what earlier sweeps compute for it."""
        level, inputs = 0, [x for x in self._inputs[node] if x in levels]
        if node in self._partial:
            return 0
        for item in inputs:
            is_other = self._is_reduction(node) or self._extent(item) != self._extent(
                node
            )
            level = max(level, levels[item] + is_other)
        for item in inputs:
            is_earlier = levels[item] < level or self._is_reduction(node)
            if is_earlier and item not in self._kept:
                self._kept.append(item)
        return level

    def _is_by_block(self, nodes: list[Node]) -> bool:
        """Whether values of single indices of the first group do not meet others."""
        has_first = {node: 0 in self._extent(node) for node in nodes}
        for node in nodes:
            if node in self._partial:
                continue
            for item in self._inputs[node]:
                if item in has_first and has_first[item] != has_first[node]:
                    return False
        return any(has_first.values())

    def _checked(self, needed: Needed, extent: Extent) -> Needed:
        """Return what a sweep over an extent needs.

        Raises:
            UnsuitableProgramError: If that are values of which there are more.
        """
        for node in (*needed.read, *needed.kept, *needed.computed):
            if not set(self._extent(node)).issubset(extent):
                raise UnsuitableProgramError(UNRELATED)
        return needed

    def _passes(self, nodes: Iterable[Node]) -> list[list[Node]]:
        """Return the values that are computed after each pass over a row, the first ones before all of these."""
        pass_of: dict[Node, int] = {}
        for node in nodes:
            before = (pass_of.get(x, 0) for x in self._inputs.get(node, ()))
            pass_of[node] = max(before, default=0) + (node in self._of_rows)
        count = 1 + max(pass_of.values(), default=0)
        return [[x for x in pass_of if pass_of[x] == i] for i in range(count)]

    @property
    def _counted(self) -> Extent:
        """The groups whose indices chunks consist of: all but the last one, or those up to the lanes of tiles."""
        tile = self._groups.tile
        return self._full[:-1] if tile is None else self._full[: tile.lane + 1]

    @property
    def _inner(self) -> str:
        """The code of how many of these there are for each index of the first group."""
        return " * ".join([f"n{i}" for i in self._counted[1:]] or ["1"])

    # Where values are.

    def _memory_rows(
        self, read: Iterable[Node], stored: Sequence[Write]
    ) -> dict[int, Node]:
        """Return the rows of the table with what is read and stored, and what the tensors there are like."""
        rows = {self._leaves.index(leaf): leaf for leaf in read}
        rows.update({store.row: store.like for store in stored})
        return dict(sorted(rows.items()))

    def _layout_row(self, node: Node) -> int:
        """Return the row of the layout with the offset of a value that is kept."""
        return len(self._full) + 2 + self._kept.index(node)

    def _partial_row(self, node: Node) -> int:
        """Return the row of the layout with the offset of the partial values of a reduction."""
        return len(self._full) + 2 + len(self._kept) + self._partial.index(node)

    def _width(self, node: Node) -> str:
        """Return the number of partial values of a chunk."""
        extent = self._extent(node)
        return " * ".join([f"n{i}" if i else "per" for i in extent] or ["1"])


def kind_of(node: Node) -> str:
    """Return how a reduction combines two values."""
    return REDUCTIONS[node.target]


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32
