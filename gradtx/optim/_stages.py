"""Sums that include leaves present only on other ranks, such as the stages of a pipeline."""

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
# The hyperparameters of each sum, by the name of its stage.
Numbers = dict[str, dict[str, Any]]
OPTION = "sum_over"


class OtherRankError(RuntimeError):
    """Another rank has failed; ranks that raise this do not report a failure themselves."""


@dataclass
class Seen:
    """The parameters and slots that the patterns of a chain can match.

    Attributes:
        names: The names of parameters.
        slots: The slots to which each `state_dtype` applies, by its label.
        complete: Whether all parameters have state; lazy parameters do not.
    """

    names: list[str] = field(default_factory=list[str])
    slots: dict[str, set[tuple[Path, str]]] = field(
        default_factory=dict[str, set[tuple[Path, str]]]
    )
    complete: bool = True

    def add(self, other: Seen) -> None:
        """Add the parameters and slots of another rank."""
        self.names += other.names
        self.complete = self.complete and other.complete
        for label, slots in other.slots.items():
            self.slots.setdefault(label, set()).update(slots)


class RankSums:
    """Completes the sums over this rank's leaves with the sums of other ranks, which have other leaves.

    One message carries one sum, or several sums of one link. On back ends whose messages are on the host (gloo), it
    also carries a flag for each rank, so that from the second step on all ranks fail together.

    Args:
        owner: The optimizer's class, for error messages.
        group: The ranks: a process group, or a one-dimensional mesh.
    """

    def __init__(self, owner: str, group: Any):
        self._owner = owner
        self._team: Team = team_of_group(f"{owner}: {OPTION}", group)
        # Elsewhere they would synchronize.
        self._flags = self._team.size if self._team.device.type == "cpu" else 0
        self._agrees = False
        self._sizes: list[int] = []  # the sizes of all messages of the previous step
        self._sent: list[int] = []  # the sizes of the messages sent in this step
        self._covered: Any = None  # the key for which `_routes` was computed
        # The routes with sums and without a leaf on this rank.
        self._routes: list[dict[Path, Any]] = []

    def seen_everywhere(self, seen: Seen) -> Seen:
        """Return the parameters and slots of all ranks, which must call this together, at construction.

        Raises:
            RuntimeError: If a rank has failed before.
        """
        of_ranks = self._everywhere(seen)
        for rank, of_rank in zip(self._team.ranks, of_ranks, strict=True):
            if of_rank is None:
                raise OtherRankError(
                    f"{self._owner}: rank {rank} failed to construct the optimizer; see the error raised on that rank"
                )
        joined = Seen()
        for of_rank in of_ranks:
            joined.add(of_rank)
        return joined

    # A step.

    def start(self) -> None:
        """Start a step."""
        self._sent = []

    def agree(self, numbers: Callable[[], Numbers]) -> None:
        """Check, at the first step, that all ranks have the same sums, with the same hyperparameters.

        Args:
            numbers: Returns the hyperparameters of each sum that must be equal; empty for a sum without a leaf on this
                rank.

        Raises:
            RuntimeError: If the ranks differ in these, or if a rank has failed before the step.
        """
        if self._agrees:
            return
        differs = _difference(self._team.ranks, self._everywhere(numbers()))
        if differs:
            raise OtherRankError(f"{self._owner}: {differs}")
        self._agrees = True

    def _everywhere(self, value: Any) -> list[Any]:
        """Return the values of all ranks, which must call this together."""
        of_ranks: list[Any] = [None] * self._team.size
        distributed.all_gather_object(of_ranks, value, group=self._team.group)  # pyright: ignore[reportUnknownMemberType]
        return of_ranks

    def end(self) -> None:
        """End a step and record its message sizes: the messages of the next step have the same sizes."""
        self._sizes = self._sent

    def complete(self, totals: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """Add up the sums of all ranks, with one message.

        Args:
            totals: The sums of this rank, with the same keys on all ranks.

        Raises:
            RuntimeError: If another rank has failed.
        """
        keys = sorted(totals)
        if not keys:
            return {}
        values = [totals[key] for key in keys]
        terms = torch.stack(
            [value.to(self._team.device, exact_dtype(value)) for value in values]
        )
        message = torch.cat([terms, terms.new_zeros(self._flags)])
        self._sent.append(len(message))
        distributed.all_reduce(message, group=self._team.group)  # pyright: ignore[reportUnknownMemberType]
        self._check(message[len(keys) :])
        return {
            key: message[i].to(value)
            for i, (key, value) in enumerate(zip(keys, values, strict=True))
        }

    def _check(self, flags: Tensor) -> None:
        if not flags.any():  # if there are no flags, this does not synchronize
            return
        senders = cast("list[int]", flags.nonzero().flatten().tolist())  # pyright: ignore[reportUnknownMemberType]
        failed = [str(self._team.ranks[i]) for i in senders]
        raise OtherRankError(
            f"{self._owner}: rank {' and '.join(failed)} failed in this step; see the error raised on that rank"
        )

    def report_failure(self) -> None:
        """Report to the other ranks that this rank has failed, in place of its next message."""
        if not self._agrees:
            self._everywhere(None)
        elif self._flags and len(self._sent) < len(self._sizes):
            message = torch.zeros(self._sizes[len(self._sent)], dtype=torch.float64)
            message[self._team.rank - self._flags] = 1
            distributed.all_reduce(message, group=self._team.group)  # pyright: ignore[reportUnknownMemberType]

    # Sums without a leaf on this rank.

    def routes(
        self, block: Block, leaves: Callable[[], list[Leaf]], key: Any
    ) -> list[dict[Path, Any]]:
        """Return the labels of each route through the chain that contains sums and has no leaf on this rank.

        Args:
            block: The chain.
            leaves: Returns the leaves that step with a gradient.
            key: The cache key of the result.
        """
        if self._covered is None or self._covered != key:
            reached = {_sums_on_route(leaf.program) for leaf in leaves()}
            self._routes = []
            for route in block.routes():
                sums = _sums_on_route(block.on_route(route))
                if sums and sums not in reached:
                    self._routes.append(route)
                    reached.add(sums)
            self._covered = key
        return self._routes


class StandIn(Leaf):
    """A placeholder for leaves that only other ranks have: it adds zero to sums, and nothing is written for it.

    Args:
        run: The run of the step.
        route: The labels on its route through the chain.
        dtype: The dtype of this rank's sums.
        clock: The clock.
        extras: The extras that are scalars.
    """

    def __init__(
        self,
        run: Run,
        route: Mapping[Path, Any],
        dtype: torch.dtype,
        clock: Clock,
        extras: dict[str, Any],
    ):
        zero = torch.zeros((1, 1), dtype=dtype, device=run.device)
        super().__init__(
            run,
            f"on other ranks {sorted(route.items())}",
            zero,
            zero.clone(),
            extras,
            clock,
        )
        self.route = route
        self.first: dict[Path, dict[str, Tensor]] = {}

    def set_route(self, program: list[Operation]) -> StandIn:
        """Set the leaf's program and initialize its slots."""
        self.program = program
        initialize([self])
        self.first, self.new = self.new, {}
        return self


def without_stand_ins(waiting: Iterable[tuple[Leaf, Any]]) -> list[tuple[Leaf, Any]]:
    """Return the terms of a sum, with the terms of stand-ins set to zero."""
    terms: list[tuple[Leaf, Any]] = []
    for leaf, sums in waiting:
        if isinstance(leaf, StandIn):
            terms.append(
                (leaf, {name: torch.zeros_like(term) for name, term in sums.items()})
            )
        else:
            terms.append((leaf, sums))
    return terms


def adds_up(operation: Operation) -> bool:
    """Whether an operation sums over leaves."""
    return operation.waits or operation.sums_late


def _sums_on_route(program: Iterable[Operation]) -> tuple[Path, ...]:
    return tuple(operation.path for operation in program if adds_up(operation))


def _difference(ranks: Sequence[int], of_ranks: Sequence[Numbers | None]) -> str:
    """Describe the difference between the ranks' sums, or return an empty string; a failed rank passes None."""
    # The first rank with hyperparameters of each sum, and these.
    first: dict[str, tuple[int, dict[str, Any]]] = {}
    of_first = of_ranks[0] or {}
    for rank, numbers in zip(ranks, of_ranks, strict=True):
        if numbers is None:
            return f"rank {rank} failed before this step; see the error raised on that rank"
        if numbers.keys() != of_first.keys():
            return (
                f"ranks sum over leaves differently: rank {ranks[0]} in {listed(of_first)}, "
                f"rank {rank} in {listed(numbers)}; use the same chain on all ranks"
            )
        for stage, values in numbers.items():
            if not values:
                continue
            first_rank, expected = first.setdefault(stage, (rank, values))
            if values != expected:
                return f"{stage} has {expected} on rank {first_rank}, and {values} on rank {rank}; they must agree"
    return ""


def dtype_of_sums(members: Sequence[Member]) -> torch.dtype:
    """Return the dtype of sums over some parameters."""
    dtype = torch.float32
    for member in members:
        dtype = torch.promote_types(dtype, member.param.dtype.to_real())
    return dtype


def check_can_sum(owner: str, block: Block, needs: Iterable[str]) -> None:
    """Reject a chain in which leaves interact by more than sums.

    Raises:
        ValueError: If a link reads whole trees or calls a closure.
    """
    for operation in block.walk():
        if operation.waits and not operation.sums:
            raise ValueError(
                f"{owner}: {'.'.join(operation.path)!r} reads all leaves together, but {OPTION}= completes only sums; "
                "remove it from the chain, or step on one rank"
            )
    for need in needs:
        if need in ("grad_fn", "value_fn"):
            raise ValueError(
                f"{owner}: a link calls the closure ({need}) at other weights, which {OPTION}= cannot do on all ranks "
                "together; remove the link from the chain"
            )
