"""Conversion of saved slots between plain values and codes, for a run that stores them differently."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._sharding import local
from gradtx._storage import packed, unpacked
from gradtx.codes import CODES, KEY, SCALE, Codec

SUFFIXES = (SCALE, KEY, "error")


def converted(
    saved: Mapping[str, Any],
    first: Mapping[str, Any],
    shape: torch.Size,
    codes: Mapping[str, Codec] | None = None,
) -> dict[str, Any]:
    """Return a saved entry in the form of `first`: values are encoded, codes are decoded, the rest is unchanged.

    Args:
        saved: The tensors of a leaf by slot, from a run with any `state_dtype`.
        first: The initial tensors of the same leaf in this run.
        shape: The shape of the leaf.
        codes: The codecs of this run's slots, where known; built-in ones are recognized by their tensors.
    """
    entry = dict(saved)
    for slot, like in first.items():
        value = saved.get(slot)
        if (
            not isinstance(value, Tensor)
            or not isinstance(like, Tensor)
            or not value.ndim
        ):
            continue
        code = (codes or {}).get(slot) or code_of(slot, first, shape)
        saved_code = code_of(slot, saved, shape)
        if code is not None and saved_code is None:
            entry.update(_coded(slot, code, value, first, shape))
        elif saved_code is not None and code is None and like.is_floating_point():
            _decode(entry, slot, saved_code, shape)
    return entry


def _decode(entry: dict[str, Any], slot: str, codec: Codec, shape: torch.Size) -> None:
    """Replace the tensors that encode a slot by its values."""
    entry[slot] = unpacked(slot, codec, entry, shape)
    for suffix in codec.suffixes:
        del entry[f"{slot}.{suffix}"]


def _coded(
    slot: str,
    codec: Codec,
    value: Tensor,
    first: Mapping[str, Tensor],
    shape: torch.Size,
) -> dict[str, Tensor]:
    """Return the tensors that encode a saved value; none if it does not fit the slot or already has its form."""
    if (
        value.shape != codec.shape_of(first[slot].shape, shape)
        or not value.is_floating_point()
    ):
        return {}
    if not codec.suffixes and value.dtype == first[slot].dtype:
        return {}
    noise = None
    if codec.random:
        # One half: rounds to nearest.
        noise = torch.full_like(local(value), 2**15, dtype=torch.int64)
    tensors = packed(slot, codec, value.detach(), noise)
    if codec.random:
        tensors[f"{slot}.{KEY}"] = first[f"{slot}.{KEY}"]
    return tensors


def code_of(slot: str, entry: Mapping[str, Any], shape: torch.Size) -> Codec | None:
    """Return the built-in codec of a slot, recognized by its tensors, or None if it is not coded."""
    suffixes = [
        suffix
        for suffix in SUFFIXES
        if isinstance(entry.get(f"{slot}.{suffix}"), Tensor)
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
    length = math.prod(row if len(row) < 2 else row[1:])
    count = entry[f"{slot}.{SCALE}"].shape[-1]
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
