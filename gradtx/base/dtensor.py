"""Sharded tensors (DTensor), detected by their attributes, since most programs never import the class."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeGuard

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.exact import exact_dtype
from gradtx.base.plain import TYPES

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
        have_same_layout: Whether other such tensors have the same dtypes, devices, shapes and strides.
    """

    def __init__(self, tensors: list[Tensor]):
        self._is_sharded = list(map(is_sharded, tensors))
        self._has_shards = any(self._is_sharded)
        self._specs: list[Any] = []
        if self._has_shards:
            self._specs = self._specs_of(tensors)
        self.memory = self._shards_of(tensors)
        self._addresses = list(map(Tensor.data_ptr, self.memory))
        self.have_same_layout = _torch.layout_check(self.memory)

    def _shards_of(self, tensors: list[Any]) -> list[Tensor]:
        if not self._has_shards:
            return tensors
        pairs = zip(tensors, self._is_sharded, strict=True)
        return [_torch.SHARD(x) if sharded else x for x, sharded in pairs]

    def _specs_of(self, tensors: list[Any]) -> list[Any]:
        return list(map(_torch.SPEC, itertools.compress(tensors, self._is_sharded)))

    def memory_of(self, tensors: list[Tensor]) -> list[Tensor] | None:
        """Return the memory of as many other tensors; None if it is divided in another way."""
        if not self._has_shards:
            return tensors
        if list(map(is_sharded, tensors)) != self._is_sharded:
            return None
        if self._specs_of(tensors) != self._specs:
            return None
        return self._shards_of(tensors)

    def have_moved(self, memory: list[Tensor]) -> bool:
        """Whether memory of the same layout is elsewhere."""
        return list(map(Tensor.data_ptr, memory)) != self._addresses

    def follow(self, memory: list[Tensor]) -> None:
        """Take the place of other memory of the same layout."""
        self.memory = memory
        self._addresses = list(map(Tensor.data_ptr, memory))

    def holds(self, tensors: list[Tensor]) -> bool:
        """Whether as many other tensors have the same memory, layouts and placements."""
        memory = self.memory_of(tensors)
        if memory is None or self.have_moved(memory):
            return False
        return self.have_same_layout(*memory)


def full_tensor(tensor: Any) -> Tensor:
    """Return the full tensor as a plain tensor."""
    if not is_sharded(tensor):
        return tensor
    dtype = tensor.dtype
    if not (dtype.is_floating_point and dtype.itemsize == 1):
        return tensor.full_tensor()
    # As bytes, because some back ends cannot send eight-bit floats.
    as_bytes = from_local_like(local(tensor).view(torch.uint8), tensor)
    return as_bytes.full_tensor().view(dtype)


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


def gathered(tensor: Any, like: Any) -> Any:
    """Return the tensor replicated on every rank of the mesh of `like`."""
    if is_sharded(tensor):
        return tensor.redistribute(placements=on_every_rank(tensor.device_mesh))
    if not is_sharded(like):
        return tensor
    return dtensor_of(tensor, like.device_mesh, on_every_rank(like.device_mesh))


def on_every_rank(mesh: DeviceMesh) -> Placements:
    """Return the placements of a fully replicated tensor."""
    return (replicated(),) * mesh.ndim


def replicated() -> Placement:
    from torch.distributed.tensor import Replicate

    return Replicate()


def distributed_like(tensor: Any, like: Any) -> Any:
    """Redistribute a tensor like `like`. Operations may return other placements, including partial sums."""
    if not is_sharded(like):
        return full_tensor(tensor)
    sharded = tensor if is_sharded(tensor) else gathered(tensor, like)
    if sharded.placements == like.placements:
        return sharded
    return sharded.redistribute(placements=like.placements)


def gradient_like(gradient: Any, param: Any) -> Any:
    """Return a gradient with the placements of its parameter.

    Autograd leaves pending sums, such as those of a norm's weight under sequence parallelism, and other placements.
    """
    if not (is_sharded(gradient) and is_sharded(param)):
        return gradient
    return distributed_like(gradient, param)


def completed(tensor: Any) -> Any:
    """Return a tensor without pending sums over ranks."""
    if not is_sharded(tensor):
        return tensor
    placements = without_pending_sums(tensor.placements)
    if placements == tensor.placements:
        return tensor
    return tensor.redistribute(placements=placements)


def without_pending_sums(placements: Placements) -> Placements:
    """Return the placements with pending sums replaced by their results on every rank."""
    return tuple(
        replicated() if placement.is_partial() else placement
        for placement in placements
    )


@dataclass(frozen=True, slots=True)
class PartialSum:
    """The sum over this rank's shard: a 0-d DTensor with a pending sum, as far as sums read one.

    A DTensor for each term of a program would take longer than the program.
    """

    term: Tensor
    device_mesh: DeviceMesh
    placements: Placements
    shape: ClassVar[torch.Size] = torch.Size(())

    @property
    def dtype(self) -> torch.dtype:
        return self.term.dtype

    def to_local(self) -> Tensor:
        return self.term

    def to(self, device: torch.device) -> PartialSum:
        return PartialSum(self.term.to(device), self.device_mesh, self.placements)

    def __add__(self, other: PartialSum) -> PartialSum:
        term = self.term + other.term
        return PartialSum(term, self.device_mesh, self.placements)


def with_pending_sums(placements: Placements) -> Placements:
    """Return the placements of a sum over the entries of a shard."""
    from torch.distributed.tensor import Partial

    return tuple(
        placement if placement.is_replicate() else Partial() for placement in placements
    )


def total_of(terms: list[Any]) -> Tensor:
    """Return the sum of 0-d tensors, or of vectors of equal length, as a plain tensor."""
    if len(terms) == 1 and (type(terms[0]) is Tensor or not is_sharded(terms[0])):
        return terms[0]
    # A shortcut, which dynamo does not trace.
    if not torch.compiler.is_compiling() and TYPES.issuperset(map(type, terms)):
        return torch.stack(terms).sum(0)
    return stacked(terms).sum(0)


def stacked(numbers: list[Any]) -> Tensor:
    """Stack tensors of one shape, mostly 0-d, into a plain one; those with the same placements share a collective."""
    indices_of: dict[Any, list[int]] = defaultdict(list)
    for index, number in enumerate(numbers):
        if is_sharded(number):
            indices_of[number.device_mesh, number.placements].append(index)
    plain = list(numbers)
    for division, indices in indices_of.items():
        terms = torch.stack([local(numbers[index]) for index in indices])
        sums = full_tensor(dtensor_of(terms, *division))
        for index, number in zip(indices, sums.unbind(), strict=True):
            plain[index] = number
    return torch.stack(plain)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Sum all entries of a tree: within each leaf, then over leaves in name order, in float64."""
    sums = [terms[name].sum() for name in sorted(terms)]
    device = sums[0].device
    dtype = exact_dtype(sums[0])
    return stacked([term.to(device, dtype) for term in sums]).sum()
