"""Mousse: Muon on the momentum as Shampoo's factors whiten it, whitened once more afterwards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from gradtx.algorithms.muon import muon_like
from gradtx.arguments import Count, Decay, NonNegative, Positive
from gradtx.links.orthogonal import Adjustment
from gradtx.maths.entries import identity, norm, quotient, running_mean
from gradtx.maths.matrices import gram, inverse_root, multiplied
from gradtx.maths.polynomials import Coefficients, Steps, orthogonalizer
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear
from gradtx.transform import GradientTransformation

__all__ = ["mousse"]


DIMS = {"both": (0, 1), "left": (0,), "right": (1,)}


@per_tensor(
    whole=True,
    dims=(2, 2),
    compiles="lists",
    capturable=False,
    amplifies=True,
    length="sets",
)
def scale_by_mousse(
    momentum: Decay = 0.95,
    nesterov=False,
    beta: Decay = 0.95,
    alpha: NonNegative = 0.125,
    eps: Positive = 1e-10,
    precondition_frequency: Count = 10,
    sides: Literal["both", "left", "right"] = "both",
    correct_bias=True,
    graft=True,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
):
    r"""Return the direction of `mousse`, without its scale."""
    iterate = orthogonalizer("mousse", ns_coefficients, ns_steps)
    dims = DIMS[sides]

    def root(factor: Tensor, ctx) -> Tensor:
        if correct_bias:
            factor = factor / ctx.bias_correction(beta)
        relative = factor * quotient(len(factor), factor.trace())
        # Twice eps, in the authors' order: where a factor lacks a rank, rounding is not far below eps.
        raised = relative + eps * identity(len(factor), factor)
        return inverse_root(raised, alpha, lift=eps)

    def preconditioned(x: Tensor, roots: list[Tensor]) -> Tensor:
        for i, matrix in zip(dims, roots, strict=True):
            x = multiplied(x, matrix, i)
        return x

    def update(g, state, p, ctx):
        m = momentum * state["momentum_buffer"] + g
        u = g + momentum * m if nesterov else m
        factors = [
            running_mean(old, gram(g, i), beta)
            for i, old in zip(dims, state["pre_cond"], strict=True)
        ]
        roots = ctx.every(
            precondition_frequency,
            1,
            lambda: [root(factor, ctx) for factor in factors],
            lambda: list(state["inv_pre_cond"]),
        )
        o = iterate(preconditioned(u, roots))
        d = preconditioned(o, roots)
        if graft:
            d = d * quotient(norm(o), norm(d))
        return d, {"momentum_buffer": m, "pre_cond": factors, "inv_pre_cond": roots}

    def zeros(param):
        return [param.new_zeros(param.shape[i], param.shape[i]) for i in dims]

    def identities(param):
        return [identity(param.shape[i], param) for i in dims]

    slots = {
        "momentum_buffer": linear(),
        "pre_cond": zeros,
        "inv_pre_cond": identities,
    }
    return slots, update


@alias
def mousse(
    lr=0.01,
    weight_decay=0.01,
    momentum: Decay = 0.95,
    nesterov=False,
    *,
    adjust_lr_fn: Adjustment | None = "spectral",
    fallback: GradientTransformation | None = None,
    **options: Annotated[Any, scale_by_mousse],
):
    r"""Mousse: Muon on the momentum as Shampoo's factors whiten it, whitened once more afterwards.

    $m \leftarrow \mu m + g$, $u = m$ or $g + \mu m$ with `nesterov`; $L \leftarrow \beta L + (1-\beta) g g^\top$ and
    $R \leftarrow \beta R + (1-\beta) g^\top g$. At the first step, and at every n-th one from there on,
    $A = (L\, r / \mathrm{tr}\, L + 2 \epsilon I)^{-\alpha}$ for $r$ rows, and $B$ likewise of $R$. The direction is
    $d = A\, o\, B$ with $o = O(A\, u\, B)$ and $O$ of `orthogonalize`, brought to the norm of $o$ by `graft`;
    $p \leftarrow p (1 - \eta \lambda) - \eta s d$ with $s$ of `scale_by_shape`.

    When to use: in place of `muon`, if a few directions of the gradients dominate: 12% fewer steps in the paper, with
    memory for two square matrices per side and two eigenvalue decompositions every `precondition_frequency` steps.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $s$.
        momentum: $\mu$ in [0, 1), of a sum of gradients.
        nesterov: Use Nesterov momentum.
        beta: $\beta$ in [0, 1), of the factors.
        alpha: $\alpha \ge 0$; 0 is Muon, 1/4 whitens the gradient completely before the iteration.
        eps: $\epsilon > 0$, relative to the mean eigenvalue of a factor.
        precondition_frequency: $n \ge 1$, steps from one computation of $A$ and $B$ to the next.
        sides: "both", or only "left" ($A$) or "right" ($B$).
        correct_bias: Divide factors by $1 - \beta^t$ before their trace, which cancels all of it but rounding.
        graft: Whether $d$ gets the norm of $o$.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $s$; see `scale_by_shape`.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and for each side that is
        whitened `pre_cond_i` and `inv_pre_cond_i`, n x n; with a fallback, these and the fallback's entries, under
        `partition`. Time: n^3.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.mousse(lr=1.0, graft=False, alpha=0.5, ns_coefficients="newton_schulz")
        >>> params = {"w": torch.zeros(2, 2)}
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}
        >>> # the squares 9 and 1 have mean 5: of the direction I, 5/9 and 5/1 are left
        >>> tx.update(grads, tx.init(params), params)[0]["w"].round(decimals=3) + 0.0
        tensor([[-0.5560,  0.0000],
                [ 0.0000, -5.0000]])

    Source: Mousse, arXiv:2603.09697, and the authors' code at d00c1bf. Departures: an algorithm of the paper unwhitens
    with $+\alpha$, its derivation and code with $-\alpha$. Their code iterates in the bases of the factors, which gives
    the same. Eigenvalues that rounding made negative are raised, where the code shifts all of them.
    """
    return muon_like(
        "mousse",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        scale_by_mousse(momentum, nesterov, **options),
    )
