"""Parameter groups: hyperparameter values that users and schedulers may overwrite, and the chain built from them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base.exact import Schedule, exact, python_scalar, resolve
from gradtx.transform import Entry, GradientTransformation

SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
NUMBER = "a number"  # placeholder for a number in the form of a value
# The key in a saved group of the names whose number was written over a schedule.
OVERRIDDEN = "overridden"
# Options of torch's implementations.
ENGINE_OPTIONS = ("foreach", "fused", "capturable", "differentiable")


def check_differentiable(options: Mapping[str, Any]) -> None:
    """Reject `differentiable`, the only one of torch's implementation options that changes what a step computes.

    Raises:
        TypeError: If `differentiable` is true.
    """
    if options.get("differentiable"):
        raise TypeError(
            "'differentiable' is not an option of gradtx: step() records no gradients; differentiate through "
            "tx.update and gradtx.apply_updates, as examples/maml_sine.py does"
        )


CPU = torch.device("cpu")
Group: TypeAlias = dict[str, Any]
# Hyperparameters by their names in a group. A value is a number, a schedule, another option, or a tuple of these.
Values: TypeAlias = dict[str, Any]
# Returns the count of the clock that a hyperparameter follows; None if it is unknown.
CountOf: TypeAlias = Callable[[Entry], int | None]
# Pairs of a hyperparameter's place and the form of its value.
Structure: TypeAlias = tuple[tuple[Any, Any], ...]


@dataclass(frozen=True)
class ChainOf:
    """A picklable function that returns a chain with other hyperparameter values.

    Attributes:
        tx: The chain.
        structure: The structure of its values.
    """

    tx: GradientTransformation
    structure: Structure

    def __call__(self, tensors: list[Tensor]) -> GradientTransformation:
        given = iter(tensors)
        arguments: dict[tuple[Any, str], Any] = {}
        for place, form in self.structure:
            arguments[place] = each_item(
                lambda item: next(given) if item == NUMBER else item, form
            )
        return self.tx._replaced(arguments, checked=False)


class GroupView:
    """The hyperparameters of one parameter group.

    Rules receive the group's numbers as 0-d float64 tensors. A number that was literally off (0.0) when the group was
    created stays a literal until it is overwritten by another value. The group's links and slots then change.

    Args:
        tx: The optimizer's transformation.
        group: The group's dict. Missing hyperparameters are added to it.
        labels: The label of each partition, by the key of its selector.

    Attributes:
        tx: The optimizer's transformation.
        group: The group's dict.
        entries: The hyperparameters, by their names in the group.
        sources: Their values when the group was created, or schedules that replaced them.
        shown: What the group shows of each schedule that has not been overwritten.
        structure: What determines links and slots: the place and the form of each value, with `NUMBER` in place of each
            number, except those that are literally off. Another object after each change.
    """

    structure: Structure

    def __init__(
        self, tx: GradientTransformation, group: Group, labels: Mapping[Any, str]
    ):
        self.tx = tx
        self.group = group
        self.entries = names_in_group(tx._entries(labels))
        check_differentiable(group)
        self.sources: Values = {}
        for name, entry in self.entries.items():
            # A tensor is not copied, as in torch: its owner and schedulers write to it in place.
            self.sources[name] = (
                entry.argument.check_written(group[name])
                if name in group
                else entry.value
            )
            group.setdefault(name, self.sources[name])
        # torch's schedulers require this key, even if no link reads it.
        group.setdefault("lr", 0.0)
        self.shown: Values = {
            name: group[name] for name in self.sources if self.follows_schedule(name)
        }
        self._forms: Values = {}
        self._clear()
        self._take(self.sources, literal=True)

    def _clear(self) -> None:
        """Clear the caches."""
        # The group's contents and the values when `values` was last computed.
        self._seen: list[Any] = []
        self._values: Values = {}
        self._chain: tuple[Values, GradientTransformation] | None = None
        self._numbers: tuple[Values, list[Any]] | None = None

    def follows_schedule(self, name: str) -> bool:
        return has_schedule(self.sources[name])

    # Before a step.

    def values(self) -> Values:
        """Return the present values, with a constructor's checks; a schedule whose number was not overwritten is kept.

        The result is the same object until the group changes.

        Raises:
            TypeError, ValueError: If the constructor would raise it.
        """
        contents = [self.group[name] for name in self.entries]
        if are_identical(contents, self._seen):
            return self._values
        values = {
            name: self._value(name, value)
            for name, value in zip(self.entries, contents, strict=True)
        }
        if not are_identical(values.values(), self._values.values()):
            places = {self.entries[name].place: values[name] for name in values}
            self.tx._replaced(places, checked=True)
            self._values = values
        # Tensors and lists may be modified in place.
        self._seen = [] if _any(Tensor | list, contents) else contents
        return self._values

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, list):  # JSON turns tuples into lists
            value = tuple(value)
        if name in self.shown and is_same(value, self.shown[name]):
            return self.sources[name]
        return self.entries[name].argument.check_written(value)

    def settle(self, values: Values) -> None:
        """Take checked values for the next step: note changed schedules, and change the structure if necessary."""
        if values is not self._settled:
            for name, value in values.items():
                if not has_schedule(value):
                    self.shown.pop(name, None)
                elif value is not self.sources[name]:
                    # `show` replaces it with its number.
                    self.sources[name] = self.shown[name] = value
            self._take(values)

    def _take(self, values: Values, literal: bool | None = None) -> None:
        """Change the structure to that of values.

        Args:
            values: The values.
            literal: Whether numbers that are off are literals; None: if they were before.
        """
        self._settled = values
        forms = {name: self._form(name, values[name], literal) for name in values}
        if forms != self._forms or not forms:
            self._forms = forms
            self._chain = None
            self.structure = tuple(
                (self.entries[name].place, form) for name, form in forms.items()
            )

    def _form(self, name: str, value: Any, literal: bool | None) -> Any:
        """Return the form of a value: `NUMBER` in place of numbers, except those that are literally off."""
        argument = self.entries[name].argument
        if argument.kind == "named floats":
            return value
        old = self._forms.get(name)
        if literal is not None or not _have_equal_lengths(value, old):
            old = each_item(lambda _: NUMBER if literal is False else None, value)

        def form_of(item: Any, before: Any) -> Any:
            is_literal = before != NUMBER and is_off(item, argument.range.off)
            is_number = isinstance(item, float | Tensor | Schedule)
            return NUMBER if is_number and not is_literal else item

        return each_item(form_of, value, old)

    # During a step.

    def chain(self, values: Values) -> GradientTransformation:
        """Return the transformation with these values, converted to the tensors that rules receive."""
        if self._chain is not None and self._chain[0] is values:
            return self._chain[1]

        def as_tensor(item: Any, form: Any) -> Any:
            is_number = form == NUMBER and isinstance(item, float)
            return exact(item, CPU) if is_number else item

        arguments: dict[tuple[Any, str], Any] = {}
        for name, value in values.items():
            form = self._form(name, value, None)
            arguments[self.entries[name].place] = each_item(as_tensor, value, form)
        tx = self.tx._replaced(arguments, checked=False)
        if not _any(Tensor, values.values()):
            self._chain = values, tx
        return tx

    def first_chain(self) -> GradientTransformation:
        """Return the transformation that creates slots.

        It has the values of the last step, but the learning rate of construction, since a warm-up may already have
        overwritten it in the group.
        """
        first = dict(self._settled)
        if "lr" in first:
            first["lr"] = self.sources["lr"]
        return self.chain(first)

    def numbers(
        self, values: Values, count: Callable[[Entry], int | Tensor]
    ) -> list[Any]:
        """Return the numbers that the structure leaves out."""
        if self._numbers is not None and values is self._numbers[0]:
            return self._numbers[1]
        numbers: list[Any] = []
        for name, entry in self.entries.items():
            items = zip(
                items_of(values[name]), items_of(self._forms[name]), strict=True
            )
            for item, form in items:
                if isinstance(item, Schedule):
                    item = resolve(item, count(entry))
                    item = item if isinstance(item, Tensor) else python_scalar(item)
                if form == NUMBER:
                    numbers.append(item)
        if not _any(Schedule, values.values()):
            self._numbers = values, numbers
        return numbers

    def chain_of(
        self, structure: Structure
    ) -> Callable[[list[Tensor]], GradientTransformation]:
        """Return a function that replaces the placeholders of a structure with 0-d tensors."""
        # Not a closure: shared programs must not keep the group alive.
        return ChainOf(self.tx, structure)

    # After a step, and when a checkpoint is loaded.

    def show(self, count: CountOf) -> None:
        """Write the next step's values of schedules into the group, unless they were overwritten."""
        for name, shown in self.shown.items():
            at = count(self.entries[name])
            if at is not None and is_same(self.group[name], shown):
                self.shown[name] = self.group[name] = next_value(self.sources[name], at)

    def loaded(self, group: Group) -> GroupView:
        """Return the view of a group from a checkpoint, in which numbers that are off are literals.

        A schedule replaces the saved number, unless this number was written over a schedule.
        """
        view = copy(self)
        overridden = group.pop(OVERRIDDEN, None) or ()
        view.group = group
        view._clear()
        view.shown = {}
        for name, source in self.sources.items():
            if not self.follows_schedule(name):
                group.setdefault(name, self.group[name])
            elif name not in group or (
                name not in overridden and _differs_by_schedules(source, group[name])
            ):
                group[name] = view.shown[name] = source
        values = view.values()
        for name, value in values.items():
            if name not in view.shown:
                group[name] = value
        view._take(values, literal=True)
        return view

    def without_literals(self) -> GroupView:
        """Return this view without literals: every number may be changed without a change of the slots."""
        view = copy(self)
        view._clear()
        view._take(self._settled, literal=False)
        return view

    def overridden(self) -> list[str] | None:
        """Return the names whose number was written over a schedule; None if the group has no schedules."""
        scheduled = [name for name in self.sources if self.follows_schedule(name)]
        if not scheduled:
            return None
        return [
            name
            for name in scheduled
            if name not in self.shown or not is_same(self.group[name], self.shown[name])
        ]


def defaults_of(views: list[GroupView]) -> dict[str, Any]:
    """Return the hyperparameters that all groups have, as the first group shows them at the start.

    OneCycleLR and CyclicLR read and write `betas` or `momentum` of every group if the defaults contain them.
    """
    return {
        name: next_value(entry.value, 0) if has_schedule(entry.value) else entry.value
        for name, entry in views[0].entries.items()
        if all(name in view.entries for view in views)
    }


def names_in_group(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return hyperparameters by their names in a group.

    A key that torch's schedulers write is never used as the name of a hyperparameter. A bound of the learning rate
    (`max_lr`) is shown as `lr`, which schedulers scale, if there is no other `lr`.
    """
    entries = list(entries)
    has_rate = any(entry.argument.name == "lr" for entry in entries)
    places = {entry.place for entry in entries}
    names: dict[str, Entry] = {}
    for entry in entries:
        name = entry.full if entry.name in SCHEDULER_KEYS else entry.name
        # Then it bounds the rate of another link.
        corrects_decay = (entry.place[0], "corrected_by") in places
        if entry.name == "max_lr" and not has_rate and not corrects_decay:
            name = "lr"
        names[name] = entry
    return names


def in_names_of_branch(
    tx: GradientTransformation, group: Group, labels: Mapping[Any, str]
) -> dict[str, str | None]:
    """Rename a group's hyperparameters from the names of the whole optimizer to the names in the group's branch.

    The names differ in an alias's branch for other leaves (the fallback of Muon). Names with an owner or a label are
    accepted in all groups. Hyperparameters that the branch does not read are removed.

    Returns:
        The name in the branch of each accepted name; None if the branch does not read it.
    """
    places = {entry.name: entry.place for entry in tx._entries(labels, apart=False)}
    for entry in tx._entries():
        for name in entry.names:
            if "." in name:
                places.setdefault(name, entry.place)
    entries = names_in_group(tx._entries(labels))
    names_of_branch = {entry.place: name for name, entry in entries.items()}
    new_names = {name: names_of_branch.get(place) for name, place in places.items()}
    values = {name: group.pop(name) for name in new_names if name in group}
    for name, value in values.items():
        new_name = new_names[name]
        if new_name is not None:
            group[new_name] = value
    return new_names


def params_of(groups: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the parameters of groups, or their numbers in the groups of a state dict, in order."""
    return [param for group in groups for param in group["params"]]


def next_value(value: Any, count: int) -> Any:
    """Return the value of a schedule as a group shows it: a number, or a tuple of numbers."""

    def as_number(item: Any) -> Any:
        return python_scalar(
            resolve(item, count) if isinstance(item, Schedule) else item
        )

    return each_item(as_number, value)


# Functions of hyperparameter values.


def items_of(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def each_item(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Apply `function` to values, or to the corresponding items of tuples."""
    if isinstance(value, tuple):
        return tuple(map(function, value, *others))
    return function(value, *others)


def is_same(a: Any, b: Any) -> bool:
    """Whether two values are equal, where tensors are compared by identity."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)


def are_identical(a: Collection[Any], b: Collection[Any]) -> bool:
    """Whether two collections contain the same objects in the same order."""
    return len(a) == len(b) and all(map(operator.is_, a, b))


def has_schedule(value: Any) -> bool:
    """Whether a value, or any item of a tuple, is a schedule."""
    return _any(Schedule, (value,))


def _any(kind: Any, values: Iterable[Any]) -> bool:
    """Whether a value, or any item of a tuple, is an instance of a class."""
    return any(isinstance(item, kind) for value in values for item in items_of(value))


def _have_equal_lengths(value: Any, other: Any) -> bool:
    if isinstance(value, tuple) and isinstance(other, tuple):
        return len(value) == len(other)
    return not isinstance(value, tuple)


def _differs_by_schedules(source: Any, loaded: Any) -> bool:
    """Whether a loaded value has the numbers of the present one wherever that is not a schedule."""
    ours, theirs = (
        items_of(source),
        items_of(tuple(loaded) if isinstance(loaded, list) else loaded),
    )
    return len(ours) == len(theirs) and all(
        isinstance(item, Schedule) or is_same(item, other)
        for item, other in zip(ours, theirs, strict=True)
    )
