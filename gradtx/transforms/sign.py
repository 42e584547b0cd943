"""Signs of the update, of a momentum (Lion), or of the gradient (Grams)."""

from __future__ import annotations

from gradtx.arguments import is_off
from gradtx.base.exact import Betas
from gradtx.rules import per_tensor
from gradtx.transforms._math import zeros

__all__ = ["scale_by_lion", "scale_by_sign", "take_signs_of_gradient"]


@per_tensor(elementwise=True)
def scale_by_lion(betas: Betas = (0.9, 0.99)):
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

    return sign if is_off(beta1) and is_off(beta2) else (zeros("exp_avg"), update)


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
