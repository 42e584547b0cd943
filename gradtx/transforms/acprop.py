"""ACProp, whose denominator uses only earlier gradients."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import peak, quotient, running_mean, safe_sqrt, zeros

__all__ = ["scale_by_acprop"]


@per_tensor(elementwise=True, nonnegative=("exp_avg_var", "max_exp_avg_var"))
def scale_by_acprop(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-16,
    amsgrad: bool = False,
    momentum_update: bool = False,
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

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

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

    def update(update, state, param, ctx):
        # Not ctx.step == 1: a leaf's first gradient may arrive later.
        first = (state["exp_avg"] == 0) & (state["exp_avg_var"] == 0)
        mean = running_mean(state["exp_avg"], update, beta1)
        above = mean / ctx.bias_correction(beta1) if momentum_update else update
        correction = torch.where(
            ctx.step == 1, 1.0, ctx.bias_correction(beta2, ctx.step - 1)
        )
        old = state["max_exp_avg_var" if amsgrad else "exp_avg_var"]
        root = safe_sqrt(old / correction) + eps
        variance = running_mean(state["exp_avg_var"], (update - mean).square(), beta2)
        new = {"exp_avg": mean, "exp_avg_var": variance + eps}
        peak(new, state, "exp_avg_var", amsgrad)
        return torch.where(first, above, quotient(above, root, floor=eps)), new

    return zeros("exp_avg", "exp_avg_var", max_exp_avg_var=amsgrad), update
