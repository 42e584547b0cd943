"""The phases of a program: each but the last ends at a sum over leaves, an argument of the later ones.

Each phase starts over, so that no intermediate values are kept. All phases but the last compute only their sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.execution.execute import Operation
from gradtx.execution.runs import LateTerm
from gradtx.programs.record import META, PhaseResult, Recording, record
from gradtx.programs.terms import parts_add_up, runs_on_shards


class LeafSum(NamedTuple):
    """The name of a sum over one leaf, whose total only this leaf receives."""

    name: str


# The names of the totals of each earlier phase.
Names: TypeAlias = tuple[tuple[str | LeafSum, ...], ...]


class PhaseFunction(Protocol):
    """A program as a function of its arguments, which runs up to the first sum whose total is not among them."""

    def __call__(self, arguments: list[Tensor], known: Names) -> PhaseResult: ...


class AwaitedSumError(Exception):
    """Raised when a phase reaches a sum whose total is not known yet."""

    def __init__(self, operation: Operation, sums: dict[Any, Tensor]):
        super().__init__(operation.path)
        self.operation = operation
        self.sums = sums

    def result(self) -> PhaseResult:
        """Return the outcome of the phase."""
        return PhaseResult(list(self.sums.values()), tuple(self.sums), self.operation)


class RecordedPhase(Operation):
    """One pass of a program, as an operation of the bundles that run the program: a recording.

    If it ends where owners compute (`of_leaf`), its outputs go to the owner of each leaf.

    A program for shards also ends where the owner of a leaf computes. Its segments, between owners, are cut out of one
    recording after its operations were fused, so that shards go through the same arithmetic as whole leaves.

    Args:
        recording: The operations, as they were recorded.
        result: What the recorded function returned.
        common: The dtype of each scalar that all leaves share.
        segment: The index of the segment between owners; None for a program without any.

    Attributes:
        common, recording, segment: As above.
        examples: Examples of the sums that it returns; empty for the last phase.
        names: The names of its outputs.
        operation: The operation that waits for the outputs; None for the last phase.
        dtypes: The dtype of each result.
        text: A text that identifies the program, so that leaves with equal programs can share one.
        ends_at_owner: Whether it ends where owners compute.
        ends_at_leaf_sum: Whether it ends at sums over single leaves.
    """

    def __init__(
        self,
        recording: Recording,
        result: PhaseResult,
        common: list[torch.dtype],
        segment: int | None = None,
    ):
        self.recording = recording
        self._result = result
        self.common = common
        self.dtypes = [output.dtype for output in result.outputs]
        self.text = recording.text()
        self.segment = segment
        self.ends_at_owner = False
        self.ends_at_leaf_sum = any(isinstance(name, LeafSum) for name in result.names)
        self.note(result)
        if segment is not None:
            self._end_at_owner(segment)

    def note(self, result: PhaseResult) -> None:
        """Note what the phase returns."""
        self.names = result.names
        self.operation = result.operation
        self.examples: list[Tensor] = []
        if result.operation is not None:
            self.examples = result.outputs
            self.path, self.role = result.operation.barrier
            self.traits = result.operation.traits

    def combine(self, waiting: list[tuple[Any, Any]]) -> Any:
        assert self.operation is not None
        return self.operation.combine(waiting)

    def is_term(self, name: Any) -> bool:
        """Whether an output is a term of a sum over leaves, for this step or for the next one."""
        return self.operation is not None or isinstance(name, LateTerm)

    def terms(self, outputs: Iterable[Any]) -> list[Any]:
        """Return the outputs that are terms of sums over leaves."""
        pairs = zip(self.names, outputs, strict=True)
        return [output for name, output in pairs if self.is_term(name)]

    def _end_at_owner(self, segment: int) -> None:
        """Reduce the phase to one segment."""
        owned = self.recording.owned
        self.text = f"{self.text}\nsegment {segment} of {len(owned) + 1}"
        self.ends_at_owner = segment < len(owned)
        if self.ends_at_owner:
            meta = owned[segment].meta
            payload: dict[str, torch.dtype] = meta["payload"]
            self.note(PhaseResult([], tuple(payload), meta["operation"]))
            self.dtypes = list(payload.values())

    def segments(self) -> list[RecordedPhase]:
        """Return the segments of a last phase."""
        arguments = self.recording, self._result, self.common
        indices = range(len(self.recording.owned) + 1)
        return [RecordedPhase(*arguments, segment) for segment in indices]

    def parts_add_up(self) -> bool:
        """Whether the terms of a leaf's parts, apart from constants, add up to its terms."""
        graph, leaves = self.recording.graph, self.recording.leaves
        terms = self.terms(self.recording.outputs)
        return parts_add_up(graph, leaves, terms)

    def runs_on_shards(self, whole_rows: bool) -> bool:
        """Whether shards may run it, the program of the whole leaf; `whole_rows` is whether they have whole rows."""
        graph, outputs = self.recording.graph, self.recording.outputs
        terms = self.terms(outputs)
        results = [node for node in outputs if node not in terms]
        for node in graph.nodes:
            if _torch.writes(node.target):
                results.extend(node.args)
        return runs_on_shards(graph, self.recording.leaves, terms, results, whole_rows)


def record_phases(
    function: PhaseFunction, common: list[Tensor], leaves: list[Tensor]
) -> list[RecordedPhase]:
    """Record a function: each phase but the last ends at sums, whose totals the later ones also receive."""
    phases: list[RecordedPhase] = []
    known: Names = ()
    common, leaves = list(common), list(leaves)
    while True:
        phase = _recorded(functools.partial(function, known=known), common, leaves)
        phases.append(phase)
        if phase.operation is None:
            return phases
        known = (*known, phase.names)
        for name, total in zip(phase.names, phase.examples, strict=True):
            arguments = leaves if isinstance(name, LeafSum) else common
            arguments.append(torch.zeros((), dtype=total.dtype, device=total.device))


def _recorded(
    run: Callable[[list[Tensor]], PhaseResult],
    common: list[Tensor],
    leaves: list[Tensor],
) -> RecordedPhase:
    """Record one pass of a program on stand-ins of its arguments."""
    results: list[PhaseResult] = []

    def function(arguments: list[Tensor]) -> PhaseResult:
        results.append(run(arguments))
        return results[0]

    dtypes = [tensor.dtype for tensor in common]
    of_leaf = [(tensor.dtype, tensor.shape) for tensor in leaves]
    device = leaves[0].device if leaves else META
    recording = record(function, dtypes, of_leaf, device)
    return RecordedPhase(recording, results[0], dtypes)
