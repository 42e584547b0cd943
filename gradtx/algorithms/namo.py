"""NAMO: Muon's direction with one adaptive step size for each matrix; `namo_d`, with one for each column."""

from __future__ import annotations

import torch

from gradtx.algorithms.muon import muon_like, with_fallback
from gradtx.arguments import Fraction, NonNegative, is_off
from gradtx.combinators.agreement import scale_by_norm_ratio
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import Adjustment, orthogonalize, shape_factor
from gradtx.maths.entries import at_least, at_most, mean, norms, running_mean, safe_sqrt
from gradtx.maths.polynomials import Coefficients, Steps, orthogonalizer
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema, square
from gradtx.transform import GradientTransformation

__all__ = ["namo", "namo_d"]


@alias(class_name="NAMO")
def namo(
    lr=3e-4,
    weight_decay=0.01,
    betas=(0.95, 0.95),
    nesterov=False,
    eps=1e-8,
    correct_bias=False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""NAMO: Muon's direction with one adaptive step size for each matrix.

    $d = O(u)\, \lVert u \rVert / (\sqrt{v} + \epsilon)$ with the momentum $u$, $O$ of `orthogonalize` and $v$ of
    `scale_by_norm_ratio`, $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of `scale_by_shape`.

    When to use: like `muon`, for noisy gradients: steps shrink where gradients disagree (the paper's claim).

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        betas: Decay rates of the momentum and of the mean square norm, each in [0, 1).
        nesterov: Use Nesterov momentum.
        eps: $\epsilon \ge 0$.
        correct_bias: Correct the bias of both norms.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `exp_avg_sq`, 0-d;
        with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.namo(
        ...     lr=1.0, weight_decay=0.0, betas=(0.0, 0.75), ns_coefficients="newton_schulz"
        ... )
        >>> params = {"w": torch.zeros(1, 1)}
        >>> # 3 / sqrt(9 / 4)
        >>> tx.update({"w": torch.tensor([[3.0]])}, tx.init(params), params)[0]["w"]
        tensor([[-2.]])

    Source: NAMO, arXiv:2602.17080. Departures: none.
    """
    beta1, _ = betas
    return muon_like(
        "namo",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(beta1, nesterov),
        scale_by_norm_ratio(
            orthogonalize(ns_coefficients, ns_steps, dtype=ns_dtype),
            betas,
            eps,
            correct_bias,
        ),
    )


@per_tensor(whole=True, dims=(2, 2), needs="params", owns_lr=True, amplifies=True)
def scale_by_namo_d(
    lr,
    weight_decay=0.1,
    betas=(0.95, 0.99),
    nesterov=True,
    clamp: Fraction = 0.75,
    eps=1e-8,
    factor: NonNegative = 0.2,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
):
    r"""Return the update of `namo_d`."""
    beta1, beta2 = betas
    iterate = orthogonalizer("namo_d", ns_coefficients, ns_steps)

    def sizes_of_columns(u, V):
        s = norms(u, 0) / (safe_sqrt(V) + eps)
        if is_off(clamp):
            return s
        middle = mean(s, 1, keepdim=True)
        # A schedule may reach 0, which is no bound.
        highest = middle / (clamp + 1e-30)
        return torch.minimum(torch.maximum(s, clamp * middle), highest)

    def update(g, state, p, ctx):
        m = running_mean(state["momentum_buffer"], g, beta1)
        u = running_mean(m, g, beta1) if nesterov else m
        squares = g.square().sum(dim=0, keepdim=True)
        V = running_mean(state["exp_avg_sq"], squares, beta2)
        root, bias = ctx.bias_correction(beta2).sqrt(), ctx.bias_correction(beta1)
        rates = lr * root / bias * sizes_of_columns(u, V)
        kept = at_least(1 - weight_decay * at_most(rates, 1.0), 0.0)
        size = factor * shape_factor("max_dim", *g.shape)
        moved = kept * p - at_most(size * rates, 1.0) * iterate(u)
        return moved - p, {"momentum_buffer": m, "exp_avg_sq": V}

    def columns(param):
        return param.new_zeros(1, param.shape[1])

    slots = {"momentum_buffer": ema(beta1), "exp_avg_sq": square(columns)}
    return slots, update


@alias(class_name="NAMOD")
def namo_d(
    lr=0.01,
    weight_decay=0.1,
    betas=(0.95, 0.99),
    nesterov=True,
    clamp: Fraction = 0.75,
    eps=1e-8,
    factor: NonNegative = 0.2,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""NAMO-D: Muon's direction with one adaptive step size for each column.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$, $u = m$ or $\beta_1 m + (1-\beta_1) g$ with `nesterov`; for each column
    $j$, $V_j \leftarrow \beta_2 V_j + (1-\beta_2) \lVert g_{:j} \rVert^2$,
    $s_j = \lVert u_{:j} \rVert / (\sqrt{V_j} + \epsilon)$, which `clamp` $c$ brings into
    $[c\, \bar s, \bar s / c]$ with the mean $\bar s$, and
    $a_j = \eta s_j \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)$. For $r$ rows and $k$ columns,
    $p_{:j} \leftarrow p_{:j} \max(0, 1 - \lambda \min(a_j, 1)) - \min(a_j f \sqrt{\max(r, k)}, 1)\, O(u)_{:j}$ with $O$
    of `orthogonalize`.

    When to use: like `namo`, if gradients of some inputs are noisier than those of others.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by the step size of the column.
        betas: Decay rates of the momentum and of the columns' mean squares, each in [0, 1).
        nesterov: Use Nesterov momentum.
        clamp: $c$ in [0, 1], the least ratio of a column's size to the mean of all, and of that mean to the largest
            size; 0 for no bounds, 1 for equal sizes.
        eps: $\epsilon \ge 0$.
        factor: $f \ge 0$, the root mean square of a direction.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `exp_avg_sq`, one
        value per column; with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.namo_d(lr=0.1, clamp=0.5, factor=1.0, ns_coefficients="newton_schulz")
        >>> params = {"w": torch.zeros(1, 2)}
        >>> tx.update({"w": torch.tensor([[3.0, 4.0]])}, tx.init(params), params)[0]["w"]
        tensor([[-0.1655, -0.2206]])

    Source: NAMO, arXiv:2602.17080, and the authors' code at a3f37b0. Departures: their 1e-12 in the bias correction is
    omitted.
    """
    rule = scale_by_namo_d(
        lr,
        weight_decay,
        betas,
        nesterov,
        clamp,
        eps,
        factor,
        ns_coefficients,
        ns_steps,
    )
    return with_fallback("namo_d", rule, fallback)
