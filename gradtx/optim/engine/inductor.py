"""The back end that compiles programs with torch's inductor, and faster forms of some operations for it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.messages import close
from gradtx.optim.engine import torch_compiler

# Creates a callable from a traced graph, example arguments and the user's options. The callable accepts tensors like
# the examples (their symbolic sizes may differ), writes in place to the same arguments as the graph, and returns the
# graph's results.
Backend: TypeAlias = Callable[
    [Any, Sequence[Any], Mapping[str, Any]], Callable[..., Any]
]


def compile_with_inductor(
    graph: Any, examples: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a graph."""
    # Otherwise torch builds a C++ program for each instruction set, 6 to 9 s in all, to test whether all tools support
    # it; a compile error reveals that as well.
    options = {"cpp.vec_isa_ok": True, **_vector_width(), **options}
    if not torch_compiler.asserts_bind_sizes():
        options = {"size_asserts": False, **options}
    with warnings.catch_warnings():
        # Of the compiler, such as a deprecation warning at its first import.
        warnings.simplefilter("ignore")
        return torch_compiler.compile_graph(graph, examples, options)


def _vector_width() -> dict[str, int]:
    """Return the option for the width of this processor's vectors.

    The key of inductor's cache omits the processor but includes options. Without this one, processors of different
    kinds that share the cache run kernels generated for wider or narrower vectors, which skip entries.
    """
    widths = {"AVX512": 512, "AVX2": 256}
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpp.simdlen": widths[capability]} if capability in widths else {}


def compiler_options(compile: Any) -> dict[str, Any]:
    """Translate the argument `compile=` into options of torch's compiler.

    Args:
        compile: True, a mode of `torch.compile`, or a dict of its options.

    Raises:
        TypeError: If `compile` is none of these.
        ValueError: If the mode or an option is unknown.
    """
    if compile is True:
        return {}
    if isinstance(compile, Mapping):
        return _checked_options(compile)
    if isinstance(compile, str):
        modes = torch_compiler.compiler_modes()
        if compile not in modes:
            raise ValueError(
                f"compile: unknown mode {compile!r}; modes: {', '.join(modes)}"
            )
        return dict(modes[compile])
    raise TypeError(
        f"compile must be True, False, a mode of torch.compile, a dict of its options or an Engine, got {compile!r}"
    )


def _checked_options(options: Mapping[Any, Any]) -> dict[str, Any]:
    known = torch_compiler.compiler_option_names()
    for name in options:
        if not isinstance(name, str):
            raise TypeError(f"compile: option names must be strings, got {name!r}")
        # As torch.compile reads them.
        if name.replace("-", "_") not in known:
            meant = close(name, known)
            hint = "" if meant is None else f"; did you mean {meant!r}?"
            raise ValueError(f"compile: torch's compiler has no option {name!r}{hint}")
    return dict(options)


# Minimax approximation of atan(t) / t by a polynomial in t^2 for t in [0, 1]: relative error 2e-8, rounding adds 1e-7.
ATAN = (
    *(0.999999985, -0.333330733, 0.199926194, -0.142036447, 0.106409344),
    *(-0.0750429475, 0.0426915161, -0.0160686242, 0.00284988782),
)


def _atan(x: Tensor) -> Any:
    """Return the float32 arc tangent in operations that a kernel can inline; torch's kernels call a library."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    size = x.abs()
    t = torch.where(size > 1, 1 / size, size)
    square = t * t
    value = torch.full_like(t, ATAN[-1])
    for coefficient in reversed(ATAN[:-1]):
        value = value * square + coefficient
    value = torch.where(size > 1, math.pi / 2 - t * value, t * value)
    return torch.where(x < 0, -value, value)


def _in_single(function: Any) -> Any:
    """Compute a bfloat16 product in float32, rounded once, where that is faster."""

    def product(*arguments: Any, **options: Any) -> Any:
        first: Tensor = arguments[0]
        if (
            first.dtype != torch.bfloat16
            or first.device.type != "cpu"
            or _torch.multiplies_in_bfloat16()
        ):
            return NotImplemented
        wide = [
            argument.float() if isinstance(argument, Tensor) else argument
            for argument in arguments
        ]
        return function(*wide, **options).to(torch.bfloat16)

    return product


def _in_two_steps(x: Tensor, **options: Any) -> Any:
    """Convert float32 to an 8-bit integer by way of int32, in 2 instructions; torch's direct conversion takes 7."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    if options.keys() != {"dtype"} or options["dtype"] not in INTEGERS:
        return NotImplemented
    return x.to(torch.int32).to(**options)


def _isnan(x: Tensor) -> Any:
    """Find NaN by a comparison: torch's CPU kernels test each entry alone."""
    return x != x if x.device.type == "cpu" else NotImplemented


def _nan_to_num(
    x: Tensor,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Any:
    """Replace NaN in one operation if infinities remain."""
    if x.device.type != "cpu" or not x.is_floating_point():
        return NotImplemented
    keeps_infinities = posinf == math.inf and neginf == -math.inf
    if nan is None or not keeps_infinities:
        return NotImplemented
    return torch.where(x.isnan(), nan, x)


def _where(condition: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Select among 8-bit floats as float32, which represents them exactly: the compiler has no other form of it."""
    if x.dtype is not other.dtype or x.dtype not in EIGHT_BITS:
        return NotImplemented
    return torch.where(condition, x.float(), other.float()).to(x.dtype)


aten = torch.ops.aten
INTEGERS = (torch.int8, torch.uint8)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
REPLACED = {
    aten.atan.default: _atan,
    aten.isnan.default: _isnan,
    aten.nan_to_num.default: _nan_to_num,
    aten.where.self: _where,
    aten._to_copy.default: _in_two_steps,
    aten.lift_fresh_copy.default: torch.clone,
    **{product: _in_single(product) for product in PRODUCTS},
}
