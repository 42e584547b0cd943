"""BCOS: a momentum divided by an estimate of its root mean square, with one slot less than Adam."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from gradtx.arguments import Decay
from gradtx.links.decay import with_decay
from gradtx.maths.entries import quotient, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square

__all__ = ["bcos", "scale_by_bcos"]


@per_tensor(elementwise=True, length="sets")
def scale_by_bcos(
    beta: Decay = 0.9,
    beta2: Decay | None = None,
    eps=1e-6,
    mode: Literal["c", "m", "g"] = "c",
    simple_cond=False,
):
    r"""Divide a momentum by the root of its mean square without an additional slot: BCOS.

    $m_t = \beta m_{t-1} + (1-\beta) g_t$ from $m_0 = g_1$. Mode "c": direction $m_t / (\sqrt{v_t} + \epsilon)$ with the
    conditional mean square
    $v_t = (3\beta^2 - 2\beta^3) m_{t-1}^2 + (1-\beta)^2 g_t^2 + 2\beta (1-\beta)^2 m_{t-1} g_t$. Modes "m" and "g":
    direction $d_t / (\sqrt{v_t} + \epsilon)$ with $d = m$ or $d = g$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) d_t^2$ from $v_0 = g_1^2$.

    Args:
        beta: $\beta$ in [0, 1).
        beta2: $\beta_2$ in [0, 1). None: $\beta$, or $1 - (1-\beta)^2$ with `simple_cond`.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        mode: "c", "m" or "g".
        simple_cond: In mode "c", use $v_t = \beta_2 m_{t-1}^2 + (1-\beta_2) g_t^2$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` (modes "c" and "m") and `exp_avg_sq` (modes
        "m" and "g"), shaped as the parameter and initialized from the first gradient passed to the chain.

    Example:
        >>> tx = gradtx.scale_by_bcos(beta=0.5, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # a steady gradient, and one that changes sign
        >>> for grads in ([1.0, 1.0], [1.0, -1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        >>> updates["w"]
        tensor([1., 0.])

    Source: Jiang et al. 2025, arXiv:2507.08963. Departures: none from the authors' code. (pytorch_optimizer's class
    uses $m_t$ instead of $m_{t-1}$ in mode "c".)
    """
    rest = 1 - beta
    keep = (1 - rest * rest if mode == "c" else beta) if beta2 is None else beta2

    def conditional(mean, update):
        if simple_cond:
            return running_mean(mean.square(), update.square(), keep)
        # The docstring's three terms as two squares: rounded, their sum could be negative.
        return (
            beta**2 * (2 - beta**2) * mean.square()
            + rest**2 * (update + beta * mean).square()
        )

    def update(g, state, p, ctx):
        new_state, old, direction = {}, g, g
        if mode != "g":
            old = torch.where(ctx.seen, state["exp_avg"], ctx.grad)
            direction = new_state["exp_avg"] = running_mean(old, g, beta)
        if mode == "c":
            v = conditional(old, g)
        else:
            before = torch.where(ctx.seen, state["exp_avg_sq"], ctx.grad.square())
            v = new_state["exp_avg_sq"] = running_mean(before, direction.square(), keep)
        return quotient(direction, safe_sqrt(v) + eps, floor=eps), new_state

    slots = {
        "exp_avg": linear() if mode != "g" else None,
        "exp_avg_sq": square() if mode != "c" else None,
    }
    return slots, update


@alias(class_name="BCOS")
def bcos(
    lr=1e-3,
    beta: Decay = 0.9,
    beta2: Decay | None = None,
    eps=1e-6,
    weight_decay=0.1,
    *,
    decoupled_weight_decay=True,
    **options: Annotated[Any, scale_by_bcos],
):
    r"""BCOS: a momentum divided by an estimate of its root mean square, with one slot less than Adam.

    $p \leftarrow p - \eta (d_t / (\sqrt{v_t} + \epsilon) + \lambda p)$; in mode "c", $d$ is the momentum $m$, and $v_t$
    is the mean square of $m_t$ given $m_{t-1}$. See `scale_by_bcos`.

    When to use: instead of AdamW, at half the memory with the same rate and decay (the paper's claim).

    Args:
        lr: $\eta$ in [0, inf).
        beta: $\beta$ in [0, 1), the decay rate of the momentum.
        beta2: $\beta_2$ in [0, 1), the decay rate of the mean square. None: $\beta$, or $1 - (1-\beta)^2$ with
            `simple_cond`.
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$.
        mode: "c" (conditional), "m" (averaged squares of the momentum) or "g" (of the gradient, without momentum).
        simple_cond: In mode "c", use the simpler estimate $\beta_2 m_{t-1}^2 + (1-\beta_2) g_t^2$.
        decoupled_weight_decay: Subtract $\eta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg` (modes "c" and "m") and
        `exp_avg_sq` (modes "m" and "g"), both initialized from the first gradient.

    Example:
        >>> # the first step is the sign of the gradient
        >>> tx = gradtx.bcos(lr=0.1, weight_decay=0.0)
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Jiang et al. 2025, arXiv:2507.08963. Departures: see `scale_by_bcos`.
    """
    direction = scale_by_bcos(beta, beta2, eps, **options)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)
