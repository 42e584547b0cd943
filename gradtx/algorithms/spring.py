"""SPRING: steps in sample space with momentum, for wave functions and physics-informed fits."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import Decay, NonNegative, Positive, Static
from gradtx.base.tree import map_tensors
from gradtx.curvature.problem import Problem, problem_of
from gradtx.curvature.solves import Damping, chosen, widened
from gradtx.curvature.terms import Terms, Weights, checked_weights
from gradtx.maths.entries import quotient
from gradtx.rules import alias, whole_tree

__all__ = ["scale_by_spring", "spring"]

WHO = "scale_by_spring"


@whole_tree(
    needs="params",
    extras={
        "residual_fn": "function?",
        "outputs_fn": "function?",
        "output_grads": "outputs?",
    },
    makes_gradient=True,
    owns_lr=True,
    sign="flips",
    closure="residual_fn",
)
def scale_by_spring(
    lr: NonNegative = 1e-3,
    damping: Positive = 1e-3,
    mu: Decay = 0.99,
    norm_constraint: Positive | None = 1e-3,
    centered: bool = False,
    weights: Static[Weights | None] = None,
):
    checked_weights(WHO, weights)
    terms = Terms(WHO, "mean", weights)

    def init(params):
        return {"previous": map_tensors(torch.zeros_like, params)}

    def update(updates, state, params, ctx):
        takes = ("residual_fn", "outputs_fn")
        problem = problem_of(ctx, params, terms, takes, has_loss=False)
        way = chosen(problem, "kernel", Damping(damping), takes=("kernel",))
        ctx.report(way, {})
        rows, errors = _samples(problem, ctx)
        before = problem.vector(state["previous"])
        phi = _moved(rows, errors, before)
        norm = phi.norm()
        rate = torch.as_tensor(lr, dtype=phi.dtype, device=phi.device)
        if norm_constraint is not None:
            bound = torch.as_tensor(norm_constraint, dtype=phi.dtype).sqrt()
            rate = torch.where(
                norm > 0, torch.minimum(rate, quotient(bound, norm)), rate
            )
        gradient = problem.tree((rows.mT @ errors).to(phi))
        return problem.tree(-rate * phi), {"previous": problem.tree(phi)}, gradient

    def _samples(problem: Problem, ctx) -> tuple[Tensor, Tensor]:
        """Return O, one row for each sample, and e, both divided so that O^T e is the gradient."""
        rows, errors = problem.jacobian.rows, problem.jacobian.value
        if problem.extra == "residual_fn":
            ctx.tell_loss(problem)
        else:
            errors = _checked_grads(problem, ctx.output_grads)
            size = len(errors) ** 0.5
            rows, errors = rows / size, errors / size
        if centered:
            rows, errors = rows - rows.mean(0), errors - errors.mean()
        return widened(rows, len(rows)), errors

    def _checked_grads(problem: Problem, output_grads: Tensor | None) -> Tensor:
        if output_grads is None:
            raise ValueError(
                f"{WHO} needs output_grads with outputs_fn: what multiplies the derivatives of each output, such as "
                "local energies"
            )
        if output_grads.numel() != len(problem.jacobian.value):
            raise ValueError(
                f"{WHO}: output_grads has {output_grads.numel()} entries, but outputs_fn returns "
                f"{len(problem.jacobian.value)} outputs"
            )
        return output_grads.reshape(-1).to(problem.jacobian.value)

    def _moved(rows: Tensor, errors: Tensor, before: Tensor) -> Tensor:
        """Return phi = O^T (O O^T + lam)^-1 (e - mu O phi) + mu phi."""
        phi = before.to(rows)
        kernel = rows @ rows.mT
        if centered:  # its null vector, on which the right-hand side has no part
            kernel = kernel + 1 / len(rows)
        unit = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        number = torch.as_tensor(damping, dtype=rows.dtype, device=rows.device)
        right = errors.to(rows) - mu * (rows @ phi)
        zeta = _positive_solved(kernel, number, unit, right)
        return (rows.mT @ zeta + mu * phi).to(before)

    return init, update


def _positive_solved(
    kernel: Tensor, damping: Tensor, unit: Tensor, right: Tensor
) -> Tensor:
    """Solve with a kernel plus damping: by Cholesky in float64, else by its eigenvalues, none of which is below 0."""
    if kernel.dtype == torch.float64:
        factor, _ = torch.linalg.cholesky_ex(kernel + damping * unit)
        half = torch.linalg.solve_triangular(factor, right[:, None], upper=False)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True)[:, 0]
    values, vectors = torch.linalg.eigh(kernel)
    return vectors @ ((vectors.mT @ right) / (values.clamp(min=0.0) + damping))


@alias
def spring(**options: Annotated[Any, scale_by_spring]):
    return scale_by_spring(**options)
