"""Scale updates: by a number, by the learning rate."""

from __future__ import annotations

from gradtx._arguments import Scalar
from gradtx.factories import per_tensor


@per_tensor(elementwise=True, example={"factor": 0.5})
def scale(factor: Scalar):
    r"""Multiply every update by a number: $u \\mapsto c u$.

    Args:
        factor: Any number, of either sign.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale(-2.0)
        >>> tx.update({"w": torch.tensor([1.0, 3.0])}, tx.init({}))[0]["w"]
        tensor([-2., -6.])
    """

    def update(update, state, param, ctx):
        return factor * update, state

    return update


@per_tensor(elementwise=True, before_owner=True, example={"lr": 0.1})
def scale_by_learning_rate(lr: Scalar):
    r"""Turn a direction into a step downhill: $u \mapsto -\eta_t u$.

    Args:
        lr: The learning rate $\eta$, in [0, inf); a schedule gives $\eta_t$, the first update using `lr(0)`.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: a negative rate, or a place after a link that owns the learning rate.

    Example:
        >>> tx = gradtx.scale_by_learning_rate(gradtx.Schedule(lambda step: 0.1 * (step + 1)))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> first, state = tx.update({"w": torch.ones(1)}, state)
        >>> second, state = tx.update({"w": torch.ones(1)}, state)
        >>> first["w"], second["w"]
        (tensor([-0.1000]), tensor([-0.2000]))
    """
    factor = -lr

    def update(update, state, param, ctx):
        return factor * update, state

    return update
