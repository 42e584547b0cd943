"""Conversion of saved slots between values and codes, for a run with another `state_dtype` than the saved one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base.dtensor import is_sharded, local
from gradtx.distributed.redistribution import distributed_like, full_tensor
from gradtx.state.codes import BUILT_IN, KEY, Codec
from gradtx.state.storage import MIN_SIZE, packed, unpacked

Entry: TypeAlias = Mapping[str, Any]  # the tensors of a leaf by slot


def converted(
    saved: Entry,
    first: Mapping[str, Tensor],
    param: Tensor,
    saved_codes: Mapping[str, str],
    codes: Mapping[str, Codec],
) -> dict[str, Any]:
    """Return a saved entry in the form of `first`: codes are decoded and values encoded; the rest is unchanged.

    Slots that do not have the form of values or of their code are unchanged, so that errors name them.

    Args:
        saved: The tensors of a leaf by slot, from a run with any `state_dtype`.
        first: The initial tensors of the same leaf in this run.
        param: The leaf.
        saved_codes: The label of each slot's code in the saved run.
        codes: The code of each coded slot in this run.

    Raises:
        ValueError: If a slot is stored in a code that only the saved run knows, or may hold codes or values.
    """
    entry = dict(saved)
    if not (saved_codes or codes or any(map(is_sharded, saved.values()))):
        return entry
    for key, value in saved.items():
        slot = key if key in first else str(key).rpartition(".")[0]
        # A slot that an owner keeps whole is saved divided by rows.
        if slot in first and not is_sharded(first[slot]):
            entry[key] = full_tensor(value)
    for slot, like in first.items():
        codec = codes.get(slot)
        label = saved_codes.get(slot)
        if slot not in entry or has_form(entry, slot, like, label, codec):
            continue
        # Codes of the blocks of a leaf, which its layout does not know, are those of the saved run, or do not fit.
        if codec is None and not _is_value(like):
            continue
        _check_dtype(entry, slot, like, label, codec)
        if label is not None and not _is_uncoded(entry, slot, param):
            _decode(entry, slot, label, param.shape)
            if codec is None and _is_value(like) and _is_value(entry[slot]):
                entry[slot] = entry[slot].to(like.dtype)
        value = entry[slot]
        if codec is None or not _is_value(value):
            continue
        if value.shape == codec.shape_of(like.shape, param.shape):
            # As from a rule: roots of 16 bits may be rounded to more than the largest code.
            value = value.detach().to(torch.promote_types(value.dtype, torch.float32))
            entry.update(_encoded(slot, codec, value, first))
    return entry


def has_form(
    entry: Entry, slot: str, like: Tensor, label: str | None, codec: Codec | None
) -> bool:
    """Whether a slot is stored as in this run; one of a leaf that was too small for its code is not."""
    if codec is None or codec.label != label:
        return codec is None and label is None
    has_dtype = isinstance(entry[slot], Tensor) and entry[slot].dtype == like.dtype
    return has_dtype and all(f"{slot}.{suffix}" in entry for suffix in codec.suffixes)


def _is_uncoded(entry: Entry, slot: str, param: Tensor) -> bool:
    """Whether a slot of a group with codes has values, as in a leaf that is too small to be coded."""
    has_more = any(str(key).startswith(f"{slot}.") for key in entry)
    if has_more or not _is_value(entry[slot]):
        return False
    # Floats of 16 bits are codes, unless a small parameter has them too.
    if entry[slot].itemsize == 2:
        return entry[slot].dtype == param.dtype and param.numel() < MIN_SIZE
    return True


def _check_dtype(
    entry: Entry, slot: str, like: Tensor, label: str | None, codec: Codec | None
) -> None:
    """Raise an error for a slot with auxiliary tensors, as codes have them, but with the dtype of values."""
    code = BUILT_IN.get(str(label).partition("/")[0], codec)
    suffixes = () if code is None else code.suffixes
    others = [
        key for key in (f"{slot}.{suffix}" for suffix in suffixes) if key in entry
    ]
    if not others or not _is_value(entry[slot]):
        return
    dtype = entry[slot].dtype
    has_this_code = codec is not None and label in (None, codec.label)
    if dtype != like.dtype if has_this_code else dtype.itemsize > 2:
        raise ValueError(
            f"{slot!r} has dtype {dtype} beside {others[0]!r}, so it could hold values or codes, as after appending "
            f"values to codes; append to {' and '.join(map(repr, (slot, *others)))} in their own dtypes, or pass "
            f"values without {others[0]!r} (docs/howto/edit-an-optimizer.md)"
        )


def _is_value(value: Any) -> bool:
    """Whether a saved slot is not coded; eight-bit floats are codes without their scale."""
    return (
        isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > 1
    )


def _decode(entry: dict[str, Any], slot: str, label: str, shape: torch.Size) -> None:
    """Replace the tensors of a slot by its values, if it is coded for this leaf."""
    name, _, block = label.partition("/")
    if name not in BUILT_IN:
        raise ValueError(
            f"{slot!r} is stored in the code {label!r}, which is not built in; load it with the state_dtype of the "
            "saved run"
        )
    codec = BUILT_IN[name]
    if block:
        codec = dataclasses.replace(codec, block=int(block))
    keys = {"": slot}
    for suffix in codec.suffixes:
        keys[suffix] = f"{slot}.{suffix}"
    if not all(isinstance(entry.get(key), Tensor) for key in keys.values()):
        return
    whole = codec.shape_of(entry[slot].shape, shape)
    for suffix, expected in codec.shapes(whole).items():
        if entry[keys[suffix]].shape != expected:
            return
    values = unpacked(slot, codec, entry, shape, in_parts=True)
    entry[slot] = distributed_like(values, entry[slot])
    for suffix in codec.suffixes:
        del entry[keys[suffix]]


def _encoded(
    slot: str, codec: Codec, value: Tensor, first: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors that store a value; a code that rounds at random keeps its first key."""
    if not codec.random:
        return packed(slot, codec, value, in_parts=True)
    # One half: rounds to nearest.
    here = local(value)
    noise = here.new_full((), 2**15, dtype=torch.int64).expand(here.shape)
    key = f"{slot}.{KEY}"
    return {**packed(slot, codec, value, noise, in_parts=True), key: first[key]}
