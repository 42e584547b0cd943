"""Loading a state dict: everything is checked, and made, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.optim._run import Layout

OTHER = "load the state of an optimizer built from the same chain, or pass strict=False to keep fresh state"


def matched(
    name: str, saved: Mapping[str, Any], fresh: Mapping[str, Tensor], device: torch.device, strict: bool
) -> dict[str, Tensor]:
    """One parameter's saved entry, in the dtypes and on the device of its fresh state.

    Raises:
        ValueError: a slot is missing, unknown or shaped otherwise.
    """
    saved = {key: value for key, value in saved.items() if value is not None}
    if "steps" in saved and "steps" not in fresh:  # adam-atan2-pytorch's word
        saved["step"] = saved.pop("steps")
        if "initial_lr" in fresh:  # and its rates are kept divided by the first learning rate
            saved.setdefault("initial_lr", 1.0)
    if "step" not in saved and saved.keys() & fresh.keys() == {"momentum_buffer"}:
        saved["step"] = 1.0  # torch's SGD keeps no count; a buffer means that it has stepped
    new = {}
    for key, value in fresh.items():
        if key not in saved:
            if strict and saved:
                raise ValueError(f"state of parameter {name!r} lacks {key!r}; {OTHER}")
            new[key] = value
            continue
        found = torch.as_tensor(saved[key])
        if found.shape != value.shape:
            raise ValueError(
                f"state of parameter {name!r}: {key!r} has shape {tuple(found.shape)}, needs {tuple(value.shape)}"
            )
        if found.is_complex():
            raise ValueError(f"state of parameter {name!r}: {key!r} has dtype {found.dtype}, needs {value.dtype}")
        if key == "step" and not (found >= 0 and found == found.round()):
            raise ValueError(f"state of parameter {name!r}: 'step' must be a count, got {found.item():g}")
        new[key] = found.detach().to(value.device if value.ndim == 0 else device, value.dtype, copy=True)
    unknown = sorted(saved.keys() - fresh.keys())
    if unknown and strict:
        raise ValueError(f"state of parameter {name!r} has {unknown[0]!r}, which this chain does not keep; {OTHER}")
    return new


def agree_on_shared(
    states: Mapping[Any, dict[str, Tensor]], layouts: Mapping[Any, Layout], absent: set, name: Callable[[Any], str]
) -> None:
    """Values that all parameters share must have been saved equal; a parameter without an entry takes them over."""
    seen: dict[Any, Tensor] = {}
    for param in sorted(layouts, key=lambda param: param in absent):
        for path, names in layouts[param].shared.items():
            for slot, key in names.items():
                value = states[param][key]
                first = seen.setdefault((path, slot), value)
                if param in absent:
                    states[param][key] = first
                elif not torch.equal(first, value) and not (first.isnan() and value.isnan()):
                    raise ValueError(
                        f"state of parameter {name(param)!r}: {key!r} is {value.item():g}, "
                        f"elsewhere {first.item():g}; it belongs to all parameters together"
                    )
