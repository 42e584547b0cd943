"""Contra-Muon: Muon's direction minus a share of the momentum, so that small singular values weigh more."""

from __future__ import annotations

import torch

from gradtx.algorithms.muon import muon_like
from gradtx.arguments import Count, Decay, Scalar
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import Adjustment, orthogonalize
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias
from gradtx.transform import GradientTransformation

__all__ = ["contra_muon"]


@alias
def contra_muon(
    lr=0.0375,
    weight_decay=0.0,
    momentum: Decay = 0.95,
    nesterov=True,
    contra: Scalar = 0.4,
    power_steps: Count = 5,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "original",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""Contra-Muon: Muon's direction minus a share of the momentum, so that small singular values weigh more.

    $d = O(u) - k u / (2 \sigma)$, rescaled to the norm of $O(u)$, for the momentum $u$, $O$ of `orthogonalize` and an
    estimate $\sigma$ of the largest singular value of $u$; $p \leftarrow p (1 - \eta \lambda) - \eta r d$ with $r$ of
    `scale_by_shape`.

    When to use: like `muon`, for the final gains in accuracy; with a negative share, the method lies between Muon and
    SGD.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        momentum: Decay rate of the gradient average, in [0, 1).
        nesterov: Use Nesterov momentum.
        contra: $k$, often a schedule.
        power_steps: Number of power iterations for $\sigma$, >= 1.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the factor $r$; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.contra_muon(lr=1.0, contra=1.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.diag(torch.tensor([4.0, 2.0]))}, tx.init(params), params
        ... )
        >>> updates["w"].diag()
        tensor([-0.7845, -1.1767])

    Source: nilin/contra-muon; modded-nanogpt, track 3. Departures: the norm of the direction is preserved, as in the
    published runs; the README has no rescaling.
    """
    return muon_like(
        "contra_muon",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        orthogonalize(
            ns_coefficients,
            ns_steps,
            dtype=ns_dtype,
            contra=contra,
            power_steps=power_steps,
        ),
    )
