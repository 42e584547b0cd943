"""PolarGrad: Muon's direction scaled by the nuclear norm of the momentum."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.algorithms.muon import muon_like
from gradtx.arguments import Decay
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import scale_by_nuclear_norm
from gradtx.rules import alias
from gradtx.transform import GradientTransformation

__all__ = ["polargrad"]


@alias(class_name="PolarGrad")
def polargrad(
    lr=3e-4,
    momentum: Decay = 0.95,
    nesterov=False,
    weight_decay=0.01,
    *,
    fallback: GradientTransformation | None = None,
    **options: Annotated[Any, scale_by_nuclear_norm],
):
    r"""PolarGrad: Muon's direction scaled by the nuclear norm of the momentum.

    $p \leftarrow p (1 - \eta \lambda) - \eta\, d$ with $d$ = `scale_by_nuclear_norm` of the momentum: steepest descent
    in the spectral norm, whose steps shrink with the gradient.

    When to use: instead of `muon`, whose steps of constant size need a schedule that ends at 0.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay rate of the gradient average, in [0, 1).
        nesterov: Use Nesterov momentum.
        weight_decay: $\lambda \ge 0$, decoupled.
        method: "newton_schulz" or "exact", as in `scale_by_nuclear_norm`.
        alpha: Exponent of the nuclear norm, >= 0.
        center_rows: Subtract the mean over the rows, for weights whose outputs enter a softmax.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.polargrad(lr=0.1, momentum=0.0, weight_decay=0.0, method="exact")
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.diag(torch.tensor([3.0, 2.0]))}, tx.init(params), params
        ... )
        >>> updates["w"].diag()
        tensor([-0.5000, -0.5000])

    Source: Lau et al. 2025, arXiv:2505.21799. Departures: none.
    """
    return muon_like(
        "polargrad",
        "none",
        lr,
        weight_decay,
        fallback,
        trace_ema(momentum, nesterov),
        scale_by_nuclear_norm(**options),
    )
