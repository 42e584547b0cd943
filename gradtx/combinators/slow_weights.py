"""Slow weights around a transformation: Schedule-Free, lookahead with changes to the momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import (
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    OpenFraction,
    is_off,
)
from gradtx.base.exact import exact
from gradtx.combinators.frame import Frame
from gradtx.execution.traits import SYNCHRONIZES
from gradtx.maths.entries import (
    at_most,
    quotient,
    synchronized,
)
from gradtx.rules import combinator
from gradtx.slots import rounded, scalar, start
from gradtx.transform import GradientTransformation

__all__ = [
    "schedule_free",
    "with_lookahead",
]


@combinator(needs="params", owns_lr=True)
def schedule_free(
    base: GradientTransformation,
    lr,
    beta: OpenFraction,
    warmup_steps: NonNegativeInt = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    averaging: Fraction | None = None,
    decoupling_c: NonNegative = 0.0,
):
    r"""Step along a direction that is computed between the latest point and the average of all points.

    With $\eta_t = \eta \min(1, t / \mathrm{warmup})$, $L = \max_{i \le t} \eta_i$, $w_t = t^r L^{power}$,
    $a = w_t / \sum_{i \le t} w_i$ and $d_t$ the base's direction at $y$: $z \leftarrow z - \eta_t d_t$,
    $x \leftarrow (1-a) x + a z$, $y \leftarrow (1-\beta) z + \beta x$. The caller's parameters are $y$;
    evaluate and save $x$, which `eval_params` returns, and recompute batch norm statistics for it. No link that changes
    updates may follow.

    Args:
        base: The transformation of the gradient, without a learning rate: `chain()` for the gradient itself. Weight
            decay in it acts on $y$. An optimizer that estimates its learning rate, `prodigy` or one of `dadapt_*`,
            returns its rate times its direction, computed at $y$; `lr` multiplies the result, so set it to 1. Prefer
            `prodigy`, whose estimate uses the actual position of the weights; those of `dadapt_*` assume their own
            steps. `prodigy_schedule_free` measures the distance of $z$ and weighs points by its rate.
        lr: $\eta \ge 0$; no schedule is needed.
        beta: $\beta$ in (0, 1), the position of $y$ between $z$ and $x$; it acts as a momentum. Keep it constant:
            $x$ is computed with the current one.
        warmup_steps: Steps over which the rate rises to `lr`, >= 0.
        r: Exponent of the step in the weights of the average, >= 0.
        weight_lr_power: Exponent of the largest rate so far in these weights, >= 0.
        averaging: A constant $a$ in [0, 1] instead of these weights: an exponential average of the points, as in
            Generalized Primal Averaging. None for the weights of Schedule-Free.
        decoupling_c: $C \ge 0$: the average takes in the new point with $\min(1, a (1-\beta) C)$ instead of $a$, so
            that its length no longer depends on $\beta$; $1/(1-\beta)$ changes nothing, more forgets old points sooner.
            From 6 to 12 for short, noisy runs, from 50 to 200 for long ones; 0 for $a$ itself.

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, shaped like the parameter, `lr_max` and
        `weight_sum`, 0-d float64 per leaf (not with `averaging`), and the entries of `base`. $x$ is computed from
        $y$ and $z$; for 16-bit weights, which round $y$, it is stored as `x`. Both are float32 then.

    Raises:
        TypeError: If `base` is not a transformation.
        ValueError: If an argument is out of range, if `params` is missing, if `base` scales by a learning rate, if a
            later link scales by a learning rate or decays, or if both `averaging` and `decoupling_c` are given.

    Example:
        >>> tx = gradtx.schedule_free(gradtx.chain(), lr=1.0, beta=0.5)
        >>> params = {"w": torch.tensor([8.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):  # z: 6, 4, 2; x: 6, 5, 4; y is between
        ...     updates, state = tx.update({"w": torch.tensor([2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([3.]), tensor([4.]))

    Source: Defazio et al. 2024, arXiv:2405.15682; `averaging`: Defazio et al. 2025, arXiv:2512.17131; `decoupling_c`:
    Song et al. 2025, arXiv:2507.09846. Departures: none from the authors' released optimizers; with `averaging` decay
    is part of the direction (see `gpa_adamw`).
    """
    links = base._links()
    # A base that estimates its learning rate negates the update in its last link, as `prodigy` does.
    last = links[-1] if links else None
    descends = last is not None and last._lr_role == "owner" and last._sign == "flips"
    for link in links[:-1] if descends else links:
        if link._lr_role == "owner" or link._sign == "flips":
            raise ValueError(
                f"schedule_free: base must return a direction, but it contains {link._name}, which applies a learning "
                "rate; remove it and pass lr to schedule_free"
            )
    if averaging is not None and not is_off(decoupling_c):
        raise ValueError(
            "schedule_free: decoupling_c changes the weights of Schedule-Free, but averaging replaces them; omit one"
        )

    sign = -1.0 if descends else 1.0

    slots = {
        **points(beta),
        "lr_max": scalar(-1.0) if averaging is None else None,
        "weight_sum": scalar() if averaging is None else None,
    }

    def share_of(rate, state, ctx):
        """Return the share of the new point in the average, and the slots that determine the next share."""
        if averaging is not None:
            return averaging, {}
        largest = torch.maximum(state["lr_max"], rate)
        weight = ctx.time**r * largest**weight_lr_power
        weight_sum = state["weight_sum"] + weight
        numbers = {"lr_max": largest, "weight_sum": weight_sum}
        share = quotient(weight, weight_sum)
        return decoupled(share, beta, decoupling_c), numbers

    def leave(update, state, y, ctx):
        rate = exact(lr, y.device)
        if warmup_steps:
            rate = rate * at_most(ctx.time / warmup_steps, 1)
        share, numbers = share_of(rate, state, ctx)
        step, moved = points_moved(state, y, sign * update, rate, share, beta)
        return step, {**moved, **numbers}

    def evaluate(state, y):
        x = average_of(state, y, beta)
        if averaging is not None:
            return x
        # Exactly the caller's parameters before the first step.
        return torch.where(state["lr_max"] < 0, y, x)

    return Frame(base, slots, leave=leave, evaluate=evaluate)


# The three sequences of Schedule-Free: z, where steps are taken, their average x, and the caller's parameters y.


def points(beta) -> dict[str, Any]:
    """Return the slots of the sequences; x is stored for 16-bit weights, which round y, and computed otherwise.

    A beta of None stands for a slot `beta`, which has that of the present y.
    """

    def average(state, y):
        return _extrapolated(state["z"], y, state["beta"] if beta is None else beta)

    return {"z": start(slow=True), "x": rounded(start(slow=True), average)}


def average_of(state: Mapping[str, Tensor], y: Tensor, beta) -> Tensor:
    r"""Return x, from $y = (1-\beta) z + \beta x$ if it is not stored."""
    return state["x"] if "x" in state else _extrapolated(state["z"], y, beta)


def _extrapolated(z: Tensor, y: Tensor, beta) -> Tensor:
    return z + (y - z) / beta


def points_moved(
    state: Mapping[str, Tensor],
    y: Tensor,
    direction: Tensor,
    rate,
    share,
    beta,
    old_beta=None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Step z against a direction, let the average take in its share of it, and return the step of y and the slots.

    `old_beta` is the beta with which the present y was computed, unless it is constant.
    """
    z = state["z"]
    moved = z - rate * direction
    kept = beta * (1 - share)
    if "x" in state:
        x = state["x"]
        # Differences, because small steps would vanish in sums of weights.
        step = (x - y) + (1 - kept) * ((z - x) - rate * direction)
        return step, {"z": moved, "x": x + share * (moved - x)}
    # y' - y, with x computed from y and the z before and after the step
    pull = share if old_beta is None else 1 - kept / old_beta
    return pull * (z - y) - (rate * (1 - kept)) * direction, {"z": moved}


def decoupled(share: Tensor, beta, decoupling_c) -> Tensor:
    r"""Return the share $\min(1, a (1-\beta) C)$ in place of $a$, or $a$ itself if $C = 0$."""
    if is_off(decoupling_c):
        return share
    constant = exact(decoupling_c, share.device)
    return torch.where(constant > 0, at_most(share * (1 - beta) * constant, 1), share)


MOMENTA = ("momentum_buffer", "exp_avg")


@combinator(needs="params")
def with_lookahead(
    tx: GradientTransformation,
    k: Count = 5,
    alpha: Fraction = 0.5,
    pullback_momentum: Literal["none", "reset", "pullback"] = "none",
):
    r"""Apply `lookahead` to a transformation, with a choice of what happens to its momentum at each synchronization.

    Args:
        tx: The transformation whose updates are applied to the fast weights.
        k: Steps between synchronizations, >= 1.
        alpha: $\alpha$ in [0, 1].
        pullback_momentum: "none" leaves the inner momentum (`momentum_buffer`, `exp_avg`) unchanged, "reset" sets it to
            0, "pullback" treats it like the weights: $s_m \leftarrow s_m + \alpha (m - s_m)$, $m \leftarrow s_m$, from
            $s_m = 0$. Second moments, counts and slots of rules for whole trees (the mean of `friendly_sam`) are never
            changed.

    Returns:
        A transformation with the state `slow`, with "pullback" also `slow_momentum` (`slow_momentum_1` for a second
        momentum), and the entries of `tx`. `eval_params` returns `slow`.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If an argument is out of range, if `pullback_momentum` is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.with_lookahead(
        ...     gradtx.sgd(lr=1.0, momentum=0.9), k=1, pullback_momentum="reset"
        ... )
        >>> params = {"w": torch.zeros(1)}
        >>> _, state = tx.update({"w": torch.ones(1)}, tx.init(params), params)
        >>> state["with_lookahead"]["trace"]["momentum_buffer"]["w"]
        tensor([0.])

    Source: Zhang et al. 2019, arXiv:1907.08610. Departures: none from the paper; in the authors' code "pullback" has
    no effect after its first use, because the copy that it stores is the live buffer.
    """
    pulls_back = pullback_momentum == "pullback"

    def init(param, momenta):
        slots = {"slow": param}
        if pulls_back:
            for i, momentum in enumerate(momenta.values()):
                slots[_slow(i)] = torch.zeros_like(momentum)
        return slots

    def leave(update, state, param, ctx):
        now = ctx.step % k == 0
        new_state = {"slow": synchronized(now, state["slow"], param + update, alpha)}
        update = ctx.keep(torch.where(now, new_state["slow"] - param, update), update)
        if pullback_momentum == "none":
            return update, new_state
        momenta = {}
        for i, (name, momentum) in enumerate(ctx.inner.items()):
            start = 0.0
            if pulls_back:
                slow = _slow(i)
                start = new_state[slow] = synchronized(
                    now, state[slow], momentum, alpha
                )
            momenta[name] = torch.where(now, start, momentum)
        return update, new_state, momenta

    def evaluate(state, param):
        return state["slow"]

    return Frame(
        *(tx, init),
        leave=leave,
        evaluate=evaluate,
        inner_slots=MOMENTA,
        by_rows=SYNCHRONIZES,
    )


def _slow(i: int) -> str:
    """Return the name of the slot for the slow copy of the i-th momentum."""
    return f"slow_momentum_{i}" if i else "slow_momentum"
