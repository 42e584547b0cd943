"""Tensors divided among processes (DTensors), known by what they offer: most programs never import them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx._exact import exact_dtype
from gradtx._messages import describe


def is_sharded(tensor: Any) -> bool:
    return type(tensor) is not Tensor and hasattr(tensor, "placements")


def local(tensor: Any) -> Tensor:
    """The part that this process has."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def undivided(tensor: Any) -> Tensor:
    """All of it, as a plain tensor."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def rejoined(part: Tensor, like: Any) -> Any:
    """The tensor divided as `like` of which `part` is what this process has."""
    if not is_sharded(like):
        return part
    shape = {"shape": like.shape, "stride": like.stride()}
    return type(like).from_local(part, like.device_mesh, like.placements, run_check=False, **shape)


def gathered(tensor: Any, like: Any) -> Any:
    """The same with all entries on every process of those that `like` is divided among."""
    if not (is_sharded(tensor) or is_sharded(like)):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = (tensor if is_sharded(tensor) else like).device_mesh
    whole = [Replicate()] * mesh.ndim
    if is_sharded(tensor):
        return tensor.redistribute(placements=whole)
    return DTensor.from_local(tensor, mesh, whole, run_check=False)  # every process has all of it: nothing is sent


def placed_as(tensor: Any, like: Any) -> Any:
    """The same numbers divided as `like`; operations may return them otherwise, also with sums outstanding."""
    if not is_sharded(like):
        return undivided(tensor)
    tensor = tensor if is_sharded(tensor) else gathered(tensor, like)
    return tensor if tensor.placements == like.placements else tensor.redistribute(placements=like.placements)


def total_of(terms: list[Any]) -> Tensor:
    """The sum of 0-d tensors, a plain one."""
    single = len(terms) == 1 and not is_sharded(terms[0])
    return terms[0] if single else stacked(terms).sum()


def stacked(numbers: list[Any]) -> Tensor:
    """0-d tensors as one plain vector, with one exchange for all that are divided alike."""
    alike: dict[Any, list[int]] = {}
    for i, number in enumerate(numbers):
        alike.setdefault((number.device_mesh, number.placements) if is_sharded(number) else None, []).append(i)
    if list(alike) == [None]:
        return torch.stack(numbers)
    vectors = []
    for places in alike.values():
        first, vector = numbers[places[0]], torch.stack([local(numbers[i]) for i in places])
        if is_sharded(first):
            vector = type(first).from_local(vector, first.device_mesh, first.placements, run_check=False).full_tensor()
        vectors.append(vector)
    order = [i for places in alike.values() for i in places]
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(vectors)[back]


def summed_over_ranks(sums: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sums of many leaves, complete on every rank; those that are divided alike travel in one message.

    Args:
        sums: The sums of each leaf, by name; tensors that are divided are divided still.
    """
    alike: dict[Any, list[tuple[str, str]]] = {}
    complete: dict[str, dict[str, Any]] = {}
    for leaf in sorted(sums):
        complete[leaf] = dict(sums[leaf])
        for name, value in sums[leaf].items():
            if is_sharded(value):
                differs = tuple(not placement.is_replicate() for placement in value.placements)
                alike.setdefault((value.device_mesh, differs, value.dtype), []).append((leaf, name))
    for (mesh, differs, _), places in alike.items():
        values = [sums[leaf][name] for leaf, name in places]
        parts = list(map(_padded, values))
        for i, has_differences in enumerate(differs):
            if has_differences:
                parts = _added(parts, mesh.get_group(i))
        whole = [_replicated()] * mesh.ndim
        for (leaf, name), value, part in zip(places, values, parts, strict=True):
            complete[leaf][name] = divided_among(part, value, value.shape, tuple(whole))
    return complete


def _padded(value: Any) -> Tensor:
    """A tensor of all entries, whose sum over the ranks is a divided tensor."""
    part = local(value)
    if part.shape == value.shape and not any(_cut_dim(placement) is not None for placement in value.placements):
        return part
    kept = tuple(_replicated() if placement.is_partial() else placement for placement in value.placements)
    team = team_of(value.device_mesh)
    window = pieces_at(tuple(value.shape), value.device_mesh, kept)[team.rank].window
    padded = part.new_zeros(value.shape)
    padded[window] = part
    return padded


def _added(parts: list[Tensor], group: Any) -> list[Tensor]:
    """The sums of tensors over the ranks of a group, by one message."""
    vector = torch.cat([part.reshape(-1) for part in parts])
    torch.distributed.all_reduce(vector, group=group)
    totals = vector.split([part.numel() for part in parts])
    return [total.view(part.shape) for total, part in zip(totals, parts, strict=True)]


def _replicated() -> Any:
    from torch.distributed.tensor import Replicate

    return Replicate()


def joined(part: Tensor, like: Any, shape: Sequence[int]) -> Any:
    """The tensor of a shape, divided as `like`, of which `part` is the local part."""
    return divided_among(part, like, shape, like.placements) if is_sharded(like) else part


def first_entries(like: Any) -> list[int] | None:
    """The index of the first local entry in each dimension of a divided tensor; None for unusual placements."""
    for placement in like.placements:
        if not placement.is_replicate() and type(placement).__name__ != "Shard":
            return None
    mesh = like.device_mesh
    piece = _piece_at(tuple(mesh.get_coordinate()), tuple(like.shape), mesh, tuple(like.placements))
    return [window.start for window in piece.window]


def cuts_rows(like: Any, block: int | None) -> bool:
    """Whether a division among processes cuts a block of entries that follow one another in a row.

    A row is an index of dimension 0, the rest flattened; a vector is one row. The same on every process.
    """
    if block is None or not is_sharded(like):
        return False
    along = 0 if like.ndim < 2 else 1  # the dimension that starts a row
    chunk = like.shape[along] if like.ndim else 1
    for i, placement in enumerate(like.placements):
        if placement.is_replicate() or (placement.is_shard() and placement.dim < along):
            continue
        if type(placement).__name__ != "Shard" or placement.dim > along:
            return True
        chunk = -(-chunk // like.device_mesh.size(i))
        if chunk * like.shape[along + 1 :].numel() % block:
            return True
    return False


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of all entries of a tree: leaf by leaf, then in name order, in float64."""
    sums = [terms[name].sum() for name in sorted(terms)]
    return stacked([term.to(sums[0].device, exact_dtype(sums[0])) for term in sums]).sum()


# Which rank has which entries, for exchanges by the library itself.


@dataclass(frozen=True)
class Team:
    """The ranks of a mesh.

    Attributes:
        group: Their process group.
        ranks: Their global ranks, in the order of the group.
        rank: The place of this process in that order.
        device: Where tensors are that they exchange.
    """

    group: Any
    ranks: tuple[int, ...]
    rank: int
    device: torch.device

    @property
    def size(self) -> int:
        return len(self.ranks)

    def __deepcopy__(self, memo: Any) -> Team:
        return self  # a process group is one of a kind


@functools.cache
def team_of(mesh: Any) -> Team:
    """The ranks of a mesh as a team."""
    distributed = torch.distributed
    ranks = mesh.mesh.flatten().tolist()
    group: Any
    if len(ranks) == distributed.get_world_size():
        group = distributed.group.WORLD
    elif mesh.ndim == 1:
        group = mesh.get_group()
    else:
        group = distributed.new_group(ranks, use_local_synchronization=True)
    return _team(group, torch.device(mesh.device_type))


def team_of_group(option: str, group: Any) -> Team:
    """The ranks of a process group, or of a mesh with one dimension, as a team.

    Args:
        option: The argument that it came by, for errors.
        group: The group.

    Raises:
        TypeError: this is no group.
        ValueError: there is none yet, or this rank is not in it.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ValueError(f"{option} needs processes: call torch.distributed.init_process_group first")
    if hasattr(group, "get_group"):
        group = group.get_group()
    if group is torch.distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{option}: this rank is not in the group; pass the group that it is in, or None")
    if not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(f"{option} must be a process group, or a mesh with one dimension, got {describe(group)}")
    if "gloo" in torch.distributed.get_backend(group):
        return _team(group, torch.device("cpu"))
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return _team(group, accelerator)


def _team(group: Any, device: torch.device) -> Team:
    """The ranks of a group that sends tensors on a kind of device."""
    distributed = torch.distributed
    if device.type != "cpu":
        device = torch.device(device.type, torch.get_device_module(device).current_device())
    return Team(group, tuple(distributed.get_process_group_ranks(group)), distributed.get_rank(group), device)


def team_for(param: Any, replicas: Team | None) -> Team:
    """The ranks that divide a parameter, or the work on one of which each of the `replicas` has all."""
    if is_sharded(param):
        return team_of(param.device_mesh)
    assert replicas is not None
    return replicas


@dataclass(frozen=True)
class Piece:
    """The part of a divided tensor that one rank has.

    Attributes:
        window: Its place in the whole tensor.
        shape: Its shape.
        sends: Whether it is the first of several copies.
    """

    window: tuple[slice, ...]
    shape: tuple[int, ...]
    sends: bool

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def ranks_along_rows(like: Any) -> int | None:
    """Among how many ranks dimension 0 is divided; None if a tensor is not divided so, or otherwise as well."""
    if not is_sharded(like):
        return None
    ranks: list[int] = []
    for i, placement in enumerate(like.placements):
        if type(placement).__name__ == "Shard" and placement.dim == 0:
            ranks.append(like.device_mesh.size(i))
        elif not placement.is_replicate():
            return None
    return ranks[0] if len(ranks) == 1 else None


def whole_piece(shape: Sequence[int]) -> Piece:
    """All of a tensor."""
    return Piece(tuple(slice(0, size) for size in shape), tuple(shape), True)


def can_be_owned(like: Any) -> bool:
    """Whether the pieces of a divided tensor are known: it is cut along dimensions, or copied."""
    return all(_cut_dim(placement) is not None or placement.is_replicate() for placement in like.placements)


def _cut_dim(placement: Any) -> int | None:
    """The dimension that a placement cuts."""
    return placement.dim if type(placement).__name__ in ("Shard", "_StridedShard") else None


def pieces_of(like: Any) -> tuple[Piece, ...]:
    """The piece of each rank, in the order of `team_of`."""
    return pieces_at(tuple(like.shape), like.device_mesh, tuple(like.placements))


def placements_by_rows(like: Any, shape: Sequence[int]) -> tuple[Any, ...]:
    """How a tensor of a shape is divided that belongs to a divided one: in the same way, by rows, or not at all."""
    from torch.distributed.tensor import Replicate, Shard

    if tuple(shape) == tuple(like.shape):
        return tuple(like.placements)
    placements: list[Any] = []
    for placement in like.placements:
        placements.append(Shard(0) if shape and _cut_dim(placement) is not None else Replicate())
    return tuple(placements)


def divided_among(part: Tensor, like: Any, shape: Sequence[int], placements: tuple[Any, ...]) -> Any:
    """The tensor of a shape that is divided like this on the mesh of `like`, of which `part` is the local part."""
    if not shape:
        return part
    stride = torch.empty(tuple(shape), device="meta").stride()
    mesh = like.device_mesh
    return type(like).from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


@functools.lru_cache(maxsize=4096)
def pieces_at(shape: tuple[int, ...], mesh: Any, placements: tuple[Any, ...]) -> tuple[Piece, ...]:
    """The piece of each rank of a tensor that is divided like this."""
    by_rank: dict[int, Piece] = {}
    for place in itertools.product(*map(range, mesh.mesh.shape)):
        by_rank[int(mesh.mesh[place])] = _piece_at(place, shape, mesh, placements)
    return tuple(by_rank[rank] for rank in team_of(mesh).ranks)


def _piece_at(place: tuple[int, ...], shape: tuple[int, ...], mesh: Any, placements: tuple[Any, ...]) -> Piece:
    """The piece of the rank at a place of a mesh."""
    starts = [0] * len(shape)
    sizes = list(shape)
    # FSDP cuts what tensor parallelism has cut before, though its dimension of the mesh comes first.
    strided = any(type(placement).__name__ == "_StridedShard" for placement in placements)
    order = range(len(placements))
    for i in reversed(order) if strided else order:
        dim = _cut_dim(placements[i])
        if dim is None:
            continue
        chunk = -(-sizes[dim] // mesh.size(i))
        first = min(chunk * place[i], sizes[dim])
        starts[dim] += first
        sizes[dim] = min(chunk, sizes[dim] - first)
    copies = [at for at, placement in zip(place, placements, strict=True) if placement.is_replicate()]
    window = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    return Piece(window, tuple(sizes), not any(copies))
