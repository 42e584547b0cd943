"""The hyperparameters of a chain, those of which are numbers are arguments of its programs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from gradtx.arguments import is_off, items_of
from gradtx.base.exact import Schedule
from gradtx.base.forward import Transformation
from gradtx.execution.runs import Place

ARGUMENT = "an argument"  # in a structure, in place of what is an argument of programs
# The place of each hyperparameter and its value, with `ARGUMENT` in place of numbers.
Structure: TypeAlias = tuple[tuple[tuple[Place, str], Any], ...]


class Hyperparameters:
    """The numeric hyperparameters of a chain.

    Rules receive numbers as tensors, except those that are literally off (0.0), which leave out a part of the rule.

    Args:
        entries: The hyperparameters.
        before: A structure whose numbers remain numbers if they are off now.
        literals: Whether numbers that are off are literals at all.

    Attributes:
        structure: All values, with `ARGUMENT` in place of each number.
        values: The numbers: floats, tensors and schedules.
        tensors: The tensors among them.
        places: The place in the chain of the node to which each number belongs.
        scheduled: The indices of the schedules.
    """

    def __init__(
        self, entries: Iterable[Any], before: Structure = (), literals: bool = True
    ):
        self.values: list[Any] = []
        self.places: list[Place] = []
        templates = dict(before)
        structure = []
        self._indices: dict[Any, range] = {}  # of the numbers of each place
        for entry in entries:
            first = len(self.values)
            value, argument = entry.value, entry.argument
            template = templates.get(entry.place)
            are_alike = len(items_of(template)) == len(items_of(value))

            def take(item: Any, old: Any, entry: Any = entry) -> Any:
                is_literal = literals and old != ARGUMENT
                if is_literal and is_off(item, entry.argument.range.off):
                    return item
                if not isinstance(item, float | Tensor | Schedule):
                    return item
                self.values.append(item)
                self.places.append(entry.place[0])
                return ARGUMENT

            # Rules receive named floats unchanged.
            if argument.kind != "named floats":
                old = template if are_alike else each_item(lambda _: None, value)
                value = each_item(take, value, old)
            structure.append((entry.place, value))
            self._indices[entry.place] = range(first, len(self.values))
        self.structure: Structure = tuple(structure)
        self.scheduled = [
            i for i, item in enumerate(self.values) if isinstance(item, Schedule)
        ]
        self.tensors = [item for item in self.values if isinstance(item, Tensor)]

    def replaced(
        self, place: tuple[Place, str], numbers: Sequence[float]
    ) -> Hyperparameters | None:
        """Return a copy with other floats in place of those of a node; None if some of these are no arguments."""
        indices = self._indices[place]
        if len(indices) != len(numbers):
            return None
        values = list(self.values)
        values[indices.start : indices.stop] = numbers
        return self.with_floats(values)

    def with_floats(self, values: list[Any]) -> Hyperparameters:
        """Return a copy with other values, which differ from these in floats alone."""
        replaced = copy.copy(self)
        replaced.values = values
        return replaced


def hyperparameters_of(tx: Transformation) -> Hyperparameters:
    """Return the hyperparameters of a transformation, which keeps them."""
    if tx._hyperparameters is None:
        tx._set(_hyperparameters=Hyperparameters(tx._entries()))
    return tx._hyperparameters  # type: ignore[return-value]


@dataclass(frozen=True)
class ChainOf:
    """Builds a chain from the hyperparameters that are arguments.

    Not a closure, because shared programs must not keep values alive.

    Attributes:
        tx: The chain.
        structure: The structure of its values.
    """

    tx: Transformation
    structure: Structure

    def __call__(self, arguments: Iterable[Any]) -> Any:
        values = iter(arguments)
        replaced = {}
        for place, template in self.structure:
            replaced[place] = each_item(
                lambda item: next(values) if item == ARGUMENT else item, template
            )
        return self.tx._replaced(replaced, checked=False)


# A value of a hyperparameter is a number, a schedule, another option, or a tuple of these.


def each_item(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Apply `function` to values, or to the corresponding items of tuples."""
    if isinstance(value, tuple):
        return tuple(map(function, value, *map(items_of, others)))
    return function(value, *others)
