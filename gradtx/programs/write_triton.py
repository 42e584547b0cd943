"""Write a program as Triton kernels that process all leaves of a bundle in one launch.

A table of pointers has a row per argument and a column per leaf, and each program instance takes one chunk of one leaf.
Sums over a leaf need all its chunks, so they divide the program into stages: each but the last stores partial sums per
chunk, which a small kernel adds in a fixed order. A stage computes what it needs again from the leaf's arguments; only
the last one writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.programs.contract import is_list, is_number
from gradtx.programs.lower import Program
from gradtx.programs.simplify import SAME, VIEWS

aten = torch.ops.aten

DTYPES: dict[torch.dtype, str] = {
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
HALF = (torch.bfloat16, torch.float16)
# Blocks that have one scale: numbers of entries that a tile of a kernel can have in its second dimension.
BLOCKS = (16, 32, 64, 128, 256)

# Operations by their code: of operands in the common dtype of torch, or in that of the result.
BY_COMMON: dict[str, str] = {
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "isnan": "{0} != {0}",
    "isinf": 'tl.abs({0}) == float("inf")',
    "isfinite": 'tl.abs({0}) < float("inf")',
}
NAN = "propagate_nan=tl.PropagateNan.ALL"
BY_RESULT: dict[str, str] = {
    "mul": "{0} * {1}",
    "neg": "-({0})",
    "abs": "tl.abs({0})",
    "sign": "({0} > 0).to({type}) - ({0} < 0).to({type})",
    "maximum": f"tl.maximum({{0}}, {{1}}, {NAN})",
    "minimum": f"tl.minimum({{0}}, {{1}}, {NAN})",
    "clamp_min": f"tl.maximum({{0}}, {{1}}, {NAN})",
    "clamp_max": f"tl.minimum({{0}}, {{1}}, {NAN})",
    "bitwise_and": "{0} & {1}",
    "logical_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "logical_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "__rshift__": "{0} >> {1}",
    "__lshift__": "{0} << {1}",
    "bitwise_not": "~({0})",
    "logical_not": "~({0})",
    "exp": "libdevice.exp({0})",
    "expm1": "libdevice.expm1({0})",
    "log": "libdevice.log({0})",
    "log1p": "libdevice.log1p({0})",
    "sin": "libdevice.sin({0})",
    "cos": "libdevice.cos({0})",
    "tanh": "libdevice.tanh({0})",
    "atan": "libdevice.atan({0})",
    "erf": "libdevice.erf({0})",
    "atan2": "libdevice.atan2({0}, {1})",
    "pow": "libdevice.pow({0}, {1})",
    "round": "libdevice.rint({0})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
}
# Reductions of all entries of a leaf: the identity, and how to combine two values.
REDUCTIONS: dict[Any, str] = {
    aten.sum.default: "sum",
    aten.mean.default: "sum",
    aten.linalg_vector_norm.default: "sum",
    aten.amax.default: "max",
    aten.max.default: "max",
    aten.amin.default: "min",
    aten.min.default: "min",
}
IDENTITIES = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}
CONSTANTS: dict[Any, float] = {
    aten.zeros_like.default: 0.0,
    aten.new_zeros.default: 0.0,
    aten.ones_like.default: 1.0,
    aten.new_ones.default: 1.0,
}
SAME_ENTRIES = (
    *SAME,
    *VIEWS,
    aten._unsafe_view.default,
    aten.clone.default,
    aten.expand.default,
)


class UnsuitableProgramError(Exception):
    """Kernels cannot run a program; the message gives the reason."""


class Kernel(NamedTuple):
    """A kernel, and the bytes that it moves per entry of a leaf.

    Attributes:
        name: The name of its function.
        reads: The bytes that it reads of each argument of the leaf, by the argument's index.
        writes: Those that it writes.
    """

    name: str
    reads: dict[int, float]
    writes: dict[int, float]


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
    """A phase of a program as the text of Triton functions.

    Attributes:
        source: The functions.
        kernels: These in the order of their launches: `stage0` and `reduce0`, ..., `last_stage` if there are entries to
            write, and `finish` if there are numbers of each leaf to write.
        scalars: The scalars that they read, each a word of 64 bits: an argument, or an entry of a buffer on the device.
        reductions: For each stage but the last, how each of its sums is combined.
        outputs: For each result of the phase, its row in the buffer of values by leaf; None for others.
    """

    source: str
    kernels: list[Kernel]
    scalars: list[Node]
    reductions: list[list[str]] = field(default_factory=list[list[str]])
    outputs: list[int | None] = field(default_factory=list[int | None])


def write_kernels(program: Program, leaf: int, columns: int) -> KernelText:
    """Return the kernels of a program.

    Args:
        program: The program.
        leaf: The index of an argument with the shape of the leaf.
        columns: The number of first results that a leaf has tensors for; their rows in the table follow those of its
            arguments.

    Raises:
        UnsuitableProgramError: If an operation combines entries in another way than by sums over all of a leaf.
    """
    return _KernelWriter(program, leaf).written(columns)


class _KernelWriter:
    """Write one line for each operation, and each stage with the lines that it needs."""

    def __init__(self, program: Program, leaf: int):
        self._program = program
        self._leaves = program.leaves
        like: Any = program.leaves[leaf].meta["val"]
        self._size = like.numel()
        self._is_number = like.ndim == 0  # then so are its slots
        self._block = 1  # entries with one scale
        self._names: dict[Node, str] = {}
        self._lines: dict[Node, str] = {}
        self._depths: dict[Node, int] = {}
        self._scalars: list[Node] = []
        self._kernels: list[Kernel] = []
        # The reductions of each stage, the names of their operands, and the operations that write.
        self._reductions: list[list[Node]] = []
        self._reduced: dict[Node, str] = {}
        self._stores: list[Store] = []

    def written(self, columns: int) -> KernelText:
        for node in self._program.graph.nodes:
            if node.op == "placeholder" and node in self._leaves:
                self._names[node] = f"x{self._leaves.index(node)}"
                self._depths[node] = 0
                if not self._is_mark(node):
                    self._extent(node)
            elif node.op == "call_function" and not is_number(node):
                self._add(node)
        results = self._program.results
        for i, result in enumerate(results[:columns], len(self._leaves)):
            if is_list(result) and not self._is_mark(result):
                self._stores.append(Store(i, result, result))
        by_leaf = [result for result in results[columns:] if is_list(result)]
        for result in by_leaf:
            if self._extent(result) != "leaf":
                raise UnsuitableProgramError("a result has an entry per element")
        text = KernelText("", self._kernels, self._scalars)
        text.reductions = [
            [REDUCTIONS[node.target] for node in stage] for stage in self._reductions
        ]
        rows = iter(range(len(by_leaf)))
        text.outputs = [None] * len(results[:columns])
        for result in results[columns:]:
            text.outputs.append(next(rows) if is_list(result) else None)
        functions: list[str] = []
        for depth in range(len(self._reductions)):
            functions += [self._stage(depth), self._reduce(depth)]
        entries = [each for each in self._stores if self._extent(each.like) != "leaf"]
        numbers = [store for store in self._stores if store not in entries]
        if entries:
            functions.append(self._last_stage(entries))
        # After the last stage, when all chunks of a leaf have read its old numbers.
        if by_leaf or numbers:
            functions.append(self._finish(by_leaf, numbers))
        text.source = "\n\n".join(functions)
        return text

    # Operations.

    def _is_mark(self, node: Node) -> bool:
        """Whether a value has no entries, although the leaf has some: slots that only mark a choice."""
        return node.meta["val"].numel() == 0 < self._size

    def _extent(self, node: Node) -> str:
        """Return what a value has one number for: each "entry", each "block" of entries with one scale, or a "leaf"."""
        value: Any = node.meta["val"]
        if not isinstance(value, Tensor) or value.dtype not in DTYPES:
            raise UnsuitableProgramError(f"{_name(node)} of {_kind(value)}")
        if value.ndim == 0 or (self._is_number and value.numel() == 1):
            return "leaf"
        if value.numel() == self._size:
            return "entry"
        block = self._size // max(value.numel(), 1)
        is_scale = block in BLOCKS and block * value.numel() == self._size
        if not is_scale or self._block not in (1, block):
            raise UnsuitableProgramError(f"{_name(node)} of rows or columns")
        self._block = block
        return "block"

    def _add(self, node: Node) -> None:
        """Write the line of an operation."""
        inputs = [item for item in node.all_input_nodes if item in self._depths]
        self._depths[node] = max((self._depths[item] for item in inputs), default=0)
        if _torch.writes(node.target):
            argument: Any = node.args[0]
            row = self._leaves.index(argument)
            self._stores.append(Store(row, argument, node))
        extent = self._extent(node)
        name = f"t{len(self._lines)}"
        reduced: Any = node.args[0] if node.args else None
        if node.target in REDUCTIONS and self._is_over_entries(node, reduced):
            self._reduce_entries(node, reduced, name)
            return
        self._lines[node] = f"{name} = {self._expression(node, extent)}"
        self._names[node] = name
        if _torch.writes(node.target):  # later operations read the new value
            self._names[node.args[0]] = name  # type: ignore[index]

    def _is_over_entries(self, node: Node, operand: Any) -> bool:
        """Whether a reduction combines all entries of a leaf; that of a single number changes nothing."""
        if len(node.args) > 1 and node.target is not aten.linalg_vector_norm.default:
            return False
        if node.target is aten.linalg_vector_norm.default and len(node.args) > 2:
            raise UnsuitableProgramError("norms of rows or columns")
        return self._extent(operand) == "entry"

    def _reduce_entries(self, node: Node, operand: Node, name: str) -> None:
        depth = self._depths[operand]
        while len(self._reductions) <= depth:
            self._reductions.append([])
        stage = self._reductions[depth]
        row = len(stage)
        stage.append(node)
        self._reduced[node] = self._operand(operand, _wide(node.meta["val"].dtype))
        self._depths[node] = depth + 1
        dtype = DTYPES[node.meta["val"].dtype]
        value = f"tl.load(sums{depth} + {row} * n_leaves + leaf)"
        if node.target is aten.mean.default:
            value = f"{value} / size"
        if node.target is aten.linalg_vector_norm.default:
            if len(node.args) > 1 and node.args[1] != 2:
                raise UnsuitableProgramError("a norm other than the Euclidean one")
            value = f"tl.sqrt({value})"
        self._lines[node] = f"{name} = ({value}).to({dtype})"
        self._names[node] = name

    def _expression(self, node: Node, extent: str) -> str:
        """Return the code of an operation on one tile."""
        target, args, kwargs = node.target, node.args, node.kwargs
        dtype: torch.dtype = node.meta["val"].dtype
        if target in CONSTANTS:
            return self._constant(CONSTANTS[target], dtype)
        if target in (aten.full_like.default, aten.full.default):
            return self._operand(args[1], dtype)
        if target is aten.arange.default:
            if extent != "entry" or args != (self._size,):
                raise UnsuitableProgramError("positions within a row")
            return "i"
        if target in SAME_ENTRIES or (target in REDUCTIONS and len(args) == 1):
            return self._operand(args[0], dtype)
        if target is aten._to_copy.default or target is aten.copy_.default:
            source: Any = args[1] if target is aten.copy_.default else args[0]
            return self._operand(source, dtype)
        if target is aten.view.dtype:
            return f"{self._names[args[0]]}.to({DTYPES[dtype]}, bitcast=True)"  # type: ignore[index]
        if target in (aten.amax.default, aten.amin.default):
            return self._of_block(node)
        name = _name(node)
        name = name if name.startswith("__") else name.rstrip("_")
        return self._arithmetic(name, node, args, kwargs, dtype)

    def _of_block(self, node: Node) -> str:
        """Return the code of the largest entry of each block."""
        operand, dims, *keeps = node.args
        shape = operand.meta["val"].shape  # type: ignore[union-attr]
        if dims not in ([-1], (-1,)) or keeps != [True] or shape[-1] != self._block:
            raise UnsuitableProgramError("a reduction over rows or columns")
        name = _name(node).removeprefix("a")
        return f"tl.{name}({self._names[operand]}, axis=1, keep_dims=True)"  # type: ignore[index]

    def _arithmetic(
        self, name: str, node: Node, args: Any, kwargs: Any, dtype: torch.dtype
    ) -> str:
        compute = torch.float32 if dtype in HALF else dtype
        if name in BY_COMMON:
            compute = _common_dtype(args)
            operands = [self._operand(item, compute) for item in args]
            return BY_COMMON[name].format(*operands)
        operands = [self._operand(item, compute) for item in args]
        code = self._code(name, node, args, operands, kwargs, compute)
        return code if compute is dtype else f"({code}).to({DTYPES[dtype]})"

    def _code(
        self,
        name: str,
        node: Node,
        args: Any,
        operands: list[str],
        kwargs: Any,
        dtype: torch.dtype,
    ) -> str:
        """Return the code of an operation whose operands have the dtype in which it computes."""
        divide = _divides(dtype)
        if name in ("add", "sub"):
            sign = "+" if name == "add" else "-"
            return f"{operands[0]} {sign} {self._scaled(operands[1], kwargs.get('alpha', 1), dtype)}"
        if name == "rsub":
            return f"{operands[1]} - {operands[0]}"
        if name == "div" and not kwargs:
            return divide(*operands)
        if name in ("addcmul", "addcdiv"):
            product = f"({operands[1]} * {operands[2]})"
            if name == "addcdiv":
                product = divide(operands[1], operands[2])
            return f"{operands[0]} + {self._scaled(product, kwargs.get('value', 1), dtype)}"
        if name == "lerp":
            a, b, weight = operands
            near, far = (
                f"{a} + {weight} * ({b} - {a})",
                f"{b} - ({b} - {a}) * (1 - {weight})",
            )
            return f"tl.where({weight} < 0.5, {near}, {far})"
        if name == "sqrt":
            return _root(operands[0], dtype)
        if name == "rsqrt":
            return divide(self._constant(1.0, dtype), _root(operands[0], dtype))
        if name == "reciprocal":
            return divide(self._constant(1.0, dtype), operands[0])
        if name == "sigmoid":
            one = self._constant(1.0, dtype)
            return divide(one, f"(1.0 + libdevice.exp(-({operands[0]})))")
        if name == "where":
            condition = self._operand(args[0], torch.bool)
            return f"tl.where({condition}, {operands[1]}, {operands[2]})"
        if name == "pow" and args[1] == 2:
            return f"{operands[0]} * {operands[0]}"
        if name == "pow" and args[1] == 0.5:
            return _root(operands[0], dtype)
        if name == "square":
            return f"{operands[0]} * {operands[0]}"
        if name == "nan_to_num":
            return self._without_nan(operands[0], args, dtype)
        if name == "clamp":
            return self._clamped(operands[0], args, kwargs, dtype)
        if name == "mul" and dtype is torch.bool:
            name = "logical_and"
        if name not in BY_RESULT or kwargs:
            raise UnsuitableProgramError(_name(node))
        return BY_RESULT[name].format(*operands, type=DTYPES[dtype])

    def _without_nan(self, operand: str, args: Any, dtype: torch.dtype) -> str:
        """Return the code of `nan_to_num`."""
        largest = torch.finfo(dtype).max
        instead = [0.0, largest, -largest]
        for i, value in enumerate(args[1:]):
            instead[i] = instead[i] if value is None else value
        nan, top, bottom = (self._constant(value, dtype) for value in instead)
        is_top, is_bottom = f'{operand} == float("inf")', f'{operand} == float("-inf")'
        finite = (
            f"tl.where({is_top}, {top}, tl.where({is_bottom}, {bottom}, {operand}))"
        )
        return f"tl.where({operand} == {operand}, {finite}, {nan})"

    def _clamped(self, operand: str, args: Any, kwargs: Any, dtype: torch.dtype) -> str:
        bounds = [*args[1:], None, None]
        lower = kwargs.get("min", bounds[0])
        upper = kwargs.get("max", bounds[1])
        if lower is not None:
            operand = f"tl.maximum({operand}, {self._operand(lower, dtype)}, {NAN})"
        if upper is not None:
            operand = f"tl.minimum({operand}, {self._operand(upper, dtype)}, {NAN})"
        return operand

    # Operands.

    def _scaled(self, operand: str, factor: Any, dtype: torch.dtype) -> str:
        if not isinstance(factor, Node) and factor == 1:
            return operand
        return f"{self._operand(factor, dtype)} * {operand}"

    def _operand(self, value: Any, dtype: torch.dtype) -> str:
        """Return the code of an operand in a dtype."""
        if value is None:
            return ""
        if not isinstance(value, Node):
            return self._constant(value, dtype)
        if is_number(value):
            return self._scalar(value, dtype)
        name = self._names[value]
        own: torch.dtype = value.meta["val"].dtype
        if own is dtype:
            return name
        if dtype is torch.bool:
            return f"({name} != 0)"
        if own is torch.float64 and dtype in HALF:  # as torch rounds it
            name = f"{name}.to(tl.float32)"
        return f"{name}.to({DTYPES[dtype]})"

    def _constant(self, value: Any, dtype: torch.dtype) -> str:
        text = repr(value)
        if isinstance(value, float) and not math.isfinite(value):
            text = f"float({str(value)!r})"
        return f"tl.full((), {text}, {DTYPES[dtype]})"

    def _scalar(self, node: Node, dtype: torch.dtype) -> str:
        if node not in self._scalars:
            self._scalars.append(node)
        word = f"s{self._scalars.index(node)}"
        own: torch.dtype = node.meta["val"].dtype
        if dtype is torch.bool:
            return f"({word} != 0)"
        if own.is_floating_point:
            word = f"{word}.to(tl.float64, bitcast=True)"
        return f"{word}.to({DTYPES[dtype]})"

    # Kernels.

    def _note(self, name: str, read: Sequence[Node], written: Sequence[Store]) -> None:
        """Add a kernel, and what it moves."""
        reads = {self._leaves.index(leaf): self._bytes_per_entry(leaf) for leaf in read}
        writes = {store.row: self._bytes_per_entry(store.like) for store in written}
        self._kernels.append(Kernel(name, reads, writes))

    def _bytes_per_entry(self, leaf: Node) -> float:
        """Return the bytes of an argument per entry of the leaf; a number of a leaf counts as none."""
        entries = {"entry": 1.0, "block": 1 / self._block, "leaf": 0.0}
        size: int = leaf.meta["val"].dtype.itemsize
        return size * entries[self._extent(leaf)]

    def _needed(self, nodes: Sequence[Node]) -> tuple[list[Node], set[Node]]:
        """Return the operations that some nodes need, in order, and the arguments that these read."""
        waiting, needed = list(nodes), set(nodes)
        while waiting:
            node = waiting.pop()
            if node in self._reduced:
                continue  # its value is loaded
            for item in node.all_input_nodes:
                if item in self._depths and item not in needed:
                    needed.add(item)
                    waiting.append(item)
        lines = [node for node in self._program.graph.nodes if node in needed]
        return [n for n in lines if n in self._lines], needed & set(self._leaves)

    def _arguments(self) -> str:
        words = "".join(f", w{j}: tl.int64" for j in range(len(self._scalars)))
        sums = "".join(f", sums{depth}" for depth in range(len(self._reductions)))
        start = f"ON_DEVICE: tl.constexpr, words{words}"
        return f"{start}, table, sizes, chunk_leaf, chunk_start, n_leaves{sums}"

    def _head(self, nodes: Sequence[Node], start: str) -> list[str]:
        """Return the lines that find the chunk, and load what its operations read apart from entries."""
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
        place = {"entry": "i", "block": "b", "leaf": "0"}[self._extent(leaf)]
        masks = {
            "entry": mask,
            "block": mask.replace("i < size", f"b < size // {self._block}"),
            "leaf": "",
        }
        loaded = f"tl.load(p{j} + {place}{masks[self._extent(leaf)]})"
        is_flag = leaf.meta["val"].dtype is torch.bool
        return f"x{j} = {loaded} != 0" if is_flag else f"x{j} = {loaded}"

    def _rows(self, read: Collection[Node], stored: Sequence[Store]) -> dict[int, Node]:
        """Return the rows of the table with what is read and stored, and what the tensors there are like."""
        rows = {i: leaf for i, leaf in enumerate(self._leaves) if leaf in read}
        rows.update({store.row: store.like for store in stored})
        return dict(sorted(rows.items()))

    def _pointers(self, rows: dict[int, Node]) -> list[str]:
        lines = []
        for j, like in rows.items():
            dtype = DTYPES[like.meta["val"].dtype]
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
        lines = self._head(operations, "tl.load(chunk_leaf + pid)")
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
        loads = [leaf for leaf in self._leaves if leaf in read]
        self._note(name, loads, stored)
        for condition, mask in (
            ("if start + BLOCK <= size:", ""),
            ("else:", ", mask=i < size"),
        ):
            lines.append(condition)
            body = [self._load(leaf, mask) for leaf in loads]
            body += [self._lines[node] for node in operations]
            body += end(mask)
            lines += [f"    {line}" for line in body]
        head = f"{self._arguments()}{more}, BLOCK: tl.constexpr, ALIGNED: tl.constexpr"
        return _function(name, head, lines)

    def _stage(self, depth: int) -> str:
        """Return the kernel that stores partial sums."""
        stage = self._reductions[depth]
        operands: list[Node] = [node.args[0] for node in stage]  # type: ignore[misc]

        def end(mask: str) -> list[str]:
            lines = []
            for row, node in enumerate(stage):
                kind, value = REDUCTIONS[node.target], self._reduced[node]
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
        """Return the kernel that combines the partial sums of each leaf, in a fixed order."""
        lines = [
            "leaf = tl.program_id(0)",
            "first = tl.load(leaf_chunks + leaf)",
            "last = tl.load(leaf_chunks + leaf + 1)",
            "k = tl.arange(0, WIDTH)",
        ]
        for row, node in enumerate(self._reductions[depth]):
            kind = REDUCTIONS[node.target]
            identity = IDENTITIES[kind]
            lines += [
                f"total = tl.full((WIDTH,), {identity}, tl.float64)",
                "start = first",
                "while start < last:",
                f"    part = tl.load(partials + {row} * n_chunks + start + k, mask=start + k < last, other={identity})",
                f"    total = {_joined(kind, 'total', 'part')}",
                "    start += WIDTH",
                f"tl.store(sums + {row} * n_leaves + leaf, {_combined(kind, 'total', 1)})",
            ]
        self._note(f"reduce{depth}", (), ())
        head = "partials, sums, leaf_chunks, n_leaves, n_chunks, WIDTH: tl.constexpr"
        return _function(f"reduce{depth}", head, lines)

    def _last_stage(self, stores: Sequence[Store]) -> str:
        """Return the kernel that writes entries and the scales of blocks."""

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
        """Return the kernel that writes numbers of each leaf, with an instance per leaf."""
        needed = [*results, *(store.node for store in stores)]
        operations, read = self._needed(needed)
        if any(self._extent(leaf) != "leaf" for leaf in read):
            raise UnsuitableProgramError("a number of a leaf depends on single entries")
        self._note("finish", (), ())  # numbers of each leaf only
        lines = self._head(operations, "pid")
        lines += self._pointers(self._rows(read, stores))
        lines += [self._load(leaf, "") for leaf in self._leaves if leaf in read]
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


def _joined(kind: str, a: str, b: str) -> str:
    return f"{a} + {b}" if kind == "sum" else f"tl.{kind}imum({a}, {b}, {NAN})"


def _divides(dtype: torch.dtype) -> Callable[[str, str], str]:
    """Return the code of a quotient, rounded as torch rounds it."""
    if dtype is torch.float32:
        return lambda x, y: f"tl.div_rn({x}, {y})"
    return lambda x, y: f"({x} / {y})"


def _root(x: str, dtype: torch.dtype) -> str:
    return f"tl.sqrt_rn({x})" if dtype is torch.float32 else f"tl.sqrt({x})"


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _common_dtype(args: Sequence[Any]) -> torch.dtype:
    """Return the dtype in which torch compares operands."""
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    if len(values) == 1:
        return values[0].dtype
    return torch.result_type(*values)


def _name(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
