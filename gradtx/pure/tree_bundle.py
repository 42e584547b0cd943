"""Bundles of leaves of trees: a program reads the tensors of a call, and returns new ones."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from torch import Tensor

from gradtx.base.errors import StateKey
from gradtx.execution.execute import Leaf
from gradtx.plans.bundle import (
    ListBundle,
    Selection,
    differ_by_leaf,
    entries_of_a_call,
    sets_of_rows,
)
from gradtx.plans.phases import RecordedPhase
from gradtx.plans.plan import Family, LeafKind, dtypes_and_devices
from gradtx.pure.tree_run import TreeRun
from gradtx.state.nested import NestedState


class TreeRow(NamedTuple):
    """The arguments of a leaf.

    Attributes:
        leaf: The leaf.
        index_of_count: Which of the leaves with counts of their own it is; None if it has none.
        slots: Its slots.
        indices: The indices of its parameter if there is one, its slots and its gradient.
        tensors: These tensors.
    """

    leaf: Leaf
    index_of_count: int | None
    slots: list[StateKey]
    indices: list[int]
    tensors: list[Tensor]

    @classmethod
    def of(
        cls,
        leaf: Leaf,
        index_of_count: int | None,
        params: dict[str, int],
        state: NestedState,
        gradients: dict[str, int],
        tensors: list[Tensor],
    ) -> TreeRow:
        """Return the arguments of a leaf from trees of indices of tensors."""
        slots: dict[StateKey, Any] = {
            (path, slot): i
            for path in state.stages
            for slot, i in state.slots_of(path, leaf.name).items()
        }
        indices = [*slots.values(), gradients[leaf.name]]
        if leaf.param is not None:
            indices.insert(0, params[leaf.name])
        return cls(
            leaf, index_of_count, list(slots), indices, [tensors[i] for i in indices]
        )

    def kind(self, run: TreeRun) -> LeafKind:
        """Return what leaves with a common program share."""
        *written, read = dtypes_and_devices(self.tensors)
        return LeafKind(
            layout=tuple(self.slots),
            written=tuple(written),
            read=(read,),
            choices=tuple(sorted(run.choices.get(self.leaf.name, {}).items())),
            has_param=self.leaf.param is not None,
        )


class TreeBundle(ListBundle):
    """Leaves with the same program, whose tensors are those of a call with these indices; each call has a copy.

    Args:
        rows: The arguments of the leaves.
        family: Their family.
        phases: The program.
        shared: The indices of the shared values that are arguments.

    Attributes:
        tensors: The tensors of the call.
        results: Receives the new ones.
    """

    tensors: list[Tensor]
    results: list[Any]

    def __init__(
        self,
        rows: list[TreeRow],
        family: Family[TreeRow],
        phases: list[RecordedPhase],
        shared: list[int],
    ):
        leaf = rows[0].leaf
        super().__init__(
            leaf.name,
            leaf.device,
            names=[row.leaf.name for row in rows],
            rows=list(range(len(rows))),
            sizes=[max(map(Tensor.numel, row.tensors)) for row in rows],
            limit=entries_of_a_call(leaf.device),
        )
        self.operations = phases
        self.varying = family.signature.varying(has_groups=False)
        self.shared = shared
        self._indices_of_counts = [row.index_of_count for row in rows]
        # The indices of arguments and, in the order of results, of what is written.
        self._read = list(map(list, zip(*(row.indices for row in rows), strict=True)))
        *slots, self._updates = self._read[leaf.param is not None :]
        self._written = [self._updates, *slots]

    def of_call(self, tensors: list[Tensor], results: list[Any]) -> TreeBundle:
        """Return a copy for a call."""
        bundle = object.__new__(TreeBundle)
        bundle.__dict__.update(self.__dict__, tensors=tensors, results=results)
        return bundle

    def sets_of_rows(
        self, absent: Set[int], counts: Sequence[int] | None
    ) -> tuple[list[int | None], list[int] | None]:
        """Return the count of each set of scalars, None for the common one, and the set of each row as for `begin`.

        Without any gradient, there are no sets.

        Args:
            absent: The indices of absent updates.
            counts: The counts of leaves that have their own; None if all have the common one.
        """
        of_rows: list[Any] = [None] * len(self.names)
        if counts is not None:
            of_rows = [
                index if index is None else counts[index]
                for index in self._indices_of_counts
            ]
        if of_rows.count(of_rows[0]) == len(of_rows) and absent.isdisjoint(
            self._updates
        ):
            return of_rows[:1], None
        are_present = [update not in absent for update in self._updates]
        first_rows, set_of_row = sets_of_rows(of_rows, are_present)
        return [of_rows[row] for row in first_rows], set_of_row

    def columns(self, call: Selection) -> list[list[Tensor]]:
        columns = self._read
        if call.at is not None:
            columns = map(call.some, columns)
        tensor_at = self.tensors.__getitem__
        return [list(map(tensor_at, column)) for column in columns]

    def end(self, phase: RecordedPhase, results: list[list[Any]]) -> None:
        for call, of_call in zip(self._calls, results, strict=True):
            for indices, dtype, values in zip(
                self._written, phase.dtypes, of_call, strict=False
            ):
                if call.at is not None:
                    indices = call.some(indices)
                if not differ_by_leaf(values):  # the same for all leaves
                    values = [self.as_tensor(values, dtype).clone() for _ in indices]
                for i, value in zip(indices, values, strict=True):
                    self.results[i] = value
        self.hand_over(phase, results, len(self._written))
