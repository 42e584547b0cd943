"""The direction of one transformation with the length of another."""

from __future__ import annotations

from typing import Any

from torch import zeros_like

from gradtx._arguments import Scalar
from gradtx._program import Leaf, Operation, Scope, takes_none
from gradtx.core import GradientTransformation, check_transformation
from gradtx.factories import combinator
from gradtx.transforms._math import grafted
from gradtx.wrappers import Wrapper

__all__ = ["graft"]


class _Graft:
    """One run: what comes in is kept for the second transformation, what the first made of it for the end."""

    def __init__(self, scope: Scope, direction: GradientTransformation, magnitude: GradientTransformation, eps: Any):
        self.path, self.eps = scope.claim("graft"), eps
        self._direction = direction._expand(scope.arm((*self.path, "direction"), 0))
        self._magnitude = magnitude._expand(scope.arm((*self.path, "magnitude"), 1))
        self.takes_none = takes_none((*self._direction, *self._magnitude))

    def operations(self) -> list[Any]:
        begin, between, end = (_Step(self, i) for i in range(3))
        return [begin, *self._direction, between, *self._magnitude, end]


class _Step(Operation):
    """One of the three places where a graft acts."""

    elementwise = False  # norms

    def __init__(self, graft: _Graft, i: int):
        self._graft, self._i = graft, i
        self.path, self.takes_none = (*graft.path, str(i)), graft.takes_none

    def start(self, leaf: Leaf) -> None:
        if self._i == 0:
            leaf.saved[self._graft] = (leaf.update, leaf.active)
        elif self._i == 1:
            given, active = leaf.saved[self._graft]
            leaf.saved[self._graft] = leaf.update
            leaf.update, leaf.active = given, active
        else:
            direction, magnitude = leaf.saved.pop(self._graft), leaf.update
            if direction is None or magnitude is None:  # no gradient, and at most one of the two accumulates
                some = magnitude if direction is None else direction
                leaf.update = None if some is None else zeros_like(some)
            else:
                leaf.update = grafted(direction, magnitude, self._graft.eps)


@combinator(example=lambda tx: {"direction": tx, "magnitude": tx})
def graft(direction: GradientTransformation, magnitude: GradientTransformation, eps: Scalar = 1e-16):
    r"""Take the direction of one transformation and the length of another, leaf by leaf.

    Both get the same update; with $d$ of the first and $m$ of the second, gives
    $d \, \lVert m \rVert / (\lVert d \rVert + \epsilon)$. It carries a tuned learning rate over to a new direction.

    Args:
        direction: Gives the direction $d$, usually without a learning rate.
        magnitude: Gives the length $\lVert m \rVert$.
        eps: $\epsilon \ge 0$, for leaves where $d$ is 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: the entries of the two, under `direction` and
        `magnitude`; none of its own.

    Raises:
        TypeError: an argument is no transformation.
        ValueError: a negative eps.

    Example:
        >>> tx = gradtx.graft(gradtx.scale(1.0), gradtx.clip_by_value(0.5))
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init({}))[0]["w"]  # 5 long -> as long as (0.5, 0.5)
        tensor([0.4243, 0.5657])

    Source: Agarwal et al. 2020, arXiv:2002.11803. Departures: none.
    """
    check_transformation("graft", "direction", direction)
    check_transformation("graft", "magnitude", magnitude)
    return Wrapper(lambda scope: _Graft(scope, direction, magnitude, eps).operations())
