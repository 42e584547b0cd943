"""Write kernels of rows, columns, channels, ... in C++: loops over the rows of a chunk and the entries of each."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from gradtx.compiler.write_cpp import (
    IDENTITIES,
    CppExpressions,
    Total,
    by_chunk,
    by_leaf,
    dtype_of,
    kind_of,
    prefetched,
    program_of,
    torch,
)
from gradtx.compiler.write_grids import Combine, Extent, GridWriter, Needed
from gradtx.compiler.write_kernels import Store


class CppGridWriter(CppExpressions, GridWriter):
    """Write C++ functions."""

    def _joined(self, functions: Sequence[str]) -> str:
        return program_of(functions, self._kernels)

    # Indices.

    def _index(self, extent: Extent, first: str = "c0") -> str:
        """Return the code of the index of a value, given that of its index in the first group."""
        code = "0"
        for i in extent:
            index = first if i == 0 else f"c{i}"
            code = index if code == "0" else f"({code}) * n{i} + {index}"
        return code

    def _width(self, node: Node) -> str:
        """Return the number of partial values of a chunk."""
        extent = self._extent(node)
        return " * ".join([f"n{i}" if i else "per" for i in extent] or ["1"])

    def _head(self) -> list[str]:
        """Return the lines that load the form of a leaf, and scalars."""
        lines = []
        names = [*(f"n{i}" for i in self._full), "per", "parts"]
        for row, name in enumerate(names):
            lines.append(f"const int64_t {name} = a.blocks[{row} * a.n_leaves + leaf];")
        inner = " * ".join([f"n{i}" for i in self._full[1:-1]] or ["1"])
        lines.append(
            f"const int64_t inner = {inner};  // rows of an index of the first group"
        )
        lines.append("const int64_t first = a.leaf_chunks[leaf];")
        return [*lines, *self._words()]

    def _memory(self, needed: Needed, stored: Sequence[Store]) -> list[str]:
        """Return the lines that load the addresses of arguments and of values that are kept."""
        rows = {self._leaves.index(leaf): leaf for leaf in needed.read}
        rows.update({store.row: store.like for store in stored})
        lines = self._pointers(dict(sorted(rows.items())))
        return [*lines, *map(self._kept_memory, needed.kept)]

    def _kept_memory(self, node: Node) -> str:
        """Return the line that finds a value that is kept."""
        return _address(
            f"k{self._kept.index(node)}", self._layout_row(node), _kept_type(node)
        )

    def _loads(self, needed: Needed) -> dict[Node, str]:
        """Return the line of each value that a kernel loads or computes."""
        lines = {}
        for leaf in needed.read:
            index = self._index(self._extent(leaf))
            lines[leaf] = self._loaded(self._leaves.index(leaf), leaf, index)
        for node in needed.kept:
            code = f"k{self._kept.index(node)}[{self._index(self._extent(node))}]"
            code = self._converted(code, dtype_of(node))
            lines[node] = self._assigned(self._names[node], node, code)
        for node in needed.computed:
            lines[node] = self._lines[node]
        return lines

    # Stages.

    def _stage(self, name: str, stored: Sequence[Store], stage: Sequence[Node]) -> str:
        outputs = [store.node for store in stored]
        needed = self._needed([*outputs, *map(self._operand_of, stage)])
        lines = [
            "const int64_t leaf = a.chunk_leaf[pid], start = a.chunk_start[pid];",
            *self._head(),
            f"const int64_t length = n{self._full[-1]}, rows = n0 * inner;",
            "const bool is_last = pid + 1 == a.leaf_chunks[leaf + 1];",
            "const int64_t stop = is_last ? rows : a.chunk_start[pid + 1];",
            *self._memory(needed, stored),
            *self._partial_memory(stage),
        ]
        last = self._full[-1]
        code = self._loads(needed)
        of_leaf = [x for x in code if not self._extent(x)]
        in_loop = [x for x in code if last in self._extent(x)]
        of_row = [x for x in code if x not in of_leaf and x not in in_loop]
        lines += [code[x] for x in of_leaf]
        lines.append("for (int64_t row = start; row < stop; row++) {")
        lines += self._coordinates()
        lines += [code[x] for x in of_row]
        lines += self._row([code[x] for x in in_loop], needed.read, stored, stage)
        lines.append("}")
        return by_chunk(name, lines)

    def _coordinates(self) -> list[str]:
        """Return the lines that find the indices of a row in all groups but the last."""
        lines, rest = [], "row"
        for i in reversed(self._full[1:-1]):
            lines.append(f"const int64_t c{i} = {rest} % n{i}, r{i} = {rest} / n{i};")
            rest = f"r{i}"
        return [*lines, f"const int64_t c0 = {rest}, own = c0 - start / inner;"]

    def _partial_memory(self, stage: Sequence[Node]) -> list[str]:
        """Return the lines that find the partial values of a chunk and set them to those of no entries."""
        lines = []
        for node in stage:
            j, width = self._partial.index(node), self._width(node)
            lines.append(self._all_partial(node))
            kind = self._total(node).type
            lines.append(f"{kind}* const y{j} = all{j} + (pid - first) * ({width});")
            identity = IDENTITIES[kind_of(node)]
            lines.append(f"for (int64_t k = 0; k < {width}; k++) y{j}[k] = {identity};")
        return lines

    def _all_partial(self, node: Node) -> str:
        """Return the line that finds the partial values of all chunks."""
        name = f"all{self._partial.index(node)}"
        return _address(name, self._partial_row(node), self._total(node).type)

    def _total(self, node: Node) -> Total:
        name = f"y{self._partial.index(node)}"
        return self._total_of(name, node, self._terms[node])

    def _row(
        self,
        body: list[str],
        read: Sequence[Node],
        stored: Sequence[Store],
        stage: Sequence[Node],
    ) -> list[str]:
        """Return the loop over the entries of a row."""
        last, lines, after = self._full[-1], [], []
        totals = [node for node in stage if last not in self._extent(node)]
        clauses = ""
        for node in stage:
            j = self._partial.index(node)
            target = f"y{j}[{self._index(self._extent(node), 'own')}]"
            total = self._total(node)
            if node in totals:
                lines.append(total.start())
                clauses += total.clause()
                body = [*body, total.update()]
                after.append(f"{target} = {_both(total, target, total.end())};")
            else:
                body = [*body, f"{target} = {_both(total, target, total.value)};"]
        body = [*body, *(self._stored(x, self._index(self._full)) for x in stored)]
        lines = [*self._prefetched(read), *lines]
        loop = f"for (int64_t c{last} = 0; c{last} < length; c{last}++) {{"
        return [*lines, f"#pragma omp simd{clauses}", loop, *body, "}", *after]

    def _prefetched(self, read: Sequence[Node]) -> list[str]:
        """Return a loop that asks for what comes after a row if entries of one argument are read."""
        entries = [leaf for leaf in read if self._extent(leaf) == self._full]
        if len(entries) != 1:
            return []
        index = self._index(self._full[:-1])
        pointer = f"p{self._leaves.index(entries[0])} + ({index}) * length"
        return [prefetched(entries[0], pointer, "0", "length")]

    # Between stages.

    def _combined(self, combine: Combine, results: Sequence[Node] = ()) -> str:
        lines = self._head()
        if combine.by_block:
            lines = [
                "const int64_t leaf = a.chunk_leaf[pid], start = a.chunk_start[pid];",
                *lines,
                "const bool is_last = pid + 1 == a.leaf_chunks[leaf + 1];",
                "const int64_t stop = is_last ? n0 * inner : a.chunk_start[pid + 1];",
                "const int64_t low = (start + inner - 1) / inner;",
                "const int64_t high = (stop + inner - 1) / inner;",
            ]
        else:
            lines.append("const int64_t low = 0, high = n0;")
        for sweep in combine.sweeps:
            lines += self._sweep(sweep, combine)
        if results:
            needed = self._needed(results)
            lines += [*self._memory(needed, ()), *self._loads(needed).values()]
        for row, result in enumerate(results):
            name = self._names[self._source(result)]
            value = self._converted(name, torch.float64)
            lines.append(f"a.results[{row} * a.n_leaves + leaf] = {value};")
        if combine.by_block:
            return by_chunk(combine.name, lines)
        return by_leaf(combine.name, lines)

    def _sweep(self, sweep: list[Node], combine: Combine) -> list[str]:
        """Return the loop over the indices of an extent."""
        extent = self._extent(sweep[0])
        is_kept_before = combine.name == "finish"
        needed = self._needed(sweep, () if is_kept_before else sweep)
        stored = [x for x in combine.stores if x.node in sweep]
        lines = ["{", *self._memory(self._with_operands(sweep, needed), stored)]
        if combine.by_block and 0 not in extent:
            lines[0] = "if (pid == first) {"
        code = self._loads(needed)
        body: list[str] = []
        for node in code:
            if not is_kept_before and node in sweep and self._is_reduction(node):
                body += self._reduction(node, lines)
            body.append(code[node])
        for node in sweep:
            if node in self._kept and not is_kept_before:
                lines.append(self._kept_memory(node))
                target = f"k{self._kept.index(node)}[{self._index(extent)}]"
                value = f"({_kept_type(node)}){self._names[node]}"
                body.append(f"{target} = {value};")
        body += [self._stored(x, self._index(extent)) for x in stored]
        for i in extent:
            bounds = ("low", "high") if i == 0 else ("0", f"n{i}")
            lines.append(
                f"for (int64_t c{i} = {bounds[0]}; c{i} < {bounds[1]}; c{i}++) {{"
            )
        return [*lines, *body, *["}"] * len(extent), "}"]

    def _reduction(self, node: Node, outside: list[str]) -> list[str]:
        """Return the lines that reduce partial values, or values that are kept; some come before the loop."""
        name = self._names[node]
        if node not in self._partial:
            return self._small_reduction(node)
        j, extent = self._partial.index(node), self._extent(node)
        outside.append(self._all_partial(node))
        total = Total(name, kind_of(node), f"{name}_part")
        of_chunk = f"all{j}[chunk * ({self._width(node)})"
        if 0 in extent:
            head = [f"const int64_t at{j} = c0 / per, own{j} = c0 - at{j} * per;"]
            chunks = f"int64_t chunk = at{j} * parts; chunk < (at{j} + 1) * parts"
            index = self._index(extent, f"own{j}")
        else:
            head = []
            chunks = "int64_t chunk = 0; chunk < a.leaf_chunks[leaf + 1] - first"
            index = self._index(extent)
        return [
            *head,
            total.start(),
            f"for ({chunks}; chunk++) {{",
            f"const double {name}_part = {of_chunk} + {index}];",
            total.update(),
            "}",
            f"const double {name}_total = {total.end()};",
        ]

    def _small_reduction(self, node: Node) -> list[str]:
        operand, name = self._operand_of(node), self._names[node]
        needed = Needed([], [operand], [])
        if operand in self._leaves:
            needed = Needed([operand], [], [])
        total = self._total_of(name, node, self._terms[node])
        loops = [
            f"for (int64_t c{i} = 0; c{i} < n{i}; c{i}++) {{"
            for i in self._reduced(node)
        ]
        return [
            total.start(),
            *loops,
            *self._loads(needed).values(),
            total.update(),
            *["}"] * len(loops),
            f"const double {name}_total = {total.end()};",
        ]


def _both(total: Total, x: str, y: str) -> str:
    """Return the code that reduces two values."""
    if total.kind == "sum":
        return f"{x} + ({y})"
    return f"{total.kind}imum({x}, ({total.type})({y}))"


def _address(name: str, row: int, kind: str) -> str:
    """Return the line that finds values, each of which has 8 bytes in memory at least."""
    memory = f"({kind}*)(a.sums + a.blocks[{row} * a.n_leaves + leaf])"
    return f"{kind}* const {name} = {memory};"


def _kept_type(node: Node) -> str:
    """Return the type in which a value is kept; loops that convert others are slower."""
    return "float" if dtype_of(node) == torch.float32 else "double"
