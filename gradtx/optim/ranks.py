"""Ranks that share parameters, or the work on them, compare their plans; owners of leaves send their slots."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.chunks import chunks
from gradtx.base.dtensor import from_local_like, is_sharded, local
from gradtx.distributed.collectives import BUCKET, Transfer
from gradtx.distributed.layouts import (
    Piece,
    Team,
    can_be_owned,
    pieces_at,
    pieces_of,
    placements_by_rows,
    team_for,
    team_of,
    whole_piece,
)
from gradtx.execution.execute import Leaf
from gradtx.execution.owners import assigned
from gradtx.optim.groups import GroupSettings
from gradtx.optim.parameters import Members
from gradtx.optim.run import Member
from gradtx.state.layout import Layout

BITS = 62  # size of a digest: the digest and its negative both fit in int64
# Sent in place of a digest and of its negative; no plan has this digest.
FAILED = 2**BITS


class Agreement:
    """Compares the plan of a step with those of the other ranks.

    Ranks with sharded parameters compare whenever their plan has changed. Ranks that have whole parameters and divide
    the work on them compare at every step, because a gradient may be missing on a single rank.

    One message of 16 bytes contains a digest. If the digests differ, the ranks exchange the full plans, and every rank
    raises the same error. When all ranks compare, a rank that has already failed reports this in its message.
    """

    def __init__(self) -> None:
        self._agreed: Any = None  # the last plan that all ranks had
        # The members of each team, with their digest and its negative.
        self._digests: list[tuple[Team, list[Member], list[int]]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Agreement, ()

    def check(self, stepping: list[Member], members: Members) -> None:
        """Compare this rank's plan for the step with the plans of the other ranks.

        Args:
            stepping: The parameters that step.
            members: All parameters and groups.

        Raises:
            RuntimeError: If another rank has other parameters, gradients or hyperparameters.
        """
        groups, replicas = members.groups, members.replicas
        plan = (
            stepping,
            [member.param.grad is not None for member in stepping],
            [member.layout for member in stepping],
            [settings.structure for settings in groups],
        )
        is_known = plan == self._agreed
        # If the ranks differ, the next attempt compares again, with new digests: group values may have changed.
        self._agreed = None
        if not is_known:
            self._digests = [
                (team, of_team, _extremes(_lines(of_team, groups)))
                for team, of_team in _by_team(stepping, replicas)
            ]
        for team, of_team, extremes in self._digests:
            must_compare = not is_known or team is replicas
            if must_compare and not _are_equal(team, extremes):
                difference = _difference(team, _lines(of_team, groups))
                raise RuntimeError(f"{members.who}: {difference}")
        self._agreed = plan

    def report_failure(self, members: Members) -> None:
        """Report to ranks that are about to compare plans that this rank does not step."""
        # If they have compared before, the other ranks do not compare either, unless they have whole parameters.
        if members.replicas is None and self._agreed is not None:
            return
        stepping = [
            member
            for member in members.by_param.values()
            if member.param.grad is not None
        ]
        for team, _ in _by_team(stepping, members.replicas):
            if not _are_equal(team, [FAILED, FAILED]):
                _difference(team, None)
            return  # the other ranks raise an error at the first team


def _by_team(
    members: list[Member], replicas: Team | None
) -> list[tuple[Team, list[Member]]]:
    """Return each team with the parameters that it divides, or the work on them, in the same order on all ranks."""
    of_mesh: dict[Any, list[Member]] = defaultdict(list)
    for member in members:
        param: Any = member.param
        of_mesh[param.device_mesh if is_sharded(param) else None].append(member)
    whole = of_mesh.pop(None, [])
    teams = [] if replicas is None else [(replicas, whole)]
    for mesh in sorted(of_mesh, key=str):
        teams.append((team_of(mesh), of_mesh[mesh]))
    return teams


def _lines(members: list[Member], groups: list[GroupSettings]) -> list[str]:
    """Describe the properties of these parameters and their groups that must be equal on all ranks."""
    lines = []
    for member in sorted(members, key=lambda member: member.name):
        param: Any = member.param
        gradient = "no gradient"
        if param.grad is not None:
            gradient = f"a gradient of dtype {param.grad.dtype}"
        keys = " ".join(sorted(member.layout.keys))
        owner = "" if member.owner is None else f", owner {member.owner}"
        placed = f", placed {param.placements}" if is_sharded(param) else ""
        lines.append(
            f"parameter {member.name!r} of shape {tuple(param.shape)} and dtype {param.dtype}{placed}, "
            f"in group {member.group}, with {gradient}, state {keys}{owner}"
        )
    for i in sorted({member.group for member in members}):
        numbers = {
            name: value
            for name, value in groups[i].values().items()
            if not isinstance(value, torch.Tensor)
        }
        text = f"group {i} with {groups[i].tx!r} and {numbers}"
        # The repr of a function contains its address.
        lines.append(re.sub(r" at 0x[0-9a-f]+", "", text))
    return lines


def _are_equal(team: Team, extremes: list[int]) -> bool:
    """Whether all ranks have the same digest."""
    of_all = torch.tensor(extremes, device=team.device)
    largest_of = torch.distributed.ReduceOp.MAX
    torch.distributed.all_reduce(of_all, largest_of, group=team.group)
    largest, negative_of_smallest = of_all
    return bool(largest == -negative_of_smallest)


def _difference(team: Team, lines: list[str] | None) -> str:
    """Describe the first rank that has failed, whose lines are None, or else the first difference of two plans."""
    of_ranks: list[Any] = [None] * team.size
    torch.distributed.all_gather_object(of_ranks, lines, group=team.group)
    if None in of_ranks:
        rank = team.ranks[of_ranks.index(None)]
        return f"rank {rank} failed before this step; see the error raised on that rank"
    for rank, plan in zip(team.ranks, of_ranks, strict=True):
        if plan != of_ranks[0]:
            ours = _steps(team.ranks[0], of_ranks[0], plan)
            theirs = _steps(rank, plan, of_ranks[0])
            return f"ranks would step differently: {ours}; {theirs}"
    return "ranks would step differently"


def _steps(rank: int, plan: list[str], other: list[str]) -> str:
    """Describe what a rank steps and another does not."""
    for line in plan:
        if line not in other:
            return f"rank {rank} steps {line}"
    return f"rank {rank} does not, or in another order"


def _extremes(lines: list[str]) -> list[int]:
    """Return the digest of a plan and its negative, so that one MAX all_reduce finds both extremes."""
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> (64 - BITS)
    return [number, -number]


def assign_owners(
    leaves: list[Leaf], members: Mapping[Tensor, Member], replicas: Team | None
) -> None:
    """Assign an owner to each leaf that needs one and has none yet."""
    leaves_of_team: dict[Team, list[Leaf]] = defaultdict(list)
    for leaf in leaves:
        is_owned = any(operation.owned_paths for operation in leaf.operations)
        if leaf.key.owner is None and is_owned:
            leaves_of_team[team_for(leaf.key.param, replicas)].append(leaf)
    for team, leaves_without_owner in leaves_of_team.items():
        shapes = {leaf.name: leaf.shape for leaf in leaves_without_owner}
        known_owners: dict[str, int] = {}
        for member in members.values():
            if member.owner is not None and team_for(member.param, replicas) == team:
                known_owners[member.name] = member.owner
                shapes[member.name] = member.param.shape
        owners = assigned(shapes, team.size, known_owners)
        for leaf in leaves_without_owner:
            leaf.key.owner = owners[leaf.name]


@dataclass(eq=False)
class OwnedSlot:
    """A slot that is sent from the owner of a leaf to all ranks.

    Attributes:
        member: The parameter.
        key: The slot's key in the parameter's state.
        value: The slot: whole on the owner, without entries on other ranks; or, of a saved entry, divided.
        owner: The owner.
    """

    member: Member
    key: str
    value: Tensor
    owner: int

    @property
    def mesh(self) -> Any:
        """The mesh of a sharded parameter; None if every rank has the whole parameter."""
        param = self.member.param
        return param.device_mesh if is_sharded(param) else None

    @functools.cached_property
    def placements(self) -> Any:
        """The placements that divide a slot of a sharded parameter by rows."""
        return placements_by_rows(self.member.param, self.value.shape)

    def piece_at(self, rank: int) -> Piece:
        """Return a rank's shard: rows of a sharded parameter, otherwise the whole slot."""
        shape = tuple(self.value.shape)
        if self.mesh is None:
            return whole_piece(shape)
        return pieces_at(shape, self.mesh, self.placements)[rank]

    def bytes(self) -> int:
        return self.value.nbytes


def states_of_owners(
    members: Members,
    layouts: Mapping[Tensor, Layout],
    states: Mapping[Any, dict[str, Any]],
) -> dict[Any, Any]:
    """Return the states of parameters with an owner, in the form that all ranks save. All ranks must call it together.

    Slots of a sharded parameter are divided by rows; slots of a parameter that every rank has are whole.

    Args:
        members: The parameters.
        layouts: The layouts of their states.
        states: Their states.
    """
    slots_of_kind: dict[Any, list[OwnedSlot]] = defaultdict(list)
    saved = {}
    for param, member in members.by_param.items():
        owned = layouts[param].owned
        if param not in states or not owned:
            continue
        state = states[param]
        saved[param] = dict(state)
        for key in sorted(owned):
            assert member.owner is not None
            slot = OwnedSlot(member, key, state[key], member.owner)
            slots_of_kind[slot.mesh, slot.value.dtype].append(slot)
    for slots in slots_of_kind.values():
        team = team_for(slots[0].member.param, members.replicas)
        for chunk in chunks(list(map(OwnedSlot.bytes, slots)), BUCKET):
            bucket = slots[chunk]
            for slot, value in zip(bucket, _sent(bucket, team), strict=True):
                saved[slot.member.param][slot.key] = value
    return saved


def entries_at_owners(
    members: Members,
    layouts: Mapping[Tensor, Layout],
    entries: Mapping[Tensor, Mapping[str, Any]],
) -> dict[Tensor, dict[str, Any]]:
    """Return saved entries whose slots of owners are whole there; the reverse of `states_of_owners`.

    Ranks of a mesh must call it together. They send nothing unless such a slot is divided among them.

    Args:
        members: The parameters.
        layouts: The layouts of their states.
        entries: Their entries.

    Returns:
        The entries that differ: their divided slots are whole on the owner, and without memory on other ranks.
    """
    slots_of_kind: dict[Any, list[OwnedSlot]] = defaultdict(list)
    whole: dict[Tensor, dict[str, Any]] = {}
    for tensor, layout in layouts.items():
        param: Any = tensor
        member, entry = members.by_param[param], entries[param]
        for key in sorted(layout.owned & entry.keys()):
            value: Any = entry[key]
            is_divided = is_sharded(param) and is_sharded(value)
            if not is_divided or value.device_mesh != param.device_mesh:
                continue
            if can_be_owned(value):
                assert member.owner is not None
                slot = OwnedSlot(member, key, value, member.owner)
                slots_of_kind[slot.mesh, value.dtype].append(slot)
    for (mesh, _), slots in slots_of_kind.items():
        team = team_of(mesh)
        for chunk in chunks(list(map(OwnedSlot.bytes, slots)), BUCKET):
            bucket = slots[chunk]
            for slot, value in zip(bucket, _received(bucket, team), strict=True):
                param = slot.member.param
                whole.setdefault(param, dict(entries[param]))[slot.key] = value
    return whole


def _received(bucket: list[OwnedSlot], team: Team) -> list[Tensor]:
    """Return divided slots with one dtype, whole on their owners, with one message."""
    dtype = bucket[0].value.dtype
    wire = _wire_of(dtype)
    rows_for_ranks: list[list[Tensor]] = [[] for _ in range(team.size)]
    sizes_from_ranks: list[list[int]] = [[] for _ in range(team.size)]
    pieces = [pieces_of(slot.value) for slot in bucket]
    for slot, of_ranks in zip(bucket, pieces, strict=True):
        if of_ranks[team.rank].sends:
            shard = local(slot.value).reshape(-1).view(wire)
            rows_for_ranks[slot.owner].append(shard)
        if slot.owner == team.rank:
            for rank, piece in enumerate(of_ranks):
                if piece.sends:
                    sizes_from_ranks[rank].append(piece.numel)
    transfer = Transfer(team, rows_for_ranks, sizes_from_ranks, wire)
    received = list(map(iter, transfer.received()))
    results = []
    for slot, of_ranks in zip(bucket, pieces, strict=True):
        is_owner = slot.owner == team.rank
        device = team.device if is_owner else "meta"
        result = torch.empty(tuple(slot.value.shape), dtype=dtype, device=device)
        for rank, piece in enumerate(of_ranks if is_owner else ()):
            if piece.sends:
                shard = next(received[rank]).clone().view(dtype)
                result[piece.window] = shard.view(piece.shape)
        results.append(result)
    return results


def _wire_of(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which slots are sent: some back ends cannot send eight-bit floats and bools."""
    return torch.uint8 if dtype.itemsize == 1 else dtype


def _sent(bucket: list[OwnedSlot], team: Team) -> list[Any]:
    """Return this rank's shards of slots with one dtype, with one message."""
    dtype = bucket[0].value.dtype
    wire = _wire_of(dtype)
    rows_for_ranks: list[list[Tensor]] = [[] for _ in range(team.size)]
    sizes_from_ranks: list[list[int]] = [[] for _ in range(team.size)]
    for slot in bucket:
        sizes_from_ranks[slot.owner].append(slot.piece_at(team.rank).numel)
        if slot.owner == team.rank:
            for rank, rows in enumerate(rows_for_ranks):
                window = slot.piece_at(rank).window
                rows.append(slot.value[window].reshape(-1).view(wire))
    transfer = Transfer(team, rows_for_ranks, sizes_from_ranks, wire)
    received = list(map(iter, transfer.received()))
    shards: list[Any] = []
    for slot in bucket:
        shape = slot.piece_at(team.rank).shape
        shard = next(received[slot.owner]).clone().view(dtype).view(shape)
        if slot.mesh is not None:
            param = slot.member.param
            shard = from_local_like(shard, param, slot.value.shape, slot.placements)
        shards.append(shard)
    return shards
