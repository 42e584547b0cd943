"""Random numbers as a pure function of (seed, counter, leaf name, place): splitmix64 in tensor operations.

Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators". int64 arithmetic wraps, so the
unsigned constants are written as signed ones.
"""

from __future__ import annotations

import copy
import hashlib
import math

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import from_local_like, is_sharded, local
from gradtx.base.exact import exact_dtype
from gradtx.distributed.layouts import first_entries
from gradtx.distributed.redistribution import distributed_like

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros; torch's >> copies the sign bit."""
    kept_bits = 2 ** (64 - bits) - 1
    return (x >> bits) & kept_bits


def _mix(x: Tensor) -> Tensor:
    """Return the output of splitmix64 for this state: every bit depends on all bits of `x`."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


@_torch.assume_constant
def name_key(name: str) -> int:
    """Return the signed 64-bit number that represents a leaf's name in its stream."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Stream:
    """The random numbers of one leaf at one step; every draw differs from the previous ones.

    Args:
        seed: The seed of the rule.
        counter: The number of the step.
        name: The leaf's name, or its `name_key` as a 0-d int64 tensor if the leaf represents several.
        place: The number of random links before this one in the chain, so that two of one seed draw other numbers.
    """

    def __init__(
        self, seed: Tensor, counter: Tensor, name: str | Tensor, place: int = 0
    ):
        key_of_name = name_key(name) if isinstance(name, str) else name
        key_of_place = name_key(f"place {place}") if place else 0
        key_of_step = _mix(_mix(seed) + counter)
        self.name = name
        self._key = _mix(key_of_step ^ key_of_name ^ key_of_place)
        self._draws = 0
        self._first = 0

    def part(self, first: int) -> Stream:
        """Return the numbers from an entry of the leaf on, for tensors that are part of it in its order."""
        part = copy.copy(self)
        part._first = first
        return part

    def _bits(self, like: Tensor) -> Tensor:
        """Return 64 random bits for each entry of the local shard of `like`."""
        self._draws += 1
        key = _mix(self._key.to(like.device) + self._draws)
        # Only the local shard of a sharded leaf: torch 2.13 shifts the bits of DTensors incorrectly.
        positions = indices(like)
        return _mix(key + (positions + self._first if self._first else positions))

    def _uniform(self, like: Tensor) -> Tensor:
        """Return uniform numbers between 0 and 1, for the local shard of `like`."""
        upper_53_bits = _shift(self._bits(like), 11).to(exact_dtype(like))
        # Centered in their cells: never 0, whose logarithm is -inf, and never 1.
        return (upper_53_bits + 0.5) * 2.0**-53

    def uniform(self, like: Tensor) -> Tensor:
        """Return uniform numbers between 0 and 1 with the shape of `like`."""
        return from_local_like(self._uniform(like).to(like.dtype), like)

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers with the shape of `like`, by the method of Box and Muller."""
        radius = (-2 * self._uniform(like).log()).sqrt()
        angle = 2 * math.pi * self._uniform(like)
        numbers = (radius * angle.cos()).to(like.dtype)
        return from_local_like(numbers, like)

    def rademacher(self, like: Tensor) -> Tensor:
        """Return -1 or 1 with equal probability, with the shape of `like`."""
        bit = _shift(self._bits(like), 63)
        signs = (1 - 2 * bit).to(like.dtype)
        return from_local_like(signs, like)


# 16 random bits per entry for stochastic rounding: a function of a key, the step and the index in the whole tensor.


def indices(like: Tensor) -> Tensor:
    """Return each entry's index in the whole tensor, for the local shard of `like`."""
    if not is_sharded(like):
        return torch.arange(like.numel(), device=like.device).reshape(like.shape)
    shard = local(like)
    firsts = first_entries(like)
    if firsts is None:
        whole = torch.arange(like.numel(), device=shard.device).reshape(like.shape)
        return local(distributed_like(whole, like))
    # The sum over dimensions of (position in the dimension) * (stride of the dimension), last dimension first.
    whole = torch.zeros((), dtype=torch.int64, device=shard.device)
    stride = 1
    for dim in reversed(range(like.ndim)):
        positions = torch.arange(shard.shape[dim], device=shard.device) + firsts[dim]
        later_dims = like.ndim - 1 - dim
        offsets = (positions * stride).reshape(-1, *[1] * later_dims)
        whole = whole + offsets
        stride *= like.shape[dim]
    return whole.expand(shard.shape)


def bits16(key: Tensor, step: Tensor, positions: Tensor) -> Tensor:
    """Return random integers in [0, 2^16), from two rounds of a 32-bit hash.

    The hash computes in int32, which wraps at 32 bits as required and takes a third of the time of int64.
    """
    key = _mix(_mix(key) + step)
    folded_positions = _lower32(positions ^ (positions >> 32))
    bits = _hash32(folded_positions ^ _lower32(key))
    bits = _hash32(bits + _lower32(key >> 32))
    return (bits >> 16) & 0xFFFF


def _lower32(x: Tensor) -> Tensor:
    """Return the lower 32 bits as a signed integer."""
    return x.to(torch.int32)


def _hash32(x: Tensor) -> Tensor:
    """Permute and mix 32 bits: Wellons 2018, hash-prospector, with multipliers below 2^31."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x21F0AAAD
    x = (x ^ ((x >> 15) & 0x1FFFF)) * 0x735A2D97
    return x ^ ((x >> 15) & 0x1FFFF)
