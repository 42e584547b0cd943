"""Averages of weights as the last link: `average` and `lookahead`."""

from __future__ import annotations

import torch

from gradtx.arguments import Count, Decay, Fraction, NonNegativeInt
from gradtx.execution.traits import SYNCHRONIZES
from gradtx.maths.entries import at_least, running_mean, synchronized
from gradtx.rules import per_tensor
from gradtx.slots import start

__all__ = ["average", "lookahead"]

OF_AVERAGES = {
    "elementwise": True,
    "needs": "params",
    "rate": "after",
    "sign": "neutral",
}


@per_tensor(**OF_AVERAGES, by_rows=SYNCHRONIZES)
def lookahead(k: Count = 5, alpha: Fraction = 0.5):
    r"""Move slow weights part of the way to the fast ones at every k-th step and restart from there.

    Last link of a chain. With $p' = p + u$: if $t \bmod k = 0$, $s \leftarrow s + \alpha (p' - s)$ and the update
    becomes $s - p$; otherwise it is unchanged. $s$ starts as the parameters passed to `init`.

    Args:
        k: Steps between synchronizations, >= 1.
        alpha: $\alpha$ in [0, 1]; 1 changes nothing.

    Returns:
        A transformation that keeps shapes and dtypes. State: `slow`, shaped as the parameter, which `eval_params`
        returns.

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

    def update(u, state, p, ctx):
        now = ctx.step % k == 0
        slow = synchronized(now, state["slow"], p + u, alpha)
        return torch.where(now, slow - p, u), {"slow": slow}

    return {"slow": start(slow=True)}, update, lambda state, param: state["slow"]


# A constant, because `start` is an argument of `average`.
_AVERAGE = {"average": start(slow=True)}


@per_tensor(**OF_AVERAGES)
def average(decay: Decay | None = None, start: NonNegativeInt = 0, debias=False):
    r"""Keep an average of the weights for evaluation; updates pass unchanged.

    Last link of a chain. With $p' = p + u$: $a \leftarrow p'$ while $t \le$ `start`; afterwards
    $a \leftarrow a + (p' - a)/(t - \mathrm{start})$ (Polyak's mean), or, with a decay,
    $a \leftarrow \beta a + (1-\beta) p'$; with `debias`, the weight of $p'$ is
    $(1-\beta)/(1-\beta^{t-\mathrm{start}})$.

    A leaf without a gradient is skipped, its average too: it moves on towards the weight with the next gradient, and a
    leaf that is frozen for good keeps the average that it has. torch's `AveragedModel` averages all leaves in every
    call; use it where averages of absent leaves must catch up with their weights.

    Args:
        decay: $\beta$ in [0, 1), or None for the mean of all weights since `start`.
        start: Steps before averaging begins, >= 0. With 0, an average with a decay begins at the initial weights; with
            1, at those after the first step, as in torch's `AveragedModel` with `get_ema_multi_avg_fn`.
        debias: Average from 0 with Adam's bias correction, so that the first weights count no more than the others. The
            corrected average is stored. Requires a decay.

    Returns:
        A transformation that leaves updates unchanged. State: `average`, shaped as the parameter, which `eval_params`
        returns.

    Raises:
        ValueError: If `debias` is set without a decay.

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

    def averaged(old, new, ctx):
        steps = at_least(ctx.time - start, 1)
        if decay is None:
            return old + (new - old) / steps
        if debias:
            return old + (1 - decay) / ctx.bias_correction(decay, steps) * (new - old)
        return running_mean(old, new, decay)

    def update(update, state, param, ctx):
        moved = param + update
        mean = averaged(state["average"], moved, ctx)
        return update, {"average": torch.where(ctx.step <= start, moved, mean)}

    return _AVERAGE, update, lambda state, param: state["average"]
