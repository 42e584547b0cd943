"""Slots that only the owner of a leaf keeps: assignment of owners, and saving."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import from_local_like, is_sharded
from gradtx.distributed.collectives import Transfer, in_buckets
from gradtx.distributed.layouts import (
    Team,
    pieces_at,
    placements_by_rows,
    team_for,
)
from gradtx.distributed.owners import assigned, owned_paths
from gradtx.execution.execute import Leaf
from gradtx.optim.member import Member
from gradtx.programs.layout import Layout


def assign_owners(
    leaves: list[Leaf], members: Mapping[Tensor, Member], replicas: Team | None
) -> None:
    """Assign an owner to each leaf that needs one and has none yet."""
    leaves_of_team: dict[Team, list[Leaf]] = defaultdict(list)
    for leaf in leaves:
        if leaf.owner is None and owned_paths(leaf.program):
            leaves_of_team[team_for(leaf.key, replicas)].append(leaf)
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


@dataclass(eq=False)
class Slot:
    """A slot that is sent from the owner of a leaf to all ranks.

    Attributes:
        member: The parameter.
        key: The slot's key in the parameter's state.
        value: The slot: whole on the owner, without entries on other ranks.
        owner: The owner.
    """

    member: Member
    key: str
    value: Tensor
    owner: int

    @property
    def mesh(self) -> Any:
        """The mesh of a sharded parameter; None if every rank has the whole parameter."""
        param: Any = self.member.param
        return param.device_mesh if is_sharded(param) else None

    @functools.cached_property
    def placements(self) -> Any:
        """The placements that divide a slot of a sharded parameter by rows."""
        return placements_by_rows(self.member.param, self.value.shape)

    def part_at(self, rank: int) -> tuple[tuple[slice, ...], tuple[int, ...]]:
        """Return the window and the shape of a rank's part: rows of a sharded parameter, otherwise the whole slot."""
        shape = tuple(self.value.shape)
        if self.mesh is None:
            return (), shape
        piece = pieces_at(shape, self.mesh, self.placements)[rank]
        return piece.window, piece.shape

    def bytes(self) -> int:
        return self.value.nbytes


def states_of_owners(
    members: Mapping[Tensor, Member],
    layouts: Mapping[Tensor, Layout],
    states: Mapping[Any, dict[str, Any]],
    replicas: Team | None,
) -> dict[Any, Any]:
    """Return the states of parameters with an owner, in the form that all ranks save. All ranks must call it together.

    Slots of a sharded parameter are divided by rows; slots of a parameter that every rank has are whole.

    Args:
        members: The parameters.
        layouts: The layouts of their states.
        states: Their states.
        replicas: The ranks that have equal whole parameters and divide the work on them.
    """
    slots_of_kind: dict[Any, list[Slot]] = defaultdict(list)
    saved: dict[Any, Any] = {}
    for param, member in members.items():
        owned = layouts[param].owned if param in layouts else ()
        if param not in states or not owned:
            continue
        state = states[param]
        saved[param] = dict(state)
        for key in sorted(owned):
            assert member.owner is not None
            slot = Slot(member, key, state[key], member.owner)
            slots_of_kind[slot.mesh, slot.value.dtype].append(slot)
    for slots in slots_of_kind.values():
        team = team_for(slots[0].member.param, replicas)
        for bucket in in_buckets(slots, Slot.bytes):
            for slot, value in zip(bucket, _sent(bucket, team), strict=True):
                saved[slot.member.param][slot.key] = value
    return saved


def _sent(bucket: list[Slot], team: Team) -> list[Any]:
    """Return the part of this rank of slots with one dtype, with one message."""
    dtype = bucket[0].value.dtype
    # Some back ends cannot send eight-bit floats and bools.
    wire = torch.uint8 if dtype.itemsize == 1 else dtype
    rows_for_ranks: list[list[Tensor]] = [[] for _ in range(team.size)]
    sizes_from_ranks = [0] * team.size
    for slot in bucket:
        _, shape = slot.part_at(team.rank)
        sizes_from_ranks[slot.owner] += math.prod(shape)
        if slot.owner == team.rank:
            for rank, rows in enumerate(rows_for_ranks):
                window, _ = slot.part_at(rank)
                rows.append(slot.value[window].reshape(-1).view(wire))
    received = Transfer(team, rows_for_ranks, sizes_from_ranks, wire, False).parts()
    ends = [0] * team.size  # of the last slot in each owner's buffer
    parts: list[Any] = []
    for slot in bucket:
        _, shape = slot.part_at(team.rank)
        start = ends[slot.owner]
        end = ends[slot.owner] = start + math.prod(shape)
        part: Any = received[slot.owner][start:end].clone().view(dtype).view(shape)
        if slot.mesh is not None:
            param = slot.member.param
            part = from_local_like(part, param, slot.value.shape, slot.placements)
        parts.append(part)
    return parts
