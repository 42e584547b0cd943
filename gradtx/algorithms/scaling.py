"""Links that scale updates, delay them, mask them at random, or record them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import (
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Scalar,
    Static,
)
from gradtx.base.dtensor import full_tensor
from gradtx.base.errors import Path
from gradtx.base.exact import exact
from gradtx.maths.entries import (
    at_least,
    largest,
    norm,
    quotient,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import per_tensor
from gradtx.slots import linear, scalar

__all__ = [
    "descend",
    "hold_until",
    "mask_by_alignment",
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
        if not re.fullmatch(r"record(_\d+)?", path[-1]):
            continue
        stage = "/".join(path)
        # By slot and leaf: the value, or those of its blocks, which slots of other shapes number.
        slots: dict[str, dict[str, list[Tensor]]] = {}
        for name, value in entry.items():
            if isinstance(value, Tensor):
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
    for each in what:
        if each not in SUMS_OF:
            raise ValueError(
                f"record: what must contain names among {', '.join(SUMS_OF)}, got {each!r}"
            )
        names = [each] if per == "leaf" else [f"{each}_{key}" for key in SUMS_OF[each]]
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

        new = {"previous": u} if "cos_previous" in what else {}
        for each in what:
            sums = {key: total(key) for key in SUMS_OF[each]}
            if per == "leaf":
                new[each] = quantity(each, sums)
            else:
                new.update({f"{each}_{key}": value for key, value in sums.items()})
        return u, new

    return slots, update


@per_tensor(random=True)
def mask_by_alignment(
    keep: Fraction = 0.5,
    tau: Positive = 2.0,
    momentum: Decay = 0.9,
    smoothing: Decay = 0.9,
    *,
    seed: int = 0,
):
    r"""Skip the update of a leaf at random, and scale the others by the agreement of gradient and momentum: Magma.

    $m \leftarrow \mu m + (1-\mu) g$ and
    $s \leftarrow \sigma s + (1-\sigma)\, \mathrm{sigmoid}(\cos(m, g) / \tau)$ from $s = 1$; the update is $z s u$. Here
    z is 1 with probability `keep` and else 0, the same for all entries of the leaf. There is no division by
    that: steps shrink to about 0.3 of themselves, so raise the rate. Use it as the last link: weight decay in
    $u$ is masked, too, and links before it see every gradient.

    Args:
        keep: Probability of a step, in [0, 1].
        tau: $\tau > 0$, temperature of the agreement.
        momentum: $\mu$ in [0, 1).
        smoothing: $\sigma$ in [0, 1).
        seed: Seed of the masks, which also depend on the step and the name of the leaf.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter; `alignment`
        ($s$), 0-d; `seed` and `counter`, shared by the whole stage. Leaves that must move together, such as those of
        `precondition_pairs`, should both be outside, by `masked`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.mask_by_alignment(keep=0.25, smoothing=0.0, tau=1.0)
        >>> params = {f"layer{i}": torch.ones(2) for i in range(1000)}
        >>> updates, _ = tx.update(params, tx.init(params))
        >>> moved = torch.stack(list(updates.values()))[:, 0]
        >>> f"{(moved > 0).float().mean():.2f}", moved.max()  # sigmoid(1)
        ('0.25', tensor(0.7311))

    Source: arXiv:2602.15322 and magma-optimizer 0.1.1. Departures: always an average of the gradient itself, which
    equals Adam's for equal decay rates.
    """

    def init(param, rng):
        return {
            "momentum_buffer": torch.zeros_like(param),
            "alignment": param.new_ones(()),
        }

    def update(u, state, p, ctx):
        g = ctx.grad
        m = running_mean(state["momentum_buffer"], g, momentum)
        cosine = (m * g).sum() / (at_least(norm(m), 1e-8) * at_least(norm(g), 1e-8))
        s = running_mean(state["alignment"], torch.sigmoid(cosine / tau), smoothing)
        z = (ctx.rng.uniform(state["alignment"]) < keep).to(u.dtype)
        return z * s * u, {"momentum_buffer": m, "alignment": s}

    return init, update
