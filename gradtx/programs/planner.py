"""Choose the list program of each leaf, and find out whether programs depend on the shapes of leaves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.programs.bundle import ListPhase
from gradtx.programs.record import reason_of

PRIMES = (3, 7, 5, 11)


@dataclass
class ListPrograms:
    """The programs of one function, by the shapes of a leaf's arguments; programs with the same text are one object.

    Attributes:
        record: Records the program for a leaf with these arguments.
        on_host: Whether the host knows the scalars.
        key: Identifies the function among those whose programs are in `known`.
        known: Programs, or the reasons why there is none.
    """

    record: Callable[[list[Tensor]], list[ListPhase]]
    on_host: bool
    key: Any
    known: dict[Any, Any]

    def of(self, tensors: list[Tensor]) -> list[ListPhase] | str:
        """Return the program for arguments of these shapes, or the reason why it cannot be recorded."""
        of_shapes = self.key, tuple(tensor.shape for tensor in tensors)
        if of_shapes not in self.known:
            self.known[of_shapes] = self._recorded(tensors)
        return self.known[of_shapes]

    def _recorded(self, tensors: list[Tensor]) -> list[ListPhase] | str:
        try:
            program = self.record(tensors)
        except Exception as error:
            # A user's rule may raise any exception; eager execution shows it.
            return reason_of(error)
        of_text = self.key, tuple(phase.text for phase in program)
        if of_text not in self.known:
            for phase in program:  # now, because errors of planning are handled
                phase.function(tensors[0].device, self.on_host)
            self.known[of_text] = program
        return self.known[of_text]

    def by_program(
        self,
        leaves: Sequence[tuple[Any, torch.Size, list[Tensor]]],
        have_any_shape: bool = True,
    ) -> list[tuple[Any, list[Any]]]:
        """Sort leaves by their programs, or by the reasons why they have none.

        Args:
            leaves: Each leaf with its shape and its arguments.
            have_any_shape: Whether a program may run leaves of other shapes than its own.
        """
        common = None
        if have_any_shape:
            examples = {shape: arguments for _, shape, arguments in leaves}
            common = self.common(examples)
        sorted_leaves: dict[int, tuple[Any, list[Any]]] = {}
        for leaf, _, arguments in leaves:
            program = common or self.of(arguments)
            _, of_program = sorted_leaves.setdefault(id(program), (program, []))
            of_program.append(leaf)
        return list(sorted_leaves.values())

    def common(self, examples: Mapping[torch.Size, list[Tensor]]) -> Any:
        """Return the program of elementwise leaves, given arguments of each shape; None if it depends on the shape."""
        if len(examples) == 1:
            return self.of(*examples.values())
        shapes = representatives(examples)
        first = self.of(examples[shapes[0]])
        for shape in shapes:
            tensors = examples[shape]
            if self.of(tensors) is not first or self.depends_on_shape(tensors):
                return None
        return first

    def depends_on_shape(self, tensors: list[Tensor]) -> bool:
        """Whether the program is another one for arguments of other shapes."""
        program = self.of(tensors)
        return any(self.of(probe) is not program for probe in probes(tensors))


def representatives(shapes: Collection[torch.Size]) -> list[torch.Size]:
    """Return the smallest shape, and the largest one for each number of dimensions."""
    by_size = sorted(shapes, key=torch.Size.numel)
    largest: dict[int, torch.Size] = {}
    for shape in by_size:
        largest[len(shape)] = shape
    return list(dict.fromkeys((by_size[0], *largest.values())))


def probes(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the arguments of a leaf in other shapes: with more columns than rows, and with more rows than columns.

    A rule that reads no shape has the same program for them; one that reads, for example, `numel()` has another one.
    """
    shape = tensors[0].shape
    sizes = tuple(itertools.islice(itertools.cycle(PRIMES), len(shape)))
    for probe in dict.fromkeys((sizes, sizes[::-1])):
        if shape[-1:] == (
            2,
        ):  # perhaps the real and imaginary parts of complex numbers
            probe = (*probe[:-1], 2)
        if probe:
            yield [
                tensor.new_empty(probe) if tensor.shape == shape else tensor
                for tensor in tensors
            ]
