"""Compute the 0-d tensors of a recording that all leaves share with Python scalars.

A Python operation takes 50 ns, one on tensors a microsecond. Where Python raises an exception (1 / 0) or lacks an
operation, torch's is called on 0-d tensors.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.base.exact import python_scalar

aten = torch.ops.aten


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        return base**exponent
    return math.pow(base, exponent)


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


# By operator, in any overload: functions of positional arguments only, which may raise only ArithmeticError or
# ValueError.
IN_PYTHON: dict[Any, Callable[..., Any]] = {
    aten.add: operator.add,
    aten.sub: operator.sub,
    aten.rsub: _reversed_difference,
    aten.mul: operator.mul,
    aten.div: operator.truediv,
    aten.remainder: operator.mod,
    aten.neg: operator.neg,
    aten.abs: abs,
    aten.sign: _sign,
    aten.reciprocal: _reciprocal,
    aten.sqrt: math.sqrt,
    aten.exp: math.exp,
    aten.expm1: math.expm1,
    aten.log: math.log,
    aten.cos: math.cos,
    aten.pow: _power,
    aten.gt: operator.gt,
    aten.ge: operator.ge,
    aten.lt: operator.lt,
    aten.le: operator.le,
    aten.eq: operator.eq,
    aten.ne: operator.ne,
    aten.isnan: math.isnan,
    aten.bitwise_not: operator.not_,
    aten.bitwise_and: _both,
    aten.bitwise_or: _either,
    aten.where: _choice,
    aten.maximum: _larger,
    aten.minimum: _smaller,
    aten.clone: _same,
    aten.scalar_tensor: _same,
}
_ON_BOOLS = (aten.bitwise_not, aten.bitwise_and, aten.bitwise_or)
_FULL = (aten.full, aten.full_like)
_FILLED = {
    aten.zeros_like: 0,
    aten.ones_like: 1,
    aten.zeros: 0,
    aten.ones: 1,
}


def in_python(node: Node) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a function of Python scalars that is equivalent to `node`, and its arguments.

    Some raise an ArithmeticError or a ValueError where `by_torch` gives a value.
    """
    dtype = node.meta["val"].dtype
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _FILLED:
        value = _as(dtype)(_FILLED[packet])
        return _same, (value,)
    if packet in _FULL:
        return _as(dtype), (node.args[1],)
    if packet is aten._to_copy:
        return _as(dtype), node.args[:1]
    function = IN_PYTHON.get(packet)
    has_options = node.kwargs and packet not in _LIKE
    is_bitwise = packet in _ON_BOOLS and dtype is not torch.bool
    if function is None or has_options or is_bitwise:
        return by_torch(node), node.args
    if function in _MAY_OVERFLOW and _is_integer(dtype):
        function = functools.partial(_wrapped, function, dtype)
    return function, node.args


def by_torch(node: Node) -> Callable[..., Any]:
    """Return a function of Python scalars that calls torch's operation."""
    dtypes = tuple(map(_dtype_of, node.args))
    return functools.partial(_by_tensors, node.target, node.kwargs, dtypes)


# As operator expressions, which take a third of the time of a call.
WRITTEN: dict[Callable[..., Any], str] = {
    operator.truediv: "{} / {}",
    _reciprocal: "1.0 / {}",
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
_LIKE = (aten.clone, aten.scalar_tensor)
MAY_RAISE = {
    operator.truediv,
    operator.mod,
    _reciprocal,
    *(math.sqrt, math.exp, math.expm1, math.log, math.cos),
    _power,
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
