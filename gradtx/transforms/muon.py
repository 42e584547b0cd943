"""Muon: links for whole matrices: orthogonalization, polar factors, oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from gradtx.arguments import Count, Decay, Decays, NonNegative, Static, is_off
from gradtx.base.exact import Scalar
from gradtx.base.messages import describe
from gradtx.rules import per_tensor
from gradtx.slots import linear, square
from gradtx.transforms._math import (
    at_least,
    corrected_root,
    mean,
    quotient,
    rms,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.transforms._matrix import STARTS, newton_schulz, polar_factor
from gradtx.transforms._polynomials import NEWTON_SCHULZ, Coefficients, polynomials

__all__ = [
    "init_for_lmo",
    "lmo",
    "normalize_entries",
    "normalize_neurons",
    "orthogonalize",
    "scale_by_muown",
    "scale_by_nuclear_norm",
    "scale_by_shape",
]


_VIEWS = ("matrix", "batch", "flatten")


def _dims_of_view(arguments: dict[str, Any]) -> tuple[int, float]:
    return (2, 2) if arguments["view"] == "matrix" else (2, math.inf)


def _check_view(owner: str, view: str) -> None:
    if view not in _VIEWS:
        raise ValueError(
            f"{owner}: view must be 'matrix', 'batch' or 'flatten', got {view!r}"
        )


def _wire(arguments: dict[str, Any]) -> torch.dtype | None:
    """Return the dtype of the iteration, unless its result is mixed with the momentum itself."""
    return arguments["dtype"] if is_off(arguments["contra"]) else None


@per_tensor(whole=True, wire=_wire, dims=_dims_of_view)
def orthogonalize(
    coefs: Static[
        str | tuple[float, ...] | tuple[tuple[float, ...], ...]
    ] = NEWTON_SCHULZ,
    steps: Annotated[int, "[0, 100)"] | None = None,
    eps: NonNegative = 1e-7,
    dtype: torch.dtype | None = None,
    view: str = "matrix",
    start: str = "fro",
    contra: Scalar = 0.0,
    power_steps: Count = 5,
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

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range, if `coefs` is neither triples nor a name, if a named set does not
            support the steps or the dtype, if `view` or `start` is unknown, or if a leaf is not a matrix.
        TypeError: If `dtype` is not a floating-point dtype.

    Example:
        >>> tx = gradtx.orthogonalize(coefs=(1.5, -0.5, 0.0), steps=20)
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 0.0], [0.0, -0.5]])}, tx.init({}))
        >>> updates["w"].round(decimals=4) + 0.0
        tensor([[ 1.,  0.],
                [ 0., -1.]])

    Source: Jordan et al. 2024, Muon; Bernstein and Newhouse 2024, arXiv:2409.20325; "aol": Prach and Lampert 2022,
    arXiv:2208.03160. Departures: none from torch.optim.Muon, with dtype=torch.bfloat16. On a CPU without fast bfloat16
    products (Intel's AMX, AMD's AVX-512), products are computed in float32 and rounded to bfloat16; entries near the
    middle between two numbers may then be rounded differently from torch, one in 10,000 beyond 128 columns, because
    sums run in another order.
    """
    _check_view("orthogonalize", view)
    if start not in STARTS:
        raise ValueError(
            f"orthogonalize: start must be one of {', '.join(STARTS)}, got {start!r}"
        )
    iteration = polynomials("orthogonalize", coefs, steps, dtype)

    def update(update, state, param, ctx):
        x = update.flatten(1) if view == "flatten" else update
        result = newton_schulz(x, iteration, eps, start, dtype)
        if not is_off(contra):
            result = _without_largest(result, x, contra, power_steps)
        return result.reshape(update.shape), state

    return update


@per_tensor(whole="shape", dims=_dims_of_view)
def scale_by_shape(
    adjust: str | None = None, factor: NonNegative = 0.2, view: str = "matrix"
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
        ValueError: If `factor` is negative, if `adjust` or `view` is unknown, or if a leaf is not a matrix.

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
    _check_view("scale_by_shape", view)
    check_adjustment("scale_by_shape", "adjust", adjust)

    def update(update, state, param, ctx):
        rows, columns = _matrix_shape(update, view)
        return shape_factor(adjust, rows, columns, factor) * update, state

    return update


ADJUSTMENTS = ("original", "spectral", "max_dim", "match_rms_adamw", "none")


def check_adjustment(owner: str, argument: str, adjust: Any) -> None:
    if adjust not in (None, *ADJUSTMENTS):
        known = ", ".join(map(repr, ADJUSTMENTS[1:]))
        raise ValueError(
            f"{owner}: {argument} must be None, 'original' or {known}, got {adjust!r}"
        )


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


def _without_largest(x: Tensor, matrix: Tensor, share: Any, power_steps: int) -> Tensor:
    """Subtract `share / 2` times the matrix divided by its largest singular value, and restore the norm of `x`."""
    right = matrix.new_ones((*matrix.shape[:-2], matrix.shape[-1], 1)) / math.sqrt(
        max(matrix.shape[-1], 1)
    )
    for _ in range(power_steps):
        left = _unit(matrix @ right)
        right = _unit(matrix.mT @ left)
    largest = at_least(_norms(matrix @ right), 1e-10)
    difference = x - share / 2 * (matrix / largest)
    return difference * (_norms(x) / at_least(_norms(difference), 1e-10))


def _unit(vectors: Tensor) -> Tensor:
    """Scale columns to norm 1; zero columns remain 0."""
    return vectors / at_least(_norms(vectors), torch.finfo(vectors.dtype).tiny)


def _matrix_shape(x: Tensor, view: str) -> tuple[int, int]:
    rows, columns = (
        (x.shape[0], math.prod(x.shape[1:])) if view == "flatten" else x.shape[-2:]
    )
    return rows, columns


@per_tensor(whole=True, dims=(2, math.inf))
def normalize_neurons(
    beta: Decay = 0.95,
    eps: NonNegative = 1e-10,
    axis: str = "rows",
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
        ValueError: If an argument is out of range, if `axis` is unknown, or if a leaf has fewer than two dimensions.

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
    if axis not in ("rows", "long"):
        raise ValueError(
            f"normalize_neurons: axis must be 'rows' or 'long', got {axis!r}"
        )

    def averaged(x):
        """Return the dimension over which the mean square is computed."""
        return -2 if axis == "long" and x.shape[-2] < x.shape[-1] else -1

    def sizes(param):
        shape = list(param.shape)
        shape[averaged(param)] = 1
        return param.new_zeros(shape)

    def update(update, state, param, ctx):
        means = mean(update.square(), averaged(update), keepdim=True)
        square = running_mean(state["exp_avg_sq"], means, beta)
        scaled = update / (safe_sqrt(square) + eps)
        size = (
            _norms(update)
            if rms is None
            else rms * math.sqrt(math.prod(update.shape[-2:]))
        )
        return scaled * (size / at_least(_norms(scaled), eps)), {"exp_avg_sq": square}

    return {"exp_avg_sq": square(sizes)}, update


@per_tensor(whole=True, dims=(2, math.inf))
def normalize_entries(
    beta: Decay = 0.999,
    eps: NonNegative = 1e-8,
    correct_bias: bool = True,
    rescale: str | None = "sqrt_min",
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
        ValueError: If an argument is out of range, if `rescale` is unknown, or if a leaf has fewer than two dimensions.

    Example:
        >>> tx = gradtx.normalize_entries()
        >>> params = {"w": torch.zeros(2, 2)}
        >>> # with norm sqrt(2)
        >>> tx.update({"w": torch.tensor([[3.0, -4.0], [0.1, 8.0]])}, tx.init(params))[0]["w"]
        tensor([[ 0.7071, -0.7071],
                [ 0.7071,  0.7071]])

    Source: Si et al. 2025, AdaMuon, arXiv:2507.11005, and the authors' code. Departures: none.
    """
    if rescale not in (None, "sqrt_min", "rms"):
        raise ValueError(
            f"normalize_entries: rescale must be None, 'sqrt_min' or 'rms', got {rescale!r}"
        )

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], update.square(), beta)
        corrected = square / ctx.bias_correction(beta) if correct_bias else square
        scaled = update / (safe_sqrt(corrected) + eps)
        new = {"exp_avg_sq": square}
        if rescale is None:
            return scaled, new
        rows, columns = update.shape[-2:]
        size = (
            math.sqrt(min(rows, columns))
            if rescale == "sqrt_min"
            else 0.2 * math.sqrt(rows * columns)
        )
        return scaled * (size / (_norms(scaled) + eps)), new

    return {"exp_avg_sq": square()}, update


def _norms(x: Tensor) -> Tensor:
    """Return the norm of each matrix of a batch."""
    return safe_sqrt(x.square().sum(dim=(-2, -1), keepdim=True))


METHODS = ("newton_schulz", "exact")


def _compiles(arguments):
    """Compile only the iteration: the host reads whether eigenvalues converged."""
    return "lists" if arguments["method"] == "exact" else True


@per_tensor(whole=True, dims=(2, 2), compiles=_compiles)
def scale_by_nuclear_norm(
    method: str = "newton_schulz",
    alpha: NonNegative = 1.0,
    center_rows: bool = False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
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


LEAST = 1e-12  # lower bound of the lengths of rows


@per_tensor(whole=True, dims=(2, 2), needs=("params",), owns_lr=True)
def scale_by_muown(
    lr: NonNegative,
    momentum: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    betas: Decays = (0.9, 0.95),
    eps: NonNegative = 1e-8,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Annotated[int, "[0, 100)"] | None = None,
    adjust_lr_fn: str | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
):
    r"""Update the directions of a matrix's rows by Muon and their lengths by Adam: Muown.

    Rows are $p = \gamma \hat u$, and $v = \ell \hat u$ is the vector that defines their direction. Starting from the
    row norms of the initial weights, $\gamma = \ell = \lVert p_0 \rVert$:
    $d_\gamma = \langle g, \hat u \rangle$, $d_v = \frac{\gamma}{\ell} (g - d_\gamma \hat u)$,
    $v = \ell \hat u - \eta r\, O(\mathrm{EMA}(d_v))$ with $O$ of `orthogonalize` and $r$ of `scale_by_shape`,
    $\gamma \leftarrow (\gamma - \eta\, \mathrm{Adam}(d_\gamma)) (1 - \eta \lambda)$, $\ell \leftarrow \lVert v \rVert$,
    $p \leftarrow \gamma v / \ell$.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay of the average of $d_v$, in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the lengths.
        betas: Adam's betas, each in [0, 1).
        eps: Adam's eps, >= 0.
        ns_coefficients: Coefficients of $O$, as in `orthogonalize`.
        ns_steps: Iterations of $O$, in [0, 100); None for 5, or for the number of a named set.
        adjust_lr_fn: $r$, one of the names of `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the leaf's own dtype.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, shaped as the parameter;
        `magnitude` ($\gamma$), `length` ($\ell$), `exp_avg` and `exp_avg_sq`, one value per row.

    Raises:
        TypeError: If `ns_dtype` is not a floating-point dtype.
        ValueError: If an argument is out of range, if `ns_coefficients` or `adjust_lr_fn` is unknown, if `params` is
            missing, if a leaf is not a matrix, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_muown(lr=0.1)
        >>> params = {"w": torch.tensor([[3.0, 4.0]])}
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 4.0]])}, tx.init(params), params)
        >>> # a gradient along the row changes only its length
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(4.9000)

    Source: Muown, arXiv:2605.10797. Departures: none.
    """
    beta1, beta2 = betas
    check_adjustment("scale_by_muown", "adjust_lr_fn", adjust_lr_fn)
    iteration = polynomials("scale_by_muown", ns_coefficients, ns_steps, ns_dtype)

    def lengths(param):
        return at_least(_row_norms(param), LEAST)

    def zeros(param):
        return torch.zeros_like(lengths(param))

    def update(grad, state, param, ctx):
        magnitude = state["magnitude"]
        # Half precision rounds this bound to 0.
        length = at_least(state["length"], LEAST)
        unit = quotient(param, magnitude)
        along = (grad * unit).sum(dim=1, keepdim=True)
        across = magnitude / length * (grad - unit * along)
        average = running_mean(state["momentum_buffer"], across, momentum)
        step = newton_schulz(average, iteration, dtype=ns_dtype)
        direction = unit * length - lr * shape_factor(adjust_lr_fn, *grad.shape) * step
        mean = running_mean(state["exp_avg"], along, beta1)
        square = running_mean(state["exp_avg_sq"], along.square(), beta2)
        corrected = corrected_root(square, ctx, beta2) + eps
        magnitude = (magnitude - lr * mean / ctx.bias_correction(beta1) / corrected) * (
            1 - lr * weight_decay
        )
        length = at_least(_row_norms(direction), LEAST)
        new = {
            "momentum_buffer": average,
            "magnitude": magnitude,
            "length": length,
            "exp_avg": mean,
            "exp_avg_sq": square,
        }
        return magnitude * direction / length - param, new

    slots = {
        "momentum_buffer": linear(),
        "magnitude": lengths,
        "length": lengths,
        "exp_avg": zeros,
        "exp_avg_sq": square(zeros),
    }
    return slots, update


def _row_norms(x: Tensor) -> Tensor:
    return safe_sqrt(x.square().sum(dim=1, keepdim=True))


KINDS = ("auto", "spectral", "conv", "sign", "column", "row", "bias")
_DIMS = {
    "spectral": (2, 2),
    "conv": (3, math.inf),
    "column": (2, math.inf),
    "row": (2, math.inf),
}


def _dims_of_lmo(arguments: dict[str, Any]) -> Any:
    return _DIMS.get(arguments["kind"])


def _mixes_rows(arguments: dict[str, Any]) -> bool:
    """Whether the owner of a divided leaf must compute it; signs, rows and columns need no exchange of entries."""
    return arguments["kind"] not in ("sign", "row", "column")


@per_tensor(whole=_mixes_rows, dims=_dims_of_lmo)
def lmo(
    kind: str = "auto",
    *,
    normalized: bool | None = None,
    transpose: bool = False,
    maximum: bool = False,
    steps: Annotated[int, "[0, 100)"] | None = None,
    coefs: Static[str | tuple[float, ...] | tuple[tuple[float, ...], ...]] = "simple",
    eps: NonNegative = 1e-8,
):
    r"""Replace an update by the element of a norm ball that is most aligned with it.

    With $O$ as in `orthogonalize`, a matrix with $r$ rows and $c$ columns (out, in), and $y$ the update or, with
    `transpose`, its transpose, which is transposed back at the end:

    | kind | result | `normalized=False` |
    |---|---|---|
    | "spectral" | $O(x) \sqrt{r/c}$ | $O(x) \sqrt r$ |
    | "conv" | $O(x) \sqrt{r/c} / k$ of (out, all others), $c$ input channels, $k$ kernel entries | $O(x) \sqrt r / k$ |
    | "sign" | $\mathrm{sign}(x) / \mathrm{in}$ | $\mathrm{sign}(x)$ |
    | "column" | $y / (n c + \epsilon)$, $n$ the root mean square of each column | $y / (n + \epsilon)$, the default |
    | "row" | $y / (\lVert \mathrm{row} \rVert \sqrt c + \epsilon)$ | $y / (\lVert \mathrm{row} \rVert + \epsilon)$ |
    | "bias" | $x / (\mathrm{rms}(x) + \epsilon)$ | the same |

    Args:
        kind: One of these, or "auto": "bias" for leaves with at most 1 dimension, "spectral" for 2, "conv" for more.
        normalized: Whether the norm is relative to the number of inputs; None for the default of the kind.
        transpose: Exchange rows and columns, for weights stored as (in, out), such as those of an embedding.
        maximum: Scale "spectral" and "conv" by at least 1, before the division by the kernel size.
        steps: Iterations of $O$, in [0, 100); None for 5, or for the number of a named set.
        coefs: Coefficients of $O$, as in `orthogonalize`.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range, if `kind` is unknown, or if a leaf has too few dimensions for it.

    Example:
        >>> tx = gradtx.lmo("row")
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 4.0], [0.0, 2.0]])}, tx.init({}))
        >>> updates["w"]  # rows of root mean square 1/2
        tensor([[0.4243, 0.5657],
                [0.0000, 0.7071]])

    Source: Pethick et al. 2025, Scion, arXiv:2502.07529, and LIONS-EPFL/scion. Departures: the authors divide a
    convolution by the square of one side of its kernel.
    """
    if kind not in KINDS:
        raise ValueError(f"lmo: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    iteration = polynomials("lmo", coefs, steps, None)
    oracle = Oracle(
        normalized, transpose, maximum, eps, lambda x: newton_schulz(x, iteration, eps)
    )

    def update(update, state, param, ctx):
        return oracle.of(kind, update), state

    return update


def init_for_lmo(
    param: Tensor,
    kind: str = "auto",
    *,
    scale: float = 1.0,
    normalized: bool | None = None,
    transpose: bool = False,
    maximum: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw initial weights on the ball to which `scion` constrains them; biases are 0.

    Args:
        param: Tensor that specifies shape, dtype and device.
        kind: As in `lmo`.
        scale: The radius of the ball, >= 0.
        normalized: As in `lmo`.
        transpose: As in `lmo`.
        maximum: As in `lmo`.
        generator: The generator of the normal samples; None for torch's default.

    Returns:
        A new tensor: orthogonal ("spectral", "conv"), signs, or normal samples with columns or rows of equal size.

    Raises:
        TypeError: If `param` is not a tensor of a floating-point dtype, or if `scale` is not a number.
        ValueError: If `kind` is unknown, if it needs a matrix and `param` is a vector, or if `scale` is negative or not
            finite.

    Example:
        >>> weight = gradtx.init_for_lmo(
        ...     torch.empty(3, 3), scale=2.0, generator=torch.Generator().manual_seed(0)
        ... )
        >>> torch.linalg.svdvals(weight)
        tensor([2.0000, 2.0000, 2.0000])

    Source: LIONS-EPFL/scion. Departures: convolutions are orthogonal as (out, all others), as in `lmo`.
    """
    _check_start(param, kind, scale)
    kind = _kind_for(param.ndim) if kind == "auto" else kind
    if kind == "bias":
        return torch.zeros_like(param)
    noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
    start = scale * Oracle(normalized, transpose, maximum, 0.0, polar_factor).of(
        kind, noise
    )
    return start.to(param.device, param.dtype)


def _check_start(param: Any, kind: Any, scale: Any) -> None:
    if not (isinstance(param, Tensor) and param.is_floating_point()):
        raise TypeError(
            f"init_for_lmo: param must be a tensor of a floating-point dtype, got {describe(param)}"
        )
    if kind not in KINDS:
        raise ValueError(
            f"init_for_lmo: kind must be one of {', '.join(KINDS)}, got {kind!r}"
        )
    if isinstance(scale, bool) or not isinstance(scale, float | int):
        raise TypeError(f"init_for_lmo: scale must be a number, got {describe(scale)}")
    if not 0 <= scale < math.inf:
        raise ValueError(f"init_for_lmo: scale must be in [0, inf), got {scale!r}")
    if param.ndim < 2 and kind not in ("auto", "bias", "sign"):
        shape = tuple(param.shape)
        raise ValueError(
            f"init_for_lmo: kind {kind!r} needs at least 2 dimensions, got a tensor of shape {shape}"
        )


# A named tuple, because dynamo cannot trace a closure over a dataclass.
class Oracle(NamedTuple):
    """Compute the oracles of all kinds with the given options.

    Attributes:
        normalized, transpose, maximum, eps: As in `lmo`.
        orthogonal: Function that maps a matrix to an orthogonal one.
    """

    normalized: bool | None
    transpose: bool
    maximum: bool
    eps: Any
    orthogonal: Callable[[Tensor], Tensor]

    def of(self, kind: str, x: Tensor) -> Tensor:
        kind = _kind_for(x.ndim) if kind == "auto" else kind
        transposed = self.transpose and kind in ("column", "row")
        result = getattr(self, f"by_{kind}")(x.transpose(0, 1) if transposed else x)
        return result.transpose(0, 1) if transposed else result

    def by_spectral(self, x: Tensor) -> Tensor:
        outputs, inputs = x.shape[:2]
        result = self.orthogonal(x.flatten(1)).reshape(x.shape)
        size = math.sqrt(
            outputs if self.normalized is False else outputs / max(inputs, 1)
        )
        return max(1.0, size) * result if self.maximum else size * result

    def by_conv(self, x: Tensor) -> Tensor:
        return self.by_spectral(x) / max(math.prod(x.shape[2:]), 1)

    def by_sign(self, x: Tensor) -> Tensor:
        inputs = x.shape[1] if x.ndim > 1 else 1
        return x.sign() / (1 if self.normalized is False else max(inputs, 1))

    def by_column(self, x: Tensor) -> Tensor:
        size = safe_sqrt(x.square().sum(dim=0, keepdim=True) / max(x.shape[0], 1))
        return x / ((size * x.shape[1] if self.normalized else size) + self.eps)

    def by_row(self, x: Tensor) -> Tensor:
        size = safe_sqrt(x.square().sum(dim=-1, keepdim=True))
        if self.normalized is not False:
            size = size * math.sqrt(x.shape[-1])
        return x / (size + self.eps)

    def by_bias(self, x: Tensor) -> Tensor:
        return x / (rms(x) + self.eps)


def _kind_for(ndim: int) -> str:
    if ndim <= 1:
        return "bias"
    return "spectral" if ndim == 2 else "conv"
