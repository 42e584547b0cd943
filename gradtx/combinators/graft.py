"""Combine the direction of one transformation with the length of another."""

from __future__ import annotations

from gradtx.algorithms._math import grafted
from gradtx.combinators.frame import Frame
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = ["graft"]


@combinator
def graft(
    direction: GradientTransformation,
    magnitude: GradientTransformation,
    eps=1e-16,
):
    r"""Take the direction of one transformation and the length of another, leaf by leaf.

    Both receive the same update. With the result $d$ of the first and $m$ of the second, the update is
    $d \, \lVert m \rVert / (\lVert d \rVert + \epsilon)$. This transfers a tuned learning rate to a new direction.

    Args:
        direction: Computes the direction $d$, usually without a learning rate.
        magnitude: Determines the length $\lVert m \rVert$.
        eps: $\epsilon \ge 0$, for leaves where $d$ is 0.

    Returns:
        A transformation that preserves shapes and dtypes. State: the entries of both transformations, under `direction`
        and `magnitude`; `graft` itself has none.

    Raises:
        TypeError: If an argument is not a transformation.
        ValueError: If `eps` is negative.

    Example:
        >>> tx = gradtx.graft(gradtx.scale(1.0), gradtx.clip_by_value(0.5))
        >>> # 5 long -> as long as (0.5, 0.5)
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init({}))[0]["w"]
        tensor([0.4243, 0.5657])

    Source: Agarwal et al. 2020, arXiv:2002.11803. Departures: none.
    """

    def leave(updates, state, param, ctx):
        return grafted(updates["direction"], updates["magnitude"], eps), state

    return Frame(
        {"direction": direction, "magnitude": magnitude}, leave=leave, elementwise=False
    )
