"""AdaMuon: Muon with a second moment for every entry of its direction."""

from __future__ import annotations

from typing import Literal

import torch

from gradtx.algorithms.muon import muon_like
from gradtx.links.caution import scale_by_sign
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import Adjustment, normalize_entries, orthogonalize
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias
from gradtx.transform import GradientTransformation, chain

__all__ = ["adamuon"]


@alias(class_name="AdaMuon")
def adamuon(
    lr=0.02,
    weight_decay=0.01,
    betas=(0.95, 0.999),
    nesterov=True,
    eps=1e-8,
    sign=False,
    rescale: Literal["sqrt_min", "rms"] | None = "sqrt_min",
    correct_bias=True,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "match_rms_adamw",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""AdaMuon: Muon with a second moment for every entry of its direction.

    $o$ = `orthogonalize` of the momentum, or of its signs; $d$ = `normalize_entries`$(o)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of `scale_by_shape`.

    When to use: like `muon`, if its rate must be as large as AdamW's.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        betas: Decay rates of the momentum and of the second moment, each in [0, 1).
        nesterov: Use Nesterov momentum.
        eps: $\epsilon \ge 0$ of `normalize_entries`.
        sign: Orthogonalize the signs of the momentum.
        rescale: Norm of $d$: "sqrt_min", "rms" or None, as in `normalize_entries`.
        correct_bias: Whether to correct the bias of the second moment.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `exp_avg_sq`; with a
        fallback, these and the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.adamuon(lr=1.0, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.1], [-0.1, 2.0]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[-0.2000, -0.2000],
                [ 0.2000, -0.2000]])

    Source: Si et al. 2025, arXiv:2507.11005; Chongjie-Si/AdaMuon. Departures: the defaults are those of the authors'
    first version. Their code of August 2025 corresponds to sign=True, rescale="rms", correct_bias=False,
    adjust_lr_fn="none", with equal betas.
    """
    beta1, beta2 = betas
    return muon_like(
        "adamuon",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(beta1, nesterov),
        scale_by_sign() if sign else chain(),
        orthogonalize(ns_coefficients, ns_steps, dtype=ns_dtype),
        normalize_entries(beta2, eps, correct_bias, rescale),
    )
