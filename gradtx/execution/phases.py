"""Programs in passes: each pass but the last ends at a sum over leaves, whose total is an argument of the later ones.

Each pass starts over, so that no intermediate values are kept. All passes but the last compute only their sums.
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

Names: TypeAlias = tuple[tuple[str, ...], ...]  # of the totals of each earlier pass


def _write_nothing() -> None:
    """Write nothing."""


@dataclass
class PassResult:
    """The outcome of a pass.

    Attributes:
        outputs: The sums over the leaves of the bundle; in the last pass, new values, such as shared ones.
        names: The name of each output.
        operation: The operation that waits for the sums; None in the last pass.
        write: Writes the new values into the arguments, after everything is computed.
    """

    outputs: list[Tensor]
    names: tuple[Any, ...]
    operation: Operation | None
    write: Callable[[], None] = _write_nothing


RunPass: TypeAlias = Callable[[list[Tensor]], PassResult]


class AwaitedSumError(Exception):
    """Raised when a pass reaches a sum whose total is not known yet."""

    def __init__(self, operation: Operation, sums: dict[str, Tensor]):
        super().__init__(operation.path)
        self.operation = operation
        self.sums = sums


class Pass(Protocol):
    """One pass of a program.

    Attributes:
        sums: Examples of the sums that it returns; empty for the last pass.
        names: The names of its outputs.
        operation: The operation that waits for the sums; None for the last pass.
    """

    sums: list[Tensor]
    names: tuple[Any, ...]
    operation: Operation | None


PassT = TypeVar("PassT", bound=Pass)


def have_sums(passes: Sequence[Pass]) -> bool:
    """Whether a program sums over leaves, for its own step or for the next one."""
    return len(passes) > 1 or any(
        isinstance(name, LateTerm) for name in passes[-1].names
    )


def passes_of(
    function: Callable[[list[Tensor], Names], PassResult],
    common: list[Tensor],
    leaves: list[Tensor],
    make_pass: Callable[[RunPass, list[Tensor], list[Tensor]], PassT],
) -> list[PassT]:
    """Return the passes of a function: each but the last ends at sums, whose totals the later ones also receive."""
    passes: list[PassT] = []
    known: Names = ()
    totals: list[Tensor] = []
    while True:
        next_pass = make_pass(
            functools.partial(_up_to_sum, function, known), [*common, *totals], leaves
        )
        passes.append(next_pass)
        if next_pass.operation is None:
            return passes
        known = (*known, next_pass.names)
        for total in next_pass.sums:
            totals.append(torch.zeros((), dtype=total.dtype, device=total.device))


def _up_to_sum(
    function: Callable[[list[Tensor], Names], PassResult],
    known: Names,
    arguments: list[Tensor],
) -> PassResult:
    return function(arguments, known)
