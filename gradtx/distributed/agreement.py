"""Ranks compare what they are about to do. If they differ, or one of them has failed, all of them raise one error.

A rank may be in several teams, such as the ranks of two meshes. Messages go through its teams from small to large, and
each also says whether the sender knows of a difference, so that all ranks of the largest team raise together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from gradtx.distributed.layouts import Team

BITS = 62  # size of a digest: the digest and its negative both fit in int64
# Sent in place of a digest and of its negative; nothing has this digest.
FAILURE_DIGEST = 2**BITS


def in_order(teams: Sequence[Team]) -> list[Team]:
    """Return teams in an order in which no ranks wait for each other; of those with the same ranks, only the first."""
    of_ranks: dict[tuple[int, ...], Team] = {}
    for team in teams:
        of_ranks.setdefault(team.ranks, team)
    return sorted(of_ranks.values(), key=order_of)


def order_of(team: Team) -> tuple[int, tuple[int, ...]]:
    """Return the place of a team's messages among those of other teams."""
    return team.size, team.ranks


def there_and_back(teams: Sequence[Team]) -> list[Team]:
    """Return teams in the order of messages after which all ranks of a grid know what one of them knows.

    Args:
        teams: The teams of this rank, in order: every rank of the grid has one along each of its dimensions.
    """
    ranks = set(teams[-1].ranks)
    if all(ranks.issuperset(team.ranks) for team in teams):
        return list(teams)
    return [*teams, *reversed(teams)]


def digest_of(lines: Sequence[str]) -> int:
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - BITS)


def unequal(teams: Sequence[Team], digests: Sequence[int]) -> list[int]:
    """Return the indices of teams whose ranks differ, or have a rank that knows of a difference in an earlier team.

    Ranks send one message of 16 bytes for each team. If the largest team includes the others, the result is empty on
    all ranks, or on none.

    Args:
        teams: The teams of this rank, as `in_order` returns them.
        digests: The digest for each team, or `FAILURE_DIGEST`.
    """
    found: list[int] = []
    for i, team in enumerate(teams):
        if not _are_equal(team, FAILURE_DIGEST if found else digests[i]):
            found.append(i)
    return found


def difference(
    teams: Sequence[Team],
    found: Sequence[int],
    lines: Sequence[list[str]] | None,
    verb: str,
) -> str:
    """Describe the first difference, in one text for all ranks.

    Args:
        teams: The teams of this rank.
        found: Those that differ, as `unequal` returns them.
        lines: What the digest for each team was computed from; None if this rank has failed.
        verb: What ranks do with what a line describes.
    """
    text: str | None = None
    for i in found:
        team = teams[i]
        of_ranks: list[Any] = [None] * team.size
        message = None if lines is None else lines[i], text
        torch.distributed.all_gather_object(of_ranks, message, group=team.group)
        texts = [told for _, told in of_ranks if told is not None]
        text = (
            min(texts) if texts else _difference(team, [x for x, _ in of_ranks], verb)
        )
    return text or f"ranks would {verb} differently"


def _are_equal(team: Team, digest: int) -> bool:
    # One MAX finds both extremes.
    negative = digest if digest == FAILURE_DIGEST else -digest
    extremes = torch.tensor([digest, negative], device=team.device)
    largest_of = torch.distributed.ReduceOp.MAX
    torch.distributed.all_reduce(extremes, largest_of, group=team.group)
    largest, negative_of_smallest = extremes.tolist()
    return largest == -negative_of_smallest


def _difference(team: Team, of_ranks: list[Any], verb: str) -> str | None:
    """Describe the first rank that has failed, whose lines are None, or else the first difference of two ranks."""
    if None in of_ranks:
        rank = team.ranks[of_ranks.index(None)]
        return f"rank {rank} failed before this step; see the error raised on that rank"
    first = of_ranks[0]
    for rank, lines in zip(team.ranks, of_ranks, strict=True):
        if lines != first:
            ours = _does(team.ranks[0], first, lines, verb)
            theirs = _does(rank, lines, first, verb)
            return f"ranks would {verb} differently: {ours}; {theirs}"
    return None


def _does(rank: int, lines: list[str], others: list[str], verb: str) -> str:
    """Describe what a rank does and another one does not."""
    for line in lines:
        if line not in others:
            return f"rank {rank} {verb}s {line}"
    if not lines:
        return f"rank {rank} {verb}s nothing there, as without gradients"
    return f"rank {rank} does not, or in another order"
