"""Outer optimizers: a second optimizer of what the first one has done in many steps, over processes or in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import Count, Fraction, NonNegativeInt, Static, is_off
from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import local
from gradtx.base.errors import Path
from gradtx.base.selectors import Selector, Where, patterns
from gradtx.combinators.frame import Enter, Frame, InnerClock
from gradtx.distributed.collectives import mean_over_ranks
from gradtx.distributed.layouts import Team, team_of_group
from gradtx.execution.context import ALWAYS_KNOWN
from gradtx.execution.execute import Block, Branch, Leaf
from gradtx.execution.runs import Scope, as_flag
from gradtx.rules import Combinator, combinator
from gradtx.transform import GradientTransformation

__all__ = ["outer"]

SAME = 1e-6  # relative difference of equal sums, which ranks send in float32


@combinator(needs="params")
def outer(
    inner: GradientTransformation,
    tx: GradientTransformation,
    every: Static[Count],
    *,
    fragments: Static[Sequence[Where]] | None = None,
    delay: Static[NonNegativeInt] = 0,
    mix: Fraction = 0.0,
    process_group: Any = None,
):
    r"""Let an outer optimizer move the weights every so many steps: DiLoCo, Streaming DiLoCo, MuLoCo, SNOO.

    Placeholder.
    """
    wheres = None if fragments is None else tuple(fragments)
    turns = 1 if wheres is None else len(wheres)
    if not turns or every % turns:
        raise ValueError(
            f"outer: every must be divisible by the number of fragments, got {every} and {turns}"
        )
    if delay >= every // turns:
        raise ValueError(
            f"outer: delay must be less than every / fragments = {every // turns}, got {delay}"
        )
    for need in set(ALWAYS_KNOWN).intersection(tx.needs):
        raise ValueError(
            f"outer: tx needs {need}, but it receives differences of weights; use it as inner"
        )
    selector = team = None
    if wheres is not None:
        labels = tuple(map(str, range(turns)))
        chosen = tuple(patterns("outer: fragments", where) for where in wheres)
        selector = Fragments("outer: fragments", labels, chosen, branches=labels)
    if process_group is not None:
        team = team_of_group("outer: process_group", process_group)
    return Outer(inner, tx, every // turns, turns, selector, delay, mix, team)


class Fragments(Selector):
    """Choose the fragment of a leaf, which is no branch with hyperparameters of its own."""

    names_branches = False


@dataclass(frozen=True)
class Outer(Combinator):
    """The inner transformation, followed by the synchronizations of all fragments.

    Attributes:
        inner, tx: The inner and the outer transformation.
        gap: The number of steps between two synchronizations, each of which is one fragment's.
        turns: The number of fragments.
        fragments: Chooses the fragment of a leaf; None if there is only one.
        delay, mix: The options of `outer`.
        team: The ranks to average over, if any.
    """

    inner: GradientTransformation
    tx: GradientTransformation
    gap: int
    turns: int
    fragments: Fragments | None
    delay: int
    mix: Any
    team: Team | None

    def traits(self) -> set[str]:
        exchanges = set[str]() if self.team is None else {"exchanges"}
        return {"averages", "takes None", *exchanges}

    def expand(self, scope: Scope, name: str) -> list[Any]:
        operations = self.inner._expand(scope.child(0, changed=False))
        path = scope.claim(name)
        # Programs run only steps without an exchange.
        if self.team is not None and not scope.run.has_names:
            return operations
        if self.fragments is None:
            return operations + self._synchronization(scope, path, 0)
        scope.run.selectors.append(self.fragments)
        blocks: dict[Any, Block] = {}
        for i, label in enumerate(self.fragments.labels):
            block = Block(self._synchronization(scope, (*path, label), i), [])
            blocks[label] = block
        return [*operations, Branch(path, self.fragments, blocks)]

    def _synchronization(self, scope: Scope, path: Path, turn: int) -> list[Any]:
        """Return the operations of one fragment."""
        since = scope.finished_updates() + 1 - (turn + 1) * self.gap
        every = self.turns * self.gap
        due, sends = since % every == 0, (since + self.delay) % every == 0
        if self.team is not None:
            due, sends = _known(due), _known(sends)
        enter = Synchronize(self._frame(due), scope, path, due, sends, self.team)
        if scope.place is not None:
            # Schedules of `tx` follow the last fragment, whose count is that of each fragment when it is due.
            scope.run.clock_paths[(*scope.place, 1)] = path
        return enter.between(enter.inside(self.tx, path, 1))

    def _frame(self, due: bool | Tensor) -> Frame:
        """Return the frame around the outer transformation of a fragment, which may be due in this step."""

        def ticks(values, sums):
            return as_flag(due, values["step"]), {}

        def init(param):
            pending = {"pending": torch.zeros_like(param)} if self.delay else {}
            return {"anchor": param, **pending}

        def enter(update, state, param, ctx):
            local_update = torch.zeros_like(param) if update is None else update
            delta = state["anchor"] - (param + local_update)
            return delta, {**state, "update": local_update}

        def leave(update, state, param, ctx):
            anchor, local_update = state["anchor"], state.pop("update")
            new = anchor + update
            moved = new - param
            if not is_off(self.mix):
                moved = moved + self.mix * (param + local_update - new)
            moved = torch.where(ctx.ticks, moved, local_update)
            new = ctx.keep(torch.where(ctx.ticks, new, anchor), anchor)
            return ctx.keep(moved, local_update), {**state, "anchor": new}

        def evaluate(state, param):
            return state["anchor"]

        clock = InnerClock(ticks)
        return Frame(
            self.tx, init, enter, leave, evaluate, clock, takes_none="anchor"
        )


class Synchronize(Enter):
    """The operation before the outer transformation: it averages over ranks, and lets it see the anchors.

    Args:
        due: Whether the outer transformation updates in this step.
        sends: Whether the difference to the anchor is taken in this step.
        team: The ranks to average over, if any.
    """

    def __init__(
        self,
        frame: Frame,
        scope: Scope,
        path: Path,
        due: bool | Tensor,
        sends: bool | Tensor,
        team: Team | None,
    ):
        super().__init__(frame, scope, path, "outer")
        self._sends = sends
        self._team = team
        if team is None:
            return
        if _torch.inside_transform():
            raise ValueError(
                "outer: process_group cannot be combined with torch.func transforms; pass None"
            )
        self.waits = self.run.initial or sends is not False
        self.exchanges = self.waits or due is not False
        self.compiles = not self.exchanges and isinstance(scope.count, int)

    def _enter(self, leaf: Leaf) -> Any:
        leaf.counts = leaf.counts and leaf.update is not None
        super()._enter(leaf)
        leaf.own_clock = leaf.clock  # it synchronizes without a gradient, too
        anchor = leaf.param = leaf.saved[self].state["anchor"]
        if not self.waits:
            return self._receive(leaf, leaf.update)
        return leaf.update, local(anchor).abs().sum(dtype=torch.float64)

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        assert self._team is not None
        deltas: dict[str, Any] = {}
        sums: dict[str, Tensor] = {}
        for leaf, (delta, total) in waiting:
            deltas[leaf.name], sums[leaf.name] = delta, total
        total = sum(sums[name] for name in sorted(sums))
        means, totals = mean_over_ranks(deltas, total, self._team)
        if _torch.readable(totals) and totals.max() - totals.min() > SAME * totals.max():
            raise ValueError(
                f"outer: the ranks' global weights differ, sums of their magnitudes: {totals.tolist()}; create or load "
                "the same weights on all ranks before the first step"
            )
        return means

    def resume(self, leaf: Leaf, total: Any) -> Any:
        return self._receive(leaf, total[leaf.name])

    def _receive(self, leaf: Leaf, delta: Tensor) -> None:
        """Pass the difference to the anchor to the outer transformation, or the pending one."""
        state = leaf.saved[self].state
        if "pending" in state:
            old = state["pending"]
            sends = as_flag(self._sends, self.old_step).to(leaf.device)
            if leaf.active is not None:
                sends = sends & leaf.active
            state["pending"] = torch.where(sends, delta, old)
            delta = old
        leaf.update = leaf.grad = delta


def _known(flag: bool | Tensor) -> bool | Tensor:
    """Return a decision as a bool if the host can read it without waiting."""
    if isinstance(flag, bool) or flag.device.type != "cpu" or not _torch.readable(flag):
        return flag
    return bool(flag)
