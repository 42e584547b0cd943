"""Hyperparameters: schedules, and exact numbers, 0-d float64 tensors created without reading a value on the host."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base.messages import describe
from gradtx.base.torch_names import is_transformed

__all__ = ["Betas", "Scalar", "Schedule"]

CPU = torch.device("cpu")
WITHOUT_FLOAT64 = ("mps",)  # types of devices


class Schedule:
    """A hyperparameter that changes with the step: a pure function of the number of finished updates.

    The first update uses `schedule(0)`, as with torch's schedulers.

    Args:
        function: Maps a step, a Python int or a 0-d tensor, to a number or a 0-d tensor. It must be defined for every
            step >= 0 and must not read the tensor on the host (use `torch.where`, not `if`). Chains pass a whole
            number in float64, so that arithmetic with Python floats stays exact.

    Raises:
        TypeError: If `function` is not callable.

    Example:
        >>> halve = Schedule(lambda step: 0.1 * 0.5**step)
        >>> halve(0), halve(2)
        (0.1, 0.025)
    """

    # Whether it may read values of Python that change between calls.
    reads_outside = True

    def __init__(self, function: Callable[[Any], Any]):
        if not callable(function):
            raise TypeError(f"Schedule: needs a function of the step, got {function!r}")
        self._function = function

    def __call__(self, step: Any) -> Any:
        return self._function(step)

    def at(self, count: int) -> Any:
        """Return the value that a step at this count uses: a number, or a 0-d float64 tensor."""
        return resolve(self, count)

    def text(self) -> str | None:
        """Return what only equal schedules have, if they consist of constants and of this library's functions."""
        return None

    def constants(self) -> Any:
        """Return what equal schedules share if they consist of constants and of this library's functions; else None.

        Numbers that may also be tensors are left out.
        """
        return None

    def __repr__(self) -> str:
        return f"Schedule({describe(self._function)})"

    if TYPE_CHECKING:  # factory bodies receive the schedule's value and compute with it

        def _operator(self, other: Any) -> Any: ...
        def __neg__(self) -> Any: ...

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _operator
        __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _operator


Scalar: TypeAlias = float | Tensor | Schedule
Betas: TypeAlias = tuple[Scalar, ...]


def exact(value: Any, device: torch.device) -> Tensor:
    """Convert a number or 0-d tensor to float64, which `torch.as_tensor` would not do for a Python float.

    The value is filled in on the device, even from a 0-d tensor on the host: a transfer would wait for the device's
    queue. A symbolic size stays symbolic, so that one traced program serves all sizes.
    """
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=exact_dtype(device), device=device)
    is_on_host = value.device.type == "cpu" and device.type != "cpu"
    if is_on_host and value.ndim == 0 and not is_transformed(value):
        dtype = exact_dtype(device)
        return torch.zeros((), dtype=dtype, device=device) + value.to(dtype)
    if value.is_meta:  # has no value to copy, for example where `memory` plans a run
        device = value.device
    return value.to(device, exact_dtype(device))


def exact_dtype(like: Any) -> torch.dtype:
    """Return float64, or float32 if the device, or that of a tensor, has no float64."""
    device = like.device if isinstance(like, Tensor) else like
    has_none = getattr(device, "type", "cpu") in WITHOUT_FLOAT64
    return torch.float32 if has_none else torch.float64


def dtype_on(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return a dtype, or float32 in place of float64 if the device has no float64."""
    return exact_dtype(device) if dtype is torch.float64 else dtype


def python_scalar(value: Any) -> Any:
    """Return the value of a 0-d tensor as a Python scalar, and other values unchanged."""
    return value.item() if isinstance(value, Tensor) else value


def log_or_zero(beta: Any) -> Any:
    """Return log(beta), or 0 in place of -inf at beta = 0; a Python number keeps its full precision."""
    if isinstance(beta, Tensor):
        return torch.where(beta == 0, torch.ones_like(beta), beta).log()
    return math.log(beta) if beta else 0.0


def resolve(value: Any, count: Any) -> Any:
    """Return the value of an argument at `count` finished updates.

    Tensors and the values of schedules become float64, because 1 - 0.999 in float32 is off by 1e-5, and move to the
    device of the count, unless they are on an accelerator.
    """
    if isinstance(value, tuple):
        return tuple(resolve(item, count) for item in value)
    if isinstance(value, Schedule):
        device = count.device if isinstance(count, Tensor) else CPU
        # Pass a tensor, so that `torch.where` works, in float64, because int64 times a Python float would be float32.
        number = value(exact(count, device))
        if not isinstance(number, Tensor | numbers.Real):
            raise TypeError(
                f"{value!r} returned {describe(number)}; a schedule must return a number or a 0-d tensor"
            )
        return number_on(device, number)
    if isinstance(value, Tensor):
        return number_on(count.device if isinstance(count, Tensor) else CPU, value)
    return value


def number_on(device: torch.device, value: Any) -> Any:
    """Return a number as rules receive it for leaves on a device: 0-d float64; a schedule returns such numbers there.

    Most operations take a 0-d operand from the host, but `clamp` raises an error, and `where` waits for its copy.
    """
    if isinstance(value, Schedule):
        if device.type == "cpu":
            return value
        return Schedule(lambda step: exact(value(step), device))
    if isinstance(value, Tensor) and value.device.type != "cpu":
        device = value.device
    return exact(value, device)


def is_stored_only(dtype: torch.dtype) -> bool:
    """Whether torch stores a floating-point dtype, such as float8 or float4, but does not compute with it."""
    return dtype.is_floating_point and dtype.itemsize < 2
