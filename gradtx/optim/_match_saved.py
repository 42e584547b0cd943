"""Checks the form of state dicts, and matches a parameter's saved state against its first state."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.complex_views import as_complex, as_real, real_views
from gradtx.base.messages import describe
from gradtx.optim._groups import CODES, OVERRIDDEN, params_of
from gradtx.optim._member import Layout
from gradtx.state.conversion import Entry, converted
from gradtx.state.slots import kind_of

REMEDY = (
    "load the state of an optimizer built from the same chain, or pass strict=False, which keeps fresh state for what "
    "is absent and carries unknown keys along"
)

# Slots that contain the counts of clocks and random rules.
COUNTS = ("step", "mini_step", "skipped", "counter")
# The slot of the training weights in state dicts that were saved in evaluation mode.
TRAINED = "trained"


def check_form(state_dict: Mapping[str, Any], names: list[str]) -> None:
    """Check that a mapping has the form of an optimizer's state dict, before any other code reads it.

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
        if "params" not in group:
            raise ValueError(f"{where} lacks 'params'")
        for key in ("params", "param_names", OVERRIDDEN):
            require(group.get(key, []), list | tuple, f"{key!r} of {where}", "a list")
        require(group.get(CODES, {}), Mapping, f"{CODES!r} of {where}", "a dict")
        for name in group.get("param_names", ()):
            require(name, str, f"an entry of 'param_names' of {where}", "a str")
    if any(isinstance(key, str) and key.isdecimal() for key in entries):
        raise ValueError(
            "the keys of 'state' in the loaded state dict are strings such as '0', as after JSON; make them numbers: "
            "int(key)"
        )
    for number, times in Counter(params_of(groups)).items():
        if times > 1:
            raise ValueError(f"the loaded groups list {number!r} a second time")
    for number, name in zip(params_of(groups), names, strict=False):
        entry = entries.get(number, {})
        require(entry, Mapping, f"state of parameter {name!r}", "a dict of slots")
        for slot, value in entry.items():
            # Older versions of torch save None for a momentum that is off.
            if value is not None:
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
    """Raise an error unless a value can be a slot: a dense tensor or a number."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"{what} must be a tensor, got a {type(value).__name__}; was the state dict saved by another class of "
                "optimizers?"
            )
    elif value.is_nested or value.is_sparse or value.is_quantized:
        raise TypeError(f"{what} must be a dense tensor, got a nested or sparse one")
    elif value.is_meta:
        raise ValueError(f"{what} is on the meta device, which stores no values")


def matched(
    name: str,
    param: Tensor,
    saved: Entry,
    first: Mapping[str, Tensor],
    strict: bool,
    saved_codes: Mapping[str, str],
    layout: Layout,
    wrapper_keys: Collection[str] = (),
) -> dict[str, Tensor]:
    """Convert a parameter's saved entry to the dtypes, codes and devices of its first state.

    Args:
        name: The parameter's name.
        param: The parameter.
        saved: The entry, also in the formats of torch.optim and adam-atan2-pytorch.
        first: The parameter's first state.
        strict: Whether a missing or unknown slot is an error; otherwise unknown ones are kept unchanged.
        saved_codes: The label of each slot's code in the saved run.
        layout: The layout of the first state.
        wrapper_keys: Keys that a wrapper has written into the present state.

    Returns:
        The state, including the keys of wrappers.

    Raises:
        ValueError: If a slot is missing, is unknown, belongs to another chain, or has another shape, kind or code.
    """
    if param.is_complex():
        real, real_saved = as_real(param.detach()), real_views(saved)
        state = matched(
            name,
            real,
            real_saved,
            real_views(first),
            strict,
            saved_codes,
            layout,
            wrapper_keys,
        )
        for key, like in {**saved, **first}.items():
            if key in state and isinstance(like, Tensor) and like.is_complex():
                state[key] = as_complex(state[key])
        return state
    saved = _with_our_keys(saved, first)
    try:
        saved = converted(saved, first, param.shape, saved_codes, layout.coded_keys)
    except ValueError as error:
        raise ValueError(f"state of parameter {name!r}: {error}") from None
    state = {}
    for key, value in first.items():
        if key in saved:
            what = f"state of parameter {name!r}: {key!r}"
            state[key] = _as_slot(what, key, saved[key], value, param.device)
        elif strict and saved:
            raise ValueError(f"state of parameter {name!r} lacks {key!r}; {REMEDY}")
        else:
            state[key] = value
    extra = saved.keys() - first.keys()
    unknown = sorted(extra - set(wrapper_keys))
    if strict and unknown:
        raise ValueError(
            f"state of parameter {name!r} has {unknown[0]!r}, which this chain does not use; {REMEDY}"
        )
    for key in extra:
        value = saved[key]
        if isinstance(value, Tensor):
            # As torch.optim loads it.
            dtype = param.dtype if param.is_floating_point() else value.dtype
            value = value.detach().to(param.device, dtype, copy=True)
        state[key] = value
    return state


def _with_our_keys(saved: Entry, first: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return an entry without None values, with its count under "step"."""
    entry = {key: value for key, value in saved.items() if value is not None}
    # adam-atan2-pytorch's name of the count.
    if "steps" in entry and "steps" not in first:
        entry["step"] = entry.pop("steps")
        # Its rates are saved divided by the first learning rate.
        if "initial_lr" in first:
            entry.setdefault("initial_lr", 1.0)
    if "step" not in entry and entry.keys() & first.keys() == {"momentum_buffer"}:
        # torch's SGD keeps no count, but a buffer means that it has stepped.
        entry["step"] = 1.0
    return entry


def misfits_of(saved: Entry, first: Mapping[str, Tensor]) -> int:
    """Return the number of slots that only one of a saved entry and a first state has; 0 for an empty entry."""
    if not saved:
        return 0
    entry = _with_our_keys(saved, first)
    return len(_slots_among(entry.keys()) ^ _slots_among(first.keys()))


def _slots_among(keys: Collection[str]) -> set[str]:
    """Return the keys without those of auxiliary tensors, such as `exp_avg.scale` of `exp_avg`."""
    return {key for key in keys if str(key).rpartition(".")[0] not in keys}


def _as_slot(
    what: str,
    key: str,
    saved: Any,
    first: Tensor,
    device: torch.device,
) -> Tensor:
    """Return a saved value as a slot, after checking its shape, kind and value."""
    value = torch.as_tensor(saved)
    if value.shape != first.shape:
        shapes = f"{tuple(value.shape)}, needs {tuple(first.shape)}"
        raise ValueError(f"{what} has shape {shapes}")
    kinds = {kind_of(value.dtype), kind_of(first.dtype)}
    if len(kinds) > 1 and not (value.ndim == 0 and kinds == {"int", "float"}):
        raise ValueError(f"{what} has dtype {value.dtype}, needs {first.dtype}")
    is_count_slot = key.rpartition(".")[2] in COUNTS
    if is_count_slot and not (_is_whole(value) and (value >= 0).all()):
        raise ValueError(f"{what} must be a non-negative integer, got {value.item():g}")
    if kind_of(first.dtype) == "int" and not _is_whole(value):
        raise ValueError(f"{what} must be an integer, got {value.item():g}")
    on = first.device if first.ndim == 0 or first.is_meta else device
    return value.detach().to(on, first.dtype, copy=True)


def _is_whole(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(
        value.isfinite() & (value == value.round())
    )


def is_count(saved: Any) -> bool:
    """Whether a saved value can be a count."""
    if saved is None:
        return False
    value = torch.as_tensor(saved)
    return (
        value.ndim == 0
        and not value.is_complex()
        and bool(value >= 0)
        and _is_whole(value)
    )
