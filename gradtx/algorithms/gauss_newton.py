"""Gauss-Newton: the gradient of a sum of squares, or of a convex loss of outputs, through the model's curvature."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from gradtx.arguments import Count, Decay, NonNegative, Static
from gradtx.curvature.problem import EITHER, EXTRAS, problem_of
from gradtx.curvature.solves import Solve, averaged, direction_of
from gradtx.curvature.terms import Reduction, Terms, Weights
from gradtx.links.decay import with_decay
from gradtx.rules import alias, whole_tree

__all__ = ["gauss_newton", "scale_by_gauss_newton"]


@whole_tree(needs="params", extras=EXTRAS, makes_gradient=True, closure="residual_fn")
def scale_by_gauss_newton(
    damping: NonNegative = 1e-3,
    solve: Static[Solve] = "auto",
    scaling: Literal["identity", "diagonal"] = "identity",
    decay: Decay | None = None,
    reduction: Static[Reduction] = "sum",
    weights: Static[Weights | None] = None,
    max_steps: Static[Count] = 100,
    tolerance: Static[float | None] = None,
):
    r"""Compute the Gauss-Newton direction from residuals, or from outputs with a convex loss of these.

    For residuals $r$ with Jacobian $J$ and the loss $\lVert r \rVert^2 / 2$:
    $u = (J^\top J + \lambda D)^{-1} J^\top r$. For outputs $z$ with $h = \partial L / \partial z$ and
    $H = \partial^2 L / \partial z^2$, generalized Gauss-Newton: $u = (J^\top H J + \lambda D)^{-1} J^\top h$. All
    leaves are one vector. It is the first link of a chain.

    Pass `update` a function of the parameters, not gradients: `residual_fn`, which returns a tensor of residuals or a
    dict of named terms, or `outputs_fn` with `loss_of_outputs`, a convex and twice differentiable function of the
    outputs. The updates that it receives only say which leaves step: pass the parameters; None freezes a leaf. In an
    optimizer, `step(closure)` takes a closure that returns residuals and does not call `backward()`, or
    `step(outputs_fn=..., loss_of_outputs=...)` functions without arguments; it returns the loss. Later links see the
    gradient as `ctx.grad`, and the loss.

    Use float64 for fits and physics-informed networks: in float32, a damping below 1e-6 of the largest diagonal entry
    has no effect. Matrices of "dense" and "kernel" up to 2048 x 2048 are factored in float64 anyway.

    Args:
        damping: $\lambda \ge 0$. A literal 0.0 asks for the step of least norm ("qr", "dense").
        solve: How to solve the system; all give one answer. "qr": of $[J; \sqrt{\lambda D}]$, the most accurate, for
            residuals; "dense": Cholesky of the matrix; "kernel": in sample space, m x m, for more parameters than
            residuals; "cg" and "lsmr" (residuals): from products with $J$ and $J^\top$ alone. "auto" chooses by sizes;
            `optimizer.explain()` names the choice and its memory.
        scaling: $D$: "identity", or "diagonal" for the diagonal of $J^\top J$ (or $J^\top H J$), with 1 in place of 0.
        decay: $\beta$ in [0, 1) of a running average of the matrix $J^\top H J$, divided by $1 - \beta^t$, for
            batches; "dense" only. It costs a state of n x n numbers. None for the matrix of each step alone.
        reduction: "sum" or "mean", of the squares of each term.
        weights: The weight of each term, a dict of numbers by name, if `residual_fn` returns a dict; None for 1.
        max_steps: The largest number of steps of "cg" and "lsmr", >= 1.
        tolerance: Where they stop: their residual relative to the right-hand side; None for a default of the dtype.

    Returns:
        A transformation with the shapes and dtypes of the parameters. State: with `decay` `curvature`, the rows of the
        averaged matrix that belong to the leaf. Residuals that are not finite give NaN updates.

    Raises:
        TypeError: If a function returns no tensor, or an extra is no function.
        ValueError: If no function is passed or both are, if there are no residuals or these are complex or 0-d, if
            terms and weights differ, or if a matrix does not fit into memory; the error names its bytes and ways
            that fit.
        RuntimeError: If a matrix is not positive definite to working precision; in an optimizer, if the closure called
            `backward()`, if residuals have no graph, or if a GradScaler is enabled.

    Example:
        >>> x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 5.0])
        >>> residual_fn = lambda p: p["a"] * x + p["b"] - y
        >>> tx = gradtx.scale_by_gauss_newton(damping=0.0)
        >>> params = {"a": torch.tensor(0.0), "b": torch.tensor(0.0)}
        >>> updates, _ = tx.update(params, tx.init(params), params, residual_fn=residual_fn)
        >>> updates["a"], updates["b"]  # uphill; a linear fit is solved in one step
        (tensor(-2.0000), tensor(-1.0000))

    Source: Gauss 1809; Schraudolph 2002 (generalized); in sample space: Chen and Heyl 2023, arXiv:2302.01941 (MinSR),
    and Guzman-Cordero et al. 2025, arXiv:2505.12149 (ENGD-W). Departures: none.
    """
    terms = Terms("scale_by_gauss_newton", reduction, weights)
    scaled = scaling == "diagonal"
    if decay is not None and solve not in ("auto", "dense"):
        raise ValueError(
            f"scale_by_gauss_newton: decay averages the matrix of solve='dense', which solve={solve!r} does not make"
        )

    def init(params):
        if decay is None:
            return {}
        n = sum(param.numel() for param in params.values())
        zeros = {name: p.new_zeros(p.numel(), n) for name, p in params.items()}
        return {"curvature": zeros}

    def update(updates, state, params, ctx):
        problem = problem_of(ctx, params, terms, EITHER)
        ctx.tell_loss(problem)
        if decay is not None:
            before = state["curvature"]
            direction, average = averaged(ctx, problem, before, decay, damping, scaled)
            gradient = problem.tree(problem.gradient)
            return problem.tree(direction), {"curvature": average}, gradient
        direction = direction_of(
            ctx, problem, solve, damping, scaled, max_steps, tolerance
        )
        return problem.tree(direction), state, problem.tree(problem.gradient)

    return init, update


@alias
def gauss_newton(
    lr=1.0, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_gauss_newton]
):
    r"""Gauss-Newton for least squares, and generalized Gauss-Newton for any convex loss of outputs.

    $p \leftarrow p - \eta u$ with $u$ of `scale_by_gauss_newton`, which also documents what to pass in place of
    gradients.

    When to use: residuals without noise and a few thousand parameters or residuals, where it needs tens of steps
    instead of ten thousands: physics-informed networks (`line_search(gauss_newton(damping=1e-8, reduction="mean"))`),
    wave functions, the last layers of a classifier. For fits of a few parameters, see `curve_fit` and
    `levenberg_marquardt`, which choose their damping.

    Args:
        lr: $\eta$ in [0, inf).
        damping: As in `scale_by_gauss_newton`, as are the arguments that follow.
        solve: How to solve the system: "auto", "qr", "dense", "kernel", "cg" or "lsmr".
        scaling: "identity" or "diagonal".
        decay: The decay of a running average of the matrix; None for none.
        reduction: "sum" or "mean".
        weights: The weight of each term by name.
        max_steps: The largest number of steps of "cg" and "lsmr".
        tolerance: Where they stop.
        weight_decay: $\lambda \ge 0$, decoupled; a decay of the loss is a residual, `sqrt(decay) * p`.

    Returns:
        A transformation whose updates are added to the parameters. State: with `decay` `curvature`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = gradtx.optim.GaussNewton([weight], damping=1e-6)
        >>> for _ in range(5):
        ...     loss = optimizer.step(lambda: weight**2 - 9)  # residuals, without backward
        >>> weight.data
        tensor([3.])

    Source: as `scale_by_gauss_newton`. Departures: none.
    """
    return with_decay(scale_by_gauss_newton(**direction), weight_decay, True, lr)
