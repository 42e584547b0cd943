"""Write an operation of a lowered graph as an expression of a kernel: what Triton and C++ share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.fx import Node

from gradtx.compiler.graph import args_of, dtype_of, is_scalar, operator_name
from gradtx.compiler.record import UnrecordableError
from gradtx.compiler.simplify import SAME_ENTRIES

aten = torch.ops.aten

# Dtypes of memory, whose values are computed in float32.
HALF = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
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


class UnsuitableProgramError(UnrecordableError):
    """Kernels cannot run a program; the message gives the reason."""


class ExpressionWriter(ABC):
    """Write one expression for each operation on the entries of a leaf.

    Attributes:
        types: The names of dtypes.
        choice: A template of the code that chooses one of two values, given a condition.
        same_bits: That of a value with the bits of another, given the name of its dtype.
        floating: That of a float64, given the word with its bits.
    """

    types: ClassVar[Mapping[torch.dtype, str]]
    choice: ClassVar[str]
    same_bits: ClassVar[str]
    floating: ClassVar[str]
    _by_row = False  # whether leaves have scalars of their own

    def __init__(self) -> None:
        self._names: dict[Node, str] = {}
        self._scalars: list[Node] = []

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
    def _position(self, node: Node) -> str:
        """Return the code of an entry's index in its leaf."""

    # Operations.

    def _expression(self, node: Node) -> str:
        """Return the code of an operation on one tile."""
        target, args, dtype = node.target, args_of(node), dtype_of(node)
        if target in CONSTANTS:
            return self._constant(CONSTANTS[target], dtype)
        if target in (aten.full_like.default, aten.full.default, aten.copy_.default):
            return self._operand(args[1], dtype)
        if target is aten.arange.default:
            return self._position(node)
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
        if name in ("isnan", "isinf"):
            own = dtype_of(args[0])
            own = torch.float32 if own in HALF else own
            x, infinity = self._operand(args[0], own), self._constant(math.inf, own)
            size = self._call("abs", [x])
            return f"{x} != {x}" if name == "isnan" else f"{size} == {infinity}"
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
            is_near = f"{weight} < 0.5"
            start = self.choice.format(is_near, a, b)
            step = self.choice.format(is_near, weight, f"{weight} - 1")
            return f"{start} + {step} * ({b} - {a})"
        if name == "sqrt":
            return self._root(operands[0], dtype)
        if name == "pow":
            return self._power(operands, args, dtype)
        constant_one = self._constant(1.0, dtype)
        if name == "rsqrt":
            return self._divide(constant_one, self._root(operands[0], dtype), dtype)
        if name == "reciprocal":
            return self._divide(constant_one, operands[0], dtype)
        if name == "sigmoid":
            power = self._call("exp", [f"-({operands[0]})"])
            return self._divide(constant_one, f"({constant_one} + {power})", dtype)
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

    def _power(self, operands: list[str], args: Any, dtype: torch.dtype) -> str:
        """Return the code of a power."""
        if args[1] == 0.5:
            return self._root(operands[0], dtype)
        if args[1] == 2:
            return f"{operands[0]} * {operands[0]}"
        return self._call("pow", operands)

    def _without_nan(self, operand: str, args: Any, dtype: torch.dtype) -> str:
        """Return the code of `nan_to_num`; `dtype` may be wider than the entries, whose largest number it is."""
        largest = torch.finfo(dtype_of(args[0])).max
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
        if is_scalar(value):
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


def _common_dtype(args: Sequence[Any]) -> torch.dtype:
    """Return the dtype in which torch compares operands."""
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    return torch.result_type(*values)
