"""LaProp: the average of normalized gradients, where Adam normalizes the average."""

from __future__ import annotations

import torch

from gradtx.links.decay import with_decay
from gradtx.maths.entries import (
    at_least,
    corrected_root,
    fading_moments,
    running_mean,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square

__all__ = ["laprop", "scale_by_laprop"]


# Steps; until then the mean in the authors' code is too noisy to be subtracted.
CENTERED_AFTER = 10


@per_tensor(elementwise=True, length="sets")
def scale_by_laprop(
    betas=(0.9, 0.999),
    eps=1e-15,
    amsgrad=False,
    centered=False,
):
    r"""Average gradients that are divided by their root mean square: LaProp's direction.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$,
    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$, direction
    $m_t / (1-\beta_1^t)$. Adam averages first, which couples its $\beta_1$ and $\beta_2$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        centered: From t = 11 on, subtract the square of the mean gradient from $v$; amsgrad's maximum starts there.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, with `centered`
        `exp_mean_avg_beta2` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the parameter.

    Example:
        >>> # only the sign of each gradient counts
        >>> tx = gradtx.scale_by_laprop(betas=(0.5, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, -100.0):  # Adam: 1.0, then -0.6633
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([-0.3333])

    Source: Ziyin et al. 2020, arXiv:2002.04839. Departures: the learning rate is outside the average, as in the
    paper; the authors' code averages steps. $v$ less the squared mean is clamped so that it cannot round below 0.
    """
    beta1, beta2 = betas
    of_peak = None if centered else 1.0
    slots = {
        **fading_moments(betas),
        "exp_mean_avg_beta2": linear(decay=beta2) if centered else None,
        "max_exp_avg_sq": square(decay=of_peak) if amsgrad else None,
    }

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        new_state = {"exp_avg_sq": v}
        late = ctx.step > (CENTERED_AFTER if centered else 0)
        if centered:
            mean = running_mean(state["exp_mean_avg_beta2"], g, beta2)
            new_state["exp_mean_avg_beta2"] = mean
            v = torch.where(late, at_least(v - mean.square(), 0.0), v)
        if amsgrad:
            largest = torch.maximum(state["max_exp_avg_sq"], v)
            # The first phase collects no maximum.
            new_state["max_exp_avg_sq"] = torch.where(late, largest, 0.0)
            v = torch.where(late, largest, v)
        normalized = g / (corrected_root(v, ctx, beta2) + eps)
        m = new_state["exp_avg"] = running_mean(state["exp_avg"], normalized, beta1)
        return m / ctx.bias_correction(beta1), new_state

    return slots, update


@alias(class_name="LaProp")
def laprop(
    lr=4e-4,
    betas=(0.9, 0.999),
    eps=1e-15,
    weight_decay=0.0,
    amsgrad=False,
    centered=False,
    fixed_decay=False,
):
    r"""LaProp: the average of normalized gradients, where Adam normalizes the average.

    $m \leftarrow \beta_1 m + (1-\beta_1) g / (\sqrt{\hat v} + \epsilon)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m$ with Adam's $\hat v$.

    When to use: instead of Adam if gradients vary widely in size or $\beta_2$ has to be small: steps stay bounded for
    any pair of betas, unlike Adam's.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        amsgrad: Use the running maximum of $v$.
        centered: From t = 11 on, subtract the square of the mean gradient from $v$.
        fixed_decay: Use $p (1 - \lambda)$, without the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`exp_mean_avg_beta2`], [`max_exp_avg_sq`].

    Example:
        >>> tx = gradtx.laprop(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1000.0):  # Adam's second step would be -0.0745
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([-0.1218])

    Source: Ziyin et al. 2020, arXiv:2002.04839. Departures: see `scale_by_laprop`; the decay is subtracted from the
    weights before the step. pytorch_optimizer also adds eps to the root, and with amsgrad and centered takes the
    maximum of $v$ from the first step on.
    """
    return with_decay(
        scale_by_laprop(betas, eps, amsgrad, centered),
        weight_decay,
        True,
        lr,
        fixed_decay,
    )
