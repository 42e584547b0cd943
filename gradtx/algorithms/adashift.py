"""AdaShift: the mean of the last n gradients, divided by the size of the gradients before those."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from gradtx.arguments import Count
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import at_least, largest, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar, square, window
from gradtx.transform import chain

__all__ = ["adashift", "scale_by_adashift"]


_REDUCTIONS = {
    "max": largest,
    "mean": lambda x: x.sum() / max(x.numel(), 1),
    "none": lambda x: x,
}


@per_tensor(elementwise=lambda arguments: arguments["reduce"] == "none", length="sets")
def scale_by_adashift(
    betas=(0.9, 0.999),
    keep_num: Count = 10,
    eps=1e-10,
    reduce: Literal["max", "mean", "none"] = "max",
):
    r"""Divide the mean of the last $n$ gradients by the size of the gradients before them: AdaShift.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) \phi(g_{t-n}^2)$ from 0,
    $m_t = \sum_{i<n} \beta_1^i g_{t-i} / \sum_{i<n} \beta_1^i$, direction
    $m_t / (\sqrt{v_t/(1-\beta_2^{t-n})} + \epsilon)$: numerator and denominator share no gradient. The first $n$ steps
    return 0, as do entries whose $v$ is still 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        keep_num: $n \ge 1$, the number of gradients to keep.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        reduce: $\phi$: "max" or "mean" over the leaf for a single rate, or "none" for one rate per weight.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_0` ... `grad_{n-1}`, the last gradients, newest
        first, shaped as the parameter; `exp_avg_sq`, 0-d float64 for each leaf, or shaped as the parameter with "none".

    Example:
        >>> tx = gradtx.scale_by_adashift(betas=(0.0, 0.9), keep_num=1)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # the second is divided by the largest entry of the first
        >>> for grad in ([2.0, -4.0], [3.0, 1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([0., 0.])
        tensor([0.7500, 0.2500])

    Source: Zhou et al. 2018, arXiv:1810.00143. Departures: none from the paper; the PyTorch port in the authors'
    repository starts $m$ only after the first $n$ steps.
    """
    (beta1, beta2), phi = betas, _REDUCTIONS[reduce]

    def update(g, state, p, ctx):
        *recent, oldest = state["grad"]
        window = [g, *recent]
        v = running_mean(state["exp_avg_sq"], phi(oldest.square()), beta2)
        m, weight = window[-1], 1.0
        for grad in reversed(window[:-1]):  # both sums over the window by Horner's rule
            m, weight = grad + beta1 * m, 1 + beta1 * weight
        is_zero = v == 0  # includes the first n steps
        correction = ctx.bias_correction(beta2, at_least(ctx.step - keep_num, 1))
        size = safe_sqrt(torch.where(is_zero, 1.0, v) / correction) + eps
        direction = torch.where(is_zero, 0.0, m / (weight * size))
        return direction, {"grad": window, "exp_avg_sq": v}

    slots = {
        "grad": window(keep_num),
        "exp_avg_sq": square() if reduce == "none" else scalar(),
    }
    return slots, update


@alias(class_name="AdaShift")
def adashift(lr=1e-3, **direction: Annotated[Any, scale_by_adashift]):
    r"""AdaShift: the mean of the last n gradients, divided by the size of the gradients before those.

    $p \leftarrow p - \eta m_t / (\sqrt{v_t/(1-\beta_2^{t-n})} + \epsilon)$; see `scale_by_adashift`. Nothing moves in
    the first n steps.

    When to use: problems with rare, large gradients that send Adam in the wrong direction; needs memory for the last n
    gradients.

    Args:
        lr: $\eta$ in [0, inf), approximately the change per step of the weight with the largest gradients ("max").
        betas: Decay rates of the weights within the window and of the average, each in [0, 1).
        keep_num: $n \ge 1$, the number of gradients in the window; all of them are stored.
        eps: $\epsilon \ge 0$, added outside the square root.
        reduce: "max" or "mean" of the squares over a leaf, or "none" for a separate rate per weight.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_0` ... `grad_{n-1}`, `exp_avg_sq`
        (0-d unless reduce is "none").

    Example:
        >>> tx = gradtx.adashift(lr=0.1, keep_num=1)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0, 1.0])}, state)
        ...     print(updates["w"])
        tensor([-0., -0.])
        tensor([-0.1000, -0.0250])

    Source: Zhou et al. 2018, arXiv:1810.00143. Departures: none from the paper; pytorch_optimizer takes a function
    instead, `reduce_func`.
    """
    return chain(scale_by_adashift(**direction), scale_by_learning_rate(lr))
