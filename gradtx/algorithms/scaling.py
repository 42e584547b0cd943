"""Links that scale updates, delay them, or record them."""

from __future__ import annotations

import torch

from gradtx.algorithms._math import safe_sqrt
from gradtx.arguments import NonNegative, NonNegativeInt, Scalar, Static
from gradtx.rules import per_tensor

__all__ = [
    "descend",
    "hold_until",
    "record",
    "scale",
    "scale_by_inverse_time",
    "scale_by_learning_rate",
    "zero_nans",
]


@per_tensor(elementwise=True)
def scale(factor: Scalar):
    r"""Multiply every update by a number: $u \mapsto c u$.

    Args:
        factor: Any number, of either sign.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale(-2.0)
        >>> tx.update({"w": torch.tensor([1.0, 3.0])}, tx.init({}))[0]["w"]
        tensor([-2., -6.])
    """

    def update(update, state, param, ctx):
        return factor * update, state

    return update


@per_tensor(elementwise=True, rate="before")
def scale_by_learning_rate(lr):
    r"""Turn a direction into a step downhill: $u \mapsto -\eta_t u$.

    Args:
        lr: The learning rate $\eta$, in [0, inf); a schedule returns $\eta_t$, and the first update uses `lr(0)`.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `lr` is negative, or if the link follows one that owns the learning rate.

    Example:
        >>> tx = gradtx.scale_by_learning_rate(gradtx.Schedule(lambda step: 0.1 * (step + 1)))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> first, state = tx.update({"w": torch.ones(1)}, state)
        >>> second, state = tx.update({"w": torch.ones(1)}, state)
        >>> first["w"], second["w"]
        (tensor([-0.1000]), tensor([-0.2000]))
    """
    factor = -lr

    def update(update, state, param, ctx):
        return factor * update, state

    return update


@per_tensor(elementwise=True, owns_lr=True)
def descend():
    r"""Turn a direction that includes its rate into a step downhill: $u \mapsto -u$.

    Last link of a chain with `scale_by_prodigy` or one of `scale_by_dadapt_*`, which determine a rate themselves.

    Returns:
        A transformation that keeps shapes and dtypes; no state. Its updates are added to the parameters.

    Raises:
        ValueError: If a later link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.chain(gradtx.scale_by_prodigy(d0=0.5), gradtx.descend())
        >>> params = {"w": torch.tensor([3.0])}
        >>> # 0.1 / sqrt(0.001) of d0
        >>> tx.update({"w": torch.tensor([7.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.5811])
    """

    def update(update, state, param, ctx):
        return -update, state

    return update


@per_tensor(elementwise=True)
def scale_by_inverse_time(lr_decay: NonNegative):
    r"""Decrease the learning rate with time: $u \mapsto u / (1 + (t-1) \kappa)$.

    Place it directly before `scale_by_learning_rate`, so that decoupled weight decay decreases as well.

    Args:
        lr_decay: $\kappa \ge 0$, per step; the first step uses the full rate.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `lr_decay` is negative.

    Example:
        >>> tx = gradtx.scale_by_inverse_time(1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([0.5000])
        tensor([0.3333])

    Source: the `lr_decay` of torch.optim.Adagrad. Departures: none.
    """

    def update(update, state, param, ctx):
        return update / (1 + (ctx.time - 1) * lr_decay), state

    return update


@per_tensor(elementwise=True)
def hold_until(t0: NonNegativeInt):
    """Return zero updates before step `t0`, while earlier links update their state.

    Last link of a chain. Steps count from 1, so `hold_until(1)` has no effect.

    Args:
        t0: The first step whose update passes, >= 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `t0` is negative.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(1.0), gradtx.hold_until(2))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([2.])
    """

    def update(update, state, param, ctx):
        direction = ctx.when(
            lambda step: step < t0, lambda: torch.zeros_like(update), lambda: update
        )
        return direction, state

    return update


@per_tensor(elementwise=True)
def zero_nans():
    """Replace every NaN by 0; infinities are unchanged.

    First link of a chain, before any link that keeps state. `ctx.grad` still contains the NaN: links that read the
    gradient itself need `skip_nonfinite` instead.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.zero_nans()
        >>> tx.update({"w": torch.tensor([torch.nan, torch.inf, 2.0])}, tx.init({}))[0]["w"]
        tensor([0., inf, 2.])
    """

    def update(update, state, param, ctx):
        return torch.where(update.isnan(), 0.0, update), state

    return update


@per_tensor(elementwise=True, shared=lambda arguments: {arguments["name"]: 0.0})
def record(name: Static[str]):
    """Record the 2-norm of the whole update tree at this position of the chain; updates pass unchanged.

    Values that links compute themselves are already in the state: `gradtx.get(state, "d")` is the rate of
    `scale_by_prodigy`, `"max_dist"` the distance of `scale_by_dog`, `"lb"` the lower bound of `scale_by_momo`.

    Args:
        name: The key of the value in the state: `state["record"][name]`, or `state["record_1"][name]` for a second
            `record`.

    Returns:
        A transformation that leaves updates unchanged. State: one 0-d float64 shared by all leaves.

    Raises:
        ValueError: If `name` is not an identifier or is "step".

    Example:
        >>> tx = gradtx.chain(
        ...     gradtx.record("before"), gradtx.clip_by_global_norm(1.0), gradtx.record("after")
        ... )
        >>> _, state = tx.update(
        ...     {"w": torch.tensor([3.0, 4.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> f"{state['record']['before']:.3f}, {state['record_1']['after']:.3f}"
        '5.000, 1.000'
    """
    if not name.isidentifier() or name == "step":
        raise ValueError(
            f"record: name must be an identifier other than 'step', which is the count's key, got {name!r}"
        )

    def update(update, state, param, ctx):
        total = yield {"square": update.square().sum()}
        yield update, {name: safe_sqrt(total["square"])}

    return update
