"""Combinators with a clock, whose inner transformation does not update in every call or starts again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import Count, NonNegativeInt, Static
from gradtx.base import tree as _tree
from gradtx.base.exact import exact, exact_dtype, python_scalar
from gradtx.base.inputs import parameters_of
from gradtx.base.messages import describe
from gradtx.base.torch_names import is_intercepted, readable
from gradtx.combinators.frame import Frame, InnerClock
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = [
    "SkipTest",
    "accumulate",
    "apply_if",
    "mask_if",
    "restart",
    "skip_large_updates",
    "skip_nonfinite",
    "skip_not_finite",
]


@dataclasses.dataclass(frozen=True)
class SkipTest:
    """A test of a whole tree of updates by sums over its entries, for `accumulate(tx, skip=...)`.

    Args:
        measure: `update -> {name: 0-d tensor}`, for one leaf.
        skips: `sums -> 0-d bool tensor`, given the sums over all leaves: whether to skip the call.

    Example:
        >>> alternating = gradtx.SkipTest(
        ...     lambda update: {"sum": update.sum()}, lambda sums: sums["sum"] < 0
        ... )
        >>> alternating({"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([0.5])})
        tensor(True)
    """

    measure: Callable[[Tensor], dict[str, Tensor]]
    skips: Callable[[Mapping[str, Tensor]], Tensor]

    def __call__(self, updates: Any) -> Tensor:
        """Return whether the test holds for a tree of updates."""
        leaves, _ = _tree.flatten(updates, "updates")
        terms = [self.measure(leaf) for leaf in leaves.values() if leaf is not None]
        return self.skips({name: _sum(terms, name) for name in terms[0]})


def _sum(terms: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([exact(term[name], term[name].device) for term in terms]).sum()


def skip_not_finite() -> SkipTest:
    """Skip updates with an entry that is not finite, in `accumulate(tx, skip=skip_not_finite())`.

    Example:
        >>> gradtx.skip_not_finite()({"w": torch.tensor([1.0, float("nan")])})
        tensor(True)
    """
    return SkipTest(_count_not_finite, _has_any)


def skip_large_updates(max_squared_norm: float) -> SkipTest:
    r"""Skip updates with $\lVert u \rVert^2 \ge s$ over the whole tree, or NaN, in `accumulate(tx, skip=...)`.

    Args:
        max_squared_norm: $s > 0$.

    Raises:
        ValueError: If `max_squared_norm` is not positive.

    Example:
        >>> gradtx.skip_large_updates(25.0)({"w": torch.tensor([3.0, 4.0])})
        tensor(True)
    """
    if not max_squared_norm > 0:
        raise ValueError(
            f"skip_large_updates: max_squared_norm must be in (0, inf), got {max_squared_norm!r}"
        )
    return SkipTest(_square, functools.partial(_is_at_least, max_squared_norm))


# Functions of this module, so that chains with them can be pickled.


def _count_not_finite(update: Tensor) -> dict[str, Tensor]:
    return {"bad": (~update.isfinite()).sum().to(exact_dtype(update))}


def _has_any(sums: Mapping[str, Tensor]) -> Tensor:
    return sums["bad"] > 0


def _square(update: Tensor) -> dict[str, Tensor]:
    return {"square": update.square().sum()}


def _is_at_least(bound: float, sums: Mapping[str, Tensor]) -> Tensor:
    return ~(sums["square"] < bound)


@combinator
def accumulate(
    tx: GradientTransformation,
    every: Count | Callable[[Tensor], Any],
    use_grad_mean=True,
    skip: Static[SkipTest] | None = None,
):
    r"""Average the gradients of `every` calls and update once.

    Calls in between return zero updates. The inner transformation has its own clock, which counts actual updates;
    inner schedules follow this clock, and `ctx.grad` is the averaged gradient. A None gradient counts as zero; a leaf
    without any gradient in a cycle is skipped, and its own count does not advance. Extras (`value`, `hessian_diag`) are
    not averaged: `tx` receives those of the last call of a cycle, so pass a mean loss there to rules that read it. A
    call in which no leaf has a gradient is not part of a cycle.

    Args:
        tx: The transformation of the averaged gradient.
        every: Number of calls in a cycle, >= 1. A loaded optimizer has the number of its checkpoint; write
            `group["every"]` to change it. Pure functions have that of the code. A function, such as a schedule, of the
            number of updates that `tx` has made, a 0-d int64 tensor, returns the number of calls in the next cycle; it
            is called in every call, and group and checkpoint do not contain it.
        use_grad_mean: Whether to average; otherwise `tx` receives the sum.
        skip: A test of the gradients of one call. If it holds, the call is not part of the cycle: see
            `skip_not_finite()`, `skip_large_updates(s)` and `SkipTest`.

    Returns:
        A transformation with the state `step` and `mini_step` (int64), `acc` (the sum so far, shaped as the
        parameter), `seen` (a bool per leaf), `leaf_steps` (int64: the updates of each leaf) and the entries of `tx`;
        with `skip` also `skipped` (int64: the number of calls that were skipped). With `every=1` updates are those of
        `tx`, except that a rule for whole trees sees a missing gradient as zeros.

    Raises:
        TypeError: If `tx` is not a transformation, or if `skip` is no `SkipTest`.
        ValueError: If `every` is less than 1, or returns such a number at construction for one of the first counts or
            the powers of 2. In a step that runs a program, which reads no value on the host, it counts as 1.

    Example:
        >>> tx = gradtx.accumulate(gradtx.sgd(lr=1.0), every=2)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for gradient in (1.0, 3.0):
        ...     updates, state = tx.update({"w": torch.tensor([gradient])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-2.])
    """
    if skip is not None and not isinstance(skip, SkipTest):
        raise TypeError(
            f"accumulate: skip must be a gradtx.SkipTest, such as gradtx.skip_not_finite(), got {describe(skip)}"
        )
    if not isinstance(every, int):
        for updates in (*range(16), *(2**i for i in range(4, 31))):
            _calls_in_cycle(every, torch.tensor(updates))
    names = ("mini_step",) if skip is None else ("mini_step", "skipped")

    def ticks(values, sums):
        calls = values["mini_step"] + 1
        complete = calls >= _calls_in_cycle(every, values["step"])
        mini_step = torch.where(complete, 0, calls)
        if skip is None:
            return complete, {"mini_step": mini_step}
        skipped = skip.skips(sums).to(calls.device)
        return complete & ~skipped, {
            "mini_step": torch.where(skipped, values["mini_step"], mini_step),
            "skipped": values["skipped"] + skipped,
        }

    def init(param):
        return {
            "acc": torch.zeros_like(param),
            "seen": torch.zeros((), dtype=torch.bool, device=param.device),
        }

    def enter(update, state, param, ctx):
        total, seen = state["acc"], state["seen"]
        if update is not None:
            now_seen = torch.ones_like(seen)
            if skip is not None:
                skipped = ctx.after["skipped"] > ctx.before["skipped"]
                update = torch.where(skipped, 0.0, update)
                now_seen = seen | ~skipped
            total = ctx.keep(total + update, total)
            seen = ctx.keep(now_seen, seen)
        emptied = torch.where(ctx.ticks, 0.0, total)
        new_state = {"acc": emptied, "seen": seen & ~ctx.ticks}
        if not use_grad_mean:
            return total, new_state, seen
        # Those of a cycle that a function has shortened meanwhile may be more than it says.
        calls = every if isinstance(every, int) else ctx.before["mini_step"] + 1
        return total / calls, new_state, seen

    clock = InnerClock(
        ticks, dict.fromkeys(names, 0), measure=None if skip is None else skip.measure
    )
    return Frame(tx, init, enter, clock=clock, takes_none="acc", agree={"every": every})


def _calls_in_cycle(every: int | Callable[[Tensor], Any], updates: Tensor) -> Any:
    """Return the number of calls in the cycle that follows some updates."""
    if isinstance(every, int):
        return every
    calls = every(updates)
    is_on_host = not isinstance(calls, Tensor) or (
        calls.device.type == "cpu" and readable(calls) and not is_intercepted()
    )
    if is_on_host and not calls >= 1:
        raise ValueError(
            f"accumulate: every must return at least 1, got {python_scalar(calls)} after {python_scalar(updates)} "
            "updates"
        )
    return calls


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
        clock=InnerClock(ticks, dict.fromkeys(names, 0), _count_not_finite),
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


def _extras_of_condition(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the extras that a condition reads: all parameters but the first."""
    return dict.fromkeys(_read_by(arguments["condition"]), "scalar")


def _read_by(condition: Any) -> list[str]:
    return [parameter.name for parameter in parameters_of(condition)[1:]]


@combinator(extras=_extras_of_condition)
def apply_if(tx: GradientTransformation, condition: Static[Callable[..., Any]]):
    r"""Apply a transformation only in calls in which a condition holds; in others, updates pass unchanged.

    In a call in which it does not hold, the state of `tx` does not change. The inner clock counts the other calls.

    Args:
        tx: The transformation.
        condition: `condition(step, ...) -> bool`, also for 0-d tensors (use `&` and `torch.where`, not `and` or `if`).
            `step` is the number of earlier calls, 0-d int64; other parameters are extras by name, such as `value`, the
            loss, or any number that the caller passes to `update` or `step`.

    Returns:
        A transformation with the state `step` and `calls` (int64: the number of calls that did count, and of all),
        `leaf_steps` (int64: the updates of each leaf) and the entries of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation, or if `condition` is not a function.
        ValueError: If an extra that the condition reads is missing.

    Example:
        >>> tx = gradtx.apply_if(gradtx.clip_by_value(1.0), lambda step, value: value > 2.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for value in (1.0, 3.0):
        ...     updates, state = tx.update({"w": torch.tensor([5.0])}, state, value=value)
        ...     print(updates["w"])
        tensor([5.])
        tensor([1.])
    """

    def enter(update, state, param, ctx):
        return update, {"input": update}

    def leave(update, state, param, ctx):
        return torch.where(ctx.ticks, update, state["input"]), {}

    clock = _conditional("apply_if", condition)
    return Frame(tx, enter=enter, leave=leave, clock=clock)


@combinator(extras=_extras_of_condition)
def mask_if(tx: GradientTransformation, condition: Static[Callable[..., Any]]):
    r"""Apply a transformation only in calls in which a condition holds; in others, updates are zero.

    In a call in which it does not hold, the state of `tx` does not change. The inner clock counts the other calls.

    Args:
        tx: The transformation.
        condition: `condition(step, ...) -> bool`, as in `apply_if`.

    Returns:
        A transformation with the state `step` and `calls` (int64: the number of calls that did count, and of all),
        `leaf_steps` (int64: the updates of each leaf) and the entries of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation, or if `condition` is not a function.
        ValueError: If an extra that the condition reads is missing.

    Example:
        >>> tx = gradtx.mask_if(gradtx.sgd(lr=1.0), lambda step: step % 2 == 1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for gradient in (1.0, 2.0):
        ...     updates, state = tx.update({"w": torch.tensor([gradient])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-2.])
    """
    return Frame(tx, clock=_conditional("mask_if", condition))


def _conditional(who: str, condition: Any) -> InnerClock:
    """Return a clock that counts the calls in which a condition holds."""
    if not callable(condition):
        raise TypeError(
            f"{who}: condition must be a function of the step, got {describe(condition)}"
        )
    names = tuple(_read_by(condition))

    def ticks(values, sums, extras=None):
        holds = condition(values["calls"], **(extras or {}))
        holds = torch.as_tensor(holds, device=values["calls"].device).bool()
        return holds, {"calls": values["calls"] + 1}

    return InnerClock(ticks, start={"calls": 0}, reads=names)
