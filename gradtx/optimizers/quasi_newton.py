"""Quasi-Newton methods: the diagonal of the Hessian (Apollo), or the Hessian along the last steps (L-BFGS)."""

from __future__ import annotations

from gradtx.arguments import Count, Decay, NonNegative, NonNegativeInt, Positive
from gradtx.rules import alias
from gradtx.schedules import warmup_cosine_schedule
from gradtx.transform import chain
from gradtx.transforms.quasi_newton import scale_by_apollo, scale_by_lbfgs
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["apollo", "lbfgs"]


@alias(class_name="ApolloDQN")
def apollo(
    lr: NonNegative = 0.01,
    beta: Decay = 0.9,
    eps: Positive = 1e-4,
    rebound: str = "constant",
    warmup: NonNegativeInt = 500,
    init_lr: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    weight_decay_type: str | None = None,
):
    r"""Apollo: momentum divided by a diagonal quasi-Newton estimate of the curvature, with a warm-up of the rate.

    $p \leftarrow p - \eta_t d_t$ with $d_t$ of `scale_by_apollo`; $\eta_t$ rises linearly from `init_lr` at the first
    step to `lr` after `warmup` steps.

    When to use: when curvature would help but a second backward pass is too expensive; needs a long warm-up.

    Args:
        lr: $\eta$ in [0, inf) after the warm-up.
        beta: Decay rate of the mean gradient, in [0, 1).
        eps: $\epsilon > 0$.
        rebound: Lower bound of the curvature: "constant" (0.01) or "belief" (the largest change of the leaf's
            gradient).
        warmup: Number of warm-up steps, >= 0.
        init_lr: Rate of the first step, >= 0; None for lr/1000.
        weight_decay: $\lambda \ge 0$.
        weight_decay_type: "L2" adds the decay to the gradient, "decoupled" to the direction, "stable" to the direction,
            divided by the mean denominator; None for "L2" with "constant" and "decoupled" with "belief".

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_grad`, `approx_hessian`, `update`.

    Raises:
        ValueError: If a hyperparameter is out of range, if an option is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.apollo(lr=0.1, warmup=2, init_lr=0.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the first three rates are 0, 0.05 and 0.1; the curvature stays at its bound
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.tensor([1e-4])}, state, params)
        ...     print(updates["w"])
        tensor([-0.])
        tensor([-0.0005])
        tensor([-0.0010])

    Source: Ma 2020, arXiv:2009.13586. Departures: none from the authors' code. pytorch_optimizer's ApolloDQN is one
    step ahead in its warm-up; its APOLLO is a different method.
    """
    kind = weight_decay_type or ("L2" if rebound == "constant" else "decoupled")
    if kind not in ("L2", "decoupled", "stable"):
        raise ValueError(
            f"weight_decay_type must be 'L2', 'decoupled' or 'stable', got {weight_decay_type!r}"
        )
    first = lr / 1000 if init_lr is None else init_lr
    # The cosine part, from lr to lr, is constant.
    rate = warmup_cosine_schedule(warmup, lr, lr, first, warmup) if warmup else lr
    if kind == "L2":
        direction = chain(
            add_decayed_weights(weight_decay), scale_by_apollo(beta, eps, rebound)
        )
    else:
        direction = scale_by_apollo(beta, eps, rebound, weight_decay, kind)
    return chain(direction, scale_by_learning_rate(rate))


@alias(class_name="LBFGS")
def lbfgs(
    lr: NonNegative = 1.0,
    history: Count = 10,
    curvature: NonNegative = 1e-10,
    first: str = "l1",
    weight_decay: NonNegative = 0.0,
):
    r"""L-BFGS: the gradient multiplied by an inverse Hessian estimated from the last steps.

    $p \leftarrow p (1 - \eta \lambda) - \eta\, H g$ with $H$ of `scale_by_lbfgs`.

    When to use: smooth problems without noise, such as physics-informed fits with all points in one batch, inside
    `line_search`: `line_search(lbfgs(), conditions="strong_wolfe")`.

    Args:
        lr: $\eta$ in [0, inf).
        history: Number of stored pairs, >= 1.
        curvature: Minimum of $\langle s, y \rangle$ for a pair, >= 0.
        first: Treatment of the first gradient: "l1" divides it by its 1-norm if that is above 1, "none" leaves it
            unchanged.
        weight_decay: $\lambda \ge 0$, decoupled; in a line search, add it to the loss instead.

    Returns:
        A transformation whose updates are added to the parameters. State: `prev_param`, `previous_grad`, `s_i`, `y_i`,
        `products_s`, `products_y`, `count`, `gamma`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `first` is unknown, or if `params` is missing.

    Example:
        >>> # Rosenbrock's
        >>> loss = lambda p: (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2
        >>> tx = gradtx.line_search(gradtx.lbfgs())
        >>> params = {
        ...     "x": torch.tensor(-1.2, dtype=torch.float64),
        ...     "y": torch.tensor(1.0, dtype=torch.float64),
        ... }
        >>> state = tx.init(params)
        >>> for _ in range(60):
        ...     updates, state = tx.update(
        ...         torch.func.grad(loss)(params), state, params, value_fn=loss
        ...     )
        ...     params = gradtx.apply_updates(params, updates)
        >>> loss(params) < 1e-20
        tensor(True)

    Source: Liu and Nocedal 1989. Departures: see `scale_by_lbfgs`; `max_iter` is an argument of
    the optimizer's `step`, and the line search is a separate transformation.
    """
    return chain(
        scale_by_lbfgs(history, curvature, first),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
