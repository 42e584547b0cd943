"""Compute the 0-d tensors of a recording that all leaves share with Python scalars.

A Python operation takes 50 ns, one on tensors a microsecond. Where Python raises an exception (1 / 0) or lacks an
operation, torch's is called on 0-d tensors.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.base.exact import python_scalar

aten = torch.ops.aten


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        return base**exponent
    return math.pow(base, exponent)


def _inverse_root(x: Any) -> float:
    return 1.0 / math.sqrt(x)


def _reciprocal(x: Any) -> float:
    return 1.0 / x


def _reversed_difference(x: Any, y: Any) -> Any:
    return y - x


def _choice(condition: Any, x: Any, y: Any) -> Any:
    return x if condition else y


def _larger(x: Any, y: Any) -> Any:
    return y if y > x or y != y else x  # propagates NaN, as torch does


def _smaller(x: Any, y: Any) -> Any:
    return y if y < x or y != y else x


def _same(x: Any) -> Any:
    return x


def _sign(x: Any) -> Any:
    return (x > 0) - (x < 0)


def _both(x: Any, y: Any) -> bool:
    return bool(x) and bool(y)


def _either(x: Any, y: Any) -> bool:
    return bool(x) or bool(y)


# Functions of positional arguments only, which may raise only ArithmeticError or ValueError.
IN_PYTHON: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: operator.add,
    aten.add.Scalar: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.sub.Scalar: operator.sub,
    aten.rsub.Scalar: _reversed_difference,
    aten.rsub.Tensor: _reversed_difference,
    aten.mul.Tensor: operator.mul,
    aten.mul.Scalar: operator.mul,
    aten.div.Tensor: operator.truediv,
    aten.div.Scalar: operator.truediv,
    aten.remainder.Scalar: operator.mod,
    aten.remainder.Tensor: operator.mod,
    aten.neg.default: operator.neg,
    aten.abs.default: abs,
    aten.sign.default: _sign,
    aten.reciprocal.default: _reciprocal,
    aten.sqrt.default: math.sqrt,
    aten.rsqrt.default: _inverse_root,
    aten.exp.default: math.exp,
    aten.expm1.default: math.expm1,
    aten.log.default: math.log,
    aten.log1p.default: math.log1p,
    aten.cos.default: math.cos,
    aten.sin.default: math.sin,
    aten.tanh.default: math.tanh,
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Tensor_Tensor: _power,
    aten.pow.Scalar: _power,
    aten.gt.Scalar: operator.gt,
    aten.gt.Tensor: operator.gt,
    aten.ge.Scalar: operator.ge,
    aten.ge.Tensor: operator.ge,
    aten.lt.Scalar: operator.lt,
    aten.lt.Tensor: operator.lt,
    aten.le.Scalar: operator.le,
    aten.le.Tensor: operator.le,
    aten.eq.Scalar: operator.eq,
    aten.eq.Tensor: operator.eq,
    aten.ne.Scalar: operator.ne,
    aten.ne.Tensor: operator.ne,
    aten.isfinite.default: math.isfinite,
    aten.isnan.default: math.isnan,
    aten.logical_not.default: operator.not_,
    aten.bitwise_and.Tensor: _both,
    aten.logical_and.default: _both,
    aten.bitwise_or.Tensor: _either,
    aten.logical_or.default: _either,
    aten.where.self: _choice,
    aten.maximum.default: _larger,
    aten.minimum.default: _smaller,
    aten.detach.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.scalar_tensor.default: _same,
}
_ON_BOOLS = (aten.bitwise_and.Tensor, aten.bitwise_or.Tensor)
_CONVERSIONS = (aten._to_copy.default, torch.ops.prims.convert_element_type.default)
_FULL = (aten.full.default, aten.full_like.default)
_FILLED = {
    aten.zeros_like.default: 0,
    aten.ones_like.default: 1,
    aten.zeros.default: 0,
    aten.ones.default: 1,
}


def in_python(node: Node) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a function of Python scalars that is equivalent to `node`, and its arguments."""
    dtype = node.meta["val"].dtype
    target: Any = node.target
    if target in _FILLED:
        value = _as(dtype)(_FILLED[target])
        return _same, (value,)
    if target in _FULL:
        return _as(dtype), (node.args[1],)
    if target in _CONVERSIONS:
        return _as(dtype), node.args[:1]
    return _function_of(node, dtype), node.args


def _function_of(node: Node, dtype: torch.dtype) -> Callable[..., Any]:
    """Return the function of an operation that computes its result from its arguments."""
    target = node.target
    dtypes = tuple(map(_dtype_of, node.args))
    by_tensors = functools.partial(_by_tensors, target, node.kwargs, dtypes)
    function = IN_PYTHON.get(target)
    if function is None:
        return by_tensors
    if target in _ON_BOOLS and dtype is not torch.bool:
        return by_tensors
    if node.kwargs and target not in _LIKE:
        return by_tensors
    if function in _MAY_OVERFLOW and _is_integer(dtype):
        function = functools.partial(_wrapped, function, dtype)
    if function in _NEVER_RAISE:
        return function
    return OrElse(function, by_tensors)


def expression_of(function: Callable[..., Any]) -> str:
    """Return how to write a function of `in_python`; the format's `{call}` calls it."""
    if isinstance(function, OrElse):
        return QUOTIENTS.get(function.function, "{call}")
    return WRITTEN.get(function, "{call}")


# As operator expressions, which take a third of the time of a call: functions that never raise, and those that raise
# only where a divisor is 0.
QUOTIENTS: dict[Callable[..., Any], str] = {
    operator.truediv: "{0} / {1} if {1} else {call}",
    _reciprocal: "1.0 / {0} if {0} else {call}",
}
WRITTEN: dict[Callable[..., Any], str] = {
    operator.add: "{} + {}",
    operator.sub: "{} - {}",
    operator.mul: "{} * {}",
    operator.neg: "-{}",
    operator.gt: "{} > {}",
    operator.ge: "{} >= {}",
    operator.lt: "{} < {}",
    operator.le: "{} <= {}",
    operator.eq: "{} == {}",
    operator.ne: "{} != {}",
    operator.not_: "not {}",
    _reversed_difference: "{1} - {0}",
    _choice: "{1} if {0} else {2}",
    _same: "{}",
}
_MAY_OVERFLOW = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.neg,
    abs,
    _power,
    _reversed_difference,
)
# Their options don't change the value.
_LIKE = (aten.clone.default, aten.scalar_tensor.default)
_NEVER_RAISE = {
    *WRITTEN,
    *(
        abs,
        math.isfinite,
        math.isnan,
        math.tanh,
        _larger,
        _smaller,
        _sign,
        _both,
        _either,
    ),
}


def _as(dtype: torch.dtype) -> Callable[[Any], Any]:
    """Return the conversion of a scalar to the Python type of a dtype."""
    if _is_integer(dtype):
        return functools.partial(_wrapped, int, dtype)
    return bool if dtype is torch.bool else float


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def _wrapped(function: Callable[..., Any], dtype: torch.dtype, *args: Any) -> Any:
    """Return an integer result in the range of its dtype: torch's integers wrap, Python's grow."""
    info = torch.iinfo(dtype)
    return (function(*args) - info.min) % 2**info.bits + info.min


class OrElse(NamedTuple):
    """A function, or another one where it raises."""

    function: Callable[..., Any]
    otherwise: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        try:
            return self.function(*args)
        except (ArithmeticError, ValueError):  # torch returns inf or NaN
            return self.otherwise(*args)


def _dtype_of(argument: Any) -> torch.dtype | None:
    return argument.meta["val"].dtype if isinstance(argument, Node) else None


def _by_tensors(
    target: Any, kwargs: Any, dtypes: tuple[torch.dtype | None, ...], *args: Any
) -> Any:
    """Return the result of torch's operation on 0-d tensors, as a Python scalar."""
    options = dict(kwargs)
    if "device" in options:
        options["device"] = torch.device("cpu")
    with _torch.without_modes():  # in which a compiler's stand-ins have no values
        arguments = []
        for value, dtype in zip(args, dtypes, strict=True):
            if dtype is not None:
                value = torch.tensor(value, dtype=dtype)
            arguments.append(value)
        return python_scalar(target(*arguments, **options))
