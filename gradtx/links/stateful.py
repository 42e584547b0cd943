"""Factors and measurements that a function of the user's computes from updates, losses and other values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import Decay, Static
from gradtx.base.exact import exact
from gradtx.base.inputs import parameters_of
from gradtx.base.messages import describe
from gradtx.maths.entries import safe_sqrt
from gradtx.rules import per_tensor, whole_tree

__all__ = ["measure", "scale_by_stateful"]


def _read_by(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the extras that a function reads: its parameters but the first, and but the norm."""
    return {
        name: "scalar" for name in _parameters(arguments["step"])[1:] if name != "norm"
    }


def _parameters(function: Any) -> list[str]:
    return [parameter.name for parameter in parameters_of(function)]


def _start(arguments: Mapping[str, Any]) -> Mapping[str, float]:
    start = arguments["start"]
    return start if isinstance(start, Mapping) else {}


@per_tensor(elementwise=True, extras=_read_by, shared=_start, by_rows=True)
def scale_by_stateful(
    step: Static[Callable[..., Any]], start: Static[Mapping[str, float]]
):
    r"""Multiply updates by a factor that a function computes from the loss, norms or extras, with a state of its own.

    A learning rate that reads values: the function runs once per update, and its state is part of the chain's, so that
    it is saved, mapped by `vmap` and captured. A schedule depends on the count alone.

    Args:
        step: `step(state, ...) -> (factor, state)`, pure, with 0-d tensors and `torch.where` in place of `if`. `state`
            is a dict with the keys of `start`. Other parameters are read by name: `norm`, the norm of all updates at
            this position; `value`, the loss; or any number that the caller passes to `update` or `step`.
        start: The first state: numbers by name.

    Returns:
        A transformation that keeps shapes and dtypes. State, shared by all leaves: the entries of `start`, such as
        `scale`, 0-d float64.

    Raises:
        TypeError: If `step` is not a function, if `start` is no dict of numbers, or if `step` returns another state.
        ValueError: If an extra that `step` reads is missing.

    Example:
        >>> def halve_after_rises(state, value):
        ...     scale = torch.where(value > state["last"], state["scale"] / 2, state["scale"])
        ...     return scale, {"last": value, "scale": scale}
        >>> start = {"last": float("inf"), "scale": 1.0}
        >>> tx = gradtx.scale_by_stateful(halve_after_rises, start)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for value in (3.0, 2.0, 5.0):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state, value=value)
        ...     print(updates["w"].item())
        1.0
        1.0
        0.5
    """
    if not callable(step):
        raise TypeError(
            f"scale_by_stateful: step must be a function of a state, got {describe(step)}"
        )
    if not isinstance(start, Mapping) or not all(
        isinstance(value, int | float) for value in start.values()
    ):
        raise TypeError(
            f"scale_by_stateful: start must be a dict of numbers, got {describe(start)}"
        )
    names = _parameters(step)[1:]

    def scaled(update, state, ctx, norm):
        device = update.device
        inputs = {
            name: norm if name == "norm" else exact(getattr(ctx, name), device)
            for name in names
        }
        factor, new_state = step({name: state[name] for name in start}, **inputs)
        if not isinstance(new_state, Mapping) or new_state.keys() != start.keys():
            raise TypeError(
                f"scale_by_stateful: step must return (factor, state) with the state {sorted(start)}, got "
                f"{describe(new_state)}"
            )
        new_state = {name: exact(value, device) for name, value in new_state.items()}
        return update * exact(factor, device).to(update.dtype), new_state

    def update(update, state, param, ctx):
        return scaled(update, state, ctx, None)

    def update_by_norm(update, state, param, ctx):
        total = yield {"square": update.square().sum()}
        yield scaled(update, state, ctx, safe_sqrt(total["square"]))

    return update_by_norm if "norm" in names else update


@whole_tree(capturable=True)
def measure(
    name: Static[str],
    fn: Static[Callable[[dict[str, Tensor]], Any]],
    decay: Decay = 0.0,
    debias=True,
):
    r"""Store a quantity of all updates at this position, or its running average; updates pass unchanged.

    $m_t = \beta m_{t-1} + (1 - \beta) f(u_t)$, stored as $m_t / (1 - \beta^t)$ with `debias`. `gradtx.recorded(state)`
    and `optimizer.recorded()` return it. It runs outside programs, so prefer `record` where that knows the quantity.

    Args:
        name: The key of the quantity in the state.
        fn: A function of a dict of updates by leaf name that returns a 0-d tensor, without reading values on the host.
        decay: $\beta$ in [0, 1); 0 stores the last value.
        debias: Whether to divide by $1 - \beta^t$.

    Returns:
        A transformation that leaves updates unchanged. State: `name`, and with a decay `mean`, 0-d.

    Raises:
        TypeError: If `fn` is not callable.
        ValueError: If `name` is not an identifier, or is "step" or "mean".

    Example:
        >>> tx = gradtx.measure("last", lambda updates: updates["w"][-1])
        >>> updates = {"w": torch.tensor([3.0, -4.0])}
        >>> _, state = tx.update(updates, tx.init(updates))
        >>> gradtx.recorded(state)
        {'measure/last': -4.0}
    """
    if not name.isidentifier() or name in ("step", "mean"):
        raise ValueError(
            f"measure: name must be an identifier other than 'step' and 'mean', got {name!r}"
        )
    if not callable(fn):
        raise TypeError(
            f"measure: fn must be a function of updates, got {describe(fn)}"
        )

    def init(params):
        device = next(iter(params.values())).device if params else torch.device("cpu")
        zero = exact(0.0, device)
        return {name: zero, "mean": zero.clone()}

    def update(updates, state, params, ctx):
        value = exact(fn(updates), state["mean"].device)
        mean = decay * state["mean"] + (1 - decay) * value
        shown = mean / ctx.bias_correction(decay) if debias else mean
        return updates, {name: shown, "mean": mean}

    return init, update
