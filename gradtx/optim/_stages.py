"""Sums over leaves that only other ranks have, as the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from gradtx._errors import Path
from gradtx._exact import exact_dtype
from gradtx._execution import Block, Leaf, Operation, initialize
from gradtx._runs import Run
from gradtx._selectors import listed
from gradtx._sharding import Team, team_of_group
from gradtx.context import Clock
from gradtx.optim._member import Member

Key = TypeVar("Key", str, tuple[Path, str])
Numbers = dict[str, dict[str, Any]]  # of each sum, by the name of its stage
OPTION = "sum_over"


class OtherRankError(RuntimeError):
    """Another rank does not go on; the ranks that get this have nothing to report."""


@dataclass
class Seen:
    """What the patterns of a chain may match.

    Attributes:
        names: The names of parameters.
        slots: The slots that each `state_dtype` is for, by its label.
        complete: Whether all parameters have state, which lazy ones have not.
    """

    names: list[str] = field(default_factory=list[str])
    slots: dict[str, set[tuple[Path, str]]] = field(default_factory=dict[str, set[tuple[Path, str]]])
    complete: bool = True

    def add(self, other: Seen) -> None:
        """Add what another rank has."""
        self.names += other.names
        self.complete = self.complete and other.complete
        for label, slots in other.slots.items():
            self.slots.setdefault(label, set()).update(slots)


class RankSums:
    """Completes the sums over the leaves of this rank by those of other ranks, which have other leaves.

    Each sum, or several of one link, is one message. Where the host reads messages anyway (gloo), it carries a flag for
    each rank, by which all ranks fail together from the second step on.

    Args:
        owner: The optimizer's class, for errors.
        group: The ranks: a process group, or a mesh with one dimension.
    """

    def __init__(self, owner: str, group: Any):
        self._owner = owner
        self._team: Team = team_of_group(f"{owner}: {OPTION}", group)
        self._flags = self._team.size if self._team.device.type == "cpu" else 0  # elsewhere the host would wait
        self._agrees = False
        self._sizes: list[int] = []  # of the messages of a whole step
        self._sent: list[int] = []  # of those of this step
        self._covered: Any = None  # the leaves and structures for which these are the routes without a leaf
        self._routes: list[dict[Path, Any]] = []

    def seen_everywhere(self, seen: Seen) -> Seen:
        """What patterns may match on any rank; all ranks call this together, at construction.

        Raises:
            RuntimeError: a rank has failed before.
        """
        of_ranks = self._everywhere(seen)
        for rank, of_rank in zip(self._team.ranks, of_ranks, strict=True):
            if of_rank is None:
                raise OtherRankError(f"{self._owner}: rank {rank} failed to make it; its error is raised there")
        joined = Seen()
        for of_rank in of_ranks:
            joined.add(of_rank)
        return joined

    # A step.

    def start(self) -> None:
        """Begin a step."""
        self._sent = []

    def agree(self, numbers: Callable[[], Numbers]) -> None:
        """Check, at the first step, that all ranks have the same sums, with the same numbers.

        Args:
            numbers: Makes the numbers of each sum that must agree; none for a sum without a leaf here.

        Raises:
            RuntimeError: they have not, or a rank has failed in front of the step.
        """
        if self._agrees:
            return
        differs = _difference(self._team.ranks, self._everywhere(numbers()))
        if differs:
            raise OtherRankError(f"{self._owner}: {differs}")
        self._agrees = True

    def _everywhere(self, value: Any) -> list[Any]:
        """The values of all ranks, which call this together."""
        of_ranks: list[Any] = [None] * self._team.size
        distributed.all_gather_object(of_ranks, value, group=self._team.group)  # pyright: ignore[reportUnknownMemberType]
        return of_ranks

    def end(self) -> None:
        """End a step: the next one sends messages of the same sizes."""
        self._sizes = self._sent

    def complete(self, totals: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The sums of all ranks, by one message.

        Args:
            totals: Those of this rank, with the same keys on all ranks.

        Raises:
            RuntimeError: another rank has failed.
        """
        keys = sorted(totals)
        if not keys:
            return {}
        values = [totals[key] for key in keys]
        terms = torch.stack([value.to(self._team.device, exact_dtype(value)) for value in values])
        message = torch.cat([terms, terms.new_zeros(self._flags)])
        self._sent.append(len(message))
        distributed.all_reduce(message, group=self._team.group)  # pyright: ignore[reportUnknownMemberType]
        self._check(message[len(keys) :])
        return {key: message[i].to(value) for i, (key, value) in enumerate(zip(keys, values, strict=True))}

    def _check(self, flags: Tensor) -> None:
        if not flags.any():  # without flags the host reads nothing
            return
        senders = cast("list[int]", flags.nonzero().flatten().tolist())  # pyright: ignore[reportUnknownMemberType]
        failed = [str(self._team.ranks[i]) for i in senders]
        raise OtherRankError(
            f"{self._owner}: rank {' and '.join(failed)} failed in this step; its error is raised there"
        )

    def report_failure(self) -> None:
        """Tell the others that this rank does not go on with the step, in place of its next message."""
        if not self._agrees:
            self._everywhere(None)
        elif self._flags and len(self._sent) < len(self._sizes):
            message = torch.zeros(self._sizes[len(self._sent)], dtype=torch.float64)
            message[self._team.rank - self._flags] = 1
            distributed.all_reduce(message, group=self._team.group)  # pyright: ignore[reportUnknownMemberType]

    # Sums for which this rank has no leaf.

    def routes(self, block: Block, leaves: Callable[[], list[Leaf]], key: Any) -> list[dict[Path, Any]]:
        """The labels on each way through the chain that has sums, and that no leaf takes.

        Args:
            block: The chain.
            leaves: Makes the leaves that step by a gradient.
            key: What decides the result.
        """
        if self._covered is None or self._covered != key:
            reached = {_sums_on_the_way(leaf.program) for leaf in leaves()}
            self._routes = []
            for route in block.routes():
                sums = _sums_on_the_way(block.on_route(route))
                if sums and sums not in reached:
                    self._routes.append(route)
                    reached.add(sums)
            self._covered = key
        return self._routes


class StandIn(Leaf):
    """A leaf in place of those that only other ranks have: what it adds to sums is zero, and nothing is written.

    Args:
        run: The step.
        route: The labels on its way.
        dtype: The dtype of this rank's sums.
        clock: The clock.
        extras: The extras that are numbers.
    """

    def __init__(self, run: Run, route: Mapping[Path, Any], dtype: torch.dtype, clock: Clock, extras: dict[str, Any]):
        zero = torch.zeros((1, 1), dtype=dtype, device=run.device)
        super().__init__(run, f"on other ranks {sorted(route.items())}", zero, zero.clone(), extras, clock)
        self.route = route
        self.first: dict[Path, dict[str, Tensor]] = {}

    def through(self, program: list[Operation]) -> StandIn:
        """Put the leaf in front of its program, with first slots."""
        self.program = program
        initialize([self])
        self.first, self.new = self.new, {}
        return self


def without_stand_ins(waiting: Iterable[tuple[Leaf, Any]]) -> list[tuple[Leaf, Any]]:
    """The same terms of a sum, with zeros for those of stand-ins."""
    terms: list[tuple[Leaf, Any]] = []
    for leaf, sums in waiting:
        if isinstance(leaf, StandIn):
            terms.append((leaf, {name: torch.zeros_like(term) for name, term in sums.items()}))
        else:
            terms.append((leaf, sums))
    return terms


def adds_up(operation: Operation) -> bool:
    """Whether an operation sums over leaves."""
    return operation.waits or operation.sums_late


def _sums_on_the_way(program: Iterable[Operation]) -> tuple[Path, ...]:
    return tuple(operation.path for operation in program if adds_up(operation))


def _difference(ranks: Sequence[int], of_ranks: Sequence[Numbers | None]) -> str:
    """The difference between the sums of ranks; empty if there is none. A rank that has failed has none."""
    first: dict[str, tuple[int, dict[str, Any]]] = {}  # the first rank with the numbers of each sum
    of_first = of_ranks[0] or {}
    for rank, numbers in zip(ranks, of_ranks, strict=True):
        if numbers is None:
            return f"rank {rank} failed in front of this step; its error is raised there"
        if numbers.keys() != of_first.keys():
            return (
                f"ranks sum over leaves differently: rank {ranks[0]} in {listed(of_first)}, "
                f"rank {rank} in {listed(numbers)}; give all ranks one chain"
            )
        for stage, values in numbers.items():
            if not values:
                continue
            first_rank, expected = first.setdefault(stage, (rank, values))
            if values != expected:
                return f"{stage} has {expected} on rank {first_rank}, and {values} on rank {rank}; they must agree"
    return ""


def dtype_of_sums(members: Sequence[Member]) -> torch.dtype:
    """The dtype in which sums over some parameters come out."""
    dtype = torch.float32
    for member in members:
        dtype = torch.promote_types(dtype, member.param.dtype.to_real())
    return dtype


def check_can_sum(owner: str, block: Block, needs: Iterable[str]) -> None:
    """Refuse a chain with more between leaves than sums.

    Raises:
        ValueError: a link reads whole trees, or calls a closure.
    """
    for operation in block.walk():
        if operation.waits and not operation.sums:
            raise ValueError(
                f"{owner}: {'.'.join(operation.path)!r} reads all leaves together, and {OPTION}= completes sums only; "
                "take it out of the chain, or step on one rank"
            )
    for need in needs:
        if need in ("grad_fn", "value_fn"):
            raise ValueError(
                f"{owner}: a link calls the closure ({need}) at other weights, which {OPTION}= can't do on all ranks "
                "together; take it out of the chain"
            )
