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


RunPhase: TypeAlias = Callable[[list[Tensor]], PhaseResult]


class AwaitedSumError(Exception):
    """Raised when a phase reaches a sum whose total is not known yet."""

    def __init__(self, operation: Operation, sums: dict[str, Tensor]):
        super().__init__(operation.path)
        self.operation = operation
        self.sums = sums


class Phase(Protocol):
    """One pass of a program.

    Attributes:
        sums: Examples of the sums that it returns; empty for the last phase.
        names: The names of its outputs.
        operation: The operation that waits for the sums; None for the last phase.
    """

    sums: list[Tensor]
    names: tuple[Any, ...]
    operation: Operation | None


PhaseT = TypeVar("PhaseT", bound=Phase)


def have_sums(phases: Sequence[Phase]) -> bool:
    """Whether a program sums over leaves, for its own step or for the next one."""
    return len(phases) > 1 or any(
        isinstance(name, LateTerm) for name in phases[-1].names
    )


def phases_of(
    function: Callable[[list[Tensor], Names], PhaseResult],
    common: list[Tensor],
    leaves: list[Tensor],
    make_phase: Callable[[RunPhase, list[Tensor], list[Tensor]], PhaseT],
) -> list[PhaseT]:
    """Return the phases of a function: each but the last ends at sums, whose totals the later ones also receive."""
    phases: list[PhaseT] = []
    known: Names = ()
    totals: list[Tensor] = []
    while True:
        next_phase = make_phase(
            functools.partial(_up_to_sum, function, known), [*common, *totals], leaves
        )
        phases.append(next_phase)
        if next_phase.operation is None:
            return phases
        known = (*known, next_phase.names)
        for total in next_phase.sums:
            totals.append(torch.zeros((), dtype=total.dtype, device=total.device))


def _up_to_sum(
    function: Callable[[list[Tensor], Names], PhaseResult],
    known: Names,
    arguments: list[Tensor],
) -> PhaseResult:
    return function(arguments, known)
