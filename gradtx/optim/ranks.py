"""Ranks that share parameters, or the work on them, compare what they intend; owners of leaves send their slots."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import items_of
from gradtx.base.chunks import slices_within
from gradtx.base.dtensor import from_local_like, is_sharded, local
from gradtx.base.exact import Schedule
from gradtx.base.messages import describe
from gradtx.base.torch_names import readable
from gradtx.distributed.agreement import (
    FAILURE_DIGEST,
    difference,
    digest_of,
    in_order,
    order_of,
    there_and_back,
    unequal,
)
from gradtx.distributed.collectives import BUCKET, Transfer
from gradtx.distributed.layouts import (
    Piece,
    Team,
    can_be_owned,
    check_order,
    pieces_at,
    pieces_of,
    placements_by_rows,
    team_for,
    team_of,
    whole_piece,
)
from gradtx.execution.execute import Leaf
from gradtx.execution.owners import assigned, has_regions
from gradtx.optim.groups import GroupSettings, Values, are_identical
from gradtx.optim.parameters import Members
from gradtx.optim.run import Member, TensorKind
from gradtx.plans.hyperparameters import each_item
from gradtx.state.layout import Layout


class Agreement:
    """Compares the intent of a step with those of the other ranks.

    Ranks with sharded parameters compare whenever their intent has changed. Ranks that have whole parameters and divide
    the work on them compare at every step, because a gradient may be missing on a single rank, and a rate may differ.

    One message of 16 bytes for each mesh contains a digest. If digests differ, the ranks exchange the full intents, and
    every rank raises the same error. A rank that has already failed reports this in its messages.

    Attributes:
        is_done: Whether the ranks have compared the present step.
    """

    is_done = False

    def __init__(self) -> None:
        self._agreed: Any = None  # the last intent that all ranks had
        self._has_begun = False
        self._parts: list[Part] = []
        # The values of groups, of the digests below.
        self._values: list[Values] = []
        self._digests: list[int] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Agreement, ()

    def forget(self) -> None:
        """Let the next step compare, whatever it is: states may differ from those of other ranks."""
        self._agreed = None

    def check(self, intent: Intent, members: Members) -> None:
        """Compare this rank's intent with the intents of the other ranks.

        Args:
            intent: What this rank is about to do.
            members: All parameters and groups.

        Raises:
            RuntimeError: If another rank has other parameters, gradients, counts or hyperparameters.
        """
        self.is_done = True
        is_agreed = intent.fingerprint == self._agreed
        if is_agreed and members.replicas is None:
            return
        # If the ranks differ, the next attempt compares again.
        self._agreed = None
        if not is_agreed:
            self._parts = _parts(intent, members, self._teams_of(members))
        if not (is_agreed and are_identical(intent.values, self._values)):
            self._digests = [digest_of(part.lines(intent)) for part in self._parts]
            self._values = [] if _may_change(intent.values) else intent.values
        teams = [part.team for part in self._parts]
        digests = []
        for part, digest in zip(self._parts, self._digests, strict=True):
            # Counts may be written at any time.
            digests.append(digest_of([str(digest), str(part.counts())]))
        found = unequal(teams, digests)
        if found:
            lines = [part.lines_with_counts(intent) for part in self._parts]
            raise RuntimeError(
                f"{members.who}: {difference(teams, found, lines, 'step')}"
            )
        self._agreed = intent.fingerprint
        self._has_begun = True

    def _teams_of(self, members: Members) -> list[Team]:
        """Return the teams of an optimizer in the order of their messages."""
        teams = _teams_of(members)
        if self._has_begun or not (members.partners and teams):
            return in_order(teams)
        # Replicas, each of which is sharded, have gradients of their own; they begin together.
        return there_and_back(in_order([*teams, *members.partners]))

    @property
    def has_several_teams(self) -> bool:
        """Whether the ranks compared last as several teams, such as those of two meshes."""
        return len(self._parts) > 1

    def report_failure(self, members: Members) -> None:
        """Report to ranks that are about to compare intents that this rank does not step."""
        # The other ranks do not compare an agreed intent, unless they have whole parameters.
        is_silent = members.replicas is None and self._is_agreed(members)
        if self.is_done or is_silent:
            return
        self.is_done = True
        teams = self._teams_of(members)
        found = unequal(teams, [FAILURE_DIGEST] * len(teams))
        difference(teams, found, None, "step")

    def _is_agreed(self, members: Members) -> bool:
        """Whether the parameters and their gradients are those of the last intent, as far as a failed step shows it."""
        if self._agreed is None:
            return False
        every, gradients, _ = self._agreed
        present = list(itertools.chain.from_iterable(members.rows()))
        return every == present and gradients == [
            member.param.grad is not None for member in present
        ]


@dataclass
class Intent:
    """What a rank is about to do in a step.

    Attributes:
        stepping: The parameters that step.
        groups: The settings of all groups.
        values: Their hyperparameters.
        hyperparameters: Those that are arguments of programs, at the count of this step; empty while slots are missing.
        fingerprint: Identifies it in later steps, except for numbers.
    """

    stepping: list[Member]
    groups: list[GroupSettings]
    values: list[Values]
    hyperparameters: list[list[Any]]
    fingerprint: Any


@dataclass
class Part:
    """What a team has in common: parameters that it divides, or the work on them.

    Attributes:
        team: The team.
        members: The parameters that step.
        texts: Their properties, apart from counts and numbers of groups, that must be equal on all ranks.
    """

    team: Team
    members: list[Member]
    texts: list[str]

    def lines(self, intent: Intent) -> list[str]:
        """Describe the properties of these parameters, one line for each, and of their groups, without counts."""
        lines = list(self.texts)
        for i in sorted({member.group for member in self.members}):
            numbers = {key: _plain(value) for key, value in intent.values[i].items()}
            text = f"group {i} with {intent.groups[i].tx!r} and {describe(numbers)}"
            if intent.hyperparameters and _may_change([intent.values[i]]):
                text = f"{text}, now {describe(list(map(_plain, intent.hyperparameters[i])))}"
            # The repr of a function contains its address.
            lines.append(re.sub(r" at 0x[0-9a-f]+", "", text))
        return lines

    def counts(self) -> list[int | None]:
        """Return the counts of the parameters, as far as the host knows them."""
        counts = [member.count for member in self.members]
        return [count if isinstance(count, int) else None for count in counts]

    def lines_with_counts(self, intent: Intent) -> list[str]:
        """Describe the same, with the counts of the parameters."""
        lines = self.lines(intent)
        for i, count in enumerate(self.counts()):
            lines[i] += "" if count is None else f", after {count} steps"
        return lines


def _may_change(values_of_groups: list[Values]) -> bool:
    """Whether hyperparameters may change without a change of these objects: tensors, and functions of a user."""
    for values in values_of_groups:
        for value in values.values():
            for item in items_of(value):
                reads = isinstance(item, Schedule) and item.reads_outside
                if reads or isinstance(item, Tensor):
                    return True
    return False


def _plain(value: Any) -> Any:
    """Return a hyperparameter with numbers in place of tensors, as far as they may be read."""
    return each_item(_readable, value)


def _readable(value: Any) -> Any:
    is_number = isinstance(value, Tensor) and not value.is_meta and readable(value)
    return value.tolist() if is_number else value


def _teams_of(members: Members) -> list[Team]:
    """Return the ranks that divide the parameters of an optimizer, or the work on them."""
    teams = [] if members.replicas is None else [members.replicas]
    meshes = {param.device_mesh for param in members.by_param if is_sharded(param)}
    return [*teams, *map(team_of, sorted(meshes, key=str))]


def _parts(intent: Intent, members: Members, teams: list[Team]) -> list[Part]:
    """Return what each team has in common, also a team none of whose parameters step here."""
    members_of: dict[tuple[int, ...], list[Member]] = defaultdict(list)
    for member in sorted(intent.stepping, key=lambda member: member.name):
        if members.replicas is not None or is_sharded(member.param):
            members_of[team_for(member.param, members.replicas).ranks].append(member)
    return [
        Part(team, members_of[team.ranks], list(map(_line, members_of[team.ranks])))
        for team in teams
    ]


def _line(member: Member) -> str:
    """Describe the properties of a parameter that must be equal on all ranks."""
    param: Any = member.param
    gradient = "no gradient"
    if param.grad is not None:
        gradient = f"a gradient of dtype {param.grad.dtype}"
    keys = " ".join(sorted(member.layout.keys))
    loaded = divided_keys(member.param, member.layout, member.state)
    rows = f", {' '.join(loaded)} as loaded" if loaded else ""
    owner = "" if member.owner is None else f", owner {member.owner}"
    placed = f", placed {param.placements}" if is_sharded(param) else ""
    return (
        f"parameter {member.name!r} of shape {tuple(param.shape)} and dtype {param.dtype}{placed}, "
        f"in group {member.group}, with {gradient}, state {keys}{rows}{owner}"
    )


def assign_owners(
    leaves: list[Leaf], members: Mapping[Tensor, Member], replicas: Team | None
) -> None:
    """Assign an owner to each leaf that needs one and has none yet.

    Raises:
        ValueError: If the mesh of a leaf with owned operations does not say which rank has which entries.
    """
    for leaf in leaves:
        param = leaf.key.param
        if is_sharded(param) and has_regions(leaf.operations):
            try:
                check_order(param.device_mesh)
            except ValueError as error:
                raise ValueError(f"parameter {leaf.name!r}: {error}") from None
    leaves_of_team: dict[Team, list[Leaf]] = defaultdict(list)
    for leaf in leaves:
        is_owned = any(operation.owned_paths for operation in leaf.operations)
        if leaf.key.owner is None and is_owned:
            leaves_of_team[team_for(leaf.key.param, replicas)].append(leaf)
    for team, leaves_without_owner in leaves_of_team.items():
        shapes = {leaf.name: leaf.shape for leaf in leaves_without_owner}
        assigned_owners: dict[str, int] = {}
        for member in members.values():
            if member.owner is not None and team_for(member.param, replicas) == team:
                assigned_owners[member.name] = member.owner
                shapes[member.name] = member.param.shape
        owners = assigned(shapes, team.size, assigned_owners)
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


def is_divided(param: Tensor, value: Any) -> bool:
    """Whether a slot that an owner keeps is divided among the ranks of its parameter, as in a saved state."""
    return (
        is_sharded(param)
        and is_sharded(value)
        and value.device_mesh == param.device_mesh
        and can_be_owned(value)
    )


def divided_keys(param: Tensor, layout: Layout, state: Mapping[str, Any]) -> list[str]:
    """Return the keys of the slots of a parameter's owner that are still divided, as they were loaded."""
    return [key for key in sorted(layout.owned) if is_divided(param, state.get(key))]


OWNED = operator.attrgetter("owned")  # of a layout


def states_of_owners(
    members: Members,
    layouts: Mapping[Tensor, Layout],
    states: Mapping[Any, dict[str, Any]],
) -> dict[Any, Any]:
    """Return the states of parameters with an owner, in the form that all ranks save. All ranks must call it together.

    Slots of a sharded parameter are divided by rows; slots of a parameter that every rank has are whole. Slots that no
    step has used since they were loaded are as they were loaded.

    Args:
        members: The parameters.
        layouts: The layouts of their states.
        states: Their states.
    """
    slots_of_kind: dict[Any, list[OwnedSlot]] = defaultdict(list)
    saved: dict[Any, Any] = {}
    if not any(map(OWNED, layouts.values())):
        return saved
    for param, member in members.by_param.items():
        owned = layouts[param].owned
        if param not in states or not owned:
            continue
        state = states[param]
        saved[param] = dict(state)
        as_loaded = divided_keys(param, layouts[param], state)
        for key in sorted(owned.difference(as_loaded)):
            assert member.owner is not None
            slot = OwnedSlot(member, key, state[key], member.owner)
            slots_of_kind[slot.mesh, slot.value.dtype].append(slot)
    for slots in slots_of_kind.values():
        team = team_for(slots[0].member.param, members.replicas)
        for window in slices_within(list(map(OwnedSlot.bytes, slots)), BUCKET):
            bucket = slots[window]
            for slot, value in zip(bucket, _sent(bucket, team), strict=True):
                saved[slot.member.param][slot.key] = value
    return saved


def hand_over_loaded(members: Iterable[Member]) -> None:
    """Give owners their slots that were loaded divided, in the members' states: the reverse of `states_of_owners`.

    The ranks of a mesh must call it together, and have compared before: one of them may have failed to load.
    """
    slots: list[OwnedSlot] = []
    for member in sorted(members, key=lambda member: member.name):
        for key in divided_keys(member.param, member.layout, member.state):
            assert member.owner is not None
            value = member.state[key]
            slots.append(OwnedSlot(member, key, value, member.owner))
    for slot, value in zip(slots, whole_at_owners(slots), strict=True):
        member, key = slot.member, slot.key
        if not value.is_meta:
            value = value.to(member.param.device)
        member.state[key] = value
        member.kinds = {**member.kinds, key: TensorKind.of(value)}


def whole_at_owners(slots: list[OwnedSlot]) -> list[Tensor]:
    """Return divided slots, whole on their owners and without memory on other ranks.

    The ranks of a mesh must call it together.
    """
    slots_of_kind: dict[Any, list[int]] = defaultdict(list)
    for i, slot in enumerate(slots):
        slots_of_kind[team_of(slot.mesh), slot.value.dtype].append(i)
    results: dict[int, Tensor] = {}
    # Small teams first, as where ranks compare.
    for team, dtype in sorted(slots_of_kind, key=lambda kind: order_of(kind[0])):
        of_kind = slots_of_kind[team, dtype]
        sizes = [slots[i].bytes() for i in of_kind]
        for window in slices_within(sizes, BUCKET):
            bucket = [slots[i] for i in of_kind[window]]
            results.update(zip(of_kind[window], _received(bucket, team), strict=True))
    return [results[i] for i in range(len(slots))]


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
