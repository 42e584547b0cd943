"""Loading of state dicts: the new groups and states are checked and built before the optimizer is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.messages import describe, warn_user
from gradtx.base.selectors import in_model
from gradtx.optim._groups import ENGINE_OPTIONS, GroupView, params_of
from gradtx.optim._member import Layout
from gradtx.optim._parameters import Group
from gradtx.optim._saved import is_count, matched, misfits_of
from gradtx.optim._state import State, States
from gradtx.transform import Entry

# The names of `decoupled_weight_decay` in qhoptim and pytorch_optimizer, each with the value that enables it.
DECOUPLED = (
    ("weight_decay_type", "direct"),
    ("decouple_weight_decay", True),
    ("weight_decouple", True),
)


Entries = dict[str, Any]  # a parameter's saved state


@dataclass
class Loaded:
    """A checkpoint that matches the optimizer, ready to be installed.

    Attributes:
        views: The new groups.
        states: The new state of each parameter.
        layouts: The layout of each new state.
        first: The first state of each parameter.
        entries: The saved entry of each parameter, empty if there is none.
        foreign: Saved state that belongs to no parameter.
    """

    views: list[GroupView] = field(default_factory=list[GroupView])
    states: dict[Tensor, State] = field(default_factory=dict[Tensor, State])
    layouts: dict[Tensor, Layout] = field(default_factory=dict[Tensor, Layout])
    first: dict[Tensor, State] = field(default_factory=dict[Tensor, State])
    entries: dict[Tensor, Entries] = field(default_factory=dict[Tensor, Entries])
    foreign: dict[Any, Any] = field(default_factory=dict[Any, Any])


class Checkpoint:
    """A state dict that is being loaded into an optimizer.

    Args:
        state_dict: A state dict saved by a torch.optim or gradtx optimizer.
        states: The optimizer's states.
        strict: Whether a missing or unknown slot is an error.
    """

    def __init__(self, state_dict: Mapping[str, Any], states: States, strict: bool):
        self._entries: dict[Any, dict[str, Any]] = state_dict["state"]
        self._groups: list[Group] = []
        self._numbers = params_of(state_dict["param_groups"])
        own = {name for view in states.members.views for name in view.entries}
        for group in deepcopy(state_dict["param_groups"]):
            self._groups.append(_with_our_keys(group, own))
        self._states = states
        self._members = states.members
        self._strict = strict

    def load(self) -> None:
        """Install the groups and states of the checkpoint. If it raises an error, the optimizer is unchanged.

        Raises:
            TypeError: If a hyperparameter has another type.
            ValueError: If groups, slots, shapes or values do not match.
        """
        loaded = self._loaded()
        unused = self._unused(loaded)
        self._states.replace({**loaded.states, **loaded.foreign}, loaded.layouts)
        self._members.views = loaded.views
        for view in loaded.views:
            for param in view.group["params"]:
                self._members.by_param[param].made_for = view.structure
        for param, member in self._members.by_param.items():
            entry = loaded.entries.get(param)
            member.saved = entry if entry and is_lazy(param) else None
        self._states.mark_unused(unused)
        for view in loaded.views:
            view.show(self._states.count)

    def _loaded(self) -> Loaded:
        self._check_sizes()
        loaded = Loaded()
        numbered: set[Any] = set()
        for view, saved in zip(self._members.views, self._groups, strict=True):
            group = dict(saved)
            numbers = group["params"]
            numbered.update(numbers)
            group["params"] = view.group["params"]
            for key in ("param_names", "label"):
                if key in view.group:
                    group.setdefault(key, view.group[key])
            if group.get("label") != view.group.get("label"):
                raise ValueError(
                    f"loaded group has label {group.get('label')!r}, "
                    f"the optimizer's group has {view.group.get('label')!r}"
                )
            for number, param in zip(numbers, group["params"], strict=True):
                loaded.entries[param] = self._entries.get(number, {})
            self._load_group(view, group, loaded)
        for number, entry in self._entries.items():
            if number not in numbered:
                loaded.foreign[number] = entry
        if self._strict:
            self._check_numbers(numbered, loaded.foreign)
        self._agree_on_shared(loaded)
        self._warn_of_extra_keys(loaded)
        self._warn_of_other_order()
        self._warn_of_schedules(loaded)
        return loaded

    def _warn_of_schedules(self, loaded: Loaded) -> None:
        """Warn about saved numbers that a schedule replaces, unless the checkpoint says that they followed another."""
        for i, view in enumerate(loaded.views):
            for name, value in view.unused.items():
                warn_user(
                    f"{self._members.owner}: {name} follows {describe(view.sources[name])} and is now "
                    f"{view.shown[name]}; the checkpoint's {value} is not used. To use it, write "
                    f"optimizer.param_groups[{i}][{name!r}] = {value}",
                    UserWarning,
                )

    def _warn_of_extra_keys(self, loaded: Loaded) -> None:
        """Warn about keys that only an optimizer wrapper can have written, unless the present state has them too."""
        extra: set[str] = set()
        for param, state in loaded.states.items():
            known = loaded.layouts[param].keys | self._states.of(param).keys()
            extra |= state.keys() - known
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

    def _check_numbers(self, numbered: set[Any], foreign: Mapping[Any, Any]) -> None:
        """Reject unlisted entries while listed parameters have no entry: their parameter numbers do not match."""
        without = [number for number in numbered if number not in self._entries]
        unlisted = [number for number in foreign if isinstance(number, int)]
        if without and unlisted:
            raise ValueError(
                f"loaded groups list the parameter {without[0]!r}, which has no state, and the state has an entry "
                f"{unlisted[0]!r}, which no group lists"
            )

    def _load_group(self, view: GroupView, group: Group, loaded: Loaded) -> None:
        """Match a group to the structure whose slots its entries have.

        A number that is off is a literal, or was written over another number, whose slots remain. Numbers have their
        present form, unless the entries fit better if all of them are literals, or none.
        """
        present = view.loaded(group, self._count)
        views = [present, present.with_literals(True), present.with_literals(False)]
        new_view, first = present, None
        fewest = math.inf
        for candidate in views:
            try:
                states = self._states.first(candidate, group["params"], alone=True)
            except (
                ValueError
            ):  # numbers that exclude each other, unless they are literally off
                if candidate is present:
                    raise
                continue
            misfits = 0
            for param, state in states.states.items():
                misfits += misfits_of(loaded.entries[param], state)
            if misfits < fewest:
                new_view, first, fewest = candidate, states, misfits
            if not misfits:
                break
        assert first is not None
        for param, state in first.states.items():
            loaded.states[param] = matched(
                self._members.by_param[param].name,
                param,
                loaded.entries[param],
                state,
                self._strict,
                first.layouts[param].coded_keys,
                self._wrapper_keys(param),
            )
        loaded.views.append(new_view)
        loaded.layouts.update(first.layouts)
        loaded.first.update(first.states)

    def _wrapper_keys(self, param: Tensor) -> set[str]:
        """Return the keys that a wrapper has written into a parameter's present state."""
        layout = self._members.by_param[param].layout
        return set() if layout is None else self._states.of(param).keys() - layout.keys

    def _count(self, entry: Entry) -> int:
        """Return the saved count of the clock that a hyperparameter follows."""
        path = self._members.clock_path(entry)
        largest = 0.0
        for number in self._numbers:
            saved = self._entries.get(number, {})
            count = saved.get("step", saved.get("steps", 0))
            if is_count(count):  # an invalid count is rejected when its slot is matched
                largest = max(largest, float(count))
        if path is None:
            return int(largest)
        return self._members.inner_count(path, self._shared_by_all(), int(largest))

    def _shared_by_all(self) -> dict[Tensor, Entries]:
        """Return the saved entries with all shared values, such as the counts of inner clocks."""
        params = params_of(view.group for view in self._members.views)
        complete: dict[Tensor, Entries] = {}
        for number, param in zip(self._numbers, params, strict=False):
            entry = self._entries.get(number, {})
            layout = self._members.by_param[param].layout
            keys = [] if layout is None else layout.shared_keys
            if keys and all(isinstance(entry.get(key), Tensor) for key in keys):
                complete[param] = entry
        return complete

    def _agree_on_shared(self, loaded: Loaded) -> None:
        """Check that the saved copies of each shared value are equal; parameters without an entry adopt them."""
        shared: dict[Any, Tensor] = {}
        for param in sorted(
            loaded.layouts, key=lambda param: not loaded.entries[param]
        ):
            state = loaded.states[param]
            for path, names in loaded.layouts[param].shared.items():
                for slot, key in names.items():
                    value = state[key]
                    first = shared.setdefault((path, slot), value)
                    if not loaded.entries[param]:
                        state[key] = first
                    elif not torch.equal(first, value) and not (
                        first.isnan() and value.isnan()
                    ):
                        raise ValueError(
                            f"state of parameter {self._members.by_param[param].name!r}: {key!r} is "
                            f"{value.item():g} here and {first.item():g} for another parameter; all parameters share "
                            "this value"
                        )

    def _unused(self, loaded: Loaded) -> list[Tensor]:
        """Return the parameters whose state is created again at their first gradient, from the weights at that time.

        These are parameters without an entry, whose slots are removed, and those whose entry no step has changed:
        accelerate's `prepare` loads an optimizer's state back into the same optimizer.
        """
        unused: list[Tensor] = []
        for param, state in list(loaded.states.items()):
            layout = loaded.layouts[param]
            if loaded.entries[param]:
                # One rank has the slots of owners.
                keys = layout.keys - layout.owned
                first = loaded.first[param]
                if all(torch.equal(state[key], first[key]) for key in keys):
                    unused.append(param)
            elif param.requires_grad:
                loaded.states[param] = layout.without_slots(state)
                unused.append(param)
            else:
                del loaded.states[param]
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
