"""COSMOS: Adam in the leading directions of the gradients' columns, as in SOAP, and Muon for what is left of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradtx.algorithms.muon import with_fallback
from gradtx.arguments import Count, NonNegative
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import (
    corrected_root,
    is_rounding,
    norm,
    norms,
    remainder,
    running_mean,
)
from gradtx.maths.matrices import eigenbasis, gram, orthonormal
from gradtx.maths.polynomials import NEWTON_SCHULZ, orthogonalizer
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square
from gradtx.transform import GradientTransformation, chain

__all__ = ["cosmos"]


@per_tensor(
    whole=True,
    dims=(2, 2),
    compiles="lists",
    capturable="after first",
    amplifies=True,
    length="sets",
)
def scale_by_cosmos(
    betas=(0.9, 0.999),
    rank: Count = 64,
    lr_ratio: NonNegative = 0.1,
    gamma: NonNegative = 0.2,
    eps=1e-8,
    nesterov=True,
):
    r"""Return the direction of `cosmos`."""
    beta1, beta2 = betas
    iterate = orthogonalizer("cosmos", NEWTON_SCHULZ, None)

    def columns_of_basis(tensor: Tensor) -> int:
        return min(rank, tensor.shape[1])

    def coordinates(x: Tensor, basis: Tensor) -> Tensor:
        columns = x @ basis
        # In directions that x does not have, only rounding errors.
        return torch.where(is_rounding(norms(columns, 0), norm(x)), 0.0, columns)

    def next_basis(g: Tensor, state, ctx) -> tuple[Tensor, Tensor]:
        P, S = state["P"], state["S"]

        def first() -> tuple[Tensor, Tensor]:
            basis = eigenbasis(gram(g, 1))[:, : P.shape[1]]
            return basis, (1 - beta2) * gram(g @ basis, 1)

        def later() -> tuple[Tensor, Tensor]:
            basis = orthonormal(beta2 * P @ S + (1 - beta2) * g.mT @ (g @ P))
            turn = P.mT @ basis
            return basis, running_mean(turn.mT @ S @ turn, gram(g @ basis, 1), beta2)

        return ctx.first(first, later)

    def update(g, state, p, ctx):
        m = beta1 * state["exp_avg"] + g
        weights = ctx.bias_correction(beta1) / (1 - beta1)
        u = (g + beta1 * m) / (1 + beta1 * weights) if nesterov else g / weights
        P, S = next_basis(g, state, ctx)
        v = running_mean(state["exp_avg_sq"], coordinates(g, P).square(), beta2)
        inside = coordinates(u, P)
        d = inside / (corrected_root(v, ctx, beta2) + eps) @ P.mT
        size = math.sqrt(g.numel())
        # With all directions inside, nothing is left.
        if P.shape[1] < P.shape[0]:
            rest = iterate(remainder(u, inside @ P.mT))
            d = d + rest * (gamma * size / (norm(rest) + eps))
        d = d * (lr_ratio * size / (norm(d) + eps))
        return d, {"exp_avg": m, "exp_avg_sq": v, "P": P, "S": S}

    def squares(param):
        return param.new_zeros(param.shape[0], columns_of_basis(param))

    def basis(param):
        return param.new_zeros(param.shape[1], columns_of_basis(param))

    def statistics(param):
        return param.new_zeros(columns_of_basis(param), columns_of_basis(param))

    slots = {
        "exp_avg": linear(),
        "exp_avg_sq": square(squares),
        "P": basis,
        "S": statistics,
    }
    return slots, update


@alias(class_name="COSMOS")
def cosmos(
    lr=1e-3,
    betas=(0.9, 0.999),
    rank: Count = 64,
    lr_ratio: NonNegative = 0.1,
    gamma: NonNegative = 0.2,
    eps=1e-8,
    nesterov=True,
    weight_decay=0.0,
    fallback: GradientTransformation | None = None,
):
    r"""COSMOS: Adam in the leading directions of the gradients' columns, as in SOAP, and Muon for what is left of them.

    At the first step, $P$ has the first `rank` eigenvectors of $g^\top g$, and $S = (1-\beta_2) (g P)^\top g P$. Later,
    $P' = \mathrm{QR}(\beta_2 P S + (1-\beta_2) g^\top g P).Q$ and
    $S \leftarrow \beta_2 (P^\top P')^\top S (P^\top P') + (1-\beta_2) (g P')^\top g P'$. With
    $m \leftarrow \beta_1 m + g$ and $T = (1-\beta_1^t)/(1-\beta_1)$, $u = (g + \beta_1 m) / (1 + \beta_1 T)$ with
    `nesterov`, else $g / T$; $v \leftarrow \beta_2 v + (1-\beta_2) (g P)^2$ and, for $r$ rows and $c$ columns,

    $$ d = \frac{u P}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} P^\top
    + \gamma \sqrt{r c} \frac{X}{\lVert X \rVert + \epsilon}, \qquad X = O(u - u P P^\top), $$

    with $O$ of `orthogonalize`;
    $p \leftarrow p (1 - \eta \lambda) - \eta \rho \sqrt{r c}\, d / (\lVert d \rVert + \epsilon)$.

    When to use: in place of `soap`, with a fraction of its memory and of the cost of its bases.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        rank: Number of columns of $P$, >= 1; at most that of the columns of a matrix, and then without $X$.
        lr_ratio: $\rho \ge 0$, the root mean square of a direction.
        gamma: $\gamma \ge 0$, the size of what is left, where entries of Adam's direction are near 1.
        eps: $\epsilon \ge 0$.
        nesterov: Whether $u$ has the momentum.
        weight_decay: $\lambda \ge 0$, decoupled.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, shaped as the parameter,
        `exp_avg_sq`, rows x rank, `P`, columns x rank, and `S`, rank x rank; with a fallback, these and the fallback's
        entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.cosmos(lr=1.0, rank=1, lr_ratio=1.0, gamma=1.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> # Adam along the first column, Muon along the second
        >>> grads = {"w": torch.tensor([[9.0, 0.0], [0.0, 1e-3]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"].round(decimals=3) + 0.0
        tensor([[-0.8940,  0.0000],
                [ 0.0000, -1.7890]])

    Source: Liu et al. 2025, arXiv:2502.17410, and the authors' code at 61de180. Departures: their code sends matrices
    of more than 10,000 rows to Adam, and raises an error where the rank exceeds the columns; coordinates $u P$ and the
    rest $u - u P P^\top$ are 0 here if they are 0 but for rounding errors, of which divisors would make a full step.
    Kept from it: without `nesterov`, the momentum is not used; $v$ stays as it is when $P$ turns. Where the rank
    exceeds that of the first gradient, part of $P$ is arbitrary.
    """
    matrices = chain(
        scale_by_cosmos(betas, rank, lr_ratio, gamma, eps, nesterov),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
    return with_fallback("cosmos", matrices, fallback)
