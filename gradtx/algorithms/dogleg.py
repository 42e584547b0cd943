"""Dogleg: the Gauss-Newton step inside a region of trust, bent towards the steepest descent where it is too long."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import Positive, Static
from gradtx.curvature.problem import problem_of
from gradtx.curvature.solves import Damping, chosen, solved
from gradtx.curvature.terms import Reduction, Terms, Weights, checked_weights
from gradtx.curvature.trials import dot, tried
from gradtx.maths.entries import quotient
from gradtx.rules import alias, whole_tree

__all__ = ["dogleg", "scale_by_dogleg"]


@whole_tree(
    needs="params",
    extras={"residual_fn": "function"},
    makes_gradient=True,
    owns_lr=True,
    sign="flips",
    closure="residual_fn",
)
def scale_by_dogleg(
    radius: Positive = 1.0,
    reduction: Static[Reduction] = "sum",
    weights: Static[Weights | None] = None,
):
    checked_weights("dogleg", weights)
    terms = Terms("dogleg", reduction, weights)

    def init(params):
        device = next(iter(params.values())).device
        first = torch.as_tensor(radius, dtype=torch.float64, device=device)
        return {"radius": first.clone()}

    def update(updates, state, params, ctx):
        problem = problem_of(ctx, params, terms)
        ctx.tell_loss(problem)
        m, n = problem.jacobian.size
        if n > m:
            raise ValueError(
                f"dogleg: needs at least as many residuals as parameters, got {m} for {n}; use levenberg_marquardt"
            )
        R = state["radius"]
        off = Damping(0.0)
        way = chosen(problem, "qr", off)
        newton = -solved(way, problem, off).direction
        step = _bent(newton, *_steepest(problem), R.to(newton))
        along = problem.jacobian.times(step)
        predicted = -dot(problem.gradient, step) - dot(along, along) / 2
        trial = tried(problem, step, predicted, torch.zeros_like(R, dtype=torch.bool))
        length = dot(step, step).sqrt()
        grown = torch.where(trial.gain > 0.75, torch.maximum(R, 3 * length), R)
        new_R = torch.where(trial.gain < 0.25, R / 2, grown)
        new_R = torch.where(trial.idle, R, new_R)
        ctx.report(way, {"radius": R, **trial.report()})
        updates = problem.tree(trial.update)
        return updates, {"radius": new_R}, problem.tree(problem.gradient)

    return init, update


def _steepest(problem):
    """Return the direction of steepest descent, of length 1, and the minimum of the model along it."""
    g = problem.gradient
    length = dot(g, g).sqrt().to(g)
    down = -quotient(g, length)
    along = problem.jacobian.times(down)
    return down, quotient(length, (along * along).sum())


def _bent(newton, down, reach, R):
    """Return the point of the dogleg's path that is as far as the radius allows: towards C = reach * down, then N."""
    C = reach * down
    way = newton - C
    # |C + t way| = R for t in [0, 1]
    a, b = (way * way).sum(), (C * way).sum()
    c = ((C * C).sum() - R * R).clamp(max=0.0)
    root = (b * b - a * c).clamp(min=0.0).sqrt()
    # The form without cancellation for the sign of b.
    t = torch.where(b > 0, quotient(-c, b + root), quotient(root - b, a))
    bent = torch.where(reach >= R, R * down, C + t * way)
    return torch.where(newton.norm() <= R, newton, bent)


@alias
def dogleg(**options: Annotated[Any, scale_by_dogleg]):
    return scale_by_dogleg(**options)
