"""SM3: a second moment from one vector per dimension."""

from __future__ import annotations

import functools

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor

__all__ = ["scale_by_sm3"]


@per_tensor(ranges={"beta": "[0, 1)", "eps": "(0, inf)"}, nonnegative=("accumulator",))
def scale_by_sm3(beta: Scalar = 0.0, eps: Scalar = 1e-30):
    r"""Divide by the root of the summed squared gradients, stored as maxima of slices.

    $A^i$ is a vector along dimension i. $c_t = \min_i A^i_{t-1} + g_t^2$ (broadcast), or with $\beta > 0$
    $c_t = \beta \min_i A^i_{t-1} + (1-\beta) g_t^2$; the result is $g_t / \sqrt{c_t + \epsilon}$. Then $A^i_t$ is the
    larger of $A^i_{t-1}$ and the maximum of $c_t$ over the other dimensions.

    Args:
        beta: $\beta$, in [0, 1). 0 sums squares as in Adagrad.
        eps: $\epsilon > 0$, in the units of a squared gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `accumulator_0`, `accumulator_1`, ..., one per dimension,
        of size 1 in the others (a single one for a 0-d leaf).

    Raises:
        ValueError: If `beta` is outside [0, 1) or `eps` is not above 0.

    Example:
        >>> tx = gradtx.scale_by_sm3()
        >>> _, state = tx.update(
        ...     {"w": torch.tensor([[1.0, 2.0], [3.0, 0.0]])}, tx.init({"w": torch.zeros(2, 2)})
        ... )
        >>> (
        ...     state["scale_by_sm3"]["accumulator_0"]["w"],
        ...     state["scale_by_sm3"]["accumulator_1"]["w"],
        ... )
        (tensor([[4.],
                [9.]]), tensor([[9., 4.]]))

    Source: Anil et al. 2019, arXiv:1901.11150 (SM3-II). Departures: beta > 0 follows Enealor/PyTorch-SM3. With beta = 0
    the maxima never decrease, so taking the larger one has no effect.
    """
    old_weight = beta + (beta == 0)  # 1 at beta 0

    def init(param):
        shapes = [
            [1] * i + [size] + [1] * (param.ndim - i - 1)
            for i, size in enumerate(param.shape)
        ] or [[]]
        return {"accumulator": [param.new_zeros(shape) for shape in shapes]}

    def update(update, state, param, ctx):
        if update.numel() == 0:
            return update, state
        old = state["accumulator"]
        least = functools.reduce(torch.minimum, old)
        cover = old_weight * least + (1 - beta) * update.square()
        return update / (cover + eps).sqrt(), {
            "accumulator": [
                torch.maximum(maxima, _maxima(cover, i)) for i, maxima in enumerate(old)
            ]
        }

    return init, update


def _maxima(x, dim):
    """Return the maxima over all dimensions but one; reduced dimensions have size 1."""
    others = tuple(i for i in range(x.ndim) if i != dim)
    return x.amax(dim=others, keepdim=True) if others else x
