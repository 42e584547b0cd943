"""Gradient descent whose weights are averaged: torch's ASGD."""

from __future__ import annotations

import torch

from gradtx._arguments import Scalar
from gradtx._exact import exact
from gradtx.factories import per_tensor

__all__ = ["scale_by_asgd"]


@per_tensor(
    elementwise=True,
    needs=("params",),
    owns_lr=True,
    ranges={"t0": "[0, inf)", "lambd": "[0, inf)", "alpha": "[0, inf)"},
)
def scale_by_asgd(lr: Scalar = 1e-2, lambd: Scalar = 1e-4, alpha: Scalar = 0.75, t0: Scalar = 1e6):
    r"""Descend with a decaying rate and a little decay, and average the weights from some step on.

    $p_t = p_{t-1} (1 - \lambda \eta_t) - \eta_t g_t$, $a_t = a_{t-1} + \mu_t (p_t - a_{t-1})$; then
    $\eta_{t+1} = \eta / (1 + \lambda \eta t)^\alpha$ and $\mu_{t+1} = 1 / \max(1, t - t_0)$, from $\eta_1 = \eta$ and
    $\mu_1 = 1$. It owns the learning rate: no decay or learning rate may follow.

    Args:
        lr: $\eta$ in [0, inf). What is given for one step acts from the next one on; the first value acts twice.
        lambd: $\lambda \ge 0$, decay of weights and of the rate.
        alpha: $\alpha \ge 0$, power of the decay of the rate.
        t0: $t_0 \ge 0$. While $\mu = 1$ the average is the weights themselves, to step $t_0 + 2$.

    Returns:
        A transformation whose updates are added to the parameters. State: `ax`, $a_t$, shaped as the parameter;
        `eval_params` gives it; `eta` and `mu`, the next $\eta_t$ and $\mu_t$, 0-d float64 for every leaf.

    Raises:
        ValueError: numbers out of range, missing `params`, a link after it that scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_asgd(lr=1.0, lambd=0.0, t0=0.0)
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.tensor([-2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([6.]), tensor([5.]))

    Source: Polyak and Juditsky 1992, in the form of torch.optim.ASGD. Departures: `eta` and `mu` are kept in float64,
    which torch rounds to its default dtype.
    """

    def init(param):
        rate = exact(lr, param.device)
        return {"ax": param, "eta": rate.clone(), "mu": torch.ones_like(rate)}

    def update(update, state, param, ctx):
        # As in torch, which makes its state at the first step: a rate written since `init` counts.
        rate, weight = torch.where(ctx.step == 1, exact(lr, param.device), state["eta"]), state["mu"]
        step = -rate * update - (lambd * rate) * param
        moved = param + step
        mean = torch.where(weight == 1, moved, state["ax"] + weight * (moved - state["ax"]))
        rate = lr / (1 + lambd * lr * ctx.time) ** alpha
        return step, {"ax": mean, "eta": rate, "mu": 1 / (ctx.time - t0).clamp(min=1)}

    return init, update, lambda state, param: state["ax"]
