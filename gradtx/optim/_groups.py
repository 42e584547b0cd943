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
from gradtx.base.messages import describe, warn_user
from gradtx.transform import Entry, GradientTransformation

SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
# torch's schedulers that cycle momentum write this key into every group.
CYCLED = "base_momentum"
TAKE_CYCLES = ("momentum", "betas")
NUMBER = "a number"  # placeholder for a number in the form of a value
# The key in a saved group of the names whose number was written over a schedule.
OVERRIDDEN = "overridden"
# The key in a saved group of the labels of the codes of slots.
CODES = "codes"
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
# Hyperparameters by their names in a group.
Values: TypeAlias = Mapping[str, Any]
# Returns the count of the clock that a hyperparameter follows.
CountOf: TypeAlias = Callable[[Entry], int]
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
                form, lambda item: next(given) if item == NUMBER else item
            )
        return self.tx._replaced(arguments, checked=False)


class GroupView:
    """The hyperparameters of one parameter group.

    Rules receive the group's numbers as 0-d float64 tensors. A number that was literally off (0.0) when the group was
    created stays a literal until it is overwritten by another value. The group's links and slots then change.

    Args:
        owner: The optimizer's class, for messages.
        tx: The optimizer's transformation.
        group: The group's dict. Missing hyperparameters are added to it.
        labels: The label of each partition, by the key of its selector.
        count: Returns the count of the clock that a hyperparameter follows.

    Attributes:
        tx: The optimizer's transformation.
        group: The group's dict.
        entries: The hyperparameters, by their names in the group.
        sources: Their values when the group was created, or schedules that replaced them.
        shown: The number that the group shows for each schedule that has not been overwritten.
        structure: What determines links and slots: the place and the form of each value, with `NUMBER` in place of each
            number, except those that are literally off. Another object after each change.
        unused: Numbers of a checkpoint that this group's schedules have replaced, by name.
        expects_scheduler: Whether to skip the warning about a scheduler that overrides a schedule.
    """

    structure: Structure

    def __init__(
        self,
        owner: str,
        tx: GradientTransformation,
        group: Group,
        labels: Mapping[Any, str],
        count: CountOf,
    ):
        self._owner = owner
        self.tx = tx
        self.group = group
        self.entries = names_in_group(tx._entries(labels))
        check_differentiable(group)
        self.sources: dict[str, Any] = {}
        for name, entry in self.entries.items():
            # A tensor is not copied, as in torch: its owner and schedulers write to it in place.
            self.sources[name] = (
                entry.argument.check(group[name]) if name in group else entry.value
            )
            group.setdefault(name, self.sources[name])
        # torch's schedulers require this key, even if no link reads it.
        group.setdefault("lr", 0.0)
        self.shown: dict[str, Any] = {
            name: None for name, source in self.sources.items() if has_schedule(source)
        }
        self.show(count)
        self.unused: dict[str, Any] = {}
        self.expects_scheduler = False
        # Whether a cycled momentum that no link reads has been reported.
        self._expects_cycle = False
        # The cycled momentum that was last copied to the betas.
        self._followed: Any = None
        self._forms: dict[str, Any] = {}
        self._clear(self.sources)
        self._take_forms(self.sources, dict.fromkeys(self.entries))

    def _clear(self, settled: Values) -> None:
        """Clear the caches; `settled` are the values of the last step."""
        self._settled = settled
        # The group's contents when `_values` was last computed.
        self._seen: Values = {}
        self._values: Values = {}
        self._chain: tuple[Any, GradientTransformation] | None = None
        self._numbers: tuple[Any, list[Any]] | None = None

    def _form(self, name: str, value: Any, old: Any) -> Any:
        """Return the form of a value; a number that is off is a literal unless it was not in the `old` form."""
        argument = self.entries[name].argument
        if argument.kind == "named floats":
            return value

        def form_of(item: Any, before: Any) -> Any:
            is_literal = is_off(item, argument.range.off) and before != NUMBER
            return NUMBER if _is_number(item) and not is_literal else item

        if isinstance(value, tuple) and (old is None or len(old) != len(value)):
            old = (None,) * len(value)
        return _zipped(form_of, value, old)

    def _take_forms(self, values: Values, old: Values) -> None:
        """Change the structure to that of values, given their old forms."""
        forms = {name: self._form(name, values[name], old[name]) for name in values}
        if forms != self._forms or not forms:
            self._forms = forms
            self._chain = None
            self.structure = tuple(
                (self.entries[name].place, form) for name, form in forms.items()
            )

    def defaults(self) -> dict[str, Any]:
        """Return the default hyperparameters of a group, which are also constructor arguments of the optimizer."""
        defaults: dict[str, Any] = {}
        for name, entry in self.entries.items():
            follows = has_schedule(entry.value)
            defaults[name] = next_value(entry.value, 0) if follows else entry.value
        return defaults

    # Before a step.

    def values(self) -> Values:
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
        self.check_schedulers(attaching=False)
        self._values = present
        self._seen = {
            name: group[name] for name in present if not _any(_may_change, group[name])
        }
        return present

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, list):  # JSON turns tuples into lists
            value = tuple(value)
        if name in self.shown and is_same(value, self.shown[name]):
            return self.sources[name]
        return self.entries[name].argument.check(value)

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

    def check_schedulers(self, attaching: bool) -> None:
        """Warn, once each, about what a torch scheduler writes to a schedule, or to a momentum that no link reads.

        Args:
            attaching: Whether a scheduler wraps `step`; others are seen once they have written a rate.

        Raises:
            ValueError: If a scheduler would multiply a schedule that starts at 0.
        """
        group, source = self.group, self.sources.get("lr")
        is_overwritten = "lr" in self.shown and not is_same(
            group["lr"], self.shown["lr"]
        )
        if (
            "initial_lr" in group  # a key that torch's schedulers add
            and isinstance(source, Schedule)
            and (attaching or is_overwritten)
            and not self.expects_scheduler
        ):
            self._report_scheduler(source)
        if (
            not attaching
            and not self._expects_cycle
            and CYCLED in group
            and "momentum" in group
            and self.entries
            and self.entries.keys().isdisjoint(TAKE_CYCLES)
        ):
            self._expects_cycle = True
            label = group.get("label")
            which = "a group" if label is None else f"the group {label!r}"
            warn_user(
                f"{self._owner}: an LRScheduler cycles the momentum of {which}, where no link has a momentum or betas; "
                "its rate follows the scheduler. cycle_momentum=False leaves momenta unchanged",
                UserWarning,
            )

    def _report_scheduler(self, source: Schedule) -> None:
        """Warn that a scheduler writes a learning rate that follows a schedule, or raise an error."""
        first = next_value(source, 0)
        schedule = describe(source)
        remedy = (
            "pass a number as lr to the optimizer, and the schedule as a scheduler to the trainer: "
            f"gradtx.as_lr_scheduler(optimizer, {schedule})"
        )
        if first == 0:
            del self.group["initial_lr"]
            raise ValueError(
                f"{self._owner}: the lr of a group follows {schedule}, which starts at 0, and an LRScheduler "
                f"multiplies this first value, so the rate would stay 0 for the whole run; {remedy}"
            )
        self.expects_scheduler = True
        warn_user(
            f"{self._owner}: the lr of a group follows {schedule}, and an LRScheduler now writes it as well: it "
            f"overrides the schedule with multiples of the schedule's first value, {first}; {remedy}",
            UserWarning,
        )

    def settle(self, values: Values) -> None:
        """Take checked values for the next step: note changed schedules, and change the structure if necessary."""
        if values is self._settled:
            return
        self._settled = values
        for name, value in values.items():
            if not has_schedule(value):
                self.shown.pop(name, None)
            elif value is not self.sources[name]:
                # `show` replaces it with its number.
                self.sources[name] = self.shown[name] = value
        self._take_forms(values, self._forms)

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
            form = self._form(name, value, self._forms[name])
            arguments[self.entries[name].place] = _zipped(as_tensor, value, form)
        tx = self.tx._replaced(arguments, checked=False)
        has_tensors = any(_any(_is_tensor, value) for value in values.values())
        self._chain = None if has_tensors else (values, tx)
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

            _zipped(take, value, self._forms[name])
        if not any(map(has_schedule, values.values())):
            self._numbers = values, numbers
        return numbers

    def chain_of(
        self, structure: Structure
    ) -> Callable[[list[Tensor]], GradientTransformation]:
        """Return a function that replaces the placeholders of a structure with 0-d tensors."""
        # Not a closure: shared programs must not keep the group alive.
        return ChainOf(self.tx, structure)

    # After a step, and when a checkpoint is loaded.

    def show(self, count: Callable[[Entry], int | None]) -> None:
        """Write the next step's values of schedules into the group, if their counts are known."""
        for name in self.shown:
            at = count(self.entries[name])
            if at is not None:
                self.shown[name] = self.group[name] = next_value(self.sources[name], at)

    def show_exactly(self, count: CountOf) -> None:
        """Correct schedule values whose counts the host did not know; overwritten values are kept."""
        for name, shown in self.shown.items():
            if is_same(self.group[name], shown):
                self.shown[name] = self.group[name] = next_value(
                    self.sources[name], count(self.entries[name])
                )

    def loaded(self, group: Group, count: CountOf) -> GroupView:
        """Return the view of a group from a checkpoint; numbers that are off keep the form that they have here.

        Args:
            group: The saved group.
            count: Returns the saved count of the clock that a hyperparameter follows.
        """
        view = copy(self)
        overridden = group.pop(OVERRIDDEN, None)
        view.group = group
        # The saved betas contain it.
        view._followed = group.get("momentum")
        view._clear({})
        view.shown, view.unused = {}, {}
        for name, source in self.sources.items():
            if not has_schedule(source):
                group.setdefault(name, self.group[name])
                continue
            shown = view.shown[name] = next_value(source, count(self.entries[name]))
            loaded = group.setdefault(name, shown)
            if (
                name not in (overridden or ())
                and not is_same(loaded, shown)
                and _differs_by_schedules(source, loaded)
            ):
                # The schedule of this optimizer applies.
                group[name] = shown
                if (
                    overridden is None
                ):  # the checkpoint does not say what this number is
                    view.unused[name] = loaded
        values = view.values()
        for name, value in values.items():
            if value is not self.sources[name]:
                view.shown.pop(name, None)
            if name not in view.shown:
                group[name] = value
        view._settled = values
        view._take_forms(values, self._forms)
        return view

    def with_literals(self, literal: bool) -> GroupView:
        """Return this view with every number that is off literally off, or none of them."""
        view = copy(self)
        view._clear(self._settled)
        old = None if literal else NUMBER
        view._take_forms(self._settled, dict.fromkeys(self.entries, old))
        return view

    def overridden(self) -> list[str] | None:
        """Return the names whose number was written over a schedule; None if the group has no schedules."""
        scheduled = [name for name in self.sources if has_schedule(self.sources[name])]
        if not scheduled:
            return None
        return [
            name
            for name in scheduled
            if name not in self.shown or not is_same(self.group[name], self.shown[name])
        ]


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
    tx: GradientTransformation, group: Group, labels: Mapping[Any, str]
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
    entries = names_in_group(tx._entries(labels))
    names_of_branch = {entry.place: name for name, entry in entries.items()}
    read: set[str] = set()
    moved: Group = {}
    for name, place in whole.items():
        if name not in group:
            continue
        name_of_branch = names_of_branch.get(place)
        if name_of_branch is not None:
            read.add(name)
        if name_of_branch != name:
            value = group.pop(name)
            if name_of_branch is not None:
                moved[name_of_branch] = value
    # Only now, because a new name may be the old name of another hyperparameter.
    group.update(moved)
    return read


def unread(
    tx: GradientTransformation,
    given: Values,
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
    return [param for group in groups for param in group["params"]]


def next_value(value: Any, count: int) -> Any:
    """Return the value of a schedule as a group shows it: a number, or a tuple of numbers."""

    def as_number(item: Any) -> Any:
        if isinstance(item, Schedule):
            item = resolve(item, count)
        return python_scalar(item)

    return each_item(value, as_number)


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


def has_schedule(value: Any) -> bool:
    """Whether a value, or any item of a tuple, is a schedule."""
    return _any(_is_schedule, value)


def _is_schedule(value: Any) -> bool:
    return isinstance(value, Schedule)


def _may_change(value: Any) -> bool:
    """Whether a value can be modified in place."""
    return isinstance(value, Tensor | list)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | Tensor | Schedule)


def each_item(value: Any, function: Callable[[Any], Any]) -> Any:
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
