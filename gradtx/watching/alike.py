"""Leaves that a watch measures together: of one shape and chain, they are one leaf of all their entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.base.chunks import slices_within
from gradtx.base.errors import Path
from gradtx.base.plain import is_plain
from gradtx.execution.execute import (
    Leaf,
    Operation,
    Steps,
    Task,
    resumed,
)
from gradtx.optim.run import Member
from gradtx.optim.step_leaves import StepLeaves
from gradtx.watching.links import Link
from gradtx.watching.observer import LinkObserver

# Entries of leaves that are measured together: their temporary tensors stay in the cache of a core.
ENTRIES = 3 * 2**15

# The last operation of leaves together: an observer sees all links, whose sums over leaves are known by now.
MEASURE = Operation()


class LeavesTogether(Task):
    """Leaves whose links are elementwise, as one leaf with all their entries.

    They wait for sums over leaves without values, so that a measured step holds those of one such task: up to each
    operation that waits, they run for their term; at the end, they run as a whole, and the observer sees it.

    Args:
        leaves: The leaves of a run that has no effect.
        members: The parameters.
        operations: Their operations.
        observer: What measures them.
    """

    def __init__(
        self,
        leaves: StepLeaves,
        members: Sequence[Member],
        operations: list[Operation],
        observer: LinkObserver,
    ):
        self.run = leaves.run
        self.name, self.device = members[0].name, members[0].param.device
        self.operations = [*operations, MEASURE]
        self._leaves, self._members = leaves, members
        self._chain, self._observer = operations, observer
        self._totals: list[Any] = []

    def start(self, operation: Operation) -> Steps | None:
        if operation is MEASURE:
            self._measure()
            return None
        return self._totals_of(self.at) if operation.traits.waits else None

    def _totals_of(self, at: int) -> Steps:
        """Wait for the totals of all sums of an operation."""
        payload = self._next_terms(at)
        while payload is not None:
            self._totals.append((yield payload))
            payload = self._next_terms(at)

    def _next_terms(self, at: int) -> Any:
        """Run up to the first sum of an operation whose total is unknown; return the terms, or None without any."""
        operations = self._chain[: at + 1]
        leaf = self._leaves.joint(self._members, operations)
        totals = iter(self._totals)
        for operation in operations:
            steps = leaf.start(operation)
            payload = resumed(steps)
            while payload is not None:
                total = next(totals, None)
                if total is None:
                    leaf.release()
                    return payload
                payload = resumed(steps, total)
        leaf.release()
        return None

    def _measure(self) -> None:
        """Run all operations, and let the observer see them."""
        leaf = self._leaves.joint(self._members, self._chain)
        self._observer.expect(leaf, tuple(member.name for member in self._members))
        totals = iter(self._totals)
        for operation in self._chain:
            self._observer.enter(leaf, operation)
            steps = leaf.start(operation)
            payload = resumed(steps)
            while payload is not None:
                payload = resumed(steps, next(totals))
        self._observer.check(leaf)
        leaf.release()


class StepLinks(LinkObserver):
    """Measures the leaves of an optimizer's step, those that are alike together.

    Attributes:
        order: The names of the leaves in the order of the bundles.
    """

    def __init__(
        self,
        links_of: Callable[[Leaf], Mapping[Path, Link]],
        last: Mapping[str, Tensor] | None = None,
    ):
        super().__init__(links_of, last)
        self.order: list[str] = []

    def copies(self, step: Any, bundles: Iterable[Any]) -> Iterator[Task]:
        """Return the leaves of bundles once more, to run without any effect."""
        leaves = step.rehearsal()
        for bundle in bundles:
            self.order += [member.name for member in bundle.stepping]
            for members, operations in together(leaves, bundle.stepping):
                if operations:
                    yield LeavesTogether(leaves, members, operations, self)
                else:
                    yield from leaves.in_turn(members)


def together(
    leaves: StepLeaves, members: Iterable[Member]
) -> Iterator[tuple[list[Member], list[Operation]]]:
    """Yield the members that are to be measured as one leaf, with their operations; without these where it is alone.

    Args:
        leaves: The leaves of the run.
        members: Parameters that one program processes, so that only shapes, counts and groups may differ.
    """
    alike: dict[Any, list[Member]] = defaultdict(list)
    for member in members:
        alike[_key_of(member)].append(member)
    for row in alike.values():
        operations = [] if len(row) == 1 else _operations_of(leaves, row[0])
        if not operations:
            yield from (([member], []) for member in row)
            continue
        size = row[0].param.numel()
        for chunk in slices_within([size] * len(row), ENTRIES):
            part = row[chunk]
            yield part, operations if len(part) > 1 else []


def _key_of(member: Member) -> Any:
    gradient = member.param.grad
    kind = None if gradient is None else (type(gradient), gradient.dtype)
    param = member.param
    return param.shape, param.dtype, param.device, kind, member.group, member.count


def _operations_of(leaves: StepLeaves, member: Member) -> list[Operation]:
    """Return the operations of a leaf if its entries may be among those of others; else none."""
    param, gradient = member.param, member.param.grad
    is_usual = is_plain(gradient) and param.ndim > 0 and param.numel() > 0
    if not is_usual or param.is_complex() or leaves.run.leaf_extras:
        return []
    (leaf,) = leaves.without_values([member])
    if not all(map(_looks_at_entries, leaf.operations)):
        return []
    slots = [leaf.state[key] for key in member.layout.slot_keys]
    for slot in slots:
        if slot.shape != param.shape or not torch.is_floating_point(slot):
            return []
    return leaf.operations


def _looks_at_entries(operation: Operation) -> bool:
    """Whether an operation does with the entries of a leaf what it would do if there were others."""
    traits = operation.traits
    does_more = (
        traits.random
        or traits.positional
        or traits.needs_shape
        or traits.of_leaf
        or traits.at_owner
        or traits.exchanges
        or traits.prepares
        or traits.makes_gradient
    )
    return operation.ignores_sizes and not does_more
