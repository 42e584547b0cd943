"""Write a program as Triton kernels, each of which processes all leaves of a bundle in one launch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch.fx import Node

from gradtx.compiler.axes import Extent, padded_sizes
from gradtx.compiler.graph import dtype_of
from gradtx.compiler.text import constant
from gradtx.compiler.write_expressions import ExpressionWriter
from gradtx.compiler.write_kernels import (
    Combine,
    KernelWriter,
    Needed,
    Write,
    aten,
    kind_of,
    wide,
)

NAN = "propagate_nan=tl.PropagateNan.ALL"
# The masks of loads and stores by the extent of a value: in the loops over rows, and in a chunk that is inside a leaf.
Masks: TypeAlias = Mapping[Extent, str]
IN_ROWS: Masks = {(0, 1): "c1 < n1"}
NOWHERE: Masks = {}
# The argument with the number of a kernel's first instance, since kernels may share a launch.
START = "first_instance"
# Constants of a launch: entries of a chunk that is a tile, entries that are reduced at a time to a value of a leaf, and
# of a tile that reduces columns, ...: results, and what is reduced.
CONSTANTS = {"BLOCK": 1024, "WIDTH": 256, "LANES": 32, "STEPS": 32, "ALIGNED": False}
# What precedes the lines of a leaf that may be absent: the index of its set of scalars, or -1.
PRESENT = ("set_of_leaf = tl.load(sets + leaf)", "if set_of_leaf >= 0:")
# The code of the first and the last index of a group, and one more.
Bounds: TypeAlias = Mapping[int, tuple[str, str]]
IDENTITIES = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}


class TritonExpressions(ExpressionWriter):
    """Write expressions of Triton; a scalar is an argument, or an entry of a buffer on the device."""

    types: ClassVar[Mapping[torch.dtype, str]] = {
        torch.float64: "tl.float64",
        torch.float32: "tl.float32",
        torch.bfloat16: "tl.bfloat16",
        torch.float16: "tl.float16",
        torch.int64: "tl.int64",
        torch.int32: "tl.int32",
        torch.int16: "tl.int16",
        torch.int8: "tl.int8",
        torch.uint8: "tl.uint8",
        torch.bool: "tl.int1",
    }
    choice = "tl.where({}, {}, {})"
    same_bits = "{}.to({}, bitcast=True)"
    floating = "{}.to(tl.float64, bitcast=True)"

    def _constant(self, value: Any, dtype: torch.dtype) -> str:
        return f"tl.full((), {constant(value)}, {self.types[dtype]})"

    def _converted(self, code: str, dtype: torch.dtype) -> str:
        return f"{code}.to({self.types[dtype]})"

    def _assigned(self, name: str, node: Node, code: str) -> str:
        return f"{name} = {code}"

    def _call(self, function: str, operands: Sequence[str]) -> str:
        if function in ("maximum", "minimum"):
            return f"tl.{function}({operands[0]}, {operands[1]}, {NAN})"
        module = "tl" if function in ("abs", "floor", "ceil") else "libdevice"
        return f"{module}.{function}({', '.join(operands)})"

    def _divide(self, x: str, y: str, dtype: torch.dtype) -> str:
        return f"tl.div_rn({x}, {y})" if dtype is torch.float32 else f"({x} / {y})"

    def _root(self, x: str, dtype: torch.dtype) -> str:
        return f"tl.sqrt_rn({x})" if dtype is torch.float32 else f"tl.sqrt({x})"

    def _words(self) -> list[str]:
        """Return the lines that load scalars."""
        lines = []
        count = len(self._scalars)
        for j in range(count):
            if self._by_row:
                lines.append(f"s{j} = tl.load(words + set_of_leaf * {count} + {j})")
                lines.append(f"if ON_DEVICE & {1 << j}:")  # then this is its index
                lines.append(f"    s{j} = tl.load(stored + s{j})")
                continue
            lines.append(f"s{j} = w{j}.to(tl.int64)")
            lines.append(f"if ON_DEVICE & {1 << j}:")  # then the argument is its index
            lines.append(f"    s{j} = tl.load(words + w{j})")
        return lines

    def _pointers(self, rows: dict[int, Node]) -> list[str]:
        lines = []
        for j, like in rows.items():
            dtype = self.types[dtype_of(like)]
            if dtype == "tl.int1":
                dtype = "tl.int8"
            lines.append(
                f"p{j} = tl.load(table + {j} * n_leaves + leaf).to(tl.pointer_type({dtype}))"
            )
        return lines

    def _reduced_pair(self, kind: str, x: str, y: str) -> str:
        """Return the code that reduces two values."""
        return f"{x} + {y}" if kind == "sum" else self._call(f"{kind}imum", [x, y])


class TritonWriter(TritonExpressions, KernelWriter):
    """Write Triton functions.

    A stage is a tile of all entries of a chunk, or loops over its rows and the entries of each. Where values of
    columns, ... are reduced, a tile has a lane for each result, and a step for each of the values that it reduces;
    lanes and steps outside of a leaf load the last value inside of it, which changes no result.
    """

    def _joined(self, functions: Sequence[str]) -> str:
        return "\n\n".join(functions)

    def _function(self, name: str, lines: Sequence[str]) -> str:
        words = "".join(f", w{j}: tl.int64" for j in range(len(self._scalars)))
        if self._by_row:
            words = ", stored, sets"
            find_leaf, *others = lines
            lines = [find_leaf, *PRESENT, *indented(others)]
        fixed = "table, blocks, chunk_leaf, chunk_start, leaf_chunks, n_leaves"
        constants = ", ".join(f"{name}: tl.constexpr" for name in CONSTANTS)
        head = f"ON_DEVICE: tl.constexpr, words{words}, {fixed}, sums, results"
        return function_of(name, f"{head}, {constants}", lines)

    # Indices.

    def _head(self, leaf: str) -> list[str]:
        """Return the lines that load the sizes of a leaf, and scalars."""
        lines = [f"leaf = {leaf}"]
        for row, name in enumerate([*(f"n{i}" for i in self._full), "per", "parts"]):
            is_fixed = row == self._last and self._fixed_row
            code = (
                self._fixed_row
                if is_fixed
                else f"tl.load(blocks + {row} * n_leaves + leaf)"
            )
            lines.append(f"{name} = {code}")
        lines += [f"inner = {self._inner}", "chunks = tl.load(leaf_chunks + leaf)"]
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

    def _length(self, extent: Extent, bounds: Bounds) -> str:
        lengths = []
        for i in extent:
            low, high = bounds.get(i, ("0", f"n{i}"))
            lengths.append(f"({high} - {low})")
        return " * ".join(lengths or ["1"])

    # Memory.

    def _memory(self, needed: Needed, stored: Sequence[Write]) -> list[str]:
        """Return the lines that load the addresses of arguments and of values that are kept."""
        lines = self._pointers(self._memory_rows(needed.read, stored))
        return [*lines, *map(self._kept_address, needed.kept)]

    def _kept_address(self, node: Node) -> str:
        return self._address(f"k{self._kept.index(node)}", self._layout_row(node))

    def _address(self, name: str, row: int) -> str:
        return f"{name} = sums + tl.load(blocks + {row} * n_leaves + leaf)"

    def _partial_address(self, node: Node) -> list[str]:
        """Return the lines that find the partial values of a chunk."""
        j = self._partial.index(node)
        own = f"y{j} += (pid - chunks) * ({self._width(node)})"
        return [self._address(f"y{j}", self._partial_row(node)), own]

    def _loads(self, needed: Needed, masks: Masks = NOWHERE) -> dict[Node, str]:
        """Return the line of each value that a kernel loads or computes."""
        lines = {}
        for leaf in needed.read:
            j, extent = self._leaves.index(leaf), self._extent(leaf)
            index = self._index(extent)
            is_flag = dtype_of(leaf) is torch.bool
            code = f"tl.load(p{j} + {index}{_masked(masks, extent)})"
            lines[leaf] = f"x{j} = {code}{' != 0' if is_flag else ''}"
        for node in needed.kept:
            index = self._index(self._extent(node))
            code = f"tl.load(k{self._kept.index(node)} + {index})"
            is_flag = dtype_of(node) is torch.bool
            code = f"{code} != 0" if is_flag else self._converted(code, dtype_of(node))
            lines[node] = f"{self._names[node]} = {code}"
        return {**lines, **{node: self._lines[node] for node in needed.computed}}

    def _stored(self, store: Write, index: str, mask: str = "") -> str:
        value = self._names[store.node]
        if dtype_of(store.like) is torch.bool:
            value = f"{value}.to(tl.int8)"
        mask = f", mask={mask}" if mask else ""
        return f"tl.store(p{store.row} + {index}, {value}{mask})"

    # Stages.

    def _stage(self, name: str, stored: Sequence[Write], stage: Sequence[Node]) -> str:
        outputs = [*(x.node for x in stored), *map(self._operand_of, stage)]
        needed = self._needed(outputs)
        code = self._loads(needed)
        lines = [
            *self._head("tl.load(chunk_leaf + pid)"),
            *self._rows_of_chunk(),
            *self._memory(needed, stored),
            *(line for node, line in code.items() if not self._extent(node)),
        ]
        if self._groups.axes is not None and not self._are_batches:
            lines += self._of_columns(stored, stage, code)
            return self._function(name, lines)
        if self._are_batches:
            lines += self._batch(needed, stored, stage)
            return self._function(name, [*lines, *self._partial_stores(stage)])
        names = self._memory_rows(needed.read, stored).items()
        aligned = [f"p{j}" for j, like in names if self._extent(like)]
        if self._fixed_row is None and self._groups.are_rows:
            aligned.append("n1")
        if aligned:
            lines.append("if ALIGNED:")
            lines += [f"    {x} = tl.multiple_of({x}, 16)" for x in aligned]
        write = self._tile if self._is_tile() else self._loops
        lines += write(needed, stored, stage)
        return self._function(name, [*lines, *self._partial_stores(stage)])

    def _partial_stores(self, stage: Sequence[Node]) -> list[str]:
        """Return the lines that store what a chunk has reduced to values of the leaf."""
        lines = []
        for node in stage:
            total = f"{self._names[node]}_total.to(tl.float64)"
            lines += self._partial_address(node)
            lines.append(f"tl.store(y{self._partial.index(node)}, {total})")
        return lines

    def _barrier(self, stored: Sequence[Write]) -> list[str]:
        """Return the line before values of rows are stored, of which all threads have read the old ones then."""
        are_smaller = any(self._extent(store.like) != self._full for store in stored)
        return ["tl.debug_barrier()"] * are_smaller

    # A tile of all entries of a chunk: of leaves without rows, or with the short rows of codes.

    def _is_tile(self) -> bool:
        kinds = {kind_of(node) for node in self._of_rows}
        has_values_of_rows = self._groups.are_rows and any(
            map(self._adds_rows, self._partial)
        )
        has_fixed_rows = self._fixed_row is not None or not self._groups.are_rows
        return has_fixed_rows and not ("sum" in kinds or has_values_of_rows)

    def _adds_rows(self, node: Node) -> bool:
        """Whether a reduction adds up the values of rows."""
        return self._last not in self._extent(self._operand_of(node))

    def _tile(
        self, needed: Needed, stored: Sequence[Write], stage: Sequence[Node]
    ) -> list[str]:
        row = self._fixed_row or 1
        lines = ["c0 = start + tl.arange(0, BLOCK)"]
        if row > 1:
            lines = [
                f"c0 = start + tl.arange(0, BLOCK // {row})[:, None]",
                f"c1 = tl.arange(0, {row})[None, :]",
            ]
        else:
            lines.insert(0, "start = tl.multiple_of(start, 16)")
        inside = dict.fromkeys([(0,), self._full], "c0 < n0")
        count = f"BLOCK // {row}" if row > 1 else "BLOCK"
        for condition, masks in (
            (f"if start + {count} <= n0:", NOWHERE),
            ("else:", inside),
        ):
            body = []
            for node, line in self._loads(needed, masks=masks).items():
                if not self._extent(node):
                    continue
                if node in self._of_rows:
                    kind, operand = kind_of(node), self._term(node)
                    total = f"tl.{kind}({operand}, axis=1, keep_dims=True)"
                    body.append(f"{self._names[node]}_total = {total}")
                body.append(line)
            for node in stage:
                kind, value = kind_of(node), self._inside(node, masks)
                body.append(
                    f"{self._names[node]}_total = {_combined(kind, value, row)}"
                )
            body += self._barrier(stored)
            for store in stored:
                extent = self._extent(store.like)
                index, mask = self._index(extent), masks.get(extent, "")
                body.append(self._stored(store, index, mask))
            lines += [condition, *indented(body)]
        return lines

    # A tile of small matrices, ..., with a dimension for each group.

    def _batch(
        self, needed: Needed, stored: Sequence[Write], stage: Sequence[Node]
    ) -> list[str]:
        """Return the lines of a tile that has all that belongs to some indices of the first group."""
        padded = padded_sizes(self._sizes)
        lanes = (
            f"start + tl.arange(0, {max(CONSTANTS['BLOCK'] // math.prod(padded), 1)})"
        )
        lines = [f"c0 = ({lanes}){_along(0, len(self._full))}"]
        for i, size in enumerate(padded, 1):
            lines.append(f"c{i} = tl.arange(0, {size}){_along(i, len(self._full))}")
        masks = {
            extent: " & ".join(f"(c{i} < n{i})" for i in extent)
            for extent in set(self._groups.extents.values())
        }
        for node, line in self._loads(needed, masks).items():
            if not self._extent(node):
                continue
            if node in self._of_rows:
                total = self._inside(node, masks)
                for axis in self._reduced(node):
                    total = _over_axis(kind_of(node), total, axis)
                lines.append(f"{self._names[node]}_total = {total}")
            lines.append(line)
        for node in stage:
            value = _combined(kind_of(node), self._inside(node, masks), 2)
            lines.append(f"{self._names[node]}_total = {value}")
        lines += self._barrier(stored)
        for store in stored:
            extent = self._extent(store.like)
            lines.append(self._stored(store, self._index(extent), masks[extent]))
        return lines

    # Loops over the rows of a chunk, and over the entries of each.

    def _loops(
        self, needed: Needed, stored: Sequence[Write], stage: Sequence[Node]
    ) -> list[str]:
        code = self._loads(needed, masks=IN_ROWS)
        nodes = [node for node in code if self._extent(node)]
        body: list[str] = []
        for of_pass in self._passes(nodes):
            totals = [node for node in of_pass if node in self._of_rows]
            body += [self._begun_row(node) for node in totals]
            body += self._over_row(code, (), totals)
            body += map(self._ended_row, totals)
            body += [code[x] for x in of_pass if self._last not in self._extent(x)]
        entries = [x for x in stored if self._extent(x.like) == self._full]
        body += self._over_row(
            code, entries, [x for x in stage if not self._adds_rows(x)]
        )
        body += self._barrier(stored)
        body += [self._added(x, IN_ROWS) for x in stage if self._adds_rows(x)]
        rows = [store for store in stored if store not in entries]
        body += [self._stored(store, self._index((0,))) for store in rows]
        return [
            *map(self._begun_row, stage),
            "c0 = start",
            "while c0 < stop:",
            *indented([*body, "c0 += 1"]),
            *map(self._ended_row, stage),
        ]

    def _over_row(
        self, code: dict[Node, str], stored: Sequence[Write], reduced: Sequence[Node]
    ) -> list[str]:
        """Return a loop over the entries of a row, which writes some and reduces others."""
        if not (stored or reduced):
            return []
        needed = self._needed(
            [*(x.node for x in stored), *map(self._operand_of, reduced)]
        )
        nodes = (*needed.read, *needed.kept, *needed.computed)
        body = [
            "c1 = at + tl.arange(0, BLOCK)",
            *(code[node] for node in nodes if self._last in self._extent(node)),
            *(self._added(node, IN_ROWS) for node in reduced),
            *(self._stored(x, self._index(self._full), "c1 < n1") for x in stored),
            "at += BLOCK",
        ]
        return ["at = 0", "while at < n1:", *indented(body)]

    def _begun_row(self, node: Node) -> str:
        # Of a vector, or of the values of rows.
        shape = "()" if self._adds_rows(node) else "(BLOCK,)"
        identity = IDENTITIES[kind_of(node)]
        dtype = self.types[wide(dtype_of(node))]
        return f"{self._names[node]}_sum = tl.full({shape}, {identity}, {dtype})"

    def _added(self, node: Node, masks: Masks) -> str:
        value, name = self._inside(node, masks), f"{self._names[node]}_sum"
        return f"{name} = {self._reduced_pair(kind_of(node), name, value)}"

    def _ended_row(self, node: Node) -> str:
        kind, total = kind_of(node), f"{self._names[node]}_sum"
        if not self._adds_rows(node):
            total = _combined(kind, total, 1)
        return f"{self._names[node]}_total = {total}"

    def _inside(self, node: Node, masks: Masks) -> str:
        """Return what a reduction adds; entries outside of the leaf add nothing."""
        operand = self._operand_of(node)
        value = self._terms[node] if self._are_batches else self._term(node)
        if node.target is aten.linalg_vector_norm.default:
            value = f"{value} * {value}"
        mask = masks.get(self._extent(operand))
        return (
            f"tl.where({mask}, {value}, {IDENTITIES[kind_of(node)]})" if mask else value
        )

    def _term(self, node: Node) -> str:
        """Return the code of what a reduction reduces, which has no entries of its own if it reads none."""
        code, operand = self._terms[node], self._operand_of(node)
        read = self._needed([operand]).read
        if self._adds_rows(node) or self._full in map(self._extent, read):
            return code
        return f"tl.broadcast_to({code}, ({self._index(self._full)}).shape)"

    # Lanes of results, and steps of what they reduce.

    def _of_columns(
        self, stored: Sequence[Write], stage: Sequence[Node], code: dict[Node, str]
    ) -> list[str]:
        """Return the lines that reduce the entries of a chunk to values of rows, columns, ..., and write others."""
        lines = [
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
        return [*lines, *self._entries(stored, code)] if stored else lines

    def _entries(self, stored: Sequence[Write], code: dict[Node, str]) -> list[str]:
        """Return the loop that writes the entries of a chunk."""
        index = self._index(self._full)
        body = [
            "own = at + tl.arange(0, BLOCK)",
            *self._coordinates(self._full, "tl.minimum(own, end - 1)", {}),
            *(line for node, line in code.items() if self._extent(node)),
            *(self._stored(store, index, "own < end") for store in stored),
            "at += BLOCK",
        ]
        length = f"n{self._last}"
        head = [f"at = start * {length}", f"end = stop * {length}", "while at < end:"]
        return [*head, *indented(body)]

    def _partial_values(self, node: Node) -> list[str]:
        """Return the loops that reduce the entries of a chunk."""
        extent, j = self._extent(node), self._partial.index(node)
        bounds = {0: ("low0", "high0")}
        if 1 in self._reduced(node) and len(self._full) > 2:
            bounds[1] = ("low1", "high1")
        row = self._index(self._full[:-1])
        code = self._loads(self._needed([self._operand_of(node)]))
        body = [line for x, line in code.items() if self._extent(x)]
        is_inside = f"({row} >= start) & ({row} < stop)"
        loop = self._reduction(node, body, bounds, is_inside)
        index, mask = self._index(extent, "(c0 - low0)"), ", mask=lane < lanes"
        total = f"{self._names[node]}_total.to(tl.float64)"
        store = f"tl.store(y{j} + {index}, {total}{mask if extent else ''})"
        return [
            *self._partial_address(node),
            *self._lanes(extent, bounds, [*loop, store]),
        ]

    def _lanes(self, extent: Extent, bounds: Bounds, body: Iterable[str]) -> list[str]:
        """Return a loop with a lane for each index of an extent; a leaf needs none."""
        if not extent:
            return list(body)
        return [
            f"lanes = {self._length(extent, bounds)}",
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
        reduced, kind = self._reduced(node), kind_of(node)
        value = self._terms[node]
        if node.target is aten.linalg_vector_norm.default:
            value = f"{value} * {value}"
        mask = "(step < steps)" + (f" & {is_inside}" if is_inside else "")
        value = f"tl.where({mask}, {value}, {IDENTITIES[kind]})"
        coordinates = self._coordinates(reduced, "tl.minimum(step, steps - 1)", bounds)
        size, dtype = self._length(reduced, bounds), wide(dtype_of(node))
        return self._in_steps(node, size, [*coordinates, *body], value, dtype)

    def _in_steps(
        self,
        node: Node,
        size: str,
        lines: Sequence[str],
        value: str,
        dtype: torch.dtype,
    ) -> list[str]:
        """Return a loop that reduces a number of values."""
        name, kind, has_lanes = (
            self._names[node],
            kind_of(node),
            bool(self._extent(node)),
        )
        shape = "(LANES, STEPS)" if has_lanes else "(WIDTH,)"
        count, index = ("STEPS", "[None, :]") if has_lanes else ("WIDTH", "")
        every = f"{name}_all"
        total = _over_axis(kind, every, 1) if has_lanes else _combined(kind, every, 1)
        body = [
            f"step = at + tl.arange(0, {count}){index}",
            *lines,
            f"{every} = {self._reduced_pair(kind, every, value)}",
            f"at += {count}",
        ]
        return [
            f"{every} = tl.full({shape}, {IDENTITIES[kind]}, {self.types[dtype]})",
            f"steps = {size}",
            "at = steps * 0",
            "while at < steps:",
            *indented(body),
            f"{name}_total = {total}",
        ]

    # Between stages.

    def _combined(self, combine: Combine, results: Sequence[Node] = ()) -> str:
        lines = self._head("tl.load(chunk_leaf + pid)" if combine.by_block else "pid")
        if combine.by_block:
            lines += [
                *self._rows_of_chunk(),
                "low = (start + inner - 1) // inner",
                "high = (stop + inner - 1) // inner",
            ]
        sweeps = [x for x in combine.sweeps if combine.computes or self._extent(x[0])]
        for i, sweep in enumerate(sweeps):
            # Other threads have stored what this sweep loads.
            lines += ["tl.debug_barrier()"] * (i > 0)
            lines += self._sweep(sweep, combine)
        if not combine.computes:
            lines += self._values_of_leaf(results, combine)
        return self._function(combine.name, lines)

    def _values_of_leaf(self, results: Sequence[Node], last: Combine) -> list[str]:
        """Return the lines that write results, and the 0-d slots of a leaf."""
        stored = [x for x in last.stores if not self._extent(x.like)]
        needed = self._needed([*results, *(store.node for store in stored)])
        code = self._loads(self._checked(needed, ()))
        lines = [*self._memory(needed, stored), *code.values()]
        lines += ["tl.debug_barrier()"] * bool(stored)
        lines += [self._stored(store, "0") for store in stored]
        for row, result in enumerate(results):
            address = f"results + {row} * n_leaves + leaf"
            lines.append(f"tl.store({address}, {self._names[result]}.to(tl.float64))")
        return lines

    def _sweep(self, sweep: list[Node], combine: Combine) -> list[str]:
        """Return the loop over the indices of an extent."""
        extent = self._extent(sweep[0])
        needed = self._needed(sweep, sweep if combine.computes else ())
        self._checked(needed, extent)
        stored = [x for x in combine.stores if x.node in sweep]
        head = self._memory(self._with_operands(sweep, needed), stored)
        body: list[str] = []
        for node, line in self._loads(needed).items():
            if combine.computes and node in sweep and self._is_reduction(node):
                body += self._reduced_between(node, head)
            body.append(line)
        index, mask = self._index(extent), "lane < lanes" if extent else ""
        for node in sweep:
            if node in self._kept and combine.computes:
                head.append(self._kept_address(node))
                value = f"{self._names[node]}.to(tl.float64)"
                address = f"k{self._kept.index(node)} + {index}"
                end = f", mask={mask}" if mask else ""
                body.append(f"tl.store({address}, {value}{end})")
        # All threads have read the old values.
        body += ["tl.debug_barrier()"] * bool(stored)
        body += [self._stored(store, index, mask) for store in stored]
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
        j, extent = self._partial.index(node), self._extent(node)
        head.append(self._address(f"all{j}", self._partial_row(node)))
        first, steps, own = "0", "tl.load(leaf_chunks + leaf + 1) - chunks", "c0"
        if 0 in extent:
            first, steps, own = "c0 // per * parts", "parts", "(c0 - c0 // per * per)"
        address = f"all{j} + ({first} + step) * ({self._width(node)}) + {self._index(extent, own)}"
        other = IDENTITIES[kind_of(node)]
        part = f"tl.load({address}, mask=step < steps, other={other})"
        return self._in_steps(node, steps, (), part, torch.float64)


def function_of(name: str, arguments: str, lines: Sequence[str]) -> str:
    """Return a kernel, which runs from a certain instance of a launch on."""
    arguments = f"{START}: tl.int32, {arguments}"
    body = "\n    ".join([f"pid = tl.program_id(0) - {START}", *lines])
    # Otherwise Triton would compile again for words that are multiples of 16.
    names = (argument.split(":")[0] for argument in arguments.split(", "))
    words = [name for name in names if name[0] == "w" or name == START]
    return f"@triton.jit(do_not_specialize={words})\ndef {name}({arguments}):\n    {body}\n"


def indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _masked(masks: Masks, extent: Extent) -> str:
    mask = masks.get(extent)
    return f", mask={mask}" if mask else ""


def _combined(kind: str, value: str, block: int) -> str:
    """Return the code that reduces a tile to one number; a maximum of NaN is NaN."""
    value = f"tl.ravel({value})" if block > 1 else value
    if kind == "sum":
        return f"tl.sum({value}, axis=0)"
    is_nan = f"tl.max(({value} != {value}).to(tl.int32), axis=0) > 0"
    return f'tl.where({is_nan}, float("nan"), tl.{kind}({value}, axis=0))'


def _over_axis(kind: str, value: str, axis: int) -> str:
    """Return the code that reduces an axis of a tile, which remains; a maximum of NaN is NaN."""
    total = f"tl.{kind}({value}, axis={axis}, keep_dims=True)"
    if kind == "sum":
        return total
    flags = f"({value} != {value}).to(tl.int32)"
    is_nan = f"tl.max({flags}, axis={axis}, keep_dims=True) > 0"
    return f'tl.where({is_nan}, float("nan"), {total})'


def _along(axis: int, ndim: int) -> str:
    """Return the code that makes a vector an axis of a tile."""
    return f"[{', '.join(':' if i == axis else 'None' for i in range(ndim))}]"
