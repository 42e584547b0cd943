"""Divide by accumulated gradient statistics: Adagrad's sum, Adadelta's two averages, AdaMax's maximum."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import filled_like, running_mean, safe_sqrt, zeros

__all__ = ["scale_by_adadelta", "scale_by_adamax", "scale_by_rss"]


@per_tensor(
    ranges={"initial_accumulator_value": "[0, inf)"},
    elementwise=True,
    nonnegative=("sum",),
)
def scale_by_rss(eps: Scalar = 1e-10, initial_accumulator_value: Scalar = 0.0):
    r"""Divide by the root of the sum of all squared gradients so far: Adagrad's direction.

    $G_t = G_{t-1} + g_t^2$, direction $g_t / (\sqrt{G_t} + \epsilon)$.

    Args:
        eps: $\epsilon \ge 0$, outside the root, in the units of a gradient.
        initial_accumulator_value: $G_0 \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `sum`, shaped as the parameter.

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> tx = gradtx.scale_by_rss()
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        >>> updates["w"]  # 1 / sqrt(t)
        tensor([0.5000])

    Source: Duchi, Hazan and Singer 2011, JMLR 12. Departures: none from torch.optim.Adagrad; optax starts from 0.1
    and adds eps inside the root.
    """

    def init(param):
        return {"sum": filled_like(param, initial_accumulator_value)}

    def update(update, state, param, ctx):
        total = state["sum"] + update.square()
        return update / (safe_sqrt(total) + eps), {"sum": total}

    return init, update


@per_tensor(
    elementwise=True, ranges={"rho": "[0, 1]"}, nonnegative=("square_avg", "acc_delta")
)
def scale_by_adadelta(rho: Scalar = 0.9, eps: Scalar = 1e-6):
    r"""Rescale gradients to the size of earlier steps: Adadelta's direction, in the units of a weight.

    $q_t = \rho q_{t-1} + (1-\rho) g_t^2$, direction $\delta_t = \sqrt{a_{t-1} + \epsilon} / \sqrt{q_t + \epsilon}
    \cdot g_t$, then $a_t = \rho a_{t-1} + (1-\rho) \delta_t^2$.

    Args:
        rho: Weight of the old averages, in [0, 1].
        eps: $\epsilon \ge 0$, inside both roots: the first steps have size about $\sqrt{\epsilon}$. With 0, all are 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `square_avg` ($q$), `acc_delta` ($a$), shaped as the
        parameter; $a$ averages directions before any learning rate is applied.

    Raises:
        ValueError: If `rho` is outside [0, 1] or `eps` is negative.

    Example:
        >>> # steps of 0.001 at first, then the same size again
        >>> tx = gradtx.scale_by_adadelta(rho=0.0, eps=1e-6)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (5.0, -300.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(f"{updates['w'].item():.6f}")
        0.001000
        -0.001414

    Source: Zeiler 2012, arXiv:1212.5701. Departures: none.
    """

    def update(update, state, param, ctx):
        square = running_mean(state["square_avg"], update.square(), rho)
        delta = safe_sqrt((state["acc_delta"] + eps) / (square + eps)) * update
        return delta, {
            "square_avg": square,
            "acc_delta": running_mean(state["acc_delta"], delta.square(), rho),
        }

    return zeros("square_avg", "acc_delta"), update


@per_tensor(elementwise=True, nonnegative=("exp_inf",))
def scale_by_adamax(betas: Betas = (0.9, 0.999), eps: Scalar = 1e-8):
    r"""Divide the mean gradient by a decaying maximum of its magnitude: AdaMax's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon)$, direction
    $m_t / ((1-\beta_1^t) u_t)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient, inside the maximum. Zero gradients require a positive value.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` ($m$), `exp_inf` ($u$), shaped as the
        parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

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

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        largest = torch.maximum(beta2 * state["exp_inf"], update.abs() + eps)
        return mean / (ctx.bias_correction(beta1) * largest), {
            "exp_avg": mean,
            "exp_inf": largest,
        }

    return zeros("exp_avg", "exp_inf"), update
