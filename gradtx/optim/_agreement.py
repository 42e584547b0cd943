"""Ranks that share divided parameters agree on a step before they exchange anything in it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch

from gradtx._sharding import Team, is_sharded, team_of
from gradtx.optim._groups import GroupView
from gradtx.optim._member import Member

BITS = 62  # of a digest: it and its negative are int64


class Agreement:
    """Compares the plan of a step with those of the other ranks, whenever this rank's has changed.

    One message of 16 bytes carries a digest. If digests differ, the ranks exchange what they stand for, and each of
    them raises the same error.
    """

    def __init__(self) -> None:
        self._compared: Any = None
        self._members: list[Member] | None = None
        self._are_divided = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Agreement, ()

    def check(self, owner: str, members: list[Member], views: list[GroupView], structures: list[Any]) -> None:
        """Compare what steps and how.

        Args:
            owner: The optimizer's class, for errors.
            members: The parameters that step.
            views: The groups.
            structures: The static side of each group's hyperparameters.

        Raises:
            RuntimeError: another rank has other parameters, gradients or hyperparameters.
        """
        if members != self._members:
            self._members = members
            self._are_divided = any(is_sharded(member.param) for member in members)
        if not self._are_divided:
            return
        with_gradient = [member.param.grad is not None for member in members]
        plan = (members, with_gradient, [member.layout for member in members], structures)
        if plan == self._compared:
            return
        self._compared = plan
        of_mesh: dict[Any, list[Member]] = {}
        for member in members:
            if is_sharded(member.param):
                of_mesh.setdefault(member.param.device_mesh, []).append(member)  # type: ignore[attr-defined]
        for mesh in sorted(of_mesh, key=str):
            lines = [_line(member) for member in sorted(of_mesh[mesh], key=lambda member: member.name)]
            _compare(owner, [*lines, *_lines_of_groups(of_mesh[mesh], views)], team_of(mesh))


def _line(member: Member) -> str:
    """What the ranks must agree on for a parameter."""
    param: Any = member.param
    gradient = "no gradient" if param.grad is None else f"a gradient in {param.grad.dtype}"
    keys = "" if member.layout is None else " ".join(sorted(member.layout.keys))
    owner = "" if member.owner is None else f", owner {member.owner}"
    return (
        f"parameter {member.name!r} of shape {tuple(param.shape)} in {param.dtype}, placed {param.placements}, "
        f"in group {member.group}, with {gradient}, state {keys}{owner}"
    )


def _lines_of_groups(members: list[Member], views: list[GroupView]) -> list[str]:
    lines: list[str] = []
    for i in sorted({member.group for member in members}):
        numbers = {name: value for name, value in views[i].values().items() if not isinstance(value, torch.Tensor)}
        text = f"group {i} with {views[i].tx!r} and {numbers}"
        lines.append(re.sub(r" at 0x[0-9a-f]+", "", text))  # functions have addresses
    return lines


def _compare(owner: str, lines: list[str], team: Team) -> None:
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> (64 - BITS)
    extremes = torch.tensor([number, -number], device=team.device)
    torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group=team.group)
    largest, negative_of_smallest = extremes.tolist()
    if largest == -negative_of_smallest:
        return
    of_ranks: list[Any] = [None] * team.size
    torch.distributed.all_gather_object(of_ranks, lines, group=team.group)
    raise RuntimeError(f"{owner}: {_difference(of_ranks, team.ranks)}")


def _difference(of_ranks: list[list[str]], ranks: tuple[int, ...]) -> str:
    """The first thing in which a rank differs from the first one."""
    first = of_ranks[0]
    for rank, lines in zip(ranks[1:], of_ranks[1:], strict=True):
        if lines == first:
            continue
        missing = [line for line in first if line not in lines]
        added = [line for line in lines if line not in first]
        if not missing:
            return f"ranks would step differently: rank {rank} steps {added[0]}; rank {ranks[0]} does not"
        if not added:
            return f"ranks would step differently: rank {ranks[0]} steps {missing[0]}; rank {rank} does not"
        return f"ranks would step differently: rank {ranks[0]} steps {missing[0]}; rank {rank} steps {added[0]}"
    return "ranks would step differently, in the order of what they have"
