"""Write a program as Triton kernels, each of which processes all leaves of a bundle in one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch.fx import Node

from gradtx.compiler.graph import dtype_of
from gradtx.compiler.text import constant
from gradtx.compiler.write_expressions import ExpressionWriter
from gradtx.compiler.write_kernels import (
    BLOCKS,
    INDICES,
    KernelWriter,
    Store,
    Totals,
    aten,
    kind_of,
    outputs_of,
    wide,
)

NAN = "propagate_nan=tl.PropagateNan.ALL"
# The masks of loads and stores by the extent of a value: in the loops over rows, and in a chunk that is inside a leaf.
Masks: TypeAlias = Mapping[str, str]
IN_ROWS = {"entry": "column < block"}
NOWHERE: Masks = {}
# The argument with the number of a kernel's first instance, since kernels may share a launch.
START = "first_instance"
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
        for j in range(len(self._scalars)):
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
    """Write Triton functions."""

    total = "tl.load(sums{} + {} * n_leaves + leaf)"

    def _joined(self, functions: Sequence[str]) -> str:
        return "\n\n".join(functions)

    # Kernels.

    def _arguments(self) -> str:
        words = "".join(f", w{j}: tl.int64" for j in range(len(self._scalars)))
        sums = "".join(f", sums{depth}" for depth in range(len(self._reductions)))
        start = f"ON_DEVICE: tl.constexpr, words{words}"
        fixed = "table, sizes, blocks, chunk_leaf, chunk_start, leaf_chunks"
        return f"{start}, {fixed}, n_leaves{sums}"

    def _head(self, start: str) -> list[str]:
        """Return the lines that find the leaf, and load scalars."""
        lines = [
            f"leaf = {start}",
            "size = tl.load(sizes + leaf)",
        ]
        return [*lines, *self._words()]

    def _load(self, leaf: Node, masks: Masks) -> str:
        j, extent = self._leaves.index(leaf), self._extent(leaf)
        loaded = f"tl.load(p{j} + {INDICES[extent]}{_masked(masks, extent)})"
        is_flag = dtype_of(leaf) is torch.bool
        return f"x{j} = {loaded} != 0" if is_flag else f"x{j} = {loaded}"

    def _chunk(
        self,
        name: str,
        stored: Sequence[Store],
        stage: Sequence[Node],
    ) -> str:
        operations, read = self._needed(outputs_of(stored, stage))
        rows = self._rows(read, stored)
        lines = self._head("tl.load(chunk_leaf + pid)")
        lines.append("start = tl.load(chunk_start + pid)")
        lines += self._pointers(rows)
        names = [f"p{j}" for j, like in rows.items() if self._extent(like) != "leaf"]
        if names:
            lines.append("if ALIGNED:")
            lines += [f"    {name} = tl.multiple_of({name}, 16)" for name in names]
        self._note(name, read, stored)
        write = self._tile if self._is_tile() else self._loops
        lines += write([*read, *operations], stored, stage)
        for row in range(len(stage)):
            address = f"partials + {row} * n_chunks + pid"
            lines.append(f"tl.store({address}, r{row}_total.to(tl.float64))")
        more = ", partials, n_chunks" if stage else ""
        head = f"{self._arguments()}{more}, BLOCK: tl.constexpr, ALIGNED: tl.constexpr"
        return function_of(name, head, lines)

    def _barrier(self, stored: Sequence[Store]) -> list[str]:
        """Return the line before values of rows are stored, of which all threads have read the old ones then."""
        has_rows = any(self._extent(store.like) == "block" for store in stored)
        return ["tl.debug_barrier()"] if has_rows else []

    # A tile of all entries of a chunk: of leaves without rows, or with the short rows of codes.

    def _is_tile(self) -> bool:
        kinds = {kind_of(node) for node in self._of_rows}
        has_values_of_rows = any(map(self._adds_rows, self._reduced))
        is_known = self._block == 1 or (self._fixes_block and self._block in BLOCKS)
        return is_known and not ("sum" in kinds or has_values_of_rows)

    def _tile(
        self, nodes: Sequence[Node], stored: Sequence[Store], stage: Sequence[Node]
    ) -> list[str]:
        lines = ["start = tl.multiple_of(start, 16)", "i = start + tl.arange(0, BLOCK)"]
        if self._block > 1:
            lines[1:] = [
                f"row = tl.arange(0, BLOCK // {self._block})[:, None]",
                f"b = start // {self._block} + row",
                f"i = start + row * {self._block} + tl.arange(0, {self._block})[None, :]",
            ]
        inside = {"entry": "i < size", "block": f"b < size // {self._block}"}
        for condition, masks in (
            ("if start + BLOCK <= size:", NOWHERE),
            ("else:", inside),
        ):
            body = []
            for node in nodes:
                if node in self._of_rows:
                    kind, operand = kind_of(node), self._term(node)
                    total = f"tl.{kind}({operand}, axis=1, keep_dims=True)"
                    body.append(f"{self._names[node]}_total = {total}")
                body.append(self._line(node, masks))
            for row, node in enumerate(stage):
                kind, value = kind_of(node), self._inside(node, masks)
                body.append(f"r{row}_total = {_combined(kind, value, self._block)}")
            body += self._barrier(stored)
            body += [self._store(store, masks) for store in stored]
            lines += [condition, *indented(body)]
        return lines

    # Loops over the rows of a chunk, and over the entries of each.

    def _loops(
        self, nodes: Sequence[Node], stored: Sequence[Store], stage: Sequence[Node]
    ) -> list[str]:
        totals = {f"r{i}": node for i, node in enumerate(stage)}
        body = self._values_of_row(nodes)
        body += self._loop(stored, totals)
        body += self._barrier(stored)
        body += self._after_loop(stored, totals)
        return [
            "block = tl.load(blocks + leaf)",
            "if ALIGNED:",
            "    block = tl.multiple_of(block, 16)",
            "stop = size",
            "if pid + 1 < tl.load(leaf_chunks + leaf + 1):",
            "    stop = tl.load(chunk_start + pid + 1)",
            *(self._line(node) for node in nodes if self._extent(node) == "leaf"),
            *map(self._begun, totals, totals.values()),
            "b = start // block",
            "while b < stop // block:",
            *indented([*body, "b += 1"]),
            *map(self._ended, totals, totals.values()),
        ]

    def _looped(self, lines: Sequence[str], totals: Totals) -> list[str]:
        indices = ["column = first + tl.arange(0, BLOCK)", "i = b * block + column"]
        body = indented([*indices, *lines, "first += BLOCK"])
        return ["first = 0", "while first < block:", *body]

    # Reductions.

    def _begun(self, name: str, node: Node) -> str:
        # Of a vector, or of the values of rows.
        shape = "()" if self._adds_rows(node) else "(BLOCK,)"
        identity = IDENTITIES[kind_of(node)]
        dtype = self.types[wide(dtype_of(node))]
        return f"{name}_sum = tl.full({shape}, {identity}, {dtype})"

    def _added(self, name: str, node: Node) -> str:
        kind, value = kind_of(node), self._inside(node, IN_ROWS)
        return f"{name}_sum = {self._reduced_pair(kind, f'{name}_sum', value)}"

    def _ended(self, name: str, node: Node) -> str:
        kind, total = kind_of(node), f"{name}_sum"
        if not self._adds_rows(node):
            total = _combined(kind, total, 1)
        return f"{name}_total = {total}"

    def _inside(self, node: Node, masks: Masks) -> str:
        """Return what a reduction adds; entries outside of the leaf add nothing."""
        value, operand = self._term(node), node.args[0]
        if node.target is aten.linalg_vector_norm.default:
            value = f"{value} * {value}"
        mask = masks.get(self._extent(operand))  # type: ignore[arg-type]
        kind = kind_of(node)
        return f"tl.where({mask}, {value}, {IDENTITIES[kind]})" if mask else value

    def _term(self, node: Node) -> str:
        """Return the code of what a reduction reduces, which has no entries of its own if it reads none."""
        code = super()._term(node)
        operand: Any = node.args[0]
        _, read = self._needed([operand])
        if self._extent(operand) != "entry" or "entry" in map(self._extent, read):
            return code
        return f"tl.broadcast_to({code}, i.shape)"

    def _line(self, node: Node, masks: Masks = IN_ROWS) -> str:
        return self._load(node, masks) if node in self._leaves else self._lines[node]

    def _reduce(self, depth: int) -> str:
        lines = [
            "leaf = pid",
            "first = tl.load(leaf_chunks + leaf)",
            "last = tl.load(leaf_chunks + leaf + 1)",
            "k = tl.arange(0, WIDTH)",
        ]
        for row, node in enumerate(self._reductions[depth]):
            kind = kind_of(node)
            identity = IDENTITIES[kind]
            lines += [
                f"total = tl.full((WIDTH,), {identity}, tl.float64)",
                "start = first",
                "while start < last:",
                f"    part = tl.load(partials + {row} * n_chunks + start + k, mask=start + k < last, other={identity})",
                f"    total = {self._reduced_pair(kind, 'total', 'part')}",
                "    start += WIDTH",
                f"tl.store(sums + {row} * n_leaves + leaf, {_combined(kind, 'total', 1)})",
            ]
        head = "partials, sums, leaf_chunks, n_leaves, n_chunks, WIDTH: tl.constexpr"
        return function_of(f"reduce{depth}", head, lines)

    def _store(self, store: Store, masks: Masks = IN_ROWS) -> str:
        value, extent = self._names[store.node], self._extent(store.like)
        if dtype_of(store.like) is torch.bool:
            value = f"{value}.to(tl.int8)"
        address = f"p{store.row} + {INDICES[extent]}"
        return f"tl.store({address}, {value}{_masked(masks, extent)})"

    def _finish(self, results: Sequence[Node], stores: Sequence[Store]) -> str:
        lines = [*self._head("pid"), *self._values_of_leaf(results, stores)]
        for row, result in enumerate(results):
            name = self._names[result]
            lines.append(
                f"tl.store(results + {row} * n_leaves + leaf, {name}.to(tl.float64))"
            )
        return function_of("finish", f"{self._arguments()}, results", lines)


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


def _masked(masks: Masks, extent: str) -> str:
    mask = masks.get(extent)
    return f", mask={mask}" if mask else ""


def _combined(kind: str, value: str, block: int) -> str:
    """Return the code that reduces a tile to one number; a maximum of NaN is NaN."""
    value = f"tl.ravel({value})" if block > 1 else value
    if kind == "sum":
        return f"tl.sum({value}, axis=0)"
    is_nan = f"tl.max(({value} != {value}).to(tl.int32), axis=0) > 0"
    return f'tl.where({is_nan}, float("nan"), tl.{kind}({value}, axis=0))'
