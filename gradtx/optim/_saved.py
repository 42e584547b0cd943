"""Matches a parameter's saved state against its first state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.complex_views import as_complex, as_real, real_views
from gradtx.optim._form import check_slot
from gradtx.state.codes import Codec
from gradtx.state.conversion import converted, slot_in_another_code
from gradtx.state.slots import kind_of

REMEDY = (
    "load the state of an optimizer built from the same chain, or pass strict=False, which keeps fresh state for what "
    "is absent and carries unknown keys along"
)


# Slots that contain the counts of clocks and random rules.
COUNTS = ("step", "mini_step", "skipped", "counter")


def matched(
    name: str,
    param: Tensor,
    saved: Mapping[str, Any],
    first: Mapping[str, Tensor],
    strict: bool,
    codes: Mapping[str, Codec],
    wrapper_keys: Collection[str] = (),
) -> dict[str, Tensor]:
    """Convert a parameter's saved entry to the dtypes, codes and devices of its first state.

    Args:
        name: The parameter's name.
        param: The parameter.
        saved: The entry, also in the formats of torch.optim and adam-atan2-pytorch.
        first: The parameter's first state.
        strict: Whether a missing or unknown slot is an error; otherwise unknown ones are kept unchanged.
        codes: The code of each coded slot.
        wrapper_keys: Keys that a wrapper has written into the present state.

    Returns:
        The state, including the keys of wrappers.

    Raises:
        ValueError: If a slot is missing, is unknown, belongs to another chain, or has another shape, kind or code.
    """
    known = set(wrapper_keys) if strict else saved.keys()
    if not param.is_complex():
        return _matched(name, param, saved, first, strict, codes, known)
    views = _matched(
        name,
        as_real(param.detach()),
        real_views(saved),
        real_views(first),
        strict,
        codes,
        known,
    )
    state: dict[str, Tensor] = {}
    for key, value in views.items():
        like = first[key] if key in first else saved[key]
        is_complex = isinstance(like, Tensor) and like.is_complex()
        state[key] = as_complex(value) if is_complex else value
    return state


def _matched(
    name: str,
    param: Tensor,
    saved: Mapping[str, Any],
    first: Mapping[str, Tensor],
    strict: bool,
    codes: Mapping[str, Codec],
    known: Collection[str],
) -> dict[str, Tensor]:
    """Implement `matched` for a real parameter; keys in `known` are kept although no link uses them."""
    saved = _with_our_keys(saved, first)
    slot = slot_in_another_code(saved, first, codes)
    if slot is not None:
        raise ValueError(
            f"state of parameter {name!r}: {slot!r} is stored in another code than in this run; load it into an "
            "optimizer without codes, and pass the state dict of that one"
        )
    saved = converted(saved, first, codes)
    state: dict[str, Tensor] = {}
    for key, value in first.items():
        if key in saved:
            state[key] = _as_slot(name, key, saved[key], value, param.device)
        elif strict and saved:
            raise ValueError(f"state of parameter {name!r} lacks {key!r}; {REMEDY}")
        else:
            state[key] = value
    extra = saved.keys() - first.keys()
    unknown = sorted(extra - set(known))
    if unknown:
        raise ValueError(
            f"state of parameter {name!r} has {unknown[0]!r}, which this chain does not use; {REMEDY}"
        )
    for key in extra:
        state[key] = _as_extra(saved[key], param)
    return state


def _as_extra(value: Any, param: Tensor) -> Any:
    """Return a value that no link uses as torch.optim loads it: on the parameter's device, in its dtype."""
    if not isinstance(value, Tensor):
        return value
    dtype = param.dtype if param.is_floating_point() else value.dtype
    return value.detach().to(param.device, dtype, copy=True)


def _with_our_keys(
    saved: Mapping[str, Any], first: Mapping[str, Tensor]
) -> dict[str, Any]:
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


def _as_slot(
    name: str,
    key: str,
    saved: Any,
    first: Tensor,
    device: torch.device,
) -> Tensor:
    check_slot(name, key, saved)
    value = torch.as_tensor(saved)
    if value.shape != first.shape:
        shapes = f"{tuple(value.shape)}, needs {tuple(first.shape)}"
        raise ValueError(f"state of parameter {name!r}: {key!r} has shape {shapes}")
    if not _can_become(value, first.dtype):
        raise ValueError(
            f"state of parameter {name!r}: {key!r} has dtype {value.dtype}, needs {first.dtype}"
        )
    _check_integer(name, key, value, first.dtype)
    return value.detach().to(
        first.device if first.ndim == 0 or first.is_meta else device,
        first.dtype,
        copy=True,
    )


def _check_integer(name: str, key: str, value: Tensor, dtype: torch.dtype) -> None:
    """Raise an error if a slot that is a count, or has an integer dtype, has another value."""
    if key == "step" and not (value >= 0 and _is_whole(value)):
        raise ValueError(
            f"state of parameter {name!r}: 'step' must be a non-negative integer, got {value.item():g}"
        )
    if kind_of(dtype) == "int" and not _is_whole(value):
        raise ValueError(
            f"state of parameter {name!r}: {key!r} must be an integer, got {value.item():g}"
        )
    if key.rpartition(".")[2] in COUNTS and (value < 0).any():
        raise ValueError(
            f"state of parameter {name!r}: {key!r} must be a non-negative integer, got {value.item():g}"
        )


def _can_become(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether a saved tensor can be a slot of this dtype: the kinds are equal, or a 0-d int and float are mixed."""
    saved, needed = kind_of(value.dtype), kind_of(dtype)
    return saved == needed or (value.ndim == 0 and {saved, needed} == {"int", "float"})


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
