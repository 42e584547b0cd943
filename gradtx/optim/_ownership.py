"""Slots that only the owner of a leaf keeps: who owns what, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._execution import Leaf
from gradtx._owners import Transfer, assigned, in_buckets, owned_paths
from gradtx._sharding import Piece, divided_among, pieces_at, placements_by_rows, team_of
from gradtx.optim._member import Member


def assign_owners(leaves: list[Leaf], members: Mapping[Tensor, Member]) -> None:
    """Assign an owner to each of these leaves with slots that an owner keeps; other leaves keep theirs."""
    without: dict[Any, list[Leaf]] = {}
    for leaf in leaves:
        if leaf.owner is None and owned_paths(leaf.program):
            without.setdefault(leaf.key.device_mesh, []).append(leaf)
    for mesh, of_mesh in without.items():
        shapes = {leaf.name: leaf.shape for leaf in of_mesh}
        known: dict[str, int] = {}
        for member in members.values():
            if member.owner is not None and member.param.device_mesh == mesh:  # type: ignore[attr-defined]
                known[member.name] = member.owner
                shapes[member.name] = member.param.shape
        owners = assigned(shapes, team_of(mesh).size, known)
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


def divided_by_rows(members: Mapping[Tensor, Member], states: Mapping[Any, dict[str, Any]]) -> dict[Any, Any]:
    """The states of parameters with an owner, whose slots are divided among all ranks. All ranks call it together."""
    alike: dict[Any, list[Slot]] = {}
    divided: dict[Any, Any] = {}
    for param, member in members.items():
        if param in states and member.layout is not None and member.layout.owned:
            divided[param] = dict(states[param])
            for key in sorted(member.layout.owned):
                slot = Slot(member, key, states[param][key])
                alike.setdefault((slot.mesh, slot.value.dtype), []).append(slot)
    for slots in alike.values():
        for bucket in in_buckets(slots, Slot.bytes):
            for slot, part in zip(bucket, _handed_out(bucket), strict=True):
                param = slot.member.param
                divided[param][slot.key] = divided_among(part, param, slot.value.shape, slot.placements)
    return divided


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
