"""SM3: Adagrad whose state is one vector per dimension instead of one number per weight."""

from __future__ import annotations

import functools

import torch

from gradtx.arguments import Decay, Positive, is_off
from gradtx.links.momentum import ema
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.rules import alias, per_tensor
from gradtx.slots import square
from gradtx.transform import chain

__all__ = ["scale_by_sm3", "sm3"]


@per_tensor(length="sets", by_rows=True)
def scale_by_sm3(beta: Decay = 0.0, eps: Positive = 1e-30):
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

    def covers(p):
        shapes = [[1] * p.ndim for _ in range(max(p.ndim, 1))]
        for i, size in enumerate(p.shape):
            shapes[i][i] = size
        return [p.new_zeros(shape) for shape in shapes]

    def update(g, state, p, ctx):
        if g.numel() == 0:
            return g, state
        old = state["accumulator"]
        least = functools.reduce(torch.minimum, old)
        cover = old_weight * least + (1 - beta) * g.square()
        maxima = [torch.maximum(x, _maxima(cover, i)) for i, x in enumerate(old)]
        return g / (cover + eps).sqrt(), {"accumulator": maxima}

    return {"accumulator": square(covers, slow=True)}, update


def _maxima(x, dim):
    """Return the maxima over all dimensions but one; reduced dimensions have size 1."""
    others = tuple(i for i in range(x.ndim) if i != dim)
    return x.amax(dim=others, keepdim=True) if others else x


@alias(class_name="SM3")
def sm3(
    lr=0.1,
    momentum: Decay = 0.0,
    beta: Decay = 0.0,
    eps: Positive = 1e-30,
):
    r"""SM3: Adagrad whose state is one vector per dimension instead of one number per weight.

    $p \leftarrow p - \eta m$ with $m$ the average of $g / \sqrt{c + \epsilon}$, where $c$ is the smallest of the sums
    that cover an entry (see `scale_by_sm3`).

    When to use: embeddings and softmax layers so large that Adagrad's state does not fit.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight in the first step.
        momentum: $\mu$ in [0, 1): $m \leftarrow \mu m + (1-\mu) (\ldots)$. With a literal 0.0, no average is kept.
        beta: In [0, 1); above 0, averages of squares replace the sums.
        eps: $\epsilon > 0$, in units of the squared gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `accumulator_0`, ..., one per dimension; with
        momentum, also `exp_avg`.

    Example:
        >>> tx = gradtx.sm3(lr=0.1, momentum=0.5)
        >>> state = tx.init({"w": torch.zeros(300, 200)})
        >>> [
        ...     tuple(state["scale_by_sm3"][slot]["w"].shape)
        ...     for slot in ("accumulator_0", "accumulator_1")
        ... ]
        [(300, 1), (1, 200)]

    Source: Anil et al. 2019, arXiv:1901.11150. Departures: beta > 0 follows Enealor/PyTorch-SM3. The momentum is an
    average, unlike the sum in torch's SGD.
    """
    return chain(
        scale_by_sm3(beta, eps),
        chain() if is_off(momentum) else ema(momentum),
        scale_by_learning_rate(lr),
    )
