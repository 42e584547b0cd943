"""Parameter groups: hyperparameter values that users and schedulers may overwrite, and the chain built from them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base.exact import Schedule, exact, python_scalar, resolve
from gradtx.base.messages import describe
from gradtx.transform import Entry, GradientTransformation

SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
# torch's schedulers that cycle momentum write this key into every group.
CYCLED = "base_momentum"
TAKE_CYCLES = ("momentum", "betas")
NUMBER = "a number"  # placeholder for a number in a structure
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
        structure: Pairs of a hyperparameter's place and its value, in which `NUMBER` replaces each number.
    """

    tx: GradientTransformation
    structure: Any

    def __call__(self, tensors: list[Tensor]) -> GradientTransformation:
        given = iter(tensors)
        arguments: dict[tuple[Any, str], Any] = {}
        for place, value in self.structure:
            arguments[place] = _each(
                value, lambda item: next(given) if _is_placeholder(item) else item
            )
        return self.tx._replaced(arguments, checked=False)


def _is_placeholder(item: Any) -> bool:
    return isinstance(item, str) and item == NUMBER


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
        literal: Whether each number was literally off, in the shape of the value (a bool or a tuple of bools).
        first: The values with which slots are created.
        unused: Numbers of a checkpoint that this group's schedules have replaced, by name.
    """

    tx: GradientTransformation
    group: dict[str, Any]
    entries: dict[str, Entry]
    sources: dict[str, Any]
    live: set[str]
    shown: dict[str, Any]
    literal: dict[str, Any]
    first: dict[str, Any]
    unused: Mapping[str, Any] = {}
    # Whether to skip the warning about a scheduler that overrides a schedule.
    expects_scheduler = False
    # Whether to skip the warning about a cycled momentum that no link reads.
    expects_cycle = False
    # The cycled momentum that was last copied to the betas.
    _followed: Any = None
    # Caches derived from the group's values.
    _cached: tuple[Any, GradientTransformation] | None = None
    # The group's contents when `_values` was last computed.
    _seen: Mapping[str, Any] = {}
    _values: Mapping[str, Any] = {}
    _checked: Any = None  # the values last passed to `check`
    _settled: Any = None  # the values last passed to `settle`
    # The values and their structure, if they contain no schedule.
    _structure: tuple[Any, Any] | None = None

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
        self.literal = {
            name: self._is_literal(name, source)
            for name, source in self.sources.items()
        }
        self.first = dict(self.sources)
        self._forget()

    def _forget(self) -> None:
        """Clear the caches derived from the group's values."""
        self._cached = None
        self._seen = {}
        self._values = {}
        self._checked = None
        self._settled = None
        self._structure = None

    def _is_literal(self, name: str, value: Any) -> Any:
        """Whether a number, or each number of a tuple, is literally off."""
        off = self.entries[name].argument.range.off
        return _each(value, lambda item: is_off(item, off))

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

    def check(self, values: Mapping[str, Any]) -> None:
        """Run the constructor's checks on these values in combination."""
        if values is self._checked:
            return
        arguments = {self.entries[name].place: value for name, value in values.items()}
        self.tx._replaced(arguments, checked=True)
        self._checked = values

    def settle(self, values: Mapping[str, Any]) -> bool:
        """Record changes since the last step, and return whether links or slots may have changed."""
        if values is self._settled:
            return False
        self._settled = values
        changed = False
        for name, value in values.items():
            if value is not self.sources[name] and (
                name in self.live or _any(_is_schedule, value)
            ):
                self._follow(name, value)
            if self._is_switched(name, value):
                changed = True
                self.literal[name] = self._still_literal(name, value)
                self.first[name] = value
                self._cached = None
        return changed

    def is_switched(self, values: Mapping[str, Any]) -> bool:
        """Whether links or slots may have changed, without recording it."""
        return values is not self._settled and any(
            self._is_switched(name, value) for name, value in values.items()
        )

    def _is_switched(self, name: str, value: Any) -> bool:
        return self._still_literal(name, value) != self.literal[
            name
        ] or _differs_in_structure(value, self.first[name])

    def _still_literal(self, name: str, value: Any) -> Any:
        return _both(self.literal[name], self._is_literal(name, value))

    def _follow(self, name: str, value: Any) -> None:
        """Replace the source of a hyperparameter with a number or schedule that was written into the group."""
        self.live.discard(name)
        if _any(_is_schedule, value):
            # `show` replaces it with its number.
            self.sources[name] = self.shown[name] = value
            self.live.add(name)

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

        def as_tensor(item: Any) -> Any:
            return exact(item, device) if isinstance(item, float) else item

        arguments: dict[tuple[Any, str], Any] = {}
        for name, value in values.items():
            arguments[self.entries[name].place] = self._map_numbers(
                name, value, as_tensor
            )
        tx = self.tx._replaced(arguments, checked=False)
        has_tensors = any(_any(_is_tensor, value) for value in values.values())
        self._cached = None if has_tensors else (key, tx)
        return tx

    def structure(
        self, values: Mapping[str, Any], count: Callable[[Entry], int | Tensor]
    ) -> tuple[Any, list[Any]]:
        """Return the structure of the values, which determines links and slots, and the numbers it leaves out."""
        if self._structure is not None and values is self._structure[0]:
            return self._structure[1]
        numbers: list[Any] = []
        structure: list[tuple[Any, Any]] = []
        for name, value in values.items():
            entry = self.entries[name]

            def take(item: Any, entry: Entry = entry) -> str:
                if isinstance(item, Schedule):
                    at = count(entry)
                    item = (
                        resolve(item, at)
                        if isinstance(at, Tensor)
                        else next_value(item, at)
                    )
                numbers.append(item)
                return NUMBER

            structure.append((entry.place, self._map_numbers(name, value, take)))
        if not any(_any(_is_schedule, value) for value in values.values()):
            self._structure = values, (tuple(structure), numbers)
        return tuple(structure), numbers

    def chain_of(
        self, structure: Any
    ) -> Callable[[list[Tensor]], GradientTransformation]:
        """Invert `structure`: return a function that replaces the placeholders with 0-d tensors."""
        # Not a closure: shared programs must not keep the group alive.
        return ChainOf(self.tx, structure)

    def _map_numbers(
        self, name: str, value: Any, function: Callable[[Any], Any]
    ) -> Any:
        """Apply `function` to a hyperparameter's numbers, except literals and lists of floats, which are kept."""
        if self.entries[name].argument.kind == "named floats":
            return value
        if not isinstance(value, tuple):
            return (
                function(value)
                if _is_number(value) and not self.literal[name]
                else value
            )
        mapped: list[Any] = []
        for item, literal in zip(value, self.literal[name], strict=True):
            mapped.append(function(item) if _is_number(item) and not literal else item)
        return tuple(mapped)

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
        view = GroupView.__new__(GroupView)
        view.__dict__.update(self.__dict__)
        overridden = group.pop(OVERRIDDEN, None)
        if not isinstance(overridden, list | None):
            raise ValueError(
                f"load_state_dict: {OVERRIDDEN!r} of a group is {describe(overridden)}, needs a list of names"
            )
        view.group = group
        # The saved betas contain it.
        view._followed = group.get("momentum")
        view._forget()
        view._complete(self.group, count)
        view._follow_schedules(overridden)
        values = view.values()
        view.live = {name for name in view.live if values[name] is self.sources[name]}
        for name, value in values.items():
            if name not in view.live:
                group[name] = value
        view._take_structure(values, self, literal)
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

    def _follow_schedules(self, overridden: Collection[str] | None) -> None:
        """Replace loaded numbers by the values of this group's schedules, unless they had overridden a schedule.

        Args:
            overridden: The names whose loaded number had overridden a schedule; None if the checkpoint does not say.
        """
        unused: dict[str, Any] = {}
        for name in self.live:
            loaded, shown = self.group[name], self.shown[name]
            if name in (overridden or ()) or is_same(loaded, shown):
                continue
            if not _differs_by_schedules(self.sources[name], loaded):
                continue
            self.group[name] = shown
            if overridden is None:
                unused[name] = loaded
        self.unused = unused

    def _complete(
        self, defaults: Mapping[str, Any], count: Callable[[Entry], int]
    ) -> None:
        """Add missing values to the group: schedule values at their counts, and defaults."""
        self.live = set()
        self.shown = {}
        for name, entry in self.entries.items():
            if _any(_is_schedule, self.sources[name]):
                self.live.add(name)
                self.shown[name] = next_value(self.sources[name], count(entry))
                self.group.setdefault(name, self.shown[name])
            self.group.setdefault(name, defaults[name])

    def _take_structure(
        self,
        values: Mapping[str, Any],
        old: GroupView,
        literal: bool | None,
    ) -> None:
        """Set the values that determine links and slots, based on the view before loading."""
        self.literal = {}
        self.first = dict(old.first)
        for name, value in values.items():
            off = self._is_literal(name, value)
            if literal is None:
                self.literal[name] = _both(old.literal[name], off)
            else:
                self.literal[name] = _each(off, lambda item: item and literal)
            switched_off = literal and _any(bool, off)
            if (
                switched_off
                or _length(value) != _length(old.first[name])
                or not _any(_is_number, value)
            ):
                self.first[name] = value


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
        for name in (entry.full, entry.labelled):
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
    names: dict[Any, str] = {}
    known: set[str] = set()
    for entry in tx._entries(labels, apart=False):
        names[entry.place] = entry.name
        known.update((entry.name, entry.full, entry.labelled))
    meant: dict[str, str] = {}
    for name, entry in view.entries.items():
        argument = entry.argument.name
        others = {*known, *(f"{label}.{argument}" for label in labels.values())}
        for key in given.keys() & others - {*read, *SCHEDULER_KEYS}:
            is_argument = key.rpartition(".")[2] == argument
            if is_argument and not is_same(given[key], view.group[name]):
                meant[key] = names[entry.place]
    return meant


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


def _length(value: Any) -> int | None:
    """Return the number of items of a tuple, 1 for a single value, None for None."""
    if isinstance(value, tuple):
        return len(value)
    return None if value is None else 1


def _differs_in_structure(value: Any, other: Any) -> bool:
    """Whether links or slots may differ between two values: in presence, length, or a non-numeric option."""
    if _length(value) != _length(other):
        return True
    return not _any(_is_number, value) and value != other


def _both(a: Any, b: Any) -> Any:
    """Return `a and b`, item by item for tuples; `b` if their lengths differ."""
    if not isinstance(a, tuple):
        return a and b
    if len(a) != len(b):
        return b
    return tuple(x and y for x, y in zip(a, b, strict=True))
