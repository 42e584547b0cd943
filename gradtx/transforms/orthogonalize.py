"""Replace the momentum of a matrix by the nearest orthogonal one: Muon, Polar Express, NorMuon."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import Scalar
from gradtx.factories import per_tensor
from gradtx.transforms._math import at_least, mean, safe_sqrt
from gradtx.transforms._matrix import STARTS, newton_schulz
from gradtx.transforms._polynomials import NEWTON_SCHULZ, polynomials

__all__ = ["normalize_neurons", "orthogonalize", "scale_by_shape"]

_VIEWS = ("matrix", "batch", "flatten")


def _dims(arguments: dict[str, Any]) -> tuple[int, float]:
    return (2, 2) if arguments["view"] == "matrix" else (2, math.inf)


def _check_view(owner: str, view: str) -> None:
    if view not in _VIEWS:
        raise ValueError(f"{owner}: view must be 'matrix', 'batch' or 'flatten', got {view!r}")


@per_tensor(dims=_dims, ranges={"steps": "[0, 100)"}, static=("coefs",), example={"view": "batch"})
def orthogonalize(
    coefs: str | tuple[float, ...] | tuple[tuple[float, ...], ...] = NEWTON_SCHULZ,
    steps: int | None = None,
    eps: Scalar = 1e-7,
    dtype: torch.dtype | None = None,
    view: str = "matrix",
    start: str = "fro",
):
    r"""Bring all singular values of a matrix near 1 by a Newton-Schulz iteration.

    $X = U / \max(\lVert U \rVert_F, \epsilon)$, transposed if it has more rows than columns; then `steps` times
    $A = X X^\top$, $X \leftarrow a X + (b A + c A^2) X$. The default polynomial rises steeply at 0 and leaves singular
    values between about 0.7 and 1.2.

    The named sets, with the singular values that their steps make of those in [0.01, 1]:

    | name | steps | range | source |
    |---|---|---|---|
    | "simple" | 5 | 0.68 to 1.13 | Jordan et al. 2024, the default |
    | "quintic" | 5 | 0.98 to 1.03 | modded-nanogpt |
    | "polar_express" | 5 | 0.87 to 1.12 | Amsel et al. 2025, arXiv:2505.16932 |
    | "cans" | 5 | 0.88 to 1.12 | Grishina et al. 2025, arXiv:2506.10935; not in half precision |
    | "deepseekv4" | 10 | 1.00 | DeepSeek-V4 |
    | "cubic5" | 5, no others | 0.77 to 1.30 | arXiv:2606.00371; cubic polynomials |
    | "newton_schulz" | 12 | 1.00 | the classical iteration of degree 5 |

    Args:
        coefs: $(a, b, c)$, plain numbers, or one such triple a step, the last one repeated; or the name of a set.
        steps: Number of iterations, in [0, 100); None for 5, or for the number of a named set.
        eps: $\epsilon \ge 0$, the least norm divided by. Keep it above 0, for gradients of 0.
        dtype: Dtype of the iteration; None for the leaf's own dtype.
        view: "matrix" takes leaves of two dimensions; "batch" also leaves of more, whose last two are matrices;
            "flatten" reads those as (first dimension, all others).
        start: What else divides $X$ in front, a tighter bound of its largest singular value: "fro" nothing;
            "schatten4" $\lVert X X^\top \rVert_F^{1/2}$; "aol" row $i$ by $(\sum_j |X X^\top|_{ij})^{1/2}$, which also
            changes the singular vectors.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: numbers out of range, `coefs` that are neither triples nor a name, steps or a dtype that a set does
            not take, another `view` or `start`, a leaf that is not a matrix.
        TypeError: a `dtype` that is not a floating-point one.

    Example:
        >>> tx = gradtx.orthogonalize(coefs=(1.5, -0.5, 0.0), steps=20)
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 0.0], [0.0, -0.5]])}, tx.init({}))
        >>> updates["w"].round(decimals=4) + 0.0
        tensor([[ 1.,  0.],
                [ 0., -1.]])

    Source: Jordan et al. 2024, Muon; Bernstein and Newhouse 2024, arXiv:2409.20325; "aol": Prach and Lampert 2022,
    arXiv:2208.03160. Departures: none from torch.optim.Muon, with dtype=torch.bfloat16.
    """
    _check_view("orthogonalize", view)
    if start not in STARTS:
        raise ValueError(f"orthogonalize: start must be one of {', '.join(STARTS)}, got {start!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"orthogonalize: dtype must be a floating-point torch.dtype or None, got {dtype!r}")
    iteration = polynomials("orthogonalize", coefs, steps, dtype)

    def update(update, state, param, ctx):
        x = update.flatten(1) if view == "flatten" else update
        x = newton_schulz(x if dtype is None else x.to(dtype), iteration, eps, start)
        return x.to(update.dtype).reshape(update.shape), state

    return update


@per_tensor(dims=_dims, ranges={"factor": "[0, inf)"}, example={"adjust": "match_rms_adamw", "view": "batch"})
def scale_by_shape(adjust: str | None = None, factor: Scalar = 0.2, view: str = "matrix"):
    r"""Scale the update of a matrix by its number of rows $r$ and columns $c$.

    | adjust | factor |
    |---|---|
    | None or "original" | $\sqrt{\max(1, r/c)}$ |
    | "spectral" | $\sqrt{r/c}$: an orthogonal matrix maps vectors of root mean square 1 to such vectors |
    | "max_dim" | $\sqrt{\max(r, c)}$: an orthogonal matrix has the root mean square 1 |
    | "match_rms_adamw" | $f \sqrt{\max(r, c)}$: it has the root mean square $f$ that AdamW's updates have |
    | "none" | 1 |

    Args:
        adjust: One of these.
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

    Source: Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982; "spectral": Pethick et al. 2025,
    arXiv:2502.07529. Departures: none from torch.optim.Muon. Other codes give other words: what NVIDIA
    Emerging-Optimizers calls "spectral" is "max_dim" here, its "unit_rms_norm" is "spectral".
    """
    _check_view("scale_by_shape", view)
    if adjust not in (None, *ADJUSTMENTS):
        known = ", ".join(map(repr, ADJUSTMENTS[1:]))
        raise ValueError(f"scale_by_shape: adjust must be None, 'original' or {known}, got {adjust!r}")

    def update(update, state, param, ctx):
        rows, columns = _matrix_shape(update, view)
        if adjust == "match_rms_adamw":
            return (factor * math.sqrt(max(rows, columns))) * update, state
        return shape_factor(adjust, rows, columns) * update, state

    return update


ADJUSTMENTS = ("original", "spectral", "max_dim", "match_rms_adamw", "none")


def shape_factor(adjust: str | None, rows: int, columns: int) -> float:
    """The factor of `scale_by_shape` without one of the user's."""
    if adjust == "none":
        return 1.0
    if adjust == "max_dim":
        return math.sqrt(max(rows, columns))
    ratio = rows / max(columns, 1)
    return math.sqrt(ratio if adjust == "spectral" else max(1.0, ratio))


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
