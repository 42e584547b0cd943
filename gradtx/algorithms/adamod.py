"""AdaMod: Adam whose rate for each weight is at most the average of its past values."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import Decay, is_off
from gradtx.links.decay import add_decayed_weights, split_decay
from gradtx.maths.entries import (
    adam_moments,
    hat_rate,
    plus_decay,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import square
from gradtx.transform import chain

__all__ = ["adamod", "scale_by_adamod"]


@per_tensor(
    elementwise=True,
    needs=lambda arguments: () if is_off(arguments["weight_decay"]) else ("params",),
    owns_lr=True,
)
def scale_by_adamod(
    lr=1e-3,
    betas=(0.9, 0.999),
    beta3: Decay = 0.999,
    eps=1e-8,
    weight_decay=0.0,
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

    Example:
        >>> tx = gradtx.scale_by_adamod(lr=0.1, beta3=0.75)
        >>> # a quarter of Adam's step
        >>> tx.update({"w": torch.tensor([4.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-0.0250])

    Source: Ding et al. 2019, arXiv:1910.12249. Departures: none from the authors' code.
    """
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        m, v, new_state = average(g, state)
        rates = lr * hat_rate(safe_sqrt(v) + eps, ctx, betas)
        usual = new_state["exp_avg_lr"] = running_mean(
            state["exp_avg_lr"], rates, beta3
        )
        step = -torch.minimum(rates, usual) * m
        return plus_decay(step, weight_decay, p, -lr), new_state

    return {**moments, "exp_avg_lr": square()}, update


@alias(class_name="AdaMod")
def adamod(
    *,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    **options: Annotated[Any, scale_by_adamod],
):
    r"""AdaMod: Adam whose rate for each weight is at most the average of its past values.

    $p \leftarrow p (1 - \eta_t \lambda) - \min(r_t, n_t) m_t$, where $r_t$ is Adam's rate, including $\eta_t$, and
    $n_t$ is its average, started at 0; see `scale_by_adamod`.

    When to use: deep networks in which Adam takes a few extreme steps early on; replaces a warm-up.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step once warmed up.
        betas: Decay rates of the two averages, each in [0, 1).
        beta3: Decay rate of the average rate, in [0, 1); acts as a warm-up of about $1/(1-\beta_3)$ steps.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, applied to the weights.
        decoupled_weight_decay: If False, the decay is added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `exp_avg_lr`.

    Example:
        >>> tx = gradtx.adamod(lr=0.1, beta3=0.9)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):  # a constant gradient: the rate warms up
        ...     updates, state = tx.update({"w": torch.tensor([5.0])}, state)
        ...     print(updates["w"])
        tensor([-0.0100])
        tensor([-0.0271])
        tensor([-0.0448])

    Source: Ding et al. 2019, arXiv:1910.12249. Departures: none; pytorch_optimizer's takes $\beta_3$ as a third beta,
    0.9999 by default.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled), scale_by_adamod(weight_decay=decoupled, **options)
    )
