"""Diagonal of the Hessian, from gradients: Apollo."""

from __future__ import annotations

from gradtx._arguments import Scalar
from gradtx.core import chain
from gradtx.factories import alias
from gradtx.schedules import warmup_cosine_schedule
from gradtx.transforms.decay import add_decayed_weights
from gradtx.transforms.quasi_newton import scale_by_apollo
from gradtx.transforms.scaling import scale_by_learning_rate

__all__ = ["apollo"]


@alias(
    class_name="ApolloDQN",
    ranges={"beta": "[0, 1)", "eps": "(0, inf)", "warmup": "[0, inf)", "init_lr": "[0, inf)"},
    example={"rebound": "belief", "warmup": 3},
)
def apollo(
    lr: Scalar = 0.01,
    beta: Scalar = 0.9,
    eps: Scalar = 1e-4,
    rebound: str = "constant",
    warmup: int = 500,
    init_lr: Scalar | None = None,
    weight_decay: Scalar = 0.0,
    weight_decay_type: str | None = None,
):
    r"""Apollo: momentum divided by a diagonal quasi-Newton estimate of the curvature, with a warm-up of the rate.

    $p \leftarrow p - \eta_t d_t$ with $d_t$ of `scale_by_apollo`; $\eta_t$ rises linearly from `init_lr` at the first
    step to `lr` after `warmup` steps.

    When to use: when curvature would help, but a second backward pass is too expensive; needs a long warm-up.

    Args:
        lr: $\eta$ in [0, inf) after the warm-up.
        beta: Decay of the mean gradient, in [0, 1).
        eps: $\epsilon > 0$.
        rebound: How the curvature is bounded from below: "constant" (by 0.01) or "belief" (by the largest change of
            the leaf's gradient).
        warmup: Steps of the warm-up, >= 0.
        init_lr: The rate of the first step, >= 0; None for lr/1000.
        weight_decay: $\lambda \ge 0$.
        weight_decay_type: "L2" adds the decay to the gradient, "decoupled" to the direction, "stable" to the direction,
            over the mean denominator; None for "L2" with "constant" and "decoupled" with "belief".

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_grad`, `approx_hessian`, `update`.

    Raises:
        ValueError: numbers out of range, an unknown option, missing `params`.

    Example:
        >>> tx = gradtx.apollo(lr=0.1, warmup=2, init_lr=0.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):  # the first three rates are 0, 0.05 and 0.1; the curvature stays at its bound
        ...     updates, state = tx.update({"w": torch.tensor([1e-4])}, state, params)
        ...     print(updates["w"])
        tensor([-0.])
        tensor([-0.0005])
        tensor([-0.0010])

    Source: Ma 2020, arXiv:2009.13586. Departures: none from the authors' code. pytorch_optimizer's ApolloDQN is one
    step ahead in its warm-up; its APOLLO is another method.
    """
    kind = weight_decay_type or ("L2" if rebound == "constant" else "decoupled")
    if kind not in ("L2", "decoupled", "stable"):
        raise ValueError(f"weight_decay_type must be 'L2', 'decoupled' or 'stable', got {weight_decay_type!r}")
    first = lr / 1000 if init_lr is None else init_lr
    # A cosine from lr to lr is constant.
    rate = warmup_cosine_schedule(warmup, lr, lr, first, warmup) if warmup else lr
    if kind == "L2":
        direction = chain(add_decayed_weights(weight_decay), scale_by_apollo(beta, eps, rebound))
    else:
        direction = scale_by_apollo(beta, eps, rebound, weight_decay, kind)
    return chain(direction, scale_by_learning_rate(rate))
