"""Checks of a state dict's form: malformed parts are reported by name before any other code reads them."""

from __future__ import annotations

import numbers
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from torch import Tensor

from gradtx.base.messages import describe

# The slot of the training weights in state dicts that were saved in evaluation mode.
TRAINED = "trained"


def check_form(state_dict: Mapping[str, Any], names: list[str]) -> None:
    """Check that a mapping has the form of an optimizer's state dict.

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
    if not isinstance(entries, Mapping):
        raise TypeError(
            f"'state' of the loaded state dict must be a dict, got {describe(entries)}"
        )
    if not isinstance(groups, tuple | list):
        raise TypeError(
            f"'param_groups' of the loaded state dict must be a list, got {describe(groups)}"
        )
    _check_groups(groups)
    if any(isinstance(key, str) and key.isdecimal() for key in entries):
        raise ValueError(
            "the keys of 'state' in the loaded state dict are strings such as '0', as after JSON; make them numbers: "
            "int(key)"
        )
    for i, number in enumerate(numbers_of(groups)):
        if number in entries:
            name = names[i] if i < len(names) else str(number)
            _check_entry(name, entries[number])


def _remedy(checkpoint: Mapping[str, Any]) -> str:
    """Say what to pass instead of a mapping that is not an optimizer's state dict, but may contain one."""
    for key, value in checkpoint.items():
        if isinstance(value, Mapping) and "param_groups" in value:
            return f"pass its entry {key!r}"
    return "pass what optimizer.state_dict() returned"


def numbers_of(groups: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the numbers of all parameters, in the order of the groups."""
    numbers: list[Any] = []
    for group in groups:
        numbers.extend(group["params"])
    return numbers


def check_mapping(state_dict: Any) -> None:
    """Raise an error unless the argument is a mapping."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"load_state_dict needs a state dict, got {describe(state_dict)}"
        )


def _check_groups(groups: Iterable[Any]) -> None:
    """Raise an error unless the groups list parameters, each of them once."""
    seen: set[Any] = set()
    for i, group in enumerate(groups):
        _check_group(f"loaded group {i} of 'param_groups'", group)
        for number in group["params"]:
            if not isinstance(number, Hashable) or isinstance(number, Tensor):
                raise TypeError(
                    f"'params' of loaded group {i} must be numbers, got {describe(number)}"
                )
            if number in seen:
                raise ValueError(
                    f"'params' of loaded group {i} list {number!r} a second time"
                )
            seen.add(number)


def _check_group(where: str, group: Any) -> None:
    if not isinstance(group, Mapping):
        raise TypeError(f"{where} must be a dict, got {describe(group)}")
    for key in group:
        if not isinstance(key, str):
            raise TypeError(f"{where} has the key {key!r}, but keys must be strings")
    if "params" not in group:
        raise ValueError(f"{where} lacks 'params'")
    if not isinstance(group["params"], list | tuple):
        raise TypeError(
            f"'params' of {where} must be a list, got {describe(group['params'])}"
        )
    if "param_names" in group:
        _check_names(where, group["param_names"])


def _check_names(where: str, names: Any) -> None:
    if not isinstance(names, tuple | list) or not all(
        isinstance(name, str) for name in names
    ):
        raise TypeError(
            f"'param_names' of {where} must be a list of strings, got {describe(names)}"
        )


def _check_entry(name: str, entry: Any) -> None:
    if not isinstance(entry, Mapping):
        raise TypeError(
            f"state of parameter {name!r} must be a dict of slots, got {describe(entry)}"
        )
    for slot, value in entry.items():
        if not isinstance(slot, str):
            raise TypeError(
                f"state of parameter {name!r} has the slot {slot!r}, but slots must be strings"
            )
        # Older versions of torch save None for a momentum that is off.
        if value is not None:
            check_slot(name, slot, value)


def check_slot(name: str, slot: str, value: Any) -> None:
    """Raise an error unless a value can be a slot: a dense tensor or a number."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"state of parameter {name!r}: {slot!r} must be a tensor, got a {type(value).__name__}; was the state "
                "dict saved by another class of optimizers?"
            )
        return
    if value.is_nested or value.is_sparse or value.is_quantized:
        raise TypeError(
            f"state of parameter {name!r}: {slot!r} must be a dense tensor, got a nested or sparse one"
        )
    if value.is_meta:
        raise ValueError(
            f"state of parameter {name!r}: {slot!r} is on the meta device, which stores no values"
        )
