"""Dogleg: the Gauss-Newton step inside a region of trust, bent towards the steepest descent where it is too long."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import Positive, Static
from gradtx.base.exact import exact
from gradtx.curvature.problem import problem_of
from gradtx.curvature.solves import Damping, chosen, solved
from gradtx.curvature.terms import Reduction, Terms, Weights
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
    r"""Take the Gauss-Newton step if it is short enough, else a step towards it: Powell's dogleg in a region of trust.

    With $N = -J^+ r$, $g = J^\top r$ and $C = -g \lVert g \rVert^2 / \lVert J g \rVert^2$ and the radius $R$, the step
    $h$ is $N$ if $\lVert N \rVert \le R$, $-R g / \lVert g \rVert$ if $\lVert C \rVert \ge R$, else
    $C + t (N - C)$ with $\lVert h \rVert = R$. It is taken if the loss falls. With the ratio $\rho$ of its decrease to
    the predicted one, $-g^\top h - \lVert J h \rVert^2 / 2$: $R \leftarrow \max(R, 3 \lVert h \rVert)$ if
    $\rho > 0.75$, $R / 2$ if $\rho < 0.25$. It owns the rate, and takes `residual_fn` as `scale_by_gauss_newton`.

    Args:
        radius: The first radius > 0, in the units of the parameters.
        reduction: "sum" or "mean", of the squares of each term.
        weights: The weight of each term, a dict of numbers by name, if `residual_fn` returns a dict; None for 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `radius`, 0-d.

    Raises:
        TypeError, ValueError, RuntimeError: As `scale_by_gauss_newton`; also if there are more parameters than
            residuals.

    Example:
        >>> tx = gradtx.dogleg(radius=0.5)
        >>> params = {"x": torch.tensor([4.0])}
        >>> residual_fn = lambda p: p["x"] - 1
        >>> updates, _ = tx.update(params, tx.init(params), params, residual_fn=residual_fn)
        >>> updates["x"]  # 3 would be the minimum
        tensor([-0.5000])

    Source: Powell 1970; Madsen, Nielsen and Tingleff 2004, algorithm 3.21. Departures: none.
    """
    terms = Terms("dogleg", reduction, weights)

    def init(params):
        device = next(iter(params.values())).device
        return {"radius": exact(radius, device).clone()}

    def update(updates, state, params, ctx):
        problem = problem_of(ctx, params, terms)
        ctx.tell_loss(problem)
        m, n = problem.jacobian.size
        if n > m:
            raise ValueError(
                f"dogleg: needs at least as many residuals as parameters, got {m} for {n}; use levenberg_marquardt"
            )
        R = state["radius"]
        way = chosen(problem, "qr", is_damped=False)
        newton = -solved(way, problem, Damping(0.0)).direction
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
    r"""Dogleg: least squares with steps of a bounded length, of Gauss-Newton inside the bound.

    The rule is in `scale_by_dogleg`, which is all of it.

    When to use: small fits where a length of steps is easier to choose than a damping, or where Gauss-Newton works
    near the minimum and needs a guard far from it.

    Args:
        radius: The first radius > 0, in the units of the parameters.
        reduction: "sum" or "mean".
        weights: The weight of each term by name.

    Returns:
        A transformation whose updates are added to the parameters. State: `radius`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = gradtx.optim.Dogleg([weight])
        >>> for _ in range(6):
        ...     loss = optimizer.step(lambda: weight**2 - 9)
        >>> weight.data
        tensor([3.])

    Source: as `scale_by_dogleg`. Departures: none.
    """
    return scale_by_dogleg(**options)
