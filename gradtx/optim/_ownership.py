"""Slots that only the owner of a leaf keeps: assignment of owners, and saving."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx._execution import Leaf
from gradtx._owners import Gathering, Transfer, assigned, in_buckets, owned_paths
from gradtx._sharding import (
    Piece,
    Team,
    from_local_shard,
    is_sharded,
    pieces_at,
    placements_by_rows,
    team_for,
)
from gradtx.optim._member import Member


def assign_owners(
    leaves: list[Leaf], members: Mapping[Tensor, Member], replicas: Team | None
) -> None:
    """Assign an owner to each leaf that needs one and has none yet."""
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
    """A slot that is sent from the owner of a leaf to all ranks.

    Args:
        member: The parameter.
        key: The slot's key in the parameter's state.
        value: The slot: whole on the owner, without entries on other ranks.
    """

    def __init__(self, member: Member, key: str, value: Tensor):
        assert member.owner is not None
        self.member = member
        self.key = key
        self.owner = member.owner
        self.value = value

    @property
    def mesh(self) -> Any:
        """The mesh of a sharded parameter; None if every rank has the whole parameter."""
        return self.member.param.device_mesh if is_sharded(self.member.param) else None  # type: ignore[attr-defined]

    @functools.cached_property
    def placements(self) -> Any:
        """The placements that divide a slot of a sharded parameter by rows."""
        return placements_by_rows(self.member.param, self.value.shape)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return pieces_at(tuple(self.value.shape), self.mesh, self.placements)

    def bytes(self) -> int:
        return self.value.nbytes


def states_of_owners(
    members: Mapping[Tensor, Member],
    states: Mapping[Any, dict[str, Any]],
    replicas: Team | None,
) -> dict[Any, Any]:
    """Return the states of parameters with an owner, in the form that all ranks save. All ranks must call it together.

    Slots of a sharded parameter are divided by rows; slots of a parameter that every rank has are whole.
    """
    slots_of_kind: dict[Any, list[Slot]] = {}
    saved: dict[Any, Any] = {}
    for param, member in members.items():
        if param in states and member.layout is not None and member.layout.owned:
            saved[param] = dict(states[param])
            for key in sorted(member.layout.owned):
                slot = Slot(member, key, states[param][key])
                slots_of_kind.setdefault((slot.mesh, slot.value.dtype), []).append(slot)
    for (mesh, _), slots in slots_of_kind.items():
        team = team_for(slots[0].member.param, replicas)
        send = _gathered if mesh is None else _scattered
        for bucket in in_buckets(slots, Slot.bytes):
            for slot, value in zip(bucket, send(bucket, team), strict=True):
                saved[slot.member.param][slot.key] = value
    return saved


def _wire(bucket: list[Slot]) -> torch.dtype:
    """Return the dtype in which a bucket's slots are sent: some back ends cannot send eight-bit floats and bools."""
    dtype = bucket[0].value.dtype
    return torch.uint8 if dtype.itemsize == 1 else dtype


def _gathered(bucket: list[Slot], team: Team) -> list[Any]:
    """Return whole slots on every rank, with one message."""
    wire = _wire(bucket)
    sizes = [0] * team.size
    for slot in bucket:
        sizes[slot.owner] += slot.value.numel()
    mine = [
        slot.value.reshape(-1).view(wire) for slot in bucket if slot.owner == team.rank
    ]
    received = Gathering(team, mine, sizes, wire, False).parts()
    return _split_received(received, bucket, [slot.value.shape for slot in bucket])


def _scattered(bucket: list[Slot], team: Team) -> list[Any]:
    """Return slots divided by rows among the ranks, with one message."""
    wire = _wire(bucket)
    rows: list[list[Tensor]] = []
    sizes: list[int] = []
    for rank in range(team.size):
        mine = [slot for slot in bucket if slot.owner == team.rank]
        rows.append(
            [
                slot.value[slot.pieces[rank].window].reshape(-1).view(wire)
                for slot in mine
            ]
        )
        sizes.append(
            sum(slot.pieces[team.rank].numel for slot in bucket if slot.owner == rank)
        )
    received = Transfer(team, rows, sizes, wire, False).parts()
    parts = _split_received(
        received, bucket, [slot.pieces[team.rank].shape for slot in bucket]
    )
    tensors: list[Any] = []
    for slot, part in zip(bucket, parts, strict=True):
        tensors.append(
            from_local_shard(part, slot.member.param, slot.value.shape, slot.placements)
        )
    return tensors


def _split_received(
    received: list[Tensor], bucket: list[Slot], shapes: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Split the received buffers into slots of these shapes; the slots of one owner are contiguous."""
    at = [0] * len(received)
    parts: list[Tensor] = []
    for slot, shape in zip(bucket, shapes, strict=True):
        start, size = at[slot.owner], math.prod(shape)
        entries = received[slot.owner][start : start + size]
        parts.append(entries.clone().view(slot.value.dtype).view(tuple(shape)))
        at[slot.owner] += size
    return parts
