"""Natural gradients: the gradient through the inverse of the Fisher matrix of the model's outputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import Count, NonNegative, Static
from gradtx.curvature.fisher import (
    Likelihood,
    SampledProblem,
    drawn_slopes,
    example_problem,
)
from gradtx.curvature.problem import OutputProblem, Problem, problem_of
from gradtx.curvature.solves import Damping, Solve, direction_of
from gradtx.curvature.terms import Terms
from gradtx.links.decay import with_decay
from gradtx.rules import alias, whole_tree
from gradtx.state.random import Stream

__all__ = ["natural_gradient", "scale_by_natural_gradient"]

WHO = "scale_by_natural_gradient"


def _extras(arguments):
    if arguments["fisher"] == "empirical":
        return {"grad_sample": "examples"}
    functions = {"outputs_fn": "function?", "loss_of_outputs": "function?"}
    if arguments["fisher"] == "sampled":
        return {**functions, "output_samples": "outputs?"}
    return {**functions, "residual_fn": "function?"}


@whole_tree(
    needs="params",
    extras=_extras,
    makes_gradient=True,
    closure=lambda arguments: "residual_fn" if arguments["fisher"] == "type2" else "",
)
def scale_by_natural_gradient(
    damping: NonNegative = 1e-3,
    fisher: Literal["type2", "sampled", "empirical"] = "type2",
    solve: Static[Solve] = "auto",
    likelihood: Likelihood | None = None,
    samples: Static[Count] = 1,
    seed: Static[int] = 0,
    max_steps: Static[Count] = 100,
    tolerance: Static[float | None] = None,
):
    terms = Terms(WHO)

    def init(params):
        if fisher != "sampled":
            return {}
        device = next(iter(params.values())).device
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return {"seed": zero + seed, "counter": zero}

    def update(updates, state, params, ctx):
        if fisher == "empirical":
            problem: Any = example_problem(WHO, ctx, params, ctx.grad_sample)
        elif fisher == "type2":
            problem = problem_of(ctx, params, terms, ("residual_fn", "outputs_fn"))
            ctx.tell_loss(problem)
        else:
            problem = problem_of(ctx, params, terms, ("outputs_fn",))
            ctx.tell_loss(problem)
            problem = _sampled(problem, ctx.output_samples, state)
        damped = Damping(damping)
        direction = direction_of(ctx, problem, solve, damped, max_steps, tolerance)
        new_state = dict(state)
        if fisher == "sampled":
            new_state["counter"] = state["counter"] + 1
        return problem.tree(direction), new_state, problem.tree(problem.gradient)

    def _sampled(problem: OutputProblem, slopes: Tensor | None, state) -> Problem:
        """Return the problem with the Fisher matrix of labels that the caller drew, or that are drawn here."""
        outputs = problem.jacobian.value.reshape(problem.shape)
        if slopes is None and likelihood is None:
            raise ValueError(
                f"{WHO}: fisher='sampled' needs labels; choose likelihood='categorical', 'gaussian' or 'bernoulli', or "
                "pass output_samples=..."
            )
        if slopes is None:
            assert likelihood is not None
            slopes = _drawn(outputs, likelihood, state)
        if slopes.shape[1:] != outputs.shape:
            raise ValueError(
                f"{WHO}: output_samples has shape {tuple(slopes.shape)}, needs that of the outputs, "
                f"{tuple(outputs.shape)}, behind a first dimension of draws"
            )
        flat = slopes.reshape(*slopes.shape[:2], -1)
        return SampledProblem.of(problem, flat.to(outputs))

    def _drawn(outputs: Tensor, likelihood: Likelihood, state) -> Tensor:
        draws: list[Tensor] = []
        for k in range(samples):
            counter = (state["counter"] + 1) * samples + k
            stream = Stream(state["seed"], counter, "outputs")
            draws.append(drawn_slopes(outputs, likelihood, stream))
        return torch.stack(draws)

    return init, update


@alias
def natural_gradient(
    lr=1.0, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_natural_gradient]
):
    return with_decay(scale_by_natural_gradient(**direction), weight_decay, True, lr)
