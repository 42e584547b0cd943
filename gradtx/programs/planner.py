"""Choose the list program of each leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradtx.programs.bundle import list_function_of
from gradtx.programs.phases import RecordedPhase
from gradtx.programs.record import reason_of


@dataclass
class ListPrograms:
    """The programs of one function, by the shapes of a leaf's arguments; programs with the same text are one object.

    Attributes:
        record: Records the program for a leaf with these arguments.
        on_host: Whether the host knows the scalars.
        key: Identifies the function among those whose programs are in `known`.
        known: Programs, or the reasons why there is none.
    """

    record: Callable[[list[Tensor]], list[RecordedPhase]]
    on_host: bool
    key: Any
    known: dict[Any, Any]

    def of(self, tensors: list[Tensor]) -> list[RecordedPhase] | str:
        """Return the program for arguments of these shapes, or the reason why it cannot be recorded."""
        of_shapes = self.key, tuple(tensor.shape for tensor in tensors)
        if of_shapes not in self.known:
            self.known[of_shapes] = self._recorded(tensors)
        return self.known[of_shapes]

    def _recorded(self, tensors: list[Tensor]) -> list[RecordedPhase] | str:
        try:
            program = self.record(tensors)
        except Exception as error:
            # A user's rule may raise any exception; eager execution shows it.
            return reason_of(error)
        of_text = self.key, tuple(phase.text for phase in program)
        if of_text not in self.known:
            for phase in program:  # now, because errors of planning are handled
                numbers = range(0 if self.on_host else len(phase.common))
                list_function_of(phase, tensors[0].device, frozenset(numbers))
            self.known[of_text] = program
        return self.known[of_text]

    def by_program(
        self, leaves: Sequence[tuple[Any, list[Tensor]]]
    ) -> list[tuple[Any, list[Any]]]:
        """Sort leaves, each given with its arguments, by their programs, or by the reasons why they have none."""
        sorted_leaves: dict[int, tuple[Any, list[Any]]] = {}
        for leaf, arguments in leaves:
            program = self.of(arguments)
            _, of_program = sorted_leaves.setdefault(id(program), (program, []))
            of_program.append(leaf)
        return list(sorted_leaves.values())
