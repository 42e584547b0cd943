"""Averages of the weights: lookahead, Polyak and exponential averages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import running_mean

__all__ = ["average", "lookahead"]


@per_tensor(
    ranges={"k": "[1, inf)", "alpha": "[0, 1]"},
    elementwise=True,
    needs=("params",),
    follows_rate=True,
)
def lookahead(k: int = 5, alpha: Scalar = 0.5):
    r"""Move slow weights part of the way to the fast ones at every k-th step and restart from there.

    Last link of a chain. With $p' = p + u$: if $t \bmod k = 0$, $s \leftarrow s + \alpha (p' - s)$ and the update
    becomes $s - p$; otherwise it is unchanged. $s$ starts as the parameters passed to `init`.

    Args:
        k: Steps between synchronizations, >= 1.
        alpha: $\alpha$ in [0, 1]; 1 changes nothing.

    Returns:
        A transformation that keeps shapes and dtypes. State: `slow`, shaped as the parameter, which `eval_params`
        returns.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.lookahead(k=2, alpha=0.5))
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([-1.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([1.])
        tensor([1.])

    Source: Zhang et al. 2019, arXiv:1907.08610. Departures: none; the authors' momentum options are in
    `with_lookahead`.
    """

    def init(param):
        return {"slow": param}

    def update(update, state, param, ctx):
        now = ctx.step % k == 0
        slow, fast = state["slow"], param + update
        slow = synchronized(now, slow, fast, alpha)
        return torch.where(now, slow - param, update), {"slow": slow}

    return init, update, lambda state, param: state["slow"]


def synchronized(now: Tensor, slow: Tensor, fast: Tensor, alpha: Any) -> Tensor:
    """Move slow weights part of the way to the fast ones where `now` is true."""
    return torch.where(now, slow + alpha * (fast - slow), slow)


@per_tensor(
    ranges={"decay": "[0, 1)", "start": "[0, inf)"},
    elementwise=True,
    needs=("params",),
    follows_rate=True,
)
def average(decay: Scalar | None = None, start: int = 0, debias: bool = False):
    r"""Keep an average of the weights for evaluation; updates pass unchanged.

    Last link of a chain. With $p' = p + u$: $a \leftarrow p'$ while $t \le$ `start`; afterwards
    $a \leftarrow a + (p' - a)/(t - \mathrm{start})$ (Polyak's mean), or, with a decay,
    $a \leftarrow \beta a + (1-\beta) p'$; with `debias`, the weight of $p'$ is
    $(1-\beta)/(1-\beta^{t-\mathrm{start}})$.

    Args:
        decay: $\beta$ in [0, 1), or None for the mean of all weights since `start`.
        start: Steps before averaging begins, >= 0.
        debias: Average from 0 with Adam's bias correction, so that the first weights count no more than the others. The
            corrected average is stored. Requires a decay.

    Returns:
        A transformation that leaves updates unchanged. State: `average`, shaped as the parameter, which `eval_params`
        returns.

    Raises:
        ValueError: If an argument is out of range, if `debias` is set without a decay, or if `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.average())
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([-2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([4.]), tensor([3.]))

    Source: Polyak and Juditsky 1992. Departures: `decay`; the paper uses the mean.
    """
    if debias and decay is None:
        raise ValueError("average: debias requires a decay")

    def init(param):
        return {"average": param}

    def averaged(old, new, ctx):
        steps = (ctx.time - start).clamp(min=1)
        if decay is None:
            return old + (new - old) / steps
        if debias:
            return old + (1 - decay) / ctx.bias_correction(decay, steps) * (new - old)
        return running_mean(old, new, decay)

    def update(update, state, param, ctx):
        new = param + update
        mean = averaged(state["average"], new, ctx)
        return update, {"average": torch.where(ctx.step <= start, new, mean)}

    return init, update, lambda state, param: state["average"]
