"""Lookahead around a transformation, optionally with changes to its momentum."""

from __future__ import annotations

from typing import Literal

import torch

from gradtx.algorithms.averaging import synchronized
from gradtx.arguments import Count, Fraction
from gradtx.combinators.frame import Frame
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = ["with_lookahead"]

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
        new = {"slow": synchronized(now, state["slow"], param + update, alpha)}
        update = ctx.keep(torch.where(now, new["slow"] - param, update), update)
        if pullback_momentum == "none":
            return update, new
        momenta = {}
        for i, (name, momentum) in enumerate(ctx.inner.items()):
            start = torch.zeros_like(momentum)
            if pulls_back:
                slow = _slow(i)
                start = new[slow] = synchronized(now, state[slow], momentum, alpha)
            momenta[name] = torch.where(now, start, momentum)
        return update, new, momenta

    def evaluate(state, param):
        return state["slow"]

    return Frame(tx, init, leave=leave, evaluate=evaluate, inner_slots=MOMENTA)


def _slow(i: int) -> str:
    """Return the name of the slot for the slow copy of the i-th momentum."""
    return f"slow_momentum_{i}" if i else "slow_momentum"
