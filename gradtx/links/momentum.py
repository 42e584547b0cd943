"""Momentum and moving averages of updates."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.arguments import Decay, NonNegativeInt, Scalar, is_off
from gradtx.base.exact import exact
from gradtx.maths.entries import running_mean
from gradtx.rules import per_tensor
from gradtx.slots import ema as average_of
from gradtx.slots import linear, scalar
from gradtx.transform import chain

__all__ = [
    "ema",
    "ema_nesterov",
    "trace",
    "trace_ema",
]


@per_tensor(elementwise=True, moving_slot="momentum_buffer")
def trace(
    momentum,
    dampening: Scalar = 0.0,
    nesterov=False,
    dampen_first=False,
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

    return {"momentum_buffer": linear(decay=momentum)}, update


def accumulated(
    buffer: Tensor, update: Tensor, momentum, dampening, ctx, dampen_first: bool = False
) -> Tensor:
    """Return the next momentum buffer of torch.optim.SGD, in which the first update is undampened."""
    if is_off(dampening):
        return momentum * buffer + update
    share = 1 - dampening
    if not dampen_first:
        share = torch.where(ctx.seen, share, torch.ones_like(ctx.time))
    return momentum * buffer + share * update


@per_tensor(elementwise=True)
def trace_ema(beta: Decay, nesterov=False):
    r"""Replace updates by their exponential moving average, without bias correction, as a momentum.

    $b_t = \beta b_{t-1} + (1 - \beta) g_t$ from $b_0 = 0$; returns $b_t$, or $\beta b_t + (1 - \beta) g_t$ with
    `nesterov`.

    Args:
        beta: $\beta$, in [0, 1).
        nesterov: Look one step ahead.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter.

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

    return {"momentum_buffer": average_of(beta)}, update


@per_tensor(elementwise=True)
def ema(decay: Decay, debias=False):
    r"""Replace updates by their exponential moving average.

    $m_t = \beta m_{t-1} + (1 - \beta) g_t$ from $m_0 = 0$; returns $m_t$, or $m_t / (1 - \beta^t)$ with `debias`.
    For a moving average of the weights, use `average`.

    Args:
        decay: $\beta$, in [0, 1).
        debias: Divide by $1 - \beta^t$. This is the default of optax's `ema`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter.

    Example:
        >>> tx = gradtx.ema(0.5)
        >>> tx.update({"w": torch.ones(1)}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([0.5000])
    """

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, decay)
        return mean / ctx.bias_correction(decay) if debias else mean, {"exp_avg": mean}

    return {"exp_avg": average_of(decay)}, update


@per_tensor(elementwise=True, compiles=False, capturable=True, ahead="step_size")
def ema_nesterov(
    decay: Decay = 0.99,
    step_size: Scalar = 0.3,
    start: NonNegativeInt = 0,
    stop: NonNegativeInt | None = None,
):
    r"""Keep the parameters ahead of the weights, along an average of the weights' steps.

    Last link of a chain. The parameters are $y = x + b_t e$ with the weights $x$, where $b_t$ = `step_size` at steps
    `start` $< t \le$ `stop` and 0 otherwise. With the final update $u$, computed at $y$,
    $e \leftarrow \gamma e + (1-\gamma)(u + b_t e)$, and the update becomes $u + b_{t+1} e$. Thus $e$ averages the steps
    $x_{t+1} - x_t$, and the parameters equal the weights once $b$ is 0.

    Intended for large batches, as an alternative to `lookahead`. The published runs use 0.3 times the relative learning
    rate.

    Args:
        decay: $\gamma$ in [0, 1).
        step_size: Distance ahead, in average steps; at step $t$ a schedule is evaluated for $b_{t+1}$.
        start: The number of initial steps without it, >= 0.
        stop: The last step with it, >= 0; None for no limit.

    Returns:
        A transformation that keeps shapes and dtypes. State: `ema`, shaped as the parameter, and `reach`, 0-d: the
        current $b$ of the parameters. `eval_params` returns $x$.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.ema_nesterov(decay=0.5, step_size=1.0))
        >>> params = {"w": torch.tensor([0.0])}
        >>> updates, state = tx.update({"w": torch.tensor([-2.0])}, tx.init(params), params)
        >>> params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([3.]), tensor([2.]))

    Source: EMA-Nesterov, arXiv:2605.25395; modded-nanogpt, track 3. Departures: none.
    """

    def update(update, state, param, ctx):
        average, reach = state["ema"], state["reach"]
        average = running_mean(average, update + reach * average, decay)
        ahead = ctx.step >= start
        if stop is not None:
            ahead = ahead & (ctx.step < stop)
        reach = torch.where(ahead, exact(step_size, update.device), 0.0)
        return update + reach * average, {"ema": average, "reach": reach}

    def evaluate(state, param):
        return param - state["reach"] * state["ema"]

    return {"ema": linear(slow=True), "reach": scalar()}, update, evaluate
