"""`watched`: a pure transformation whose update also returns what each link did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from gradtx.base.ambient import ambient, without_ambient
from gradtx.base.errors import Path
from gradtx.execution.execute import Leaf
from gradtx.pure.listed import update as update_rows
from gradtx.pure.tree_run import UpdateCall, update
from gradtx.transform import GradientTransformation, check_transformation
from gradtx.watching.figures import FIGURES, SUMS
from gradtx.watching.links import Link, links_by_stage
from gradtx.watching.observer import LinkObserver

__all__ = ["watched"]

# Leaf -> link -> figure -> 0-d tensor.
Measured = dict[str, dict[str, dict[str, Tensor]]]


class WatchedTransformation(NamedTuple):
    """A pair like a transformation, created by `watched`: `init(params)`, and `update`, which returns a third value."""

    init: Callable[..., dict[str, Any]]
    update: Callable[..., tuple[Any, dict[str, Any], Measured]]


def watched(tx: GradientTransformation) -> WatchedTransformation:
    """Return a transformation whose `update` also returns what each link did with each leaf.

    `updates, state, seen = watched(tx).update(grads, state, params)` computes the same updates and state as
    `tx.update`, leaf by leaf. `seen[leaf][link]` has the figures of `gradtx.watch`, except `cos_last`, as 0-d tensors;
    the link "step" is the whole chain. `vmap` returns those of each member.

    Args:
        tx: The transformation.

    Raises:
        TypeError: If `tx` is not a transformation.

    Example:
        >>> tx = gradtx.chain(gradtx.clip_by_norm(1.0), gradtx.sgd(lr=0.1))
        >>> params = {"w": torch.tensor([1.0, 0.0])}
        >>> gradients = {"w": torch.tensor([3.0, 4.0])}
        >>> _, state, seen = gradtx.watched(tx).update(gradients, tx.init(params), params)
        >>> seen["w"]["clip_by_norm"]["norm_before"], seen["w"]["step"]["update_to_weight"]
        (tensor(5., dtype=torch.float64), tensor(0.1000, dtype=torch.float64))
    """
    check_transformation("watched", "tx", tx)

    def watched_update(
        updates: Any, state: dict[str, Any], params: Any = None, **extras: Any
    ) -> tuple[Any, dict[str, Any], Measured]:
        around = ambient()
        if around is not None:
            extras = around.around_all(extras)
        return _measured_update(UpdateCall(tx, updates, state, params, extras))

    return WatchedTransformation(tx.init, watched_update)


@without_ambient
def _measured_update(call: UpdateCall) -> tuple[Any, dict[str, Any], Measured]:
    def links_of(leaf: Leaf) -> Mapping[Path, Link]:
        return links_by_stage(call.tx, leaf.run.stages)

    observer = LinkObserver(links_of)

    def observed(call: UpdateCall) -> tuple[Any, dict[str, Any]]:
        return update(call, observer)

    of_rows = update_rows(call, observed, adds_rows=False)
    updates, state = observed(call) if of_rows is None else of_rows
    seen: Measured = {}
    for (leaf, link), row in observer.rows.items():
        assert isinstance(leaf, str)  # each is measured alone
        zero = row["after"].new_zeros(())
        sums = {name: row.get(name, zero) for name in SUMS}
        figures = {name: figure(sums) for name, figure in FIGURES.items()}
        del figures["cos_last"]  # it would need the update before
        seen.setdefault(leaf, {})[link] = figures
    return updates, state, seen
