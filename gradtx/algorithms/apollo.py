"""Apollo: momentum divided by a diagonal quasi-Newton estimate of the curvature, with a warm-up of the rate."""

from __future__ import annotations

from typing import Literal

import torch

from gradtx.arguments import Decay, NonNegative, NonNegativeInt, Positive, is_off
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import at_least, largest, norm, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.schedules import warmup_cosine_schedule
from gradtx.slots import linear
from gradtx.transform import chain

__all__ = ["apollo", "scale_by_apollo"]


@per_tensor(needs="params")
def scale_by_apollo(
    beta: Decay = 0.9,
    eps: Positive = 1e-4,
    rebound: Literal["constant", "belief"] = "constant",
    weight_decay=0.0,
    weight_decay_type: Literal["decoupled", "stable"] = "decoupled",
):
    r"""Divide the mean gradient by a diagonal Hessian fitted to the change of gradients along the steps: Apollo.

    For each leaf, with $a = (1-\beta)/(1-\beta^t)$: $\Delta = g_t - m_{t-1}$, $m_t = m_{t-1} + a \Delta$;
    $n = \lVert d_{t-1} \rVert_4 + \epsilon'$, $q = d_{t-1}/n$,
    $B_t = B_{t-1} - (\frac{a}{n} \sum \Delta q + \sum B_{t-1} q^2) q^2$; direction
    $d_t = m_t / \max(|B_t|, \sigma)$, from $m_0 = B_0 = d_0 = 0$. $B$ is the curvature times the learning rate, because
    $d$ is the step before the learning rate is applied. There are two bounds: "constant" has
    $\sigma = 0.01$, $\epsilon' = \epsilon / 0.01$; "belief" has $\sigma = \max |\Delta|$, $\epsilon' = \epsilon$,
    and adds $\epsilon / a$ to the denominator.

    Args:
        beta: $\beta$ in [0, 1).
        eps: $\epsilon > 0$.
        rebound: Lower bound of the curvature: "constant" or "belief".
        weight_decay: $\lambda \ge 0$. The decay is part of $d$ and therefore of the next curvature.
        weight_decay_type: "decoupled" adds $\lambda p$ to $d$, "stable" adds $\lambda p$ over the mean denominator.
            (For L2 decay, place `add_decayed_weights` before this link.)

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_grad` ($m$), `approx_hessian` ($B$), `update`
        ($d$), shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_apollo(beta=0.0, eps=1e-8)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the loss is 2 w**2; after two steps its curvature of 4 is known
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": 4 * params["w"]}, state, params)
        ...     params = gradtx.apply_updates(params, {"w": -1e-3 * updates["w"]})
        >>> state["scale_by_apollo"]["approx_hessian"]["w"]
        tensor([0.0040])

    Source: Ma 2020, arXiv:2009.13586. Departures: none from the authors' 2021 code; torch_optimizer's Apollo is an
    earlier version with $\sigma = 1$. Not the low-rank APOLLO of arXiv:2412.05270.
    """
    belief, stable = rebound == "belief", weight_decay_type == "stable"

    def update(g, state, p, ctx):
        d, B = state["update"], state["approx_hessian"]
        a = (1 - beta) / ctx.bias_correction(beta)
        change = g - state["exp_avg_grad"]
        m = state["exp_avg_grad"] + a * change
        # The 4-norm as two roots, which are safe to differentiate at 0.
        n = safe_sqrt(norm(d.square())) + (eps if belief else eps / 0.01)
        q = d / n
        misfit = a / n * (change * q).sum() + (B * q.square()).sum()
        B = B - misfit * q.square()
        size = at_least(B.abs(), largest(change.abs()) if belief else 0.01)
        if belief:
            size = size + eps / a
        decay = weight_decay / size.mean() if stable else weight_decay
        d = m / size if is_off(weight_decay) else m / size + decay * p
        return d, {"exp_avg_grad": m, "approx_hessian": B, "update": d}

    return {
        "exp_avg_grad": linear(),
        "approx_hessian": torch.zeros_like,
        "update": linear(),
    }, update


@alias(class_name="ApolloDQN")
def apollo(
    lr=0.01,
    beta: Decay = 0.9,
    eps: Positive = 1e-4,
    rebound: Literal["constant", "belief"] = "constant",
    warmup: NonNegativeInt = 500,
    init_lr: NonNegative | None = None,
    weight_decay=0.0,
    weight_decay_type: Literal["L2", "decoupled", "stable"] | None = None,
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
    first = lr / 1000 if init_lr is None else init_lr
    # The cosine part, from lr to lr, is constant.
    rate = warmup_cosine_schedule(warmup, lr, lr, first, warmup) if warmup else lr
    if kind == "L2":
        links = add_decayed_weights(weight_decay), scale_by_apollo(beta, eps, rebound)
    else:
        links = (scale_by_apollo(beta, eps, rebound, weight_decay, kind),)
    return chain(*links, scale_by_learning_rate(rate))
