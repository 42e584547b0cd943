"""NAMO: Muon's direction with one adaptive step size for each matrix."""

from __future__ import annotations

import torch

from gradtx.algorithms.muon import muon_like
from gradtx.combinators.agreement import scale_by_norm_ratio
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import Adjustment, orthogonalize
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias
from gradtx.transform import GradientTransformation

__all__ = ["namo"]


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
