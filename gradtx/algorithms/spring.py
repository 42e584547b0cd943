"""SPRING: steps in sample space with momentum, for wave functions and physics-informed fits."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import Decay, NonNegative, Positive, Static
from gradtx.base.tree import map_tensors
from gradtx.curvature.problem import EITHER, CurvatureProblem, problem_of
from gradtx.curvature.solves import cholesky_solved, chosen, widened
from gradtx.curvature.terms import Terms, Weights
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
    r"""Solve for the step in the space of samples, with momentum for what a batch does not determine: SPRING.

    With $O$ the Jacobian, one row for each of N samples, and errors $e$, both divided so that $O^\top e$ is the
    gradient, $\zeta = (O O^\top + \lambda I)^{-1} (e - \mu O \phi)$, then
    $\phi \leftarrow O^\top \zeta + \mu \phi$, and the update is $-\min(\eta, \sqrt{c} / \lVert \phi \rVert)\, \phi$.

    Pass `residual_fn` as for `scale_by_gauss_newton`, whose terms have `reduction="mean"`; or `outputs_fn` with
    `output_grads`, what multiplies the derivatives of each output, such as the local energies of walkers for
    $\log \psi$. With $\mu = 0$ and without a norm constraint, this is MinSR, ENGD-W and
    `gauss_newton(solve="kernel", reduction="mean")`. It owns the rate.

    Args:
        lr: $\eta$ in [0, inf). The gradient of an energy has a factor of 2, which the rate absorbs.
        damping: $\lambda > 0$.
        mu: $\mu$ in [0, 1).
        norm_constraint: $c > 0$, the largest square of the norm of a step; None for no bound.
        centered: Whether the means over samples of $O$ and $e$ are subtracted, as for wave functions that are not
            normalized.
        weights: The weight of each term, a dict of numbers by name, if `residual_fn` returns a dict; None for 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `previous` ($\phi$), shaped as the
        parameter.

    Raises:
        TypeError, ValueError, RuntimeError: As `scale_by_gauss_newton`; also if `output_grads` is missing or does not
            fit the outputs.

    Example:
        >>> params = {"w": torch.tensor([1.0, 0.0])}
        >>> tx = gradtx.spring(lr=1.0, damping=1e-6, mu=0.0, norm_constraint=None)
        >>> updates, _ = tx.update(
        ...     params, tx.init(params), params, residual_fn=lambda p: p["w"].sum()[None] - 3
        ... )
        >>> updates["w"]  # the shortest step to a sum of 3
        tensor([1.0000, 1.0000])

    Source: Goldshlager, Abrahamsen and Lin 2024, arXiv:2401.10190; Chen and Heyl 2023, arXiv:2302.01941; Rende et al.
    2023, arXiv:2310.05715. Departures: none.
    """
    terms = Terms(WHO, "mean", weights)

    def init(params):
        return {"previous": map_tensors(torch.zeros_like, params)}

    def update(updates, state, params, ctx):
        problem = problem_of(ctx, params, terms, EITHER, has_loss=False)
        ctx.report(chosen(problem, "kernel", takes=("kernel",)), {})
        rows, errors = _samples(problem, ctx, centered)
        before = problem.vector(state["previous"])
        phi = _moved(rows, errors, before, damping, mu, centered)
        norm = phi.norm()
        rate = torch.as_tensor(lr, dtype=phi.dtype, device=phi.device)
        if norm_constraint is not None:
            bound = torch.as_tensor(norm_constraint, dtype=phi.dtype).sqrt()
            shortened = torch.minimum(rate, quotient(bound.to(phi.device), norm))
            rate = torch.where(norm > 0, shortened, rate)
        gradient = problem.tree((rows.mT @ errors).to(phi))
        return problem.tree(-rate * phi), {"previous": problem.tree(phi)}, gradient

    return init, update


def _samples(
    problem: CurvatureProblem, ctx: Any, centered: bool
) -> tuple[Tensor, Tensor]:
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
    rows = widened(rows, len(rows))
    return rows, errors.to(rows)


def _checked_grads(problem: CurvatureProblem, output_grads: Tensor | None) -> Tensor:
    if output_grads is None:
        raise ValueError(
            f"{WHO} needs output_grads with outputs_fn: what multiplies the derivatives of each output, such as local "
            "energies"
        )
    if output_grads.numel() != len(problem.jacobian.value):
        raise ValueError(
            f"{WHO}: output_grads has {output_grads.numel()} entries, but outputs_fn returns "
            f"{len(problem.jacobian.value)} outputs"
        )
    return output_grads.reshape(-1).to(problem.jacobian.value)


def _moved(
    rows: Tensor, errors: Tensor, before: Tensor, damping: Any, mu: Any, centered: bool
) -> Tensor:
    """Return phi = O^T (O O^T + lam)^-1 (e - mu O phi) + mu phi."""
    phi = before.to(rows)
    kernel = rows @ rows.mT
    if centered:  # its null vector, on which the right-hand side has no part
        kernel = kernel + 1 / len(rows)
    unit = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    number = torch.as_tensor(damping, dtype=rows.dtype, device=rows.device)
    zeta = _positive_solved(kernel, number, unit, errors - mu * (rows @ phi))
    return (rows.mT @ zeta + mu * phi).to(before)


def _positive_solved(
    kernel: Tensor, damping: Tensor, unit: Tensor, right: Tensor
) -> Tensor:
    """Solve with a kernel plus damping: by Cholesky in float64, else by its eigenvalues, none of which is below 0."""
    if kernel.dtype == torch.float64:
        return cholesky_solved(kernel + damping * unit, right)[0]
    values, vectors = torch.linalg.eigh(kernel)
    return vectors @ ((vectors.mT @ right) / (values.clamp(min=0.0) + damping))


@alias
def spring(**options: Annotated[Any, scale_by_spring]):
    r"""SPRING: natural gradients in sample space with momentum, for wave functions and physics-informed fits.

    The rule is in `scale_by_spring`, which is all of it.

    When to use: variational Monte Carlo, with fewer samples than parameters. For a physics-informed network, use a
    damping near 1e-8, `norm_constraint=None`, and a search of the length, as the how-to on least squares shows: the
    defaults, those of the paper for wave functions, make hardly any progress there.

    Args:
        lr: $\eta$ in [0, inf).
        damping: $\lambda > 0$.
        mu: $\mu$ in [0, 1), the weight of the last step.
        norm_constraint: The largest square of the norm of a step, > 0; None for no bound.
        centered: Whether the means over samples are subtracted.
        weights: The weight of each term by name.

    Returns:
        A transformation whose updates are added to the parameters. State: `previous`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = gradtx.optim.Spring([weight], lr=0.5, mu=0.5, norm_constraint=None)
        >>> for _ in range(20):
        ...     loss = optimizer.step(lambda: weight**2 - 9)
        >>> weight.data
        tensor([3.0...])

    Source: as `scale_by_spring`. Departures: none.
    """
    return scale_by_spring(**options)
