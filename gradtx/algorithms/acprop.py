"""ACProp: the gradient divided by the deviation of earlier gradients from their mean."""

from __future__ import annotations

import torch

from gradtx.links.decay import with_decay
from gradtx.maths.entries import adam_moments, quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear

__all__ = ["acprop", "scale_by_acprop"]


@per_tensor(elementwise=True, length="sets")
def scale_by_acprop(
    betas=(0.9, 0.999),
    eps=1e-16,
    amsgrad=False,
    momentum_update=False,
):
    r"""Divide the gradient by the deviation of earlier gradients from their mean: ACProp's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, direction $g_t / (\sqrt{s_{t-1} / (1-\beta_2^{t-1})} + \epsilon)$, or
    the gradient itself at $t = 1$; then $s_t = \beta_2 s_{t-1} + (1-\beta_2) (g_t - m_t)^2 + \epsilon$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$. Added twice: to $s$, where it accumulates, and to its root.
        amsgrad: Use the running maximum of $s$ instead of $s$.
        momentum_update: Divide $m_t / (1-\beta_1^t)$ instead of $g_t$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_var` and, with `amsgrad`,
        `max_exp_avg_var`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_acprop(betas=(0.5, 0.5), eps=0.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 4.0, 100.0):  # the last one is divided by the earlier deviation
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([4.])
        tensor([2.])
        tensor([70.7107])

    Source: Zhuang et al. 2021, arXiv:2110.05454. Departures: the authors' class rectifies by default, which the paper
    does not, and with amsgrad it adds $\epsilon$ once more at $t = 1$. optax uses the old $m$ in $g - m$.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas, amsgrad, belief_eps=eps)

    def update(g, state, p, ctx):
        first = (state["exp_avg"] == 0) & (state["exp_avg_var"] == 0)
        correction = ctx.bias_correction(beta2, ctx.step - 1)
        correction = torch.where(ctx.seen, correction, 1.0)
        old = state["max_exp_avg_var" if amsgrad else "exp_avg_var"]
        root = safe_sqrt(old / correction) + eps
        m, _, new_state = average(g, state)
        above = m / ctx.bias_correction(beta1) if momentum_update else g
        return torch.where(first, above, quotient(above, root, floor=eps)), new_state

    return {**moments, "exp_avg": linear()}, update


@alias(class_name="ACProp")
def acprop(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-16,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    amsgrad=False,
    momentum_update=False,
):
    r"""ACProp: the gradient divided by the deviation of earlier gradients from their mean.

    $p \leftarrow p - \eta g_t / (\sqrt{s_{t-1} / (1-\beta_2^{t-1})} + \epsilon)$ with the average $s$ of $(g - m)^2$;
    the first step is an SGD step. See `scale_by_acprop`.

    When to use: as an alternative to AdaBelief; the denominator excludes the current gradient, so rare large gradients
    keep their weight.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, the decay rates of $m$ and of $s$, each in [0, 1).
        eps: $\epsilon \ge 0$, added to $s$, where it accumulates, and to its square root.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Subtract $\eta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.
        amsgrad: Use the running maximum of $s$.
        momentum_update: Step along $m_t / (1-\beta_1^t)$ instead of $g_t$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_var`; with `amsgrad`,
        also `max_exp_avg_var`.

    Example:
        >>> tx = gradtx.acprop(lr=1.0, betas=(0.5, 0.5), eps=0.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 8.0):  # the deviation of 4 from its mean of 2 divides 8
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-4.])
        tensor([-4.])

    Source: Zhuang et al. 2021, arXiv:2110.05454. Departures: see `scale_by_acprop`.
    """
    direction = scale_by_acprop(betas, eps, amsgrad, momentum_update)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)
