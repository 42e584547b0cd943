"""FOCUS: the sign of a momentum, plus an attraction to the average of the weights."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import NonNegative
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import plus_decay, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear
from gradtx.transform import chain

__all__ = ["focus", "scale_by_focus"]


@per_tensor(elementwise=True, needs="params", length="sets")
def scale_by_focus(
    betas=(0.9, 0.999),
    gamma: NonNegative = 0.1,
    weight_decay=0.0,
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
        average = running_mean(state["pbar"], param, beta2)
        usual = average / ctx.bias_correction(beta2)
        pull = torch.where(ctx.seen, (param - usual).sign(), 0.0)
        direction = plus_decay(mean.sign() + gamma * pull, weight_decay, usual)
        return direction, {"exp_avg": mean, "pbar": average}

    return {"exp_avg": linear(), "pbar": linear()}, update


@alias(class_name="FOCUS")
def focus(lr=1e-2, **direction: Annotated[Any, scale_by_focus]):
    r"""FOCUS: the sign of a momentum, plus an attraction to the average of the weights.

    $p \leftarrow p - \eta (\mathrm{sign}(m_t) + \gamma\, \mathrm{sign}(p - \hat p) + \lambda \hat p)$ with the average
    $\hat p$ of the weights; see `scale_by_focus`.

    When to use: like Signum or Lion, if gradients are noisy: it finds the bottom of a narrow valley (the paper's
    claim).

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step.
        betas: $(\beta_1, \beta_2)$, the decay rates of the momentum and of the average of the weights, each in [0, 1).
        gamma: $\gamma \ge 0$, the strength of the attraction.
        weight_decay: $\lambda \ge 0$, applied to the average of the weights.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `pbar`.

    Example:
        >>> tx = gradtx.focus(lr=0.1, gamma=0.5)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # one weight is now above its average, the other below
        >>> for at in ([0.0, 0.0], [1.0, -1.0]):
        ...     updates, state = tx.update({"w": torch.ones(2)}, state, {"w": torch.tensor(at)})
        >>> updates["w"]
        tensor([-0.1500, -0.0500])

    Source: Liu, Liu and Gore 2025, arXiv:2501.12243. Departures: see `scale_by_focus`. (pytorch_optimizer's class
    applies the decay before it takes the sign.)
    """
    return chain(scale_by_focus(**direction), scale_by_learning_rate(lr))
