"""Write a program as kernels that process all leaves of a bundle: what their languages, Triton and C++, share.

A table of pointers has a row per argument and a column per leaf, and each instance of a kernel takes one chunk of one
leaf. Sums over a leaf need all its chunks, so they divide the program into stages: each but the last stores partial
sums per chunk, which a small kernel adds in a fixed order. A stage computes what it needs again from the leaf's
arguments; only the last one writes.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.programs.contract import (
    args_of,
    dtype_of,
    is_list,
    is_number,
    operator_name,
)
from gradtx.programs.lower import Program
from gradtx.programs.record import UnrecordableError
from gradtx.programs.simplify import SAME_ENTRIES, reduced_dimensions

aten = torch.ops.aten

# Dtypes of memory, whose values are computed in float32.
HALF = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
# Blocks that have one scale: numbers of entries that a tile of a kernel can have in its second dimension.
BLOCKS = (16, 32, 64, 128, 256)
# The index of a value in memory, by its extent.
PLACES = {"entry": "i", "block": "b", "leaf": "0"}

# Operations by the name of their operator, as infix operators or functions.
COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
INFIX = {
    **{"mul": "*", "bitwise_and": "&", "logical_and": "&"},
    **{"bitwise_or": "|", "logical_or": "|", "bitwise_xor": "^"},
    **{"__rshift__": ">>", "__lshift__": "<<"},
}
FUNCTIONS = (
    "exp expm1 log log1p sin cos tanh atan erf atan2 pow floor ceil abs maximum minimum"
)
# Those of other names.
RENAMED = {"round": "rint", "clamp_min": "maximum", "clamp_max": "minimum"}


# How reductions combine two values.
REDUCTIONS: dict[Any, str] = {
    aten.sum.default: "sum",
    aten.sum.dim_IntList: "sum",
    aten.mean.default: "sum",
    aten.mean.dim: "sum",
    aten.linalg_vector_norm.default: "sum",
    aten.max.default: "max",
    aten.amax.default: "max",
    aten.min.default: "min",
    aten.amin.default: "min",
}
MEANS = (aten.mean.default, aten.mean.dim)
CONSTANTS: dict[Any, float] = {
    aten.zeros_like.default: 0.0,
    aten.new_zeros.default: 0.0,
    aten.ones_like.default: 1.0,
    aten.new_ones.default: 1.0,
}

# Reductions by the names of their totals.
Totals: TypeAlias = Mapping[str, Node]
# Why there are no kernels.
ROWS = "it has values of rows or columns that kernels cannot compute"


class UnsuitableProgramError(UnrecordableError):
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
    """A phase of a program as the text of kernels.

    Attributes:
        source: The functions.
        kernels: These in the order of their launches: `stage0` and `reduce0`, ..., `last_stage` if there are entries to
            write, and `finish` if there are numbers of each leaf to write.
        scalars: The scalars that they read, each a word of 64 bits.
        sums: The number of sums of each stage but the last.
        rows: For each result of the phase, its row in the buffer of values by leaf; None for others.
        block: The number of entries that have one value of a row, or one scale; a chunk contains whole blocks.
    """

    source: str
    kernels: list[Kernel]
    scalars: list[Node]
    sums: list[int]
    rows: list[int | None]
    block: int


class KernelWriter(ABC):
    """Write one line for each operation, and each stage with the lines that it needs.

    Args:
        program: The program.
        leaf: The index of an argument with the shape of the leaf.
        block: The number of entries of a row, if other phases have rows: then chunks contain whole rows.

    Attributes:
        types: The names of dtypes.
        choice: A template of the code that chooses one of two values, given a condition.
        same_bits: That of a value with the bits of another, given the name of its dtype.
        floating: That of a float64, given the word with its bits.
        total: That of a sum over the leaf, which an earlier stage computed, given the stage and the index of the sum.
    """

    types: ClassVar[Mapping[torch.dtype, str]]
    choice: ClassVar[str]
    same_bits: ClassVar[str]
    floating: ClassVar[str]
    total: ClassVar[str]

    def __init__(self, program: Program, leaf: int, block: int = 1):
        self._program = program
        self._leaves = program.leaves
        like: Any = program.leaves[leaf].meta["val"]
        self._size = like.numel()
        self._is_number = like.ndim == 0  # then so are its slots
        self._block = block  # entries with one scale
        self._names: dict[Node, str] = {}
        self._lines: dict[Node, str] = {}
        self._depths: dict[Node, int] = {}
        self._scalars: list[Node] = []
        self._kernels: list[Kernel] = []
        # The reductions of each stage, and the code of their operands and of those of reductions over rows.
        self._reductions: list[list[Node]] = []
        self._reduced: dict[Node, str] = {}
        self._of_rows: dict[Node, str] = {}
        self._stores: list[Store] = []

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
                if not self._is_mark(node):
                    self._extent(node)
            elif node.op == "call_function" and not is_number(node):
                self._add(node)
        results = self._program.results
        for result in results:
            if isinstance(result, Node) and not (is_list(result) or is_number(result)):
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
        entries = [each for each in self._stores if self._extent(each.like) != "leaf"]
        numbers = [store for store in self._stores if store not in entries]
        if entries:
            functions.append(self._chunk("last_stage", entries, ()))
        # After the last stage, when all chunks of a leaf have read its old numbers.
        if by_leaf or numbers:
            functions.append(self._finish(by_leaf, numbers))
        row = itertools.count()
        rows: list[int | None] = [None] * len(results[:columns])
        for result in results[columns:]:
            rows.append(next(row) if is_list(result) else None)
        return KernelText(
            self._joined(functions),
            self._kernels,
            self._scalars,
            list(map(len, self._reductions)),
            rows,
            self._block,
        )

    # The language.

    @abstractmethod
    def _constant(self, value: Any, dtype: torch.dtype) -> str: ...

    @abstractmethod
    def _converted(self, code: str, dtype: torch.dtype) -> str: ...

    @abstractmethod
    def _assigned(self, name: str, node: Node, code: str) -> str:
        """Return the line that gives a value a name."""

    @abstractmethod
    def _call(self, function: str, operands: Sequence[str]) -> str: ...

    @abstractmethod
    def _divide(self, x: str, y: str, dtype: torch.dtype) -> str:
        """Return the code of a quotient, rounded as torch rounds it."""

    @abstractmethod
    def _root(self, x: str, dtype: torch.dtype) -> str: ...

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
        """Return the kernel that writes numbers of each leaf, with an instance per leaf."""

    @abstractmethod
    def _joined(self, functions: Sequence[str]) -> str:
        """Return the whole text."""

    # Operations.

    def _is_mark(self, node: Node) -> bool:
        """Whether a value has no entries, although the leaf has some: slots that only mark a choice."""
        return node.meta["val"].numel() == 0 < self._size

    def _extent(self, node: Node) -> str:
        """Return what a value has one number for: each "entry", each "block" of entries with one scale, or a "leaf"."""
        value: Any = node.meta["val"]
        if not isinstance(value, Tensor) or value.dtype not in self.types:
            raise UnsuitableProgramError(f"kernels have no {_kind(value)}")
        if value.ndim == 0 or (self._is_number and value.numel() == 1):
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
        if _torch.writes(node.target):
            argument: Any = node.args[0]
            row = self._leaves.index(argument)
            self._stores.append(Store(row, argument, node))
        name = f"t{len(self._lines)}"
        self._names[node] = name
        if not self._is_reduction(node, name):
            if self._extent(node) == "entry":
                self._check_rows(node, inputs)
            self._lines[node] = self._assigned(name, node, self._expression(node))
        if _torch.writes(node.target):  # later operations read the new value
            self._names[node.args[0]] = name  # type: ignore[index]

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
        """Write a reduction of a leaf or of rows; that of a single number, or of rows of one entry, is none."""
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

    def _expression(self, node: Node) -> str:
        """Return the code of an operation on one tile."""
        target, args, dtype = node.target, args_of(node), dtype_of(node)
        if target in CONSTANTS:
            return self._constant(CONSTANTS[target], dtype)
        if target in (aten.full_like.default, aten.full.default, aten.copy_.default):
            return self._operand(args[1], dtype)
        if target is aten.arange.default:
            if self._extent(node) != "entry" or args != (self._size,):
                raise UnsuitableProgramError("positions within a row")
            return "i"
        if target is aten.linalg_vector_norm.default:  # of a single number
            return self._arithmetic("abs", args[:1], {}, dtype)
        if target in (*SAME_ENTRIES, *REDUCTIONS, aten._to_copy.default):
            return self._operand(args[0], dtype)
        if target is aten.view.dtype:
            return self.same_bits.format(self._names[args[0]], self.types[dtype])
        return self._arithmetic(operator_name(node), args, node.kwargs, dtype)

    def _arithmetic(self, name: str, args: Any, kwargs: Any, dtype: torch.dtype) -> str:
        compute = torch.float32 if dtype in HALF else dtype
        if name in COMPARISONS:
            common = _common_dtype(args)
            x, y = (self._operand(item, common) for item in args)
            return f"{x} {COMPARISONS[name]} {y}"
        if name in ("isnan", "isinf", "isfinite"):
            own = dtype_of(args[0])
            own = torch.float32 if own in HALF else own
            x, infinity = self._operand(args[0], own), self._constant(math.inf, own)
            size = self._call("abs", [x])
            return {
                "isnan": f"{x} != {x}",
                "isinf": f"{size} == {infinity}",
                "isfinite": f"{size} < {infinity}",
            }[name]
        operands = [self._operand(item, compute) for item in args]
        code = self._code(name, args, operands, kwargs, compute)
        return code if compute is dtype else self._converted(f"({code})", dtype)

    def _code(
        self,
        name: str,
        args: Any,
        operands: list[str],
        kwargs: Any,
        dtype: torch.dtype,
    ) -> str:
        """Return the code of an operation whose operands have the dtype in which it computes."""
        if name in ("add", "sub"):
            sign = "+" if name == "add" else "-"
            return f"{operands[0]} {sign} {self._scaled(operands[1], kwargs.get('alpha', 1), dtype)}"
        if name == "rsub":
            return f"{operands[1]} - {operands[0]}"
        if name == "neg":
            return f"-({operands[0]})"
        if name == "div" and not kwargs:
            return self._divide(operands[0], operands[1], dtype)
        if name in ("addcmul", "addcdiv"):
            # The factor first, as torch multiplies: the square of a large gradient alone would be infinite.
            scaled = self._scaled(operands[1], kwargs.get("value", 1), dtype)
            product = f"{scaled} * {operands[2]}"
            if name == "addcdiv":
                product = self._divide(f"({scaled})", operands[2], dtype)
            return f"{operands[0]} + {product}"
        if name == "lerp":
            a, b, weight = operands
            near = f"{a} + {weight} * ({b} - {a})"
            far = f"{b} - ({b} - {a}) * (1 - {weight})"
            return self.choice.format(f"{weight} < 0.5", near, far)
        if name == "sqrt" or (name == "pow" and args[1] == 0.5):
            return self._root(operands[0], dtype)
        if name == "pow" and args[1] == 2:
            return f"{operands[0]} * {operands[0]}"
        one = self._constant(1.0, dtype)
        if name == "rsqrt":
            return self._divide(one, self._root(operands[0], dtype), dtype)
        if name == "reciprocal":
            return self._divide(one, operands[0], dtype)
        if name == "sigmoid":
            power = self._call("exp", [f"-({operands[0]})"])
            return self._divide(one, f"({one} + {power})", dtype)
        if name == "sign":
            above, below = f"({operands[0]} > 0)", f"({operands[0]} < 0)"
            return f"{self._converted(above, dtype)} - {self._converted(below, dtype)}"
        if name == "where":
            return self.choice.format(self._operand(args[0], torch.bool), *operands[1:])
        if name == "nan_to_num":
            return self._without_nan(operands[0], args, dtype)
        if name == "clamp":
            return self._clamped(operands[0], args, kwargs, dtype)
        if name in ("bitwise_not", "logical_not"):
            is_flag = dtype is torch.bool
            return f"{operands[0]} == 0" if is_flag else f"~({operands[0]})"
        if name == "mul" and dtype is torch.bool:
            name = "logical_and"
        if name in INFIX and not kwargs:
            return f"{operands[0]} {INFIX[name]} {operands[1]}"
        if (name in RENAMED or name in FUNCTIONS.split()) and not kwargs:
            return self._call(RENAMED.get(name, name), operands)
        raise UnsuitableProgramError(f"kernels have no {name}")

    def _without_nan(self, operand: str, args: Any, dtype: torch.dtype) -> str:
        """Return the code of `nan_to_num`."""
        largest = torch.finfo(dtype).max
        instead = [0.0, largest, -largest]
        for i, value in enumerate(args[1:]):
            instead[i] = instead[i] if value is None else value
        nan, top, bottom = (self._constant(value, dtype) for value in instead)
        ends = [self._constant(sign * math.inf, dtype) for sign in (1, -1)]
        is_top, is_bottom = (f"{operand} == {end}" for end in ends)
        finite = self.choice.format(is_bottom, bottom, operand)
        finite = self.choice.format(is_top, top, finite)
        return self.choice.format(f"{operand} == {operand}", finite, nan)

    def _clamped(self, operand: str, args: Any, kwargs: Any, dtype: torch.dtype) -> str:
        bounds = [*args[1:], None, None]
        lower = kwargs.get("min", bounds[0])
        upper = kwargs.get("max", bounds[1])
        for bound, function in ((lower, "maximum"), (upper, "minimum")):
            if bound is not None:
                operand = self._call(function, [operand, self._operand(bound, dtype)])
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
        own = dtype_of(value)
        if own is dtype:
            return name
        if dtype is torch.bool:
            return f"({name} != 0)"
        if own is torch.float64 and dtype in HALF:  # as torch rounds it
            name = self._converted(name, torch.float32)
        return self._converted(name, dtype)

    def _scalar(self, node: Node, dtype: torch.dtype) -> str:
        if node not in self._scalars:
            self._scalars.append(node)
        word = f"s{self._scalars.index(node)}"
        if dtype_of(node).is_floating_point:
            word = self.floating.format(word)
        if dtype is torch.bool:
            return f"({word} != 0)"
        return self._converted(word, dtype)

    # Kernels.

    def _note(self, name: str, read: Sequence[Node], written: Sequence[Store]) -> None:
        """Add a kernel, and what it moves."""
        reads = {self._leaves.index(leaf): self._bytes_per_entry(leaf) for leaf in read}
        writes = {store.row: self._bytes_per_entry(store.like) for store in written}
        self._kernels.append(Kernel(name, reads, writes))

    def _bytes_per_entry(self, leaf: Node) -> float:
        """Return the bytes of an argument per entry of the leaf; a number of a leaf counts as none."""
        entries = {"entry": 1.0, "block": 1 / self._block, "leaf": 0.0}
        return dtype_of(leaf).itemsize * entries[self._extent(leaf)]

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

    def _numbers_of_leaf(
        self, results: Sequence[Node], stores: Sequence[Store]
    ) -> list[str]:
        """Return the lines that compute results, and write other numbers of a leaf."""
        operations, read = self._needed([*results, *(each.node for each in stores)])
        if any(self._extent(leaf) != "leaf" for leaf in read):
            raise UnsuitableProgramError("a number of a leaf depends on single entries")
        self._note("finish", (), ())  # numbers of each leaf only
        lines = self._pointers(self._rows(read, stores))
        lines += map(self._line, [*read, *operations])
        lines += map(self._store, stores)
        return lines

    def _values_of_row(self, nodes: Sequence[Node]) -> list[str]:
        """Return the lines that compute the values of a row, among some operations and arguments, in several passes."""
        passes: dict[Node, int] = {}
        for node in nodes:
            if self._extent(node) != "leaf":
                inputs = (passes.get(item, 0) for item in node.all_input_nodes)
                passes[node] = max(inputs, default=0) + (node in self._of_rows)
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
        entries = [each for each in outputs if self._extent(each) == "entry"]
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


def _common_dtype(args: Sequence[Any]) -> torch.dtype:
    """Return the dtype in which torch compares operands."""
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    return torch.result_type(*values)


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
