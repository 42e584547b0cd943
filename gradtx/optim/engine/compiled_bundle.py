"""Bundles: leaves that one program processes together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gradtx.base.dtensor import local
from gradtx.execution.runs import LateTerm
from gradtx.optim.engine.family import Family
from gradtx.optim.engine.trace import TracedPhase
from gradtx.optim.engine.views import (
    alias,
    entries_of,
    is_usual,
    resized,
    view_or_copy,
    windows,
)
from gradtx.optim.run import Member, Trees
from gradtx.programs.bundle import ProgramBundle

# Maps the phase and the identities of the scalars to these scalars and the leading arguments of the phase computed from
# them; see `Bundle.process`.
Prepared = dict[Any, tuple[list[Any], list[Tensor]]]


class Bundle(ProgramBundle):
    """Leaves of one group and count: the program processes `signature.width` at a time, or a window of the only leaf.

    Args:
        family: The leaves.
        row: For coded leaves, the number of entries per row of their aliases, which are matrices; None for vectors.
        window: The number of rows of the bundle's only leaf that the program processes at a time; None for all.
    """

    def __init__(
        self, family: Family, row: int | None = None, window: int | None = None
    ):
        first, leaf = family.pairs[0]
        super().__init__(leaf.name, local(first.param).device)
        self.members = family.members
        self.signature = signature = family.signature
        self._entries = sum(entries_of(member.param) for member in self.members)
        self._flat = family.kind.flat
        self._row = row
        self._window = window
        # The leaves' arguments; None for those that change in each step.
        self._template: list[Tensor | None] = []
        # For each window, its parts of the arguments that it writes.
        self._written_windows: list[list[Tensor]] = []
        self._params = [member.param for member in self.members]
        self._read_per_leaf = 1 + len(signature.by_leaf)
        self._per_leaf = 2 + len(signature.slots) + self._read_per_leaf
        # Whether parameters, and the gradients of the plan, are plain and contiguous, so that views are their aliases.
        self._was_planned_for_views = self._flat and all(
            is_usual(param) and _is_usual_gradient(param.grad) for param in self._params
        )
        # The arguments of the leaves in the current step.
        self._of_leaves: list[Tensor] = []
        # The values that bundles of the same group and count compute once per step.
        self._prepared: Prepared = {}

    @torch.inference_mode(False)  # later steps write into padding as well
    @torch.no_grad()
    def create_arguments(self, trees: Trees) -> None:
        """Create the aliases of parameters and slots, and padding if the bundle is not full.

        A flag in front of each leaf's arguments says whether it is real or padding.
        """
        is_real = torch.tensor(True, device=self.device)
        is_padding = torch.tensor(False, device=self.device)
        for member in self.members:
            self._template.append(is_real)
            self._template.extend(self._written_by(member))
            self._template.extend([None] * self._read_per_leaf)
        like = self.whole_arguments(trees)[1 : self._per_leaf]
        for i in range(len(self.members), self.signature.width):
            self._template.append(is_padding)
            self._template.extend(resized(tensor, 5 + i).zero_() for tensor in like)

    def _written_by(self, member: Member) -> list[Tensor]:
        """Return aliases of the parameter and its slots."""
        tensors: list[Tensor] = [member.param]
        tensors.extend(member.state[key] for key in self.signature.slots)
        written = [alias(tensor, member.param, self._flat) for tensor in tensors]
        if self._row is None:
            return written
        rows = entries_of(member.param) // self._row
        return [each.view(rows, -1) if each.ndim else each for each in written]

    def may_absorb(self, other: Bundle, most: int) -> bool:
        """Whether both bundles run the same program without windows, and have at most this many entries together."""
        if self.operations is not other.operations or self._window is not None:
            return False
        return self._entries + other._entries <= most

    def absorb(self, other: Bundle) -> None:
        """Take over the leaves of another bundle, which may be padded."""
        self.members += other.members
        self._entries += other._entries
        self._template += other._template
        self._params += other._params
        self._was_planned_for_views &= other._was_planned_for_views

    def arguments(self, trees: Trees) -> list[list[Tensor]]:
        """Return the arguments of each call of the program."""
        return list(self._calls(self.whole_arguments(trees)))

    def whole_arguments(
        self, trees: Trees, are_as_planned: bool = False
    ) -> list[Tensor]:
        """Return the arguments of all leaves: aliases that programs write, then read-only gradients and extras.

        `are_as_planned` specifies whether the gradients have the types and layouts for which the bundle was planned.
        """
        arguments: list[Any] = self._template.copy()
        end = self._per_leaf * len(self.members)
        position = self._per_leaf - self._read_per_leaf
        arguments[position : end : self._per_leaf] = self._gradients(are_as_planned)
        for key in self.signature.by_leaf:
            position += 1
            tree = trees[key]
            arguments[position : end : self._per_leaf] = self._in_rows(
                [self._read(tree[m.name], m) for m in self.members]
            )
        return arguments

    def _in_rows(self, read: list[Tensor]) -> list[Tensor]:
        """Return read-only tensors, which are as long as the parameters, in the same form as the written ones."""
        row = self._row
        return read if row is None else [vector.view(-1, row) for vector in read]

    def _gradients(self, are_as_planned: bool) -> list[Tensor]:
        gradients: list[Any] = [param.grad for param in self._params]
        if are_as_planned and self._was_planned_for_views:
            return self._in_rows([gradient.view(-1) for gradient in gradients])
        return self._in_rows(list(map(self._read, gradients, self.members)))

    def _read(self, tensor: Any, member: Member) -> Tensor:
        """Return an alias of a tensor, or of a copy if its layout differs."""
        if tensor.ndim == 1 and _is_usual_gradient(tensor):
            return tensor  # a shortcut: the alias would be the same
        return view_or_copy(alias, tensor, member.param, member.param, self._flat)

    def _calls(self, arguments: list[Tensor]) -> Iterable[list[Tensor]]:
        """Split the arguments of the leaves into those of each call."""
        if self._window is not None:
            return self._windows_of(arguments, self._window)
        length = self.signature.width * self._per_leaf
        starts = range(0, len(arguments), length)
        return [arguments[start : start + length] for start in starts]

    def _windows_of(
        self, arguments: list[Tensor], window: int
    ) -> Iterator[list[Tensor]]:
        """Yield the arguments of each window in turn. The read-only ones are new in each step."""
        read = self._per_leaf - self._read_per_leaf
        if not self._written_windows:
            self._written_windows = list(windows(arguments[:read], window))
        for written, of_step in zip(
            self._written_windows, windows(arguments[read:], window), strict=True
        ):
            yield written + of_step

    # During a step.

    def read_from(self, trees: Trees, prepared: Prepared, are_as_planned: bool) -> None:
        """Receive the gradients and the per-leaf extras of the current step."""
        self._of_leaves = self.whole_arguments(trees, are_as_planned)
        self._prepared = prepared

    def process(self, phase: TracedPhase) -> Any:
        # Bundles of a group and count share these scalars.
        key = (id(phase), *map(id, self._numbers))
        if key not in self._prepared:
            self._prepared[key] = (
                self._numbers,
                phase.prepare(self._numbers, self.device, self._on_host),
            )
        _, prepared = self._prepared[key]
        results: list[dict[Any, Tensor]] = []
        for arguments in self._calls(self._of_leaves):
            of_call = phase.call(prepared, arguments)
            results.append(dict(zip(phase.names, of_call, strict=True)))
        if phase.operation is None:
            return self._end(results)
        if len(results) == 1:
            return results[0]
        waiting: list[Any] = [(self, sums) for sums in results]
        return phase.operation.combine(waiting)

    def _end(self, results: list[dict[Any, Tensor]]) -> None:
        """Hand over the new shared values and release the step's tensors."""
        first = 0  # the index of the first leaf of a call
        for of_call in results:
            for name, value in of_call.items():
                if not isinstance(name, LateTerm):
                    self.share(name, value)
                    continue
                leaf = first + int(name.leaf)
                if leaf < len(self.members):  # the others are padding
                    self.run.add_late(name, self.members[leaf].name, value)
            if self._window is None:
                first += self.signature.width
        # Kernels write memory without counting versions, so autograd would accept graphs that saved the old weights.
        increment_version(self._params)
        self._of_leaves = []
        self._prepared = {}
        self.release_tensors()


def _is_usual_gradient(gradient: Any) -> bool:
    """Whether a gradient is a usual tensor without a graph."""
    return is_usual(gradient) and not gradient.requires_grad
