"""The phases of a program: each but the last ends at a sum over leaves, an argument of the later ones.

Each phase starts over, so that no intermediate values are kept. All phases but the last compute only their sums.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.compiler.graph import dtype_of
from gradtx.compiler.record import META, PhaseResult, Recording, record
from gradtx.compiler.terms import parts_add_up, runs_on_shards
from gradtx.execution.execute import Operation
from gradtx.execution.runs import LateTerm


class LeafSum(NamedTuple):
    """The name of a sum over one leaf, whose total only this leaf receives."""

    name: str


# The names of the totals of each earlier phase.
TotalNames: TypeAlias = tuple[tuple[str | LeafSum, ...], ...]


class PhaseFunction(Protocol):
    """A program as a function of its arguments, which runs up to the first sum whose total is not among them."""

    def __call__(
        self, arguments: list[Tensor], total_names: TotalNames
    ) -> PhaseResult: ...


class AwaitedSumError(Exception):
    """Raised when a phase reaches a sum whose total is not among its arguments."""

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
        segment: The index of the segment between owners; None for a program without any.

    Attributes:
        recording, segment: As above.
        common: The dtype of each scalar that all leaves share.
        names: The names of its outputs.
        operation: The operation that waits for the outputs; None for the last phase.
        dtypes: The dtype of each result.
        text: A text that identifies the program, so that leaves with equal programs can share one.
        ends_at_owner: Whether it ends where owners compute.
        ends_at_leaf_sum: Whether it ends at sums over single leaves.
    """

    def __init__(self, recording: Recording, segment: int | None = None):
        result = recording.result
        self.recording = recording
        self.common = list(map(dtype_of, recording.scalars))
        self.dtypes = [output.dtype for output in result.outputs]
        self.text = recording.text()
        self.segment = segment
        self.ends_at_owner = False
        self.ends_at_leaf_sum = any(isinstance(name, LeafSum) for name in result.names)
        self._note(result.names, result.operation)
        if segment is not None:
            self._end_at_owner(segment)

    def _note(self, names: tuple[Any, ...], operation: Operation | None) -> None:
        """Note what the phase returns."""
        self.names = names
        self.operation = operation
        if operation is not None:
            self.path, self.role = operation.barrier
            self.traits = operation.traits
            self.combine = operation.combine

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
            self._note(tuple(payload), meta["operation"])
            self.dtypes = list(payload.values())

    def segments(self) -> list[RecordedPhase]:
        """Return the segments of a last phase."""
        count = len(self.recording.owned) + 1
        return [RecordedPhase(self.recording, segment) for segment in range(count)]

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
    function: PhaseFunction, common: Sequence[torch.dtype], leaves: Sequence[Tensor]
) -> list[RecordedPhase]:
    """Record a function: each phase but the last ends at sums, whose totals the later ones also receive.

    Args:
        function: The function.
        common: The dtypes of the scalars that all leaves share.
        leaves: The arguments of a leaf, of which only dtypes and shapes matter.
    """
    phases: list[RecordedPhase] = []
    total_names: TotalNames = ()
    common, leaves = list(common), list(leaves)
    while True:
        run = functools.partial(function, total_names=total_names)
        of_leaf = [(tensor.dtype, tensor.shape) for tensor in leaves]
        device = leaves[0].device if leaves else META
        phase = RecordedPhase(record(run, common, of_leaf, device))
        phases.append(phase)
        if phase.operation is None:
            return phases
        total_names = (*total_names, phase.names)
        totals = phase.recording.result.outputs
        for name, total in zip(phase.names, totals, strict=True):
            if isinstance(name, LeafSum):
                leaves.append(torch.zeros((), dtype=total.dtype, device=total.device))
            else:
                common.append(total.dtype)
