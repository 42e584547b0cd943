"""Write kernels of rows, columns, channels, ... in Triton.

A tile has a lane for each result, and a step for each of the values that it reduces. Lanes and steps outside of a leaf
load the last value inside of it, which changes no result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.fx import Node

from gradtx.compiler.graph import dtype_of
from gradtx.compiler.write_grids import Combine, Extent, GridWriter, Needed
from gradtx.compiler.write_kernels import Store, aten, kind_of, wide
from gradtx.compiler.write_triton import (
    IDENTITIES,
    TritonExpressions,
    function_of,
    indented,
)

# The code of the first and the last index of a group, and one more.
Bounds = Mapping[int, tuple[str, str]]


class TritonGridWriter(TritonExpressions, GridWriter):
    """Write Triton functions."""

    def _joined(self, functions: Sequence[str]) -> str:
        return "\n\n".join(functions)

    def _function(self, name: str, lines: Sequence[str]) -> str:
        words = "".join(f", w{j}: tl.int64" for j in range(len(self._scalars)))
        fixed = "table, blocks, chunk_leaf, chunk_start, leaf_chunks, n_leaves"
        sizes = "BLOCK: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr"
        head = f"ON_DEVICE: tl.constexpr, words{words}, {fixed}, sums, results, {sizes}"
        return function_of(name, head, lines)

    # Indices.

    def _index(self, extent: Extent, first: str = "c0", nowhere: str = "0") -> str:
        """Return the code of the index of a value, given that of its index in the first group."""
        code = ""
        for i in extent:
            index = first if i == 0 else f"c{i}"
            code = f"({code}) * n{i} + {index}" if code else index
        return code or nowhere

    def _width(self, node: Node) -> str:
        """Return the number of partial values of a chunk."""
        extent = self._extent(node)
        return " * ".join([f"n{i}" if i else "per" for i in extent] or ["1"])

    def _head(self, leaf: str) -> list[str]:
        """Return the lines that load the form of a leaf, and scalars."""
        lines = [f"leaf = {leaf}"]
        for row, name in enumerate([*(f"n{i}" for i in self._full), "per", "parts"]):
            lines.append(f"{name} = tl.load(blocks + {row} * n_leaves + leaf)")
        inner = " * ".join([f"n{i}" for i in self._full[1:-1]] or ["1"])
        lines += [f"inner = {inner}", "chunks = tl.load(leaf_chunks + leaf)"]
        return [*lines, *self._words()]

    def _rows_of_chunk(self) -> list[str]:
        return [
            "start = tl.load(chunk_start + pid)",
            "stop = n0 * inner",
            "if pid + 1 < tl.load(leaf_chunks + leaf + 1):",
            "    stop = tl.load(chunk_start + pid + 1)",
        ]

    def _coordinates(self, extent: Extent, index: str, bounds: Bounds) -> list[str]:
        """Return the lines that divide an index within bounds into those of groups."""
        # Variables of loops have one shape each.
        rest = f"rest{''.join(map(str, extent))}"
        lines = [f"{rest} = {index}"]
        for i in reversed(extent):
            low, high = bounds.get(i, ("0", f"n{i}"))
            length = f"({high} - {low})"
            lines.append(f"c{i} = {low} + {rest} % {length}")
            lines.append(f"{rest} = {rest} // {length}")
        return lines[:-1] if extent else []

    def _size(self, extent: Extent, bounds: Bounds) -> str:
        lengths = []
        for i in extent:
            low, high = bounds.get(i, ("0", f"n{i}"))
            lengths.append(f"({high} - {low})")
        return " * ".join(lengths or ["1"])

    # Memory.

    def _memory(self, needed: Needed, stored: Sequence[Store]) -> list[str]:
        """Return the lines that load the addresses of arguments and of values that are kept."""
        rows = {self._leaves.index(leaf): leaf for leaf in needed.read}
        rows.update({store.row: store.like for store in stored})
        lines = self._pointers(dict(sorted(rows.items())))
        return [*lines, *map(self._kept_address, needed.kept)]

    def _kept_address(self, node: Node) -> str:
        return self._address(f"k{self._kept.index(node)}", self._layout_row(node))

    def _address(self, name: str, row: int) -> str:
        return f"{name} = sums + tl.load(blocks + {row} * n_leaves + leaf)"

    def _loads(self, needed: Needed, nowhere: str = "0") -> dict[Node, str]:
        """Return the line of each value that a kernel loads or computes."""
        lines = {}
        for leaf in needed.read:
            j, index = (
                self._leaves.index(leaf),
                self._index(self._extent(leaf), nowhere=nowhere),
            )
            is_flag = dtype_of(leaf) is torch.bool
            lines[leaf] = f"x{j} = tl.load(p{j} + {index}){' != 0' if is_flag else ''}"
        for node in needed.kept:
            index = self._index(self._extent(node), nowhere=nowhere)
            code = f"tl.load(k{self._kept.index(node)} + {index})"
            is_flag = dtype_of(node) is torch.bool
            code = f"{code} != 0" if is_flag else self._converted(code, dtype_of(node))
            lines[node] = f"{self._names[node]} = {code}"
        return {**lines, **{node: self._lines[node] for node in needed.computed}}

    def _stored(self, store: Store, index: str, mask: str) -> str:
        value = self._names[store.node]
        if dtype_of(store.like) is torch.bool:
            value = f"{value}.to(tl.int8)"
        return f"tl.store(p{store.row} + {index}, {value}, mask={mask})"

    # Stages.

    def _stage(self, name: str, stored: Sequence[Store], stage: Sequence[Node]) -> str:
        outputs = [*(x.node for x in stored), *map(self._operand_of, stage)]
        needed = self._needed(outputs)
        code = self._loads(needed)
        lines = [
            *self._head("tl.load(chunk_leaf + pid)"),
            *self._rows_of_chunk(),
            *self._memory(needed, stored),
            *(line for node, line in code.items() if not self._extent(node)),
            "low0 = start // inner",
            "high0 = (stop + inner - 1) // inner",
        ]
        if len(self._full) > 2:
            within = " * ".join([f"n{i}" for i in self._full[2:-1]] or ["1"])
            lines += [
                f"within = {within}",
                "low1 = (start - low0 * inner) // within",
                "high1 = tl.minimum((stop - low0 * inner + within - 1) // within, n1)",
            ]
        for node in stage:
            lines += self._partial_values(node)
        if stored:
            lines += self._entries(stored, needed)
        return self._function(name, lines)

    def _entries(self, stored: Sequence[Store], needed: Needed) -> list[str]:
        """Return the loop that writes the entries of a chunk."""
        index = self._index(self._full)
        code = self._loads(needed)
        body = [
            "own = at + tl.arange(0, BLOCK)",
            *self._coordinates(self._full, "tl.minimum(own, end - 1)", {}),
            *(line for node, line in code.items() if self._extent(node)),
            *(self._stored(store, index, "own < end") for store in stored),
            "at += BLOCK",
        ]
        length = f"n{self._full[-1]}"
        head = [f"at = start * {length}", f"end = stop * {length}", "while at < end:"]
        return [*head, *indented(body)]

    def _partial_values(self, node: Node) -> list[str]:
        """Return the loops that reduce the entries of a chunk."""
        extent, j = self._extent(node), self._partial.index(node)
        bounds = {0: ("low0", "high0")}
        if 1 in self._reduced(node) and len(self._full) > 2:
            bounds[1] = ("low1", "high1")
        row = self._index(self._full[:-1])
        needed = self._needed([self._operand_of(node)])
        code = self._loads(needed)
        body = [line for x, line in code.items() if self._extent(x)]
        is_inside = f"({row} >= start) & ({row} < stop)"
        loop = self._reduction(node, body, bounds, is_inside)
        index = self._index(extent, "(c0 - low0)", "lane * 0")
        store = f"tl.store(y{j} + {index}, {self._names[node]}_total.to(tl.float64), mask=lane < lanes)"
        return [
            self._address(f"y{j}", self._partial_row(node)),
            f"y{j} += (pid - chunks) * ({self._width(node)})",
            *self._lanes(extent, bounds, [*loop, store]),
        ]

    def _lanes(self, extent: Extent, bounds: Bounds, body: Iterable[str]) -> list[str]:
        """Return a loop with a lane for each index of an extent."""
        return [
            f"lanes = {self._size(extent, bounds)}",
            "base = lanes * 0",
            "while base < lanes:",
            *indented(["lane = base + tl.arange(0, LANES)[:, None]"]),
            *indented(self._coordinates(extent, "tl.minimum(lane, lanes - 1)", bounds)),
            *indented(list(body)),
            "    base += LANES",
        ]

    def _reduction(
        self, node: Node, body: Sequence[str], bounds: Bounds, is_inside: str = ""
    ) -> list[str]:
        """Return a loop over what each lane reduces, in steps."""
        reduced, name, kind = self._reduced(node), self._names[node], kind_of(node)
        value = self._terms[node]
        if node.target is aten.linalg_vector_norm.default:
            value = f"{value} * {value}"
        mask = "(step < steps)" + (f" & {is_inside}" if is_inside else "")
        value = f"tl.where({mask}, {value}, {IDENTITIES[kind]})"
        lines = [
            "step = at + tl.arange(0, STEPS)[None, :]",
            *self._coordinates(reduced, "tl.minimum(step, steps - 1)", bounds),
            *body,
            f"{name}_all = {self._reduced_pair(kind, f'{name}_all', value)}",
            "at += STEPS",
        ]
        return [
            self._begun(node),
            f"steps = {self._size(reduced, bounds)}",
            "at = steps * 0",
            "while at < steps:",
            *indented(lines),
            f"{name}_total = {_of_lanes(kind, f'{name}_all')}",
        ]

    def _begun(self, node: Node, dtype: torch.dtype | None = None) -> str:
        kind = self.types[dtype or wide(dtype_of(node))]
        identity = IDENTITIES[kind_of(node)]
        return f"{self._names[node]}_all = tl.full((LANES, STEPS), {identity}, {kind})"

    # Between stages.

    def _combined(self, combine: Combine, results: Sequence[Node] = ()) -> str:
        lines = self._head("tl.load(chunk_leaf + pid)" if combine.by_block else "pid")
        if combine.by_block:
            lines += [
                *self._rows_of_chunk(),
                "low = (start + inner - 1) // inner",
                "high = (stop + inner - 1) // inner",
            ]
        for i, sweep in enumerate(combine.sweeps):
            # Other threads have stored what this sweep loads.
            lines += ["tl.debug_barrier()"] * (i > 0)
            lines += self._sweep(sweep, combine)
        if results:
            needed = self._needed(results)
            lines += [*self._memory(needed, ()), *self._loads(needed).values()]
        for row, result in enumerate(results):
            name = self._names[self._source(result)]
            address = f"results + {row} * n_leaves + leaf"
            lines.append(f"tl.store({address}, {name}.to(tl.float64))")
        return self._function(combine.name, lines)

    def _sweep(self, sweep: list[Node], combine: Combine) -> list[str]:
        """Return the loop over the indices of an extent."""
        extent, is_late = self._extent(sweep[0]), combine.name == "finish"
        needed = self._needed(sweep, () if is_late else sweep)
        stored = [x for x in combine.stores if x.node in sweep]
        head = self._memory(self._with_operands(sweep, needed), stored)
        body: list[str] = []
        for node, line in self._loads(
            needed, "lane * 0" if not extent else "0"
        ).items():
            if not is_late and node in sweep and self._is_reduction(node):
                body += self._reduced_between(node, head)
            body.append(line)
        index = self._index(extent, nowhere="lane * 0")
        for node in sweep:
            if node in self._kept and not is_late:
                head.append(self._kept_address(node))
                value = f"{self._names[node]}.to(tl.float64)"
                address = f"k{self._kept.index(node)} + {index}"
                body.append(f"tl.store({address}, {value}, mask=lane < lanes)")
        # All threads have read the old values.
        body += ["tl.debug_barrier()"] * bool(stored)
        body += [self._stored(store, index, "lane < lanes") for store in stored]
        bounds = {0: ("low", "high")} if combine.by_block else {}
        lines = [*head, *self._lanes(extent, bounds, body)]
        if combine.by_block and 0 not in extent:
            return ["if pid == chunks:", *indented(lines)]
        return lines

    def _reduced_between(self, node: Node, head: list[str]) -> list[str]:
        """Return the lines that reduce partial values, or values that are kept; some come before the loop."""
        if node not in self._partial:
            operand = self._operand_of(node)
            is_argument = operand in self._leaves
            needed = Needed([operand] * is_argument, [operand] * (not is_argument), [])
            return self._reduction(node, list(self._loads(needed).values()), {})
        name, kind = self._names[node], kind_of(node)
        j, extent = self._partial.index(node), self._extent(node)
        head.append(self._address(f"all{j}", self._partial_row(node)))
        first, steps, own = "0", "tl.load(leaf_chunks + leaf + 1) - chunks", "c0"
        if 0 in extent:
            first, steps, own = "c0 // per * parts", "parts", "(c0 - c0 // per * per)"
        address = f"all{j} + ({first} + step) * ({self._width(node)}) + {self._index(extent, own, 'lane * 0')}"
        part = f"tl.load({address}, mask=step < steps, other={IDENTITIES[kind]})"
        return [
            self._begun(node, torch.float64),
            f"steps = {steps}",
            "at = steps * 0",
            "while at < steps:",
            "    step = at + tl.arange(0, STEPS)[None, :]",
            f"    {name}_all = {self._reduced_pair(kind, f'{name}_all', part)}",
            "    at += STEPS",
            f"{name}_total = {_of_lanes(kind, f'{name}_all')}",
        ]


def _of_lanes(kind: str, value: str) -> str:
    """Return the code that reduces the steps of each lane; a maximum of NaN is NaN."""
    total = f"tl.{kind}({value}, axis=1, keep_dims=True)"
    if kind == "sum":
        return total
    is_nan = f"tl.max(({value} != {value}).to(tl.int32), axis=1, keep_dims=True) > 0"
    return f'tl.where({is_nan}, float("nan"), {total})'
