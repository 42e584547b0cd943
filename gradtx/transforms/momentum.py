"""Momentum: averages of the updates themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transform import chain
from gradtx.transforms._math import running_mean, zeros

__all__ = ["ema", "trace", "trace_ema"]


@per_tensor(elementwise=True, example={"momentum": 0.9, "dampening": 0.1})
def trace(
    momentum: Scalar,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    dampen_first: bool = False,
):
    r"""Accumulate earlier updates with geometric weights: the momentum of torch.optim.SGD.

    $b_t = \mu b_{t-1} + (1 - \tau) g_t$ with $b_1 = g_1$; returns $b_t$, or $g_t + \mu b_t$ with `nesterov`.

    Args:
        momentum: $\mu$, in [0, inf), below 1 in practice. A literal 0.0 omits the link.
        dampening: $\tau$, usually in [0, 1).
        nesterov: Look one step ahead.
        dampen_first: Start from $b_0 = 0$, so that the first step is dampened as well.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter.

    Raises:
        ValueError: If `momentum` is negative, or if `nesterov` is used without momentum or, unless `dampen_first` is
            set, with dampening.

    Example:
        >>> tx = gradtx.trace(0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"].item())
        1.0
        1.5
        1.75

    Source: Polyak 1964; Sutskever et al. 2013, in the form of torch.optim.SGD. Departures: `dampen_first`.
    """
    # Only a plain number can be checked at construction; tensors and schedules are not checked.
    dampened = isinstance(dampening, float) and not is_off(dampening)
    if nesterov and (is_off(momentum) or (dampened and not dampen_first)):
        raise ValueError(
            "trace: nesterov needs a momentum above 0 and a dampening of 0"
        )
    if is_off(momentum):
        return chain()

    def update(update, state, param, ctx):
        buffer = accumulated(
            state["momentum_buffer"], update, momentum, dampening, ctx, dampen_first
        )
        return update + momentum * buffer if nesterov else buffer, {
            "momentum_buffer": buffer
        }

    return zeros("momentum_buffer"), update


def accumulated(
    buffer: Tensor, update: Tensor, momentum, dampening, ctx, dampen_first: bool = False
) -> Tensor:
    """Return the next momentum buffer of torch.optim.SGD, in which the first update is undampened."""
    if is_off(dampening):
        return momentum * buffer + update
    share = 1 - dampening
    if not dampen_first:
        share = torch.where(ctx.step == 1, torch.ones_like(ctx.time), share)
    return momentum * buffer + share * update


@per_tensor(
    ranges={"beta": "[0, 1)"},
    elementwise=True,
    example={"beta": 0.9},
    averages=lambda arguments: {"momentum_buffer": arguments["beta"]},
)
def trace_ema(beta: Scalar, nesterov: bool = False):
    r"""Replace updates by their exponential moving average, without bias correction, as a momentum.

    $b_t = \beta b_{t-1} + (1 - \beta) g_t$ from $b_0 = 0$; returns $b_t$, or $\beta b_t + (1 - \beta) g_t$ with
    `nesterov`.

    Args:
        beta: $\beta$, in [0, 1).
        nesterov: Look one step ahead.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter.

    Raises:
        ValueError: If `beta` is outside [0, 1).

    Example:
        >>> tx = gradtx.trace_ema(0.5, nesterov=True)
        >>> updates, state = tx.update({"w": torch.ones(1)}, tx.init({"w": torch.zeros(1)}))
        >>> updates["w"], state["trace_ema"]["momentum_buffer"]["w"]
        (tensor([0.7500]), tensor([0.5000]))

    Source: Nesterov 1983, in the averaged form of Muon's code. Departures: none; `ema` is the same average with an
    optional bias correction, under another slot name.
    """

    def update(update, state, param, ctx):
        increment = (1 - beta) * update
        buffer = beta * state["momentum_buffer"] + increment
        return beta * buffer + increment if nesterov else buffer, {
            "momentum_buffer": buffer
        }

    return zeros("momentum_buffer"), update


@per_tensor(
    ranges={"decay": "[0, 1)"},
    elementwise=True,
    example={"decay": 0.9},
    averages=lambda arguments: {"exp_avg": arguments["decay"]},
)
def ema(decay: Scalar, debias: bool = False):
    r"""Replace updates by their exponential moving average.

    $m_t = \beta m_{t-1} + (1 - \beta) g_t$ from $m_0 = 0$; returns $m_t$, or $m_t / (1 - \beta^t)$ with `debias`.

    Args:
        decay: $\beta$, in [0, 1).
        debias: Divide by $1 - \beta^t$. This is the default of optax's `ema`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter.

    Raises:
        ValueError: If `decay` is outside [0, 1).

    Example:
        >>> tx = gradtx.ema(0.5)
        >>> tx.update({"w": torch.ones(1)}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([0.5000])
    """

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, decay)
        return mean / ctx.bias_correction(decay) if debias else mean, {"exp_avg": mean}

    return zeros("exp_avg"), update
