"""Mano: momentum orthogonal to the weights and of equal norms, along rows and along columns in turn."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gradtx.algorithms.muon import summed_momentum, with_fallback
from gradtx.arguments import Decay, NonNegative
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import at_least, norms, quotient
from gradtx.rules import alias, per_tensor
from gradtx.transform import GradientTransformation, chain

__all__ = ["mano"]


@per_tensor(whole=True, dims=(2, 2), needs="params", length="sets")
def scale_by_mano(normalize_params=False, eps=1e-8, factor: NonNegative = 0.2):
    r"""Return the direction of `mano` of a momentum."""

    def unit(x: Tensor, dim: int) -> Tensor:
        return quotient(x, at_least(norms(x, dim), eps), floor=eps)

    def across_weights(u: Tensor, p: Tensor, dim: int) -> Tensor:
        q = unit(p, dim) if normalize_params else p
        along = (u * q).sum(dim=dim, keepdim=True)
        size: Any = factor * math.sqrt(u.shape[dim])
        return size * unit(u - along * q, dim)

    def update(u, state, p, ctx):
        def columns() -> Tensor:
            return across_weights(u, p, 0)

        def rows() -> Tensor:
            return across_weights(u, p, 1)

        return ctx.every(2, 1, columns, rows), state

    return update


@alias
def mano(
    lr=1e-3,
    weight_decay=0.1,
    momentum: Decay = 0.95,
    nesterov=True,
    normalize_params=False,
    eps=1e-8,
    factor: NonNegative = 0.2,
    fallback: GradientTransformation | None = None,
):
    r"""Mano: momentum orthogonal to the weights and of equal norms, along rows and along columns in turn.

    $m \leftarrow \mu m + g$, $u = m$ or $g + \mu m$ with `nesterov`. In odd steps for each column, in even ones for
    each row, of $n$ entries: $q$ is the weights $p$, or $p / \max(\lVert p \rVert, \epsilon)$ with `normalize_params`;
    $u \leftarrow u - \langle u, q \rangle q$, $u \leftarrow u / \max(\lVert u \rVert, \epsilon)$; and
    $p \leftarrow p (1 - \eta \lambda) - \eta f \sqrt n\, u$.

    When to use: in place of `muon`, if no product of matrices is affordable: a step costs little more than one of
    momentum.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled.
        momentum: $\mu$ in [0, 1), of a sum of gradients.
        nesterov: Use Nesterov momentum; False in the first version.
        normalize_params: Whether weights are normalized for the projection, as in the first version.
        eps: $\epsilon \ge 0$.
        factor: $f \ge 0$, the root mean square of a direction.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.mano(lr=1.0, weight_decay=0.0, factor=1.0)
        >>> params = {"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
        >>> # the first column loses its part along the weights; both get root mean square 1
        >>> tx.update({"w": torch.ones(2, 2)}, tx.init(params), params)[0]["w"]
        tensor([[-0.0000, -1.0000],
                [-1.4142, -1.0000]])

    Source: Mano, arXiv:2601.23000, and the authors' code at b78b952 (its second version). Departures: their second
    version adds $\epsilon$ to the norms, which makes 5e-10 of a difference. They count steps for all leaves together;
    in an optimizer, a leaf whose first gradient comes late counts its own.
    """
    matrices = chain(
        summed_momentum(momentum, nesterov),
        scale_by_mano(normalize_params, eps, factor),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
    return with_fallback("mano", matrices, fallback)
