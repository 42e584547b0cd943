"""Conversion of saved slots between plain values and codes, for a run that stores them differently."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._sharding import full_tensor, is_sharded, local, placed_as
from gradtx._storage import packed, unpacked
from gradtx.codes import CODES, KEY, SCALE, Codec

SUFFIXES = (SCALE, KEY, "error")


def converted(
    saved: Mapping[str, Any],
    first: Mapping[str, Any],
    codes: Mapping[str, Codec] | None = None,
) -> dict[str, Any]:
    """Return a saved entry in the form of `first`: values are encoded, codes are decoded, the rest is unchanged.

    Args:
        saved: The tensors of a leaf by slot, from a run with any `state_dtype`.
        first: The initial tensors of the same leaf in this run.
        codes: The codecs of this run's slots, where known; built-in ones are recognized by their tensors.
    """
    saved = _whole_where_kept_whole(saved, first)
    entry = dict(saved)
    for slot in _with_dimensions(saved, first):
        value, like = saved[slot], first[slot]
        code, saved_code = _codes_of(slot, saved, first, codes or {})
        if code is not None and saved_code is None:
            entry.update(_coded(slot, code, value, first))
        elif saved_code is not None and code is None and like.is_floating_point():
            _decode(entry, slot, saved_code, like.shape)
    return entry


def slot_in_another_code(
    saved: Mapping[str, Any],
    first: Mapping[str, Any],
    codes: Mapping[str, Codec],
) -> str | None:
    """Return the first slot that a saved entry encodes in another code than this run; None if there is none.

    The arguments are those of `converted`.
    """
    for slot in _with_dimensions(saved, first):
        code, saved_code = _codes_of(slot, saved, first, codes)
        if code is None or saved_code is None or saved_code.name == code.name:
            continue
        # A codec of the user may have the form of a built-in one.
        keys = [slot, *(_key(slot, suffix, first) for suffix in code.suffixes)]
        if any(_form(saved.get(key)) != _form(first[key]) for key in keys):
            return slot
    return None


def _whole_where_kept_whole(
    saved: Mapping[str, Any], first: Mapping[str, Any]
) -> dict[str, Any]:
    """Gather slots that this run keeps whole: an owner's are saved divided by rows, codes and scales differently."""
    entry = dict(saved)
    for slot, like in first.items():
        if is_sharded(like):
            continue
        for key in possible_keys(slot):
            if key in entry:
                entry[key] = full_tensor(entry[key])
    return entry


def _with_dimensions(
    saved: Mapping[str, Any], first: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the saved slots of this run that are tensors with dimensions, which alone may be coded."""
    for slot, like in first.items():
        value = saved.get(slot)
        if isinstance(value, Tensor) and isinstance(like, Tensor) and value.ndim:
            yield slot


def _codes_of(
    slot: str,
    saved: Mapping[str, Any],
    first: Mapping[str, Any],
    codes: Mapping[str, Codec],
) -> tuple[Codec | None, Codec | None]:
    """Return the code of a slot in this run and where it was saved; None for plain values."""
    code = codes.get(slot)
    shape = _shape_of_values(saved[slot], first[slot], code)
    if code is None:
        code = code_of(slot, first, shape)
    return code, code_of(slot, saved, shape)


def _shape_of_values(value: Tensor, like: Tensor, code: Codec | None) -> torch.Size:
    """Return the shape of a slot's values, of which two or one may be stored per entry, in the run and where saved.

    Args:
        value: The saved tensor.
        like: The tensor of this run.
        code: The code of this run, if known.
    """
    if value.shape == like.shape and code is not None:
        return torch.Size(code.shape_of(like.shape, ()))
    return max(value.shape, like.shape, key=torch.Size.numel)


def _form(tensor: Any) -> tuple[torch.Size, torch.dtype] | None:
    return (tensor.shape, tensor.dtype) if isinstance(tensor, Tensor) else None


def possible_keys(slot: str) -> list[str]:
    """Return a slot and the possible names of all auxiliary tensors of its code."""
    keys = [slot]
    for suffix in SUFFIXES:
        keys += auxiliary_keys(slot, suffix)
    return keys


def auxiliary_keys(slot: str, suffix: str) -> list[str]:
    """Return the possible names of an auxiliary tensor; the second one is that of a numbered block of a leaf."""
    name, _, number = slot.rpartition("_")
    keys = [f"{slot}.{suffix}"]
    return [*keys, f"{name}.{suffix}_{number}"] if number.isdigit() else keys


def _key(slot: str, suffix: str, entry: Mapping[str, Any]) -> str:
    """Return the name of an auxiliary tensor in an entry."""
    keys = auxiliary_keys(slot, suffix)
    return next((key for key in keys if key in entry), keys[0])


def _leading(entry: Mapping[str, Any], slot: str) -> int:
    """Return the number of leading dimensions that index rows; more than one if the slots of blocks are stacked.

    A code divides rows, so those of all blocks are coded as the rows of one tensor.
    """
    scale = entry.get(_key(slot, SCALE, entry))
    return max(scale.ndim - 1, 1) if isinstance(scale, Tensor) else 1


def _with_one(tensor: Tensor, leading: int) -> Tensor:
    """Return a tensor whose leading dimensions are one; a whole one, because uneven shards cannot be flattened."""
    return full_tensor(tensor).flatten(0, leading - 1) if leading > 1 else tensor


def _decode(entry: dict[str, Any], slot: str, codec: Codec, shape: torch.Size) -> None:
    """Replace the tensors that encode a slot by its values, unless they do not fit: errors then name them."""
    leading = _leading(entry, slot)
    if min(len(shape), entry[slot].ndim) < leading:
        return
    flat = torch.Size((math.prod(shape[:leading]), *shape[leading:]))
    keys = {suffix: _key(slot, suffix, entry) for suffix in codec.suffixes}
    stored = {slot: _with_one(entry[slot], leading)}
    for suffix, key in keys.items():
        tensor = entry[key]
        stored[f"{slot}.{suffix}"] = (
            _with_one(tensor, leading) if tensor.ndim > leading else tensor
        )
    for suffix, size in codec.shapes(flat).items():
        name = f"{slot}.{suffix}" if suffix else slot
        if stored[name].shape != torch.Size(size):
            return
    values = unpacked(slot, codec, stored, flat).reshape(shape)
    entry[slot] = placed_as(values, entry[slot])
    for key in keys.values():
        del entry[key]


def _coded(
    slot: str, codec: Codec, value: Tensor, first: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors that encode a saved value; none if it does not fit the slot or already has its form."""
    if (
        value.shape != codec.shape_of(first[slot].shape, value.shape)
        or not value.is_floating_point()
        or value.element_size() == 1  # codes without their scale
    ):
        return {}
    if not codec.suffixes and value.dtype == first[slot].dtype:
        return {}
    noise = None
    leading = _leading(first, slot)
    flat = _with_one(value.detach(), leading)
    if codec.random:
        # One half: rounds to nearest.
        noise = torch.full_like(local(flat), 2**15, dtype=torch.int64)
    tensors: dict[str, Tensor] = {}
    for name, tensor in packed(slot, codec, flat, noise).items():
        key = slot if name == slot else _key(slot, name.rpartition(".")[2], first)
        if leading > 1:
            tensor = placed_as(tensor.reshape(first[key].shape), first[key])
        tensors[key] = tensor
    if codec.random:
        key = _key(slot, KEY, first)
        tensors[key] = first[key]
    return tensors


def code_of(slot: str, entry: Mapping[str, Any], shape: torch.Size) -> Codec | None:
    """Return the built-in codec of a slot, recognized by its tensors, or None if it is not coded.

    Args:
        slot: The slot.
        entry: The tensors of its leaf.
        shape: The shape of the slot's values.
    """
    suffixes = [
        suffix
        for suffix in SUFFIXES
        if isinstance(entry.get(_key(slot, suffix, entry)), Tensor)
    ]
    codes = entry[slot]
    if suffixes == ["error"]:
        return CODES["bfloat16+8"]
    if suffixes == [KEY]:
        return CODES["bfloat16:stochastic"]
    if suffixes != [SCALE]:
        return None
    codec = _code_with_scale(codes, shape)
    if codec is None:
        return None
    row = codec.shape_of(codes.shape, shape)
    leading = _leading(entry, slot)
    length = math.prod(row if len(row) < 2 else row[leading:])
    count = entry[_key(slot, SCALE, entry)].shape[-1:].numel()
    if length and not count:
        return None
    return dataclasses.replace(codec, block=_block(length, count))


def _code_with_scale(codes: Tensor, shape: torch.Size) -> Codec | None:
    if codes.dtype == torch.float8_e4m3fn:
        return CODES["float8"]
    if codes.dtype not in (torch.int8, torch.uint8):
        return None
    name = "int8" if codes.shape == shape else "int4"
    return CODES[name].for_sign(codes.dtype == torch.uint8)


def _block(length: int, count: int) -> int:
    """Return the smallest power of two that divides a row of `length` entries into at most `count` blocks."""
    block = 2
    while -(-length // block) > count:
        block *= 2
    return block
