"""Signs: links whose updates are signs, or steps chosen by signs."""

from __future__ import annotations

from typing import Annotated

import torch

from gradtx.arguments import Decays, NonNegative, is_off
from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.slots import linear, square
from gradtx.transforms._math import (
    at_least,
    at_most,
    filled_like,
    plus_decay,
    running_mean,
)

__all__ = [
    "scale_by_focus",
    "scale_by_lion",
    "scale_by_rprop",
    "scale_by_sign",
    "take_signs_of_gradient",
]


@per_tensor(elementwise=True)
def scale_by_lion(betas: Decays = (0.9, 0.99)):
    r"""Replace every gradient by the sign of an interpolated momentum: Lion's direction.

    $u_t = \mathrm{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t)$, then $m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t$.

    Args:
        betas: $(\beta_1, \beta_2)$, weights of the old momentum in the direction and in the next momentum, each in
            [0, 1). If both are a literal 0.0, there is no slot.

    Returns:
        A transformation that keeps shapes and dtypes; every entry becomes -1, 0 or 1. State: `exp_avg`, shaped as the
        parameter.

    Raises:
        ValueError: If a beta is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_lion()
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([2e-9, 0.0, -5.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"]
        tensor([ 1.,  0., -1.])

    Source: Chen et al. 2023, arXiv:2302.06675. Departures: none.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean = state["exp_avg"]
        direction = (beta1 * mean + (1 - beta1) * update).sign()
        return direction, {"exp_avg": beta2 * mean + (1 - beta2) * update}

    def sign(update, state, param, ctx):
        return update.sign(), state

    return sign if is_off(beta1) and is_off(beta2) else ({"exp_avg": linear()}, update)


@per_tensor(elementwise=True)
def scale_by_sign():
    r"""Replace every entry by its sign: $u \mapsto \mathrm{sign}(u)$.

    Returns:
        A transformation that keeps shapes and dtypes; every entry becomes -1, 0 or 1. No state.

    Example:
        >>> tx = gradtx.scale_by_sign()
        >>> tx.update({"w": torch.tensor([2e-9, 0.0, -5.0])}, tx.init({}))[0]["w"]
        tensor([ 1.,  0., -1.])

    Source: Bernstein et al. 2018, signSGD, arXiv:1802.04434. Departures: none.
    """
    return lambda update, state, param, ctx: (update.sign(), state)


@per_tensor(elementwise=True)
def take_signs_of_gradient():
    r"""Combine the magnitudes of a direction with the signs of the gradient: $u \mapsto \mathrm{sign}(g) |u|$.

    Place it after any direction. $g$ is the gradient that was passed to the chain. Every entry then points downhill on
    this batch, so a later `scale_by_caution` has no effect.

    Returns:
        A transformation that keeps shapes and dtypes; no state. Where the gradient is 0, so is the update.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(1.0), gradtx.take_signs_of_gradient())
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([3.0, 3.0], [-1.0, 0.0]):  # the momentum is then (2, 3)
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([3., 3.])
        tensor([-2.,  0.])

    Source: Cao et al. 2024, arXiv:2412.17107. Departures: none.
    """

    def update(update, state, param, ctx):
        return ctx.grad.sign() * update.abs(), state

    return update


@per_tensor(elementwise=True, needs=("params",))
def scale_by_focus(
    betas: Decays = (0.9, 0.999),
    gamma: NonNegative = 0.1,
    weight_decay: NonNegative = 0.0,
):
    r"""Step along the sign of the momentum and back toward the average of the weights: FOCUS's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $\bar p_t = \beta_2 \bar p_{t-1} + (1-\beta_2) p$,
    $\hat p = \bar p / (1-\beta_2^t)$, direction
    $\mathrm{sign}(m_t) + \gamma\, \mathrm{sign}(p - \hat p) + \lambda \hat p$. At $t = 1$, where $\hat p = p$, the
    middle term is 0.

    Args:
        betas: $(\beta_1, \beta_2)$, for the momentum and for the average of the weights, each in [0, 1).
        gamma: $\gamma \ge 0$, strength of the attraction; above 1 it dominates the momentum.
        weight_decay: $\lambda \ge 0$, a pull of the average toward 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `pbar`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_focus(gamma=0.25)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # the gradient is positive; the weight is above, then below its average
        >>> for at in (0.0, 1.0, -1.0):
        ...     updates, state = tx.update(
        ...         {"w": torch.ones(1)}, state, {"w": torch.tensor([at])}
        ...     )
        ...     print(updates["w"])
        tensor([1.])
        tensor([1.2500])
        tensor([0.7500])

    Source: Liu, Liu and Gore 2025, arXiv:2501.12243. Departures: in the authors' code, the sign at $t = 1$ is that of a
    rounding error.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        place = beta2 * state["pbar"] + (1 - beta2) * param
        usual = place / ctx.bias_correction(beta2)
        pull = torch.where(ctx.seen, (param - usual).sign(), 0.0)
        direction = plus_decay(mean.sign() + gamma * pull, weight_decay, usual)
        return direction, {"exp_avg": mean, "pbar": place}

    return {"exp_avg": linear(), "pbar": linear()}, update


@per_tensor(elementwise=True, owns_lr=True)
def scale_by_rprop(
    lr: NonNegative,
    etas: tuple[Annotated[Scalar, "(0, 1)"], Annotated[Scalar, "(1, inf)"]] = (
        0.5,
        1.2,
    ),
    step_sizes: tuple[NonNegative, NonNegative] = (1e-6, 50.0),
):
    r"""Use a step size per weight that grows while the gradient keeps its sign and shrinks when it flips: Rprop.

    With $a = \mathrm{sign}(g_t g_{t-1})$: $\Delta_t = \Delta_{t-1} \cdot (\eta^+, 1, \eta^-)$ for $a = 1, 0, -1$,
    clipped to $[\Delta_{\min}, \Delta_{\max}]$; then $p \leftarrow p - \mathrm{sign}(g_t) \Delta_t$. Where $a = -1$,
    the weight is not changed, and the next step is treated as a first step ($g_t = 0$ is stored).

    Args:
        lr: $\Delta_0 \ge 0$, the size of the first step; later values are ignored.
        etas: $(\eta^-, \eta^+)$, the first in (0, 1), the second above 1.
        step_sizes: $(\Delta_{\min}, \Delta_{\max})$, each in [0, inf).

    Returns:
        A transformation that owns the learning rate: its updates are added to the parameters. State: `prev` (the
        stored gradient), `step_size`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx, params = gradtx.scale_by_rprop(0.1), {"w": torch.zeros(1)}
        >>> state = tx.init(params)
        >>> for grad in (3.0, 0.2, -5.0, -5.0):  # steps of 0.1 and 0.12, no step, 0.06 back
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(f"{params['w'].item():.2f}")
        -0.10
        -0.22
        -0.22
        -0.16

    Source: Riedmiller and Braun 1993; Igel and Huesken 2000 (iRprop-). Departures: none from torch.optim.Rprop, except
    that signs are compared, because a product of small gradients can underflow. The rule of 1993 also undoes the step
    before a sign change.
    """
    shrink, grow = etas
    smallest, largest = step_sizes

    def update(update, state, param, ctx):
        # As in torch, the initial size is the rate at the first step, which a scheduler may have written after `init`.
        old = state["step_size"]
        size = torch.where(ctx.seen, old, filled_like(old, lr))
        agreement = update.sign() * state["prev"].sign()
        size = torch.where(
            agreement > 0, grow * size, torch.where(agreement < 0, shrink * size, size)
        )
        size = at_most(at_least(size, smallest), largest)
        masked_grad = torch.where(agreement < 0, 0.0, update)
        return -masked_grad.sign() * size, {"prev": masked_grad, "step_size": size}

    return {"prev": linear(), "step_size": square(lambda p: filled_like(p, lr))}, update
