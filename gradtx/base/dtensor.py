"""Sharded tensors (DTensor), detected by their attributes, since most programs never import the class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

Placements: TypeAlias = "tuple[Placement, ...]"


def is_sharded(tensor: Any) -> TypeGuard[DTensor]:
    return type(tensor) is not Tensor and hasattr(tensor, "placements")


def local(tensor: Any) -> Tensor:
    """Return this process's local shard."""
    return tensor.to_local() if is_sharded(tensor) else tensor


class MemoryGuard:
    """Where some tensors have their memory, and how DTensors among them are divided.

    The address of a DTensor is always 0: its memory is that of the local shard, which `module.cpu()`, `to_empty`,
    `swap_tensors` and FSDP2 replace inside the same object.

    Args:
        tensors: The tensors.

    Attributes:
        memory: The tensors that have the memory: the local shards of DTensors, and plain tensors themselves.
        addresses: Where it is.
        has_shards: Whether some are DTensors; otherwise, tensors have their own memory.
        have_same_layout: Whether other such tensors have the same dtypes, devices, shapes and strides.
    """

    def __init__(self, tensors: list[Tensor]):
        self._is_sharded = list(map(is_sharded, tensors))
        self.has_shards = any(self._is_sharded)
        self._specs: list[Any] = []
        if self.has_shards:
            self._specs = self._specs_of(tensors)
        self.memory = self._shards_of(tensors)
        self.addresses = list(map(Tensor.data_ptr, self.memory))
        self.have_same_layout = _torch.layout_check(self.memory)

    def _shards_of(self, tensors: list[Any]) -> list[Tensor]:
        if not self.has_shards:
            return tensors
        pairs = zip(tensors, self._is_sharded, strict=True)
        return [_torch.SHARD(x) if sharded else x for x, sharded in pairs]

    def _specs_of(self, tensors: list[Any]) -> list[Any]:
        return list(map(_torch.SPEC, itertools.compress(tensors, self._is_sharded)))

    def memory_of(self, tensors: list[Tensor]) -> list[Tensor] | None:
        """Return the memory of as many other tensors; None if it is divided in another way."""
        if not self.has_shards:
            return tensors
        if list(map(is_sharded, tensors)) != self._is_sharded:
            return None
        if self._specs_of(tensors) != self._specs:
            return None
        return self._shards_of(tensors)

    def follow(self, memory: list[Tensor]) -> None:
        """Take the place of other memory of the same layout."""
        self.memory = memory
        self.addresses = list(map(Tensor.data_ptr, memory))


def from_local_like(
    shard: Tensor,
    like: Any,
    shape: Sequence[int] | None = None,
    placements: Placements | None = None,
) -> Any:
    """Rebuild a DTensor on the mesh of `like` from this process's local shard.

    Args:
        shard: The local shard.
        like: A DTensor; for a plain tensor, the result is `shard`.
        shape: The shape of the whole; None for that of `like`. A number, of shape (), stays plain.
        placements: The placements; None for those of `like`.
    """
    if not is_sharded(like) or (shape is not None and not shape):
        return shard
    whole = like if shape is None else torch.empty(tuple(shape), device="meta")
    if placements is None:
        placements = like.placements
    return dtensor_of(shard, like.device_mesh, placements, whole.shape, whole.stride())


def dtensor_of(
    shard: Tensor,
    mesh: DeviceMesh,
    placements: Placements,
    shape: torch.Size | None = None,
    stride: tuple[int, ...] | None = None,
) -> DTensor:
    """Build a DTensor from a local shard, without communication. Without a shape, all shards have equal shapes."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, mesh, placements, run_check=False, shape=shape, stride=stride
    )


def on_every_rank(mesh: DeviceMesh) -> Placements:
    """Return the placements of a fully replicated tensor."""
    return (replicated(),) * mesh.ndim


def replicated() -> Placement:
    from torch.distributed.tensor import Replicate

    return Replicate()


def without_pending_sums(placements: Placements) -> Placements:
    """Return the placements with pending sums replaced by their results on every rank."""
    return tuple(
        replicated() if placement.is_partial() else placement
        for placement in placements
    )


def with_pending_sums(placements: Placements) -> Placements:
    """Return the placements of a sum over the entries of a shard."""
    from torch.distributed.tensor import Partial

    return tuple(
        placement if placement.is_replicate() else Partial() for placement in placements
    )
