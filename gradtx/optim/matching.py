"""Matches a parameter's saved state against its first state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.complex_views import as_complex, as_real, real_views
from gradtx.programs.layout import Layout
from gradtx.state.conversion import Entry, converted
from gradtx.state.slots import kind_of

REMEDY = (
    "load the state of an optimizer built from the same chain, or pass strict=False, which keeps fresh state for what "
    "is absent and carries unknown keys along"
)

# Slots that contain the counts of clocks and random rules.
COUNTS = ("step", "mini_step", "skipped", "counter")


def matched(
    name: str,
    param: Tensor,
    saved: Entry,
    first: Mapping[str, Tensor],
    strict: bool,
    saved_codes: Mapping[str, str],
    layout: Layout,
    wrapper_keys: Collection[str] = (),
) -> dict[str, Tensor]:
    """Convert a parameter's saved entry to the dtypes, codes and devices of its first state.

    Args:
        name: The parameter's name.
        param: The parameter.
        saved: The entry, also in the formats of torch.optim and adam-atan2-pytorch.
        first: The parameter's first state.
        strict: Whether a missing or unknown slot is an error; otherwise unknown ones are kept unchanged.
        saved_codes: The label of each slot's code in the saved run.
        layout: The layout of the first state.
        wrapper_keys: Keys that a wrapper has written into the present state.

    Returns:
        The state, including the keys of wrappers.

    Raises:
        ValueError: If a slot is missing, is unknown, belongs to another chain, or has another shape, kind or code.
    """
    if param.is_complex():
        real, real_saved = as_real(param.detach()), real_views(saved)
        state = matched(
            name,
            real,
            real_saved,
            real_views(first),
            strict,
            saved_codes,
            layout,
            wrapper_keys,
        )
        for key, like in {**saved, **first}.items():
            if key in state and isinstance(like, Tensor) and like.is_complex():
                state[key] = as_complex(state[key])
        return state
    saved = _with_our_keys(saved, first)
    try:
        saved = converted(saved, first, param.shape, saved_codes, layout.coded_keys)
    except ValueError as error:
        raise ValueError(f"state of parameter {name!r}: {error}") from None
    state = dict(first)
    for key, value in first.items():
        if key in saved:
            what = f"state of parameter {name!r}: {key!r}"
            state[key] = as_slot(what, key, saved[key], value, param.device)
        elif strict and saved:
            raise ValueError(f"state of parameter {name!r} lacks {key!r}; {REMEDY}")
    for key in sorted(saved.keys() - first.keys()):
        value = saved[key]
        if strict and key not in wrapper_keys:
            raise ValueError(
                f"state of parameter {name!r} has {key!r}, which this chain does not use; {REMEDY}"
            )
        if isinstance(value, Tensor):
            # As torch.optim loads it.
            dtype = param.dtype if param.is_floating_point() else value.dtype
            value = value.detach().to(param.device, dtype, copy=True)
        state[key] = value
    return state


def _with_our_keys(saved: Entry, first: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return an entry without None values, with its count under "step"."""
    entry = {key: value for key, value in saved.items() if value is not None}
    # adam-atan2-pytorch's name of the count.
    if "steps" in entry and "steps" not in first:
        entry["step"] = entry.pop("steps")
        # Its rates are saved divided by the first learning rate.
        if "initial_lr" in first:
            entry.setdefault("initial_lr", 1.0)
    if "step" not in entry and entry.keys() & first.keys() == {"momentum_buffer"}:
        # torch's SGD keeps no count, but a buffer means that it has stepped.
        entry["step"] = 1.0
    return entry


def misfits_of(saved: Entry, first: Mapping[str, Tensor]) -> int:
    """Return the number of slots that only one of a saved entry and a first state has; 0 for an empty entry."""
    if not saved:
        return 0
    entry = _with_our_keys(saved, first)
    return len(_slots_among(entry.keys()) ^ _slots_among(first.keys()))


def _slots_among(keys: Collection[str]) -> set[str]:
    """Return the keys without those of auxiliary tensors, such as `exp_avg.scale` of `exp_avg`."""
    return {key for key in keys if str(key).rpartition(".")[0] not in keys}


def as_slot(
    what: str,
    key: str,
    saved: Any,
    first: Tensor,
    device: torch.device | None = None,
) -> Tensor:
    """Return a copy of a saved value in the form of a first slot, after checking its shape, kind and value.

    Args:
        what: The slot, for error messages.
        key: Its key.
        saved: The saved value.
        first: The first slot.
        device: The device of slots with dimensions; that of `first` by default.
    """
    value = torch.as_tensor(saved)
    if value.shape != first.shape:
        shapes = f"{tuple(value.shape)}, needs {tuple(first.shape)}"
        raise ValueError(f"{what} has shape {shapes}")
    kinds = {kind_of(value.dtype), kind_of(first.dtype)}
    if len(kinds) > 1 and not (value.ndim == 0 and kinds == {"int", "float"}):
        raise ValueError(f"{what} has dtype {value.dtype}, needs {first.dtype}")
    is_count = key.rpartition(".")[2] in COUNTS
    if is_count and not (_is_whole(value) and (value >= 0).all()):
        raise ValueError(f"{what} must be a non-negative integer, got {value.item():g}")
    if kind_of(first.dtype) == "int" and not _is_whole(value):
        raise ValueError(f"{what} must be an integer, got {value.item():g}")
    stays = first.ndim == 0 or first.is_meta or device is None
    on = first.device if stays else device
    return value.detach().to(on, first.dtype, copy=True)


def _is_whole(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(
        value.isfinite() & (value == value.round())
    )
