"""Outer optimizers: a second optimizer of what the first one has done in many steps, over processes or in one."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import Count, Fraction, NonNegativeInt, Static, is_off
from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import is_sharded, local
from gradtx.base.errors import Path
from gradtx.base.exact import exact_dtype
from gradtx.base.messages import describe, shortly
from gradtx.base.selectors import Patterns, Selector, patterns
from gradtx.combinators.frame import Enter, Frame, InnerClock
from gradtx.combinators.top_k import TopK, largest_entries
from gradtx.distributed.agreement import (
    difference,
    digest_of,
    in_order,
    there_and_back,
    unequal,
)
from gradtx.distributed.layouts import Team, team_of, team_of_group
from gradtx.distributed.sparse import Sparse, mean_of_sparse_over_ranks
from gradtx.distributed.sums import mean_over_ranks, total
from gradtx.execution.context import ALWAYS_KNOWN
from gradtx.execution.execute import Branch, Leaf, Route, Steps
from gradtx.execution.nesting import check_inner
from gradtx.execution.runs import Scope, as_flag
from gradtx.execution.traits import ONLY_LISTS, SYNCHRONIZES
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
    fragments: Static[Sequence[str | tuple[str, ...]]] | None = None,
    delay: Static[NonNegativeInt] = 0,
    mix: Fraction = 0.0,
    process_group: Any = None,
    compress: Static[TopK] | None = None,
):
    r"""Let an outer optimizer move the weights every so many steps: DiLoCo, Streaming DiLoCo, MuLoCo, SparseLoCo, SNOO.

    The inner optimizer trains as usual: $q = p + u$. At each step $t$ with $t \bmod H = 0$, the outer optimizer `tx`
    receives the way from the present weights back to the global weights $a$ (which start as the initial weights) in
    place of a gradient: with $\delta = \frac1K \sum_k (a - q_k)$ over $K$ processes,
    $a' = a + \mathrm{tx}(\delta)$, $p \leftarrow a' + \mu (q - a')$, $a \leftarrow a'$. Inner state is not changed.

    With `compress`, process $k$ sends $s_k$, the largest entries of each chunk of $\beta e_k + (a - q_k)$, in place of
    $a - q_k$, and keeps the rest: $e_k \leftarrow \beta e_k + (a - q_k) - s_k$ from $e_k = 0$, and
    $\delta = \frac1K \sum_k s_k$. This also acts in one process.

    With a process group, this replaces the average of gradients: each process trains with its own gradients (no
    DistributedDataParallel), and one all-reduce of $\delta$, in float32 at least, after a digest of 16 bytes by which
    ranks compare what they send, is the only communication; with `compress`, an all-gather of the entries sent and
    their indices in place of the all-reduce. In an optimizer, a step without any gradient counts as one with gradients
    of 0. Without a group, it is a strong momentum of slow weights. See the how-to guide on communication every H steps.

    Presets: DiLoCo is `adamw`, `sgd(lr=0.7, momentum=0.9, nesterov=True)`, 500; MuLoCo is `muon`, 0.9 and 0.8, 30;
    SparseLoCo is `adamw`, `sgd(lr=1.0)`, 15 to 100, `TopK()`; SNOO is 0.68 and 0.37, 28. The outer rate multiplies a
    difference of weights, so it is near 1.

    Args:
        inner: A complete optimizer, with a learning rate.
        tx: The outer optimizer, with a learning rate of its own. Its `params` are $a$, and its clock counts
            synchronizations.
        every: $H \ge 1$, the number of steps between synchronizations of a leaf.
        fragments: Patterns of leaf names, or tuples of patterns, for parts of the model that synchronize in turn:
            fragment $i$ of $P$ where $t \equiv (i+1) H / P \pmod H$. A leaf belongs to the first fragment that matches.
            Sums over leaves in `tx` include only the leaves of a fragment.
        delay: $\tau$, in [0, H / P): the outer optimizer uses the $\delta$ of step $t - \tau$ and the present $a$, $q$.
        mix: $\mu$ in [0, 1], the share of the local weights; 1 keeps them.
        process_group: The ranks that average $\delta$, or a one-dimensional mesh; their leaves are whole, or sharded
            alike over other ranks. None for one process.
        compress: A `gradtx.TopK`, which entries to send, and $\beta$; None for all of them.

    Returns:
        A transformation with the entries of `inner` beside its own: `anchor` ($a$), which `eval_params` returns, with
        `compress` `error` ($e$), shaped as the leaf, in float32 at least or in `state_dtype`, with a delay `pending`,
        the entries of `tx`, their `step` and `leaf_steps`; with fragments, one entry per fragment, "0", "1", .... All
        of these but `error` are equal on all ranks. A leaf without a gradient synchronizes as well.

    Raises:
        TypeError: If an argument is not a transformation, no sequence of patterns, not a process group, or no `TopK`,
            or if `tx` has a process group itself.
        ValueError: If an argument is out of range, if the number of fragments does not divide `every`, if a leaf is in
            no fragment or a pattern matches none, if `tx` needs a loss, or if the ranks' global weights differ.
        RuntimeError: With a process group, inside of `torch.func` transforms or a compiled graph, with a `GradScaler`,
            or in an optimizer with a process group of its own; `capturable=True` raises a ValueError. Also, on all
            ranks, if they synchronize other leaves, or at other steps.

    Example:
        >>> tx = gradtx.outer(gradtx.sgd(lr=0.1), gradtx.sgd(lr=0.7, momentum=0.9), every=2)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(4):  # synchronized at the second and fourth step
        ...     updates, state = tx.update({"w": torch.ones(1)}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([0.9000])
        tensor([0.8600])
        tensor([0.7600])
        tensor([0.5940])

    Source: Douillard et al. 2023, arXiv:2311.08105; Douillard et al. 2025, arXiv:2501.18512; Thérien et al. 2025,
    arXiv:2505.23725; Sarfi et al. 2025, arXiv:2508.15706, and its code. Departures: SNOO's code synchronizes at steps
    1, H + 1, ...; here at H, 2H, .... The all-reduce of a delayed $\delta$ does not overlap with the steps in between.
    SparseLoCo's code, tplr-ai/CCLoco, differs from its paper: it divides a sum by the number of ranks that sent the
    entry, and multiplies $a - q_k$ by the outer rate; here as in the paper. Its chunks are blocks of at most 64 x 64;
    here consecutive entries, of a sharded leaf those of each shard. Values are not quantized.
    """
    selector = None if fragments is None else _selector_of(fragments)
    turns = 1 if selector is None else len(selector.labels)
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
    check_inner("outer", ("exchanges",), [tx])
    if compress is not None and not isinstance(compress, TopK):
        raise TypeError(
            f"outer: compress must be a gradtx.TopK or None, got {describe(compress)}"
        )
    team = None
    if process_group is not None:
        team = team_of_group("outer: process_group", process_group)
    return Outer(inner, tx, every // turns, turns, selector, delay, mix, team, compress)


def _selector_of(fragments: Sequence[str | Patterns]) -> Selector:
    """Return the selector of a leaf's fragment; without branches, as fragments have no hyperparameters of their own."""
    wheres = tuple(patterns("outer: fragments", where) for where in fragments)
    if isinstance(fragments, str) or any(map(callable, wheres)):
        raise TypeError(
            f"outer: fragments must be a sequence of name patterns or of tuples of them, got {shortly(fragments)}"
        )
    labels = tuple(str(i) for i in range(len(wheres)))
    return Selector("outer: fragments", labels, wheres)


@dataclasses.dataclass(frozen=True)
class Outer(Combinator):
    """The inner transformation, followed by the synchronizations of all fragments.

    Attributes:
        inner, tx: The inner and the outer transformation.
        gap: The number of steps between two synchronizations, each of which is one fragment's.
        turns: The number of fragments.
        fragments: Chooses the fragment of a leaf; None if there is only one.
        delay, mix: The options of `outer`.
        team: The ranks to average over, if any.
        compress: What a rank sends of a difference; None for all of it.
    """

    inner: GradientTransformation
    tx: GradientTransformation
    gap: int
    turns: int
    fragments: Selector | None
    delay: int
    mix: Any
    team: Team | None
    compress: TopK | None

    def effects(self) -> set[str]:
        effects = {"averages", "takes None"}
        return effects if self.team is None else {*effects, "exchanges"}

    def expand(self, scope: Scope, name: str) -> list[Any]:
        operations = self.inner._expand(scope.child(0))
        path = scope.claim(name)
        # Programs run only steps in which ranks exchange nothing.
        if self.team is not None and scope.run.is_recorded:
            return operations
        if self.fragments is None:
            return operations + self._synchronization(scope, path, 0)
        scope.run.selectors.append(self.fragments)
        routes: dict[Any, Route] = {}
        for i, label in enumerate(self.fragments.labels):
            route = Route(self._synchronization(scope, (*path, label), i), [])
            routes[label] = route
        return [*operations, Branch(path, self.fragments, routes)]

    def _synchronization(self, scope: Scope, path: Path, turn: int) -> list[Any]:
        """Return the operations of one fragment."""
        since = scope.finished_updates() + 1 - (turn + 1) * self.gap
        every = self.turns * self.gap
        due, sends = since % every == 0, (since + self.delay) % every == 0
        if self.team is not None:
            due, sends = _on_host(due), _on_host(sends)
        period = f"every={every} with delay={self.delay}"
        if self.compress is not None:
            period = f"{period} and compress={self.compress}"
        enter = Synchronize(
            self._frame(due), scope, path, due, sends, self.team, self.compress, period
        )
        if scope.place is not None:
            # Schedules of `tx` follow the last fragment, whose count is that of each fragment when it is due.
            scope.run.clock_paths[(*scope.place, 1)] = path
        return enter.between(enter.inside(self.tx, path, 1))

    def _frame(self, due: bool | Tensor) -> Frame:
        """Return the frame around the outer transformation of a fragment, which may be due in this step."""

        def ticks(values, sums):
            return as_flag(due, values["step"]), {}

        def init(param):
            slots = {"anchor": param}
            if self.compress is not None:
                slots["error"] = torch.zeros_like(param)
            if self.delay:
                slots["pending"] = torch.zeros_like(param)
            return slots

        def enter(update, state, param, ctx):
            local_update = torch.zeros_like(param) if update is None else update
            delta = state["anchor"] - (param + local_update)
            return delta, {**state, "update": local_update}

        def leave(update, state, param, ctx):
            anchor, local_update = state["anchor"], state.pop("update")
            new_anchor = anchor + update
            moved = new_anchor - param
            if not is_off(self.mix):
                moved = moved + self.mix * (param + local_update - new_anchor)
            moved = torch.where(ctx.ticks, moved, local_update)
            new_anchor = ctx.keep(torch.where(ctx.ticks, new_anchor, anchor), anchor)
            return ctx.keep(moved, local_update), {**state, "anchor": new_anchor}

        def evaluate(state, param):
            return state["anchor"]

        clock = InnerClock(ticks)
        return Frame(
            *(self.tx, init, enter, leave, evaluate, clock),
            takes_none="anchor",
            by_rows=SYNCHRONIZES,
        )


# Why programs may not run the operation before the outer transformation.
EXCHANGES = "it sends tensors to other ranks in this step"
UNCERTAIN = "the host does not know whether it sends tensors to other ranks"


class Synchronize(Enter):
    """The operation before the outer transformation: it averages over ranks, and lets it see the anchors.

    Args:
        due: Whether the outer transformation updates in this step.
        sends: Whether the difference to the anchor is taken in this step.
        team: The ranks to average over, if any.
        compress: What a rank sends of a difference; None for all of it.
        period: How often and how this rank synchronizes, in words.
    """

    def __init__(
        self,
        frame: Frame,
        scope: Scope,
        path: Path,
        due: bool | Tensor,
        sends: bool | Tensor,
        team: Team | None,
        compress: TopK | None,
        period: str,
    ):
        super().__init__(frame, scope, path, "outer")
        self._period = period
        self._sends = sends
        self._compress = compress
        self.partners = team
        if team is None:
            if compress is not None:
                # Lists skip the choice of entries at other steps; kernels would make it at each.
                self.traits = dataclasses.replace(
                    self.traits, elementwise=False, refusal=ONLY_LISTS, skippable=True
                )
            return
        if _torch.inside_transform() or torch.compiler.is_compiling():
            raise RuntimeError(
                "outer: process_group cannot be combined with torch.func transforms or torch.compile around update(); "
                "call it outside, or use as_optimizer"
            )
        waits = self.run.initial or sends is not False
        exchanges = waits or due is not False
        refusal = "" if isinstance(scope.count, int) else UNCERTAIN
        self.traits = dataclasses.replace(
            self.traits,
            elementwise=compress is None or not exchanges,
            waits=waits,
            exchanges=exchanges,
            refusal=EXCHANGES if exchanges else refusal,
            capturable=False,
        )

    def _begin(self, leaf: Leaf) -> Steps | None:
        leaf.counts = leaf.counts and leaf.update is not None
        return super()._begin(leaf)

    def _enter(self, leaf: Leaf) -> Any:
        super()._enter(leaf)
        anchor = leaf.param = leaf.saved[self].state["anchor"]
        sent: Any = leaf.update
        if self._compress is not None and self._sends is not False:
            sent = self._compressed(leaf, self._compress)
        if self.traits.waits:
            return self._average(leaf, sent, anchor)
        self._receive(leaf, leaf.update)

    def _compressed(self, leaf: Leaf, compress: TopK) -> Sparse:
        """Let the leaf's update be what this rank sends of it and of the error, which keeps the rest."""
        state = leaf.saved[self].state
        delta, old_error = leaf.update, state["error"]
        sum_of_both = compress.decay * old_error + delta
        sparse = largest_entries(sum_of_both, compress)
        sent = sparse.dense()
        sends = self._sends_now(leaf)
        state["error"] = torch.where(sends, sum_of_both - sent, old_error)
        leaf.update = torch.where(sends, sent, delta)
        # The sum is not needed any more, and others wait for their messages.
        return dataclasses.replace(sparse, like=sent)

    def _sends_now(self, leaf: Leaf) -> Tensor:
        """Return whether the difference of a leaf to the anchor is taken in this step."""
        sends = as_flag(self._sends, self.old_step).to(leaf.device)
        return sends if leaf.active is None else sends & leaf.active

    def _average(self, leaf: Leaf, sent: Any, anchor: Tensor) -> Steps:
        """Wait for the mean over ranks."""
        means = yield sent, local(anchor).abs().sum(dtype=exact_dtype(anchor))
        self._receive(leaf, means[leaf.name])

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        assert self.partners is not None
        self._compare([leaf for leaf, _ in waiting])
        sent: dict[str, Any] = {}
        sums: dict[str, Tensor] = {}
        for leaf, (of_leaf, magnitudes) in waiting:
            sent[leaf.name], sums[leaf.name] = of_leaf, magnitudes
        mean = mean_over_ranks if self._compress is None else mean_of_sparse_over_ranks
        means, totals = mean(sent, total(sums), self.partners)
        if (
            _torch.readable(totals)
            and totals.max() - totals.min() > SAME * totals.max()
        ):
            raise ValueError(
                f"outer: the ranks' global weights differ, sums of their magnitudes: {totals.tolist()}; create or load "
                "the same weights on all ranks before the first step"
            )
        return means

    def _compare(self, leaves: list[Leaf]) -> None:
        """Compare what this rank synchronizes, and in which call, with the other ranks, by a message of 16 bytes.

        Raises:
            RuntimeError: If ranks differ: their tensors would be of other sizes, or those of other steps.
        """
        assert self.partners is not None
        step = _shown_step(self._scope.finished_updates() + 1)
        lines = [f"at step {step}, {self._period}"]
        for leaf in sorted(leaves, key=operator.attrgetter("name")):
            lines.append(f"leaf {leaf.name!r} of shape {tuple(leaf.shape)}")
        params = [leaf.inputs[1] for leaf in leaves]
        meshes = {param.device_mesh for param in params if is_sharded(param)}
        # Each replica may be sharded over other ranks.
        teams = in_order([self.partners, *map(team_of, sorted(meshes, key=str))])
        teams = there_and_back(teams)
        found = unequal(teams, [digest_of(lines)] * len(teams))
        if found:
            text = difference(teams, found, [lines] * len(teams), "synchronize")
            raise RuntimeError(f"outer: {text}")

    def _receive(self, leaf: Leaf, delta) -> None:
        """Pass the difference to the anchor to the outer transformation, or the pending one."""
        state = leaf.saved[self].state
        if "pending" in state:
            old = state["pending"]
            state["pending"] = torch.where(self._sends_now(leaf), delta, old)
            delta = old
        leaf.update = leaf.grad = delta


def _shown_step(step: int | Tensor) -> int | str:
    """Return a step as messages show it: by its number, if the host can read it without waiting."""
    number = _on_host(step)
    return "of an unknown number" if isinstance(number, Tensor) else int(number)


def _on_host(value: bool | int | Tensor) -> Any:
    """Return a 0-d tensor as a Python value if the host can read it without waiting; other values as they are."""
    if isinstance(value, Tensor) and value.device.type == "cpu":
        return value.item() if _torch.readable(value) else value
    return value
