"""Parameter groups: hyperparameter values that users and schedulers may overwrite, and the chain built from them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base.exact import Schedule, exact, python_scalar, resolve
from gradtx.transform import Entry, GradientTransformation

SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
# torch's schedulers that cycle momentum write this key into every group.
CYCLED = "base_momentum"
TAKE_CYCLES = ("momentum", "betas")
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


@dataclass(frozen=True)
class ChainOf:
    """A picklable function that returns a chain with other hyperparameter values.

    Attributes:
        tx: The chain.
        structure: Pairs of a hyperparameter's place and the form of its value.
    """

    tx: GradientTransformation
    structure: Any

    def __call__(self, tensors: list[Tensor]) -> GradientTransformation:
        given = iter(tensors)
        arguments: dict[tuple[Any, str], Any] = {}
        for place, form in self.structure:
            arguments[place] = _each(
                form, lambda item: next(given) if item == NUMBER else item
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
        sources: Their values when the group was created: numbers or schedules.
        live: The names of hyperparameters that still follow their schedule.
        shown: The number that each schedule shows in the group.
        forms: The form of each value, which determines links and slots: `NUMBER` in place of each number, except those
            that are literally off.
        first: The values with which slots are created.
        unused: Numbers of a checkpoint that this group's schedules have replaced, by name.
    """

    tx: GradientTransformation
    group: dict[str, Any]
    entries: dict[str, Entry]
    sources: dict[str, Any]
    live: set[str]
    shown: dict[str, Any]
    forms: dict[str, Any]
    first: dict[str, Any]
    unused: dict[str, Any]
    # Whether to skip the warning about a scheduler that overrides a schedule.
    expects_scheduler = False
    # Whether to skip the warning about a cycled momentum that no link reads.
    expects_cycle = False
    # The cycled momentum that was last copied to the betas.
    _followed: Any = None

    def __init__(
        self,
        tx: GradientTransformation,
        group: dict[str, Any],
        labels: Mapping[Any, str],
    ):
        self.tx = tx
        self.group = group
        self.entries = names_in_group(tx._entries(labels))
        check_differentiable(group)
        self.sources = {}
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
        self.live = {
            name for name, source in self.sources.items() if _any(_is_schedule, source)
        }
        self.shown = {}
        self.unused = {}
        self.forms = {
            name: self._form(name, source, None)
            for name, source in self.sources.items()
        }
        self.first = dict(self.sources)
        self._forget()

    def _forget(self) -> None:
        """Clear the caches derived from the group's values."""
        self._cached: tuple[Any, GradientTransformation] | None = None
        # The group's contents when `_values` was last computed.
        self._seen: Mapping[str, Any] = {}
        self._values: Mapping[str, Any] = {}
        self._settled: Any = None  # the values last passed to `settle`
        # The values and their structure, if they contain no schedule.
        self._structure: tuple[Any, Any] | None = None

    def _form(self, name: str, value: Any, old: Any) -> Any:
        """Return the form of a value; a number that is off is a literal unless it was not in the `old` form."""
        argument = self.entries[name].argument
        if argument.kind == "named floats":
            return value

        def form_of(item: Any, before: Any) -> Any:
            is_literal = is_off(item, argument.range.off) and before != NUMBER
            return NUMBER if _is_number(item) and not is_literal else item

        if isinstance(value, tuple) and not isinstance(old, tuple):
            old = (old,) * len(value)
        if isinstance(value, tuple) and len(old) != len(value):
            old = (None,) * len(value)
        return _zipped(form_of, value, old)

    def defaults(self) -> dict[str, Any]:
        """Return the default hyperparameters of a group, which are also constructor arguments of the optimizer."""
        defaults: dict[str, Any] = {}
        for name, entry in self.entries.items():
            follows = _any(_is_schedule, entry.value)
            defaults[name] = next_value(entry.value, 0) if follows else entry.value
        return defaults

    # Before a step.

    def values(self) -> Mapping[str, Any]:
        """Return the present values, with a constructor's checks; a schedule whose number was not overwritten is kept.

        The result is the same object until the group changes.

        Raises:
            TypeError, ValueError: If the constructor would raise it.
        """
        self._follow_cycle()
        group, seen = self.group, self._seen
        present: dict[str, Any] = {}
        for name in self.entries:
            value = group[name]
            if name in seen and value is seen[name]:
                present[name] = self._values[name]
            else:
                present[name] = self._value(name, value)
        if len(seen) == len(present) and all(
            map(operator.is_, present.values(), self._values.values())
        ):
            return self._values
        arguments = {self.entries[name].place: present[name] for name in present}
        self.tx._replaced(arguments, checked=True)
        self._values = present
        self._seen = {
            name: group[name] for name in present if not _any(_may_change, group[name])
        }
        return present

    def _follow_cycle(self) -> None:
        """Copy a momentum that OneCycleLR or CyclicLR has written to the first of this group's betas.

        These schedulers write betas only if the first group has them, but the only group with betas may be a later one,
        such as that of a fallback.
        """
        group = self.group
        if (
            CYCLED not in group
            or "momentum" in self.entries
            or "betas" not in self.entries
        ):
            return
        momentum, (_, *others) = group.get("momentum"), group["betas"]
        # Only once: betas that were written since then take precedence.
        if momentum is not None and momentum != self._followed:
            self._followed = momentum
            group["betas"] = (momentum, *others)

    def ignores_cycle(self) -> bool:
        """Whether OneCycleLR or CyclicLR has written a momentum that no link reads."""
        reads = self.entries.keys()
        return (
            CYCLED in self.group
            and "momentum" in self.group
            and bool(reads)
            and reads.isdisjoint(TAKE_CYCLES)
        )

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, list):  # JSON turns tuples into lists
            value = tuple(value)
        if name in self.live and is_same(value, self.shown[name]):
            return self.sources[name]
        return self.entries[name].argument.check_written(value)

    def settle(self, values: Mapping[str, Any]) -> bool:
        """Record changes since the last step, and return whether links or slots may have changed."""
        if values is self._settled:
            return False
        self._settled = values
        for name, value in values.items():
            is_schedule = _any(_is_schedule, value)
            if value is self.sources[name]:
                continue
            if is_schedule:
                # `show` replaces it with its number.
                self.sources[name] = self.shown[name] = value
                self.live.add(name)
            else:
                self.live.discard(name)
        return self._take_forms(values, self.forms)

    def _take_forms(self, values: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
        """Set the forms of values, given their old forms, and return whether links or slots may have changed."""
        changed = False
        for name, value in values.items():
            form = self._form(name, value, old[name])
            if form != self.forms[name]:
                changed = True
                self.forms[name] = form
                self.first[name] = value
                self._cached = None
        return changed

    def start_with(self, values: Mapping[str, Any]) -> None:
        """Create slots with these values, because no step has used the existing slots.

        The learning rate remains that of construction, since a warm-up may already have overwritten it in the group.
        """
        for name, value in values.items():
            if name != "lr":
                self.first[name] = value

    # During a step.

    def chain(
        self, values: Mapping[str, Any], device: torch.device
    ) -> GradientTransformation:
        """Return the transformation with these values, converted to the tensors that rules receive."""
        key = tuple(values.items())
        if self._cached is not None and is_same(self._cached[0], key):
            return self._cached[1]

        def as_tensor(item: Any, form: Any) -> Any:
            is_number = form == NUMBER and isinstance(item, float)
            return exact(item, device) if is_number else item

        arguments: dict[tuple[Any, str], Any] = {}
        for name, value in values.items():
            form = self._form(name, value, self.forms[name])
            arguments[self.entries[name].place] = _zipped(as_tensor, value, form)
        tx = self.tx._replaced(arguments, checked=False)
        has_tensors = any(_any(_is_tensor, value) for value in values.values())
        self._cached = None if has_tensors else (key, tx)
        return tx

    def structure(
        self, values: Mapping[str, Any], count: Callable[[Entry], int | Tensor]
    ) -> tuple[Any, list[Any]]:
        """Return the forms of the values by their places, and the numbers that the forms leave out."""
        if self._structure is not None and values is self._structure[0]:
            return self._structure[1]
        numbers: list[Any] = []
        for name, value in values.items():

            def take(item: Any, form: Any, entry: Entry = self.entries[name]) -> None:
                if isinstance(item, Schedule):
                    at = count(entry)
                    item = (
                        resolve(item, at)
                        if isinstance(at, Tensor)
                        else next_value(item, at)
                    )
                if form == NUMBER:
                    numbers.append(item)

            _zipped(take, value, self.forms[name])
        structure = tuple(
            (self.entries[name].place, form) for name, form in self.forms.items()
        )
        if not any(_any(_is_schedule, value) for value in values.values()):
            self._structure = values, (structure, numbers)
        return structure, numbers

    def chain_of(
        self, structure: Any
    ) -> Callable[[list[Tensor]], GradientTransformation]:
        """Invert `structure`: return a function that replaces the placeholders with 0-d tensors."""
        # Not a closure: shared programs must not keep the group alive.
        return ChainOf(self.tx, structure)

    # After a step, and when a checkpoint is loaded.

    def show(self, count: Callable[[Entry], int | None]) -> None:
        """Write the next step's values of schedules into the group, if their counts are known."""
        for name in self.live:
            at = count(self.entries[name])
            if at is not None:
                self.shown[name] = self.group[name] = next_value(self.sources[name], at)

    def show_exactly(self, count: Callable[[Entry], int]) -> None:
        """Correct schedule values whose counts the host did not know; overwritten values are kept."""
        for name in self.live:
            if is_same(self.group[name], self.shown[name]):
                self.shown[name] = self.group[name] = next_value(
                    self.sources[name], count(self.entries[name])
                )

    def loaded(
        self,
        group: dict[str, Any],
        literal: bool | None,
        count: Callable[[Entry], int],
    ) -> GroupView:
        """Return the view of a group from a checkpoint.

        Args:
            group: The saved group.
            literal: Whether every saved number that is off is literally off (True), none of them (False), or only those
                that already are literally off in this view (None).
            count: Returns the saved count of the clock that a hyperparameter follows.
        """
        view = copy(self)
        overridden = group.pop(OVERRIDDEN, None)
        view.group = group
        # The saved betas contain it.
        view._followed = group.get("momentum")
        view._forget()
        view._follow_schedules(self.group, overridden, count)
        values = view.values()
        view.live = {name for name in view.live if values[name] is self.sources[name]}
        for name, value in values.items():
            if name not in view.live:
                group[name] = value
        view.forms, view.first = dict(self.forms), dict(self.first)
        old = self.forms
        if literal is not None:
            old = dict.fromkeys(self.forms, None if literal else NUMBER)
        view._take_forms(values, old)
        return view

    def overridden(self) -> list[str] | None:
        """Return the names whose number was written over a schedule; None if the group has no schedules."""
        with_schedule: list[str] = []
        for name, source in self.sources.items():
            if _any(_is_schedule, source):
                with_schedule.append(name)
        if not with_schedule:
            return None
        return [
            name
            for name in with_schedule
            if name not in self.live or not is_same(self.group[name], self.shown[name])
        ]

    def _follow_schedules(
        self,
        defaults: Mapping[str, Any],
        overridden: Collection[str] | None,
        count: Callable[[Entry], int],
    ) -> None:
        """Add missing values to a loaded group, and replace numbers by those of this optimizer's schedules.

        Args:
            defaults: The values of hyperparameters without a schedule that the group lacks.
            overridden: The names whose loaded number had overridden a schedule; None if the checkpoint does not say.
            count: Returns the saved count of the clock that a hyperparameter follows.
        """
        self.live, self.shown, self.unused = set(), {}, {}
        for name, source in self.sources.items():
            if not _any(_is_schedule, source):
                self.group.setdefault(name, defaults[name])
                continue
            shown = self.shown[name] = next_value(source, count(self.entries[name]))
            self.live.add(name)
            loaded = self.group.setdefault(name, shown)
            if (
                name in (overridden or ())
                or is_same(loaded, shown)
                or not _differs_by_schedules(source, loaded)
            ):
                continue
            self.group[name] = shown
            if overridden is None:
                self.unused[name] = loaded


def cycled_alike(views: list[GroupView]) -> dict[str, Any]:
    """Return the first group's defaults, with the key that schedulers may cycle in all groups.

    OneCycleLR and CyclicLR read `betas` of every group if the defaults contain them, and otherwise write `momentum`.
    If the groups of a partition differ, the defaults contain `momentum`, which groups with betas follow.
    """
    defaults = views[0].defaults()
    cycled = [name for view in views for name in TAKE_CYCLES if name in view.entries]
    if cycled and not all("betas" in view.entries for view in views):
        betas = defaults.pop("betas", None)
        defaults.setdefault("momentum", betas[0] if betas else 0.0)
    return defaults


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
    tx: GradientTransformation, group: dict[str, Any], labels: Mapping[Any, str]
) -> set[str]:
    """Rename a group's hyperparameters from the names of the whole optimizer to the names in the group's branch.

    The names differ in an alias's branch for other leaves (the fallback of Muon). Names with an owner or a label are
    accepted in all groups. Hyperparameters that the branch does not read are removed.

    Returns:
        The old names of the hyperparameters that the branch reads.
    """
    whole = {entry.name: entry.place for entry in tx._entries(labels, apart=False)}
    for entry in tx._entries():
        for name in entry.names:
            if "." in name:
                whole.setdefault(name, entry.place)
    names_of_branch: dict[Any, str] = {}
    for name, entry in names_in_group(tx._entries(labels)).items():
        names_of_branch[entry.place] = name
    read: set[str] = set()
    moved: dict[str, Any] = {}
    for name, place in whole.items():
        if name not in group:
            continue
        if names_of_branch.get(place) == name:
            read.add(name)
        else:
            moved[name] = group.pop(name)
    # Only now, because a new name may be the old name of another hyperparameter.
    for name, value in moved.items():
        place = whole[name]
        if place in names_of_branch:
            group[names_of_branch[place]] = value
            read.add(name)
    return read


def unread(
    tx: GradientTransformation,
    given: Mapping[str, Any],
    read: Collection[str],
    view: GroupView,
    labels: Mapping[Any, str],
) -> dict[str, str]:
    """Return keys of a user's group that another branch or no group reads, with the names that this group reads.

    Args:
        tx: The optimizer's transformation.
        given: The user's group.
        read: The keys that were read.
        view: The resulting group.
        labels: Its labels, by the keys of their selectors.
    """
    shown = {entry.place: entry.name for entry in tx._entries(labels, apart=False)}
    places = tx._places()
    meant: dict[str, str] = {}
    for key in given.keys() - {*read, *SCHEDULER_KEYS}:
        label, _, argument = key.rpartition(".")
        if key not in places and label not in labels.values():
            continue
        for name, entry in view.entries.items():
            is_argument = argument == entry.argument.name
            if is_argument and not is_same(given[key], view.group[name]):
                meant[key] = shown[entry.place]
    return meant


def params_of(groups: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the parameters of groups, or their numbers in the groups of a state dict, in order."""
    params: list[Any] = []
    for group in groups:
        params.extend(group["params"])
    return params


def next_value(value: Any, count: int) -> Any:
    """Return the value of a schedule as a group shows it: a number, or a tuple of numbers."""

    def as_number(item: Any) -> Any:
        if isinstance(item, Schedule):
            item = resolve(item, count)
        return python_scalar(item)

    return _each(value, as_number)


# Functions of hyperparameter values. A value is a number, a schedule, another option, or a tuple of these.


def is_same(a: Any, b: Any) -> bool:
    """Whether two values are equal, where tensors are compared by identity."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)


def _differs_by_schedules(source: Any, loaded: Any) -> bool:
    """Whether a loaded value has the numbers of the present one wherever that is not a schedule."""
    if not isinstance(source, tuple):
        return True
    if not isinstance(loaded, tuple | list) or len(loaded) != len(source):
        return False
    return all(
        _is_schedule(ours) or is_same(ours, theirs)
        for ours, theirs in zip(source, loaded, strict=True)
    )


def _is_schedule(value: Any) -> bool:
    return isinstance(value, Schedule)


def _may_change(value: Any) -> bool:
    """Whether a value can be modified in place."""
    return isinstance(value, Tensor | list)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | Tensor | Schedule)


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to a value, or to each item of a tuple."""
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def _any(test: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value, or any item of a tuple, passes a test."""
    return any(map(test, value)) if isinstance(value, tuple) else test(value)


def _zipped(function: Callable[[Any, Any], Any], value: Any, other: Any) -> Any:
    """Apply `function` to two values, or to the corresponding items of two tuples."""
    if isinstance(value, tuple):
        return tuple(map(function, value, other))
    return function(value, other)
