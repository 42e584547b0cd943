"""Hessian-free optimization: Gauss-Newton steps from a truncated conjugate gradient, with adaptive damping."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from gradtx.arguments import Count, Fraction, NonNegative, Positive, Static
from gradtx.base import torch_names as _torch
from gradtx.base.exact import exact
from gradtx.base.tree import map_tensors
from gradtx.curvature.problem import EITHER, EXTRAS, CurvatureProblem, problem_of
from gradtx.curvature.solves import chosen
from gradtx.curvature.terms import Reduction, Terms, Weights
from gradtx.curvature.trials import LEAST, MOST, dot
from gradtx.maths.linear_solvers import ratio
from gradtx.rules import alias, whole_tree

__all__ = ["hessian_free", "scale_by_hessian_free"]

WHO = "scale_by_hessian_free"
# Martens 2010: the decrease of the model over the last tenth of the steps, at least 10, must be so large for each.
PROGRESS, SHORTEST = 5e-4, 10


class Inner(NamedTuple):
    """The result of the inner iteration: x, the number of steps, and the model's value there."""

    solution: Tensor
    steps: Tensor
    model: Tensor


@whole_tree(
    needs="params",
    extras=EXTRAS,
    makes_gradient=True,
    owns_lr=True,
    sign="flips",
    closure="residual_fn",
)
def scale_by_hessian_free(
    lr: NonNegative = 1.0,
    damping: Positive = 1.0,
    max_steps: Static[Count] = 50,
    stop: Literal["martens", "never"] = "martens",
    warm_start: Fraction = 0.95,
    adapt: bool = True,
    reduction: Static[Reduction] = "sum",
    weights: Static[Weights | None] = None,
):
    r"""Minimize the damped quadratic model by conjugate gradients, from products with the curvature alone.

    Minimizes $q(x) = x^\top (G + \lambda I) x / 2 + g^\top x$ with $G = J^\top H J$ of `scale_by_gauss_newton` (or
    $J^\top J$), starting from `warm_start` times the last $x$; the update is $\eta x$. With `stop="martens"`, the
    iteration ends after step i if $q_i < 0$ and $(q_i - q_{i-k}) / q_i < 0.0005 k$ with
    $k = \max(10, \lceil i / 10 \rceil)$. With `adapt`, $\lambda$ is multiplied by 3/2 if the loss fell by less than
    a quarter of what the model without damping predicts, by 2/3 if it fell by more than three quarters.

    What to pass is that of `scale_by_gauss_newton`. No matrix is stored: a step of the iteration costs a product with
    $J$ and one with its transpose. It owns the rate.

    Args:
        lr: $\eta$ in [0, inf).
        damping: $\lambda > 0$, or its first value.
        max_steps: The largest number of steps of the iteration, >= 1.
        stop: "martens", or "never" for `max_steps`.
        warm_start: In [0, 1].
        adapt: Whether the damping adapts.
        reduction: "sum" or "mean", of the squares of each term.
        weights: The weight of each term, a dict of numbers by name, if `residual_fn` returns a dict; None for 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `solution` ($x$), shaped as the parameter;
        with `adapt` `damping`, 0-d.

    Raises:
        TypeError, ValueError, RuntimeError: As `scale_by_gauss_newton`.

    Example:
        >>> tx = gradtx.hessian_free(damping=1e-6, adapt=False)
        >>> params = {"x": torch.tensor([4.0, 2.0])}
        >>> residual_fn = lambda p: torch.tensor([1.0, 3.0]) * p["x"]
        >>> updates, _ = tx.update(params, tx.init(params), params, residual_fn=residual_fn)
        >>> updates["x"]
        tensor([-4.0000, -2.0000])

    Source: Martens 2010, "Deep learning via Hessian-free optimization". Departures: no backtracking over iterates and
    no preconditioner.
    """
    terms = Terms(WHO, reduction, weights)

    def init(params):
        device = next(iter(params.values())).device
        state = {"solution": map_tensors(torch.zeros_like, params)}
        if adapt:
            state["damping"] = exact(damping, device).clone()
        return state

    def update(updates, state, params, ctx):
        problem = problem_of(ctx, params, terms, EITHER)
        ctx.tell_loss(problem)
        lam: Any = state["damping"] if adapt else damping
        way = chosen(problem, "cg", max_steps=max_steps, takes=("cg",))
        start = warm_start * problem.vector(state["solution"])
        inner = _minimized(problem, lam, start, max_steps, stop == "martens")
        x = inner.solution
        new_state = {"solution": problem.tree(x)}
        report = {"damping": torch.as_tensor(lam), "products": inner.steps}
        if adapt:
            # The model without damping.
            bend = dot(x, problem.curvature_times(x))
            predicted = dot(problem.gradient, x) + bend / 2
            gain = _gain(problem, x, predicted)
            lowered = torch.where(gain > 0.75, lam * (2 / 3), lam)
            adapted = torch.where(gain < 0.25, lam * 1.5, lowered)
            new_state["damping"] = adapted.clamp(LEAST, MOST)
            report["gain"] = gain
        ctx.report(way, report)
        rate = torch.as_tensor(lr, dtype=x.dtype, device=x.device)
        return problem.tree(rate * x), new_state, problem.tree(problem.gradient)

    return init, update


def _gain(problem: CurvatureProblem, x: Tensor, predicted: Tensor) -> Tensor:
    """Return the change of the loss over the predicted one; -inf where the loss is not finite."""
    change = problem.loss_after(x) - problem.loss
    gain = change / torch.where(predicted < 0, predicted, -1.0)
    return torch.where(change.isfinite(), gain, -torch.inf)


def _minimized(
    problem: CurvatureProblem, damping: Any, start: Tensor, max_steps: int, stops: bool
) -> Inner:
    """Minimize q(x) = x^T (G + lam) x / 2 + g^T x by conjugate gradients, each member of a `vmap` until it stops."""
    g = problem.gradient
    lam = torch.as_tensor(damping, dtype=g.dtype, device=g.device)

    def matvec(vector: Tensor) -> Tensor:
        return problem.curvature_times(vector) + lam * vector

    x, r = start, matvec(start) + g  # the gradient of q
    p, square = -r, dot(r, r)
    # Steps from a residual of rounding errors gain nothing, and their derivatives divide by squares of these.
    least = torch.finfo(g.dtype).eps ** 2 * dot(g, g)
    goes_on = square > least
    steps = torch.zeros_like(square, dtype=torch.int64)
    models: list[Tensor] = [(dot(x, r) + dot(x, g)) / 2]
    for i in range(1, max_steps + 1):
        if not _torch.any_member(goes_on):
            break
        product = matvec(p)
        curvature = dot(p, product)
        goes_on = goes_on & (curvature > 0)
        length = torch.where(goes_on, ratio(square, curvature), 0.0).to(x)
        x, r = x + length * p, r + length * product
        before, square = square, dot(r, r)
        p = torch.where(goes_on, -r + ratio(square, before).to(x) * p, p)
        steps = steps + goes_on
        models.append((dot(x, r) + dot(x, g)) / 2)
        goes_on = goes_on & (square > least)
        if stops:
            goes_on = goes_on & ~_has_converged(models, i)
    return Inner(x, steps, models[-1])


def _has_converged(models: list[Tensor], i: int) -> Tensor:
    """Whether the model has hardly fallen over the last steps."""
    k = max(SHORTEST, math.ceil(i / 10))
    now = models[i]
    if i <= k:
        return torch.zeros_like(now, dtype=torch.bool)
    falls = (now - models[i - k]) / torch.where(now < 0, now, -1.0)
    return (now < 0) & (falls < PROGRESS * k)


@alias
def hessian_free(**options: Annotated[Any, scale_by_hessian_free]):
    r"""Hessian-free optimization: Gauss-Newton steps for models whose matrices do not fit into memory.

    The rule is in `scale_by_hessian_free`, which is all of it.

    When to use: full batches or large ones, and more parameters and outputs than a factorization takes.

    Args:
        lr: $\eta$ in [0, inf).
        damping: $\lambda > 0$, or its first value.
        max_steps: The largest number of steps of the iteration, >= 1.
        stop: "martens" or "never".
        warm_start: The share of the last solution from which the iteration starts, in [0, 1].
        adapt: Whether the damping adapts.
        reduction: "sum" or "mean".
        weights: The weight of each term by name.

    Returns:
        A transformation whose updates are added to the parameters. State: `solution`; with `adapt` `damping`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = gradtx.optim.HessianFree([weight])
        >>> for _ in range(10):
        ...     loss = optimizer.step(lambda: weight**2 - 9)
        >>> weight.data
        tensor([3.])

    Source: as `scale_by_hessian_free`. Departures: as there.
    """
    return scale_by_hessian_free(**options)
