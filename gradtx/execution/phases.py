"""Programs in phases: each phase but the last ends at a sum over leaves, whose total is an argument of the later ones.

Each phase starts over, so that no intermediate values are kept. All phases but the last compute only their sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from gradtx.execution.execute import Operation
from gradtx.execution.runs import LateTerm

Names: TypeAlias = tuple[tuple[str, ...], ...]  # of the totals of each earlier phase


def _write_nothing() -> None:
    """Write nothing."""


@dataclass
class PhaseResult:
    """The outcome of a phase.

    Attributes:
        outputs: The sums over the leaves of the bundle; in the last phase, new values, such as shared ones.
        names: The name of each output.
        operation: The operation that waits for the sums; None in the last phase.
        write: Writes the new values into the arguments, after everything is computed.
    """

    outputs: list[Tensor]
    names: tuple[Any, ...]
    operation: Operation | None
    write: Callable[[], None] = _write_nothing


class PhaseFunction(Protocol):
    """A program as a function of its arguments, which runs up to the first sum whose total is not among them."""

    def __call__(self, arguments: list[Tensor], known: Names) -> PhaseResult: ...


RunPhase: TypeAlias = Callable[[list[Tensor]], PhaseResult]


class AwaitedSumError(Exception):
    """Raised when a phase reaches a sum whose total is not known yet."""

    def __init__(self, operation: Operation, sums: dict[str, Tensor]):
        super().__init__(operation.path)
        self.operation = operation
        self.sums = sums

    def result(self) -> PhaseResult:
        """Return the outcome of the phase."""
        return PhaseResult(list(self.sums.values()), tuple(self.sums), self.operation)


class Phase:
    """One pass of a program.

    Attributes:
        sums: Examples of the sums that it returns; empty for the last phase.
        names: The names of its outputs.
        operation: The operation that waits for the outputs; None for the last phase.
        is_for_owners: Whether it ends where owners compute; its outputs then go to the owner of each leaf.
    """

    sums: list[Tensor]
    names: tuple[Any, ...]
    operation: Operation | None
    is_for_owners = False

    def note(self, result: PhaseResult) -> None:
        """Note what the phase returns."""
        self.names = result.names
        self.operation = result.operation
        self.sums = [] if result.operation is None else result.outputs

    def is_term(self, name: Any) -> bool:
        """Whether an output is a term of a sum over leaves, for this step or for the next one."""
        return self.operation is not None or isinstance(name, LateTerm)


PhaseT = TypeVar("PhaseT", bound=Phase)


def have_sums(phases: Sequence[Phase]) -> bool:
    """Whether a program sums over leaves, for its own step or for the next one."""
    return any(each.is_term(name) for each in phases for name in each.names)


def has_late_sums(phases: Sequence[Phase]) -> bool:
    """Whether a program sums over leaves for the next step."""
    return any(isinstance(name, LateTerm) for name in phases[-1].names)


def phases_of(
    function: PhaseFunction,
    common: list[Tensor],
    leaves: list[Tensor],
    make_phase: Callable[[RunPhase, list[Tensor], list[Tensor]], PhaseT],
) -> list[PhaseT]:
    """Return the phases of a function: each but the last ends at sums, whose totals the later ones also receive."""
    phases: list[PhaseT] = []
    known: Names = ()
    totals: list[Tensor] = []
    while True:
        run = functools.partial(function, known=known)
        next_phase = make_phase(run, [*common, *totals], leaves)
        phases.append(next_phase)
        if next_phase.operation is None:
            return phases
        known = (*known, next_phase.names)
        for total in next_phase.sums:
            totals.append(torch.zeros((), dtype=total.dtype, device=total.device))
