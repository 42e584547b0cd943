"""NorMuon: Muon whose rows are normalized to the same size over time."""

from __future__ import annotations

from typing import Literal

import torch

from gradtx.algorithms.muon import muon_like
from gradtx.arguments import Decay, NonNegative
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import (
    Adjustment,
    normalize_neurons,
    orthogonalize,
)
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias
from gradtx.transform import GradientTransformation

__all__ = ["normuon"]


@alias(class_name="NorMuon")
def normuon(
    lr=1e-2,
    weight_decay=0.01,
    momentum: Decay = 0.95,
    beta2: Decay = 0.95,
    nesterov=True,
    eps=1e-10,
    axis: Literal["rows", "long"] = "rows",
    rms: NonNegative | None = None,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "original",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""NorMuon: Muon whose rows are normalized to the same size over time.

    $o$ = `orthogonalize` of the momentum, $n$ = `normalize_neurons`$(o)$, which has the norm of $o$,
    $p \leftarrow p (1 - \eta \lambda) - \eta r n$ with $r$ of `scale_by_shape`. With `rms`, $n$ has that root mean
    square, and $r = 1$.

    When to use: like `muon`, in whose updates some rows are much larger than others, which reduces stability.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        momentum: Decay rate of the gradient average, in [0, 1).
        beta2: Decay rate of the rows' mean squares, in [0, 1).
        nesterov: Use Nesterov momentum.
        eps: Added to the square roots of these, >= 0.
        axis: "rows", or "long" for the longer side.
        rms: Root mean square of updates divided by `lr`, >= 0; None keeps the norm of $o$.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `exp_avg_sq`, one
        number per row or column; with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.normuon(lr=1.0, weight_decay=0.0, rms=0.25)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.0], [0.0, 0.1]])}, tx.init(params), params
        ... )
        >>> updates["w"].norm()
        tensor(0.5000)

    Source: Li et al. 2025, arXiv:2510.05491; zichongli5/NorMuon, microsoft/dion. Departures: none; three rules have
    this name: dion's is adjust_lr_fn="spectral", nesterov=False, eps=1e-8; axis="long" is that of NVIDIA
    Emerging-Optimizers, which omits the norm; rms=0.2 is a later one.
    """
    return muon_like(
        "normuon",
        adjust_lr_fn if rms is None else "none",
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        orthogonalize(ns_coefficients, ns_steps, dtype=ns_dtype),
        normalize_neurons(beta2, eps, axis, rms),
    )
