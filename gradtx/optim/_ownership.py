"""Slots that only the owner of a leaf keeps: assignment of owners, and saving."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import from_local_shard, is_sharded
from gradtx.distributed.layouts import (
    Piece,
    Team,
    pieces_at,
    placements_by_rows,
    team_for,
)
from gradtx.distributed.owners import (
    Gathering,
    Transfer,
    assigned,
    in_buckets,
    owned_paths,
)
from gradtx.execution.execute import Leaf
from gradtx.optim._member import Member


def assign_owners(
    leaves: list[Leaf], members: Mapping[Tensor, Member], replicas: Team | None
) -> None:
    """Assign an owner to each leaf that needs one and has none yet."""
    leaves_of_team: dict[Team, list[Leaf]] = {}
    for leaf in leaves:
        if leaf.owner is None and owned_paths(leaf.program):
            team = team_for(leaf.key, replicas)
            leaves_of_team.setdefault(team, []).append(leaf)
    for team, leaves_without_owner in leaves_of_team.items():
        shapes = {leaf.name: leaf.shape for leaf in leaves_without_owner}
        known_owners: dict[str, int] = {}
        for member in members.values():
            if member.owner is not None and team_for(member.param, replicas) == team:
                known_owners[member.name] = member.owner
                shapes[member.name] = member.param.shape
        owners = assigned(shapes, team.size, known_owners)
        for leaf in leaves_without_owner:
            leaf.owner = owners[leaf.name]
            members[leaf.key].owner = leaf.owner


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
        param: Any = self.member.param
        return param.device_mesh if is_sharded(param) else None

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
        if param not in states or member.layout is None or not member.layout.owned:
            continue
        state = states[param]
        saved[param] = dict(state)
        for key in sorted(member.layout.owned):
            slot = Slot(member, key, state[key])
            kind = slot.mesh, slot.value.dtype
            slots_of_kind.setdefault(kind, []).append(slot)
    for (mesh, _), slots in slots_of_kind.items():
        team = team_for(slots[0].member.param, replicas)
        send = _gathered if mesh is None else _scattered
        for bucket in in_buckets(slots, Slot.bytes):
            values = send(bucket, team)
            for slot, value in zip(bucket, values, strict=True):
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
    sent: list[Tensor] = []
    for slot in bucket:
        sizes[slot.owner] += slot.value.numel()
        if slot.owner == team.rank:
            sent.append(slot.value.reshape(-1).view(wire))
    received = Gathering(team, sent, sizes, wire, False).parts()
    shapes = [slot.value.shape for slot in bucket]
    return _split_received(received, bucket, shapes)


def _scattered(bucket: list[Slot], team: Team) -> list[Any]:
    """Return slots divided by rows among the ranks, with one message."""
    wire = _wire(bucket)
    owned = [slot for slot in bucket if slot.owner == team.rank]
    rows_for_ranks: list[list[Tensor]] = []
    for rank in range(team.size):
        rows: list[Tensor] = []
        for slot in owned:
            window = slot.pieces[rank].window
            rows.append(slot.value[window].reshape(-1).view(wire))
        rows_for_ranks.append(rows)
    shapes: list[Sequence[int]] = []
    sizes_from_ranks = [0] * team.size
    for slot in bucket:
        piece = slot.pieces[team.rank]
        shapes.append(piece.shape)
        sizes_from_ranks[slot.owner] += piece.numel
    received = Transfer(team, rows_for_ranks, sizes_from_ranks, wire, False).parts()
    parts = _split_received(received, bucket, shapes)
    tensors: list[Any] = []
    for slot, part in zip(bucket, parts, strict=True):
        param = slot.member.param
        shape = slot.value.shape
        tensors.append(from_local_shard(part, param, shape, slot.placements))
    return tensors


def _split_received(
    received: list[Tensor], bucket: list[Slot], shapes: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Split the received buffers into slots of these shapes; the slots of one owner are contiguous."""
    starts = [0] * len(received)  # of the next slot in each owner's buffer
    parts: list[Tensor] = []
    for slot, shape in zip(bucket, shapes, strict=True):
        start = starts[slot.owner]
        end = start + math.prod(shape)
        entries = received[slot.owner][start:end].clone()
        parts.append(entries.view(slot.value.dtype).view(tuple(shape)))
        starts[slot.owner] = end
    return parts
