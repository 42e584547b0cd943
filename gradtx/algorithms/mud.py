"""MUD: Muon whose momentum is orthogonalized by a triangular solution in place of an iteration. Also `decorrelate`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradtx.algorithms.muon import muon_like, summed_momentum
from gradtx.arguments import Count, Decay
from gradtx.links.orthogonal import Adjustment
from gradtx.maths.entries import at_least, is_rounding, norms, quotient
from gradtx.maths.matrices import symmetric_product
from gradtx.rules import alias, per_tensor
from gradtx.transform import GradientTransformation

__all__ = ["decorrelate", "mud"]


@per_tensor(whole=True, dims=(2, 2), amplifies=True, length="sets")
def decorrelate(passes: Count = 1, eps=1e-8):
    r"""Make the rows of a matrix, or its columns if they are fewer, nearly orthogonal by triangular solutions.

    Short side first, `passes` times: rows of $Q$ are divided by $\max(\lVert \cdot \rVert, \epsilon)$, and
    $Q \leftarrow T^{-1} Q$ with $T$ the lower triangle of $Q Q^\top$; finally, rows are divided once more. Each row
    loses what the rows before it explain of it, as in one sweep of Gauss and Seidel. The diagonal of $T$ is 1, so the
    solution exists for every matrix. It costs one product and one solution per pass, where `orthogonalize` costs ten
    products and more; singular values are not as near to 1.

    Args:
        passes: How often, >= 1.
        eps: $\epsilon \ge 0$; rows of zeros stay 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.decorrelate()
        >>> # the second row loses its part along the first one
        >>> tx.update({"w": torch.tensor([[2.0, 0.0], [5.0, 5.0]])}, tx.init({}))[0]["w"]
        tensor([[1., 0.],
                [0., 1.]])

    Source: MUD, arXiv:2603.17970. Departures: a row of which the rows before it leave only rounding errors is 0.
    """

    def unit_rows(x: Tensor, whole: float = 0.0) -> Tensor:
        lengths = norms(x, -1)
        rows = quotient(x, at_least(lengths, eps), floor=eps)
        return torch.where(is_rounding(lengths, whole), 0.0, rows)

    def update(u, state, p, ctx):
        is_tall = u.shape[0] > u.shape[1]
        q = unit_rows(u.mT if is_tall else u)
        for _ in range(passes):
            triangle = symmetric_product(q, q.mT).tril(-1)
            # The ones of the diagonal are not read; rows of zeros have none.
            rest = torch.linalg.solve_triangular(
                triangle, q, upper=False, unitriangular=True
            )
            # A row that those before it explain is 0; their errors add up.
            q = unit_rows(rest, math.sqrt(q.shape[0]))
        return q.mT if is_tall else q, state

    return update


@alias(class_name="MUD")
def mud(
    lr=1e-3,
    weight_decay=0.01,
    momentum: Decay = 0.95,
    nesterov=True,
    passes: Count = 1,
    eps=1e-8,
    adjust_lr_fn: Adjustment | None = "match_rms_adamw",
    fallback: GradientTransformation | None = None,
):
    r"""MUD: Muon whose momentum is orthogonalized by a triangular solution in place of an iteration.

    $m \leftarrow \mu m + g$, $u = m$ or $g + \mu m$ with `nesterov`, $d$ = `decorrelate`$(u)$;
    $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of `scale_by_shape`.

    When to use: in place of `muon`, if its iteration takes a large part of the step, as with many ranks or small
    batches: one pass replaces five iterations.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        momentum: $\mu$ in [0, 1), of a sum of gradients.
        nesterov: Use Nesterov momentum.
        passes: Number of triangular solutions, >= 1.
        eps: Lower bound of the norms of rows, >= 0.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.mud(lr=1.0, adjust_lr_fn="none")
        >>> params = {"w": torch.zeros(2, 2)}
        >>> grads = {"w": torch.tensor([[2.0, 0.0], [5.0, 5.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"] + 0.0
        tensor([[-1.,  0.],
                [ 0., -1.]])

    Source: MUD, arXiv:2603.17970. Departures: none.
    """
    return muon_like(
        "mud",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        summed_momentum(momentum, nesterov),
        decorrelate(passes, eps),
    )
