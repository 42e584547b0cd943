"""Measurements of updates, stored in the state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import Static
from gradtx.base.errors import Path
from gradtx.base.exact import exact
from gradtx.distributed.redistribution import full_tensor
from gradtx.maths.entries import largest, quotient, safe_sqrt
from gradtx.rules import per_tensor
from gradtx.slots import linear, scalar

__all__ = ["record"]


# The sums over entries from which each quantity follows.
SUMS_OF = {
    "norm": ("square",),
    "rms": ("square", "size"),
    "max": ("max",),
    "update_to_weight": ("square", "weight"),
    "cos_grad": ("with_grad", "square", "grad"),
    "cos_previous": ("with_previous", "square", "previous"),
}

Quantity: TypeAlias = Literal[
    "norm", "rms", "max", "update_to_weight", "cos_grad", "cos_previous"
]


def quantity(name: str, sums: Mapping[str, Tensor]) -> Tensor:
    """Return a quantity of the entries whose sums these are; a ratio to 0 is 0."""
    first, *others = (sums[key] for key in SUMS_OF[name])
    if name == "max":
        return first
    if name == "norm":
        return safe_sqrt(first)
    if name.startswith("cos"):
        return quotient(first, safe_sqrt(others[0] * others[1]))
    return safe_sqrt(quotient(first, others[0]))


def recorded_in(stages: Mapping[Path, Mapping[str, Any]]) -> dict[str, float]:
    """Return what the `record` links of a chain have recorded, by "stage/quantity[/leaf[/block]]".

    Args:
        stages: The shared values (0-d tensors) and slots (dicts by leaf) of each stage, by its path.
    """
    values = {}
    for path, entry in stages.items():
        if not re.fullmatch(r"(record|measure)(_\d+)?", path[-1]):
            continue
        stage = "/".join(path)
        # By slot and leaf: the value, or those of its blocks, which slots of other shapes number.
        slots: dict[str, dict[str, list[Tensor]]] = {}
        for name, value in entry.items():
            if isinstance(value, Tensor):
                if not (name == "mean" and path[-1].startswith("measure")):
                    values[f"{stage}/{name}"] = float(value)
                continue
            slot = slots.setdefault(re.sub(r"_\d+$", "", name), {})
            for leaf, of_leaf in value.items():
                slot.setdefault(leaf, []).append(of_leaf)
        for name in filter(SUMS_OF.__contains__, slots):
            for leaf, of_leaf in slots[name].items():
                numbers = _joined(of_leaf).tolist()
                for i, number in enumerate(numbers):
                    block = f"/{i}" if len(numbers) > 1 else ""
                    values[f"{stage}/{name}/{leaf}{block}"] = number
        for name, keys in SUMS_OF.items():
            if all(f"{name}_{key}" in slots for key in keys):
                sums: dict[str, Tensor] = {}
                for key in keys:
                    leaves = slots[f"{name}_{key}"].values()
                    terms = torch.cat([_joined(of_leaf) for of_leaf in leaves])
                    sums[key] = terms.amax() if key == "max" else terms.sum()
                values[f"{stage}/{name}"] = float(quantity(name, sums))
    return values


def _joined(values: list[Tensor]) -> Tensor:
    """Return the entries of tensors as a vector on the host."""
    return torch.cat([full_tensor(value).reshape(-1).cpu() for value in values])


@per_tensor(
    elementwise=lambda arguments: arguments["name"] is not None,
    needs=lambda arguments: (
        ("params",) if "update_to_weight" in arguments["what"] else ()
    ),
    # For the others, rows without an update count as well.
    by_rows=lambda arguments: (
        not any(
            name in arguments["what"]
            for name in ("rms", "update_to_weight", "cos_previous")
        )
    ),
    shared=lambda arguments: {arguments["name"]: 0.0} if arguments["name"] else {},
)
def record(
    name: Static[str | None] = None,
    what: Quantity | tuple[Quantity, ...] = ("norm",),
    per: Literal["leaf", "all"] = "leaf",
):
    r"""Record quantities of the updates at this position of the chain; updates pass unchanged.

    `gradtx.recorded(state)` and `optimizer.recorded()` return what the last update has recorded, as floats for a
    logger. No step reads a value on the host. With $u$ the update, $g$ the gradient, $p$ the parameter:

    - "norm" $\lVert u \rVert$, "rms" $\lVert u \rVert / \sqrt n$, "max" $\max |u_i|$;
    - "update_to_weight" $\lVert u \rVert / \lVert p \rVert$;
    - "cos_grad" and "cos_previous", the cosine between $u$ and $g$, or the update that was recorded before.

    `record("before")` is short for the norm of the whole tree, as one shared value with this name. Only it leaves out
    leaves without a gradient: these keep the values of their last update, which also remain part of those of "all".

    Args:
        name: The key of the norm of the whole tree in the state: `state["record"][name]`, or `state["record_1"][name]`
            for a second `record`. `what` and `per` must then have their defaults.
        what: The quantities, or a single one.
        per: "leaf" for each leaf, or inside `blocks` for each block; "all" for the whole tree.

    Returns:
        A transformation that leaves updates unchanged. State: 0-d float64 slots named as the quantities, or for "all"
        the sums from which they follow, such as `rms_square`, in each leaf; `previous` (for "cos_previous"), shaped as
        the parameter; with `name` one 0-d float64 shared by all leaves.

    Raises:
        ValueError: If `name` is not an identifier or is "step", if a quantity is unknown, or if `params` is missing for
            "update_to_weight".

    Example:
        >>> tx = gradtx.chain(
        ...     gradtx.record(what=("norm", "max")),
        ...     gradtx.clip_by_global_norm(1.0),
        ...     gradtx.record("after"),
        ... )
        >>> _, state = tx.update(
        ...     {"w": torch.tensor([3.0, 4.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> {name: round(value, 3) for name, value in gradtx.recorded(state).items()}
        {'record/norm/w': 5.0, 'record/max/w': 4.0, 'record_1/after': 1.0}
    """
    if isinstance(what, str):
        what = (what,)
    if name is not None:
        if not name.isidentifier() or name == "step":
            raise ValueError(
                f"record: name must be an identifier other than 'step', which is the count's key, got {name!r}"
            )
        if what != ("norm",) or per != "leaf":
            raise ValueError(
                f"record: name={name!r} is the norm of the whole tree; pass either name, or what and per"
            )

        def update_of_all(update, state, param, ctx):
            total = yield {"square": update.square().sum()}
            yield update, {name: safe_sqrt(total["square"])}

        return update_of_all
    slots = {}
    for name in what:
        if name not in SUMS_OF:
            raise ValueError(
                f"record: what must contain names among {', '.join(SUMS_OF)}, got {name!r}"
            )
        names = [name] if per == "leaf" else [f"{name}_{key}" for key in SUMS_OF[name]]
        slots.update({slot: scalar() for slot in names})
    if "cos_previous" in what:
        slots["previous"] = linear()

    def update(update, state, param, ctx):
        u, g, before = update, ctx.grad, state.get("previous", update)
        factors = {
            "square": (u, u),
            "weight": (param, param),
            "grad": (g, g),
            "with_grad": (u, g),
            "previous": (before, before),
            "with_previous": (u, before),
        }

        def total(key):
            if key == "size":
                return exact(u.numel(), u.device)
            if key == "max":
                return largest(u.abs())
            x, y = factors[key]
            return (x * y).sum()

        new_state = {"previous": u} if "cos_previous" in what else {}
        for name in what:
            sums = {key: total(key) for key in SUMS_OF[name]}
            if per == "leaf":
                new_state[name] = quantity(name, sums)
            else:
                new_state.update(
                    {f"{name}_{key}": value for key, value in sums.items()}
                )
        return u, new_state

    return slots, update
