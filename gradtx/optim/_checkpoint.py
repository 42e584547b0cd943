"""Loading a state dict: everything is checked, and made, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.core import Entry
from gradtx.optim._groups import REFUSED, GroupView
from gradtx.optim._run import Layout, number

OTHER = "load the state of an optimizer built from the same chain, or pass strict=False to keep fresh state"


def matched(
    name: str, saved: Mapping[str, Any], fresh: Mapping[str, Tensor], device: torch.device, strict: bool
) -> dict[str, Tensor]:
    """One parameter's saved entry, in the dtypes and on the device of its fresh state.

    Raises:
        ValueError: a slot is missing, unknown or shaped otherwise.
    """
    saved = {key: value for key, value in saved.items() if value is not None}
    if "steps" in saved and "steps" not in fresh:  # adam-atan2-pytorch's word
        saved["step"] = saved.pop("steps")
        if "initial_lr" in fresh:  # and its rates are kept divided by the first learning rate
            saved.setdefault("initial_lr", 1.0)
    if "step" not in saved and saved.keys() & fresh.keys() == {"momentum_buffer"}:
        saved["step"] = 1.0  # torch's SGD keeps no count; a buffer means that it has stepped
    new = {}
    for key, value in fresh.items():
        if key not in saved:
            if strict and saved:
                raise ValueError(f"state of parameter {name!r} lacks {key!r}; {OTHER}")
            new[key] = value
            continue
        found = torch.as_tensor(saved[key])
        if found.shape != value.shape:
            raise ValueError(
                f"state of parameter {name!r}: {key!r} has shape {tuple(found.shape)}, needs {tuple(value.shape)}"
            )
        if found.is_complex():
            raise ValueError(f"state of parameter {name!r}: {key!r} has dtype {found.dtype}, needs {value.dtype}")
        if key == "step" and not (found >= 0 and found == found.round()):
            raise ValueError(f"state of parameter {name!r}: 'step' must be a count, got {found.item():g}")
        new[key] = found.detach().to(value.device if value.ndim == 0 else device, value.dtype, copy=True)
    unknown = sorted(saved.keys() - fresh.keys())
    if unknown and strict:
        raise ValueError(f"state of parameter {name!r} has {unknown[0]!r}, which this chain does not keep; {OTHER}")
    return new


def agree_on_shared(
    states: Mapping[Any, dict[str, Tensor]], layouts: Mapping[Any, Layout], absent: set, name: Callable[[Any], str]
) -> None:
    """Values that all parameters share must have been saved equal; a parameter without an entry takes them over."""
    seen: dict[Any, Tensor] = {}
    for param in sorted(layouts, key=lambda param: param in absent):
        for path, names in layouts[param].shared.items():
            for slot, key in names.items():
                value = states[param][key]
                first = seen.setdefault((path, slot), value)
                if param in absent:
                    states[param][key] = first
                elif not torch.equal(first, value) and not (first.isnan() and value.isnan()):
                    raise ValueError(
                        f"state of parameter {name(param)!r}: {key!r} is {value.item():g}, "
                        f"elsewhere {first.item():g}; it belongs to all parameters together"
                    )


def load(optimizer: Any, state_dict: dict[str, Any], strict: bool) -> None:
    """`ChainOptimizer.load_state_dict`."""
    state_dict = state_dict.copy()
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        state_dict = hook(optimizer, state_dict) or state_dict
    entries, views = state_dict["state"], optimizer._synced()
    saved = [
        {key: value for key, value in group.items() if key not in REFUSED}
        for group in deepcopy(state_dict["param_groups"])
    ]
    for group in saved:
        _rename_decoupled(group)
    sizes, own = [len(group["params"]) for group in saved], [len(g["params"]) for g in optimizer.param_groups]
    if len(sizes) != len(own):
        raise ValueError(f"loaded state dict has {len(sizes)} parameter groups, the optimizer has {len(own)}")
    if sizes != own:
        raise ValueError(f"loaded state dict has groups of {sizes} parameters, the optimizer's have {own}")

    def count(entry: Entry) -> int:
        path = optimizer._clock_path(entry)
        layouts = (record.layout for record in optimizer._records.values() if record.layout is not None)
        key = next((layout.shared[path]["step"] for layout in layouts if path in layout.shared), "step")
        return int(max((number(e.get(key, e.get("steps", 0))) for e in entries.values()), default=0))

    numbered = {i for group in saved for i in group["params"]}
    new_views, states, layouts, absent, waiting = [], {}, {}, set(), {}
    for view, group in zip(views, saved, strict=True):
        ids, group["params"] = group["params"], view.group["params"]
        group.update({k: v for k, v in view.group.items() if k in ("param_names", "label") and k not in group})
        if group.get("label") != view.group.get("label"):
            raise ValueError(f"loaded group has label {group.get('label')!r}, ours {view.group.get('label')!r}")
        own_entries = {param: entries.get(i, {}) for i, param in zip(ids, group["params"], strict=True)}
        absent.update(param for param, entry in own_entries.items() if not entry)
        waiting.update({param: entry for param, entry in own_entries.items() if is_lazy(param) and entry})
        new, found, places = _loaded(optimizer, view, group, own_entries, count, strict)
        new_views.append(new)
        states.update(found)
        layouts.update(places)
    agree_on_shared(states, layouts, absent, lambda param: optimizer._records[param].name)
    foreign = {key: value for key, value in entries.items() if key not in numbered}
    optimizer.state.clear()
    optimizer.state.update({**states, **foreign})
    optimizer._views, optimizer.param_groups = new_views, [view.group for view in new_views]
    for param, record in optimizer._records.items():
        record.layout, record.made, record.waiting = layouts.get(param), None, waiting.get(param)
        if param in absent and param in states:
            record.note(states[param])
    for view in new_views:
        view.show(optimizer._count)
    for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        hook(optimizer)


def _rename_decoupled(group: dict[str, Any]) -> None:
    """What qhoptim and pytorch_optimizer call `decoupled_weight_decay`: without it the decay would silently change."""
    for word, on in (("weight_decay_type", "direct"), ("decouple_weight_decay", True), ("weight_decouple", True)):
        if word in group:
            group.setdefault("decoupled_weight_decay", group.pop(word) == on)


def _loaded(
    optimizer: Any, view: GroupView, group: dict[str, Any], entries: dict[Tensor, Any], count: Any, strict: bool
) -> tuple:
    error = None
    for literal in (False, True):  # numbers that are off: as here, or else all literally, as when it was saved
        new = view.loaded(dict(group), literal, count)
        layouts, fresh = optimizer._initial(new, group["params"], optimizer._records, anew=True)
        try:
            states = {
                param: matched(optimizer._records[param].name, entries[param], state, param.device, strict)
                for param, state in fresh.items()
            }
            return new, states, layouts
        except ValueError as found:
            error = error or found
    assert error is not None
    raise error
