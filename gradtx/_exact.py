"""Hyperparameters as exact numbers: 0-d float64 tensors, created without reading a value on the host."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import Schedule
from gradtx._messages import describe


def exact(value: Any, device: torch.device) -> Tensor:
    """Convert a number or 0-d tensor to float64, which `torch.as_tensor` would not do for a Python float.

    The value is filled in on the device, even from a 0-d tensor on the host: a transfer would wait for the device's
    queue. A symbolic size stays symbolic, so that one traced program serves all sizes.
    """
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=exact_dtype(device), device=device)
    if value.device.type == "cpu" and device.type != "cpu" and value.ndim == 0:
        return torch.zeros((), dtype=exact_dtype(device), device=device) + value
    if value.is_meta:  # has no value to copy, for example where `memory` plans a run
        device = value.device
    return value.to(device, exact_dtype(device))


def exact_dtype(like: Any) -> torch.dtype:
    """Return float64, or float32 on a device without float64."""
    device = like.device if isinstance(like, Tensor) else like
    return torch.float32 if getattr(device, "type", "cpu") == "mps" else torch.float64


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

    Tensors and the values of schedules become float64, because 1 - 0.999 in float32 is off by 1e-5.
    """
    if isinstance(value, tuple):
        return tuple(resolve(item, count) for item in value)
    if isinstance(value, Schedule):
        return _scheduled(value, count)
    if isinstance(value, Tensor):
        return exact(value, value.device)
    return value


def _scheduled(schedule: Schedule, count: Any) -> Tensor:
    device = count.device if isinstance(count, Tensor) else torch.device("cpu")
    # Pass a tensor, so that `torch.where` works, in float64, because int64 times a Python float would be float32.
    value = schedule(exact(count, device))
    if not isinstance(value, Tensor | numbers.Real):
        raise TypeError(
            f"{schedule!r} returned {describe(value)}; a schedule must return a number or a 0-d tensor"
        )
    return exact(value, device)
