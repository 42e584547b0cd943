"""Sums over leaves and ranks: of numbers that wait for their total, of whole leaves, and means of replicas."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from gradtx.base.dtensor import (
    Placements,
    dtensor_of,
    from_local_like,
    is_sharded,
    local,
    on_every_rank,
    without_pending_sums,
)
from gradtx.base.exact import exact_dtype
from gradtx.base.plain import TYPES
from gradtx.distributed.layouts import Team, is_split, pieces_at, team_of
from gradtx.distributed.redistribution import full_tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


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


def summed_over_ranks(
    sums: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Complete the sums of many leaves on every rank; sums with the same layout share one message.

    Args:
        sums: The sums of each leaf, by name; sharded tensors are passed as DTensors.
    """
    complete = {}
    messages: dict[Any, list[tuple[str, str]]] = defaultdict(list)
    for leaf in sorted(sums):
        complete[leaf] = dict(sums[leaf])
        for name, value in sums[leaf].items():
            if is_sharded(value):
                differs = tuple(
                    not placement.is_replicate() for placement in value.placements
                )
                messages[value.device_mesh, differs, value.dtype].append((leaf, name))
    for (mesh, differs, _), entries in messages.items():
        values = [sums[leaf][name] for leaf, name in entries]
        shards = list(map(_padded, values))
        for dim, has_differences in enumerate(differs):
            if has_differences:
                shards = _summed(shards, mesh.get_group(dim))
        everywhere = on_every_rank(mesh)
        for (leaf, name), value, shard in zip(entries, values, shards, strict=True):
            complete[leaf][name] = from_local_like(
                shard, value, value.shape, everywhere
            )
    return complete


def mean_over_ranks(
    tensors: Mapping[str, Any], number: Any, team: Team
) -> tuple[dict[str, Any], Tensor]:
    """Return the mean of each tensor over ranks, and the number of each rank, by one message.

    Args:
        tensors: Tensors by name, in float32 at least; of sharded ones, all ranks have the same shards.
        number: A number, sent in the dtype of the message.
        team: The ranks.
    """
    names = sorted(tensors)
    shards = [local(tensors[name]) for name in names]
    numbers = shards[0].new_zeros(team.size)
    numbers[team.rank] = number
    wire = functools.reduce(torch.promote_types, [shard.dtype for shard in shards])
    message = [shard.to(team.device, wire) for shard in (*shards, numbers)]
    *totals, numbers = _summed(message, team.group)
    means = {}
    for name, shard, total in zip(names, shards, totals, strict=True):
        mean = (total / team.size).to(shard)
        means[name] = from_local_like(mean, tensors[name])
    return means, numbers


def _summed(shards: list[Tensor], group: Any) -> list[Tensor]:
    """Return the sums over the ranks of a group of tensors with the same dtype and device, by one message."""
    if not any(map(Tensor.dim, shards)):  # a shortcut
        vector = torch.stack(shards)
        torch.distributed.all_reduce(vector, group=group)
        return list(vector.unbind())
    vector = torch.cat([shard.reshape(-1) for shard in shards])
    torch.distributed.all_reduce(vector, group=group)
    totals = torch.split(vector, list(map(torch.numel, shards)))
    return [
        total.view(shard.shape) for total, shard in zip(totals, shards, strict=True)
    ]


def _padded(value: DTensor) -> Tensor:
    """Return the local shard padded with zeros to the full shape; summed over the ranks, it is the full tensor."""
    shard = local(value)
    if not shard.ndim or (shard.shape == value.shape and not is_split(value)):
        return shard
    mesh = value.device_mesh
    as_if_summed = without_pending_sums(value.placements)
    piece = pieces_at(tuple(value.shape), mesh, as_if_summed)[team_of(mesh).rank]
    padded = shard.new_zeros(value.shape)
    padded[piece.window] = shard
    return padded
