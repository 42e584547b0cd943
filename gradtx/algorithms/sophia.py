"""Sophia-H: the mean gradient over the mean of the Hessian's diagonal, clipped entry by entry."""

from __future__ import annotations

import torch

from gradtx.algorithms.adahessian import check_diagonal
from gradtx.arguments import Count, NonNegative
from gradtx.links.decay import with_decay
from gradtx.maths.entries import at_least, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema

__all__ = ["scale_by_sophia", "sophia"]


@per_tensor(elementwise=True, needs="hessian_diag")
def scale_by_sophia(
    betas=(0.96, 0.99),
    gamma: NonNegative = 0.01,
    eps=1e-12,
    update_period: Count = 10,
):
    r"""Divide the mean gradient by the mean of the Hessian's diagonal, and clip each entry to $\pm 1$: Sophia.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$; where $(t-1) \bmod$ `update_period` $= 0$,
    $h \leftarrow \beta_2 h + (1-\beta_2) D_t$ with $D_t$ the extra `hessian_diag`; direction
    $\mathrm{clip}(m_t / \max(\gamma h, \epsilon), -1, 1)$. There is no bias correction. Where $h \le 0$, the direction
    is the sign of $m$ if $|m| \ge \epsilon$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        gamma: $\gamma \ge 0$; smaller values clip more entries.
        eps: $\epsilon \ge 0$, lower bound of the denominator; use a positive value if an entry may have no gradient and
            no Hessian.
        update_period: Steps between two Hessians, >= 1. Pass `hessian_diag` at every call; None keeps the last, also of
            a leaf without a gradient in the call that ends a cycle of `accumulate`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `hessian`, shaped as the parameter.

    Raises:
        ValueError: If it is None although `update_period` is 1.

    Example:
        >>> tx = gradtx.scale_by_sophia(betas=(0.0, 0.0), gamma=1.0)
        >>> params = {"w": torch.zeros(3)}
        >>> diag = {"w": torch.tensor([8.0, 0.1, -8.0])}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([2.0, 2.0, 2.0])}, tx.init(params), hessian_diag=diag
        ... )
        >>> updates["w"]
        tensor([0.2500, 1.0000, 1.0000])

    Source: Liu et al. 2023, arXiv:2305.14342. Departures: none from its last version. In the first version, the
    threshold $\rho$ is $\gamma$ here, and both its rate and its eps are divided by $\gamma$.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        h, D = state["hessian"], ctx.hessian_diag
        if update_period == 1:
            check_diagonal("scale_by_sophia", ctx)
        if D is not None:
            old, new = h, running_mean(h, D, beta2)
            h = ctx.every(update_period, 1, lambda: new, lambda: old)
        m = running_mean(state["exp_avg"], g, beta1)
        u = (m / at_least(gamma * h, eps)).clamp(-1, 1)
        return u, {"exp_avg": m, "hessian": h}

    return {"exp_avg": ema(beta1), "hessian": torch.zeros_like}, update


@alias(class_name="SophiaH")
def sophia(
    lr=6e-4,
    betas=(0.96, 0.99),
    gamma: NonNegative = 0.01,
    eps=1e-12,
    weight_decay=0.1,
    update_period: Count = 10,
):
    r"""Sophia-H: the mean gradient over the mean of the Hessian's diagonal, clipped entry by entry.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{clip}(m_t / \max(\gamma h, \epsilon), -1, 1)$ with averages $m$
    of $g$ and $h$ of the extra `hessian_diag`, needed every `update_period` steps; the torch optimizer obtains it from
    `loss.backward(create_graph=True)` or from a closure.

    When to use: pre-training of language models: the Hessian is estimated about every ten steps, and clipping bounds
    the error of the estimate.

    Args:
        lr: $\eta$ in [0, inf), the largest change of a weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        gamma: $\gamma \ge 0$: the smaller it is, the more entries are clipped.
        eps: $\epsilon \ge 0$, the lower bound of the denominator.
        weight_decay: $\lambda \ge 0$, decoupled.
        update_period: Number of steps between Hessian estimates, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `hessian`.

    Example:
        >>> tx = gradtx.sophia(lr=0.1, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> diag = {"w": torch.tensor([1e6, -1.0])}  # steep, and a saddle
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1.0, 1.0])}, tx.init(params), params, hessian_diag=diag
        ... )
        >>> updates["w"]
        tensor([-4.0000e-05, -1.0000e-01])

    Source: Liu et al. 2023, arXiv:2305.14342. Departures: none from its last version; the authors' code contains only
    Sophia-G.
    """
    return with_decay(
        scale_by_sophia(betas, gamma, eps, update_period), weight_decay, True, lr
    )
