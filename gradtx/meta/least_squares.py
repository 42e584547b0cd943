"""Nonlinear least squares: the minimum of a sum of squares, with its errors and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.algorithms.levenberg_marquardt import levenberg_marquardt
from gradtx.arguments import is_number, tensors_in
from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.messages import describe, warn_user
from gradtx.curvature.terms import Terms
from gradtx.meta.fit import Fit, uncertainty
from gradtx.meta.implicit import custom_root
from gradtx.meta.search import Fitter
from gradtx.transform import GradientTransformation, check_transformation

__all__ = ["least_squares"]

# For more parameters, there is no covariance matrix, and gradients of the result are computed by "cg".
MOST_WITH_MATRIX = 1000


def least_squares(
    residual_fn: Callable[..., Any],
    start: Any,
    *args: Any,
    steps: int = 100,
    until: float | Callable[..., Any] | None = None,
    tx: GradientTransformation | None = None,
    tolerance: float | None = None,
    absolute_sigma: bool = False,
    progress: bool | None = None,
) -> Fit:
    r"""Minimize half the sum of squares of residuals, and return the minimum, which has a gradient by `args`.

    $$p^\star = \arg\min_p \tfrac12 \lVert r(p, \theta) \rVert^2, \qquad
    C = s^2 (J^\top J)^{-1}, \quad s^2 = \frac{\lVert r \rVert^2}{m - n}$$

    for $m$ residuals of $n$ parameters, with the Jacobian $J$ at the minimum. The gradient by `args` is that of the
    minimum, where $J^\top r = 0$, from one linear solve, as in `minimize`: the steps are not recorded.

    Pass tensors of float64: in float32, a fit has three to six digits. Under `torch.vmap`, each member stops on its
    own, and the loop ends with the last one.

    Args:
        residual_fn: `residual_fn(params, *args)`, a tensor of residuals, or a dict of such terms.
        start: The first parameters, a tree of tensors. The result has no gradient by them.
        *args: What the residuals need besides: data, weights, hyperparameters.
        steps: The largest number of steps.
        until: Where to stop, in place of `tolerance`: where the norm of $J^\top r$ is at most this number; or a
            function `(params, gradient, loss)` that returns a bool or a 0-d tensor of one.
        tx: The chain that steps, whose update takes `residual_fn`. By default `levenberg_marquardt(damping=1e-2,
            rule="thresholds", scaling="running")`, which ends at NIST's certified minimum for 50 of 54 starts, and says
            of the others that it has not converged (200 steps). Weigh terms in `residual_fn`, not in the chain.
        tolerance: The search has converged where the part of the residuals that the parameters can change, their
            projection on the columns of $J$, is at most this fraction of their norm; or where a Gauss-Newton step
            changes the norm of the parameters by at most this fraction; or where no step lowers the loss by more than
            its rounding errors. By default the root of the precision: 1.5e-8 in float64, 3.5e-4 in float32.
        absolute_sigma: Whether residuals have the variance 1, so that $s^2 = 1$ in the covariance.
        progress: Whether to show a progress bar (tqdm); None for "after two seconds, if stderr is a terminal and tqdm
            is installed".

    Returns:
        A `Fit`.

    Raises:
        TypeError: If `tx` is not a transformation, or if `residual_fn` is no function or returns no tensors.
        ValueError: If `steps`, `until` or `tolerance` is out of range, if `tx` takes no residuals, or if residuals are
            not real or not floating-point numbers; also the errors of `custom_root`.

    A warning says if it has not converged within `steps`.

    Example:
        >>> def residual_fn(p, target):  # Rosenbrock's function, whose minimum moves
        ...     return torch.stack([10 * (p["y"] - p["x"] ** 2), target - p["x"]])
        >>> start = {"x": torch.tensor(-1.2).double(), "y": torch.tensor(1.0).double()}
        >>> def y(target):
        ...     return gradtx.least_squares(residual_fn, start, target).params["y"]
        >>> target = torch.tensor(1.5).double()
        >>> y(target), torch.func.grad(y)(target)  # of target^2
        (tensor(2.2500, dtype=torch.float64), tensor(3.0000, dtype=torch.float64))

    Source: Levenberg 1944; Marquardt 1963; the test of convergence: Bates and Watts 1981, A relative offset
    orthogonality convergence criterion for nonlinear least squares, Technometrics 23(2).
    """
    if not callable(residual_fn):
        raise TypeError(
            f"least_squares: residual_fn must be a function of (params, *args), got {describe(residual_fn)}"
        )
    terms = Terms("least_squares")
    tensors, rebuild = _tree.split(args)

    def residuals(params: Any, tensors: Sequence[Tensor]) -> Tensor:
        return terms(residual_fn(params, *rebuild(tensors)))

    fitter = search_of(
        "least_squares", residuals, tx, steps, until, tolerance, progress
    )
    leaves, _ = _tree.flatten_real(start, "least_squares: start")
    if not leaves or None in leaves.values():
        raise ValueError("least_squares: start needs a tensor for each parameter")
    if torch.compiler.is_dynamo_compiling():
        return _untraced(fitter, start, tensors, None, absolute_sigma)
    return fitted(fitter, start, tensors, None, absolute_sigma)


def search_of(
    who: str,
    residuals: Callable[[Any, Sequence[Tensor]], Tensor],
    tx: GradientTransformation | None,
    steps: Any,
    until: Any,
    tolerance: Any,
    progress: bool | None,
) -> Fitter:
    """Return a fitter with these options, after checking them."""
    if tx is None:
        tx = levenberg_marquardt(damping=1e-2, rule="thresholds", scaling="running")
    check_transformation(who, "tx", tx)
    kinds, _ = tx._requirements()
    if "residual_fn" not in kinds:
        raise ValueError(
            f"{who}: {tx._name} takes no residuals; pass tx=gradtx.levenberg_marquardt(), gauss_newton() or dogleg(), "
            "or call minimize with the loss"
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"{who}: steps must be in [1, inf), got {describe(steps)}")
    is_bound = until is None or callable(until) or (is_number(until) and until >= 0)
    if not is_bound:
        raise ValueError(
            f"{who}: until must be a number in [0, inf) or a function of (params, gradient, loss), got "
            f"{describe(until)}"
        )
    if tolerance is not None and not (is_number(tolerance) and 0 < tolerance < 1):
        raise ValueError(
            f"{who}: tolerance must be in (0, 1), got {describe(tolerance)}"
        )
    return Fitter(who, residuals, tx, steps, until, tolerance, progress)


@_torch.not_traced
def _untraced(*arguments: Any) -> Fit:
    """Run outside of the compiled graph: a graph of all steps would take hours."""
    return fitted(*arguments)


def fitted(
    fitter: Fitter,
    start: Any,
    tensors: Sequence[Tensor],
    dims: Sequence[int | None] | None,
    absolute_sigma: bool,
) -> Fit:
    """Search for the minimum, and return the fit.

    Args:
        fitter: How to search.
        start: The first parameters.
        tensors: The tensors of the arguments.
        dims: For a batch, whose leaves of the start have a leading dimension: for each of the tensors, 0 if it has that
            dimension, else None.
        absolute_sigma: Whether residuals have the variance 1.
    """
    varying = {
        name: value
        for name, value in fitter.tx.hyperparams.items()
        if tensors_in(value)
    }
    solver = _solver(fitter, start, dims)
    params, (steps, converged) = solver(start, *tensors, hyperparams=varying)

    def details(params: Any, tensors: Sequence[Tensor]) -> Any:
        return uncertainty(
            lambda params: fitter.residuals(params, tensors), params, absolute_sigma
        )

    def only_residuals(params: Any, tensors: Sequence[Tensor]) -> Any:
        return None, None, fitter.residuals(params, tensors)

    is_large = _size(start, dims) > MOST_WITH_MATRIX
    function = only_residuals if is_large else details
    if dims is not None:
        function = torch.vmap(function, in_dims=(0, list(dims)))
    covariance, errors, residuals = function(params, list(tensors))
    _warn(fitter, steps, converged)
    return Fit(params, errors, covariance, residuals, steps, converged)


def _size(start: Any, dims: Any) -> int:
    """Return the number of parameters of a member."""
    entries = 0
    for leaf in _tree.tensors(start):
        entries += leaf.numel() if dims is None else leaf[0].numel()
    return entries


def _solver(fitter: Fitter, start: Any, dims: Sequence[int | None] | None) -> Any:
    """Return the function of `(start, *tensors)` that returns `(params, (steps, converged))`."""

    def optimality(params: Any, *tensors: Tensor) -> Any:
        if dims is None:
            return fitter.gradient(params, tensors)
        return torch.vmap(fitter.gradient, in_dims=(0, list(dims)))(
            params, list(tensors)
        )

    def solver(start: Any, *tensors: Tensor, hyperparams: Any = None) -> Any:
        options = dict(vars(fitter))
        if hyperparams:
            options["tx"] = fitter.tx.replace(**hyperparams)
        using = Fitter(**options)
        # torch.func.grad works inside, and nothing else is recorded.
        with torch.no_grad():
            if dims is None:
                ended = using.alone(start, tensors)
            elif _torch.inside_transform():
                alone = torch.vmap(using.alone, in_dims=(0, list(dims)))
                ended = alone(start, list(tensors))
            else:
                ended = using.together(start, tensors, dims)
        return ended.params, (ended.steps, ended.converged)

    solve = "cg" if _size(start, dims) > MOST_WITH_MATRIX else _by_blocks(start, dims)
    decorate = custom_root(optimality, solve=solve, has_aux=True, unconverged="ignore")
    solved: Any = decorate(solver)
    solved.implicit.who = fitter.who  # in messages
    return solved


def _by_blocks(start: Any, dims: Any) -> Callable[..., Tensor]:
    """Return a solver of systems whose matrix has one block for each member."""
    leaves = _tree.tensors(start)
    members = 1 if dims is None else len(leaves[0])
    sizes = [leaf.numel() // members for leaf in leaves]
    n = sum(sizes)

    def by_member(vector: Tensor) -> Tensor:
        parts = vector.split([members * size for size in sizes])
        shaped = [part.reshape(members, -1) for part in parts]
        return torch.cat(shaped, dim=1)

    def joined(matrix: Tensor) -> Tensor:
        parts = matrix.split(sizes, dim=1)
        return torch.cat([part.reshape(-1) for part in parts])

    def solve(matvec: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
        units = torch.eye(n, dtype=b.dtype, device=b.device)

        def column(unit: Tensor) -> Tensor:
            return by_member(matvec(joined(unit.expand(members, n))))

        blocks = torch.vmap(column, out_dims=2)(units)
        right = by_member(b)[:, :, None]
        # No error for a member without a minimum: its gradients are not finite.
        solution, _ = torch.linalg.solve_ex(blocks, right)
        return joined(solution[:, :, 0])

    return solve


def _warn(fitter: Fitter, steps: Tensor, converged: Tensor) -> None:
    """Warn once of fits that have not converged."""
    if not _torch.readable(converged):
        return
    count = converged.numel()
    left = count - int(converged.sum())
    if left:
        which = "the fit has" if count == 1 else f"{left} of {count} fits have"
        worst = steps[~converged].max().item()
        remedy = (
            f"within {fitter.steps} steps; see `converged`. Take more steps=, start nearer, or drop parameters that "
            "the data do not determine"
            if worst
            else "since residuals are not finite at the start; see `converged`. Start elsewhere, or mend the data"
        )
        warn_user(f"{fitter.who}: {which} not converged {remedy}")
