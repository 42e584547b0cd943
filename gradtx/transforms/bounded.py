"""Adam's direction with bounds on the rate of each weight: AdaBound (AMSBound), AdaMod."""

from __future__ import annotations

import torch

from gradtx.arguments import is_off
from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import adam_moments, hat_rate, plus_decay, safe_sqrt
from gradtx.transforms.decay import initial_lr

__all__ = ["scale_by_adabound", "scale_by_adamod"]


@per_tensor(
    elementwise=True,
    ranges={"final_lr": "[0, inf)", "gamma": "(0, inf)"},
    example={"lr": 1e-3},
    nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
)
def scale_by_adabound(
    lr: Scalar,
    final_lr: Scalar = 0.1,
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    gamma: Scalar = 1e-3,
    amsgrad: bool = False,
):
    r"""Clip Adam's rates to a band that narrows to a single rate: from Adam to SGD with momentum.

    With Adam's $m_t$, $v_t$ and $c_i = 1-\beta_i^t$, the direction is $r_t m_t$, where
    $r_t = \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)}$ is clipped to
    $[f (1 - \frac{1}{\gamma t + 1}), f (1 + \frac{1}{\gamma t})]$. $f$ is `final_lr` over the initial learning rate, so
    that after `scale_by_learning_rate` the band surrounds `final_lr` and follows a schedule.

    Args:
        lr: The rate of the `scale_by_learning_rate` that follows, initially above 0. Only its first value is read.
        final_lr: The limit of each weight's rate, >= 0.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        gamma: Speed at which the band narrows, > 0: its width is halved after about $1/\gamma$ steps.
        amsgrad: Use the running maximum of $v$ instead of $v$ (AMSBound).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter; `initial_lr`, 0-d float64 for each leaf.

    Raises:
        ValueError: If an argument is out of range, or if `lr` is initially 0.

    Example:
        >>> # a narrow band from the start
        >>> tx = gradtx.scale_by_adabound(lr=0.01, final_lr=0.1, gamma=1e6)
        >>> # 10 m
        >>> tx.update({"w": torch.tensor([0.5, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 0.5000, -4.0000])

    Source: Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate" (ICLR). Departures: none
    from the authors' code, which clips after the learning rate.
    """
    moments, average = adam_moments(betas, amsgrad)

    def init(param):
        return moments(param) | initial_lr(
            "scale_by_adabound", lr, param, "final_lr", "use an initial value above 0"
        )

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        final, narrowing = final_lr / state["initial_lr"], gamma * ctx.time
        lowest, highest = final * (1 - 1 / (narrowing + 1)), final * (1 + 1 / narrowing)
        rates = hat_rate(safe_sqrt(square) + eps, ctx, betas).clamp(lowest, highest)
        return rates * mean, new | {"initial_lr": state["initial_lr"]}

    return init, update


@per_tensor(
    ranges={"beta3": "[0, 1)"},
    elementwise=True,
    needs=lambda arguments: () if is_off(arguments["weight_decay"]) else ("params",),
    owns_lr=True,
    nonnegative=("exp_avg_sq", "exp_avg_lr"),
)
def scale_by_adamod(
    lr: Scalar = 1e-3,
    betas: Betas = (0.9, 0.999),
    beta3: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
):
    r"""Bound Adam's rate of each weight by the average of its past values.

    With Adam's $m_t$, $v_t$ and $c_i = 1-\beta_i^t$: $r_t = \eta_t \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)}$,
    $n_t = \beta_3 n_{t-1} + (1-\beta_3) r_t$ from 0 and without bias correction, update
    $-\min(r_t, n_t) m_t - \eta_t \lambda p$. It owns the learning rate, because $n$ averages rates that include it.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        beta3: $\beta_3$ in [0, 1); roughly the first $1/(1-\beta_3)$ steps are a warm-up.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `exp_avg_lr`,
        shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing and `weight_decay` is not 0.0, or if a later
            link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_adamod(lr=0.1, beta3=0.75)
        >>> # a quarter of Adam's step
        >>> tx.update({"w": torch.tensor([4.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-0.0250])

    Source: Ding et al. 2019, arXiv:1910.12249. Departures: none from the authors' code.
    """
    init, average = adam_moments(betas, False, "exp_avg_lr")

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        rates = lr * hat_rate(safe_sqrt(square) + eps, ctx, betas)
        usual = beta3 * state["exp_avg_lr"] + (1 - beta3) * rates
        step = -torch.minimum(rates, usual) * mean
        step = plus_decay(step, weight_decay, param, -lr)
        return step, new | {"exp_avg_lr": usual}

    return init, update
