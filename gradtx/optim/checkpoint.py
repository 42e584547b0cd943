"""Loading of state dicts: the new groups and states are checked and built before the optimizer is changed."""

from __future__ import annotations

import functools
import numbers
from collections import defaultdict
from collections.abc import Mapping, MutableMapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import local
from gradtx.base.messages import describe, warn_user
from gradtx.base.selectors import in_model
from gradtx.distributed.layouts import is_split, team_for
from gradtx.execution.runs import OwnMemory
from gradtx.optim.core import Core
from gradtx.optim.groups import (
    CODES_KEY,
    ENGINE_OPTIONS,
    OVERRIDDEN,
    SHAPES_KEY,
    WRAPPER_KEYS,
    Group,
    GroupSettings,
    is_same,
    params_of,
)
from gradtx.optim.ranks import OwnedSlot, divided_keys, whole_at_owners
from gradtx.optim.run import MISSED, Kinds, Member, comparable, kinds_of, never_trains
from gradtx.optim.state import (
    Initial,
    States,
    matched,
    misfits_of,
)
from gradtx.state.conversion import Entry, has_form
from gradtx.state.layout import Layout, State, by_state_key

# What schedulefree's optimizers keep in their groups.
SCHEDULEFREE = {"k", "lr_max", "weight_sum", "train_mode"}
# The names of `decoupled_weight_decay` in qhoptim and pytorch_optimizer, each with the value that enables it.
DECOUPLED = (
    ("weight_decay_type", "direct"),
    ("decouple_weight_decay", True),
    ("weight_decouple", True),
)


def check_structure(state_dict: Mapping[str, Any], names: list[str]) -> None:
    """Check that a mapping has the structure of an optimizer's state dict, before any other code reads it.

    Args:
        state_dict: The mapping passed by the caller.
        names: The names of the parameters, in the order of the groups.

    Raises:
        TypeError: If a state, group, entry or slot has another type.
        ValueError: If a part is missing, or if a parameter is listed twice.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"loaded state dict lacks {key!r}; {_remedy(state_dict)}")
    entries, groups = state_dict["state"], state_dict["param_groups"]
    require(entries, Mapping, "'state' of the loaded state dict", "a dict")
    require(groups, list | tuple, "'param_groups' of the loaded state dict", "a list")
    for i, group in enumerate(groups):
        where = f"loaded group {i} of 'param_groups'"
        require(group, Mapping, where, "a dict")
        for key in ("params", "param_names", OVERRIDDEN, SHAPES_KEY, WRAPPER_KEYS):
            default = None if key == "params" else []
            require(
                group.get(key, default), list | tuple, f"{key!r} of {where}", "a list"
            )
        require(
            group.get(CODES_KEY, {}), Mapping, f"{CODES_KEY!r} of {where}", "a dict"
        )
        for name in group.get("param_names", ()):
            require(name, str, f"an entry of 'param_names' of {where}", "a str")
        for number in group["params"]:
            require(number, int | str, f"an entry of 'params' of {where}", "a number")
    if any(isinstance(key, str) and key.isdecimal() for key in entries):
        raise ValueError(
            "the keys of 'state' in the loaded state dict are strings such as '0', as after JSON; make them numbers: "
            "int(key)"
        )
    for number, name in zip(params_of(groups), names, strict=False):
        entry = entries.get(number, {})
        require(entry, Mapping, f"state of parameter {name!r}", "a dict of slots")
        for slot, value in entry.items():
            _check_slot(f"state of parameter {name!r}: {slot!r}", value)


def require(value: Any, kind: Any, what: str, needed: str) -> None:
    """Raise an error for a value of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{what} must be {needed}, got {describe(value)}")


def _remedy(checkpoint: Mapping[str, Any]) -> str:
    """Say what to pass instead of a mapping that is not an optimizer's state dict, but may contain one."""
    for key, value in checkpoint.items():
        if isinstance(value, Mapping) and "param_groups" in value:
            return f"pass its entry {key!r}"
    return "pass what optimizer.state_dict() returned"


def _check_slot(what: str, value: Any) -> None:
    """Raise an error unless a value can be a slot: a dense tensor, a number, or the rows that torch's SGD saves."""
    if isinstance(value, Tensor):
        is_odd = value.layout not in (torch.strided, torch.sparse_coo)
        if value.is_nested or value.is_quantized or value.is_meta or is_odd:
            raise TypeError(
                f"{what} must be a dense tensor with values, got another one"
            )
    # Older versions of torch save None for a momentum that is off.
    elif value is not None and (
        isinstance(value, bool) or not isinstance(value, numbers.Real)
    ):
        raise TypeError(
            f"{what} must be a tensor, got a {type(value).__name__}; was the state dict saved by another class of "
            "optimizers?"
        )


def _dense(entry: Entry) -> Entry:
    """Return an entry whose slots are dense; torch's SGD keeps momentum of sparse gradients in sparse ones."""
    if not any(_is_sparse(value) for value in entry.values()):
        return entry
    return {
        key: value.to_dense() if _is_sparse(value) else value
        for key, value in entry.items()
    }


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_sparse


class Checkpoint:
    """A state dict that is matched to an optimizer, which it does not change.

    Args:
        state_dict: A state dict saved by a torch.optim or gradtx optimizer.
        states: The optimizer's states.
        strict: Whether a missing or unknown slot is an error.

    Attributes:
        states: The loaded states, of members with the settings of the loaded groups.

    Raises:
        TypeError: If a hyperparameter has another type.
        ValueError: If groups, slots, shapes or values do not match.
    """

    def __init__(self, state_dict: Mapping[str, Any], states: States, strict: bool):
        self._present = states
        self._who = states.members.who
        self._strict = strict
        self._groups = states.members.groups
        own = {name for settings in self._groups for name in settings.entries}
        groups = [
            _translated_group(group, own)
            for group in deepcopy(state_dict["param_groups"])
        ]
        self._check_sizes(groups)
        self._take_entries(groups, state_dict["state"])
        self._loaded = [
            value
            for entry in self._entries.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        ]
        members = states.members.without_state()
        self.states = States(members)
        self._fresh: set[Tensor] = set()  # parameters whose states no step has changed
        self._start_at_zero: set[Tensor] = set()  # those whose slots all do
        # Parameters whose states are alike share the kinds of these.
        self._kinds: dict[Any, Kinds] = {}
        self._of_wrappers: set[str] = set()
        for group in groups:
            self._of_wrappers.update(group.pop(WRAPPER_KEYS, ()))
        pairs = zip(self._groups, groups, strict=True)
        matches = [self._matched(settings, dict(group)) for settings, group in pairs]
        members.groups = [settings for settings, *_ in matches]
        self._unknown: set[str] = set()  # keys that belong to no link
        # Slots of owners that are divided, as they stay until the ranks step together.
        self._rows: dict[Tensor, State] = defaultdict(dict)
        recoded: list[OwnedSlot] = []
        for _, first, codes in matches:
            for param, initial in first.items():
                member = members.by_param[param]
                recoded += self._set_rows_apart(member, initial, codes)
        for slot, value in zip(recoded, whole_at_owners(recoded), strict=True):
            param = slot.member.param
            self._entries[param] = {**self._entries[param], slot.key: value}
        for settings, first, codes in matches:
            self._set(settings, first, codes)
        has_stepped = any(member.layout.keys for member in members.by_param.values())
        if not (has_stepped or states.by_param):
            self.states.clear()
        self.states.by_param.update(self._foreign)
        self._check_shared()
        self._warn_of_other_order(groups)
        self._warn_of_unknown()
        for settings in members.groups:
            settings.show(self.states.count)
        self._warn_of_schedules(groups)

    def install(self, core: Core, by_param: MutableMapping[Any, Any]) -> None:
        """Let an optimizer have the loaded states, after everything has been checked.

        What was not converted is then copied, slot by slot, when the memory of the old states is free: if there is not
        enough memory, the optimizer has all that was loaded, but some of it has the memory of the state dict.

        Args:
            core: The core of the optimizer.
            by_param: The optimizer's `state`.
        """
        states = self.states
        by_param.clear()
        by_param.update(states.by_param)
        states.by_param = by_param
        # Plans know the members.
        states.members.stay(core.members)
        core.states, core.members = states, states.members
        # What else holds the old states.
        self._present, core.last_counts = states, None
        for engine in core.back_ends:
            engine.release_states()
        memory = OwnMemory()
        memory.register(self._loaded)
        for param, member in states.members.by_param.items():
            state = by_param.get(param, {})
            for key, value in state.items():
                if isinstance(value, Tensor):
                    state[key] = memory.unshared(value)
            if param in self._fresh and state:
                member.mark_fresh(state)

    def _check_sizes(self, groups: list[Group]) -> None:
        saved = [len(group["params"]) for group in groups]
        ours = [len(settings.params) for settings in self._groups]
        if saved != ours:
            raise ValueError(
                f"loaded state dict has groups of {saved} parameters, the optimizer has groups of {ours}"
            )
        for i, group in enumerate(groups):
            names = group.get("param_names", group["params"])
            if len(names) != len(group["params"]):
                raise ValueError(
                    f"'param_names' of loaded group {i} has {len(names)} entries, needs {len(group['params'])}"
                )

    def _take_entries(self, groups: list[Group], entries: Mapping[Any, Any]) -> None:
        """Find the entry of each parameter."""
        numbers = params_of(groups)
        params = params_of(settings.group for settings in self._groups)
        self._entries: dict[Tensor, Entry] = {
            param: _dense(entries.get(number, {}))
            for number, param in zip(numbers, params, strict=True)
        }
        listed = set(numbers)
        if len(listed) < len(numbers):
            raise ValueError("the loaded groups list a parameter a second time")
        for group in groups:
            shared = _shared_by_schedulefree(group)
            for number in group["params"] if shared else ():
                param = params[numbers.index(number)]
                if self._entries[param]:
                    self._entries[param] = {**shared, **self._entries[param]}
        # Saved state that belongs to no parameter.
        self._foreign = {key: entries[key] for key in entries if key not in listed}
        without_entry = [number for number in numbers if number not in entries]
        unlisted = [number for number in self._foreign if isinstance(number, int)]
        if self._strict and without_entry and unlisted:
            raise ValueError(
                f"loaded groups list the parameter {without_entry[0]!r}, which has no state, and the state has "
                f"an entry {unlisted[0]!r}, which no group lists"
            )

    def _matched(
        self, present: GroupSettings, group: Group
    ) -> tuple[GroupSettings, dict[Tensor, Initial], Mapping[str, str]]:
        """Return a group's settings with the structure whose slots its entries have, first states for it, and codes.

        Numbers that are off are literals, unless the entries fit better if no number is: a number may have been off
        when it was saved, but not before.
        """
        params = group["params"] = present.group["params"]
        codes = group.pop(CODES_KEY, {})
        self._check_shapes(params, group.pop(SHAPES_KEY, []))
        for key in ("param_names", "label"):
            if key in present.group:
                group.setdefault(key, present.group[key])
        if group.get("label") != present.group.get("label"):
            ours = present.group.get("label")
            message = (
                f"loaded group has label {group.get('label')!r}, "
                f"the optimizer's group has {ours!r}"
            )
            if not group.get("label"):
                message += (
                    "; it had no parameters where it was saved, as on a rank of ZeroRedundancyOptimizer, and its "
                    f"numbers are not those of {ours!r}: write them and the label into the loaded group, and build "
                    f"optimizers with groups that say their label, {{'params': [...], 'label': {ours!r}}}"
                )
            raise ValueError(message)
        settings = present.loaded(group)
        first = self._stand_ins(settings, params)
        misfits = self._misfits(first)
        if misfits:
            other = settings.without_literals()
            try:
                of_other = self._stand_ins(other, params)
            except ValueError:  # numbers that exclude each other, unless they are off
                return settings, first, codes
            if self._misfits(of_other) < misfits:
                return other, of_other, codes
        return settings, first, codes

    def _stand_ins(
        self, settings: GroupSettings, params: list[Tensor]
    ) -> dict[Tensor, Initial]:
        """Return first states whose slots have no memory: mostly, only their form is compared."""
        first, zero = self.states.stand_ins(settings, params)
        self._start_at_zero |= zero
        return first

    def _check_shapes(self, params: list[Tensor], shapes: list[list[int]]) -> None:
        """Check the shapes of the parameters of a saved run whose codes fit other shapes with as many entries, too."""
        for param, shape in zip(params, shapes, strict=bool(shapes)):
            if self._entries[param] and list(param.shape) != list(shape):
                name = self._present.members.by_param[param].name
                raise ValueError(
                    f"state of parameter {name!r} is that of a weight of shape {tuple(shape)}, in a code that does not "
                    f"tell it from one of shape {tuple(param.shape)}; load it into an optimizer of the saved shape "
                    "without codes, and rearrange its slots there"
                )

    def _misfits(self, first: Mapping[Tensor, Initial]) -> int:
        """Return the number of slots that only the entries or only these first states have."""
        return sum(
            misfits_of(self._entries[param], state)
            for param, (_, state, _) in first.items()
        )

    def _set_rows_apart(
        self, member: Member, initial: Initial, codes: Mapping[str, str]
    ) -> list[OwnedSlot]:
        """Put stand-ins without memory into an entry for the slots of an owner that are divided, and keep these.

        Returns:
            The slots that were saved in another code, of which the owner needs all rows now.
        """
        param, layout = member.param, initial.layout
        entry = dict(self._entries[param])
        recoded: list[OwnedSlot] = []
        for key in divided_keys(param, layout, entry):
            value = entry[key]
            base = key.rpartition(".")[0]
            slot = base if base in layout.coded_keys else key
            codec, label = layout.coded_keys.get(slot), codes.get(slot)
            if not is_split(value):  # every rank has all of it
                self._entries[param] = {**self._entries[param], key: local(value)}
            elif slot in entry and has_form(
                entry, slot, initial.state[slot], label, codec
            ):
                self._rows[param][key] = value
                stand_in = torch.empty(value.shape, dtype=value.dtype, device="meta")
                self._entries[param] = {**self._entries[param], key: stand_in}
            else:
                assert member.owner is not None
                recoded.append(OwnedSlot(member, key, value, member.owner))
        return recoded

    def _set(
        self,
        settings: GroupSettings,
        first: Mapping[Tensor, Initial],
        codes: Mapping[str, str],
    ) -> None:
        """Set the states of a group's parameters, whose saved slots have these codes.

        Parameters without an entry get slots with their first gradient. Those of an entry that no step has changed
        remain fresh: accelerate's `prepare` loads an optimizer's state back into the same optimizer.
        """
        states: dict[Tensor, State] = {}
        for param in settings.params:
            member = self.states.members.by_param[param]
            entry = self._entries[param]
            if entry and param not in first and not never_trains(param):
                raise ValueError(
                    f"{self._who}: parameter {member.name!r} has no values yet, but the state dict "
                    "has its state; load it after the first forward pass"
                )
            if entry and param in first:
                states[param] = self._state_of(member, first[param], codes)
        fresh = self._complete(settings, states, first, codes)
        for param, state in states.items():
            member = self.states.members.by_param[param]
            if param in fresh:
                self.states.by_param[param] = state
                self._fresh.add(param)
            else:
                layout = first[param].layout
                kinds = kinds_of(param, layout, state)
                present = self._present.members.by_param[param].kinds
                if kinds != present:
                    present = self._kinds.setdefault(frozenset(kinds.items()), kinds)
                initial = Initial(layout, state, present)
                self.states.set(member, settings, initial, state)

    def _complete(
        self,
        settings: GroupSettings,
        states: dict[Tensor, State],
        first: Mapping[Tensor, Initial],
        codes: Mapping[str, str],
    ) -> set[Tensor]:
        """Give states the first values of slots that they lack; return the parameters whose states no step has changed.

        First values are created one parameter at a time, unless ranks create them together, and only for those that
        lack some or may have them.
        """
        fresh: set[Tensor] = set()
        need_values: list[Tensor] = []
        for param, state in states.items():
            lacks_values = _lacks_values(state, first[param])
            if float(state["step"]) == 0 and not lacks_values:
                if param in self._start_at_zero:
                    if _is_zero(state, first[param].layout):
                        fresh.add(param)
                    continue
                lacks_values = True
            if lacks_values:
                need_values.append(param)
        together = [need_values]
        if not self.states.are_divided(need_values):
            together = [[param] for param in need_values]
        for params in together:
            for param, initial in self.states.first(settings, params).items():
                member = self.states.members.by_param[param]
                if _lacks_values(states[param], first[param]):
                    states[param] = self._state_of(member, initial, codes)
                if float(states[param]["step"]) == 0 and _is_first(
                    states[param], initial
                ):
                    fresh.add(param)
        return fresh

    def _state_of(
        self, member: Member, initial: Initial, codes: Mapping[str, str]
    ) -> State:
        """Return the state of a parameter from its entry."""
        param, layout = member.param, initial.layout
        present = self._present.members.by_param[param]
        own_keys = present.layout.keys or {"step", *present.fresh}
        wrapper_keys = self._present.of(param).keys() - own_keys
        accepted = wrapper_keys | self._of_wrappers
        entry = self._entries[param]
        device_of = functools.partial(self._device_of, member, initial)
        state = matched(
            member, entry, initial, self._strict, codes, accepted, device_of
        )
        for key, rows in self._rows.get(param, {}).items():
            dtype = state[key].dtype
            state[key] = rows.detach().to(param.device, dtype)
        self._unknown |= state.keys() - layout.keys - wrapper_keys - {MISSED}
        return state

    def _device_of(self, member: Member, initial: Initial, key: str) -> torch.device:
        """Return the device of a loaded slot: that of the first one, unless this is a stand-in."""
        first, param, layout = initial.state[key], member.param, initial.layout
        if not first.is_meta:
            return first.device
        members = self.states.members
        if any(key in keys.values() for keys in layout.shared.values()):
            return next(iter(members.by_param)).device
        is_owned = key in layout.owned
        if is_owned and team_for(param, members.replicas).rank != member.owner:
            return first.device
        return param.device

    def _check_shared(self) -> None:
        """Check that the saved copies of each shared value are equal."""
        shared: dict[Any, Tensor] = {}
        for param, member in self.states.members.by_param.items():
            for place, key in by_state_key(member.layout.shared):
                value = self.states.of(param)[key]
                first = shared.setdefault(place, value)
                if not torch.equal(first, value) and not (
                    first.isnan() and value.isnan()
                ):
                    raise ValueError(
                        f"state of parameter {member.name!r}: {key!r} is {value.item():g} here and {first.item():g} "
                        "for another parameter; all parameters share this value"
                    )

    def _warn_of_other_order(self, groups: list[Group]) -> None:
        """Warn if state would move to a parameter with another name; numbers match it by position, as in torch."""
        pairs: list[tuple[str, str]] = []
        for settings, group in zip(self._groups, groups, strict=True):
            if "param_names" in settings.group and "param_names" in group:
                names = in_model(settings.group["param_names"])
                pairs.extend(zip(in_model(group["param_names"]), names, strict=True))
        ours = {name for _, name in pairs}
        for old, new in pairs:
            if old != new and old in ours:
                warn_user(
                    f"{self._who}: the checkpoint has {old!r} where this optimizer has {new!r}; "
                    "state is loaded by position, as in torch.optim: pass the parameters "
                    "in the order of the checkpoint"
                )
                return

    def _warn_of_unknown(self) -> None:
        """Warn about keys of entries that no link keeps."""
        if self._strict and self._unknown:
            keys = ", ".join(map(repr, sorted(self._unknown)))
            warn_user(
                f"{self._who}: the checkpoint's state has {keys}, which no link of gradtx keeps; it is "
                "loaded as well, for the wrapper that has written it; strict=False loads it without this warning"
            )

    def _warn_of_schedules(self, groups: list[Group]) -> None:
        """Warn about saved numbers that a schedule replaces, unless the checkpoint says that they followed another."""
        pairs = zip(self.states.members.groups, groups, strict=True)
        for i, (settings, group) in enumerate(pairs):
            for name, shown in settings.shown.items():
                saved = group.get(name, shown)
                saved = tuple(saved) if isinstance(saved, list) else saved
                if OVERRIDDEN not in group and not is_same(saved, shown):
                    warn_user(
                        f"{self._who}: {name} follows {describe(settings.sources[name])} and is now "
                        f"{shown}; the checkpoint's {saved} is not used. To use it, write "
                        f"optimizer.param_groups[{i}][{name!r}] = {saved}"
                    )


def _lacks_values(state: State, stand_in: Initial) -> bool:
    """Whether slots have their first values, which a stand-in does not have; the same on all ranks of a parameter."""
    layout = stand_in.layout
    return any(
        state.get(key) is stand_in.state[key]
        or (
            key in state and key not in layout.owned and local(state[key]).is_meta
        )  # the key of a code
        for key in layout.keys - {"step"}
    )


def _is_zero(state: State, layout: Layout) -> bool:
    """Whether a state has no other slots than those of a layout, all of them zero, on this rank."""
    return state.keys() == layout.keys and not any(
        bool(comparable(state[key]).any()) for key in layout.keys - layout.owned
    )


def _is_first(state: State, initial: Initial) -> bool:
    """Whether a state is that before any step, on this rank; of the slots of owners, ranks do not compare entries."""
    layout = initial.layout
    return state.keys() == layout.keys and all(
        torch.equal(local(state[key]), local(initial.state[key]))
        for key in layout.keys - layout.owned
    )


def _shared_by_schedulefree(group: Group) -> dict[str, Any]:
    """Remove and return what schedulefree's optimizers keep in a group, as slots; empty for other groups.

    Raises:
        ValueError: If its weights were those for evaluation.
    """
    if not group.keys() >= SCHEDULEFREE:
        return {}
    if not group.pop("train_mode"):
        raise ValueError(
            "the state dict is that of a schedulefree optimizer in eval mode, whose weights are the average; load it "
            "there, call train(), and save both weights and state again"
        )
    group.pop("scheduled_lr", None)
    shared = {name: group.pop(name) for name in ("k", "lr_max", "weight_sum")}
    return {"step": shared.pop("k"), **shared}


def _translated_group(group: Group, own: set[str]) -> Group:
    """Return a saved group without torch's implementation options, and with other libraries' keys renamed to ours.

    Keys that are hyperparameters of this optimizer (`own`) are not renamed.
    """
    group = {key: value for key, value in group.items() if key not in ENGINE_OPTIONS}
    for word, on in DECOUPLED:
        if word in group and word not in own:
            decoupled = group.pop(word) == on
            group.setdefault("decoupled_weight_decay", decoupled)
    return group
