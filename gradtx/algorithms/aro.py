"""ARO: a base direction in a rotated space whose rotation follows the momentum."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.algorithms.muon import muon_like
from gradtx.algorithms.sinkgd import alternately_normalized
from gradtx.arguments import Count, Decay
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import Adjustment
from gradtx.maths.entries import at_least, identity, is_rounding, norm, norms
from gradtx.maths.matrices import orthonormal
from gradtx.rules import alias, per_tensor
from gradtx.transform import GradientTransformation

__all__ = ["aro"]


LEAST = 1e-8  # lower bound of the norms of rows and columns


@per_tensor(
    whole=True,
    dims=(2, 2),
    compiles="lists",
    because="no kernel computes its QR decomposition",
    amplifies=True,
    length="sets",
)
def scale_by_aro(base: Literal["sinkhorn", "row"] = "sinkhorn", iterations: Count = 5):
    r"""Return the direction of `aro` of a momentum, without its scale."""

    def direction(x: Tensor) -> Tensor:
        if base == "sinkhorn":
            return alternately_normalized(x, iterations, 1, (LEAST, LEAST))
        return x * (x.shape[1] ** 0.5 / at_least(norms(x, 1), LEAST))

    def rotated(x: Tensor, R: Tensor) -> Tensor:
        rows = R.mT @ x
        # In directions that x does not have, only rounding errors.
        return torch.where(is_rounding(norms(rows, 1), norm(x)), 0.0, rows)

    def update(u, state, p, ctx):
        is_tall = u.shape[0] > u.shape[1]
        x = u.mT if is_tall else u
        R = state["rotation"]
        R = orthonormal(x @ direction(rotated(x, R)).mT)
        d = R @ direction(rotated(x, R))
        return d.mT if is_tall else d, {"rotation": R}

    def first(param):
        return identity(min(param.shape), param)

    return {"rotation": first}, update


@alias(class_name="ARO")
def aro(
    lr=0.01,
    weight_decay=0.01,
    momentum: Decay = 0.95,
    nesterov=False,
    *,
    adjust_lr_fn: Adjustment | None = "none",
    fallback: GradientTransformation | None = None,
    **options: Annotated[Any, scale_by_aro],
):
    r"""ARO: a base direction in a rotated space whose rotation follows the momentum.

    $m \leftarrow \mu m + (1-\mu) g$, $u = m$ or $\mu m + (1-\mu) g$ with `nesterov`, short side first. From $R = I$:
    $R \leftarrow \mathrm{QR}(u\, f(R^\top u)^\top).Q$, $d = R\, f(R^\top u)$, with $f$ the iteration of `sinkgd`, rows
    first, or rows of root mean square 1; $p \leftarrow p (1 - \eta \lambda) - \eta s d$ with $s$ of `scale_by_shape`.

    When to use: in place of `muon` with the rates of `sinkgd` or of signs, to which it adds a rotation: the entries of
    a direction have root mean square 1.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $s$.
        momentum: $\mu$ in [0, 1).
        nesterov: Use Nesterov momentum.
        base: $f$: "sinkhorn" or "row".
        iterations: Iterations of "sinkhorn", >= 1.
        adjust_lr_fn: Name of the factor $s$; see `scale_by_shape`.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `rotation`, n x n for
        the shorter side n; with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.aro(lr=0.1)
        >>> params = {"w": torch.zeros(2, 3)}
        >>> grads = {"w": torch.tensor([[3.0, 0.1, 0.2], [0.5, 2.0, 1.0]])}
        >>> update = tx.update(grads, tx.init(params), params)[0]["w"]
        >>> update.square().mean().sqrt()
        tensor(0.1000)

    Source: ARO, arXiv:2602.09006. Departures: the paper gives no scale of the rate, hence "none"; rows of $R^\top u$
    that are 0 but for rounding errors are 0. Where $u$ lacks a rank, the rotation is arbitrary in part.
    """
    return muon_like(
        "aro",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        scale_by_aro(**options),
    )
