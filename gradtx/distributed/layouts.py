"""Layouts of sharded tensors: which rank has which entries, for the library's own collectives."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from gradtx.base.dtensor import (
    Placements,
    is_sharded,
    replicated,
)
from gradtx.base.messages import describe

Shape: TypeAlias = tuple[int, ...]

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def is_split(value: DTensor) -> bool:
    """Whether ranks have different entries."""
    return any(_sharded_dim(placement) is not None for placement in value.placements)


def first_entries(like: Any) -> list[int] | None:
    """Return the index of the first local entry in each dimension of a DTensor; None for unusual placements."""
    for placement in like.placements:
        if not placement.is_replicate() and _plainly_sharded_dim(placement) is None:
            return None
    mesh = like.device_mesh
    check_order(mesh)
    coordinate = tuple(mesh.get_coordinate())
    piece = _piece_at(coordinate, tuple(like.shape), mesh, like.placements)
    return [window.start for window in piece.window]


def splits_rows(like: Any, block: int | None) -> bool:
    """Whether sharding splits a block of consecutive entries of a row.

    A row is an index of dimension 0 with the other dimensions flattened; a vector is one row. The result is the same
    on every rank.
    """
    if block is None or not is_sharded(like):
        return False
    along = 0 if like.ndim < 2 else 1  # the dimension that starts a row
    chunk = like.shape[along] if like.ndim else 1
    entries_after = like.shape[along + 1 :].numel()
    for i, placement in enumerate(like.placements):
        dim = _plainly_sharded_dim(placement)
        if placement.is_replicate() or (dim is not None and dim < along):
            continue
        if dim != along:
            return True
        chunk = _chunk(chunk, like.device_mesh.size(i))
        if chunk * entries_after % block:
            return True
    return False


def _chunk(size: int, ranks: int) -> int:
    """Return the number of entries of a dimension on each rank; the last ranks may have fewer."""
    return -(-size // ranks)


# Which rank has which entries, for the library's own collectives.


@dataclass(frozen=True)
class Team:
    """The ranks of a mesh.

    Attributes:
        group: Their process group.
        ranks: Their global ranks, in the order of the group.
        rank: The index of this process in that order.
        device: The device of the tensors that they exchange.
    """

    group: Any
    ranks: tuple[int, ...]
    rank: int
    device: torch.device

    @property
    def size(self) -> int:
        return len(self.ranks)

    def __deepcopy__(self, memo: Any) -> Team:
        return self  # a process group cannot be copied

    def __reduce__(self) -> Any:
        raise unpicklable("process_group")


# The team of each mesh, with the world and the mesh's process groups of that time.
_TEAMS: dict[Any, tuple[Any, list[Any], Team]] = {}


def team_of(mesh: DeviceMesh) -> Team:
    """Return the ranks of a mesh as a team.

    Where process groups were destroyed and made again, a mesh is equal to an old one of the same ranks, but its team is
    another one.
    """
    world = torch.distributed.group.WORLD
    entry = _TEAMS.get(mesh)
    if entry is not None and entry[0] is world:
        _, groups, team = entry
        if not groups or groups == _groups_of(mesh):
            return team
    for other in [other for other, (past, *_) in _TEAMS.items() if past is not world]:
        del _TEAMS[other]
    groups = []
    group = world
    if mesh.size() != torch.distributed.get_world_size():
        groups = _groups_of(mesh)
        group = groups[0]
    if len(groups) > 1:
        ranks = mesh.mesh.flatten().tolist()
        group = torch.distributed.new_group(ranks, use_local_synchronization=True)
    team = _team(group, torch.device(mesh.device_type))
    _TEAMS[mesh] = world, groups, team
    return team


def _groups_of(mesh: DeviceMesh) -> list[Any]:
    """Return the process group of each dimension of a mesh."""
    return list(map(mesh.get_group, range(mesh.ndim)))


def is_process_group(value: Any) -> bool:
    """Whether a value is a process group or a mesh of ranks."""
    if not torch.distributed.is_available():
        return False
    return hasattr(value, "get_group") or isinstance(
        value, torch.distributed.ProcessGroup
    )


def unpicklable(option: str) -> TypeError:
    """Return the error for a pickle of what exchanges with the ranks of this process."""
    return TypeError(
        f"{option} belongs to this process and cannot be pickled; save the state dict instead: "
        "torch.save(optimizer.state_dict(), path)"
    )


def team_of_group(option: str, group: Any) -> Team:
    """Return the ranks of a process group, or of a one-dimensional mesh, as a team.

    Args:
        option: The name of the argument, for errors.
        group: The group.

    Raises:
        TypeError: If `group` is not a process group, or if this rank is not in it.
    """
    if hasattr(group, "get_group"):
        group = group.get_group()
    if not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(
            f"{option} must be a process group that contains this rank, or a mesh with one dimension, "
            f"got {describe(group)}"
        )
    if "gloo" in torch.distributed.get_backend(group):
        return _team(group, torch.device("cpu"))
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return _team(group, accelerator)


def _team(group: Any, device: torch.device) -> Team:
    """Return the team of a group that exchanges tensors on a type of device."""
    distributed = torch.distributed
    if device.type != "cpu":
        device = torch.device(
            device.type, torch.get_device_module(device).current_device()
        )
    ranks = tuple(distributed.get_process_group_ranks(group))
    return Team(group, ranks, distributed.get_rank(group), device)


def team_for(param: Any, replicas: Team | None) -> Team:
    """Return the ranks that shard a parameter, or the `replicas` that share the work on a replicated parameter."""
    if is_sharded(param):
        return team_of(param.device_mesh)
    assert replicas is not None
    return replicas


@dataclass(frozen=True)
class Piece:
    """The shard of one rank.

    Attributes:
        window: The index range of the shard in the full tensor.
        shape: The shape of the shard.
        sends: Whether this is the first of several copies.
    """

    window: tuple[slice, ...]
    shape: Shape
    sends: bool

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@functools.lru_cache(maxsize=64)
def check_order(mesh: DeviceMesh) -> None:
    """Check that the ranks of a mesh are in the order of its process groups, which is ascending.

    Raises:
        ValueError: If they are not: FSDP2 divides in the order of the groups, `distribute_tensor` in that of the mesh.
    """
    ranks = mesh.mesh
    for dim in range(ranks.ndim):
        if ranks.size(dim) > 1 and not bool((ranks.diff(dim=dim) > 0).all()):
            raise ValueError(
                f"the ranks of its mesh, {ranks.tolist()}, are not in ascending order, so it is unknown which of them "
                "has which entries; build the mesh of ranks in ascending order"
            )


def ranks_along_rows(like: Any) -> int | None:
    """Return the number of ranks that shard dimension 0; None if it is not sharded, or if other dimensions are too."""
    if not is_sharded(like):
        return None
    ranks: list[int] = []
    for i, placement in enumerate(like.placements):
        if _plainly_sharded_dim(placement) == 0:
            ranks.append(like.device_mesh.size(i))
        elif not placement.is_replicate():
            return None
    return ranks[0] if len(ranks) == 1 else None


def rows_are_whole(like: Any) -> bool:
    """Whether shards of a DTensor consist of whole rows, which are indices of dimension 0."""
    return all(_sharded_dim(placement) in (None, 0) for placement in like.placements)


def whole_piece(shape: Sequence[int]) -> Piece:
    """Return the piece that covers a whole tensor."""
    return Piece(tuple(slice(0, size) for size in shape), tuple(shape), True)


def can_be_owned(like: Any) -> bool:
    """Whether the pieces of a DTensor can be computed: every placement shards a dimension or replicates."""
    return all(
        _sharded_dim(placement) is not None or placement.is_replicate()
        for placement in like.placements
    )


def _sharded_dim(placement: Any) -> int | None:
    """Return the dimension that a placement shards, or None."""
    return (
        placement.dim
        if type(placement).__name__ in ("Shard", "_StridedShard")
        else None
    )


def _plainly_sharded_dim(placement: Any) -> int | None:
    """Return the dimension that a placement shards into one chunk per rank, in rank order, or None."""
    return placement.dim if type(placement).__name__ == "Shard" else None


def pieces_of(like: Any) -> tuple[Piece, ...]:
    """Return the piece of each rank, in the order of `team_of`."""
    return pieces_at(tuple(like.shape), like.device_mesh, tuple(like.placements))


def placements_by_rows(like: Any, shape: Sequence[int]) -> Placements:
    """Return the placements of a tensor that belongs to a DTensor: the same, sharded by rows, or replicated."""
    from torch.distributed.tensor import Shard

    if tuple(shape) == tuple(like.shape):
        return tuple(like.placements)
    return tuple(
        Shard(0) if shape and _sharded_dim(placement) is not None else replicated()
        for placement in like.placements
    )


@functools.lru_cache(maxsize=4096)
def pieces_at(
    shape: Shape, mesh: DeviceMesh, placements: Placements
) -> tuple[Piece, ...]:
    """Return the piece of each rank of a tensor with these placements."""
    check_order(mesh)
    ranks = mesh.mesh
    piece_of_rank = {
        int(ranks[coordinate]): _piece_at(coordinate, shape, mesh, placements)
        for coordinate in itertools.product(*map(range, ranks.shape))
    }
    return tuple(piece_of_rank[rank] for rank in team_of(mesh).ranks)


def _piece_at(
    coordinate: tuple[int, ...],
    shape: Shape,
    mesh: DeviceMesh,
    placements: Placements,
) -> Piece:
    """Return the piece of the rank at a coordinate of the mesh."""
    starts = [0] * len(shape)
    sizes = list(shape)
    order = range(len(placements))
    # FSDP shards the result of tensor parallelism, although its mesh dimension comes first.
    kinds = [type(placement).__name__ for placement in placements]
    for i in reversed(order) if "_StridedShard" in kinds else order:
        dim = _sharded_dim(placements[i])
        if dim is None:
            continue
        chunk = _chunk(sizes[dim], mesh.size(i))
        first = min(chunk * coordinate[i], sizes[dim])
        starts[dim] += first
        sizes[dim] = min(chunk, sizes[dim] - first)
    window = [
        slice(start, start + size) for start, size in zip(starts, sizes, strict=True)
    ]
    is_first_copy = not any(
        placement.is_replicate() and index > 0
        for index, placement in zip(coordinate, placements, strict=True)
    )
    return Piece(tuple(window), tuple(sizes), is_first_copy)
