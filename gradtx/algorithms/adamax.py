"""AdaMax, equivalent to torch.optim.Adamax: Adam with a decaying maximum instead of the root mean square."""

from __future__ import annotations

import torch

from gradtx.links.decay import with_decay
from gradtx.maths.entries import running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema as average_of
from gradtx.slots import square

__all__ = ["adamax", "scale_by_adamax"]


@per_tensor(elementwise=True, length="sets")
def scale_by_adamax(betas=(0.9, 0.999), eps=1e-8):
    r"""Divide the mean gradient by a decaying maximum of its magnitude: AdaMax's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon)$, direction
    $m_t / ((1-\beta_1^t) u_t)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient, inside the maximum. Zero gradients require a positive value.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` ($m$), `exp_inf` ($u$), shaped as the
        parameter.

    Example:
        >>> tx = gradtx.scale_by_adamax(betas=(0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (8.0, 1.0, 1.0):  # divided by 8, 4, 2
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([0.2500])
        tensor([0.5000])

    Source: Kingma and Ba 2014, arXiv:1412.6980, section 7.1. Departures: eps, as in torch.optim.Adamax; the paper does
    not have it.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        m = running_mean(state["exp_avg"], g, beta1)
        largest = torch.maximum(beta2 * state["exp_inf"], g.abs() + eps)
        new_state = {"exp_avg": m, "exp_inf": largest}
        return m / (ctx.bias_correction(beta1) * largest), new_state

    return {"exp_avg": average_of(beta1), "exp_inf": square()}, update


@alias
def adamax(
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    *,
    decoupled_weight_decay=False,
):
    r"""AdaMax, equivalent to torch.optim.Adamax: Adam with a decaying maximum instead of the root mean square.

    $u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon)$, $p \leftarrow p - \frac{\eta}{1-\beta_1^t} m_t / u_t$.

    When to use: embeddings and other sparse gradients, with spikes that should not be averaged into the denominator.

    Args:
        lr: $\eta$ in [0, inf), approximately the largest change of a weight per step.
        betas: Decay rates of the average and of the maximum, each in [0, 1).
        eps: $\epsilon \ge 0$, inside the maximum, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_inf`.

    Example:
        >>> tx = gradtx.adamax(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Kingma and Ba 2014, arXiv:1412.6980, section 7.1. Departures: none from torch.optim.Adamax.
    """
    return with_decay(
        scale_by_adamax(betas, eps), weight_decay, decoupled_weight_decay, lr
    )
