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
from gradtx.curvature.problem import (
    EITHER,
    EXTRAS,
    CurvatureProblem,
    OutputProblem,
    problem_of,
)
from gradtx.curvature.solves import Solve, direction_of
from gradtx.curvature.terms import Terms
from gradtx.links.decay import with_decay
from gradtx.rules import alias, whole_tree
from gradtx.state.random import Stream

__all__ = ["natural_gradient", "scale_by_natural_gradient"]

WHO = "scale_by_natural_gradient"


def _extras(arguments):
    if arguments["fisher"] == "empirical":
        return {"grad_sample": "examples"}
    if arguments["fisher"] == "type2":
        return EXTRAS
    functions = {name: EXTRAS[name] for name in ("outputs_fn", "loss_of_outputs")}
    return {**functions, "output_samples": "outputs?"}


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
    r"""Multiply the gradient by the inverse of a Fisher matrix of the model: $u = (F + \lambda I)^{-1} g$.

    By `fisher`:

    - "type2": $F = J^\top H J$ of `scale_by_gauss_newton`. For losses that are negative log-likelihoods of exponential
      families in their natural parameters (mean squares, cross-entropy, Poisson), this is the true Fisher matrix.
    - "sampled": $F = \frac{1}{K N} \sum_{k, i} (J_i^\top s_{ki}) (J_i^\top s_{ki})^\top$, where $s_{ki}$ is the
      gradient of $-\log p(y \mid z_i)$ by the outputs $z_i$ for a label drawn from the model. Its mean over draws is
      the true Fisher matrix.
    - "empirical": $F = \frac1N \sum_i g_i g_i^\top$ with the gradients of examples, `grad_sample`. This is **no**
      approximation of the curvature far from the minimum (Kunstner et al. 2019).

    What to pass is that of `scale_by_gauss_newton`; for "sampled" outputs, and optionally `output_samples`, $s$ of
    shape [K, N, ...]; for "empirical" gradients of examples in place of gradients, as for
    `differentially_private_aggregate`.

    Args:
        damping: $\lambda \ge 0$.
        fisher: "type2", "sampled" or "empirical".
        solve: How to solve the system; all give one answer. "qr": of $[J; \sqrt{\lambda D}]$, the most accurate, for
            residuals; "dense": Cholesky of the matrix; "kernel": in sample space, m x m, for more parameters than
            residuals; "cg" and "lsmr" (residuals): from products with $J$ and $J^\top$ alone. "auto" chooses by sizes;
            `optimizer.explain()` names the choice and its memory.
        likelihood: For "sampled", what labels are drawn from: "categorical" (outputs are logits along the last
            dimension), "gaussian" (of variance 1) or "bernoulli" (outputs are logits); None if `output_samples` is
            passed.
        samples: The number of draws $K \ge 1$ of each label.
        seed: The seed of the draws.
        max_steps: The largest number of steps of "cg" and "lsmr", >= 1.
        tolerance: Where they stop: their residual relative to the right-hand side; None for a default of the dtype.

    Returns:
        A transformation with the shapes and dtypes of the parameters. State: with "sampled" `seed` and `counter`, 0-d.

    Raises:
        TypeError, ValueError, RuntimeError: As `scale_by_gauss_newton`; also if "sampled" has no labels to draw.

    Example:
        >>> tx = gradtx.scale_by_natural_gradient(damping=1e-6, fisher="empirical")
        >>> params = {"w": torch.zeros(2)}
        >>> examples = {"w": torch.tensor([[2.0, 0.0], [0.0, 4.0]])}
        >>> updates, _ = tx.update(examples, tx.init(params), params)
        >>> updates["w"]  # (1, 2) over (2, 8)
        tensor([0.5000, 0.2500])

    Source: Amari 1998; Martens 2020, arXiv:1412.1193; Kunstner et al. 2019, arXiv:1905.12558. Departures: none.
    """
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
            problem = problem_of(ctx, params, terms, EITHER)
            ctx.tell_loss(problem)
        else:
            problem = problem_of(ctx, params, terms, ("outputs_fn",))
            ctx.tell_loss(problem)
            problem = _sampled(problem, ctx.output_samples, state)
        direction = direction_of(
            ctx, problem, solve, damping, False, max_steps, tolerance
        )
        new_state = dict(state)
        if fisher == "sampled":
            new_state["counter"] = state["counter"] + 1
        return problem.tree(direction), new_state, problem.tree(problem.gradient)

    def _sampled(
        problem: OutputProblem, slopes: Tensor | None, state
    ) -> CurvatureProblem:
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
    r"""Natural gradient descent, with the Fisher matrix of the model's outputs.

    $p \leftarrow p - \eta u$ with $u$ of `scale_by_natural_gradient`.

    When to use: small models that predict a distribution, and studies of curvature. For many parameters, K-FAC-like
    rules such as `soap` cost less.

    Args:
        lr: $\eta$ in [0, inf).
        damping: As in `scale_by_natural_gradient`, as are the arguments that follow.
        fisher: "type2", "sampled" or "empirical".
        solve: How to solve the system: "auto", "qr", "dense", "kernel", "cg" or "lsmr".
        likelihood: What labels are drawn from: "categorical", "gaussian" or "bernoulli".
        samples: The number of draws of each label, >= 1.
        seed: The seed of the draws.
        max_steps: The largest number of steps of "cg" and "lsmr".
        tolerance: Where they stop.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: with "sampled" `seed` and `counter`.

    Example:
        >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.0, 1.0, 0.0])
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = gradtx.optim.NaturalGradient([weight])
        >>> def loss_of(z):
        ...     return torch.nn.functional.binary_cross_entropy_with_logits(z, y)
        >>> for _ in range(5):
        ...     loss = optimizer.step(outputs_fn=lambda: x @ weight, loss_of_outputs=loss_of)
        >>> weight.data
        tensor([-0.3...])

    Source: as `scale_by_natural_gradient`. Departures: none.
    """
    return with_decay(scale_by_natural_gradient(**direction), weight_decay, True, lr)
