"""Loading of state dicts: the new groups and states are checked and built before the optimizer is changed."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.messages import describe, warn_user
from gradtx.base.selectors import in_model
from gradtx.optim._groups import CODES, ENGINE_OPTIONS, Group, GroupView, params_of
from gradtx.optim._match_saved import is_count, matched, misfits_of
from gradtx.optim._member import Layout
from gradtx.optim._state import Initial, State, States
from gradtx.transform import Entry

# The names of `decoupled_weight_decay` in qhoptim and pytorch_optimizer, each with the value that enables it.
DECOUPLED = (
    ("weight_decay_type", "direct"),
    ("decouple_weight_decay", True),
    ("weight_decouple", True),
)


Entries = dict[str, Any]  # a parameter's saved state


@dataclass
class Match:
    """A parameter's saved entry, matched to the slots of its group.

    Attributes:
        entry: The entry, empty if there is none.
        state: The parameter's new state.
        first: Its first state.
        layout: The layout of both.
    """

    entry: Entries
    state: State
    first: State
    layout: Layout


class Checkpoint:
    """A state dict that is being loaded into an optimizer.

    Args:
        state_dict: A state dict saved by a torch.optim or gradtx optimizer.
        states: The optimizer's states.
        strict: Whether a missing or unknown slot is an error.

    Raises:
        ValueError: If groups have other sizes.
    """

    def __init__(self, state_dict: Mapping[str, Any], states: States, strict: bool):
        self._states = states
        self._members = states.members
        self._strict = strict
        own = {name for view in states.members.views for name in view.entries}
        self._groups = [
            _with_our_keys(group, own) for group in deepcopy(state_dict["param_groups"])
        ]
        self._check_sizes()
        entries: dict[Any, Entries] = state_dict["state"]
        numbers = params_of(self._groups)
        params = params_of(view.group for view in states.members.views)
        self._entries: dict[Tensor, Entries] = {
            param: entries.get(number, {})
            for number, param in zip(numbers, params, strict=True)
        }
        listed = set(numbers)
        # Saved state that belongs to no parameter.
        self._foreign = {key: entries[key] for key in entries if key not in listed}
        self._without_entry = [number for number in numbers if number not in entries]
        self._matches: dict[Tensor, Match] = {}

    def load(self) -> None:
        """Install the groups and states of the checkpoint. If it raises an error, the optimizer is unchanged.

        Raises:
            TypeError: If a hyperparameter has another type.
            ValueError: If groups, slots, shapes or values do not match.
        """
        views = [
            self._matched_view(view, dict(group))
            for view, group in zip(self._members.views, self._groups, strict=True)
        ]
        if self._strict:
            self._check_numbers()
        self._agree_on_shared()
        self._warn_of_extra_keys()
        self._warn_of_other_order()
        self._warn_of_schedules(views)
        unused = self._unused()
        states: dict[Any, Any] = dict(self._foreign)
        layouts: dict[Tensor, Layout] = {}
        for param, match in self._matches.items():
            layouts[param] = match.layout
            if match.entry or param.requires_grad:
                states[param] = match.state
        self._states.replace(states, layouts)
        self._members.views = views
        for view in views:
            for param in view.group["params"]:
                member = self._members.by_param[param]
                member.made_for = view.structure
                member.saved = (
                    (self._entries[param] or None) if is_lazy(param) else None
                )
        self._states.mark_unused(unused)
        for view in views:
            view.show(self._states.count)

    def _warn_of_schedules(self, views: list[GroupView]) -> None:
        """Warn about saved numbers that a schedule replaces, unless the checkpoint says that they followed another."""
        for i, view in enumerate(views):
            for name, value in view.unused.items():
                warn_user(
                    f"{self._members.owner}: {name} follows {describe(view.sources[name])} and is now "
                    f"{view.shown[name]}; the checkpoint's {value} is not used. To use it, write "
                    f"optimizer.param_groups[{i}][{name!r}] = {value}",
                    UserWarning,
                )

    def _warn_of_extra_keys(self) -> None:
        """Warn about keys that only an optimizer wrapper can have written, unless the present state has them too."""
        extra: set[str] = set()
        for param, match in self._matches.items():
            known = match.layout.keys | self._states.of(param).keys()
            extra |= match.state.keys() - known
        if extra:
            warn_user(
                f"{self._members.owner}: the loaded state has {', '.join(map(repr, sorted(extra)))}, which no link "
                "uses; it is kept in optimizer.state for wrappers",
                UserWarning,
            )

    def _warn_of_other_order(self) -> None:
        """Warn if state would move to a parameter with another name; numbers match it by position, as in torch."""
        pairs: list[tuple[str, str]] = []
        for view, group in zip(self._members.views, self._groups, strict=True):
            if "param_names" in view.group and "param_names" in group:
                names = in_model(view.group["param_names"])
                pairs.extend(zip(in_model(group["param_names"]), names, strict=True))
        ours = {name for _, name in pairs}
        moved = [(old, new) for old, new in pairs if old != new and old in ours]
        if moved:
            old, new = moved[0]
            warn_user(
                f"{self._members.owner}: the checkpoint has {old!r} where this optimizer has {new!r}; state is "
                "loaded by position, as in torch.optim: pass the parameters in the order of the checkpoint",
                UserWarning,
            )

    def _check_sizes(self) -> None:
        saved = [len(group["params"]) for group in self._groups]
        ours = [len(view.group["params"]) for view in self._members.views]
        if saved != ours:
            raise ValueError(
                f"loaded state dict has groups of {saved} parameters, the optimizer has groups of {ours}"
            )
        for i, group in enumerate(self._groups):
            names = group.get("param_names", group["params"])
            if len(names) != len(group["params"]):
                raise ValueError(
                    f"'param_names' of loaded group {i} has {len(names)} entries, needs {len(group['params'])}"
                )

    def _check_numbers(self) -> None:
        """Reject unlisted entries while listed parameters have no entry: their parameter numbers do not match."""
        unlisted = [number for number in self._foreign if isinstance(number, int)]
        if self._without_entry and unlisted:
            raise ValueError(
                f"loaded groups list the parameter {self._without_entry[0]!r}, which has no state, and the state has "
                f"an entry {unlisted[0]!r}, which no group lists"
            )

    def _matched_view(self, view: GroupView, group: Group) -> GroupView:
        """Match a group to the structure whose slots its entries have, and return its view.

        A number that is off is a literal, or was written over another number, whose slots remain. Numbers have their
        present form, unless the entries fit better if all of them are literals, or none.
        """
        params = group["params"] = view.group["params"]
        codes = group.pop(CODES, {})
        for key in ("param_names", "label"):
            if key in view.group:
                group.setdefault(key, view.group[key])
        if group.get("label") != view.group.get("label"):
            raise ValueError(
                f"loaded group has label {group.get('label')!r}, "
                f"the optimizer's group has {view.group.get('label')!r}"
            )
        present = view.loaded(group, self._count)
        best, first = present, self._states.first(present, params, alone=True)
        fewest = self._misfits(first)
        for literal in (True, False) if fewest else ():
            other = present.with_literals(literal)
            try:
                states = self._states.first(other, params, alone=True)
            except ValueError:  # numbers that exclude each other, unless they are off
                continue
            if self._misfits(states) < fewest:
                best, first, fewest = other, states, self._misfits(states)
        for param, (layout, state) in first.items():
            entry = self._entries[param]
            new_state = matched(
                self._members.by_param[param].name,
                param,
                entry,
                state,
                self._strict,
                codes,
                layout,
                self._wrapper_keys(param),
            )
            self._matches[param] = Match(entry, new_state, state, layout)
        return best

    def _misfits(self, first: Mapping[Tensor, Initial]) -> int:
        """Return the number of slots that only the entries or only these first states have."""
        return sum(
            misfits_of(self._entries[param], state)
            for param, (_, state) in first.items()
        )

    def _wrapper_keys(self, param: Tensor) -> set[str]:
        """Return the keys that a wrapper has written into a parameter's present state."""
        layout = self._members.by_param[param].layout
        return set() if layout is None else self._states.of(param).keys() - layout.keys

    def _count(self, entry: Entry) -> int:
        """Return the saved count of the clock that a hyperparameter follows."""
        path = self._members.clock_path(entry)
        largest = 0.0
        complete: dict[Tensor, Entries] = {}
        for param, saved in self._entries.items():
            count = saved.get("step", saved.get("steps", 0))
            if is_count(count):  # an invalid count is rejected when its slot is matched
                largest = max(largest, float(count))
            layout = self._members.by_param[param].layout
            keys = [] if layout is None else [key for _, key in layout.shared_places()]
            if keys and all(isinstance(saved.get(key), Tensor) for key in keys):
                complete[param] = saved
        if path is None:
            return int(largest)
        return self._members.inner_count(path, complete, int(largest))

    def _agree_on_shared(self) -> None:
        """Check that the saved copies of each shared value are equal; parameters without an entry adopt them."""
        shared: dict[Any, Tensor] = {}
        with_entry_first = sorted(
            self._matches.items(), key=lambda item: not item[1].entry
        )
        for param, match in with_entry_first:
            for place, key in match.layout.shared_places():
                value = match.state[key]
                first = shared.setdefault(place, value)
                if not match.entry:
                    match.state[key] = first
                elif not torch.equal(first, value) and not (
                    first.isnan() and value.isnan()
                ):
                    raise ValueError(
                        f"state of parameter {self._members.by_param[param].name!r}: {key!r} is "
                        f"{value.item():g} here and {first.item():g} for another parameter; all parameters share "
                        "this value"
                    )

    def _unused(self) -> list[Tensor]:
        """Return the parameters whose state is created again at their first gradient, from the weights at that time.

        These are parameters without an entry, whose slots are removed, and those whose entry no step has changed:
        accelerate's `prepare` loads an optimizer's state back into the same optimizer.
        """
        unused: list[Tensor] = []
        for param, match in self._matches.items():
            if match.entry:
                # One rank has the slots of owners.
                keys = match.layout.keys - match.layout.owned
                if all(torch.equal(match.state[key], match.first[key]) for key in keys):
                    unused.append(param)
            elif param.requires_grad:
                match.state = match.layout.without_slots(match.state)
                unused.append(param)
        return unused


def _with_our_keys(group: Group, own: set[str]) -> Group:
    """Return a saved group without torch's implementation options, and with other libraries' keys renamed to ours.

    Keys that are hyperparameters of this optimizer (`own`) are not renamed.
    """
    group = {key: value for key, value in group.items() if key not in ENGINE_OPTIONS}
    for word, on in DECOUPLED:
        if word in group and word not in own:
            decoupled = group.pop(word) == on
            group.setdefault("decoupled_weight_decay", decoupled)
    return group
