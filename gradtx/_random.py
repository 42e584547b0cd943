"""Random numbers as a pure function of (seed, counter, leaf name): splitmix64 in tensor operations.

Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators". int64 arithmetic wraps, so the
unsigned constants are written as signed ones.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from gradtx import _torch
from gradtx._exact import exact_dtype
from gradtx._sharding import (
    first_entries,
    from_local_like,
    is_sharded,
    local,
    placed_as,
)

_GOLDEN, _MIX1, _MIX2 = (
    0x9E3779B97F4A7C15 - 2**64,
    0xBF58476D1CE4E5B9 - 2**64,
    0x94D049BB133111EB - 2**64,
)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & (2 ** (64 - bits) - 1)  # torch's >> copies the sign bit


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


@_torch.assume_constant
def name_key(name: str) -> int:
    """Return the signed 64-bit number that represents a leaf's name in its stream."""
    return int.from_bytes(
        hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True
    )


class Stream:
    """The random numbers of one leaf at one step; every draw differs from the previous ones.

    Args:
        seed: The seed of the rule.
        counter: The number of the step.
        name: The leaf's name, or its `name_key` as a 0-d int64 tensor if the leaf represents several.
    """

    def __init__(self, seed: Tensor, counter: Tensor, name: str | Tensor):
        key = name_key(name) if isinstance(name, str) else name
        self._key = _mix(_mix(_mix(seed) + counter) ^ key)
        self._draws = 0

    def _bits(self, like: Tensor) -> Tensor:
        self._draws += 1
        index = torch.arange(like.numel(), device=like.device, dtype=torch.int64)
        index = index.reshape(like.shape)
        # Only the local shard of a sharded leaf: torch 2.13 shifts the bits of DTensors incorrectly.
        key = _mix(self._key.to(like.device) + self._draws)
        return _mix(key + local(placed_as(index, like)))

    def _uniform(self, like: Tensor) -> Tensor:
        # 53 bits, centered in their cells: never 0, whose logarithm is -inf, and never 1.
        return (_shift(self._bits(like), 11).to(exact_dtype(like)) + 0.5) * 2.0**-53

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers with the shape of `like`."""
        radius = (-2 * self._uniform(like).log()).sqrt()
        return from_local_like(
            (radius * (2 * math.pi * self._uniform(like)).cos()).to(like.dtype), like
        )

    def rademacher(self, like: Tensor) -> Tensor:
        """Return -1 or 1 with equal probability, with the shape of `like`."""
        return from_local_like(
            (1 - 2 * _shift(self._bits(like), 63)).to(like.dtype), like
        )


# 16 random bits per entry for stochastic rounding: a function of a key, the step and the index in the whole tensor.


def indices(like: Tensor) -> Tensor:
    """Return each entry's index in the whole tensor, for the local part of `like`."""
    if not is_sharded(like):
        return torch.arange(like.numel(), device=like.device).reshape(like.shape)
    part, firsts = local(like), first_entries(like)
    if firsts is None:
        whole = torch.arange(like.numel(), device=part.device).reshape(like.shape)
        return local(placed_as(whole, like))
    places = torch.zeros((), dtype=torch.int64, device=part.device)
    stride = 1
    for dim in reversed(range(like.ndim)):
        along = (
            torch.arange(part.shape[dim], device=part.device) + firsts[dim]
        ) * stride
        places = places + along.reshape(-1, *[1] * (like.ndim - 1 - dim))
        stride *= like.shape[dim]
    return places.expand(part.shape)


def bits16(key: Tensor, step: Tensor, places: Tensor) -> Tensor:
    """Return random integers in [0, 2^16), from two rounds of a 32-bit hash.

    The hash computes in int32, which wraps at 32 bits as required and takes a third of the time of int64.
    """
    key = _mix(_mix(key) + step)
    x = _hash32(_lower32(places ^ (places >> 32)) ^ _lower32(key))
    x = _hash32(x + _lower32(key >> 32))
    return (x >> 16) & 0xFFFF


def _lower32(x: Tensor) -> Tensor:
    """Return the lower 32 bits as a signed integer."""
    return x.to(torch.int32)


def _hash32(x: Tensor) -> Tensor:
    """Permute and mix 32 bits: Wellons 2018, hash-prospector, with multipliers below 2^31."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x21F0AAAD
    x = (x ^ ((x >> 15) & 0x1FFFF)) * 0x735A2D97
    return x ^ ((x >> 15) & 0x1FFFF)
