"""Constraints, projections and proximal steps for parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradtx.base.messages import describe
from gradtx.rules import per_tensor
from gradtx.transform import GradientTransformation

__all__ = ["map_after_step"]


@per_tensor(
    needs=("params",), static=("fn",), follows_rate=True, example={"fn": torch.tanh}
)
def map_after_step(fn: Callable[[Tensor], Tensor], before: bool = False):
    r"""Apply a function to the parameter after the step: constraints, projections, proximal steps.

    $u \mapsto f(p + u) - p$, or with `before` $u \mapsto f(f(p) + u) - p$. Place it after the learning rate.

    Args:
        fn: A function of one tensor, written in torch operations that preserve its shape.
        before: Whether to apply `fn` to the parameter before the step as well.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        TypeError: If `fn` is not callable.
        ValueError: If `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.sgd(lr=1.0), gradtx.map_after_step(torch.relu))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([3.0, 1.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([0., 1.])
    """
    if not callable(fn):
        raise TypeError(
            f"map_after_step: fn must be a function of a tensor, got {describe(fn)}"
        )

    def update(update, state, param, ctx):
        start = fn(param) if before else param
        return fn(start + update) - param, state

    return update


def decay_after_step(lr: Any, weight_decay: Any) -> GradientTransformation:
    r"""Multiply the weights by $1 - \eta \lambda$ after the step."""
    factor = 1 - lr * weight_decay
    return map_after_step(lambda weights: factor * weights)
