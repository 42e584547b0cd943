"""Slots that only the owner of a leaf keeps: who owns what, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx._execution import Leaf
from gradtx._owners import Gathering, Transfer, assigned, in_buckets, owned_paths
from gradtx._sharding import Piece, Team, divided_among, is_sharded, pieces_at, placements_by_rows, team_of
from gradtx.optim._member import Member


def team_for(param: Any, replicas: Team | None) -> Team:
    """The ranks that divide the work on a parameter."""
    if is_sharded(param):
        return team_of(param.device_mesh)
    assert replicas is not None
    return replicas


def assign_owners(leaves: list[Leaf], members: Mapping[Tensor, Member], replicas: Team | None) -> None:
    """Assign an owner to each of these leaves with slots that an owner keeps; other leaves keep theirs."""
    without: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        if leaf.owner is None and owned_paths(leaf.program):
            without.setdefault(team_for(leaf.key, replicas), []).append(leaf)
    for team, of_mesh in without.items():
        shapes = {leaf.name: leaf.shape for leaf in of_mesh}
        known: dict[str, int] = {}
        for member in members.values():
            if member.owner is not None and team_for(member.param, replicas) == team:
                known[member.name] = member.owner
                shapes[member.name] = member.param.shape
        owners = assigned(shapes, team.size, known)
        for leaf in of_mesh:
            leaf.owner = members[leaf.key].owner = owners[leaf.name]


class Slot:
    """A slot on its way from the owner of a leaf to all ranks, which get some of its rows.

    Args:
        member: The parameter.
        key: The slot's key in its state.
        value: The slot: whole at the owner, without entries elsewhere.
    """

    def __init__(self, member: Member, key: str, value: Tensor):
        assert member.owner is not None
        self.member = member
        self.key = key
        self.owner = member.owner
        self.value = value
        self.placements = placements_by_rows(member.param, value.shape)

    @property
    def mesh(self) -> Any:
        return self.member.param.device_mesh  # type: ignore[attr-defined]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return pieces_at(tuple(self.value.shape), self.mesh, self.placements)

    def bytes(self) -> int:
        return self.value.nbytes


def states_of_owners(
    members: Mapping[Tensor, Member], states: Mapping[Any, dict[str, Any]], replicas: Team | None
) -> dict[Any, Any]:
    """The states of parameters with an owner as all ranks save them. All ranks call it together.

    Slots of a divided parameter are divided by rows; those of one that every rank has are whole.
    """
    alike: dict[Any, list[Slot]] = {}
    of_replicas: dict[torch.dtype, list[ReplicaSlot]] = {}
    divided: dict[Any, Any] = {}
    for param, member in members.items():
        if param in states and member.layout is not None and member.layout.owned:
            divided[param] = dict(states[param])
            for key in sorted(member.layout.owned):
                value = states[param][key]
                if not is_sharded(param):
                    of_replicas.setdefault(value.dtype, []).append(ReplicaSlot(member, key, value))
                    continue
                slot = Slot(member, key, value)
                alike.setdefault((slot.mesh, slot.value.dtype), []).append(slot)
    for slots in alike.values():
        for bucket in in_buckets(slots, Slot.bytes):
            for slot, part in zip(bucket, _handed_out(bucket), strict=True):
                param = slot.member.param
                divided[param][slot.key] = divided_among(part, param, slot.value.shape, slot.placements)
    for of_dtype in of_replicas.values():
        assert replicas is not None
        for slots_of_bucket in in_buckets(of_dtype, ReplicaSlot.bytes):
            for slot, whole in zip(slots_of_bucket, _gathered(slots_of_bucket, replicas), strict=True):
                divided[slot.member.param][slot.key] = whole
    return divided


class ReplicaSlot(NamedTuple):
    """A slot that one rank keeps of a parameter that every rank has."""

    member: Member
    key: str
    value: Tensor

    def bytes(self) -> int:
        return self.value.nbytes


def _gathered(bucket: list[ReplicaSlot], team: Team) -> list[Tensor]:
    """These slots, on every rank, by one message."""
    dtype = bucket[0].value.dtype
    wire = torch.uint8 if dtype.itemsize == 1 else dtype
    sizes = [0] * team.size
    for slot in bucket:
        assert slot.member.owner is not None
        sizes[slot.member.owner] += slot.value.numel()
    mine = [slot.value.reshape(-1).view(wire) for slot in bucket if slot.member.owner == team.rank]
    received = Gathering(team, mine, sizes, wire, False).parts()
    at = [0] * team.size
    wholes: list[Tensor] = []
    for slot in bucket:
        owner, size = slot.member.owner, slot.value.numel()
        assert owner is not None
        entries = received[owner][at[owner] : at[owner] + size]
        wholes.append(entries.clone().view(dtype).view(slot.value.shape))
        at[owner] += size
    return wholes


def _handed_out(bucket: list[Slot]) -> list[Tensor]:
    """The rows of each slot that this rank gets, by one message."""
    team = team_of(bucket[0].mesh)
    dtype = bucket[0].value.dtype
    wire = torch.uint8 if dtype.itemsize == 1 else dtype  # some back ends don't send eight-bit floats and bools
    rows: list[list[Tensor]] = []
    sizes: list[int] = []
    for rank in range(team.size):
        mine = [slot for slot in bucket if slot.owner == team.rank]
        rows.append([slot.value[slot.pieces[rank].window].reshape(-1).view(wire) for slot in mine])
        sizes.append(sum(slot.pieces[team.rank].numel for slot in bucket if slot.owner == rank))
    received = Transfer(team, rows, sizes, wire, False).parts()
    at = [0] * team.size
    parts: list[Tensor] = []
    for slot in bucket:
        piece = slot.pieces[team.rank]
        entries = received[slot.owner][at[slot.owner] : at[slot.owner] + piece.numel]
        parts.append(entries.clone().view(dtype).view(piece.shape))
        at[slot.owner] += piece.numel
    return parts
