"""Gauss-Newton: the gradient of a sum of squares, or of a convex loss of outputs, through the model's curvature."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from gradtx.arguments import Count, NonNegative, Static
from gradtx.curvature.problem import problem_of
from gradtx.curvature.solves import Damping, Solve, direction_of
from gradtx.curvature.terms import Reduction, Terms, Weights, checked_weights
from gradtx.links.decay import with_decay
from gradtx.rules import alias, whole_tree

__all__ = ["gauss_newton", "scale_by_gauss_newton"]

EXTRAS = {
    "residual_fn": "function?",
    "outputs_fn": "function?",
    "loss_of_outputs": "function?",
}


@whole_tree(needs="params", extras=EXTRAS, makes_gradient=True, closure="residual_fn")
def scale_by_gauss_newton(
    damping: NonNegative = 1e-3,
    solve: Static[Solve] = "auto",
    scaling: Literal["identity", "diagonal"] = "identity",
    reduction: Static[Reduction] = "sum",
    weights: Static[Weights | None] = None,
    max_steps: Static[Count] = 100,
    tolerance: Static[float | None] = None,
):
    checked_weights("scale_by_gauss_newton", weights)
    terms = Terms("scale_by_gauss_newton", reduction, weights)

    def update(updates, state, params, ctx):
        problem = problem_of(ctx, params, terms, ("residual_fn", "outputs_fn"))
        ctx.tell_loss(problem)
        diagonal = problem.diagonal if scaling == "diagonal" else None
        damped = Damping(damping, diagonal)
        direction = direction_of(ctx, problem, solve, damped, max_steps, tolerance)
        return problem.tree(direction), state, problem.tree(problem.gradient)

    return update


@alias
def gauss_newton(
    lr=1.0, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_gauss_newton]
):
    return with_decay(scale_by_gauss_newton(**direction), weight_decay, True, lr)
