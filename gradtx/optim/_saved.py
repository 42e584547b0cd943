"""A parameter's saved state, matched against its first state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

REMEDY = "load the state of an optimizer built from the same chain, or pass strict=False to keep fresh state"


def matched(
    name: str,
    saved: Mapping[str, Any],
    first: Mapping[str, Tensor],
    device: torch.device,
    strict: bool,
) -> dict[str, Tensor]:
    """A parameter's saved entry, in the dtypes and on the devices of its first state.

    Args:
        name: The parameter's name.
        saved: The entry; torch's and adam-atan2-pytorch's are understood.
        first: The parameter's first state.
        device: The parameter's device.
        strict: Whether a missing or unknown slot is an error.

    Raises:
        ValueError: a slot is missing or unknown, or has another shape or kind.
    """
    saved = _in_our_words(saved, first)
    state: dict[str, Tensor] = {}
    for key, value in first.items():
        if key in saved:
            state[key] = _as_slot(name, key, saved[key], value, device)
        elif strict and saved:
            raise ValueError(f"state of parameter {name!r} lacks {key!r}; {REMEDY}")
        else:
            state[key] = value
    unknown = sorted(saved.keys() - first.keys())
    if unknown and strict:
        raise ValueError(f"state of parameter {name!r} has {unknown[0]!r}, which this chain does not keep; {REMEDY}")
    return state


def _in_our_words(saved: Mapping[str, Any], first: Mapping[str, Tensor]) -> dict[str, Any]:
    """An entry without empty values, with a count under "step"."""
    entry = {key: value for key, value in saved.items() if value is not None}
    if "steps" in entry and "steps" not in first:  # adam-atan2-pytorch's word
        entry["step"] = entry.pop("steps")
        if "initial_lr" in first:  # and its rates are kept divided by the first learning rate
            entry.setdefault("initial_lr", 1.0)
    if "step" not in entry and entry.keys() & first.keys() == {"momentum_buffer"}:
        entry["step"] = 1.0  # torch's SGD keeps no count; a buffer means that it has stepped
    return entry


def _as_slot(
    name: str,
    key: str,
    saved: Any,
    first: Tensor,
    device: torch.device,
) -> Tensor:
    value = torch.as_tensor(saved)
    if value.shape != first.shape:
        shapes = f"{tuple(value.shape)}, needs {tuple(first.shape)}"
        raise ValueError(f"state of parameter {name!r}: {key!r} has shape {shapes}")
    if value.is_complex():
        raise ValueError(f"state of parameter {name!r}: {key!r} has dtype {value.dtype}, needs {first.dtype}")
    if key == "step" and not (value >= 0 and value == value.round()):
        raise ValueError(f"state of parameter {name!r}: 'step' must be a count, got {value.item():g}")
    return value.detach().to(first.device if first.ndim == 0 else device, first.dtype, copy=True)
