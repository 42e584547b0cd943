"""Functions of matrices: roots, bases, matrix views of tensors, blocks.

The derivatives of the factorizations are implemented by hand. The factors are computed from a detached matrix, then a
function of `x - x.detach()`, which is 0 but has the derivative of `x`, is added. The derivatives therefore stay finite
where eigenvalues are equal, unlike torch's own. They are exact for a root; for a basis they omit the arbitrary part.
Second derivatives are exact for a basis, and not for a root.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.exact import exact_dtype
from gradtx.compiler.record import as_one, device_of
from gradtx.maths.entries import at_least, differentiable, norms, quotient, safe_sqrt

# Tensors viewed as matrices.


def unfolded(x: Tensor, i: int) -> Tensor:
    """Return mat_i(x): dimension i as the rows, all others as the columns; a vector is a single column."""
    size = x.shape[i]
    others = x.numel() // max(size, 1)
    return x.movedim(i, 0).reshape(size, others)


def gram(x: Tensor, i: int) -> Tensor:
    """Return mat_i(x) mat_i(x)^T."""
    matrix = unfolded(x, i)
    return symmetric_product(matrix, matrix.mT)


# From these sizes, strips take less time than the full product with one thread and with two, unless the matrix has
# fewer columns than rows: 0.83 at 512 x 1024 and 0.81 at 726 x 726, but 1.02 at 1024 x 512, because assembling the
# result costs the square of the rows.
LEAST_ROWS = 512
LEAST_ENTRIES = 2**19
# 0.625 of the multiplications; eight strips need 0.56 but are too thin to be fast.
STRIPS = 4


def added_product(
    plus: Tensor, x: Tensor, y: Tensor, beta: float, alpha: float = 1.0
) -> Tensor:
    """Return `beta plus + alpha x y` with the operations of torch.optim.Muon, which round once in bfloat16."""
    is_half = x.dtype in (torch.bfloat16, torch.float16)
    # Dynamo cannot tell whether a transform is active.
    if is_half and not torch.compiler.is_compiling() and _torch.is_transformed(x):
        # The fused operation falls apart under `vmap`, and torch's sum with a factor rounds the last entries of a batch
        # in another way than the others: the result would depend on the other matrices.
        product = (x @ y).float()
        return (beta * plus.float() + alpha * product).to(x.dtype)
    fused = torch.addmm if x.ndim == 2 else torch.baddbmm
    return fused(plus, x, y, beta=beta, alpha=alpha)


def symmetric_product(
    x: Tensor,
    y: Tensor,
    plus: Tensor | None = None,
    beta: float = 1.0,
    alpha: float = 1.0,
) -> Tensor:
    """Return `x y`, or `beta plus + alpha x y`, given that the result is symmetric.

    For a large product on a CPU, only strips of rows up to the diagonal are computed and then mirrored. This depends
    on the shape alone, so equal matrices have equal products on all ranks.
    """
    if not _pays_in_strips(x):
        return x @ y if plus is None else added_product(plus, x, y, beta, alpha)
    rows = x.shape[-2]
    cuts = [rows * i // STRIPS for i in range(STRIPS + 1)]
    strips: list[Tensor] = []
    for start, end in itertools.pairwise(cuts):
        left = x[..., start:end, :]
        right = y[..., :end]
        if plus is None:
            strip = left @ right
        else:
            strip_of_plus = plus[..., start:end, :end]
            strip = added_product(strip_of_plus, left, right, beta, alpha)
        strips.append(strip)
    return _mirrored(strips, cuts)


def _pays_in_strips(x: Tensor) -> bool:
    """Whether strips are faster for a symmetric product with this left factor."""
    if x.dtype not in (torch.float32, torch.float64):
        return False
    if device_of(x).type != "cpu":
        return False
    rows, columns = x.shape[-2:]
    # Symbolic, inside torch.compile: the mirroring kernels take 10 s to compile.
    if not isinstance(rows, int):
        return False
    return LEAST_ROWS <= rows <= columns and rows * columns >= LEAST_ENTRIES


def _mirrored(strips: list[Tensor], cuts: list[int]) -> Tensor:
    """Assemble a symmetric matrix from strips of rows that start at `cuts` and end with their diagonal block."""
    rows: list[Tensor] = []
    for i, strip in enumerate(strips):
        start, end = cuts[i], cuts[i + 1]
        parts = [strip]
        for later_strip in strips[i + 1 :]:
            below_diagonal = later_strip[..., start:end]
            parts.append(below_diagonal.mT)
        rows.append(torch.cat(parts, dim=-1))
    return torch.cat(rows, dim=-2)


def multiplied(x: Tensor, matrix: Tensor, i: int) -> Tensor:
    """Multiply dimension i of `x` by a matrix: y_{..a..} = sum_b matrix_{ab} x_{..b..}."""
    if x.ndim == 2:
        return x @ matrix.mT if i % 2 else matrix @ x
    product = torch.tensordot(matrix, x.movedim(i, 0), dims=1)
    # Contiguous, to preserve the state's strides.
    return product.movedim(0, i).contiguous()


def merged(shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """Merge neighboring dimensions of a shape, left to right, while their product is at most `limit`.

    Dimensions of size 1 are dropped; a dimension above the limit is not merged.
    """
    if math.prod(shape) == 0:
        return tuple(shape)
    merged_sizes: list[int] = []
    product = 1
    for size in shape:
        if product * size > limit:
            merged_sizes.append(product)
            product = 1
        product *= size
    merged_sizes.append(product)
    return tuple(size for size in merged_sizes if size > 1)


def blocks(x: Tensor, size: int) -> list[Tensor]:
    """Split every dimension into pieces of `size` entries; the last dimension varies fastest."""
    pieces = [x]
    for i in range(x.ndim):
        smaller_pieces: list[Tensor] = []
        for piece in pieces:
            smaller_pieces.extend(piece.split(size, dim=i))
        pieces = smaller_pieces
    return pieces


def joined(pieces: list[Tensor], shape: Sequence[int], size: int) -> Tensor:
    """Reverse `blocks`."""
    for i in reversed(range(len(shape))):
        count = -(-shape[i] // size)  # rounded up
        larger_pieces: list[Tensor] = []
        for start in range(0, len(pieces), count):
            neighbors = pieces[start : start + count]
            larger_pieces.append(torch.cat(neighbors, dim=i))
        pieces = larger_pieces
    return pieces[0]


# Factorizations of symmetric matrices.


Factorization: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]


def _factors(factorize: Factorization, x: Tensor) -> list[Tensor]:
    """Factorize a matrix, again in float64 if that fails; the factors of a matrix that is not finite are NaN.

    torch raises an error for some of these, which would end a step after other leaves have been stepped.
    """
    if torch.compiler.is_compiling() or not _torch.readable(x):
        return _factors_without_reading(factorize, x)
    try:
        factors = factorize(x)
    except torch.linalg.LinAlgError:
        # Highly repeated eigenvalues, as in statistics of low rank, or NaN.
        factors = None
    # In float64, a second attempt would be the same.
    is_final = x.dtype == exact_dtype(x)
    if factors is not None and (is_final or all(map(_is_finite, factors))):
        return list(factors)
    if not _is_finite(x):
        factors_of_zeros = factorize(torch.zeros_like(x))
        return [torch.full_like(factor, torch.nan) for factor in factors_of_zeros]
    factors_in_float64 = factorize(x.to(exact_dtype(x)))
    return [factor.to(x.dtype) for factor in factors_in_float64]


def _factors_without_reading(factorize: Factorization, x: Tensor) -> list[Tensor]:
    """Factorize a matrix without branching on its values, in float64 if that fails for any member of a batch."""
    is_finite = x.isfinite().all()
    finite = torch.where(is_finite, x, 0.0)
    try:
        factors = factorize(finite)
    except torch.linalg.LinAlgError:
        factors = factorize(finite.to(exact_dtype(x)))
    return [torch.where(is_finite, factor.to(x.dtype), torch.nan) for factor in factors]


def _is_finite(x: Tensor) -> bool:
    if bool(x.sum().isfinite()):
        return True
    return bool(x.isfinite().all())  # a sum may overflow


def _eigh(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(_factors(torch.linalg.eigh, x))


def inverse_root(
    x: Tensor,
    exponent,
    floor: Any = 0.0,
    ridge=None,
    pseudo: bool = False,
    lift=None,
) -> Tensor:
    """Return (x + ridge max(top eigenvalue, 1e-16) I)^(-exponent) of a symmetric matrix with eigenvalues >= `floor`.

    Eigenvalues that rounding moved below the floor are raised to it; `lift` is then added to all of them. With
    `pseudo`, the powers of eigenvalues that are 0 up to rounding are 0. Cost: O(n^3).
    """
    shapes = (x.shape[:1], x.shape)
    values, basis = as_one(_eigh, x.detach(), shapes)
    constant_floor = floor.detach() if isinstance(floor, Tensor) else floor
    values = at_least(values, constant_floor).to(x.dtype)
    change = None
    if differentiable():
        change = basis.mT @ _zero_with_derivative_of(x) @ basis
    if ridge is not None:
        top = values[-1] if change is None else values[-1] + change[-1, -1]
        lift = ridge * at_least(top, 1e-16)
    if lift is not None:
        values, change = _lifted(values, change, lift)
    usable, nonzero = values, None
    if pseudo:
        epsilon = torch.finfo(x.dtype).eps
        nonzero = values > _largest_or_one(values) * (len(values) * epsilon)
        usable = torch.where(nonzero, values, 1.0)
    powers = usable**-exponent
    if nonzero is not None:
        powers = torch.where(nonzero, powers, 0.0)
    root = symmetric_product(basis * powers, basis.mT)
    if change is None:
        return root
    slope = _slope_of_root(usable, exponent)
    if nonzero is not None:
        one_is_zero = nonzero[:, None] ^ nonzero
        jumps = quotient(_differences(powers), _differences(values), one_is_zero)
        slope = torch.where(nonzero[:, None] & nonzero, slope, jumps)
    return root + basis @ (slope * change) @ basis.mT


def _lifted(
    values: Tensor, change: Tensor | None, lift: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    """Add a number to the eigenvalues, and its derivative to the matrix `change`."""
    if not isinstance(lift, Tensor):
        return values + lift, change
    lift = lift.to(values.dtype)
    if change is not None:
        change_of_lift = _zero_with_derivative_of(lift)
        change = change + torch.diag(change_of_lift.expand(len(change)))
    return values + lift.detach(), change


def _slope_of_root(values: Tensor, exponent: float) -> Tensor:
    """Return (f(b) - f(a)) / (b - a) for each pair of eigenvalues, where f(a) = a^(-exponent).

    The factors of the derivative of a root in its eigenbasis. With g = log b - log a, the quotient equals
    a^(-exponent - 1) (e^(-exponent g) - 1) / (e^g - 1), which is accurate near b = a.
    """
    logs = values.log()
    gap = _differences(logs)
    equal = gap == 0
    ratio = torch.expm1(-exponent * gap) / torch.expm1(torch.where(equal, 1.0, gap))
    ratio = torch.where(equal, -exponent, ratio)
    slope = ratio * (values ** (-exponent - 1))[:, None]
    # Inf times the 0 of a change would be NaN.
    # `where` under vmap widens it to the dtype of the exponent.
    return slope.clamp(min=-torch.finfo(values.dtype).max).to(values.dtype)


def eigenbasis(x: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix as columns, largest eigenvalue first.

    The derivative omits rotations among eigenvectors of equal eigenvalues, whose basis is arbitrary.
    """
    shapes = (x.shape[:1], x.shape)
    values, basis = as_one(_descending_eigh, x.detach(), shapes)
    return _with_derivative(x, values, basis)


def _descending_eigh(x: Tensor) -> tuple[Tensor, ...]:
    values, basis = _eigh(x)
    return values.flip(-1), basis.flip(-1).contiguous()


def left_basis(x: Tensor) -> Tensor:
    """Return all left singular vectors of a matrix as columns, largest singular value first.

    They are the eigenvectors of X X^T and have the same derivative.
    """
    rows, columns = x.shape
    shapes = (rows, rows), (min(rows, columns),)
    basis, values = as_one(_left_vectors, x.detach(), shapes)
    if not differentiable():
        return basis
    largest = _largest_or_one(values)
    squares = (values / largest).square()  # unscaled squares could underflow
    missing = rows - values.shape[-1]
    eigenvalues = torch.nn.functional.pad(squares, (0, missing))
    scaled = x / largest
    square = symmetric_product(scaled, scaled.mT)
    return _with_derivative(square, eigenvalues, basis)


def _left_vectors(x: Tensor) -> tuple[Tensor, ...]:
    is_tall = bool(x.shape[-2] > x.shape[-1])  # symbolic, inside torch.compile
    svd = functools.partial(torch.linalg.svd, full_matrices=is_tall)
    basis, values, _ = _factors(svd, x)
    return basis.contiguous(), values


def _with_derivative(x: Tensor, values: Tensor, basis: Tensor) -> Tensor:
    """Attach the derivative of `x` to its eigenvectors `basis`, which were computed from a detached matrix.

    To first order, a change C of the matrix in its eigenbasis turns the basis V into V + V (C_ij / (v_j - v_i)). The
    step is taken at the midpoint of the change, which makes the second derivative exact, too.
    """
    if not differentiable():
        return basis
    largest = _largest_or_one(values)
    x = x / largest
    values = values / largest
    gaps = _differences(values)
    differ = gaps.abs() > x.shape[-1] * torch.finfo(x.dtype).eps
    half_change = basis.mT @ (0.5 * _zero_with_derivative_of(x)) @ basis
    midway = basis + basis @ (quotient(1.0, gaps, differ) * half_change)
    gaps = _differences(values + half_change.diagonal())
    change = midway.mT @ _zero_with_derivative_of(x) @ midway
    return basis + midway @ (quotient(1.0, gaps, differ) * change)


def _differences(values: Tensor) -> Tensor:
    """Return the matrix of the differences of all pairs of values, v_j - v_i in row i and column j."""
    return values[None, :] - values[:, None]


def _largest_or_one(values: Tensor) -> Tensor:
    """Return the largest magnitude of a matrix's eigenvalues, or 1 for a zero matrix.

    A multiple of the matrix has the same basis, so the matrix may be divided by it.
    """
    if not values.numel():
        return values.new_ones(())
    largest = values.abs().amax()
    return torch.where(largest > 0, largest, 1.0)


def _zero_with_derivative_of(x: Tensor) -> Tensor:
    """Return 0 with the derivative of x.

    The derivative of a term that is linear in it counts the term's coefficient twice. If the coefficient moves by half
    of it, the second derivative of the term becomes exact.
    """
    return x - x.detach()


def orthonormal(x: Tensor) -> Tensor:
    """Return Q of the QR decomposition of a matrix that is not wide; dependent columns have no derivative."""
    columns = x.shape[-1]
    basis, upper = as_one(_qr, x.detach(), (x.shape, (columns, columns)))
    if not differentiable():
        return basis
    diagonal = upper.diagonal()
    largest = upper.abs().amax() if upper.numel() else 0.0
    cutoff = columns * torch.finfo(x.dtype).eps * largest
    dependent = diagonal.abs() <= cutoff
    invertible = upper + torch.diag(torch.where(dependent, 1.0 - diagonal, 0.0))
    # As in `_with_derivative`, a step at the midpoint of the change makes the second derivative exact.
    half_change = 0.5 * _zero_with_derivative_of(x)
    turn, outside, inside = _change_of_q(basis, invertible, dependent, half_change)
    midway = basis + basis @ turn + outside
    upper_midway = invertible + (inside - turn) @ invertible
    change = _zero_with_derivative_of(x)
    turn, outside, _ = _change_of_q(midway, upper_midway, dependent, change)
    return basis + midway @ turn + outside


def _change_of_q(
    q: Tensor, r: Tensor, dependent: Tensor, change: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first-order change of Q for a `change` dX of X = Q R.

    With M = dX R^-1, split into its parts inside and outside the column space of Q:
    dQ = Q (L - L^T) + (M - Q Q^T M), where L is the part of Q^T M below the diagonal.

    Returns:
        The rotation L - L^T; the part outside, M - Q Q^T M; the part inside, Q^T M.
    """
    moved = torch.linalg.solve_triangular(r, change, upper=True, left=False)
    moved = torch.where(dependent[None, :], 0.0, moved)
    inside = q.mT @ moved
    below = inside.tril(-1)
    is_tall = q.shape[-2] > q.shape[-1]
    # The columns of a square Q span everything.
    outside = moved - q @ inside if is_tall else torch.zeros_like(moved)
    return below - below.mT, outside, inside


def _qr(x: Tensor) -> tuple[Tensor, ...]:
    # An accelerator reports no errors of this factorization, for which the host would wait.
    factors = _factors if x.device.type == "cpu" else _factors_without_reading
    basis, upper = factors(torch.linalg.qr, x)
    return basis.contiguous(), upper


def pseudo_inverse(x: Tensor) -> Tensor:
    """Return the pseudo-inverse of a matrix."""
    return _factors(lambda x: (torch.linalg.pinv(x),), x)[0]


# The nearest orthogonal matrix.


def polar_factor(x: Tensor) -> Tensor:
    """Return the nearest orthogonal matrix U V^T of U S V^T from the smaller Gram matrix, 0 for negligible values."""
    if x.shape[-2] > x.shape[-1]:
        return polar_factor(x.mT).mT
    square = symmetric_product(x, x.mT)
    return inverse_root(square, 0.5, pseudo=True) @ x


def newton_schulz(
    x: Tensor,
    polynomials: Sequence[Sequence[float]],
    eps=1e-7,
    start: str = "fro",
    dtype: torch.dtype | None = None,
    mixture: Sequence[float] | None = None,
) -> Tensor:
    r"""Bring the singular values of a matrix (or a batch of them) near 1 with odd polynomials of degree 5.

    Starting from $X / \max(\lVert X \rVert_F, \epsilon)$, divided further as specified by `start`, iterate
    $X \leftarrow a X + (b A + c A^2) X$ with $A = X X^\top$. A tall matrix is transposed to make $A$ smaller. With
    a `mixture`, return the sum of these multiples of the start and of all iterates.
    """
    is_tall = x.shape[-2] > x.shape[-1]
    shape = x.shape
    dtype_of_x = x.dtype
    dtype = dtype_of_x if dtype is None else dtype
    x = x.to(dtype)
    if x.ndim > 3:
        x = x.flatten(0, -3)
    if is_tall:
        x = x.mT
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / at_least(norm, eps).to(dtype)
    x = _divided_by_bound(x, eps, start)
    if _is_faster_in_float32(x):
        x = x.float()
    total = None if mixture is None else mixture[0] * x
    for i, (a, b, c) in enumerate(polynomials, start=1):
        square = _rounded(symmetric_product(x, x.mT), dtype)  # A
        step = symmetric_product(square, square, square, b, c)  # b A + c A^2
        step = _rounded(step, dtype)
        x = _rounded(added_product(x, step, x, a), dtype)  # a X + step X
        if total is not None and mixture is not None:
            total = total + mixture[i] * x
    x = x if total is None else total
    if is_tall:
        x = x.mT
    return x.reshape(shape).to(dtype).to(dtype_of_x)


def _is_faster_in_float32(x: Tensor) -> bool:
    """Whether products of such matrices are faster in float32 with one rounding each, by a factor of 3 to 5."""
    return (
        x.dtype == torch.bfloat16
        and device_of(x).type == "cpu"
        and not _torch.multiplies_in_bfloat16()
    )


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round `x` to another dtype and return it in its own."""
    return x if x.dtype == dtype else x.to(dtype).to(x.dtype)


def schatten4_norms(x: Tensor) -> Tensor:
    """Return the fourth root of the sum of the fourth powers of the singular values of each matrix of a batch."""
    square = symmetric_product(x, x.mT)
    return safe_sqrt(norms(square, (-2, -1)))


def _divided_by_bound(x: Tensor, eps, start: str) -> Tensor:
    """Divide a matrix of norm 1 by a tighter bound on its largest singular value.

    "schatten4" is the norm of this name; "aol" divides each row by the root of the sum of |A| over it, with A = X X^T.
    """
    if start == "fro":
        return x
    if start == "schatten4":
        bound = schatten4_norms(x)
    else:
        sum_of_row = symmetric_product(x, x.mT).abs().sum(dim=-1, keepdim=True)
        bound = safe_sqrt(sum_of_row)
    return x / at_least(bound, eps).to(x.dtype)
