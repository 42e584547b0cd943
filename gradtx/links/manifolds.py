"""Weights on manifolds: tangents and retractions."""

from __future__ import annotations

from typing import Literal

import torch

from gradtx.arguments import Count, Positive
from gradtx.links.orthogonal import (
    Adjustment,
    first_right_vectors,
    matrix_norms,
    shape_factor,
    unit_columns,
)
from gradtx.maths.entries import at_least, differentiable, norm, norms, quotient
from gradtx.maths.matrices import orthonormal
from gradtx.maths.polynomials import StaticCoefficients, Steps, orthogonalizer
from gradtx.rules import per_tensor

__all__ = ["orthogonalize_tangent", "project_tangent", "retract"]


# The dimension along which rows or columns extend.
_ALONG = {"rows": 1, "columns": 0}


@per_tensor(whole=True, dims=(2, 2), needs="params")
def retract(
    kind: Literal["polar", "qr", "rows", "columns", "spectral", "cap"],
    radius: Positive = 1.0,
    *,
    adjust: Adjustment | None = "none",
    coefs: StaticCoefficients = "newton_schulz",
    steps: Steps | None = None,
    power_steps: Count = 10,
):
    r"""Return a matrix to a manifold after the step: the update becomes $R(p + u) - p$. The last link, after the rate.

    With $q = p + u$ and the radius $\rho = r f$, where $f$ is the factor of `scale_by_shape`:

    | kind | $R(q)$ |
    |---|---|
    | "polar" | $\rho\, O(q)$, with $O$ of `orthogonalize`: all singular values are $\rho$ |
    | "qr" | $\rho\, Q$ of the QR decomposition with a positive diagonal; of the transpose if $q$ is wide |
    | "rows", "columns" | each row, or column, divided by its norm, times $\rho$ |
    | "spectral" | $\rho\, q / \sigma$, where $\sigma$ estimates the largest singular value |
    | "cap" | $\frac{1}{2} (\rho\, o + q - a\, O(a)^\top o)$ with $o = O(q)$, $a = \rho\, o - q$, the short side first |

    "cap" lowers singular values above $\rho$ to $\rho$, and keeps the others.

    Args:
        kind: One of these.
        radius: $r > 0$.
        adjust: Name of the factor $f$; see `scale_by_shape`.
        coefs: Coefficients of the iteration for $O$, as in `orthogonalize`. If it does not converge, as "quintic",
            weights drift inside the range to which it maps singular values.
        steps: Number of iterations, in [0, 100); None for 5, or for the number of a named set. "cap" needs 12 or more,
            because singular values near $\rho$ are near 0 in $a$.
        power_steps: Power iterations for $\sigma$, >= 1, from equal entries.

    Returns:
        A transformation that keeps shapes and dtypes; no state. The initial weights are not changed: put them on the
        manifold, or the first step does.

    Raises:
        ValueError: If a name is unknown, if a named set does not support the steps, or if a leaf is not a matrix.

    Example:
        >>> # SPEL: steepest descent on matrices with orthonormal rows or columns
        >>> tx = gradtx.chain(
        ...     gradtx.trace_ema(0.9),
        ...     gradtx.orthogonalize("quintic"),
        ...     gradtx.scale_by_learning_rate(0.1),
        ...     gradtx.retract("polar"),
        ... )
        >>> params = {"w": torch.eye(2)}
        >>> grads = {"w": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}
        >>> params = gradtx.apply_updates(params, tx.update(grads, tx.init(params), params)[0])
        >>> torch.allclose(params["w"] @ params["w"].T, torch.eye(2), atol=1e-4)
        True

    Source: SPEL, arXiv:2601.21487; "cap": NVIDIA Emerging-Optimizers, spectral_hardcap. Departures: none.
    """
    iterate = orthogonalizer("retract", coefs, steps)

    def retracted(q, size):
        if kind == "polar":
            return size * iterate(q)
        if kind == "qr":
            if q.shape[0] < q.shape[1]:
                return retracted(q.mT, size).mT
            Q = orthonormal(q)
            diagonal = (Q * q).sum(dim=0)
            return size * torch.where(diagonal < 0, -Q, Q)
        if kind in ("rows", "columns"):
            return q * (size / at_least(norms(q, _ALONG[kind]), 1e-8))
        if kind == "spectral":
            largest = matrix_norms(q @ first_right_vectors(q, power_steps))
            return q * (size / at_least(largest, 1e-20))
        if q.shape[0] > q.shape[1]:
            return retracted(q.mT, size).mT
        o = iterate(q)
        a = size * o - q
        return 0.5 * (size * o + q - a @ iterate(a).mT @ o)

    def update(u, state, p, ctx):
        size = radius * shape_factor(adjust, *p.shape)
        return retracted(p + u, size) - p, state

    return update


@per_tensor(whole=True, dims=(2, 2), needs="params")
def project_tangent(kind: Literal["rows", "columns"]):
    r"""Remove the part of an update along each row, or column, of a matrix whose rows or columns have norm 1.

    $u - p \langle p, u \rangle$ for each row or column: the direction then does not change its norm to first order.
    Use it after the direction, before weight decay and rate, and `retract(kind)` at the end: oblique SGD or Adam.

    Args:
        kind: "rows" or "columns".

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.project_tangent("rows")
        >>> params = {"w": torch.tensor([[1.0, 0.0], [0.6, 0.8]])}
        >>> tx.update({"w": torch.ones(2, 2)}, tx.init(params), params)[0]["w"]
        tensor([[ 0.0000,  1.0000],
                [ 0.1600, -0.1200]])

    Source: ObliqueSGD and ObliqueAdam of NVIDIA Emerging-Optimizers. Departures: none.
    """

    def update(u, state, p, ctx):
        return u - p * (p * u).sum(dim=_ALONG[kind], keepdim=True), state

    return update


@per_tensor(
    whole=True,
    dims=(2, 2),
    needs="params",
    compiles="lists",
    amplifies=True,
    length="sets",
)
def orthogonalize_tangent(
    coefs: StaticCoefficients = "polar_express",
    steps: Steps | None = 8,
    power_steps: Count = 10,
    dtype: torch.dtype | None = None,
):
    r"""Orthogonalize an update under the condition that it does not change the largest singular value of the weight.

    With the first singular vectors $w, v$ of $p$, $\Theta = w v^\top$, $\hat u = u / \lVert u \rVert$ and $O$ of
    `orthogonalize`, the result is $O(\hat u + \lambda \Theta)$ with $\lambda$ such that
    $f(\lambda) = \langle \Theta, O(\hat u + \lambda \Theta) \rangle = 0$. The search starts at 0, doubles its step from
    0.001 until f has the other sign, at most 20 times, and then halves the interval 45 times. It costs about 60 times
    as much as `orthogonalize`.

    Args:
        coefs: Coefficients of the iteration for $O$, as in `orthogonalize`.
        steps: Number of iterations, in [0, 100); None for 5, or for the number of a named set.
        power_steps: Power iterations for $w$ and $v$, >= 1, from equal entries.
        dtype: Dtype of the iteration for $O$; None for the leaf's own dtype. In half precision, f is 0 only up to 1e-2.

    Returns:
        A transformation that keeps shapes and dtypes; no state. It runs over lists, also with `compile=True`.

    Raises:
        TypeError: If `dtype` is not a floating-point dtype.
        ValueError: If `coefs` is neither triples nor a name, if a named set does not support the steps or the dtype, or
            if a leaf is not a matrix.

    Example:
        >>> tx = gradtx.orthogonalize_tangent()
        >>> params = {"w": torch.diag(torch.tensor([2.0, 1.0]))}
        >>> grads = {"w": torch.tensor([[3.0, 1.0], [1.0, 1.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"].round(decimals=2) + 0.0
        tensor([[0., 1.],
                [1., 0.]])

    Source: the spectral sphere optimizer, arXiv:2601.08393. Departures: no early end of the search. The derivative of
    $\lambda$ is that of the equation, with a slope from differences.
    """
    iterate = orthogonalizer("orthogonalize_tangent", coefs, steps, dtype)

    def update(u, state, p, ctx):
        u = u / at_least(norm(u), 1e-12)
        right = first_right_vectors(p, power_steps)
        theta = unit_columns(p @ right) @ right.mT

        def f(x):
            return (theta * iterate(u + x * theta)).sum()

        with torch.no_grad():
            x = _root(f, u.new_zeros(()))
        if differentiable():
            h = torch.finfo(u.dtype).eps ** (1 / 3)
            slope = ((f(x + h) - f(x - h)) / (2 * h)).detach()
            value = f(x)
            x = x - quotient(value - value.detach(), slope)
        return iterate(u + x * theta), state

    return update


def _root(f, start):
    """Return where an increasing function is 0: doubled steps from the start until the sign changes, then halvings."""
    is_positive = f(start) > 0
    sign = torch.where(is_positive, -1.0, 1.0).to(start.dtype)
    near = far = start
    found = torch.zeros_like(is_positive)
    for i in range(20):
        trial = far + sign * (1e-3 * 2**i)
        near = torch.where(found, near, far)
        far = torch.where(found, far, trial)
        found = found | ((f(far) > 0) != is_positive)
    for _ in range(45):
        middle = (near + far) / 2
        crossed = (f(middle) > 0) != is_positive
        near = torch.where(crossed, near, middle)
        far = torch.where(crossed, middle, far)
    return (near + far) / 2
