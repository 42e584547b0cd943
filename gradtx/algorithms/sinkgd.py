"""SinkGD: gradients whose rows and columns all have root mean square 1, without state."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from torch import Tensor

from gradtx.arguments import Count, Decay, is_off
from gradtx.links.decay import add_decayed_weights
from gradtx.links.momentum import trace_ema
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import at_least, norms
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["sinkgd"]


Order: TypeAlias = Literal["long", "row"]


def alternately_normalized(
    matrix: Tensor, iterations: int, first: int, floors: tuple[float, float]
) -> Tensor:
    """Give rows and columns in turn root mean square 1, so often.

    Args:
        matrix: The matrix.
        iterations: How often both sides are normalized.
        first: The dimension to sum over first: 0 normalizes columns first, 1 rows.
        floors: The lower bounds of the norms of columns, and of rows.
    """
    for _ in range(iterations):
        for dim in (first, 1 - first):
            size = math.sqrt(matrix.shape[dim])
            matrix = matrix * (size / at_least(norms(matrix, dim), floors[dim]))
    return matrix


@per_tensor(whole=True, length="sets")
def normalize_alternately(iterations: Count = 5, order: Order = "long"):
    r"""Return the direction of `sinkgd`."""

    def update(u, state, p, ctx):
        if u.ndim < 2:
            return u.sign(), state
        matrix = u.flatten(1)
        rows, columns = matrix.shape
        first = 0 if order == "long" and rows > columns else 1
        floors = 1 / math.sqrt(max(rows, 1)), 1 / math.sqrt(max(columns, 1))
        result = alternately_normalized(matrix, iterations, first, floors)
        return result.reshape(u.shape), state

    return update


@alias(class_name="SinkGD")
def sinkgd(
    lr=1e-3,
    momentum: Decay = 0.0,
    weight_decay=0.0,
    nesterov=False,
    iterations: Count = 5,
    order: Order = "long",
):
    r"""SinkGD: gradients whose rows and columns all have root mean square 1, without state.

    $m \leftarrow \mu m + (1-\mu) g$, $u = m$ or $\mu m + (1-\mu) g$ with `nesterov`. Leaves of more than two dimensions
    are matrices (first dimension, all others). `iterations` times, each row and each column of $u$ is divided by
    $\max(\lVert \cdot \rVert, n^{-1/2})\, n^{-1/2}$, where $n$ is its number of entries. The direction of leaves with
    fewer than two dimensions is $\mathrm{sign}(u)$. Then $p \leftarrow p (1 - \eta \lambda) - \eta u$.

    When to use: the matrices of large models and of adapters, where no memory is left for state; with a momentum, in
    place of `lion`.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1); a literal 0.0 keeps no state.
        weight_decay: $\lambda \ge 0$, decoupled.
        nesterov: Use Nesterov momentum.
        iterations: How often rows and columns are divided, >= 1.
        order: "long": columns first if the matrix has more rows than columns, else rows first. "row": rows first.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, or none without momentum.

    Example:
        >>> tx = gradtx.sinkgd(lr=0.1)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> grads = {"w": torch.tensor([[300.0, -4.0], [300.0, 4.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"]
        tensor([[-0.1000,  0.1000],
                [-0.1000, -0.1000]])

    Source: Scetbon et al. 2025, arXiv:2502.06742; momentum and floor: Koratahiu/Advanced_Optimizers. Departures: the
    paper has neither; with no row or column of norm below $n^{-1/2}$, and `order="row"`, the direction is the paper's.
    """
    average = chain() if is_off(momentum) else trace_ema(momentum, nesterov)
    return chain(
        average,
        normalize_alternately(iterations, order),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
