"""AdaTAM: Adam whose momentum gives less weight to gradients that point away from it."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.tam import torque_aware
from gradtx.arguments import Decay
from gradtx.links.decay import with_decay
from gradtx.maths.entries import MOMENTS, quotient, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor

__all__ = ["adatam", "scale_by_adatam"]


@per_tensor(length="sets")
def scale_by_adatam(betas=(0.9, 0.999), decay_rate: Decay = 0.9, eps=1e-8):
    r"""Divide a torque-aware momentum by the root mean square of the gradients: AdaTAM's direction.

    $s_t$ as in `scale_by_tam`, $m_t = \beta_1 m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction $m_t / (\sqrt{v_t} + \epsilon)$, without bias correction.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        decay_rate: $\gamma$ in [0, 1), decay of the average agreement.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `s`, `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_adatam(betas=(0.0, 0.75), decay_rate=0.0, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(())})
        >>> for grad in (2.0, 2.0):  # half of the gradient at first
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor(1.)
        tensor(1.5119)

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: as for `scale_by_tam`; the public code has neither the
    factor $1-\beta_1$ nor bias correction.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean, smooth = torque_aware(
            state["exp_avg"], update, state["s"], beta1, decay_rate, eps
        )
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        return quotient(mean, safe_sqrt(square) + eps, floor=eps), {
            "s": smooth,
            "exp_avg": mean,
            "exp_avg_sq": square,
        }

    return {"s": torch.zeros_like, **MOMENTS}, update


@alias(class_name="AdaTAM")
def adatam(lr=1e-3, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_adatam]):
    r"""AdaTAM: Adam whose momentum gives less weight to gradients that point away from it.

    $p \leftarrow p - \eta (m_t / (\sqrt{v_t} + \epsilon) + \lambda p)$ with the momentum of `scale_by_tam` and the
    average $v$ of $g^2$, without bias correction; see `scale_by_adatam`.

    When to use: instead of Adam if gradients are misaligned. The momentum is a sum, not an average: steps are up to
    $1 / (1-\beta_1)$ times as long as Adam's.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        decay_rate: $\gamma$ in [0, 1), the decay rate of the average agreement.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `s`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.adatam(lr=0.1, betas=(0.9, 0.0))
        >>> # half a sign
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0500,  0.0500])

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: see `scale_by_adatam`.
    """
    return with_decay(scale_by_adatam(**direction), weight_decay, True, lr)
