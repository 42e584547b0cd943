"""EMA-Nesterov: gradients computed ahead of the weights, along an average of their steps."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import running_mean

__all__ = ["ema_nesterov"]


@per_tensor(
    elementwise=True,
    compiles=False,  # a program receives only the hyperparameters of the current step
    ahead=("step_size",),
    ranges={"decay": "[0, 1)", "start": "[0, inf)", "stop": "[0, inf)"},
)
def ema_nesterov(
    decay: Scalar = 0.99,
    step_size: Scalar = 0.3,
    start: int = 0,
    stop: int | None = None,
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

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.ema_nesterov(decay=0.5, step_size=1.0))
        >>> params = {"w": torch.tensor([0.0])}
        >>> updates, state = tx.update({"w": torch.tensor([-2.0])}, tx.init(params), params)
        >>> params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([3.]), tensor([2.]))

    Source: EMA-Nesterov, arXiv:2605.25395; modded-nanogpt, track 3. Departures: none.
    """
    _, following = step_size  # type: ignore[misc]

    def init(param):
        return {"ema": torch.zeros_like(param), "reach": exact(0.0, param.device)}

    def update(update, state, param, ctx):
        average, reach = state["ema"], state["reach"]
        average = running_mean(average, update + reach * average, decay)
        ahead = ctx.step >= start
        if stop is not None:
            ahead = ahead & (ctx.step < stop)
        reach = torch.where(ahead, exact(following, update.device), 0.0)
        return update + reach * average, {"ema": average, "reach": reach}

    def evaluate(state, param):
        return param - state["reach"] * state["ema"]

    return init, update, evaluate
