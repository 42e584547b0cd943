"""Levenberg-Marquardt: Gauss-Newton steps whose damping follows how well they decrease the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import Count, NonNegative, Positive, Scalar, Static
from gradtx.base.exact import exact
from gradtx.base.torch_names import readable
from gradtx.base.tree import map_tensors
from gradtx.curvature.problem import CurvatureProblem, problem_of
from gradtx.curvature.solves import Damping, Solve, chosen, solved
from gradtx.curvature.terms import Reduction, Terms, Weights
from gradtx.curvature.trials import LEAST, MOST, TriedStep, dot, tried
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
    r"""Take a damped Gauss-Newton step if it decreases the loss, and adapt the damping: one update is one trial.

    With residuals $r$, $J = \partial r / \partial p$, $g = J^\top r$ and $L = \lVert r \rVert^2 / 2$:
    $(J^\top J + \mu D) h = -g$ and $\rho = (L(p) - L(p + h)) / (h^\top (\mu D h - g) / 2)$. If $\rho$ exceeds
    `accept`, the update is $h$, else 0. Then, by `rule`:

    - "nielsen": after a success $\mu \leftarrow \mu \max(1/3, 1 - (2 \rho - 1)^3)$, $\nu = 2$; after a failure
      $\mu \leftarrow \nu \mu$, $\nu \leftarrow 2 \nu$.
    - "marquardt": $\mu$ times `down` (0.1) after a success, `up` (10) after a failure.
    - "thresholds": $\mu$ times `up` (2) after a failure or if $\rho$ is below `low`, `down` (1/3) if it is above
      `high`.

    Where nothing is left to gain (a predicted decrease below the rounding errors of the loss), nothing changes. It owns
    the rate: no rate, decay or clip may follow it. Pass `residual_fn` as for `scale_by_gauss_newton`; in an optimizer,
    `step(closure)` with a closure that returns residuals and does not call `backward()`. `step(closure, max_iter=k)`
    makes k trials, of which those behind a rejected one compute residuals only.

    Args:
        damping: The first $\mu > 0$; see `relative`.
        rule: "nielsen", "marquardt" or "thresholds".
        scaling: $D$: "identity"; "diagonal", that of $J^\top J$, with 1 in place of 0; "running", the largest of these
            so far, as in MINPACK, which suits parameters of different units.
        solve: How to solve the system; all give one answer. "qr": of $[J; \sqrt{\lambda D}]$, the most accurate, for
            residuals; "dense": Cholesky of the matrix; "kernel": in sample space, m x m, for more parameters than
            residuals; "cg" and "lsmr" (residuals): from products with $J$ and $J^\top$ alone. "auto" chooses by sizes;
            `optimizer.explain()` names the choice and its memory.
        relative: Whether the first $\mu$ is `damping` times the largest entry of the diagonal of $J^\top J$, if $D$ is
            the identity.
        geodesic: $\alpha > 0$ adds the geodesic acceleration $a / 2$ to the step, where
            $(J^\top J + \mu D) a = -J^\top \partial_h^2 r$, and refuses steps with
            $\lVert a \rVert > \alpha \lVert h \rVert$, as 0.75; None for none. It costs a second derivative along $h$.
        accept: The gain above which a step is taken.
        low: The gain below which "thresholds" raises the damping.
        high: The gain above which "thresholds" lowers it.
        up: The factor after a failure; None for the default of the rule.
        down: The factor after a success; None for the default of the rule.
        reduction: "sum" or "mean", of the squares of each term.
        weights: The weight of each term, a dict of numbers by name, if `residual_fn` returns a dict; None for 1.
        max_steps: The largest number of steps of "cg" and "lsmr", >= 1.
        tolerance: Where they stop: their residual relative to the right-hand side; None for a default of the dtype.

    Returns:
        A transformation whose updates are added to the parameters. State: `damping` ($\mu$, 0 before the first step)
        and `growth` ($\nu$), 0-d; with "running" `diagonal`, shaped as the parameter. Residuals that are not finite, at
        the parameters or at the trial, give the update 0 and more damping.

    Raises:
        TypeError, ValueError, RuntimeError: As `scale_by_gauss_newton`.

    Example:
        >>> def residual_fn(p):  # Rosenbrock's
        ...     x, y = p["x"]
        ...     return torch.stack([10 * (y - x**2), 1 - x])
        >>> tx = gradtx.levenberg_marquardt()
        >>> params = {"x": torch.tensor([-1.2, 1.0], dtype=torch.float64)}
        >>> state = tx.init(params)
        >>> for _ in range(20):
        ...     updates, state = tx.update(params, state, params, residual_fn=residual_fn)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["x"]
        tensor([1., 1.], dtype=torch.float64)

    Source: Levenberg 1944; Marquardt 1963; Nielsen 1999; Madsen, Nielsen and Tingleff 2004; geodesic: Transtrum and
    Sethna 2012, arXiv:1201.5885. Departures: none.
    """
    terms = Terms("levenberg_marquardt", reduction, weights)
    adaptation = Adaptation(rule, low, high, up, down)

    def init(params):
        device = next(iter(params.values())).device
        zero = exact(0.0, device)
        state = {"damping": zero, "growth": zero + 2.0}
        if scaling == "running":
            state["diagonal"] = map_tensors(torch.zeros_like, params)
        return state

    def update(updates, state, params, ctx):
        problem = problem_of(ctx, params, terms)
        ctx.tell_loss(problem)
        way = chosen(problem, solve, max_steps=max_steps, tolerance=tolerance)
        diagonal = _diagonal(problem, scaling, state)
        mu = state["damping"]
        if not (readable(mu) and mu.device.type == "cpu" and mu > 0):
            is_relative = relative and scaling == "identity"
            mu = torch.where(mu == 0, _first(problem, damping, is_relative), mu)
        damped = Damping(mu, diagonal)
        solution = solved(way, problem, damped)
        h = -solution.direction
        weight = 1.0 if diagonal is None else diagonal
        predicted = dot(h, mu * weight * h - problem.gradient) / 2
        step, refused = h, solution.failed
        if geodesic is not None:
            bend = solved(way, problem, damped, problem.jacobian.second(h)).direction
            refused = refused | (bend.norm() > geodesic * h.norm())
            step = h - bend / 2
        trial = tried(problem, step, predicted, refused, accept)
        new_mu, growth = adaptation.adapted(mu, state["growth"], trial)
        new_state = {"damping": new_mu, "growth": growth}
        if scaling == "running":
            new_state["diagonal"] = problem.tree(diagonal)
        ctx.report(way, {"damping": mu, **trial.report(), **solution.measured})
        return problem.tree(trial.update), new_state, problem.tree(problem.gradient)

    return init, update


@dataclass(frozen=True)
class Adaptation:
    """How the damping follows the gain ratio; `scale_by_levenberg_marquardt` documents the fields."""

    rule: str
    low: Any
    high: Any
    up: Any
    down: Any

    def adapted(
        self, mu: Tensor, growth: Tensor, trial: TriedStep
    ) -> tuple[Tensor, Tensor]:
        """Return the damping of the next step and its growth; both unchanged where there is nothing to gain."""
        new_mu, new_growth = self._after(mu, growth, trial)
        bounded = torch.where(mu == 0, 0.0, new_mu.clamp(LEAST, MOST))
        return (
            torch.where(trial.idle, mu, bounded),
            torch.where(trial.idle, growth, new_growth.clamp(max=MOST)),
        )

    def _after(
        self, mu: Tensor, growth: Tensor, trial: TriedStep
    ) -> tuple[Tensor, Tensor]:
        gain, taken = trial.gain, trial.taken
        if self.rule == "nielsen":
            shrunk = mu * (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
            new_mu = torch.where(taken, shrunk, mu * growth)
            return new_mu, torch.where(taken, 2.0, 2 * growth)
        default_up, default_down = FACTORS[self.rule]
        up = exact(default_up if self.up is None else self.up, mu.device)
        down = exact(default_down if self.down is None else self.down, mu.device)
        if self.rule == "marquardt":
            return mu * torch.where(taken, down, up), growth
        fails = ~taken | (gain < self.low)
        return mu * torch.where(
            fails, up, torch.where(gain > self.high, down, 1.0)
        ), growth


def _diagonal(problem: CurvatureProblem, scaling: str, state: Any) -> Tensor | None:
    """Return the diagonal of D; None for 1."""
    if scaling == "identity":
        return None
    if scaling == "diagonal":
        return problem.diagonal
    before, now = problem.vector(state["diagonal"]), problem.diagonal
    # Residuals that are not finite once do not stay in the maximum.
    return torch.maximum(before, torch.where(now.isfinite(), now, before))


def _first(problem: CurvatureProblem, damping: Any, is_relative: bool) -> Tensor:
    """Return the first damping; 0, as before any step, if residuals are not finite."""
    number = exact(damping, problem.gradient.device)
    if not is_relative:
        return number
    largest = problem.diagonal_of_curvature.amax().to(number)
    first = number * torch.where(largest > 0, largest, 1.0)
    return torch.where(first.isfinite(), first, 0.0)


@alias
def levenberg_marquardt(**options: Annotated[Any, scale_by_levenberg_marquardt]):
    r"""Levenberg-Marquardt: least squares with a damping that follows how well its steps decrease the loss.

    The rules are in `scale_by_levenberg_marquardt`, which is all of it.

    When to use: fits of a few up to some thousand parameters without noise in the loss. `curve_fit` and `least_squares`
    run it until it has converged. `scaling="running"` if parameters have different units.

    Args:
        damping: The first damping, > 0.
        rule: "nielsen", "marquardt" or "thresholds".
        scaling: "identity", "diagonal" or "running".
        solve: How to solve the system: "auto", "qr", "dense", "kernel", "cg" or "lsmr".
        relative: Whether the first damping is relative to the largest entry of the diagonal of $J^\top J$.
        geodesic: The bound of the geodesic acceleration; None for none.
        accept: The gain above which a step is taken.
        low: The gain below which "thresholds" raises the damping.
        high: The gain above which "thresholds" lowers it.
        up: The factor after a failure; None for the default of the rule.
        down: The factor after a success; None for the default of the rule.
        reduction: "sum" or "mean".
        weights: The weight of each term by name.
        max_steps: The largest number of steps of "cg" and "lsmr".
        tolerance: Where they stop.

    Returns:
        A transformation whose updates are added to the parameters. State: `damping`, `growth`; with "running"
        `diagonal`.

    Example:
        >>> x = torch.linspace(0, 3, 20)
        >>> y = 2 * torch.exp(-1.5 * x)
        >>> a, k = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
        >>> optimizer = gradtx.optim.LevenbergMarquardt([a, k])
        >>> for _ in range(10):
        ...     loss = optimizer.step(lambda: a * torch.exp(-k * x) - y)
        >>> round(a.item(), 4), round(k.item(), 4)
        (2.0, 1.5)

    Source: as `scale_by_levenberg_marquardt`. Departures: none.
    """
    return scale_by_levenberg_marquardt(**options)
