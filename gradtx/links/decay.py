"""Weight decay as a link, and how optimizers combine a direction with it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from gradtx.arguments import NonNegative, Positive, Scalar, is_off
from gradtx.base.exact import exact
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import may_decay, plus_decay, quotient, safe_sqrt, unit_norm
from gradtx.rules import per_tensor
from gradtx.slots import Slot, scalar, weights
from gradtx.transform import chain

__all__ = ["add_decayed_weights", "add_norm_loss", "regenerate_towards_init"]


def stable_decay(weight_decay, total):
    """Return the decay over the root of a mean over all leaves, from its sums `square` and `count`, or 0 if it is 0."""
    return weight_decay * safe_sqrt(
        quotient(total["count"], total["square"], total["square"] > 0)
    )


def decay_or_regenerate(
    weight_decay,
    rate,
    lr,
    relative: bool,
    cautious: bool = False,
    wasserstein: bool = False,
):
    if not (is_off(weight_decay) or is_off(rate)):
        raise ValueError(
            "weight_decay and regen_reg_rate are mutually exclusive; set one of them to 0.0"
        )
    relative_to = lr if relative else None
    if is_off(rate):
        return add_decayed_weights(
            weight_decay, cautious=cautious, relative_to=relative_to
        )
    return regenerate_towards_init(rate, wasserstein, relative_to=relative_to)


@per_tensor(elementwise=True, needs="params", rate="after")
def decay_after_step(
    lr, weight_decay, cautious: Literal[True, False, "inclusive"] = False
):
    r"""Multiply the weights by $1 - \eta \lambda$ after the step; if cautious, where the step shrinks them."""
    factor = 1 - lr * weight_decay

    def update(update, state, param, ctx):
        moved = param + update
        if not cautious:
            return factor * moved - param, state
        decays = may_decay(-update, param, cautious)
        return torch.where(decays, factor * moved, moved) - param, state

    return update


@per_tensor(elementwise=True, needs="params", rate="before")
def add_decayed_weights(
    weight_decay,
    *,
    fixed=False,
    cautious: Literal[True, False, "inclusive"] = False,
    relative_to: Scalar | None = None,
    corrected_by: NonNegative | None = None,
    max_lr: Positive | None = None,
):
    r"""Pull weights toward 0 (weight decay): add $\lambda p$ to the update.

    As the first link of a chain, this is coupled (L2) decay; directly before `scale_by_learning_rate`, it is decoupled
    decay, $p (1 - \eta \lambda)$; after it, with `fixed`, it is $p (1 - \lambda)$.
    To decay only some parameters, use `masked(add_decayed_weights(...), where)`.

    Args:
        weight_decay: $\lambda \ge 0$. A literal 0.0 omits the link.
        fixed: Subtract $\lambda p$ instead of adding it, for use after the learning rate.
        cautious: Decay only where the update and the weight have the same sign; with "inclusive", also where either is
            0, such as rows of an embedding without a gradient.
        relative_to: The learning rate: $\lambda$ is divided by its first value, or if that is 0 by the
            largest so far.
        corrected_by: The learning rate: $\lambda$ is multiplied by its ratio to `max_lr`, so that the decay is
            $\lambda \eta_t^2 / \eta_{max}$ (AdamC). Not with `relative_to`.
        max_lr: $\eta_{max} > 0$; None for the largest rate so far. Only with `corrected_by`.

    Returns:
        A transformation that keeps shapes and dtypes. State: none, or one 0-d float64 slot per leaf: `initial_lr` with
        `relative_to`, `lr_max` with `corrected_by` and no `max_lr`.

    Raises:
        ValueError: If `fixed` is combined with `cautious` or `relative_to` with `corrected_by`, or if `max_lr` is given
            without `corrected_by`.

    Example:
        >>> tx = gradtx.chain(
        ...     gradtx.add_decayed_weights(0.5), gradtx.scale_by_learning_rate(0.1)
        ... )
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([0.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000])

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101; cautious: Chen et al. 2025, arXiv:2510.12402; corrected_by:
    Defazio 2025, arXiv:2506.02285. Departures: `cautious=True` excludes 0, which the paper includes; `fixed` is an
    option of adabelief-pytorch 0.2, `relative_to` of adam-atan2-pytorch 0.4.1.
    """
    if fixed and cautious:
        raise ValueError(
            "add_decayed_weights: fixed and cautious cannot be combined: cautious needs a direction, fixed applies "
            "after the learning rate"
        )
    if relative_to is not None and corrected_by is not None:
        raise ValueError(
            "add_decayed_weights: relative_to and corrected_by cannot be combined; pass only one"
        )
    if max_lr is not None and corrected_by is None:
        raise ValueError(
            "add_decayed_weights: max_lr is the divisor of corrected_by; pass corrected_by as well"
        )
    if is_off(weight_decay):
        return chain()
    strength = -weight_decay if fixed else weight_decay

    def update(u, state, p, ctx):
        rate, new_state = strength, state
        if relative_to is not None:
            reference, new_state = reference_lr(state, relative_to)
            rate = quotient(strength, reference)
        elif corrected_by is not None:
            lr = exact(corrected_by, u.device)
            if max_lr is not None:
                rate = strength * lr / max_lr
            else:
                peak = torch.maximum(state["lr_max"], lr)
                rate = strength * quotient(lr, peak, otherwise=1.0)
                new_state = {"lr_max": peak}
        return plus_decay(u, rate, p, cautious=cautious), new_state

    slots = {
        "initial_lr": initial_lr(relative_to),
        "lr_max": scalar() if corrected_by is not None and max_lr is None else None,
    }
    return (slots, update) if any(slots.values()) else update


@per_tensor(
    elementwise=lambda arguments: not arguments["wasserstein"],
    needs="params",
    rate="before",
)
def regenerate_towards_init(
    rate: NonNegative, wasserstein=False, *, relative_to: Scalar | None = None
):
    r"""Pull weights toward their initial values (regenerative regularization): add $\rho (p - p_0)$.

    Args:
        rate: $\rho \ge 0$. A literal 0.0 omits the link.
        wasserstein: Pull the distribution of a leaf's weights: the entry of rank i toward the i-th smallest initial
            value.
        relative_to: The learning rate: $\rho$ is divided by its first value, or if that is 0 by the
            largest so far.

    Returns:
        A transformation that keeps shapes and dtypes. State: `param_init`, shaped as the parameter (in ascending order
        with `wasserstein`), and with `relative_to` `initial_lr`, 0-d float64 for each leaf.

    Example:
        >>> tx = gradtx.regenerate_towards_init(0.1)
        >>> state = tx.init({"w": torch.tensor([1.0])})
        >>> tx.update({"w": torch.tensor([0.0])}, state, {"w": torch.tensor([3.0])})[0]["w"]
        tensor([0.2000])

    Source: Kumar et al. 2023, arXiv:2308.11958; wasserstein: Lewandowski et al. 2024, arXiv:2406.06811. Departures:
    none; `relative_to` is from adam-atan2-pytorch 0.4.1.
    """
    if is_off(rate):
        return chain()

    def target(param):
        if not wasserstein:
            return param
        return param.flatten().sort().values.view_as(param)

    def update(u, state, p, ctx):
        target = state["param_init"]
        if wasserstein:
            rank = p.flatten().argsort(stable=True).argsort()
            target = target.flatten()[rank].view_as(p)
        strength, new_state = rate, state
        if relative_to is not None:
            reference, slot = reference_lr(state, relative_to)
            strength, new_state = quotient(rate, reference), {**state, **slot}
        return u + strength * (p - target), new_state

    slots = {
        "param_init": weights(target),
        "initial_lr": initial_lr(relative_to),
    }
    return slots, update


def initial_lr(lr) -> Slot | None:
    """Declare the slot of a leaf's initial learning rate, with which later ones are compared; None without a rate."""
    if lr is None:
        return None
    first = scalar(lambda param: exact(lr, param.device))
    return dataclasses.replace(first, relative=True)


def reference_lr(state, lr) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a leaf's initial learning rate, or if that is 0 the largest so far; and its slot.

    The first rate above 0 of a warm-up from 0 would be far below the later ones. A negative slot is minus the largest.
    """
    first = state["initial_lr"]
    largest = torch.maximum(-first, exact(lr, first.device))
    is_first = first > 0
    slot = {"initial_lr": torch.where(is_first, first, -largest)}
    return torch.where(is_first, first, largest), slot


@per_tensor(needs="params")
def add_norm_loss(factor: NonNegative = 1e-4, eps=1e-8):
    r"""Pull the norm of each output unit's weights to 1: add $2 \lambda (1 - 1/(\lVert p_i \rVert + \epsilon)) p_i$.

    Args:
        factor: $\lambda \ge 0$.
        eps: $\epsilon \ge 0$; use a positive value if a unit may have norm 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.add_norm_loss(factor=0.5)
        >>> params = {"w": torch.tensor([[0.0, 2.0], [1.0, 0.0]])}
        >>> tx.update({"w": torch.zeros(2, 2)}, tx.init(params), params)[0]["w"]
        tensor([[0., 1.],
                [0., 0.]])

    Source: Georgiou et al. 2021, arXiv:2103.06583. Departures: eps.
    """

    def update(update, state, param, ctx):
        return update + 2 * factor * (1 - 1 / (unit_norm(param) + eps)) * param, state

    return update


def decayed(direction, weight_decay, decoupled: bool):
    """Chain a direction with weight decay before it (coupled) or after it (decoupled)."""
    decay = add_decayed_weights(weight_decay)
    return chain(direction, decay) if decoupled else chain(decay, direction)


def split_decay(weight_decay, decoupled: bool) -> tuple:
    """Return the coupled and the decoupled weight decay, one of which is 0."""
    return (0.0, weight_decay) if decoupled else (weight_decay, 0.0)


def with_decay(direction, weight_decay, decoupled: bool, lr, fixed: bool = False):
    """Chain a direction, its weight decay before it (coupled) or after it (decoupled), and the learning rate.

    A `fixed` decay is not multiplied by the learning rate, so it comes last; `fixed` is read only if decoupled.
    """
    rate = scale_by_learning_rate(lr)
    if fixed and decoupled:
        return chain(direction, rate, add_decayed_weights(weight_decay, fixed=True))
    return chain(decayed(direction, weight_decay, decoupled), rate)
