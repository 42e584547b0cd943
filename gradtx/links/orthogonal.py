"""Orthogonalized matrices and the scales of their steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import (
    Count,
    Decay,
    NonNegative,
    NonNegativeInt,
    Positive,
    Scalar,
    is_off,
)
from gradtx.maths.entries import (
    at_least,
    identity,
    mean,
    norm,
    norms,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.maths.matrices import inverse_root, polar_factor, symmetric_product
from gradtx.maths.polynomials import (
    NEWTON_SCHULZ,
    Coefficients,
    Mixture,
    StaticCoefficients,
    Steps,
    orthogonalizer,
)
from gradtx.rules import per_tensor
from gradtx.slots import square

__all__ = [
    "balance_energy",
    "clip_singular_values",
    "normalize_entries",
    "normalize_neurons",
    "orthogonalize",
    "scale_by_nuclear_norm",
    "scale_by_shape",
]


View: TypeAlias = Literal["matrix", "batch", "flatten"]

Adjustment: TypeAlias = Literal[
    "original", "spectral", "max_dim", "match_rms_adamw", "none"
]


def _dims_of_view(arguments: dict[str, Any]) -> tuple[int, float]:
    return (2, 2) if arguments["view"] == "matrix" else (2, math.inf)


def _wire(arguments: dict[str, Any]) -> torch.dtype | None:
    """Return the dtype of the iteration, unless its result is mixed with the momentum itself."""
    mixes = not (is_off(arguments["contra"]) and is_off(arguments["power"]))
    return None if mixes else arguments["dtype"]


@per_tensor(whole=True, wire=_wire, dims=_dims_of_view, amplifies=True, length="sets")
def orthogonalize(
    coefs: StaticCoefficients = NEWTON_SCHULZ,
    steps: Steps | None = None,
    eps=1e-7,
    dtype: torch.dtype | None = None,
    view: View = "matrix",
    start: Literal["fro", "schatten4", "aol"] = "fro",
    contra: Scalar = 0.0,
    power_steps: Count = 5,
    power: Scalar = 0.0,
    mixture: Mixture | None = None,
    balance: NonNegativeInt = 0,
    balance_power: NonNegative = 0.5,
):
    r"""Bring all singular values of a matrix near 1 with a Newton-Schulz iteration.

    $X = U / \max(\lVert U \rVert_F, \epsilon)$, transposed if it has more rows than columns; then `steps` times
    $A = X X^\top$, $X \leftarrow a X + (b A + c A^2) X$. The default polynomial rises steeply at 0 and leaves singular
    values between about 0.7 and 1.2.

    The named sets, with the range to which their steps map the singular values in [0.01, 1]:

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
        coefs: $(a, b, c)$ as plain numbers, one such triple per step, of which the last is repeated, or a set's name.
        steps: Number of iterations, in [0, 100); None for 5, or for the number of a named set.
        eps: $\epsilon \ge 0$, lower bound of the norm in the division. Use a positive value if a gradient may be 0.
        dtype: Dtype of the iteration; None for the leaf's own dtype.
        view: "matrix" accepts leaves of two dimensions; "batch" also leaves of more, whose last two are matrices;
            "flatten" reads those as (first dimension, all others).
        start: Additional divisor of $X$ before the iteration, a tighter bound of its largest singular value: "fro" for
            none; "schatten4" for $\lVert X X^\top \rVert_F^{1/2}$; "aol" divides row $i$ by
            $(\sum_j |X X^\top|_{ij})^{1/2}$, which also changes the singular vectors.
        contra: $k$ of Contra-Muon: subtract $k U / (2 \sigma)$ from the result $X$, where $\sigma$ estimates the
            largest singular value of $U$, and restore the norm of $X$. Small singular values of $U$ then have a
            larger weight, or a smaller one if $k$ is negative.
        power_steps: Power iterations for $\sigma$, >= 1, starting from equal entries.
        power: $p$ of DynMuon: with $n = \max(\lVert U \rVert_F, \epsilon)$, $y = U / n$, short side first,
            $E = y y^\top - I$ and $h = p / 2$, multiply the result by $(I + h E + \frac{h (h-1)}{2} E^2)\, n^p$. Large
            singular values become about $\sigma^p$, small ones a constant. Often a schedule.
        mixture: $(c_0, \ldots, c_N)$ of Soft-Muon, plain numbers: the result is $\sum_i c_i X_i$ over the start and N
            iterates. "soft", for "newton_schulz" with start="schatten4", maps singular values to about their power
            0.1.
        balance: Number of iterations of Aurora, >= 0, for matrices that are not square, the long side first:
            $D_i = 1 / \max(\lVert U_i \rVert, \epsilon)$ for each row; then so often
            $X = O(\mathrm{diag}(D)\, U)$, and in between
            $D_i \leftarrow D_i\, (\mathrm{columns} / (\mathrm{rows}\, \lVert X_i \rVert^2))^b$. The rows of
            the result have nearly equal norms, if the iteration for $O$ nearly converges.
        balance_power: $b \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `coefs` is neither triples nor a name, if a named set or a mixture does not support the steps or
            the dtype, if `view`, `start` or `mixture` is unknown, if `power` is combined with `contra`, `mixture` or
            `balance`, or if a leaf is not a matrix.
        TypeError: If `dtype` is not a floating-point dtype.

    Example:
        >>> tx = gradtx.orthogonalize(coefs=(1.5, -0.5, 0.0), steps=20)
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 0.0], [0.0, -0.5]])}, tx.init({}))
        >>> updates["w"].round(decimals=4) + 0.0
        tensor([[ 1.,  0.],
                [ 0., -1.]])

    Source: Jordan et al. 2024, Muon; Bernstein and Newhouse 2024, arXiv:2409.20325; "aol": Prach and Lampert 2022,
    arXiv:2208.03160; `power`: arXiv:2605.17109; `mixture`: record 20 of track 3 of modded-nanogpt; `balance`:
    tilde-research/aurora-release. Departures: none from torch.optim.Muon, with dtype=torch.bfloat16. On a CPU without
    fast bfloat16 products (Intel's AMX, AMD's AVX-512), products are computed in float32 and rounded to bfloat16;
    entries near the middle between two numbers may then be rounded differently from torch, one in 10,000 beyond 128
    columns, because sums run in another order.
    """
    iterate = orthogonalizer("orthogonalize", coefs, steps, dtype, eps, start, mixture)
    if not is_off(power) and (not is_off(contra) or mixture or balance):
        raise ValueError(
            "orthogonalize: power cannot be combined with contra, mixture or balance"
        )

    def update(u, state, p, ctx):
        x = u.flatten(1) if view == "flatten" else u
        if balance and x.shape[-2] != x.shape[-1]:
            result = _balanced(iterate, x, eps, balance, balance_power)
        else:
            result = iterate(x)
        if not is_off(power):
            result = _raised(result, x, eps, power)
        if not is_off(contra):
            result = _without_largest(result, x, contra, power_steps)
        return result.reshape(u.shape), state

    return update


@per_tensor(whole="shape", dims=_dims_of_view)
def scale_by_shape(
    adjust: Adjustment | None = None, factor: NonNegative = 0.2, view: View = "matrix"
):
    r"""Scale the update of a matrix by a function of its number of rows $r$ and columns $c$.

    | adjust | factor |
    |---|---|
    | None or "original" | $\sqrt{\max(1, r/c)}$ |
    | "spectral" | $\sqrt{r/c}$: an orthogonal matrix maps vectors of root mean square 1 to such vectors |
    | "max_dim" | $\sqrt{\max(r, c)}$: an orthogonal matrix has root mean square 1 |
    | "match_rms_adamw" | $f \sqrt{\max(r, c)}$: it has root mean square $f$, as AdamW's updates have |
    | "none" | 1 |

    Args:
        adjust: One of these.
        factor: $f \ge 0$.
        view: As in `orthogonalize`.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.scale_by_shape()
        >>> updates, _ = tx.update(
        ...     {"tall": torch.ones(4, 1), "wide": torch.ones(1, 4)}, tx.init({})
        ... )
        >>> updates["tall"].T
        tensor([[2., 2., 2., 2.]])

    Source: Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982; "spectral": Pethick et al. 2025,
    arXiv:2502.07529. Departures: none from torch.optim.Muon. Names differ between libraries: "spectral" in NVIDIA
    Emerging-Optimizers is "max_dim" here, and its "unit_rms_norm" is "spectral".
    """

    def update(u, state, p, ctx):
        rows, columns = u.shape[-2:]
        if view == "flatten":
            rows, columns = u.shape[0], math.prod(u.shape[1:])
        return shape_factor(adjust, rows, columns, factor) * u, state

    return update


def shape_factor(adjust: str | None, rows: int, columns: int, factor: Any = 0.2) -> Any:
    """Return the factor of `scale_by_shape`, a tensor if the user's `factor` is one and counts."""
    if adjust == "none":
        return 1.0
    if adjust == "match_rms_adamw":
        return factor * math.sqrt(max(rows, columns))
    if adjust == "max_dim":
        return math.sqrt(max(rows, columns))
    ratio = rows / max(columns, 1)
    return math.sqrt(ratio if adjust == "spectral" else max(1.0, ratio))


@per_tensor(whole=True, dims=(2, 2), length="sets")
def balance_energy(steps: NonNegativeInt = 10, eps=1e-8):
    r"""Rescale rows and columns of a matrix until all rows have equal norms, and all columns too: Sinkhorn's iteration.

    With $B = x^2 + \epsilon$ of size $r \times c$ and $b = 1$, repeat $a = \frac{1/r}{B b + \epsilon}$,
    $b = \frac{1/c}{B^\top a + \epsilon}$; then $y_{ij} = \sqrt{a_i}\, x_{ij} \sqrt{b_j}$, and the result is
    $y \sqrt r / \max(\lVert y \rVert, \epsilon)$. It costs a few passes over the matrix, where `orthogonalize` costs
    products of matrices. In the eigenbases of `rotated`, it is SinkSOAP, whose result does not depend on the signs of
    the eigenvectors.

    Args:
        steps: Number of iterations, >= 0.
        eps: $\epsilon > 0$, in the units of a squared gradient.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.balance_energy()
        >>> grads = {"w": torch.tensor([[30.0, -4.0], [30.0, 4.0]])}
        >>> updates, _ = tx.update(grads, tx.init({}))
        >>> updates["w"]
        tensor([[ 0.7071, -0.7071],
                [ 0.7071,  0.7071]])

    Source: record 26 of track 3 of modded-nanogpt, SinkSOAP. Departures: none.
    """

    def update(x, state, p, ctx):
        r, c = x.shape
        B = x.square() + eps
        a, b = x.new_ones(r), x.new_ones(c)
        for _ in range(steps):
            a = 1 / max(r, 1) / (B @ b + eps)
            b = 1 / max(c, 1) / (B.mT @ a + eps)
        y = safe_sqrt(a)[:, None] * x * safe_sqrt(b)
        return y * (math.sqrt(r) / at_least(norm(y), eps)), state

    return update


@per_tensor(whole=True, dims=(2, math.inf))
def normalize_neurons(
    beta: Decay = 0.95,
    eps: NonNegative = 1e-10,
    axis: Literal["rows", "long"] = "rows",
    rms: NonNegative | None = None,
):
    r"""Divide each row of a matrix by its running root mean square, preserving the norm of the matrix.

    $q_t = \beta q_{t-1} + (1-\beta)\, \mathrm{mean}_{-1}(u^2)$ from 0, $\tilde u = u / (\sqrt{q_t} + \epsilon)$, result
    $\tilde u \lVert u \rVert / \max(\lVert \tilde u \rVert, \epsilon)$. The last two dimensions form the matrix.

    Args:
        beta: $\beta$, in [0, 1).
        eps: $\epsilon \ge 0$. Use a positive value if a row may be 0.
        axis: "rows", or "long" for the longer side: the columns, if the matrix has more of them than rows.
        rms: The root mean square of the result, >= 0, instead of that of the matrix; None preserves the norm.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter with size 1 in the
        last dimension, or in the one before it where columns are divided.

    Raises:
        ValueError: If a leaf has fewer than two dimensions.

    Example:
        >>> tx = gradtx.normalize_neurons()
        >>> params = {"w": torch.zeros(2, 1)}
        >>> # equal rows, same norm 5
        >>> tx.update({"w": torch.tensor([[3.0], [4.0]])}, tx.init(params))[0]["w"]
        tensor([[3.5355],
                [3.5355]])

    Source: Li et al. 2025, NorMuon, arXiv:2510.05491, in the form of adam-atan2-pytorch 0.4.1. Departures: none from
    the latter.
    """

    def dim_of_means(x):
        return -2 if axis == "long" and x.shape[-2] < x.shape[-1] else -1

    def first(param):
        shape = list(param.shape)
        shape[dim_of_means(param)] = 1
        return param.new_zeros(shape)

    def update(u, state, p, ctx):
        dim = dim_of_means(u)
        u, q = equalized(u, state["exp_avg_sq"], beta, eps, dim, rms)
        return u, {"exp_avg_sq": q}

    return {"exp_avg_sq": square(first)}, update


def equalized(
    u: Tensor, q: Tensor, beta, eps, dim: int = -1, rms=None
) -> tuple[Tensor, Tensor]:
    """Divide by the running mean square q over a dimension, restore the norm or set the root mean square; return q."""
    q = running_mean(q, mean(u.square(), dim, keepdim=True), beta)
    scaled = u / (safe_sqrt(q) + eps)
    entries = math.prod(u.shape[-2:])
    size = matrix_norms(u) if rms is None else rms * math.sqrt(entries)
    return scaled * (size / at_least(matrix_norms(scaled), eps)), q


def _is_iterated(arguments):
    return arguments["method"] != "exact"


@per_tensor(
    whole=True,
    dims=(2, 2),
    # Only the iteration: the host reads whether eigenvalues converged.
    compiles=lambda arguments: True if _is_iterated(arguments) else "lists",
    because="no kernel computes its eigenvalues",
    capturable=_is_iterated,
    amplifies=True,
)
def scale_by_nuclear_norm(
    method: Literal["newton_schulz", "exact"] = "newton_schulz",
    alpha: NonNegative = 1.0,
    center_rows=False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
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
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.scale_by_nuclear_norm("exact")
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 0.0], [0.0, -2.0]])}, tx.init({}))
        >>> updates["w"].round(decimals=4) + 0.0
        tensor([[ 5.,  0.],
                [ 0., -5.]])

    Source: Lau et al. 2025, PolarGrad, arXiv:2505.21799. Departures: eigenvalues at the level of rounding do not
    contribute to the nuclear norm. Second derivatives of the exact method lack terms; first derivatives are exact.
    """
    iterate = orthogonalizer(
        "scale_by_nuclear_norm", ns_coefficients, ns_steps, ns_dtype
    )
    factor = polar_factor if method == "exact" else iterate

    def update(u, state, p, ctx):
        x = _centered(u) if center_rows else u
        orthogonal = factor(x)
        result = orthogonal * safe_pow((orthogonal * x).sum(), alpha)
        return _centered(result) if center_rows else result, state

    return update


def _is_hard(arguments):
    return arguments["kind"] == "hard"


@per_tensor(
    whole=True,
    dims=(2, 2),
    compiles=lambda arguments: True if _is_hard(arguments) else "lists",
    because="no kernel computes its eigenvalues",
    capturable=_is_hard,
    length="bounds",
)
def clip_singular_values(bound: Positive = 1.0, kind: Literal["hard", "soft"] = "hard"):
    r"""Bound the singular values of a matrix: by clipping them, or by a smooth function of each.

    Singular values $\sigma$ become $\min(\sigma, b)$, "hard", or $\sigma / \sqrt{1 + \sigma^2 / b^2}$, "soft"; singular
    vectors stay. "hard", short side first, with $O$ of `orthogonalize` ("polar_express", 8 steps) and
    $w = b\, O(x) - x$: $\frac12 (b\, O(x) + x - w\, O(w)^\top O(x))$. "soft": $(I + x x^\top / b^2)^{-1/2} x$, from
    eigenvalues.

    Behind an optimizer's direction, it bounds the step of each matrix in the spectral norm without making all singular
    values equal; before it, it removes outliers that a bound of the norm would spread over all directions.

    Args:
        bound: $b > 0$.
        kind: "hard" or "soft".

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.clip_singular_values(2.0)
        >>> updates, _ = tx.update({"w": torch.tensor([[0.0, 5.0], [-1.0, 0.0]])}, tx.init({}))
        >>> updates["w"].round(decimals=3) + 0.0
        tensor([[ 0.,  2.],
                [-1.,  0.]])

    Source: "hard": MuCon, arXiv:2605.26459, as in NVIDIA-NeMo/Emerging-Optimizers; "soft": SPECTRA, arXiv:2603.14315.
    Departures: Emerging-Optimizers rounds the coefficients to four digits. "hard" is exact to about 1e-5 for values
    above 1e-3 of the norm of $x$; smaller ones, as of a low rank, may grow, to at most $b / 8$. "soft" comes from
    the eigenvalues of $x x^\top$, to their rounding, where SPECTRA runs ten steps of a coupled iteration; SPECTRA also
    scales the result.
    """
    iterate = orthogonalizer("clip_singular_values", "polar_express", 8)

    def clipped(x: Tensor) -> Tensor:
        o = iterate(x)
        w = bound * o - x
        return 0.5 * (bound * o + x - symmetric_product(w, iterate(w).mT) @ o)

    def softened(x: Tensor) -> Tensor:
        scaled = x / bound
        square = symmetric_product(scaled, scaled.mT) + identity(len(x), x)
        return inverse_root(square, 0.5, floor=1.0) @ x

    bounded = clipped if kind == "hard" else softened

    def update(u, state, p, ctx):
        is_tall = u.shape[0] > u.shape[1]
        return bounded(u.mT).mT if is_tall else bounded(u), state

    return update


def _centered(x):
    """Subtract the mean of its rows from a matrix."""
    return x - mean(x, 0, keepdim=True)


def first_right_vectors(matrix: Tensor, steps: int) -> Tensor:
    """Estimate the first right singular vector of each matrix, a column, by power iteration from equal entries."""
    shape = (*matrix.shape[:-2], matrix.shape[-1], 1)
    right = matrix.new_ones(shape) / math.sqrt(max(matrix.shape[-1], 1))
    for _ in range(steps):
        left = unit_columns(matrix @ right)
        right = unit_columns(matrix.mT @ left)
    return right


def _without_largest(x: Tensor, matrix: Tensor, share, power_steps: int) -> Tensor:
    """Subtract `share / 2` times the matrix divided by its largest singular value, and restore the norm of `x`."""
    right = first_right_vectors(matrix, power_steps)
    largest = at_least(matrix_norms(matrix @ right), 1e-10)
    difference = x - share / 2 * (matrix / largest)
    return difference * (matrix_norms(x) / at_least(matrix_norms(difference), 1e-10))


def _balanced(
    iterate: Callable[[Tensor], Tensor], x: Tensor, eps, steps: int, power
) -> Tensor:
    """Orthogonalize a matrix whose rows, or columns if it is wide, are scaled to get equal norms in the result."""
    rows, columns = x.shape[-2:]
    if columns > rows:
        return _balanced(iterate, x.mT, eps, steps, power).mT
    scale = 1 / at_least(norms(x, -1), eps)
    result = iterate(scale * x)
    for _ in range(steps - 1):
        squares = result.square().sum(dim=-1, keepdim=True)
        squares = at_least(squares, eps**2)
        scale = scale * (columns / max(rows, 1) / squares) ** power
        result = iterate(scale * x)
    return result


def _raised(result: Tensor, x: Tensor, eps, power) -> Tensor:
    """Multiply by the second-order expansion of a power of the matrix divided by its norm, at singular values of 1."""
    if x.shape[-2] > x.shape[-1]:
        return _raised(result.mT, x.mT, eps, power).mT
    size, h = at_least(matrix_norms(x), eps), power / 2
    y = x / size
    first = symmetric_product(y, y.mT) @ result - result
    second = symmetric_product(y, y.mT) @ first - first
    return (result + h * first + h * (h - 1) / 2 * second) * size**power


def matrix_norms(x: Tensor) -> Tensor:
    """Return the norm of each matrix of a batch."""
    return norms(x, (-2, -1))


def unit_columns(vectors: Tensor) -> Tensor:
    """Scale columns to norm 1; zero columns remain 0."""
    return vectors / at_least(matrix_norms(vectors), torch.finfo(vectors.dtype).tiny)


@per_tensor(whole=True, dims=(2, math.inf), length="sets")
def normalize_entries(
    beta: Decay = 0.999,
    eps=1e-8,
    correct_bias=True,
    rescale: Literal["sqrt_min", "rms"] | None = "sqrt_min",
):
    r"""Divide each entry of a matrix by its running root mean square, and set the norm of the matrix.

    $v_t = \beta v_{t-1} + (1-\beta) u^2$ from 0, $d = u / (\sqrt{v_t / (1 - \beta^t)} + \epsilon)$; returns $d$, or
    $d\, s / (\lVert d \rVert + \epsilon)$ with $s$ set by `rescale`. The last two dimensions, $r \times c$, form the
    matrix.

    Args:
        beta: $\beta$, in [0, 1).
        eps: $\epsilon \ge 0$.
        correct_bias: Whether to bias-correct the average.
        rescale: "sqrt_min" for $s = \sqrt{\min(r, c)}$, the norm of an orthogonal matrix; "rms" for
            $s = 0.2 \sqrt{r c}$; None returns $d$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a leaf has fewer than two dimensions.

    Example:
        >>> tx = gradtx.normalize_entries()
        >>> params = {"w": torch.zeros(2, 2)}
        >>> # with norm sqrt(2)
        >>> tx.update({"w": torch.tensor([[3.0, -4.0], [0.1, 8.0]])}, tx.init(params))[0]["w"]
        tensor([[ 0.7071, -0.7071],
                [ 0.7071,  0.7071]])

    Source: Si et al. 2025, AdaMuon, arXiv:2507.11005, and the authors' code. Departures: none.
    """

    def update(u, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], u.square(), beta)
        corrected = v / ctx.bias_correction(beta) if correct_bias else v
        d = u / (safe_sqrt(corrected) + eps)
        if rescale is not None:
            rows, columns = u.shape[-2:]
            size = (
                math.sqrt(min(rows, columns))
                if rescale == "sqrt_min"
                else 0.2 * math.sqrt(rows * columns)
            )
            d = d * (size / (matrix_norms(d) + eps))
        return d, {"exp_avg_sq": v}

    return {"exp_avg_sq": square()}, update
