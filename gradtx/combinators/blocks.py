"""Apply a transformation to logical blocks of a leaf: heads, fused projections, experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gradtx.arguments import Static
from gradtx.base.selectors import Selector, Where, check_not_empty
from gradtx.combinators._blockwise import DividedRoute
from gradtx.combinators._division import Division, division
from gradtx.combinators._spaces import can_run_at_owner, reads_by_leaf
from gradtx.execution.execute import Branch, Route
from gradtx.execution.runs import Scope
from gradtx.rules import Combinator, combinator
from gradtx.transform import GradientTransformation

__all__ = ["blocks"]


@dataclasses.dataclass(frozen=True)
class Blocks(Combinator):
    """Apply a transformation to some leaves block by block, and to the others as a whole."""

    tx: GradientTransformation
    where: Selector
    division: Division

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        scope.run.selectors.append(self.where)
        operations = self.tx._expand(scope.inside(path))
        whole = Route(operations, [])
        if scope.space is not None and whole.traits().keeps_slots:
            around = scope.space.name
            raise TypeError(
                f"{name}: divides leaves into blocks, whose slots {around} cannot rotate; move it outside {around}"
            )
        alone = not reads_by_leaf(self.tx) and all(map(can_run_at_owner, operations))
        divided = DividedRoute(self.tx, operations, self.division, alone)
        return [Branch(path, self.where, {True: divided, False: whole})]

    def rejects(self) -> tuple[str, ...]:
        return ("whole", "rounds", "averages", "takes None", "makes gradient")


@combinator
def blocks(
    tx: GradientTransformation,
    where: Static[Where] = "*",
    *,
    heads: Static[int | tuple[int, ...]] | None = None,
    sizes: Static[tuple[int, ...]] | None = None,
    batch: Static[int] | None = None,
    view: Static[tuple[Callable[..., Any], Callable[..., Any]]] | None = None,
    dim: Static[int] = 0,
):
    r"""Treat each block of a leaf as a separate leaf: one head, one part of a fused projection, one expert.

    The result is the same as with one separate parameter per block: norms, means, shapes, thresholds and factored
    moments inside `tx` are those of a block. A sum over leaves includes all blocks of all leaves. Pass one of `heads`,
    `sizes`, `batch` and `view`, or `heads` and `sizes`.

    torch stores the weight of a `Linear` as (out, in): heads of queries, keys and values lie along dimension 0, those
    of the output projection along dimension 1. A fused projection with grouped queries is
    `sizes=(Hq * d, Hkv * d, Hkv * d), heads=(Hq, Hkv, Hkv)`.

    Args:
        tx: The transformation. Its selectors see the name of the whole leaf, predicates its first block.
        where: Selects the leaves to divide, as in `partition`; the others pass through `tx` as a whole.
        heads: Number of equal parts of dimension `dim`; with `sizes`, of every run, or a tuple with one number per run.
        sizes: Lengths of the runs into which dimension `dim` is divided; they must sum to its size.
        batch: Number of leading dimensions whose indices enumerate blocks: 1 for experts of shape (E, out, in).
        view: Two functions (split, join), tensor -> sequence of tensors and back, for other layouts, such as
            interleaved ones.
        dim: The dimension that `heads` and `sizes` divide.

    Returns:
        A transformation with the state of `tx`. If all blocks have one shape, every slot of a divided leaf has a
        leading dimension that enumerates them; otherwise slots are numbered, `exp_avg_0` for the first block.

    Raises:
        TypeError: If `tx` is not a transformation; if it contains one that works on whole trees, calls `grad_fn`,
            averages weights or processes leaves without a gradient; or if, at init, `tx` has slots and an enclosing
            combinator changes coordinates (`rotated`, `low_rank`).
        ValueError: If none or too many of `heads`, `sizes`, `batch` and `view` are given, if they do not divide a leaf,
            if the join of `view` does not invert its split, if there is no pattern, or if a pattern matches no leaf.

    Example:
        >>> tx = gradtx.blocks(gradtx.scale_by_trust_ratio(), heads=2)
        >>> params = {"w": torch.tensor([3.0, 4.0, 0.0, 1.0])}  # two heads, of norm 5 and 1
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1.0, 0.0, 2.0, 0.0])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([5., 0., 1., 0.])

    Source: per-head Muon, as in microsoft/dion and NVIDIA Emerging-Optimizers. Departures: a block is a leaf for all
    links, not only for the orthogonalization.
    """
    check_not_empty("blocks: where", where)
    return Blocks(
        tx,
        Selector.of("blocks", where),
        division(heads, sizes, batch, view, dim),
    )
