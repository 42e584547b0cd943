"""Slots: the tensors that a rule keeps for one leaf, in the dtype in which they are stored.

The library converts them, not the rule: `first_value` after `init`, `widened` before a rule reads them, `value_for`
when the rule returns new values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.base.errors import OWN_STATE, Path
from gradtx.base.exact import exact_dtype
from gradtx.base.messages import check_device, shortly
from gradtx.distributed.redistribution import distributed_like, full_tensor, gathered


def first_value(
    slot: str, value: Any, like: Tensor, dtype: torch.dtype, who: str
) -> Tensor:
    """Convert the value of a slot that `init` returned to `dtype`, unless the rule chose its own dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{who}: init must return a dict of slot name -> tensor, got {value!r} for {slot!r}"
        )
    scalar = value.ndim == 0 and like.ndim > 0 and value.dtype == exact_dtype(value)
    if value.dtype == like.dtype and not scalar:
        value = value.to(dtype)
    if value.shape == like.shape:
        return distributed_like(value, like)
    return gathered(value, like) if value.ndim else full_tensor(value)


def check_slots(slots: Any, who: str, numbers: bool = False) -> None:
    """Raise an error unless `init` may return these slots; with `numbers`, names may end in a number."""
    names: Any = slots if isinstance(slots, dict) else [None]
    if not all(isinstance(slot, str) for slot in names):
        raise TypeError(
            f"{who}: init must return a dict of slot name -> tensor, got {shortly(slots)}"
        )
    for slot in names:
        if not numbers and slot.rpartition("_")[2].isdigit():
            raise TypeError(
                f"{who}: slots {sorted(names)}: trailing numbers are reserved for the library; return a list in one "
                "slot"
            )


def widened(value: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Convert a stored tensor to the dtype that rules see, which is never half precision."""
    if value.dtype == compute_dtype or not value.dtype.is_floating_point:
        return value
    return value.to(torch.promote_types(value.dtype, compute_dtype))


def kind_of(dtype: torch.dtype) -> str:
    """Return the kind of a dtype; slots of the same kind can be converted to each other."""
    if dtype.is_floating_point:
        return "float" if dtype.itemsize > 1 else "float8"
    if dtype.is_complex:
        return "complex"
    return "bool" if dtype == torch.bool else "int"


def value_for(value: Any, old: Tensor, path: Path, slot: str, leaf: str) -> Tensor:
    """Convert a new value of a slot to the dtype and layout of the old value."""
    if type(value) is Tensor and type(old) is Tensor:  # a shortcut
        is_alike = value.dtype == old.dtype and value.device == old.device
        if is_alike and value.shape == old.shape:
            return value
    where = ".".join([*path, slot])
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{where}: the new value of leaf {leaf!r} must be a tensor, got {value!r}"
        )
    if value.shape != old.shape:
        raise wrong_shape(path, slot, leaf, old.shape, value.shape)
    if value.ndim:  # shared values, which have none, are on the device of one leaf
        check_device(where, f"the new value of leaf {leaf!r}", value, old)
    if value.dtype != old.dtype:
        value = value.to(old.dtype)
    return distributed_like(value, old)


def wrong_shape(
    path: Path, slot: str, leaf: str, old: torch.Size, new: torch.Size
) -> ValueError:
    """Return the error for a new value of another shape: either the rule or the state is to blame."""
    return ValueError(
        f"{'.'.join([*path, slot])}: leaf {leaf!r} has a slot of shape {tuple(old)}, but its new value has shape "
        f"{tuple(new)}; a rule must return the shapes that its init creates; if it does, {OWN_STATE}"
    )


def numbered(slots: dict[str, Any]) -> dict[str, Any]:
    """Replace each list with numbered slots: `{"x": [a, b]}` becomes `{"x_0": a, "x_1": b}`."""
    flat = {}
    for slot, value in slots.items():
        if isinstance(value, list):
            for i, item in enumerate(value):
                flat[f"{slot}_{i}"] = item
        else:
            flat[slot] = value
    return flat


def with_lists(slots: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `numbered`."""
    names = dict(zip(slots, map(without_number, slots), strict=True))
    if list(names) == list(names.values()):
        return slots
    whole = {}
    for slot in sorted(slots, key=lambda slot: (len(slot), slot)):
        name = names[slot]
        if name == slot:
            whole[slot] = slots[slot]
        else:
            whole.setdefault(name, []).append(slots[slot])
    return whole


def without_number(slot: str) -> str:
    """Return the list name of a numbered slot, or the slot's own name."""
    if not slot[-1:].isdigit():
        return slot
    name, _, number = slot.rpartition("_")
    return name if number.isdigit() else slot
