"""ASGD, equivalent to torch.optim.ASGD: SGD with a decaying rate that also averages its weights."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import NonNegative
from gradtx.base.exact import exact
from gradtx.links.decay import add_decayed_weights
from gradtx.maths.entries import at_least
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar, start
from gradtx.transform import chain

__all__ = ["asgd", "scale_by_asgd"]


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_asgd(
    lr=1e-2,
    lambd: NonNegative = 1e-4,
    alpha: NonNegative = 0.75,
    t0: NonNegative = 1e6,
):
    r"""Descend with a decaying rate and a small weight decay, and average the weights from a given step on.

    $p_t = p_{t-1} (1 - \lambda \eta_t) - \eta_t g_t$, $a_t = a_{t-1} + \mu_t (p_t - a_{t-1})$; then
    $\eta_{t+1} = \eta / (1 + \lambda \eta t)^\alpha$ and $\mu_{t+1} = 1 / \max(1, t - t_0)$, from $\eta_1 = \eta$ and
    $\mu_1 = 1$. It owns the learning rate: no decay or learning rate may follow.

    Args:
        lr: $\eta$ in [0, inf). The value passed for a step takes effect at the next one; the first value is used twice.
        lambd: $\lambda \ge 0$, decay of the weights and of the rate.
        alpha: $\alpha \ge 0$, exponent of the rate's decay.
        t0: $t_0 \ge 0$. While $\mu = 1$, up to step $t_0 + 2$, the average equals the weights.

    Returns:
        A transformation whose updates are added to the parameters. State: `ax` ($a_t$), shaped as the parameter, which
        `eval_params` returns; `eta` and `mu`, the next $\eta_t$ and $\mu_t$, 0-d float64 for each leaf.

    Example:
        >>> tx = gradtx.scale_by_asgd(lr=1.0, lambd=0.0, t0=0.0)
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.tensor([-2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([6.]), tensor([5.]))

    Source: Polyak and Juditsky 1992, in the form of torch.optim.ASGD. Departures: `eta` and `mu` are stored in
    float64, whereas torch rounds them to its default dtype.
    """

    def update(g, state, p, ctx):
        # torch creates its state at the first step, so a rate written after `init` must take effect there as well.
        rate = torch.where(ctx.seen, state["eta"], exact(lr, p.device))
        old, weight = state["ax"], state["mu"]
        step = -rate * g - (lambd * rate) * p
        moved = p + step
        mean = torch.where(weight == 1, moved, old + weight * (moved - old))
        rate = lr / (1 + lambd * lr * ctx.time) ** alpha
        return step, {"ax": mean, "eta": rate, "mu": 1 / at_least(ctx.time - t0, 1)}

    slots = {"ax": start(slow=True), "eta": scalar(lr), "mu": scalar(1.0)}
    return slots, update, lambda state, p: state["ax"]


@alias(class_name="ASGD")
def asgd(*, weight_decay=0.0, **options: Annotated[Any, scale_by_asgd]):
    r"""ASGD, equivalent to torch.optim.ASGD: SGD with a decaying rate that also averages its weights.

    $p \leftarrow p (1 - \lambda \eta_t) - \eta_t (g + w p)$ with $\eta_t = \eta / (1 + \lambda \eta (t - 1))^\alpha$,
    and the mean of $p$ since step $t_0$.

    When to use: when you need the average of plain SGD's weights on a convex or nearly convex problem.

    Args:
        lr: $\eta$ in [0, inf), the change of a weight per unit of gradient; a change of $\eta$ takes effect one step
            later.
        lambd: $\lambda \ge 0$, the decay of the weights and of the rate.
        alpha: $\alpha \ge 0$, the exponent of the decay of the rate.
        t0: $t_0 \ge 0$, the step at which the average begins.
        weight_decay: $w \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `ax`, the average, which `eval_params`
        returns; per leaf, `eta` and `mu`, 0-d.

    Example:
        >>> tx = gradtx.asgd(lr=1.0, lambd=0.0, t0=0.0)
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.tensor([-2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([6.]), tensor([5.]))

    Source: Polyak and Juditsky 1992. Departures: none from torch.optim.ASGD, except that `eta` and `mu` are float64.
    pytorch_optimizer's ASGD is a different method: see `adaptive_gd`.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_asgd(**options))
