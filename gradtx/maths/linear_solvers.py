"""Solve linear systems that are given as functions of vectors: CG, BiCGSTAB, GMRES, Neumann series, a dense matrix.

LSMR solves least-squares problems, from products with a rectangular matrix and with its transpose.

All of them take vectors without trees and run under `vmap`, where each member stops on its own and the loop ends with
the last one. A loop asks the host after each step whether to go on, so it waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch

Matvec: TypeAlias = Callable[[Tensor], Tensor]
# GMRES starts over after so many products, of which it keeps all vectors: SciPy's default.
RESTART = 20


class System(NamedTuple):
    """A linear system `A x = b`, and when to stop.

    Args:
        matvec: Returns `A v` for a vector `v`.
        b: The right-hand side, a vector.
        guess: Where the iteration starts; None is 0.
        precondition: Returns an approximation of the solution of `A x = r` for a vector `r`, linear in it.
        tolerance: The norm of `b - A x` divided by that of `b` at which to stop.
        max_steps: The largest number of products with `A`, as far as the method counts them.
    """

    matvec: Matvec
    b: Tensor
    guess: Tensor | None
    precondition: Matvec
    tolerance: float
    max_steps: int

    def bound(self) -> Tensor:
        return self.tolerance * norm(self.b)

    def start(self) -> tuple[Tensor, Tensor]:
        """Return the first iterate and its residual."""
        if self.guess is None:
            return torch.zeros_like(self.b), self.b
        return self.guess, self.b - self.matvec(self.guess)


Solver: TypeAlias = Callable[[System], Tensor]


class Report(NamedTuple):
    """What an iteration found, and how it ended.

    Args:
        x: The solution.
        steps: How many steps changed it: an integer without dimensions, under `vmap` one per member.
        relative: The residual after the last step, divided by the one of the solution 0. It follows from the
            recurrences, so rounding may leave the true one larger.
    """

    x: Tensor
    steps: Tensor
    relative: Tensor


def norm(vector: Tensor) -> Tensor:
    return vector.square().sum().sqrt()


def power_of_two_of(vector: Tensor) -> Tensor:
    """Return a power of two near the largest entry, by which products are exact; 1 if that is 0 or not finite."""
    size = vector.abs().amax() if len(vector) else vector.new_zeros(())
    is_regular = (size > 0) & size.isfinite()
    return torch.where(is_regular, size, 1.0).log2().floor().exp2()


def dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum()


def ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """Return a quotient of numbers, or 0 where the method has broken down."""
    is_zero = bottom == 0
    return torch.where(is_zero, 0.0, top / torch.where(is_zero, 1.0, bottom))


def cg(system: System) -> Tensor:
    """Conjugate gradients, for a symmetric positive definite matrix (Hestenes and Stiefel 1952).

    The iteration ends where a direction has a curvature that is not positive.
    """
    return cg_with_report(system).x


def cg_with_report(system: System) -> Report:
    """Return what `cg` finds, the number of its steps, and the norm of `b - A x` divided by that of `b`."""
    x, r = system.start()
    z = system.precondition(r)
    p, rz = z, dot(r, z)
    bound, goes_on = system.bound(), torch.ones_like(rz, dtype=torch.bool)
    steps = torch.zeros_like(rz, dtype=torch.int64)
    for _ in range(system.max_steps):
        goes_on = goes_on & (norm(r) > bound)
        if not _torch.any_member(goes_on):
            break
        product = system.matvec(p)
        curvature = dot(p, product)
        goes_on = goes_on & (curvature > 0)
        # Members that have ended keep their values: a step of length 0.
        length = torch.where(goes_on, ratio(rz, curvature), 0.0)
        x = x + length * p
        r = r - length * product
        z = system.precondition(r)
        rz_before, rz = rz, dot(r, z)
        p = torch.where(goes_on, z + ratio(rz, rz_before) * p, p)
        steps = steps + goes_on
    return Report(x, steps, _relative(norm(r), norm(system.b)))


def bicgstab(system: System) -> Tensor:
    """Stabilized biconjugate gradients, for any matrix (van der Vorst 1992); two products per step."""
    x, r = system.start()
    shadow, rho, p = r, dot(r, r), r
    bound, goes_on = system.bound(), torch.ones_like(rho, dtype=torch.bool)
    for _ in range((system.max_steps + 1) // 2):
        goes_on = goes_on & (norm(r) > bound) & (rho != 0)
        if not _torch.any_member(goes_on):
            break
        p_hat = system.precondition(p)
        v = system.matvec(p_hat)
        alpha = ratio(rho, dot(shadow, v))
        s = r - alpha * v
        s_hat = system.precondition(s)
        t = system.matvec(s_hat)
        omega = ratio(dot(t, s), dot(t, t))
        x = torch.where(goes_on, x + alpha * p_hat + omega * s_hat, x)
        r = torch.where(goes_on, s - omega * t, r)
        rho_before, rho = rho, torch.where(goes_on, dot(shadow, r), rho)
        beta = ratio(rho, rho_before) * ratio(alpha, omega)
        p = torch.where(goes_on, r + beta * (p - omega * v), p)
    return x


def gmres(system: System) -> Tensor:
    """Generalized minimal residuals, for any matrix (Saad and Schultz 1986), restarted after `RESTART` products."""
    x, r = system.start()
    bound = system.bound()
    length = min(RESTART, system.max_steps, len(system.b))
    for _ in range(0, system.max_steps, max(length, 1)):
        goes_on = norm(r) > bound
        if not _torch.any_member(goes_on):
            break
        correction = system.precondition(_krylov_correction(system, r, length))
        x = torch.where(goes_on, x + correction, x)
        r = system.b - system.matvec(x)
    return x


def _krylov_correction(system: System, r: Tensor, length: int) -> Tensor:
    """Return the correction in a Krylov space that leaves the smallest residual, before preconditioning."""
    size = norm(r)
    basis = [r * ratio(torch.ones_like(size), size)]
    columns: list[Tensor] = []
    for _ in range(length):
        vector = system.matvec(system.precondition(basis[-1]))
        stacked = torch.stack(basis)
        weights = stacked @ vector
        vector = vector - weights @ stacked
        # Once more: a single pass leaves rounding errors as large as the matrix is ill-conditioned.
        again = stacked @ vector
        vector = vector - again @ stacked
        height = norm(vector)
        # A vector of rounding errors only: the space holds the solution already.
        ends = height <= torch.finfo(height.dtype).eps * norm(weights)
        height = torch.where(ends, 0.0, height)
        basis.append(vector * ratio(torch.ones_like(height), height))
        below = weights.new_zeros(length - len(weights))
        columns.append(torch.cat([weights + again, height[None], below]))
    hessenberg = torch.stack(columns, dim=1)
    first = torch.cat([size[None], r.new_zeros(length)])
    shares = torch.linalg.pinv(hessenberg) @ first
    return shares @ torch.stack(basis[:-1])


def lsmr(
    matvec: Matvec,
    rmatvec: Matvec,
    b: Tensor,
    damp: float | Tensor = 0.0,
    *,
    tolerance: float,
    max_steps: int,
) -> Report:
    r"""LSMR, for least squares with any matrix: minimizes $|A x - b|^2 + d^2 |x|^2$ (Fong and Saunders 2011).

    Equals MINRES for the normal equations, but needs no product with $A^T A$, so that rounding errors grow less. Each
    step makes $|A^T (b - A x) - d^2 x|$ smaller; `relative` is this norm divided by $|A^T b|$. Without damping, a
    system with many solutions gets that of least norm.

    Args:
        matvec: Returns `A v` for a vector `v`.
        rmatvec: Returns `A^T u` for a vector `u`.
        b: The right-hand side, a vector.
        damp: The weight $d$, a number or a tensor without dimensions; its sign has no effect.
        tolerance: The value of `relative` at which to stop. Below the precision of the dtype, steps follow rounding
            errors, which grow without bound if the matrix is singular and there is no damping.
        max_steps: The largest number of steps, each a product with `A` and one with its transpose.
    """
    damp = torch.as_tensor(damp, dtype=b.dtype, device=b.device)
    beta, u = _unit(b)
    alpha, v = _unit(rmatvec(u))
    x, h, h_bar = torch.zeros_like(v), v, torch.zeros_like(v)
    # The names are the paper's, with `_bar` and `_hat` for its bars and hats.
    alpha_bar, rho, rho_bar, c_bar = alpha, *[torch.ones_like(alpha)] * 3
    s_bar, steps = torch.zeros_like(alpha), torch.zeros_like(alpha, dtype=torch.int64)
    # The paper's zeta, divided by its first value, which is the norm of `A^T b`: 1, or 0 if that is 0.
    first = alpha * beta
    zeta_bar = ratio(first, first)
    for _ in range(max_steps):
        goes_on = zeta_bar.abs() > tolerance
        if not _torch.any_member(goes_on):
            break
        # One more vector of each basis in which the matrix is bidiagonal.
        beta, u = _unit(matvec(v) - alpha * u)
        alpha, v = _unit(rmatvec(u) - beta * v)
        # One rotation removes the damping, one makes the bidiagonal matrix upper, and one does so to its transpose.
        alpha_hat = torch.hypot(alpha_bar, damp)
        rho_before, rho = rho, torch.hypot(alpha_hat, beta)
        theta = ratio(beta, rho) * alpha
        alpha_bar = ratio(alpha_hat, rho) * alpha
        theta_bar = s_bar * rho
        rho_bar_before, rho_bar = rho_bar, torch.hypot(c_bar * rho, theta)
        c_bar, s_bar = ratio(c_bar * rho, rho_bar), ratio(theta, rho_bar)
        zeta = c_bar * zeta_bar
        h_bar = h - ratio(theta_bar * rho, rho_before * rho_bar_before) * h_bar
        length = first * ratio(zeta, rho * rho_bar)
        h = v - ratio(theta, rho) * h
        # Members that have ended keep their values.
        x = torch.where(goes_on, x + length * h_bar, x)
        zeta_bar = torch.where(goes_on, -s_bar * zeta_bar, zeta_bar)
        steps = steps + goes_on
    return Report(x, steps, zeta_bar.abs())


def _unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norm of a vector, and the vector of length 1 in its direction; 0 of 0."""
    size = norm(vector)
    return size, ratio(vector, size)


def neumann(system: System) -> Tensor:
    r"""The series $\sum_k (I - M A)^k M b$, with $M$ the preconditioner: converges if $I - M A$ contracts."""
    x, r = system.start()
    bound = system.bound()
    for _ in range(system.max_steps):
        goes_on = (norm(r) > bound) & r.isfinite().all()
        if not _torch.any_member(goes_on):
            break
        x = torch.where(goes_on, x + system.precondition(r), x)
        r = system.b - system.matvec(x)
    return x


def dense(system: System) -> Tensor:
    """The matrix from products with all unit vectors, then LU; of least norm if the matrix is singular."""
    unit = torch.eye(len(system.b), dtype=system.b.dtype, device=system.b.device)
    matrix = torch.vmap(system.matvec)(unit).mT
    x = torch.linalg.solve_ex(matrix, system.b)[0]
    misses = ~(norm(matrix @ x - system.b) <= _slack(x) * norm(system.b))  # NaN too
    if not _torch.any_member(misses):
        return x
    return torch.where(misses, torch.linalg.pinv(matrix) @ system.b, x)


def _slack(x: Tensor) -> float:
    """Return a relative residual that only a nearly singular matrix leaves after LU."""
    return torch.finfo(x.dtype).eps ** 0.5


SOLVERS: dict[str, Solver] = {
    "cg": cg,
    "gmres": gmres,
    "bicgstab": bicgstab,
    "neumann": neumann,
    "dense": dense,
}
# The matrix is symmetric, so one product serves for it and for its transpose.
SYMMETRIC = ("cg",)


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the default tolerance: 4e-11 in float64, 2e-5 in float32, which well-conditioned systems reach."""
    return torch.finfo(dtype).eps ** (2 / 3)


def relative_residual(matvec: Matvec, b: Tensor, x: Tensor) -> Tensor:
    """Return the norm of `b - A x` divided by that of `b`; 0 if both are 0."""
    return _relative(norm(b - matvec(x)), norm(b))


def _relative(residual: Tensor, size: Tensor) -> Tensor:
    return torch.where(residual == 0, 0.0, residual / size)
