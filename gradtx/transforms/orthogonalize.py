"""Replace the momentum of a matrix by the nearest orthogonal one: Muon, Polar Express, NorMuon."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import Scalar
from gradtx._messages import describe
from gradtx.factories import per_tensor
from gradtx.transforms._math import at_least, mean, safe_sqrt
from gradtx.transforms._matrix import newton_schulz

__all__ = ["normalize_neurons", "orthogonalize", "scale_by_shape"]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def _polar_express() -> tuple[tuple[float, float, float], ...]:
    """The polynomials of Polar Express (Amsel et al. 2025, arXiv:2505.16932), as published, made safe by 1.01."""
    published = (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    )
    shrunk = [_of_smaller(polynomial, 1.01) for polynomial in published[:-1]]
    # The matrix itself is divided by 1.01 as well; an odd polynomial can do that.
    return (_of_smaller(shrunk[0], 1.01), *shrunk[1:], published[-1])


def _of_smaller(polynomial: tuple[float, float, float], by: float) -> tuple[float, float, float]:
    """The odd polynomial of x / by."""
    a, b, c = polynomial
    return a / by, b / by**3, c / by**5


POLAR_EXPRESS = _polar_express()
_VIEWS = ("matrix", "batch", "flatten")


def _dims(arguments: dict[str, Any]) -> tuple[int, float]:
    return (2, 2) if arguments["view"] == "matrix" else (2, math.inf)


def _check_view(owner: str, view: str) -> None:
    if view not in _VIEWS:
        raise ValueError(f"{owner}: view must be 'matrix', 'batch' or 'flatten', got {view!r}")


def polynomials_of(coefs: Any, steps: int) -> list[tuple[float, float, float]]:
    """One polynomial a step; the last of a list is repeated."""
    many = isinstance(coefs, tuple | list) and coefs and all(isinstance(item, tuple | list) for item in coefs)
    found = [tuple(item) for item in coefs] if many else [coefs]
    for polynomial in found:
        numbers = isinstance(polynomial, tuple | list) and all(isinstance(item, float | int) for item in polynomial)
        if not numbers or len(polynomial) != 3:
            raise ValueError(
                f"orthogonalize: coefs must be three plain numbers, or a tuple of such triples, got {describe(coefs)}"
            )
    return [tuple(map(float, found[min(i, len(found) - 1)])) for i in range(steps)]  # type: ignore[misc]


@per_tensor(dims=_dims, ranges={"steps": "[0, 100)"}, example={"view": "batch"})
def orthogonalize(
    coefs: tuple[float, ...] | tuple[tuple[float, ...], ...] = NEWTON_SCHULZ,
    steps: int = 5,
    eps: Scalar = 1e-7,
    dtype: torch.dtype | None = None,
    view: str = "matrix",
):
    r"""Bring all singular values of a matrix near 1 by a Newton-Schulz iteration.

    $X = U / \max(\lVert U \rVert_F, \epsilon)$, transposed if it has more rows than columns; then `steps` times
    $A = X X^\top$, $X \leftarrow a X + (b A + c A^2) X$. The default polynomial rises steeply at 0 and leaves singular
    values between about 0.7 and 1.2.

    Args:
        coefs: $(a, b, c)$, plain numbers, or one such triple a step, the last one repeated.
        steps: Number of iterations, in [0, 100).
        eps: $\epsilon \ge 0$, the least norm divided by. Keep it above 0, for gradients of 0.
        dtype: Dtype of the iteration; None for the leaf's own dtype.
        view: "matrix" takes leaves of two dimensions; "batch" also leaves of more, whose last two are matrices;
            "flatten" reads those as (first dimension, all others).

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: numbers out of range, `coefs` that are not triples, another `view`, a leaf that is not a matrix.
        TypeError: a `dtype` that is not a floating-point one.

    Example:
        >>> tx = gradtx.orthogonalize(coefs=(1.5, -0.5, 0.0), steps=20)
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 0.0], [0.0, -0.5]])}, tx.init({}))
        >>> updates["w"].round(decimals=4) + 0.0
        tensor([[ 1.,  0.],
                [ 0., -1.]])

    Source: Jordan et al. 2024, Muon; Bernstein and Newhouse 2024, arXiv:2409.20325. Departures: none from
    torch.optim.Muon, with dtype=torch.bfloat16.
    """
    _check_view("orthogonalize", view)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"orthogonalize: dtype must be a floating-point torch.dtype or None, got {dtype!r}")
    polynomials = polynomials_of(coefs, steps)

    def update(update, state, param, ctx):
        x = update.flatten(1) if view == "flatten" else update
        x = newton_schulz(x if dtype is None else x.to(dtype), polynomials, eps)
        return x.to(update.dtype).reshape(update.shape), state

    return update


@per_tensor(dims=_dims, ranges={"factor": "[0, inf)"}, example={"adjust": "match_rms_adamw", "view": "batch"})
def scale_by_shape(adjust: str | None = None, factor: Scalar = 0.2, view: str = "matrix"):
    r"""Scale the update of a matrix by its number of rows and columns.

    $u \sqrt{\max(1, \mathrm{rows}/\mathrm{columns})}$, or with "match_rms_adamw"
    $u\, f \sqrt{\max(\mathrm{rows}, \mathrm{columns})}$, which gives an orthogonal matrix the root mean square $f$ that
    AdamW's updates have.

    Args:
        adjust: None or "original" for the first, "match_rms_adamw" for the second.
        factor: $f \ge 0$.
        view: As in `orthogonalize`.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: a negative factor, another `adjust` or `view`, a leaf that is not a matrix.

    Example:
        >>> tx = gradtx.scale_by_shape()
        >>> tx.update({"tall": torch.ones(4, 1), "wide": torch.ones(1, 4)}, tx.init({}))[0]["tall"].T
        tensor([[2., 2., 2., 2.]])

    Source: Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982. Departures: none from torch.optim.Muon.
    """
    _check_view("scale_by_shape", view)
    if adjust not in (None, "original", "match_rms_adamw"):
        raise ValueError(f"scale_by_shape: adjust must be None, 'original' or 'match_rms_adamw', got {adjust!r}")

    def update(update, state, param, ctx):
        rows, columns = _matrix_shape(update, view)
        if adjust == "match_rms_adamw":
            return (factor * math.sqrt(max(rows, columns))) * update, state
        return math.sqrt(max(1.0, rows / max(columns, 1))) * update, state

    return update


def _matrix_shape(x: Tensor, view: str) -> tuple[int, int]:
    rows, columns = (x.shape[0], math.prod(x.shape[1:])) if view == "flatten" else x.shape[-2:]
    return rows, columns


@per_tensor(ranges={"beta": "[0, 1)"}, dims=(2, math.inf))
def normalize_neurons(beta: Scalar = 0.95, eps: Scalar = 1e-10):
    r"""Divide every row of a matrix by its running root mean square, and keep the norm of the matrix.

    $q_t = \beta q_{t-1} + (1-\beta)\, \mathrm{mean}_{-1}(u^2)$ from 0, $\tilde u = u / (\sqrt{q_t} + \epsilon)$, gives
    $\tilde u \lVert u \rVert / \max(\lVert \tilde u \rVert, \epsilon)$. The last two dimensions are the matrix.

    Args:
        beta: $\beta$, in [0, 1).
        eps: $\epsilon \ge 0$. Keep it above 0, for rows of zeros.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter with size 1 in the
        last dimension.

    Raises:
        ValueError: a beta outside [0, 1), a negative eps, a leaf with fewer than two dimensions.

    Example:
        >>> tx = gradtx.normalize_neurons()
        >>> params = {"w": torch.zeros(2, 1)}
        >>> tx.update({"w": torch.tensor([[3.0], [4.0]])}, tx.init(params))[0]["w"]  # rows become equal, norm 5 stays
        tensor([[3.5355],
                [3.5355]])

    Source: Li et al. 2025, NorMuon, arXiv:2510.05491; the form is adam-atan2-pytorch 0.4.1's. Departures: none from
    that.
    """

    def init(param):
        return {"exp_avg_sq": param.new_zeros((*param.shape[:-1], 1))}

    def update(update, state, param, ctx):
        square = beta * state["exp_avg_sq"] + (1 - beta) * mean(update.square(), -1, keepdim=True)
        scaled = update / (safe_sqrt(square) + eps)
        return scaled * (_norms(update) / at_least(_norms(scaled), eps)), {"exp_avg_sq": square}

    return init, update


def _norms(x: Tensor) -> Tensor:
    """The norm of every matrix of a batch."""
    return safe_sqrt(x.square().sum(dim=(-2, -1), keepdim=True))
