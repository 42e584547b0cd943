"""Choose the list program of each leaf, and the 0-d slots in whose place it computes with one scalar for all leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base.plain import is_plain
from gradtx.compiler.graph import following, writers
from gradtx.compiler.record import Recording, UnrecordableError, reason_of
from gradtx.plans.bundle import VariantOf
from gradtx.plans.phases import RecordedPhase

EXACT = (
    torch.float64,
    torch.int64,
    torch.bool,
)  # the dtypes whose values Python scalars represent


@dataclass
class ListPrograms:
    """The programs of a leaf's step, by the shapes of its arguments; those of the same variant are one object.

    Attributes:
        record: Records the program for a leaf with these arguments.
        variant_of: Returns what is the same for phases of one text that one function can run.
        on_host: Whether the host knows the scalars.
        key: Identifies the step among those whose programs are in `kept`.
        kept: Programs, or the reasons why there is none.
        ignores_sizes: Whether programs depend on the number of entries of leaves at most, so that those of two numbers
            tell whether all leaves with as many dimensions share a program.
    """

    record: Callable[[list[Tensor]], list[RecordedPhase]]
    variant_of: VariantOf
    on_host: bool
    key: Any
    kept: dict[Any, Any]
    ignores_sizes: bool = False

    def of(self, tensors: list[Tensor]) -> list[RecordedPhase] | str:
        """Return the program for arguments of these shapes, or the reason why it cannot be recorded."""
        shapes = tuple(tensor.shape for tensor in tensors)
        of_shapes = self.key, self.variant_of, shapes
        program = self.kept.get(of_shapes)  # another thread may drop it
        if program is not None:
            return program
        size = tensors[0].numel()
        if not self.ignores_sizes or 1 in shapes[0] or not size:
            program = self.kept[of_shapes] = self._recorded(tensors)
            return program
        of_dimensions = self.key, self.variant_of, "any sizes", tuple(map(len, shapes))
        of_sizes: dict[int, Any] = self.kept.setdefault(of_dimensions, {})
        programs = list(of_sizes.values())
        if len(programs) > 1 and all(x is programs[0] for x in programs):
            return programs[0]
        program = self.kept[of_shapes] = self._recorded(tensors)
        if len(of_sizes) < 2:
            of_sizes[size] = program
        return program

    def _recorded(self, tensors: list[Tensor]) -> list[RecordedPhase] | str:
        try:
            program = self.record(tensors)
        except Exception as error:
            # A user's rule may raise any exception; eager execution shows it.
            return reason_of(error)
        variants = []
        for phase in program:
            on_device = frozenset(range(0 if self.on_host else len(phase.common)))
            try:
                variant = self.variant_of(phase, tensors[0].device, on_device)
            except UnrecordableError as error:
                return reason_of(error)
            # Of a sum over leaves: all must yield the same ones.
            sums = () if phase.operation is None else phase.names
            variants.append((phase.text, sums, variant))
        of_variants = self.key, self.variant_of, tuple(variants)
        return self.kept.setdefault(of_variants, program)

    def by_program(
        self, leaves: Sequence[tuple[Any, list[Tensor]]]
    ) -> list[tuple[Any, list[Any]]]:
        """Sort leaves, each given with its arguments, by their programs, or by the reasons why they have none."""
        sorted_leaves: dict[int, tuple[Any, list[Any]]] = {}
        # By the arguments, which several leaves may share.
        program_of: dict[int, Any] = {}
        for leaf, arguments in leaves:
            if id(arguments) not in program_of:
                program_of[id(arguments)] = self.of(arguments)
            program = program_of[id(arguments)]
            _, of_program = sorted_leaves.setdefault(id(program), (program, []))
            of_program.append(leaf)
        return list(sorted_leaves.values())


def may_be_scalar(tensor: Tensor) -> bool:
    """Whether a slot is a scalar of such a dtype that the host can read without waiting for a device."""
    return (
        is_plain(tensor)
        and tensor.ndim == 0
        and tensor.dtype in EXACT
        and tensor.device.type == "cpu"
    )


def slots_from_scalars(recording: Recording) -> list[int]:
    """Return the positions of exact 0-d arguments whose new values depend only on scalars and on each other.

    Leaves with equal values of these arguments have equal values after every step.
    """
    candidates: set[Node] = set()
    for node in recording.leaves:
        value: Tensor = node.meta["val"]
        if value.ndim == 0 and value.dtype in EXACT:
            candidates.add(node)
    while True:
        others = [node for node in recording.leaves if node not in candidates]
        varying = following(recording.graph, others)
        remaining: set[Node] = set()
        for node in candidates:
            writes = writers(node)
            if writes and varying.isdisjoint(writes):
                remaining.add(node)
        if remaining == candidates:
            return [i for i, node in enumerate(recording.leaves) if node in candidates]
        candidates = remaining
