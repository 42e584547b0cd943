"""Write programs with values of rows, columns, channels, ... as kernels: what their languages share.

The axes of a leaf form groups; see `Groups`. A value has one number for each index of some of them, its extent. Kernels
alternate: a *stage* goes through the entries of each chunk and reduces them to partial values of its own; the kernel
`combine` that follows adds these up in a fixed order, and computes from them what depends on less than all groups,
in *sweeps* over the indices of an extent. Later kernels load what it keeps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.compiler.axes import FILLED, UNRELATED, Groups, axes_of
from gradtx.compiler.graph import dtype_of, is_list, is_scalar
from gradtx.compiler.lower import Program
from gradtx.compiler.simplify import SAME_ENTRIES
from gradtx.compiler.write_expressions import (
    MEANS,
    REDUCTIONS,
    UnsuitableProgramError,
)
from gradtx.compiler.write_kernels import KernelText, PhaseWriter, Store, aten, wide

# The indices of the groups of which a value has a number for each index.
Extent: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """What the kernels of a phase need to know of the shape of a leaf.

    Attributes:
        groups: The groups of its axes.
        kept: The extents of values that kernels keep for later ones.
        partial: Those of the reductions of entries.
        of_leaves: The names of kernels that have an instance for each leaf; others have one for each chunk.
    """

    groups: Groups
    kept: list[Extent]
    partial: list[Extent]
    of_leaves: list[str]


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
    """A kernel between two stages.

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
    stores: list[Store] = field(default_factory=list)


class GridWriter(PhaseWriter):
    """Write the kernels of a program.

    Args:
        program: The program.
        leaf: The index of an argument with the shape of the leaf.

    Raises:
        UnsuitableProgramError: If a value depends on anything but axes of the leaf.
    """

    def __init__(self, program: Program, leaf: int):
        super().__init__(program)
        shape = program.leaves[leaf].meta["val"].shape
        axes = axes_of(program, program.leaves[leaf])
        self._groups = Groups.of(axes, shape, program.results)
        self._full: Extent = tuple(range(len(self._groups.axes)))
        if len(self._full) < 2:
            raise UnsuitableProgramError(UNRELATED)
        # Reductions of entries, and the code of the operands of all reductions.
        self._partial: list[Node] = []
        self._terms: dict[Node, str] = {}
        self._kept: list[Node] = []
        self._of_leaves: list[str] = []

    def written(self, columns: int) -> KernelText:
        """Return the kernels; see `KernelWriter.written`."""
        for node in self._program.graph.nodes:
            if node.op == "placeholder" and node in self._leaves:
                self._names[node] = f"x{self._leaves.index(node)}"
                self._depths[node] = 0
            elif node.op == "call_function" and not is_scalar(node):
                if not is_list(node):
                    raise UnsuitableProgramError("leaves share a value with entries")
                self._add(node)
        results = self._program.results
        for i, result in enumerate(results[:columns], len(self._leaves)):
            if is_list(result):
                self._stores.append(Store(i, result, self._source(result)))
        by_leaf = [result for result in results[columns:] if is_list(result)]
        if any(map(self._extent, by_leaf)):
            raise UnsuitableProgramError("a result has an entry per element")
        functions = self._functions(by_leaf)
        kept = list(map(self._extent, self._kept))
        partial = list(map(self._extent, self._partial))
        return KernelText(
            self._joined(functions),
            self._kernels,
            self._scalars,
            [],
            self._result_rows(columns),
            1,
            Grid(self._groups, kept, partial, self._of_leaves),
        )

    def _functions(self, results: list[Node]) -> list[str]:
        """Return all kernels, in order; the first pass finds out what each needs of earlier ones."""
        depth = max(self._depths.values())
        entries = [x for x in self._stores if self._extent(x.like) == self._full]
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
        late = [x for x in others if not self._is_written(x, combines, read_later)]
        self._needed([store.node for store in late])
        functions: list[str] = []
        for i, combine in enumerate(combines):
            if stages[i]:
                self._note(f"stage{i}", self._needed(outputs[i]).read, ())
                functions.append(self._stage(f"stage{i}", (), stages[i]))
            self._note(combine.name, self._read_in(combine), combine.stores)
            if not combine.by_block:
                self._of_leaves.append(combine.name)
            functions.append(self._combined(combine))
        if entries:
            self._note("last_stage", self._needed(outputs[-1]).read, entries)
            functions.append(self._stage("last_stage", entries, ()))
        if late or results:
            finish = Combine("finish", stores=late)
            for store in late:
                finish.sweeps.append([store.node])
            read = self._needed([*results, *(store.node for store in late)]).read
            self._note("finish", read, late)
            self._of_leaves.append("finish")
            functions.append(self._combined(finish, results))
        return functions

    def _is_written(
        self,
        store: Store,
        combines: list[Combine],
        read: list[set[Node]],
    ) -> bool:
        """Let the kernel that computes the new value of a slot write it, unless another one reads the old value."""
        depth = self._depths[store.node]
        if not depth:
            return False
        later = [self._read_in(combine) for combine in combines[depth:]]
        own = combines[depth - 1]
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
    def _stage(self, name: str, stored: Sequence[Store], stage: Sequence[Node]) -> str:
        """Return a kernel that writes entries, or reduces those of each chunk."""

    @abstractmethod
    def _combined(self, combine: Combine, results: Sequence[Node] = ()) -> str:
        """Return a kernel between stages, or after the last one."""

    @abstractmethod
    def _joined(self, functions: Sequence[str]) -> str:
        """Return the whole text."""

    def _position(self, node: Node) -> str:
        raise UnsuitableProgramError("positions within a row")

    # Operations.

    def _extent(self, node: Node) -> Extent:
        if dtype_of(node) not in self.types:
            raise UnsuitableProgramError(f"kernels have no {dtype_of(node)}")
        return self._groups.extents[node]

    def _source(self, node: Node) -> Node:
        return self._sources.get(node, node)

    def _inputs(self, node: Node) -> list[Node]:
        """Return the values that an operation reads."""
        inputs = dict.fromkeys(node.all_input_nodes)
        # The first gives its shape, or is written.
        if node.target in (*FILLED, aten.copy_.default):
            inputs = dict.fromkeys(x for x in node.args[1:] if isinstance(x, Node))
        return [self._source(x) for x in inputs if self._source(x) in self._depths]

    def _add(self, node: Node) -> None:
        """Write the line of an operation."""
        operand: Any = node.args[0] if node.args else None
        is_view = node.target in SAME_ENTRIES and operand in self._names
        if is_view and self._extent(node) == self._extent(operand):
            self._names[node] = self._names[operand]
            self._sources[node] = self._source(operand)
            return
        if any(store.like in node.all_input_nodes for store in self._stores):
            raise UnsuitableProgramError("a slot is read after it has been written")
        if _torch.writes(node.target):
            row = self._leaves.index(operand)
            self._stores.append(Store(row, operand, node))
        self._depths[node] = max(
            (self._depths[x] for x in self._inputs(node)), default=0
        )
        name = self._names[node] = f"t{len(self._lines)}"
        if not self._is_reduction(node):
            self._lines[node] = self._assigned(name, node, self._expression(node))
            return
        is_norm = node.target is aten.linalg_vector_norm.default
        if is_norm and node.args[1:2] not in ((), (2,)):
            raise UnsuitableProgramError("kernels have the Euclidean norm only")
        source = self._operand_of(node)
        if self._extent(source) == self._full:
            self._partial.append(node)
            self._depths[node] += 1
        else:
            self._depths[node] = max(self._depths[node], 1)
        self._terms[node] = self._operand(source, _wide(node))
        self._lines[node] = self._of_total(node)

    def _operand_of(self, reduction: Node) -> Node:
        operand: Any = reduction.args[0]
        return self._source(operand)

    def _is_reduction(self, node: Node) -> bool:
        """Whether an operation reduces more than one value to one."""
        if node.target not in REDUCTIONS:
            return False
        return self._extent(node) != self._extent(self._operand_of(node))

    def _of_total(self, node: Node) -> str:
        """Return the line of a reduction, given the total."""
        name = self._names[node]
        total = f"{name}_total"
        if node.target in MEANS:
            total = f"{total} / ({self._count(node)})"
        if node.target is aten.linalg_vector_norm.default:
            total = self._root(total, _wide(node))
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
        return self._depths[node] > 0 and self._extent(node) != self._full

    def _needed(self, outputs: Iterable[Node], own: Sequence[Node] = ()) -> Needed:
        """Return what a kernel needs for some values; `own` are those of a sweep, which it computes itself."""
        waiting = [self._source(node) for node in outputs]
        reached = set(waiting)
        while waiting:
            node = waiting.pop()
            if node in self._leaves:
                continue
            if self._is_kept(node) and node not in own:
                if node not in self._kept:
                    self._kept.append(node)
                continue
            # The operand of a reduction is read by a loop of its own.
            inputs = [] if self._is_reduction(node) else self._inputs(node)
            for item in inputs:
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

    def _combine(self, i: int, others: Sequence[Store]) -> Combine:
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
            for item in self._inputs(node):
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
        level, inputs = 0, [x for x in self._inputs(node) if x in levels]
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
            for item in self._inputs(node):
                if item in has_first and has_first[item] != has_first[node]:
                    return False
        return any(has_first.values())

    # Where values are.

    def _layout_row(self, node: Node) -> int:
        """Return the row of the layout with the offset of a value that is kept, or of the partial values of one."""
        start = len(self._full) + 2
        if node in self._partial and node not in self._kept:
            return start + len(self._kept) + self._partial.index(node)
        return start + self._kept.index(node)

    def _partial_row(self, node: Node) -> int:
        return len(self._full) + 2 + len(self._kept) + self._partial.index(node)


def _wide(node: Node) -> torch.dtype:
    return wide(dtype_of(node))
