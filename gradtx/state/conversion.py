"""Conversion of saved slots between plain values and codes, for a run that stores them differently."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base.dtensor import full_tensor, is_sharded, local, placed_as
from gradtx.state.codes import CODES, KEY, SCALE, Codec
from gradtx.state.storage import packed, unpacked

Entry: TypeAlias = Mapping[str, Any]  # the tensors of a leaf by slot
SUFFIXES = (SCALE, KEY, "error")


def converted(
    saved: Entry,
    first: Entry,
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
    for slot, like in first.items():
        value = saved.get(slot)
        if not isinstance(value, Tensor) or not isinstance(like, Tensor):
            continue
        codec = (codes or {}).get(slot)
        if not suffixes_of(slot, saved):
            if codec is None:
                codec = _recognized(slot, first, value.shape)
            if codec is not None:
                entry.update(_coded(slot, codec, value, first))
        elif codec is None and not suffixes_of(slot, first):
            codec = _recognized(slot, saved, like.shape)
            if codec is not None and like.is_floating_point():
                _decode(entry, slot, codec, like.shape)
    return entry


def slot_in_another_code(
    saved: Entry,
    first: Entry,
    codes: Mapping[str, Codec],
) -> str | None:
    """Return the first slot that a saved entry encodes in another code than this run; None if there is none.

    The arguments are those of `converted`.
    """
    for slot, like in first.items():
        value = saved.get(slot)
        suffixes, saved_suffixes = suffixes_of(slot, first), suffixes_of(slot, saved)
        is_coded = bool(suffixes) or slot in codes
        if not is_coded or not saved_suffixes or not isinstance(value, Tensor):
            continue
        has_form = value.shape == like.shape and value.dtype == like.dtype
        if not has_form or suffixes != saved_suffixes:
            return slot
    return None


def suffixes_of(slot: str, entry: Entry) -> list[str]:
    """Return the suffixes of a slot's auxiliary tensors in an entry; none if the slot is not coded."""
    return [
        suffix
        for suffix in SUFFIXES
        if isinstance(entry.get(_key(slot, suffix, entry)), Tensor)
    ]


def _whole_where_kept_whole(saved: Entry, first: Entry) -> dict[str, Any]:
    """Gather slots that this run keeps whole: an owner's are saved divided by rows, codes and scales differently."""
    entry = dict(saved)
    for slot, like in first.items():
        if is_sharded(like):
            continue
        for key in possible_keys(slot):
            if key in entry:
                entry[key] = full_tensor(entry[key])
    return entry


def possible_keys(slot: str) -> list[str]:
    """Return a slot and the possible names of all auxiliary tensors of its code."""
    keys = [slot]
    for suffix in SUFFIXES:
        keys += auxiliary_keys(slot, suffix)
    return keys


def auxiliary_keys(slot: str, suffix: str) -> list[str]:
    """Return the possible names of an auxiliary tensor; the second one is that of a numbered block of a leaf."""
    keys = [f"{slot}.{suffix}"]
    name, _, number = slot.rpartition("_")
    if number.isdigit():
        keys.append(f"{name}.{suffix}_{number}")
    return keys


def _key(slot: str, suffix: str, entry: Entry) -> str:
    """Return the name of an auxiliary tensor in an entry; if it has none, the name for an unnumbered slot."""
    keys = auxiliary_keys(slot, suffix)
    for key in keys:
        if key in entry:
            return key
    return keys[0]


def _dims_of_rows(entry: Entry, slot: str) -> int:
    """Return the number of leading dimensions that index rows; more than one if the slots of blocks are stacked.

    A code divides rows, so those of all blocks are coded as the rows of one tensor.
    """
    scale = entry.get(_key(slot, SCALE, entry))
    if not isinstance(scale, Tensor):
        return 1
    return max(scale.ndim - 1, 1)


def _with_one_dim_of_rows(tensor: Tensor, dims_of_rows: int) -> Tensor:
    """Merge the dimensions that index rows; of the whole tensor, because uneven shards cannot be flattened."""
    if dims_of_rows <= 1:
        return tensor
    return full_tensor(tensor).flatten(0, dims_of_rows - 1)


def _decode(entry: dict[str, Any], slot: str, codec: Codec, shape: torch.Size) -> None:
    """Replace the tensors that encode a slot by its values, unless they do not fit: errors then name them."""
    dims_of_rows = _dims_of_rows(entry, slot) if shape else 0
    if min(len(shape), entry[slot].ndim) < dims_of_rows:
        return
    shape_in_rows = shape
    if dims_of_rows > 1:
        rows = math.prod(shape[:dims_of_rows])
        shape_in_rows = torch.Size((rows, *shape[dims_of_rows:]))
    keys = {suffix: _key(slot, suffix, entry) for suffix in codec.suffixes}
    stored = {slot: _with_one_dim_of_rows(entry[slot], dims_of_rows)}
    for suffix, key in keys.items():
        tensor = entry[key]
        if tensor.ndim > dims_of_rows:
            tensor = _with_one_dim_of_rows(tensor, dims_of_rows)
        stored[f"{slot}.{suffix}"] = tensor
    for suffix, expected_shape in codec.shapes(shape_in_rows).items():
        name = f"{slot}.{suffix}" if suffix else slot
        if stored[name].shape != torch.Size(expected_shape):
            return
    values = unpacked(slot, codec, stored, shape_in_rows).reshape(shape)
    entry[slot] = placed_as(values, entry[slot])
    for key in keys.values():
        del entry[key]


def _coded(
    slot: str, codec: Codec, value: Tensor, first: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors that encode a saved value; none if it does not fit the slot or already has its form."""
    like = first[slot]
    if value.shape != codec.shape_of(like.shape, value.shape):
        return {}
    if not value.is_floating_point():
        return {}
    # Eight-bit floats are codes without their scale.
    if value.element_size() == 1:
        return {}
    if not codec.suffixes and value.dtype == like.dtype:
        return {}
    dims_of_rows = _dims_of_rows(first, slot)
    value_in_rows = _with_one_dim_of_rows(value.detach(), dims_of_rows)
    noise = None
    if codec.random:
        # One half: rounds to nearest.
        noise = torch.full_like(local(value_in_rows), 2**15, dtype=torch.int64)
    tensors: dict[str, Tensor] = {}
    for name, tensor in packed(slot, codec, value_in_rows, noise).items():
        suffix = name.rpartition(".")[2]
        key = slot if name == slot else _key(slot, suffix, first)
        if dims_of_rows > 1:
            tensor = placed_as(tensor.reshape(first[key].shape), first[key])
        tensors[key] = tensor
    if codec.random:
        key = _key(slot, KEY, first)
        tensors[key] = first[key]
    return tensors


def _recognized(slot: str, entry: Entry, shape: torch.Size) -> Codec | None:
    """Return the built-in codec of a slot, recognized by its tensors, or None if it is not coded.

    Args:
        slot: The slot.
        entry: The tensors of its leaf.
        shape: The shape of the slot's values.
    """
    suffixes = suffixes_of(slot, entry)
    if suffixes == ["error"]:
        return CODES["bfloat16+8"]
    if suffixes == [KEY]:
        return CODES["bfloat16:stochastic"]
    if suffixes != [SCALE]:
        return None
    codec = _code_with_scale(entry[slot], shape)
    if codec is None:
        return None
    scale = entry[_key(slot, SCALE, entry)]
    blocks_per_row = scale.shape[-1] if scale.ndim else 1
    # The number of values per row; a vector is one row.
    dims_of_rows = _dims_of_rows(entry, slot) if len(shape) > 1 else 0
    length = math.prod(shape[dims_of_rows:])
    if length and not blocks_per_row:
        return None
    return dataclasses.replace(codec, block=_block(length, blocks_per_row))


def _code_with_scale(codes: Tensor, shape: torch.Size) -> Codec | None:
    """Return the built-in codec, with its default block, that stores values of a shape in codes and a scale."""
    if codes.dtype == torch.float8_e4m3fn:
        return CODES["float8"]
    if codes.dtype not in (torch.int8, torch.uint8):
        return None
    # The code of a single entry is 0 or the largest one.
    is_number_of_4_bits = not shape and -8 < int(codes) < 16
    has_4_bits = codes.shape != shape or is_number_of_4_bits
    name = "int4" if has_4_bits else "int8"
    return CODES[name].for_sign(codes.dtype == torch.uint8)


def _block(length: int, most_blocks: int) -> int:
    """Return the smallest power of two that divides a row of `length` entries into at most `most_blocks` blocks."""
    block = 2
    while -(-length // block) > most_blocks:  # rounded up
        block *= 2
    return block
