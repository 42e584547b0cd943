"""Write a program as Triton kernels, each of which processes all leaves of a bundle in one launch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.fx import Node

from gradtx.programs.write_kernels import (
    PLACES,
    REDUCTIONS,
    KernelWriter,
    Store,
    UnsuitableProgramError,
    aten,
)

NAN = "propagate_nan=tl.PropagateNan.ALL"
IDENTITIES = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}


class TritonWriter(KernelWriter):
    """Write Triton functions; a scalar is an argument, or an entry of a buffer on the device."""

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

    def _constant(self, value: Any, dtype: torch.dtype) -> str:
        text = repr(value)
        if isinstance(value, float) and not math.isfinite(value):
            text = f"float({str(value)!r})"
        return f"tl.full((), {text}, {self.types[dtype]})"

    def _converted(self, code: str, dtype: torch.dtype) -> str:
        return f"{code}.to({self.types[dtype]})"

    def _same_bits(self, code: str, dtype: torch.dtype) -> str:
        return f"{code}.to({self.types[dtype]}, bitcast=True)"

    def _assigned(self, name: str, node: Node, code: str) -> str:
        return f"{name} = {code}"

    def _word(self, j: int, is_floating: bool) -> str:
        return f"s{j}.to(tl.float64, bitcast=True)" if is_floating else f"s{j}"

    def _call(self, function: str, operands: Sequence[str]) -> str:
        if function in ("maximum", "minimum"):
            return f"tl.{function}({operands[0]}, {operands[1]}, {NAN})"
        module = "tl" if function in ("abs", "floor", "ceil") else "libdevice"
        return f"{module}.{function}({', '.join(operands)})"

    def _divide(self, x: str, y: str, dtype: torch.dtype) -> str:
        return f"tl.div_rn({x}, {y})" if dtype is torch.float32 else f"({x} / {y})"

    def _root(self, x: str, dtype: torch.dtype) -> str:
        return f"tl.sqrt_rn({x})" if dtype is torch.float32 else f"tl.sqrt({x})"

    def _choose(self, condition: str, x: str, y: str) -> str:
        return f"tl.where({condition}, {x}, {y})"

    def _not(self, x: str, dtype: torch.dtype) -> str:
        return f"~({x})"

    def _total(self, depth: int, row: int) -> str:
        return f"tl.load(sums{depth} + {row} * n_leaves + leaf)"

    def _joined(self, functions: Sequence[str]) -> str:
        return "\n\n".join(functions)

    def _reduce_rows(self, node: Node, operand: Node, name: str) -> None:
        kind = REDUCTIONS[node.target].kind
        if kind == "sum":
            raise UnsuitableProgramError("a sum over rows")
        code = f"tl.{kind}({self._names[operand]}, axis=1, keep_dims=True)"
        self._lines[node] = self._assigned(name, node, code)

    def _reduce_entries(self, node: Node, operand: Node, name: str) -> None:
        if self._extent(operand) == "block":
            raise UnsuitableProgramError("a reduction of values of rows")
        super()._reduce_entries(node, operand, name)

    # Kernels.

    def _arguments(self) -> str:
        words = "".join(f", w{j}: tl.int64" for j in range(len(self._scalars)))
        sums = "".join(f", sums{depth}" for depth in range(len(self._reductions)))
        start = f"ON_DEVICE: tl.constexpr, words{words}"
        return f"{start}, table, sizes, chunk_leaf, chunk_start, n_leaves{sums}"

    def _head(self, start: str) -> list[str]:
        """Return the lines that find the leaf, and load scalars."""
        lines = [
            "pid = tl.program_id(0)",
            f"leaf = {start}",
            "size = tl.load(sizes + leaf)",
        ]
        for j in range(len(self._scalars)):
            lines.append(f"s{j} = w{j}.to(tl.int64)")
            lines.append(f"if ON_DEVICE & {1 << j}:")  # then the argument is its place
            lines.append(f"    s{j} = tl.load(words + w{j})")
        return lines

    def _load(self, leaf: Node, mask: str) -> str:
        j = self._leaves.index(leaf)
        extent = self._extent(leaf)
        masks = {
            "entry": mask,
            "block": mask.replace("i < size", f"b < size // {self._block}"),
            "leaf": "",
        }
        loaded = f"tl.load(p{j} + {PLACES[extent]}{masks[extent]})"
        is_flag = leaf.meta["val"].dtype is torch.bool
        return f"x{j} = {loaded} != 0" if is_flag else f"x{j} = {loaded}"

    def _pointers(self, rows: dict[int, Node]) -> list[str]:
        lines = []
        for j, like in rows.items():
            dtype = self.types[like.meta["val"].dtype]
            if dtype == "tl.int1":
                dtype = "tl.int8"
            lines.append(
                f"p{j} = tl.load(table + {j} * n_leaves + leaf).to(tl.pointer_type({dtype}))"
            )
        return lines

    def _chunk(
        self,
        name: str,
        more: str,
        outputs: Sequence[Node],
        stored: Sequence[Store],
        end: Callable[[str], list[str]],
    ) -> str:
        """Return a kernel with an instance per chunk: operations, and at the end the lines of `end(mask)`."""
        operations, read = self._needed(outputs)
        rows = self._rows(read, stored)
        lines = self._head("tl.load(chunk_leaf + pid)")
        lines.append("start = tl.multiple_of(tl.load(chunk_start + pid), 16)")
        lines += self._pointers(rows)
        names = [f"p{j}" for j, like in rows.items() if self._extent(like) != "leaf"]
        if names:
            lines.append("if ALIGNED:")
            lines += [f"    {name} = tl.multiple_of({name}, 16)" for name in names]
        if self._block > 1:
            lines.append(f"row = tl.arange(0, BLOCK // {self._block})[:, None]")
            lines.append(f"b = start // {self._block} + row")
            lines.append(
                f"i = start + row * {self._block} + tl.arange(0, {self._block})[None, :]"
            )
        else:
            lines.append("i = start + tl.arange(0, BLOCK)")
        self._note(name, read, stored)
        for condition, mask in (
            ("if start + BLOCK <= size:", ""),
            ("else:", ", mask=i < size"),
        ):
            lines.append(condition)
            body = [self._load(leaf, mask) for leaf in read]
            body += [self._lines[node] for node in operations]
            body += end(mask)
            lines += [f"    {line}" for line in body]
        head = f"{self._arguments()}{more}, BLOCK: tl.constexpr, ALIGNED: tl.constexpr"
        return _function(name, head, lines)

    def _stage(self, depth: int) -> str:
        stage = self._reductions[depth]
        operands: list[Node] = [node.args[0] for node in stage]  # type: ignore[misc]

        def end(mask: str) -> list[str]:
            lines = []
            for row, node in enumerate(stage):
                kind, value = REDUCTIONS[node.target].kind, self._reduced[node]
                if node.target is aten.linalg_vector_norm.default:
                    value = f"{value} * {value}"
                if mask:
                    value = f"tl.where(i < size, {value}, {IDENTITIES[kind]})"
                lines.append(f"r{row} = {_combined(kind, value, self._block)}")
                lines.append(
                    f"tl.store(partials + {row} * n_chunks + pid, r{row}.to(tl.float64))"
                )
            return lines

        more = ", partials, n_chunks"
        return self._chunk(f"stage{depth}", more, operands, (), end)

    def _reduce(self, depth: int) -> str:
        lines = [
            "leaf = tl.program_id(0)",
            "first = tl.load(leaf_chunks + leaf)",
            "last = tl.load(leaf_chunks + leaf + 1)",
            "k = tl.arange(0, WIDTH)",
        ]
        for row, node in enumerate(self._reductions[depth]):
            kind = REDUCTIONS[node.target].kind
            identity = IDENTITIES[kind]
            joined = "total + part"
            if kind != "sum":
                joined = self._call(f"{kind}imum", ["total", "part"])
            lines += [
                f"total = tl.full((WIDTH,), {identity}, tl.float64)",
                "start = first",
                "while start < last:",
                f"    part = tl.load(partials + {row} * n_chunks + start + k, mask=start + k < last, other={identity})",
                f"    total = {joined}",
                "    start += WIDTH",
                f"tl.store(sums + {row} * n_leaves + leaf, {_combined(kind, 'total', 1)})",
            ]
        head = "partials, sums, leaf_chunks, n_leaves, n_chunks, WIDTH: tl.constexpr"
        return _function(f"reduce{depth}", head, lines)

    def _last_stage(self, stores: Sequence[Store]) -> str:
        def end(mask: str) -> list[str]:
            lines = []
            for store in stores:
                place, inside = "i", mask
                if self._extent(store.like) == "block":
                    place = "b"
                    inside = mask.replace("i < size", f"b < size // {self._block}")
                lines.append(self._store(store, place, inside))
            return lines

        nodes = [store.node for store in stores]
        return self._chunk("last_stage", "", nodes, stores, end)

    def _store(self, store: Store, place: str, mask: str) -> str:
        value = self._names[store.node]
        if store.like.meta["val"].dtype is torch.bool:
            value = f"{value}.to(tl.int8)"
        return f"tl.store(p{store.row} + {place}, {value}{mask})"

    def _finish(self, results: Sequence[Node], stores: Sequence[Store]) -> str:
        operations, read = self._needed_by_leaf(results, stores)
        lines = self._head("pid")
        lines += self._pointers(self._rows(read, stores))
        lines += [self._load(leaf, "") for leaf in read]
        lines += [self._lines[node] for node in operations]
        lines += [self._store(store, "0", "") for store in stores]
        for row, result in enumerate(results):
            name = self._names[result]
            lines.append(
                f"tl.store(results + {row} * n_leaves + leaf, {name}.to(tl.float64))"
            )
        return _function("finish", f"{self._arguments()}, results", lines)


def _function(name: str, arguments: str, lines: Sequence[str]) -> str:
    body = "\n    ".join(lines)
    # Otherwise Triton would compile again for words that are multiples of 16.
    words = [each.split(":")[0] for each in arguments.split(", ") if each[0] == "w"]
    return f"@triton.jit(do_not_specialize={words})\ndef {name}({arguments}):\n    {body}\n"


def _combined(kind: str, value: str, block: int) -> str:
    """Return the code that reduces a tile to one number; a maximum of NaN is NaN."""
    value = f"tl.ravel({value})" if block > 1 else value
    if kind == "sum":
        return f"tl.sum({value}, axis=0)"
    is_nan = f"tl.max(({value} != {value}).to(tl.int32), axis=0) > 0"
    return f'tl.where({is_nan}, float("nan"), tl.{kind}({value}, axis=0))'
