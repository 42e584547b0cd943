"""What a phase of a program returns: each phase but the last ends at a sum over leaves, an argument of the later ones.

Each phase starts over, so that no intermediate values are kept. All phases but the last compute only their sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from gradtx.execution.execute import Operation


class LeafSum(NamedTuple):
    """The name of a sum over one leaf, whose total only this leaf receives."""

    name: str


# The names of the totals of each earlier phase.
Names: TypeAlias = tuple[tuple[str | LeafSum, ...], ...]


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

    def __init__(self, operation: Operation, sums: dict[Any, Tensor]):
        super().__init__(operation.path)
        self.operation = operation
        self.sums = sums

    def result(self) -> PhaseResult:
        """Return the outcome of the phase."""
        return PhaseResult(list(self.sums.values()), tuple(self.sums), self.operation)
