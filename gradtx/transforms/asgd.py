"""Gradient descent with averaged weights: torch's ASGD."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar, exact
from gradtx.rules import per_tensor

__all__ = ["scale_by_asgd"]


@per_tensor(
    elementwise=True,
    needs=("params",),
    owns_lr=True,
    ranges={"t0": "[0, inf)", "lambd": "[0, inf)", "alpha": "[0, inf)"},
)
def scale_by_asgd(
    lr: Scalar = 1e-2, lambd: Scalar = 1e-4, alpha: Scalar = 0.75, t0: Scalar = 1e6
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

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

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

    def init(param):
        rate = exact(lr, param.device)
        return {"ax": param, "eta": rate.clone(), "mu": torch.ones_like(rate)}

    def update(update, state, param, ctx):
        # torch creates its state at the first step, so a rate written after `init` must take effect there as well.
        rate = torch.where(ctx.step == 1, exact(lr, param.device), state["eta"])
        weight = state["mu"]
        step = -rate * update - (lambd * rate) * param
        moved = param + step
        mean = torch.where(
            weight == 1, moved, state["ax"] + weight * (moved - state["ax"])
        )
        rate = lr / (1 + lambd * lr * ctx.time) ** alpha
        return step, {"ax": mean, "eta": rate, "mu": 1 / (ctx.time - t0).clamp(min=1)}

    return init, update, lambda state, param: state["ax"]
