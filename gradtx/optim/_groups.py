"""Parameter groups: hyperparameters as numbers that anyone may write, turned into a chain for each step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import Schedule, is_off
from gradtx._exact import exact, resolve
from gradtx.core import Entry, GradientTransformation

SCHEDULERS_OWN = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
NUMBER = "a number"  # stands for one where only structure matters
REFUSED = ("foreach", "fused", "capturable", "differentiable")


def refused(name: str, value: Any) -> TypeError:
    off = value is None or value is False
    remedy = f"{name}={value} asks for nothing, drop it; for speed there is" if off else "drop it and use"
    return TypeError(f"{name!r} is not an option of gradtx; {remedy} compile=True")


class GroupView:
    """What the adapter knows of one parameter group beyond its dict.

    Rules get the group's numbers as 0-d float64 tensors. A number that was literally off (0.0) when the group was
    made stays literal until somebody writes another value over it; then the group's links and slots change.
    """

    def __init__(self, tx: GradientTransformation, group: dict[str, Any], labels: Mapping[int, str]):
        self.tx, self.group = tx, group
        self.entries = _shown_names(tx._entries(labels))
        self.sources = {name: entry.value for name, entry in self.entries.items()}
        for name in REFUSED:
            if name in group:
                raise refused(name, group[name])
        for name, entry in self.entries.items():
            if name in group:
                self.sources[name] = entry.argument.check(group[name])
            if isinstance(self.sources[name], Tensor):  # schedulers write into it, for this group alone
                self.sources[name] = self.sources[name].detach().clone()
            group[name] = self.sources[name]
        group.setdefault("lr", 0.0)  # torch's schedulers need one, also where no link reads it
        self.live = {name for name, source in self.sources.items() if _each(source, _is_schedule, any)}
        self.literal = {name: self._off(name, source) for name, source in self.sources.items()}
        self.shown: dict[str, Any] = {}
        self.first = dict(self.sources)
        self._cached: tuple[Any, GradientTransformation] | None = None
        self._checked: tuple | None = None

    def _off(self, name: str, value: Any) -> Any:
        off = self.entries[name].argument.range.off
        return _over(value, lambda item: is_off(item, off))

    def values(self) -> dict[str, Any]:
        """The present values, checked as a constructor checks them; a schedule where nobody wrote over it."""
        present = {}
        for name, entry in self.entries.items():
            value = self.group[name]
            value = tuple(value) if isinstance(value, list) else value  # groups that went through JSON
            if name in self.live and _same(value, self.shown[name]):
                present[name] = self.sources[name]
            else:
                present[name] = entry.argument.check(value)
        return present

    def settle(self, values: Mapping[str, Any]) -> bool:
        """Take note of what was written since the last step; True if links or slots may have changed."""
        changed = False
        for name, value in values.items():
            if name in self.live and value is not self.sources[name]:
                self.live.discard(name)
            literal = _both(self.literal[name], self._off(name, value))
            first = self.first[name]
            static = _form(value) != _form(first) or (not _each(value, _is_number, any) and value != first)
            if literal != self.literal[name] or static:
                changed, self.literal[name], self.first[name] = True, literal, value
                self._cached = None
        return changed

    def chain(self, values: Mapping[str, Any], device: torch.device) -> GradientTransformation:
        """The transformation with these values, as rules get them."""
        key = tuple(values.items())
        if self._cached is not None and _same(self._cached[0], key):
            return self._cached[1]

        def as_rule(item: Any) -> Any:
            return exact(item, device) if isinstance(item, float) else item

        placed = {self.entries[name].place: self._mapped(name, value, as_rule) for name, value in values.items()}
        tx = self.tx._replaced(placed, checked=False)
        self._cached = None if any(_each(value, _is_tensor, any) for value in values.values()) else (key, tx)
        return tx

    def structure(self, values: Mapping[str, Any], count: Callable[[Entry], int | Tensor]) -> tuple[Any, list[Any]]:
        """What of these values decides links and slots, with `NUMBER` for what doesn't; and these numbers in order."""
        numbers: list[Any] = []

        def take(entry: Entry, item: Any) -> str:
            if isinstance(item, Schedule):
                at = count(entry)
                item = resolve(item, at) if isinstance(at, Tensor) else next_value(item, at)
            numbers.append(item)
            return NUMBER

        frame = tuple(
            (self.entries[name].place, self._mapped(name, value, functools.partial(take, self.entries[name])))
            for name, value in values.items()
        )
        return frame, numbers

    def chain_of(self, structure: Any) -> Callable[[list[Tensor]], GradientTransformation]:
        """The reverse of `structure`: a function that puts 0-d tensors in the places of the numbers."""

        def chain(tensors: list[Tensor]) -> GradientTransformation:
            given = iter(tensors)
            placed = {
                place: _over(kept, lambda item: next(given) if item is NUMBER else item) for place, kept in structure
            }
            return self.tx._replaced(placed, checked=False)

        return chain

    def _mapped(self, name: str, value: Any, function: Callable[[Any], Any]) -> Any:
        """A hyperparameter with `function` of its numbers, save literal ones and those that rules get as they are."""
        if self.entries[name].argument.kind == "floats":
            return value
        plural, literal = isinstance(value, tuple), self.literal[name]
        pairs = zip(value, literal, strict=True) if plural else [(value, literal)]
        mapped = [item if flag or not _is_number(item) else function(item) for item, flag in pairs]
        return tuple(mapped) if plural else mapped[0]

    def show(self, count: Callable[[Entry], int]) -> None:
        """Write the values that the next step will use into the group."""
        for name in self.live:
            self.shown[name] = self.group[name] = next_value(self.sources[name], count(self.entries[name]))

    def loaded(self, group: dict[str, Any], literal: bool, count: Callable[[Entry], int]) -> GroupView:
        """The view of a group that a checkpoint brings.

        With `literal`, every number that is off there counts as literally off; otherwise those that do so here.
        """
        new = GroupView.__new__(GroupView)
        new.__dict__.update(self.__dict__)
        new.group, new._cached, new.shown = group, None, {}
        new.live = {name for name, source in self.sources.items() if _each(source, _is_schedule, any)}
        for name, entry in self.entries.items():
            if name in new.live:
                new.shown[name] = next_value(self.sources[name], count(entry))
                group.setdefault(name, new.shown[name])
            group.setdefault(name, self.group[name])
        values = new.values()
        new.live = {name for name in new.live if values[name] is self.sources[name]}
        group.update({name: value for name, value in values.items() if name not in new.live})
        off = {name: self._off(name, value) for name, value in values.items()}
        new.literal = off if literal else {name: _both(self.literal[name], off[name]) for name in off}
        new.first = dict(self.first)
        for name, value in values.items():
            now_off = literal and _each(off[name], bool, any)
            if now_off or _form(value) != _form(self.first[name]) or not _each(value, _is_number, any):
                new.first[name] = value  # what decides links and slots
        return new

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise what the constructor would raise for these values together."""
        key = tuple(values.items())
        if self._checked is None or len(key) != len(self._checked) or not all(map(_same, key, self._checked)):
            self.tx._replaced({self.entries[name].place: value for name, value in values.items()}, checked=True)
            self._checked = key


def _shown_names(entries: list[Entry]) -> dict[str, Entry]:
    """Hyperparameters by their names in a group.

    What torch's schedulers write into groups for themselves is never a hyperparameter's name there. A bound of the
    learning rate (`max_lr`) is shown as `lr`, which schedulers scale, where there is no other.
    """
    names: dict[str, Entry] = {}
    taken = {entry.name for entry in entries}
    for entry in entries:
        name = entry.full if entry.name in SCHEDULERS_OWN else entry.name
        names["lr" if entry.name == "max_lr" and "lr" not in taken else name] = entry
    return names


def _same(a: Any, b: Any) -> bool:
    """Equal, and safe to ask of tensors: those are the same only if they are the same object."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def next_value(value: Any, count: int) -> Any:
    """A schedule's value as a group shows it: a number, or a tuple of them."""

    def shown(item: Any) -> Any:
        found = resolve(item, count) if isinstance(item, Schedule) else item
        return found.item() if isinstance(found, Tensor) else found

    return _over(value, shown)


def _is_schedule(value: Any) -> bool:
    return isinstance(value, Schedule)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | Tensor | Schedule)


def _over(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of a value, or of each entry of a tuple."""
    return tuple(function(item) for item in value) if isinstance(value, tuple) else function(value)


def _each(value: Any, test: Callable[[Any], bool], how: Callable[..., bool]) -> bool:
    return how(map(test, value)) if isinstance(value, tuple) else test(value)


def _form(value: Any) -> int | None:
    """What of a number or tuple of numbers decides links and slots: whether it is there, how many entries it has."""
    return len(value) if isinstance(value, tuple) else None if value is None else 1


def _both(a: Any, b: Any) -> Any:
    if isinstance(a, tuple):
        return tuple(x and y for x, y in zip(a, b, strict=True)) if len(a) == len(b) else b
    return a and b
