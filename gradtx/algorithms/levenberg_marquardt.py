"""Levenberg-Marquardt: Gauss-Newton steps whose damping follows how well they decrease the loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import Count, NonNegative, Positive, Scalar, Static
from gradtx.base.tree import map_tensors
from gradtx.curvature.problem import Problem, problem_of
from gradtx.curvature.solves import Damping, Solve, chosen, solved
from gradtx.curvature.terms import Reduction, Terms, Weights, checked_weights
from gradtx.curvature.trials import LEAST, MOST, Trial, dot, tried
from gradtx.rules import alias, whole_tree

__all__ = ["levenberg_marquardt", "scale_by_levenberg_marquardt"]

# The factors after a failure and after a success, by rule.
FACTORS = {"marquardt": (10.0, 0.1), "thresholds": (2.0, 1 / 3)}


@whole_tree(
    needs="params",
    extras={"residual_fn": "function"},
    makes_gradient=True,
    owns_lr=True,
    sign="flips",
    closure="residual_fn",
)
def scale_by_levenberg_marquardt(
    damping: Positive = 1e-3,
    rule: Literal["nielsen", "marquardt", "thresholds"] = "nielsen",
    scaling: Literal["identity", "diagonal", "running"] = "identity",
    solve: Static[Solve] = "auto",
    relative: bool = True,
    geodesic: Positive | None = None,
    accept: Scalar = 0.0,
    low: NonNegative = 0.25,
    high: NonNegative = 0.75,
    up: Positive | None = None,
    down: Positive | None = None,
    reduction: Static[Reduction] = "sum",
    weights: Static[Weights | None] = None,
    max_steps: Static[Count] = 100,
    tolerance: Static[float | None] = None,
):
    checked_weights("levenberg_marquardt", weights)
    terms = Terms("levenberg_marquardt", reduction, weights)
    default_up, default_down = FACTORS.get(rule, (2.0, 1 / 3))
    bounds: Any = accept, low, high
    factors: Any = (
        default_up if up is None else up,
        default_down if down is None else down,
    )

    def init(params):
        device = next(iter(params.values())).device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        state = {"damping": zero, "growth": zero + 2.0}
        if scaling == "running":
            state["diagonal"] = map_tensors(torch.zeros_like, params)
        return state

    def update(updates, state, params, ctx):
        problem = problem_of(ctx, params, terms)
        ctx.tell_loss(problem)
        diagonal = _diagonal(problem, state)
        mu = state["damping"]
        mu = torch.where(mu == 0, _first(problem), mu)
        damped = Damping(mu, diagonal)
        way = chosen(problem, solve, damped, max_steps, tolerance)
        solution = solved(way, problem, damped)
        h = -solution.direction
        weight = 1.0 if diagonal is None else diagonal
        predicted = dot(h, mu * weight * h - problem.gradient) / 2
        step, refused = h, solution.failed
        if geodesic is not None:
            bend = solved(way, problem, damped, problem.jacobian.second(h)).direction
            refused = refused | (bend.norm() > geodesic * h.norm())
            step = h - bend / 2
        trial = tried(problem, step, predicted, refused, bounds[0])
        new_mu, growth = _adapted(mu, state["growth"], trial)
        new_state = {"damping": new_mu, "growth": growth}
        if scaling == "running":
            new_state["diagonal"] = problem.tree(diagonal)
        report = {"damping": mu, **trial.report(), **solution.measured}
        ctx.report(way, report)
        return problem.tree(trial.update), new_state, problem.tree(problem.gradient)

    def _diagonal(problem: Problem, state) -> Tensor | None:
        if scaling == "identity":
            return None
        if scaling == "diagonal":
            return problem.diagonal
        return torch.maximum(problem.vector(state["diagonal"]), problem.diagonal)

    def _first(problem: Problem) -> Tensor:
        """The first damping; 0, as before any step, if residuals are not finite."""
        number = torch.as_tensor(damping, dtype=torch.float64)
        if not (relative and scaling == "identity"):
            return number
        largest = problem.diagonal_of_curvature.amax().to(torch.float64)
        first = number * torch.where(largest > 0, largest, 1.0)
        return torch.where(first.isfinite(), first, 0.0)

    def _adapted(mu: Tensor, growth: Tensor, trial: Trial) -> tuple[Tensor, Tensor]:
        """The damping of the next step; unchanged where there is nothing to gain."""
        gain, taken = trial.gain, trial.taken
        _, low, high = bounds
        up, down = factors
        if rule == "nielsen":
            shrunk: Any = mu * (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
            new_mu = torch.where(taken, shrunk, mu * growth)
            new_growth = torch.where(taken, 2.0, 2 * growth)
        elif rule == "marquardt":
            new_mu, new_growth = mu * torch.where(taken, down, up), growth
        else:
            fails = ~taken | (gain < low)
            factor = torch.where(fails, up, torch.where(gain > high, down, 1.0))
            new_mu, new_growth = mu * factor, growth
        bounded = torch.where(mu == 0, 0.0, new_mu.clamp(LEAST, MOST))
        new_growth = new_growth.clamp(max=MOST)
        return (
            torch.where(trial.idle, mu, bounded),
            torch.where(trial.idle, growth, new_growth),
        )

    return init, update


@alias
def levenberg_marquardt(**options: Annotated[Any, scale_by_levenberg_marquardt]):
    return scale_by_levenberg_marquardt(**options)
