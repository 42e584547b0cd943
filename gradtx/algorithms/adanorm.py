"""AdamNorm: Adam that lengthens gradients shorter than usual before its first average."""

from __future__ import annotations

from gradtx.arguments import Decay
from gradtx.links.decay import with_decay
from gradtx.maths.entries import (
    adam_moments,
    corrected_root,
    norm,
    peak,
    quotient,
    running_mean,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, scalar, square

__all__ = ["adanorm", "scale_by_adanorm"]


@per_tensor(takes_complex=True, length="sets", by_rows=True)
def scale_by_adanorm(
    betas=(0.9, 0.999),
    eps=1e-8,
    r: Decay = 0.95,
    amsgrad=False,
    accumulate_eps=False,
):
    r"""Lengthen gradients that are shorter than usual to their usual norm before Adam averages them: AdaNorm.

    For each leaf, $e_t = r e_{t-1} + (1-r) \lVert g_t \rVert$ from 0 and without bias correction,
    $s_t = g_t \max(1, e_t / \lVert g_t \rVert)$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) s_t$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$ with the original gradient, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$. A zero gradient remains 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        r: Decay of the average norm, in [0, 1).
        amsgrad: Use the running maximum of $v$ instead of $v$.
        accumulate_eps: Also add $\epsilon$ to the stored $v$ at every step, as in the authors' code.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter; `exp_grad_norm`, 0-d float64 for each leaf.

    Raises:
        ValueError: If a beta or `r` is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_adanorm(betas=(0.0, 0.5), r=0.5)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # e = 2, then 1.5: the second gradient is lengthened by half
        >>> for size in (4.0, 1.0):
        ...     _, state = tx.update({"w": torch.tensor([0.6, 0.8]) * size}, state)
        ...     print(state["scale_by_adanorm"]["exp_avg"]["w"])
        tensor([2.4000, 3.2000])
        tensor([0.9000, 1.2000])

    Source: Dubey et al. 2022, arXiv:2210.06364. Departures: none from the paper.
    """
    beta1, beta2 = betas
    moments, _ = adam_moments(betas, amsgrad)

    def update(g, state, p, ctx):
        length = norm(g)
        usual = running_mean(state["exp_grad_norm"], length, r)
        short = (length < usual) & (length > 0)
        lifted = quotient(usual, length, short, 1.0) * g
        m = running_mean(state["exp_avg"], lifted, beta1)
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        if accumulate_eps:
            v = v + eps
        new_state = {"exp_avg": m, "exp_avg_sq": v, "exp_grad_norm": usual}
        root = corrected_root(peak(new_state, state, "exp_avg_sq", amsgrad), ctx, beta2)
        return m / ctx.bias_correction(beta1) / (root + eps), new_state

    slots = {**moments, "exp_avg": linear(), "exp_grad_norm": scalar()}
    if accumulate_eps:  # which moves squares also without a gradient
        slots |= {slot: square() for slot in moments if slot != "exp_avg"}
    return slots, update


@alias(class_name="AdaNorm")
def adanorm(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    r: Decay = 0.95,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    accumulate_eps=False,
    amsgrad=False,
):
    r"""AdamNorm: Adam that lengthens gradients shorter than usual before its first average.

    $p \leftarrow p - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$, where $m$ averages
    $g_t \max(1, e_t / \lVert g_t \rVert)$ with $e$ the average norm of the leaf's gradients, and $v$ averages $g_t^2$.

    When to use: convolutional networks whose gradients vanish for many steps in a row, so that Adam's average fades
    away.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        r: Decay rate of the average norm, in [0, 1).
        weight_decay: $\lambda \ge 0$, added to the gradient and therefore part of its norm.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        accumulate_eps: Also add $\epsilon$ to the stored $v$ at every step, as the authors' code does.
        amsgrad: Use the running maximum of $v$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`] and the 0-d `exp_grad_norm`.

    Example:
        >>> tx = gradtx.adanorm(lr=0.1, betas=(0.0, 0.0), r=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 1.0):  # the second is lengthened to (2 + 1) / 2
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1500])

    Source: Dubey et al. 2022, arXiv:2210.06364. Departures: none from the paper. pytorch_optimizer's class always
    accumulates eps, and also divides it by the bias correction of $v$.
    """
    return with_decay(
        scale_by_adanorm(betas, eps, r, amsgrad, accumulate_eps),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )
