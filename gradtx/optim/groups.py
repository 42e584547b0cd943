"""Parameter groups: hyperparameter values that users and schedulers may overwrite, and the chain built from them."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import has_schedule, items_of
from gradtx.base.exact import Schedule, number_on, python_scalar, resolve
from gradtx.base.inputs import as_builtin
from gradtx.execution.runs import Place
from gradtx.plans.hyperparameters import (
    ARGUMENT,
    ChainOf,
    Hyperparameters,
    Structure,
    each_item,
)
from gradtx.transform import Entry, GradientTransformation

SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
# Arguments that are learning rates, or their bounds.
RATES = ("lr", "max_lr")
# The key in a saved group of the names whose number was written over a schedule.
OVERRIDDEN = "overridden"
# The key in a saved group of the labels of the codes of slots.
CODES_KEY = "codes"
# The key in a saved group of the shapes of its parameters, if codes do not tell them apart, as factors do not.
SHAPES_KEY = "shapes"
# In a state dict: keys of states that a wrapper has written, although they are names of slots.
WRAPPER_KEYS = "wrapper_keys"
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


# Numbers that change together, whose box has 2 to this power corners.
MOST_SIDES = 3
# A box ends this far towards the end of a number's range, or beyond the number by about as many times its size.
FAR = 0.999
MOST_BOXES = 64  # of a chain
CONSTANTS = (bool, int, float, str, torch.dtype)
SETTLED = frozenset((bool, int, str, type(None)))

Group: TypeAlias = dict[str, Any]
# Hyperparameters by their names in a group. A value is a number, a schedule, another option, or a tuple of these.
Values: TypeAlias = dict[str, Any]
UNSEEN = object()
FLOATS = frozenset((float,))
# Returns the count of the clock that the hyperparameters of a node follow; None if it is unknown.
CountOf: TypeAlias = Callable[[Place], int | None]


# The least and the largest value of each number, by its name and its position in a tuple.
Box: TypeAlias = Mapping[tuple[str, int], tuple[float, float]]


class AcceptedValues:
    """Numbers for which the constructors of a chain raise no error.

    Constructors compare a number with bounds and with other numbers, as in `lr * proximal > 1`. So those that they
    accept beside the same others are an interval, and if they accept the corners of a box, which has the least and the
    largest value of each number, they accept all of it. A scheduler writes another number for each step: the box is
    made larger than one step needs, because each corner costs a construction of the chain. Groups of one chain share
    their boxes, one for each choice of what is off or no number.

    Args:
        tx: The chain.
        labels: The labels of the group.
        entries: The hyperparameters, by their names in a group.
    """

    def __init__(
        self,
        tx: GradientTransformation,
        labels: Mapping[Any, str],
        entries: Mapping[str, Entry],
    ):
        self._tx = tx
        self._entries = entries
        self._boxes: dict[Any, Box] = tx._once(
            ("boxes", *labels.items()), dict[Any, Box]
        )
        # Those that were checked last: at first by the constructor of the chain.
        self.values: Values = {name: entry.value for name, entry in entries.items()}
        self._box: Box = {}  # those that are accepted beside the last values

    def check(self, values: Values, changed: Iterable[str]) -> None:
        """Check values of which some have changed since the last check.

        Raises:
            TypeError, ValueError: If the constructor would raise it.
        """
        if not self._are_inside(values, changed):
            self._box = self._box_with(values)
        self.values = values

    def _construct(self, values: Values) -> None:
        places = {self._entries[name].place: value for name, value in values.items()}
        self._tx._replaced(places, checked=True)

    def _are_inside(self, values: Values, changed: Iterable[str]) -> bool:
        """Whether only numbers in the box have changed, of which none was or is off."""
        for name in changed:
            value, before = values[name], self.values[name]
            are_numbers = are_floats(value) and are_floats(before)
            if not are_numbers or len(items_of(value)) != len(items_of(before)):
                return False
            argument = self._entries[name].argument
            pairs = zip(items_of(value), items_of(before), strict=True)
            for i, (number, last) in enumerate(pairs):
                if number == last:
                    continue
                if argument.range_of(i).off in (number, last):
                    return False
                low, high = self._box.get((name, i), (math.inf, -math.inf))
                if not low <= number <= high:
                    return False
        return True

    def _box_with(self, values: Values) -> Box:
        """Return an accepted box that contains values.

        Raises:
            TypeError, ValueError: If the constructor would raise it.
        """
        key, point = self._sorted(values)
        if key is None:  # tensors, and what else its owner may write
            self._construct(values)
            return point
        if len(self._boxes) > MOST_BOXES:
            self._boxes.clear()
        box = self._boxes.get(key)
        if not box:
            key_before, before = self._sorted(self.values)
            box = before if key == key_before else {}
        outside = {
            side: number
            for side, (number, _) in point.items()
            if not (box and box[side][0] <= number <= box[side][1])
        }
        larger = self._reached(values, box, outside) if outside and box else box
        if not larger:
            self._construct(values)
        self._boxes[key] = larger or box or point
        return larger or point

    def _sorted(self, values: Values) -> tuple[Any, Box]:
        """Return what is off or no number, None if it may change, and the box of the other numbers alone."""
        others: list[Any] = []
        point: dict[tuple[str, int], tuple[float, float]] = {}
        are_constants = True
        for name, value in values.items():
            argument = self._entries[name].argument
            for i, item in enumerate(items_of(value)):
                if type(item) is float and item != argument.range_of(i).off:
                    point[name, i] = item, item
                    continue
                are_constants &= item is None or isinstance(item, CONSTANTS)
                others.append((name, i, type(item), item))
            others.append(type(value) is tuple and len(value))
        return tuple(others) if are_constants else None, point

    def _reached(
        self, values: Values, box: Box, outside: Mapping[tuple[str, int], float]
    ) -> Box:
        """Return a larger box that contains some numbers; an empty one if its corners are not accepted."""
        for share in (FAR, 0.0):
            larger = dict(box)
            for (name, i), number in outside.items():
                interval = self._entries[name].argument.range_of(i)
                low, high = larger[name, i]
                if number < low:
                    low = interval.between(number, interval.low, share)
                else:
                    high = interval.between(number, interval.high, share)
                larger[name, i] = low, high
            if self._are_accepted(values, larger):
                return larger
        return {}

    def _are_accepted(self, values: Values, box: Box) -> bool:
        """Whether the constructors accept the corners of a box, which has not too many, and the same other values."""
        corners = [tuple(dict.fromkeys(side)) for side in box.values()]
        if math.prod(map(len, corners)) > 2**MOST_SIDES:
            return False
        try:
            for corner in itertools.product(*corners):
                at_corner = dict(values)
                for (name, i), number in zip(box, corner, strict=True):
                    value = at_corner[name]
                    at_corner[name] = number
                    if isinstance(value, tuple):
                        at_corner[name] = (*value[:i], number, *value[i + 1 :])
                self._construct(at_corner)
        except (TypeError, ValueError, ArithmeticError):
            return False
        return True


class GroupSettings:
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
        labels: The label of each partition.
        params: The parameters of the group, as the optimizer last saw it.
        entries: The hyperparameters, by their names in the group.
        sources: Their values when the group was created, or schedules that replaced them.
        shown: What the group shows of each schedule that has not been overwritten.
        settled: The values of the last step, or those with which the group was created.
        codes: The label of the code of each slot that a parameter of the group has, or had before it became small.
        structure: What determines links and slots: the place and the template of each value, with `ARGUMENT` for each
            number, except those that are literally off. Another object after each change.
    """

    structure: Structure = ()
    _hyperparameters: Hyperparameters

    def __init__(
        self, tx: GradientTransformation, group: Group, labels: Mapping[Any, str]
    ):
        self.tx = tx
        self.group = group
        self.labels = labels
        self.params: list[Tensor] = list(group["params"])
        self.codes: dict[str, str] = {}
        self.entries = names_in_group(tx, labels)
        check_differentiable(group)
        # Whether a link reads a learning rate of this group, or a bound of one.
        self.reads_rate = False
        self._positions: dict[str, int] = {}
        for i, (name, entry) in enumerate(self.entries.items()):
            self._positions[name] = i
            self.reads_rate |= entry.argument.name in RATES
        self.sources: Values = {}
        self._defaults: Values = {}  # what the group had not specified
        for name, entry in self.entries.items():
            if name in group:
                self.sources[name] = entry.argument.check(self._put_builtin(name))
            else:
                self.sources[name] = group[name] = entry.value
                self._defaults[name] = entry.value
        # torch's schedulers require this key, even if no link reads it.
        if "lr" not in group:
            self._defaults["lr"] = group["lr"] = 0.0
        self.shown: Values = {
            name: group[name]
            for name, source in self.sources.items()
            if type(source) is not float and has_schedule(source)
        }
        self._clear()
        self._take(self.sources)

    def _clear(self) -> None:
        """Clear the caches."""
        # The group's contents and the values when `values` was last computed.
        self._seen: list[Any] = []
        self._accepted = AcceptedValues(self.tx, self.labels, self.entries)
        self._values: Values = self._accepted.values
        self._chains: dict[torch.device, tuple[Values, GradientTransformation]] = {}

    def follows_schedule(self, name: str) -> bool:
        return has_schedule(self.sources[name])

    # Before a step.

    def values(self) -> Values:
        """Return the present values, with a constructor's checks; a schedule whose number was not overwritten is kept.

        The result is the same object until the group changes.

        Raises:
            TypeError, ValueError: If the constructor would raise it.
        """
        contents = list(map(self.group.__getitem__, self.entries))
        if are_identical(contents, self._seen):
            return self._values
        values = dict(self._values)
        seen = self._seen or [UNSEEN] * len(contents)
        changed = []
        for name, content, before in zip(self.entries, contents, seen, strict=True):
            if content is not before:
                if _is_settled(content) and content is values.get(name, UNSEEN):
                    continue  # it was checked
                value = self._value(name)
                if name not in values or not is_same(value, values[name]):
                    changed.append(name)
                values[name] = value
        if changed:
            self._accepted.check(values, changed)
            self._values = values
        # Tensors, lists and arrays may be modified in place. Contents that were seen are none of these.
        unseen = itertools.compress(contents, map(operator.is_not, contents, seen))
        self._seen = [] if any(map(may_be_written, unseen)) else contents
        return self._values

    def _put_builtin(self, name: str) -> Any:
        """Return a value as a builtin, and put that in the place of another library's.

        A tensor or an array stays, as in torch: its owner and schedulers write to it in place.
        """
        content = self.group[name]
        if type(content) is float:
            return content
        if has_array(content):
            return without_arrays(content)
        value = self.group[name] = as_builtin(content)
        return value

    def _value(self, name: str) -> Any:
        value = self._put_builtin(name)
        if isinstance(value, list):  # JSON turns tuples into lists
            value = tuple(value)
        if name in self.shown and is_same(value, self.shown[name]):
            return self.sources[name]
        return self.entries[name].argument.check(value)

    def settle(self, values: Values) -> None:
        """Take checked values for the next step: note changed schedules, and change the structure if necessary."""
        numbers = self._changed_values(values)
        if numbers is not None:
            self.settled, self._hyperparameters = values, numbers
            return
        for name, value in values.items():
            if not has_schedule(value):
                self.shown.pop(name, None)
            elif value is not self.sources[name]:
                # `show` replaces it with its number.
                self.sources[name] = self.shown[name] = value
        self._take(values, self.structure)

    def _changed_values(self, values: Values) -> Hyperparameters | None:
        """Return the hyperparameters if only numbers that are arguments differ from those of the last step."""
        numbers = self._hyperparameters
        for name, value in values.items():
            before = self.settled[name]
            if value is before:
                continue
            if not (are_floats(value) and are_floats(before)):
                return None
            others = numbers.replaced(self.entries[name].place, items_of(value))
            if others is None:
                return None
            numbers = others
        return numbers

    def _take(
        self, values: Values, before: Structure = (), literals: bool = True
    ) -> None:
        """Change the structure to that of values; see `Hyperparameters`."""
        self.settled = values
        self._hyperparameters = self._hyperparameters_of(values, before, literals)
        if self._hyperparameters.structure != self.structure:
            self.structure = self._hyperparameters.structure
            self._chains = {}

    def _hyperparameters_of(
        self, values: Values, before: Structure, literals: bool = True
    ) -> Hyperparameters:
        template, numbers = None, []
        if literals and not before:
            template, numbers = self._template(values)
        key = "hyperparameters", *self.labels.items()
        known = self.tx._once(key, dict[Any, Hyperparameters])
        if template in known:
            return known[template].with_floats(numbers)
        entries = [
            entry._replace(value=values[name]) for name, entry in self.entries.items()
        ]
        hyperparameters = Hyperparameters(entries, before, literals)
        if template is not None:
            if len(known) >= MOST_BOXES:
                known.clear()
            known[template] = hyperparameters
        return hyperparameters

    def _template(self, values: Values) -> tuple[Any, list[float]]:
        """Return what values have in common that differ in floats alone, of which none is off, and these floats.

        It is None if some value is neither a float, a tuple of floats nor a constant.
        """
        template: list[Any] = []
        numbers: list[float] = []
        for name, entry in self.entries.items():
            value, off = values[name], entry.argument.range.off
            is_argument = entry.argument.kind != "named floats"
            if is_argument and are_floats(value):
                for item in items_of(value):
                    is_off = item == off
                    template.append(off if is_off else ARGUMENT)
                    if not is_off:
                        numbers.append(item)
                template.append(type(value) is tuple and len(value))
            elif _is_settled(value):
                template.append((type(value), value))
            else:
                return None, []
        return tuple(template), numbers

    # During a step.

    def chain(self, values: Values, device: torch.device) -> GradientTransformation:
        """Return the transformation with these values, converted to the tensors that rules receive for leaves there."""
        values_before, tx = self._chains.get(device, ({}, self.tx))
        # Tensors are compared by identity.
        if is_same(tuple(values_before.values()), tuple(values.values())):
            return tx
        hyperparameters = self._hyperparameters_of(values, self.structure)
        tensors = [number_on(device, item) for item in hyperparameters.values]
        tx = ChainOf(self.tx, hyperparameters.structure)(tensors)
        if not has_any(Tensor, values.values()):
            self._chains[device] = values, tx
        return tx

    def first_chain(
        self, device: torch.device, compares_rates: bool
    ) -> GradientTransformation:
        """Return the transformation that creates slots.

        It has the values of the last step, but the learning rate of construction if the first step of a warm-up, by a
        scheduler or by hand, may already have overwritten it.

        Args:
            device: The device of the slots.
            compares_rates: Whether a link compares later rates with that of construction.
        """
        first = dict(self.settled)
        has_scheduler = self.group.get("initial_lr") is not None
        if "lr" in first and (compares_rates or has_scheduler):
            first["lr"] = self.sources["lr"]
        return self.chain(first, device)

    def hyperparameters(self, count: Callable[[Place], int | Tensor]) -> list[Any]:
        """Return the numbers of the last settled values, with those of schedules at a count."""
        hyperparameters = self._hyperparameters
        if not hyperparameters.scheduled:
            return hyperparameters.values
        values = list(hyperparameters.values)
        for i in hyperparameters.scheduled:
            at = count(hyperparameters.places[i])
            schedule = values[i]
            values[i] = (
                schedule.at(at) if isinstance(at, int) else resolve(schedule, at)
            )
        return values

    # After a step, and when a checkpoint is loaded.

    def show(self, count: CountOf) -> None:
        """Write the next step's values of schedules into the group, unless they were overwritten."""
        for name, shown in self.shown.items():
            at = count(self.entries[name].place[0])
            content = self.group[name]
            if at is None or not (
                content is shown or is_same(as_builtin(content), shown)
            ):
                continue
            value = next_value(self.sources[name], at)
            self.shown[name] = self.group[name] = value
            # The schedule still applies, without a comparison; a NaN, which differs from itself, will be rejected.
            is_number = (
                value == value if type(value) is float else is_same(value, value)
            )
            if self._seen and is_number:
                self._seen[self._positions[name]] = value

    def loaded(self, group: Group) -> GroupSettings:
        """Return the settings of a group from a checkpoint, in which numbers that are off are literals.

        A schedule replaces the saved number, unless this number was written over a schedule. Beside a schedule in a
        tuple, the saved numbers stay.
        """
        settings = copy(self)
        overridden = group.pop(OVERRIDDEN, None) or ()
        settings.group = group
        settings._clear()
        settings.shown, settings.sources = {}, dict(self.sources)
        for name, source in self.sources.items():
            if not self.follows_schedule(name):
                group.setdefault(name, self.group[name])
                continue
            value = source
            if name in group:
                value = None
                if name not in overridden:
                    value = _with_schedules(source, group[name])
            if value is not None:
                value = self.entries[name].argument.check(value)
                group[name] = settings.shown[name] = settings.sources[name] = value
        values = settings.values()
        for name, value in values.items():
            if name not in settings.shown:
                group[name] = value
        settings._take(values)
        return settings

    def specified(self) -> Group:
        """Return the group without its unchanged defaults."""
        return {
            name: value
            for name, value in self.group.items()
            if name not in self._defaults or value is not self._defaults[name]
        }

    def of_copy(self, group: Group) -> GroupSettings:
        """Return the settings of another dict, in place of this one or of a part of its parameters."""
        settings = copy(self)
        settings.group = group
        settings.sources, settings.shown = dict(self.sources), dict(self.shown)
        settings._clear()
        for name in ("lr", "label", *self.entries):
            if name in self.group:
                group.setdefault(name, self.group[name])
        return settings

    def without_literals(self) -> GroupSettings:
        """Return these settings without literals: every number may be changed without a change of the slots."""
        settings = copy(self)
        settings._clear()
        settings._take(self.settled, literals=False)
        return settings

    def overridden(self) -> list[str] | None:
        """Return the names whose number was written over a schedule; None if the group has no schedules."""
        scheduled = [name for name in self.sources if self.follows_schedule(name)]
        if not scheduled:
            return None
        return [
            name
            for name in scheduled
            if name not in self.shown
            or not is_same(as_builtin(self.group[name]), self.shown[name])
        ]


def defaults_of(groups: list[GroupSettings]) -> dict[str, Any]:
    """Return the hyperparameters that all groups have, as the first group shows them at the start.

    OneCycleLR and CyclicLR read and write `betas` of every group if the defaults contain them. Otherwise they only
    write `momentum`, if the defaults contain it, so one group that has it is enough.
    """
    # Groups without labels, or with the same, have the same ones.
    different = list(
        {id(settings.entries): settings.entries for settings in groups}.values()
    )
    entries = {
        name: entry
        for name, entry in different[0].items()
        if all(name in others for others in different)
    }
    if "betas" not in entries:
        for others in different:
            if "momentum" in others:
                entries.setdefault("momentum", others["momentum"])
    defaults = {name: entry.value for name, entry in entries.items()}
    for name, value in defaults.items():
        if type(value) is not float and has_schedule(value):
            defaults[name] = next_value(value, 0)
    return defaults


def names_in_group(
    tx: GradientTransformation, labels: Mapping[Any, str] | None
) -> Mapping[str, Entry]:
    """Return the hyperparameters of a group with these labels by their names in it."""
    key = None if labels is None else tuple(labels.items())
    return tx._once(
        ("names in group", key), lambda: _names_in_group(tx._entries(labels))
    )


def _names_in_group(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return hyperparameters by their names in a group.

    A key that torch's schedulers write is never used as the name of a hyperparameter. A bound of the learning rate
    (`max_lr`) is shown as `lr`, which schedulers scale, if there is no other `lr`.
    """
    entries = list(entries)
    has_rate = any(entry.argument.name == "lr" for entry in entries)
    places = {entry.place for entry in entries}
    names = {}
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

    The names differ in an alias's branch for other leaves (the fallback of Muon), whose rate and decay follow the
    alias's, see `_of_fallback`. Names with an owner or a label are accepted in all groups. Hyperparameters that the
    branch does not read are removed.

    Returns:
        The name in the branch of each accepted name; None if the branch does not read it.
    """
    entries = names_in_group(tx, labels)
    outer, of_branch = tx._once(
        ("names of branch", *labels.items()), lambda: _names_of_branch(tx, labels)
    )
    new_names: dict[str, str | None] = dict(of_branch)
    values = {name: group.pop(name) for name in new_names if name in group}
    for name, value in values.items():
        new_name = new_names[name]
        if new_name is not None:
            group[new_name] = value
    for name, value in values.items():
        if new_names[name] is not None or name not in outer:
            continue
        for inner, number, is_clear in _of_fallback(outer[name], value, entries):
            group.setdefault(inner, number)
            if is_clear:
                new_names[name] = inner
    return new_names


def _names_of_branch(
    tx: GradientTransformation, labels: Mapping[Any, str]
) -> tuple[dict[str, Entry], dict[str, str | None]]:
    """Return the hyperparameters of the whole optimizer, and the name in a branch of each name that is accepted."""
    outer = {entry.name: entry for entry in tx._entries(labels, apart=False)}
    places = {name: entry.place for name, entry in outer.items()}
    for entry in tx._entries():
        for name in entry.names:
            if "." in name:
                places.setdefault(name, entry.place)
    names = {entry.place: name for name, entry in names_in_group(tx, labels).items()}
    return outer, {name: names.get(place) for name, place in places.items()}


def _of_fallback(
    outer: Entry, value: Any, entries: Mapping[str, Entry]
) -> Iterator[tuple[str, float, bool]]:
    """Yield the names and values of a fallback's numbers that follow from the alias's in a group, and whether clearly.

    A framework that makes groups knows only the names of the alias. Its decay is that of all parameters in the group,
    unless the fallback has none. Its rate multiplies the fallback's as it does the alias's own; by a factor of 10 and
    more, it is a rate for the fallback, which has another name.
    """
    node, argument = outer.place
    for name, entry in entries.items():
        place, inner_argument = entry.place
        numbers = (value, outer.value, entry.value)
        is_inside = place[: len(node)] == node and inner_argument == argument
        if not is_inside or not all(
            isinstance(number, float | int) for number in numbers
        ):
            continue
        if argument == "weight_decay" and entry.value:
            yield name, value, True
        elif argument == "lr" and outer.value and value < 10 * outer.value:
            factor = value / outer.value
            yield name, entry.value * factor, factor == 0 or factor > 0.1


def params_of(groups: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the parameters of groups, or their numbers in the groups of a state dict, in order."""
    return [param for group in groups for param in group["params"]]


def next_value(value: Any, count: int) -> Any:
    """Return the value of a schedule as a group shows it: a number, or a tuple of numbers."""
    if isinstance(value, tuple):
        return tuple(next_value(item, count) for item in value)
    number = value.at(count) if isinstance(value, Schedule) else value
    return number if type(number) is float else python_scalar(number)


# Functions of hyperparameter values.


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


def are_floats(value: Any) -> bool:
    """Whether a value, or each item of a tuple, is a plain float."""
    if type(value) is tuple:
        return FLOATS.issuperset(map(type, value))
    return type(value) is float


def has_array(value: Any) -> bool:
    """Whether a value, or any item of a tuple, is another library's array, which its owner may write in place."""
    return any(
        hasattr(item, "tolist") and hasattr(item, "__setitem__")
        for item in items_of(value)
        if not isinstance(item, Tensor)
    )


def without_arrays(value: Any) -> Any:
    """Return a value with the present numbers of its arrays."""
    return each_item(as_builtin, as_builtin(value))


def _is_settled(value: Any) -> bool:
    """Whether a value is a constant that nobody can write in place."""
    return are_floats(value) or type(value) in SETTLED


def may_be_written(value: Any) -> bool:
    """Whether a value, or any item of a tuple, is an object that its owner may write in place."""
    if _is_settled(value):
        return False
    return has_any(Tensor | list, [value]) or has_array(value)


def has_any(kind: Any, values: Iterable[Any]) -> bool:
    """Whether a value, or any item of a tuple, is an instance of a class."""
    return any(isinstance(item, kind) for value in values for item in items_of(value))


def _with_schedules(source: Any, loaded: Any) -> Any:
    """Return a loaded value with the schedules of the present one; None if it has another number of items."""
    ours = items_of(source)
    theirs = items_of(tuple(loaded) if isinstance(loaded, list) else loaded)
    if len(ours) != len(theirs):
        return None
    if not isinstance(source, tuple):
        return source
    return tuple(
        item if isinstance(item, Schedule) else other
        for item, other in zip(ours, theirs, strict=True)
    )
