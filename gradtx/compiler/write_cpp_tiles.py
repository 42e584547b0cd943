"""Write the stages of leaves whose last groups of axes are short, such as the 3 x 3 entries of filters, as C++.

A tile has some indices of a longer group, the lanes, and for each of them the entries of all short groups. It is
transposed on the way in and out, so that vectors consist of lanes: a loop over three entries fills no vector.

Where each index of the first group is a small matrix, or a row, all of its sums are computed in its tile, in passes.
Other sums are partial values of the chunk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from torch.fx import Node

from gradtx.compiler.axes import MOST_LANES, Extent, Tile
from gradtx.compiler.graph import dtype_of
from gradtx.compiler.write_cpp_expressions import (
    IDENTITIES,
    LINE,
    CppExpressions,
    Total,
    both,
    kept_type,
    prefetched,
)
from gradtx.compiler.write_kernels import KernelWriter, Needed, Write


class Nest(NamedTuple):
    """Loops over the short groups of an extent and over lanes.

    Attributes:
        extent: The extent.
        reduced: The reductions whose operands it computes, and adds up by lane.
        stored: What it writes.
        held: The values that it computes once for the tile, since later loops read them.
    """

    extent: Extent
    reduced: Sequence[Node] = ()
    stored: Sequence[Write] = ()
    held: Sequence[Node] = ()


class CppTiles(CppExpressions, KernelWriter):
    """Write loops over the tiles of a chunk, and over the lanes of each."""

    has_tiles_of_columns = True
    # The values of smaller extents that the loops so far have computed for a tile.
    _held: set[Node]

    def _tiles(
        self, needed: Needed, stored: Sequence[Write], stage: Sequence[Node]
    ) -> list[str]:
        """Return the loop over the tiles of a chunk, which writes some values and reduces others."""
        self._held = set()
        moved = [x for x in (*needed.read, *needed.kept) if self._has_lanes(x)]
        nodes = [x for group in needed for x in group if self._extent(x)]
        leading = [x for x in nodes if not self._is_in_tile(x)]
        lines = [
            *self._bounds_of_tile(),
            *map(self._line, leading),
            *self._taken_in(moved),
        ]
        in_tile = [x for x in nodes if self._is_in_tile(x)]
        nests = self._nests(in_tile, stored, stage)
        for i, nest in enumerate(nests):
            lines += self._loops_of(nest, nests[i + 1 :])
        lines += self._from_first_lane(list(map(self._taken_out, stored)))
        for node in stage:
            lines += self._added_to_chunk(node, stage)
        return [*lines, "}"]

    def _nests(
        self, nodes: Sequence[Node], stored: Sequence[Write], stage: Sequence[Node]
    ) -> list[Nest]:
        """Return the loops of a tile, in order: passes over it, then what writes; larger extents read smaller slots."""
        nests: list[Nest] = []
        for of_pass in self._passes(nodes):
            totals = [node for node in of_pass if node in self._of_rows]
            for extent in dict.fromkeys(map(self._reduced_extent, totals)):
                own = [x for x in totals if self._reduced_extent(x) == extent]
                nests.append(Nest(extent, reduced=own))
            held = [x for x in of_pass if self._is_held(x, nodes)]
            for extent in sorted(set(map(self._extent, held)), key=len):
                own = [x for x in held if self._extent(x) == extent]
                nests.append(Nest(extent, held=own))
        extents = {*map(self._reduced_extent, stage)}
        extents.update(self._extent(x.like) for x in stored)
        for extent in sorted(extents, key=lambda x: (-len(x), x)):
            own = [x for x in stage if self._reduced_extent(x) == extent]
            written = [x for x in stored if self._extent(x.like) == extent]
            nests.append(Nest(extent, own, written))
        return nests

    @property
    def _tile(self) -> Tile:
        assert self._groups.tile is not None
        return self._groups.tile

    # What a value is, as seen by a tile.

    def _short(self, node: Node) -> Extent:
        """Return the short groups on which a value depends."""
        return self._after(self._extent(node))

    def _after(self, extent: Extent) -> Extent:
        return tuple(i for i in extent if i > self._tile.lane)

    def _is_in_tile(self, node: Node) -> bool:
        """Whether a tile has several values of it."""
        return any(i >= self._tile.lane for i in self._extent(node))

    def _has_lanes(self, node: Node) -> bool:
        return self._tile.lane in self._extent(node)

    def _reduced_extent(self, node: Node) -> Extent:
        """Return the extent of what is reduced."""
        return self._extent(self._operand_of(node))

    def _is_held(self, node: Node, nodes: Iterable[Node]) -> bool:
        """Whether a tile computes a value once, as loops over more groups read it; others compute it where they are."""
        extent = self._extent(node)
        is_loaded = node in self._reloaded or self._is_kept(node)
        if node not in self._lines or is_loaded or not self._is_in_stage(extent):
            return False
        users = [x for x in nodes if node in self._inputs.get(x, ())]
        return any(set(self._extent(x)) > set(extent) for x in users)

    # Indices.

    def _coordinates(self, groups: Extent, rest: str = "row") -> list[str]:
        """Return the lines that find the indices in the first group and in these, given that of all of them."""
        lines = []
        for i in reversed(groups):
            lines.append(f"const int64_t c{i} = {rest} % n{i}, r{i} = {rest} / n{i};")
            rest = f"r{i}"
        return [*lines, f"const int64_t c0 = {rest}, own = c0 - start / inner;"]

    def _bounds_of_tile(self) -> list[str]:
        """Return the start of the loop over tiles, which finds the indices of leading groups and the first lane."""
        lane, lanes = self._tile
        lines = ["for (int64_t row = start, count; row < stop; row += count) {"]
        if lane:
            lines.append(f"const int64_t at = row % n{lane}, r{lane} = row / n{lane};")
            lines += self._coordinates(self._counted[1:-1], f"r{lane}")
        else:
            lines.append("const int64_t at = row, own = row - start;")
        return [
            *lines,
            f"const int64_t left = n{lane} - at < stop - row ? n{lane} - at : stop - row;",
            f"count = left < {lanes} ? left : {lanes};",
        ]

    def _slot(self, extent: Extent) -> str:
        """Return the code of the index of a value in memory of a tile."""
        short = self._after(extent)
        return f"({self._index(short)}) * {self._tile.lanes} + l" if short else "l"

    def _short_entries(self, extent: Extent) -> str:
        """Return how many values of an extent each lane has."""
        return " * ".join([f"n{i}" for i in self._after(extent)] or ["1"])

    def _over_short(self, extent: Extent, body: Iterable[str]) -> list[str]:
        """Return loops over the short groups of an extent."""
        short = self._after(extent)
        loops = [f"for (int64_t c{i} = 0; c{i} < n{i}; c{i}++) {{" for i in short]
        return [*loops, *body, *["}"] * len(short)]

    def _over_lanes(
        self, body: Iterable[str], count: str = "", clause: str = ""
    ) -> list[str]:
        """Return a loop over lanes: of all tiles as many as of full ones, unless what follows them is in memory."""
        loop = f"for (int64_t l = 0; l < {count or self._tile.lanes}; l++) {{"
        index = f"const int64_t c{self._tile.lane} = at + l;"
        return [f"#pragma omp simd{clause}", loop, index, *body, "}"]

    # Memory of a tile.

    def _array(self, kind: str, name: str, extent: Extent) -> str:
        """Return the line that declares memory; where all begin at multiples of a page, caches keep fewer of them."""
        size = f"TILE + {LINE}" if self._after(extent) else self._tile.lanes
        return f"{kind} {name}[{size}];"

    def _address_of(self, node: Node) -> tuple[str, str]:
        """Return the pointer to an argument or a value that is kept, and the type in memory."""
        if node in self._leaves:
            return f"p{self._leaves.index(node)}", self._word(node)
        return f"k{self._kept.index(node)}", kept_type(node)

    def _taken_in(self, nodes: Sequence[Node]) -> list[str]:
        """Return the lines that transpose what a tile reads."""
        arrays, lines = [], []
        for node in nodes:
            pointer, kind = self._address_of(node)
            arrays.append(self._array(kind, f"{pointer}_tile", self._extent(node)))
            first, count = self._memory_of_tile(node, pointer)
            tile = f"{pointer}_tile, {self._tile.lanes}"
            lines.append(f"take_in({tile}, {first}, count, {count});")
            if node in self._leaves:
                lines.append(prefetched(node, first, "0", f"count * {count}"))
        return [*arrays, *self._from_first_lane(lines)]

    def _memory_of_tile(self, like: Node, pointer: str) -> tuple[str, str]:
        """Return the code of where the values of a tile begin in memory, and how many of them a lane has."""
        extent = self._extent(like)
        before = tuple(i for i in extent if i <= self._tile.lane)
        count = self._short_entries(extent)
        return f"{pointer} + ({self._index(before)}) * {count}", count

    def _from_first_lane(self, lines: Sequence[str]) -> list[str]:
        if not lines:
            return []
        return ["{", f"const int64_t c{self._tile.lane} = at;", *lines, "}"]

    # Loops over the values of a tile.

    def _line(self, node: Node) -> str:
        """Return the line that loads a value, or computes it."""
        extent = self._extent(node)
        if node in self._held:
            place = f"{self._names[node]}_tile[{self._slot(extent)}]"
        elif not (node in self._leaves or self._is_kept(node)):
            return self._lines[node]
        else:
            pointer, _ = self._address_of(node)
            place = f"{pointer}[{self._index(extent)}]"
            if self._has_lanes(node):
                place = f"{pointer}_tile[{self._slot(extent)}]"
        return self._load(node, place)

    def _load(self, node: Node, place: str) -> str:
        """Return the line that loads an argument, or a value that was computed before."""
        if node in self._leaves:
            return self._loaded(self._leaves.index(node), node, place)
        code = self._converted(place, dtype_of(node))
        return self._assigned(self._names[node], node, code)

    def _loops_of(self, nest: Nest, later: Sequence[Nest]) -> list[str]:
        """Return loops with the memory of the tile that they write, and hold what they compute for later ones."""
        computed = self._computed_from_tile(self._outputs(nest))
        shared = [x for x in computed if self._is_shared(x, computed, later)]
        nest = nest._replace(held=[*nest.held, *shared])
        arrays, ends = self._sums_by_lane(nest.reduced)
        for store in nest.stored:
            array, kind = f"p{store.row}_new", self._word(store.like)
            arrays.append(self._array(kind, array, nest.extent))
            ends.append(self._stored(store, f"{array}[{self._slot(nest.extent)}]"))
        for node in nest.held:
            name, kind = f"{self._names[node]}_tile", kept_type(node)
            arrays.append(self._array(kind, name, nest.extent))
            value = f"({kind}){self._names[node]}"
            ends.append(f"{name}[{self._slot(nest.extent)}] = {value};")
        of_lanes, others = self._computing(computed)
        self._held.update(nest.held)
        loop = self._over_lanes([*of_lanes, *ends])
        return [*arrays, *self._over_short(nest.extent, [*others, *loop])]

    def _computing(self, nodes: Iterable[Node]) -> tuple[list[str], list[str]]:
        """Return the lines of values that differ by lane, and of those that do not."""
        of_lanes, others = [], []
        for node in nodes:
            name = self._names[node]
            if node in self._of_rows and node not in self._held:
                total = f"{name}_lanes[{self._slot(self._extent(node))}]"
                of_lanes.append(f"const double {name}_total = {total};")
            if self._is_in_tile(node):
                lines = of_lanes if self._has_lanes(node) else others
                lines.append(self._line(node))
        return of_lanes, others

    def _outputs(self, nest: Nest) -> list[Node]:
        stored = [store.node for store in nest.stored]
        return [*map(self._operand_of, nest.reduced), *stored, *nest.held]

    def _is_shared(
        self, node: Node, computed: Collection[Node], later: Iterable[Nest]
    ) -> bool:
        """Whether later loops compute entries from this one, which is computed now, but not from what it depends on."""
        is_new = node in self._lines and node not in self._held
        if not is_new or self._extent(node) != self._full or not self._are_batches:
            return False
        for nest in later:
            outputs = self._outputs(nest)
            theirs = set(self._computed_from_tile(outputs)).difference(computed)
            read = (x for y in theirs for x in self._inputs.get(y, ()))
            if node in outputs or node in read:
                return True
        return False

    def _sums_by_lane(self, reduced: Sequence[Node]) -> tuple[list[str], list[str]]:
        """Return the lines that begin reductions for each lane, and those that reduce an entry."""
        before, ends = [], []
        for node in dict.fromkeys(self._by_lane(x, reduced) for x in reduced):
            total, extent = self._total_of_tile(node), self._extent(node)
            name = f"{total.name}_lanes"
            before.append(self._array(total.type, name, extent))
            size = f"{self._short_entries(extent)} * {self._tile.lanes}"
            loop = f"for (int64_t k = 0; k < {size}; k++)"
            before.append(f"{loop} {name}[k] = {IDENTITIES[total.kind]};")
            target = f"{name}[{self._slot(extent)}]"
            ends.append(f"{target} = {both(total, target, total.value)};")
        return before, ends

    def _by_lane(self, node: Node, among: Iterable[Node]) -> Node:
        """Return the reduction that has the values of each lane: this one, or one like it that keeps lanes apart."""

        def reduction_key(reduction: Node) -> tuple[Any, ...]:
            operand = self._operand_of(reduction)
            return reduction.target, operand, self._short(reduction)

        with_lanes = filter(self._has_lanes, among)
        return next(
            (x for x in with_lanes if reduction_key(x) == reduction_key(node)), node
        )

    def _total(self, node: Node, is_narrow: bool = False) -> Total:
        is_partial = node in self._partial
        name = f"y{self._partial.index(node)}" if is_partial else self._names[node]
        return self._total_of(name, node, self._terms[node], is_narrow)

    def _total_of_tile(self, node: Node) -> Total:
        """Return the total of a lane; one of few float32 entries is float32, of which vectors have more lanes."""
        return self._total(node, is_narrow=self._tile.lanes == MOST_LANES)

    def _computed_from_tile(self, outputs: Iterable[Node]) -> list[Node]:
        """Return what loops over a tile load and compute for some values, in order."""
        waiting = list(outputs)
        reached = set(waiting)
        while waiting:
            node = waiting.pop()
            is_loaded = (
                node in self._leaves or node in self._held or self._is_kept(node)
            )
            if is_loaded or node in self._of_rows:
                continue
            for item in self._inputs[node]:
                if item not in reached:
                    reached.add(item)
                    waiting.append(item)
        return [x for x in (*self._leaves, *self._lines) if x in reached]

    def _taken_out(self, store: Write) -> str:
        """Return the line that transposes what a tile writes."""
        first, count = self._memory_of_tile(store.like, f"p{store.row}")
        tile = f"p{store.row}_new, {self._tile.lanes}"
        return f"take_out({first}, {tile}, count, {count});"

    def _added_to_chunk(self, node: Node, stage: Sequence[Node]) -> list[str]:
        """Return the loops that add what a tile has reduced to the partial values of the chunk."""
        total, extent = self._total(node), self._extent(node)
        lanes = f"{self._total(self._by_lane(node, stage)).name}_lanes"
        of_lane = f"({total.type}){lanes}[{self._slot(extent)}]"
        first = "own + l" if self._tile.lane == 0 else "own"
        target = f"{total.name}[{self._index(extent, first)}]"
        if self._has_lanes(node):
            line = f"{target} = {both(total, target, of_lane)};"
            return self._over_short(extent, self._over_lanes([line], "count"))
        over_lanes = total._replace(value=of_lane)
        loop = self._over_lanes([over_lanes.update()], "count", over_lanes.clause())
        line = f"{target} = {both(total, target, over_lanes.end())};"
        return self._over_short(extent, [over_lanes.start(), *loop, line])
