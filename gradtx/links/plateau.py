"""A factor that falls when the loss stops falling."""

from __future__ import annotations

import math
from typing import Annotated

import torch

from gradtx.arguments import Count, Fraction, NonNegative, NonNegativeInt, Scalar
from gradtx.base.exact import exact
from gradtx.maths.entries import at_least
from gradtx.rules import per_tensor

__all__ = ["reduce_on_plateau"]


@per_tensor(
    elementwise=True,
    needs="value",
    shared={
        "scale": 1.0,
        "best_value": math.inf,
        "plateau_count": 0.0,
        "cooldown_count": 0.0,
        "count": 0.0,
        "avg_value": 0.0,
    },
    agree=(
        *("factor", "patience", "rtol", "atol"),
        *("cooldown", "accumulation_size", "min_scale"),
    ),
    by_rows=True,
)
def reduce_on_plateau(
    factor: Annotated[Scalar, "(0, 1)"] = 0.1,
    patience: Count = 10,
    rtol: Fraction = 1e-4,
    atol: NonNegative = 0.0,
    cooldown: NonNegativeInt = 0,
    accumulation_size: Count = 1,
    min_scale: NonNegative = 0.0,
):
    r"""Scale updates by a factor that falls when the loss has stopped falling, as torch's ReduceLROnPlateau does.

    After each `accumulation_size` calls, the mean $v$ of their `value` is an improvement if
    $v < (1 - r) v_\text{best} - a$; then $v_\text{best} = v$. After `patience` means in a row without one, the scale is
    multiplied by `factor`, and the next `cooldown` means cannot lower it. Place it after the learning rate, or before:
    updates are multiplied by `scale`, which is in the state.

    Unlike torch's scheduler, it is part of the chain: it works in pure functions, under `vmap`, in captured steps, and
    its state is saved. Pass a validation loss as `value`, or that of the batch and a larger `accumulation_size`. With
    `maximize=True` in the chain, it follows the negated loss, as all links.

    Args:
        factor: The multiplier, in (0, 1).
        patience: The number of means in a row without improvement, >= 1.
        rtol: $r$ in [0, 1]. For negative losses, it allows them to become worse by that much.
        atol: $a \ge 0$.
        cooldown: The number of means after a reduction that are not counted, >= 0.
        accumulation_size: The number of values in a mean, >= 1.
        min_scale: The lowest scale, >= 0.

    Returns:
        A transformation that keeps shapes and dtypes. State, shared by all leaves: `scale`, `best_value`,
        `plateau_count`, `cooldown_count`, `count` and `avg_value`, 0-d.

    Example:
        >>> tx = gradtx.reduce_on_plateau(factor=0.5, patience=2)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for value in (3.0, 2.0, 2.0, 2.0, 1.0):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state, value=value)
        ...     print(updates["w"].item())
        1.0
        1.0
        1.0
        0.5
        0.5

    Source: optax 0.2.8, contrib.reduce_on_plateau. Departures: `rtol` and `atol` may both be 0; counts are float64.
    """

    def update(update, state, param, ctx):
        value = exact(ctx.value, update.device)
        count = state["count"] + 1
        average = (state["count"] * state["avg_value"] + value) / count
        complete = count >= accumulation_size
        improved = average < (1 - rtol) * state["best_value"] - atol
        plateau = torch.where(improved, 0.0, state["plateau_count"] + 1)
        cools = state["cooldown_count"] > 0
        falls = ~cools & (plateau >= patience)
        lowered = torch.where(falls, state["scale"] * factor, state["scale"])
        # A scale below the bound rises to it, as in optax, but not while it cools.
        lowered = torch.where(cools, lowered, at_least(lowered, min_scale))
        waits = torch.where(falls, float(cooldown), 0.0)
        after = {
            "scale": lowered,
            "best_value": torch.where(improved, average, state["best_value"]),
            "plateau_count": torch.where(cools | falls, 0.0, plateau),
            "cooldown_count": torch.where(cools, state["cooldown_count"] - 1, waits),
            "count": torch.zeros_like(count),
            "avg_value": torch.zeros_like(average),
        }
        new_state = {
            name: torch.where(complete, x, state[name]) for name, x in after.items()
        }
        new_state["count"] = torch.where(complete, 0.0, count)
        new_state["avg_value"] = torch.where(complete, 0.0, average)
        return update * new_state["scale"].to(update.dtype), new_state

    return update
