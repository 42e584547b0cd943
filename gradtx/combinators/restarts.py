"""Restart the state at regular intervals."""

from __future__ import annotations

import torch

from gradtx.arguments import Count
from gradtx.combinators.frame import Frame, InnerClock
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = ["restart"]


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
        A transformation with the entries of `tx` and, unless `keep_clock` is set, its own `step`, int64.

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
