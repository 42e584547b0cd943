"""MuonEq: Muon whose momentum has rows, columns, or both, of equal norms before the iteration. Also `equilibrate`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

from gradtx.algorithms.muon import muon_like, summed_momentum
from gradtx.arguments import AtLeastOne, Decay, Positive
from gradtx.links.orthogonal import Adjustment, orthogonalize
from gradtx.maths.entries import at_least, at_most, quotient, safe_pow
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias, per_tensor
from gradtx.transform import GradientTransformation

__all__ = ["equilibrate", "muon_eq"]


Sides: TypeAlias = Literal["row", "column", "both"]


# Rows of shards would do for "row", but the owner that orthogonalizes is sent them anyway.
@per_tensor(whole=True, dims=(2, 2), length="sets")
def equilibrate(
    kind: Sides = "row",
    power: Positive = 0.5,
    eps=1e-8,
    clip: AtLeastOne | None = None,
):
    r"""Divide each row, each column, or both, of a matrix by a power of its sum of squares.

    $u_{ij} \leftarrow R_i u_{ij}$, $u_{ij} C_j$ or $R_i u_{ij} C_j$, with $R_i = (\sum_j u_{ij}^2 + \epsilon)^{-q}$ and
    $C_j = (\sum_i u_{ij}^2 + \epsilon)^{-q}$, both of the update as it comes in. With $q = 1/2$, rows or columns get
    norm 1. It costs one pass over the matrix, where `orthogonalize` costs products of matrices.

    Args:
        kind: "row", "column" or "both".
        power: $q > 0$.
        eps: $\epsilon \ge 0$, in the units of a squared update; rows of zeros stay 0.
        clip: $k \ge 1$: bring every factor into $[1/k, k]$; None for no bounds.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.equilibrate("both", power=0.25)
        >>> # each entry by the root of the norm of its row, and by that of its column
        >>> tx.update({"w": torch.tensor([[4.0, 0.0], [0.0, 9.0]])}, tx.init({}))[0]["w"]
        tensor([[1., 0.],
                [0., 1.]])

    Source: MuonEq, arXiv:2603.28254; MaeChd/muon-eq. Departures: none. Muon+ has one of the columns and then one of
    the rows behind `orthogonalize`.
    """

    def factors(u: Tensor, dim: int) -> Tensor:
        squares = u.square().sum(dim=dim, keepdim=True) + eps
        result = quotient(1.0, safe_pow(squares, power), floor=eps)
        return result if clip is None else at_least(at_most(result, clip), 1 / clip)

    def update(u, state, p, ctx):
        result = u
        if kind != "column":
            result = result * factors(u, -1)
        if kind != "row":
            result = result * factors(u, -2)
        return result, state

    return update


@alias(class_name="MuonEq")
def muon_eq(
    lr=1e-3,
    weight_decay=0.1,
    momentum: Decay = 0.95,
    nesterov=True,
    normalize: Sides = "row",
    power: Positive = 0.5,
    eps=1e-8,
    clip: AtLeastOne | None = None,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "match_rms_adamw",
    fallback: GradientTransformation | None = None,
):
    r"""MuonEq: Muon whose momentum has rows, columns, or both, of equal norms before the iteration.

    $m \leftarrow \mu m + g$, $u = m$ or $g + \mu m$ with `nesterov`, $d = O(E(u))$ with $E$ of `equilibrate` and $O$ of
    `orthogonalize`; $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of `scale_by_shape`.

    When to use: in place of `muon`, at the same cost: the iteration of a matrix whose rows differ in size converges in
    fewer steps if they are equal first.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        momentum: $\mu$ in [0, 1), of a sum of gradients.
        nesterov: Use Nesterov momentum.
        normalize: "row", "column" or "both", as `kind` of `equilibrate`.
        power: Of the sums of squares, > 0; 1/2 for norms.
        eps: Added to the sums of squares, >= 0.
        clip: Bound of the factors of rows and columns, >= 1; None for no bound.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.muon_eq(lr=1.0, adjust_lr_fn="none", ns_coefficients="newton_schulz")
        >>> params = {"w": torch.zeros(2, 2)}
        >>> # Muon would need more steps for the second row, which is 10,000 times as small.
        >>> grads = {"w": torch.tensor([[1.0, 0.0], [0.0, 1e-4]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"].round(decimals=3) + 0.0
        tensor([[-1.,  0.],
                [ 0., -1.]])

    Source: MuonEq, arXiv:2603.28254; MaeChd/muon-eq. Departures: the paper switches from both to rows at a given step,
    its code only from "rowcol"; here the user changes `normalize` of a group, or joins two optimizers. The norm in the
    iteration is at least 1e-7, to which the authors add it: results differ by 1e-8.
    """
    return muon_like(
        "muon_eq",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        summed_momentum(momentum, nesterov),
        equilibrate(normalize, power, eps, clip),
        orthogonalize(ns_coefficients, ns_steps),
    )
