"""Ways to solve (J^T H J + lam D) u = J^T h: by factorizations of a matrix, or from products alone.

All of them give one answer, for any shape of J. `chosen` picks one by sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.curvature.problem import CurvatureProblem, OutputProblem, Tree
from gradtx.maths import linear_solvers

Solve: TypeAlias = Literal["auto", "qr", "dense", "kernel", "cg", "lsmr"]
NAMES = ("qr", "dense", "kernel", "cg", "lsmr")
ITERATIVE = ("cg", "lsmr")
# "auto" takes "qr" for so many parameters, then "dense", and "kernel" for so many residuals or outputs.
MOST_QR, MOST_DENSE, MOST_KERNEL = 512, 4096, 8192
# Matrices of float32 leaves with at most so many rows are formed and factored in float64: Cholesky squares their
# condition, and costs little.
MOST_IN_FLOAT64 = 2048
# Where the memory of the device is not known. Matrices may take a quarter of a device's.
MOST_BYTES, SHARE = 16 * 10**9, 0.25


class Solved(NamedTuple):
    """The solution of a damped system.

    Attributes:
        direction: u, a vector of n entries.
        failed: Whether the matrix is not positive definite to working precision, 0-d bool.
        measured: What `watch` shows: 0-d tensors by name.
    """

    direction: Tensor
    failed: Tensor
    measured: dict[str, Tensor]


@dataclass(frozen=True)
class Damping:
    """What is added to the curvature: lam D, with D = 1 without a diagonal.

    Attributes:
        value: lam, a float or a 0-d tensor; a literal 0.0 asks for the solution of least norm.
        diagonal: The diagonal of D, a vector; None for 1.
    """

    value: Any
    diagonal: Tensor | None = None

    @property
    def is_off(self) -> bool:
        return isinstance(self.value, float) and self.value == 0.0

    def entries(self, like: Tensor, size: int) -> Tensor:
        """Return the diagonal of lam D, in the dtype of `like`."""
        number = torch.as_tensor(self.value, dtype=like.dtype, device=like.device)
        if self.diagonal is None:
            return number.expand(size)
        return number * self.diagonal.to(like.dtype)

    def inverse(self, like: Tensor) -> Tensor | None:
        """Return the diagonal of D^-1; None for 1."""
        return None if self.diagonal is None else 1 / self.diagonal.to(like.dtype)


@dataclass(frozen=True)
class Chosen:
    """A way to solve, with its options and its memory.

    Attributes:
        who: The link, for messages.
        name: One of `NAMES`.
        rows, columns: The numbers m and n.
        matrix: The number of rows of the matrix that is factored; 0 for none.
        bytes: The memory of all matrices.
        max_steps, tolerance: Of "cg" and "lsmr".
    """

    who: str
    name: str
    rows: int
    columns: int
    matrix: int
    bytes: int
    max_steps: int
    tolerance: float | None

    def __str__(self) -> str:
        if self.name in ITERATIVE:
            return f"solve={self.name!r}, from products with a Jacobian of {self.rows} x {self.columns}"
        if self.name == "qr":
            return f"solve='qr' of {self.rows + self.columns} x {self.columns}, {_size(self.bytes)}"
        return (
            f"solve={self.name!r} ({self.matrix} x {self.matrix}, and a Jacobian of {self.rows} x {self.columns}; "
            f"{_size(self.bytes)})"
        )


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{int(count)} bytes"


def bytes_of(name: str, m: int, n: int, width: int) -> tuple[int, int]:
    """Return the rows of the matrix that is factored, and the bytes of all matrices, for entries of `width` bytes."""
    if name == "qr":
        return n, (2 * (m + n) * n + m * n) * width
    if name == "dense":
        return n, m * n * width + n * n * 8
    if name == "kernel":
        return m, m * n * width + m * m * 8
    return 0, 4 * (m + n) * width


def chosen(
    problem: CurvatureProblem,
    solve: str,
    is_damped: bool = True,
    max_steps: int = 100,
    tolerance: float | None = None,
    takes: tuple[str, ...] = NAMES,
) -> Chosen:
    """Return the way to solve that was asked for, or one that fits the sizes.

    Raises:
        ValueError: If the way cannot solve this problem, or does not fit into memory.
    """
    who, (m, n) = problem.who, problem.jacobian.size
    has_outputs = isinstance(problem, OutputProblem)
    width = problem.jacobian.value.dtype.itemsize
    limit = _memory_limit(problem.jacobian.value.device)
    if has_outputs:
        takes = tuple(name for name in takes if name not in ("qr", "lsmr"))
        if solve not in ("auto", *takes):
            raise ValueError(
                f"{who}: solve={solve!r} is for residuals; with outputs_fn use {_listed(takes)}"
            )
    name = solve
    if solve == "auto":
        name = _fitting(takes, m, n, is_damped, width, limit)
    if not is_damped and name not in ("qr", "dense"):
        raise ValueError(
            f"{who}: damping=0.0 asks for the step of least norm, which solve={name!r} does not compute; use "
            "solve='qr' or 'dense', or a damping above 0"
        )
    matrix, needed = bytes_of(name, m, n, width)
    if needed > limit:
        others: list[str] = []
        for other in takes:
            rows, size = bytes_of(other, m, n, width)
            if other != name and size <= limit:
                of = f" ({rows} x {rows}, {_size(size)})" if rows else ""
                others.append(f"{other!r}{of}")
        raise ValueError(
            f"{who}: solve={name!r} needs a {matrix} x {matrix} matrix and a Jacobian of {m} x {n}, {_size(needed)}, "
            f"more than {_size(limit)}; use solve={' or '.join(others) or 'cg'}"
        )
    return Chosen(who, name, m, n, matrix, needed, max_steps, tolerance)


def _fitting(
    takes: tuple[str, ...], m: int, n: int, is_damped: bool, width: int, limit: float
) -> str:
    """Return the most accurate way that is cheap for these sizes."""
    if not is_damped:
        return "qr" if "qr" in takes else "dense"
    wanted = ["cg"]
    if n > m:
        wanted = ["kernel", *wanted] if m <= MOST_KERNEL else wanted
    elif n <= MOST_DENSE:
        wanted = ["dense", *wanted]
        if n <= MOST_QR:
            wanted = ["qr", *wanted]
    for name in wanted:
        if name in takes and bytes_of(name, m, n, width)[1] <= limit:
            return name
    return takes[-1]


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"


def _memory_limit(device: torch.device) -> float:
    if device.type == "cuda":
        return SHARE * torch.cuda.get_device_properties(device).total_memory
    return MOST_BYTES


def solved(
    way: Chosen,
    problem: CurvatureProblem,
    damping: Damping,
    right: Tensor | None = None,
) -> Solved:
    """Return u of (J^T H J + lam D) u = J^T h, with another vector in place of h if one is passed."""
    right = problem.right if right is None else right
    if damping.is_off:
        return _least_norm(problem, right)
    return _SOLVES[way.name](way, problem, damping, right)


def _least_norm(problem: CurvatureProblem, right: Tensor) -> Solved:
    """The solution of least norm: pinv(J) r for residuals, pinv(J^T H J) J^T h for outputs."""
    is_finite = problem.gradient.isfinite().all()
    # Singular values of what is not finite are an error of torch.
    rows = torch.where(is_finite, problem.jacobian.rows, 0.0)
    if isinstance(problem, OutputProblem):
        matrix = rows.mT @ torch.where(is_finite, problem.weighted_rows, 0.0)
        direction = torch.linalg.pinv(matrix, hermitian=True) @ (rows.mT @ right)
    else:
        direction = torch.linalg.pinv(rows) @ right
    return Solved(direction, ~is_finite, {})


def _by_qr(
    way: Chosen, problem: CurvatureProblem, damping: Damping, right: Tensor
) -> Solved:
    """QR of J with sqrt(lam D) below it: the condition of J, not its square."""
    rows = problem.jacobian.rows
    below = torch.diag(damping.entries(rows, rows.shape[1]).sqrt())
    q, r = torch.linalg.qr(torch.cat([rows, below]))
    projected = q[: len(rows)].mT @ right
    direction = torch.linalg.solve_triangular(r, projected[:, None], upper=True)
    return Solved(direction[:, 0], _no(right), _condition(r.diagonal()))


def _by_cholesky(
    way: Chosen, problem: CurvatureProblem, damping: Damping, right: Tensor
) -> Solved:
    """Cholesky of J^T H J + lam D."""
    rows = widened(problem.jacobian.rows, problem.jacobian.size[1])
    matrix = rows.mT @ problem.weighted_rows.to(rows)
    return _damped(matrix, damping, rows.mT @ right.to(rows), right.dtype)


def _damped(
    matrix: Tensor, damping: Damping, right: Tensor, dtype: torch.dtype
) -> Solved:
    """Solve with a matrix plus lam D by Cholesky, and return the solution in a dtype."""
    shift = torch.diag(damping.entries(matrix, len(matrix)))
    solution, failed, factor = cholesky_solved(matrix + shift, right)
    return Solved(solution.to(dtype), failed, _condition(factor.diagonal()))


def _by_kernel(
    way: Chosen, problem: CurvatureProblem, damping: Damping, right: Tensor
) -> Solved:
    """Residuals: D^-1 J^T (J D^-1 J^T + lam)^-1 r by Cholesky. Outputs: (lam + H K) x = h for K = J D^-1 J^T, by LU."""
    rows = widened(problem.jacobian.rows, problem.jacobian.size[0])
    inverse = damping.inverse(rows)
    scaled = rows if inverse is None else rows * inverse
    kernel = scaled @ rows.mT
    number = torch.as_tensor(damping.value, dtype=rows.dtype, device=rows.device)
    unit = torch.eye(len(kernel), dtype=rows.dtype, device=rows.device)
    measured: dict[str, Tensor] = {}
    if isinstance(problem, OutputProblem):
        weighted = problem.hessian_times(kernel.to(right)).to(rows)
        solution, info = torch.linalg.solve_ex(weighted + number * unit, right.to(rows))
        failed = info > 0
    else:
        matrix = kernel + number * unit
        solution, failed, factor = cholesky_solved(matrix, right.to(rows))
        measured = _condition(factor.diagonal())
    return Solved((scaled.mT @ solution).to(right.dtype), failed, measured)


def cholesky_solved(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the solution for a vector, whether the matrix has no factor, and the factor."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    half = torch.linalg.solve_triangular(factor, right[:, None], upper=False)
    solution = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    failed = (info > 0) | ~factor.diagonal().isfinite().all()
    return solution[:, 0], failed, factor


def _by_cg(
    way: Chosen, problem: CurvatureProblem, damping: Damping, right: Tensor
) -> Solved:
    """Conjugate gradients on v -> J^T H J v + lam D v, from 0."""
    entries = damping.entries(right, way.columns)

    def matvec(vector: Tensor) -> Tensor:
        return problem.curvature_times(vector) + entries * vector

    system = linear_solvers.System(
        matvec,
        problem.jacobian.transposed(right),
        None,
        lambda vector: vector,
        _tolerance(way, right),
        way.max_steps,
    )
    report = linear_solvers.cg_with_report(system)
    return Solved(report.x, _is_broken(problem), _progress(way, report))


def _by_lsmr(
    way: Chosen, problem: CurvatureProblem, damping: Damping, right: Tensor
) -> Solved:
    """LSMR on J with sqrt(lam D) below it."""
    scale = None if damping.diagonal is None else damping.diagonal.to(right).rsqrt()

    def scaled(vector: Tensor) -> Tensor:
        return vector if scale is None else scale * vector

    report = linear_solvers.lsmr(
        lambda vector: problem.jacobian.times(scaled(vector)),
        lambda vector: scaled(problem.jacobian.transposed(vector)),
        right,
        torch.as_tensor(damping.value, dtype=right.dtype, device=right.device).sqrt(),
        tolerance=_tolerance(way, right),
        max_steps=way.max_steps,
    )
    return Solved(scaled(report.x), _is_broken(problem), _progress(way, report))


_SOLVES: dict[str, Callable[[Chosen, CurvatureProblem, Damping, Tensor], Solved]] = {
    "qr": _by_qr,
    "dense": _by_cholesky,
    "kernel": _by_kernel,
    "cg": _by_cg,
    "lsmr": _by_lsmr,
}


def _tolerance(way: Chosen, like: Tensor) -> float:
    if way.tolerance is not None:
        return way.tolerance
    return linear_solvers.default_tolerance(like.dtype)


def widened(rows: Tensor, size: int) -> Tensor:
    """Return J in float64, unless the matrix that follows is large, or the device has none."""
    is_small = size <= MOST_IN_FLOAT64 and rows.device.type != "mps"
    return rows.to(torch.float64) if is_small else rows


def _progress(way: Chosen, report: linear_solvers.Report) -> dict[str, Tensor]:
    """Return how far an iteration came."""
    return {
        "products": report.steps,
        "max_steps": torch.tensor(way.max_steps),
        "relative_residual": report.relative,
    }


def _condition(diagonal: Tensor) -> dict[str, Tensor]:
    """Return an estimate of the condition of a triangular factor."""
    sizes = diagonal.abs()
    return {"condition": sizes.amax() / sizes.amin()}


def _is_broken(problem: CurvatureProblem) -> Tensor:
    """Whether residuals or their Jacobian are not finite: iterations end at once then, at a step of 0."""
    return ~problem.gradient.isfinite().all()


def _no(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.bool, device=like.device)


def check_definite(
    way: Chosen, problem: CurvatureProblem, solution: Solved, damping: Damping
) -> None:
    """Raise an error for a matrix without a factor, if the host can read that and the matrix is finite.

    Raises:
        RuntimeError: If the matrix is not positive definite to working precision.
    """
    failed = solution.failed
    if not _torch.readable(failed) or not bool(failed):
        return
    if bool(_is_broken(problem)):
        return
    raise RuntimeError(
        f"{way.who}: the matrix of solve={way.name!r} is not positive definite to working precision with damping "
        f"{float(damping.value):.1e}; raise damping, use solve='qr' (residuals), compute in float64, or check that "
        "loss_of_outputs is convex"
    )


def direction_of(
    ctx: Any,
    problem: CurvatureProblem,
    solve: str,
    damping: Any,
    scaled: bool,
    max_steps: int,
    tolerance: float | None,
) -> Tensor:
    """Return (J^T H J + lam D)^-1 g, NaN where the matrix has no factor and the host cannot read that.

    Args:
        ctx: The context of the link.
        problem: The loss.
        solve: How to solve.
        damping: lam.
        scaled: Whether D is the diagonal of J^T H J; else it is the identity.
        max_steps, tolerance: Of "cg" and "lsmr".

    Raises:
        RuntimeError: If the matrix has no factor.
    """
    is_damped = not Damping(damping).is_off
    way = chosen(problem, solve, is_damped, max_steps, tolerance)
    damped = Damping(damping, problem.diagonal if scaled else None)
    return _reported(ctx, way, problem, solved(way, problem, damped), damped)


def _reported(
    ctx: Any, way: Chosen, problem: CurvatureProblem, solution: Solved, damping: Damping
) -> Tensor:
    """Check and report a solution, and return its direction, NaN where it failed and the host cannot read that."""
    check_definite(way, problem, solution, damping)
    ctx.report(way, solution.measured)
    return torch.where(solution.failed, torch.nan, solution.direction)


def averaged(
    ctx: Any,
    problem: CurvatureProblem,
    before: Tree,
    decay: Any,
    damping: Any,
    scaled: bool,
) -> tuple[Tensor, Tree]:
    """Return (A + lam D)^-1 g for an average A of J^T H J, and the average before its correction, by leaf.

    Args:
        ctx: The context of the link.
        problem: The loss.
        before: The rows of the old average that belong to each leaf.
        decay: The weight of the old average.
        damping: lam.
        scaled: Whether D is the diagonal of A; else it is the identity.

    Raises:
        ValueError: If the average belongs to other leaves.
        RuntimeError: If the matrix has no factor.
    """
    way = chosen(problem, "dense")
    rows = widened(problem.jacobian.rows, way.columns)
    for name, of_leaf in before.items():
        if of_leaf.shape[1] != way.columns:
            raise ValueError(
                f"{problem.who}: decay averages one matrix for all parameters, but that of leaf {name!r} is for "
                f"{of_leaf.shape[1]} entries of {way.columns}; pass the parameters as one group, none of them frozen "
                "for a while"
            )
    old = torch.cat([before[name] for name in problem.names]).to(rows)
    new = decay * old + (1 - decay) * (rows.mT @ problem.weighted_rows.to(rows))
    matrix = new / ctx.bias_correction(decay).to(new)
    diagonal = matrix.diagonal()
    filled = torch.where(diagonal == 0, 1.0, diagonal) if scaled else None
    damped, gradient = Damping(damping, filled), problem.gradient
    solution = _damped(matrix, damped, gradient.to(matrix), gradient.dtype)
    direction = _reported(ctx, way, problem, solution, damped)
    rows_of_leaves = new.split(problem.joint.sizes)
    return direction, dict(zip(problem.names, rows_of_leaves, strict=True))
