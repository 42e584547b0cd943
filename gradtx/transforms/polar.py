"""PolarGrad: the polar factor of a matrix, scaled by the nuclear norm."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import safe_pow
from gradtx.transforms._matrix import newton_schulz, polar_factor
from gradtx.transforms._polynomials import Coefficients, polynomials

__all__ = ["scale_by_nuclear_norm"]

METHODS = ("newton_schulz", "exact")


def _needs_no_eigenvalues(arguments):
    """Whether the method is compiled; the host reads whether eigenvalues converged."""
    return arguments["method"] != "exact"


@per_tensor(
    whole=True,
    dims=(2, 2),
    compiles=_needs_no_eigenvalues,
    lists=lambda arguments, shape: True,
    ranges={"ns_steps": "[0, 100)", "alpha": "[0, inf)"},
)
def scale_by_nuclear_norm(
    method: str = "newton_schulz",
    alpha: Scalar = 1.0,
    center_rows: bool = False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: int | None = None,
    ns_dtype: torch.dtype | None = None,
):
    r"""Replace a matrix by its polar factor, scaled by its nuclear norm: $O(u)\, \langle O(u), u \rangle^\alpha$.

    With the exact factor $U V^\top$ of $u = U S V^\top$, $\langle O(u), u \rangle$ is the sum of the singular values.

    Args:
        method: "newton_schulz" computes $O$ as in `orthogonalize`; "exact" computes the factor from the eigenvalues of
            the smaller Gram matrix, with eigenvalues at the level of rounding treated as 0.
        alpha: $\alpha \ge 0$; 1 is steepest descent in the spectral norm, 0 is Muon's direction.
        center_rows: Subtract the mean over the rows before and after, for weights whose outputs enter a softmax.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Iterations, in [0, 100); None for 5, or for the number of a named set.
        ns_dtype: Dtype of the iteration; None for the leaf's own dtype.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        TypeError: If `ns_dtype` is not a floating-point dtype.
        ValueError: If an argument is out of range, if `method` is unknown, or if a leaf is not a matrix.

    Example:
        >>> tx = gradtx.scale_by_nuclear_norm("exact")
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 0.0], [0.0, -2.0]])}, tx.init({}))
        >>> updates["w"].round(decimals=4) + 0.0
        tensor([[ 5.,  0.],
                [ 0., -5.]])

    Source: Lau et al. 2025, PolarGrad, arXiv:2505.21799. Departures: eigenvalues at the level of rounding do not
    contribute to the nuclear norm. Second derivatives of the exact method lack terms; first derivatives are exact.
    """
    if method not in METHODS:
        raise ValueError(
            f"scale_by_nuclear_norm: method must be 'newton_schulz' or 'exact', got {method!r}"
        )
    iteration = polynomials(
        "scale_by_nuclear_norm", ns_coefficients, ns_steps, ns_dtype
    )

    def factor(x):
        if method == "exact":
            return polar_factor(x)
        return newton_schulz(x, iteration, dtype=ns_dtype)

    def update(update, state, param, ctx):
        x = _centered(update) if center_rows else update
        orthogonal = factor(x)
        result = orthogonal * safe_pow((orthogonal * x).sum(), alpha)
        return _centered(result) if center_rows else result, state

    return update


def _centered(x):
    """Subtract the mean of its rows from a matrix."""
    return x - x.sum(dim=0, keepdim=True) / max(x.shape[0], 1)
