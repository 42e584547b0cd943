"""Combinators with a clock, whose inner transformation does not update in every call or starts again."""

from __future__ import annotations

import torch

from gradtx.arguments import Count, NonNegativeInt
from gradtx.base.exact import exact_dtype
from gradtx.combinators.frame import Frame, InnerClock
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = ["accumulate", "restart", "skip_nonfinite"]


@combinator
def accumulate(tx: GradientTransformation, every: Count):
    r"""Average the gradients of `every` calls and update once.

    Calls in between return zero updates. The inner transformation has its own clock, which counts actual updates;
    inner schedules follow this clock, and `ctx.grad` is the averaged gradient. A None gradient counts as zero; a leaf
    without any gradient in a cycle is skipped, and its own count does not advance. Extras (`value`, `hessian_diag`) are
    not averaged: `tx` receives those of the last call of a cycle, so pass a mean loss there to rules that read it. A
    call in which no leaf has a gradient is not part of a cycle.

    Args:
        tx: The transformation of the averaged gradient.
        every: Number of calls in a cycle, >= 1. A loaded optimizer has the number of its checkpoint; write
            `group["every"]` to change it. Pure functions have that of the code.

    Returns:
        A transformation with the state `step` and `mini_step` (int64), `acc` (the sum so far, shaped as the
        parameter), `seen` (a bool per leaf), `leaf_steps` (int64: the updates of each leaf) and the entries of `tx`.
        With `every=1` updates are those of `tx`, except that a rule for whole trees sees a missing gradient as zeros.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If `every` is less than 1.

    Example:
        >>> tx = gradtx.accumulate(gradtx.sgd(lr=1.0), every=2)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for gradient in (1.0, 3.0):
        ...     updates, state = tx.update({"w": torch.tensor([gradient])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-2.])
    """

    def ticks(values, sums):
        calls = values["mini_step"] + 1
        complete = calls >= every
        mini_step = torch.where(complete, 0, calls)
        return complete, {"mini_step": mini_step}

    def init(param):
        return {
            "acc": torch.zeros_like(param),
            "seen": torch.zeros((), dtype=torch.bool, device=param.device),
        }

    def enter(update, state, param, ctx):
        total, seen = state["acc"], state["seen"]
        if update is not None:
            total = ctx.keep(total + update, total)
            seen = ctx.keep(torch.ones_like(seen), seen)
        emptied = torch.where(ctx.ticks, 0.0, total)
        return total / every, {"acc": emptied, "seen": seen & ~ctx.ticks}, seen

    clock = InnerClock(ticks, start={"mini_step": 0})
    return Frame(tx, init, enter, clock=clock, takes_none="acc", agree={"every": every})


@combinator
def skip_nonfinite(
    tx: GradientTransformation, max_consecutive: NonNegativeInt | None = None
):
    """Skip an update, including its changes to state and count, if any leaf has a non-finite entry.

    A skipped call returns zero updates. The inner clock counts actual updates. No value is read on the host. Of finite
    gradients, updates are those of `tx`.

    Args:
        tx: The transformation of finite updates.
        max_consecutive: The most calls to skip in a row, >= 0; further non-finite updates pass, so that a run that has
            diverged shows it. None never gives up.

    Returns:
        A transformation with the state `step` and `skipped` (int64: the number of calls that did and did not count),
        with `max_consecutive` also `consecutive` (int64: the non-finite calls since the last finite one), `leaf_steps`
        (int64: the updates of each leaf) and the entries of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If `max_consecutive` is negative.

    Example:
        >>> tx = gradtx.skip_nonfinite(gradtx.sgd(lr=1.0))
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([float("nan")])}, tx.init({"w": torch.zeros(1)})
        ... )
        >>> updates["w"], state["skip_nonfinite"]["skipped"]
        (tensor([0.]), tensor(1))
    """

    def measure(update):
        return {"bad": (~update.isfinite()).sum().to(exact_dtype(update))}

    def ticks(values, sums):
        skipped = values["skipped"]
        counts = (sums["bad"] == 0).to(skipped.device)
        new_values = {}
        if max_consecutive is not None:
            consecutive = torch.where(counts, 0, values["consecutive"] + 1)
            counts = counts | (consecutive > max_consecutive)
            new_values["consecutive"] = consecutive
        new_values["skipped"] = torch.where(counts, skipped, skipped + 1)
        return counts, new_values

    def enter(update, state, param, ctx):
        # The inner rules run in any case; they get zeros, so that no NaN propagates through the gradient of `where`.
        return torch.where(ctx.ticks, update, 0.0), state

    names = ("skipped",) if max_consecutive is None else ("consecutive", "skipped")
    return Frame(
        tx,
        enter=enter,
        clock=InnerClock(ticks, dict.fromkeys(names, 0), measure),
        agree={"max_consecutive": max_consecutive},
    )


@combinator
def restart(tx: GradientTransformation, every: Count, keep_clock=False):
    r"""Reset a transformation to the state of its `init` before each step t with $t \bmod N = 0$.

    All slots and shared values are reset (those that depend on the parameters use the current parameters), and so is
    the inner clock: after a restart, bias corrections are those of t = 1, and inner schedules start again. The first
    period has $N - 1$ steps. A leaf without a gradient at step t is skipped, and its slots are not reset.

    Args:
        tx: The transformation to restart.
        every: $N \ge 1$.
        keep_clock: Do not reset the clock. Bias corrections are then near 1 after a restart: Adam's first step is
            $(1-\beta_1) / \sqrt{1-\beta_2}$ times as long, 3.2 at its defaults (see `restart_warmup_schedule`).

    Returns:
        A transformation with the entries of `tx` and, unless `keep_clock` is set, `step` and, for each leaf,
        `leaf_steps` (int64: the updates since the restart).

    Raises:
        TypeError: If `tx` is not a transformation, or if it contains a rule on whole trees.
        ValueError: If `every` is less than 1.

    Example:
        >>> tx = gradtx.restart(gradtx.trace(1.0), every=3)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(5):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"].item())
        1.0
        2.0
        1.0
        2.0
        3.0

    Source: Huang et al. 2025, arXiv:2501.06842, where the clock continues; Huang et al. 2025, arXiv:2502.17055, where
    it restarts. Departures: none.
    """

    def is_due(step):
        return step % every == 0

    def ticks(values, sums):
        return torch.ones_like(values["step"], dtype=torch.bool), {}

    return Frame(
        tx,
        clock=None if keep_clock else InnerClock(ticks),
        restarts=is_due,
        agree={"every": every},
    )
