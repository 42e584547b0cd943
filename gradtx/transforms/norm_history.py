"""Bound gradients by the norms of earlier gradients: AdaGC, ZClip, Stable-SPAM's normalization."""

from __future__ import annotations

import math

import torch

from gradtx.base.dtensor import full_tensor
from gradtx.base.exact import Betas, Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    at_least,
    at_most,
    corrected_root,
    norm,
    quotient,
    running_mean,
    safe_sqrt,
    scalar_zero,
)
from gradtx.transforms.clipping import shrink

__all__ = ["clip_by_zscore", "clip_to_history", "normalize_by_norm_history"]


@per_tensor(
    takes_complex=True,
    ranges={
        "lambda_rel": "(0, inf)",
        "lambda_abs": "(0, inf)",
        "beta": "[0, 1)",
        "warmup_steps": "[0, inf)",
    },
)
def clip_to_history(
    lambda_rel: Scalar = 1.05,
    lambda_abs: Scalar = 1.0,
    beta: Scalar = 0.98,
    warmup_steps: int = 100,
    eps: Scalar = 1e-8,
):
    r"""Clip each leaf slightly above its usual norm: AdaGC's clipping.

    While $t < T$, and at a leaf's first gradient, $\hat g = g \min(1, \lambda_{abs} / (G + \epsilon))$, where $G$ is
    the norm over all leaves, and $\gamma \leftarrow \min(\gamma, \lVert \hat g \rVert)$ for each leaf. Afterwards
    $\hat g = g \min(1, \lambda_{rel} \max(\gamma, \epsilon) / \max(\lVert g \rVert, \epsilon))$ and
    $\gamma \leftarrow \beta \gamma + (1-\beta) \lVert \hat g \rVert$.

    Args:
        lambda_rel: $\lambda_{rel} > 0$, bound relative to $\gamma$. A value below 1 shrinks $\gamma$ to 0.
        lambda_abs: $\lambda_{abs} > 0$, bound on the norm over all leaves during the warm-up.
        beta: $\beta$ in [0, 1).
        warmup_steps: $T \ge 0$.
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `gamma`, 0-d float64 for each leaf, initially infinite.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.clip_to_history(lambda_rel=2.0, warmup_steps=0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (0.5, 9.0, 9.0):  # gamma is 0.5, then 0.51
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([0.5000])
        tensor([1.])
        tensor([1.0200])

    Source: Wang et al. 2025, arXiv:2502.11034. Departures: none from pytorch_optimizer, which computes $G$ in float32.
    """

    def init(param):
        return {"gamma": exact(math.inf, param.device)}

    def update(update, state, param, ctx):
        size = full_tensor(norm(update))
        total = yield {"square": size.square()}
        early = state["gamma"].isinf() | (ctx.step < warmup_steps)
        # Keep infinities out of the average.
        usual = torch.where(early, 1.0, state["gamma"])
        whole = safe_sqrt(total["square"]) + eps
        measured, bound = at_least(size, eps), lambda_rel * at_least(usual, eps)
        factor = torch.where(early, shrink(whole, lambda_abs), shrink(measured, bound))
        clipped = factor * size
        average = running_mean(usual, clipped, beta)
        smallest = torch.minimum(state["gamma"], clipped.to(state["gamma"].dtype))
        yield factor * update, {"gamma": torch.where(early, smallest, average)}

    return init, update


_STATISTICS = ("mean", "var", "count")


@per_tensor(
    elementwise=True,
    shared=dict.fromkeys(_STATISTICS, 0.0),
    agree=("z_thresh", "alpha", "warmup_steps", "max_norm", "eps", "mode", "clip_to"),
    ranges={
        "z_thresh": "(0, inf)",
        "alpha": "[0, 1)",
        "warmup_steps": "[1, inf)",
        "max_norm": "(0, inf]",
    },
)
def clip_by_zscore(
    z_thresh: Scalar = 2.5,
    alpha: Scalar = 0.97,
    warmup_steps: int = 25,
    max_norm: Scalar | None = 1.0,
    eps: Scalar = 1e-6,
    mode: str = "zscore",
    clip_to: str = "scaled",
):
    r"""Clip gradients whose norm is an outlier among earlier norms: ZClip.

    With $n$ the norm over all leaves, $\mu$ and $\sigma^2$ mean and variance of norms, $z = (n-\mu)/(\sigma+\epsilon)$:
    where $z > z^*$, the level is $\mu + z^{*2} \sigma / z$ (or $\mu$), otherwise $n$. The tree is scaled to the smaller
    of the level and `max_norm`. $\mu \leftarrow \alpha \mu + (1-\alpha) \mathrm{level}$, then
    $\sigma^2 \leftarrow \alpha \sigma^2 + (1-\alpha) (\mathrm{level} - \mu)^2$. During the first $W$ steps the level is
    $n$, and $\mu$ and $\sigma^2$ are those of all norms so far. First link of a chain.

    Args:
        z_thresh: $z^* > 0$.
        alpha: $\alpha$ in [0, 1).
        warmup_steps: $W \ge 1$.
        max_norm: Bound at every step, > 0; None for no bound.
        eps: $\epsilon \ge 0$, in the units of a norm.
        mode: "zscore", or "percentile": the level is $\min(n, \mu + z^* \sigma)$.
        clip_to: "scaled", or "mean": the level of outliers is $\mu$; only used with "zscore".

    Returns:
        A transformation that keeps shapes and dtypes. State: `mean`, `var` (during the warm-up the sum of squared
        deviations) and `count`, 0-d float64 shared by all leaves. A norm that is not finite corrupts them: wrap the
        chain in `skip_nonfinite`.

    Raises:
        ValueError: If an argument is out of range, or if `mode` or `clip_to` is unknown.

    Example:
        >>> tx = gradtx.clip_by_zscore(warmup_steps=2, max_norm=None)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 3.0, 4.0, 100.0):  # mean 2, deviation 1 after the second step
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([3.])
        tensor([4.])
        tensor([2.1291])

    Source: Kumar et al. 2025, arXiv:2504.02507. Departures: the norms of the warm-up are not stored; their variance is
    updated incrementally.
    """
    if mode not in ("zscore", "percentile"):
        raise ValueError(
            f"clip_by_zscore: mode must be 'zscore' or 'percentile', got {mode!r}"
        )
    if clip_to not in ("scaled", "mean"):
        raise ValueError(
            f"clip_by_zscore: clip_to must be 'scaled' or 'mean', got {clip_to!r}"
        )

    def level_of(size, mean, deviation):
        if mode == "percentile":
            return torch.minimum(size, mean + z_thresh * deviation)
        score = (size - mean) / at_least(
            deviation + eps, torch.finfo(deviation.dtype).tiny
        )
        outlier = score > z_thresh
        calm = (
            mean
            if clip_to == "mean"
            else mean + z_thresh**2 * deviation / torch.where(outlier, score, 1.0)
        )
        return torch.where(outlier, calm, size)

    def statistics_after(level, state, count, collecting):
        """Return the mean and the variance (while collecting, the sum of squared deviations) after this level."""
        rate = torch.where(collecting, 1 / count, 1 - alpha)
        mean = state["mean"] + rate * (level - state["mean"])
        summed = state["var"] + (level - state["mean"]) * (level - mean)
        summed = torch.where(count == warmup_steps, summed / warmup_steps, summed)
        averaged = running_mean(state["var"], (level - mean).square(), alpha)
        return mean, torch.where(collecting, summed, averaged)

    def update(update, state, param, ctx):
        total = yield {"square": update.square().sum()}
        size = safe_sqrt(total["square"])
        # Not the step of the leaf, which may have skipped some steps.
        count = state["count"] + 1
        collecting = count <= warmup_steps
        deviation = safe_sqrt(torch.where(collecting, 0.0, state["var"]))
        level = torch.where(collecting, size, level_of(size, state["mean"], deviation))
        bound = level if max_norm is None else at_most(level, max_norm)
        factor = torch.where(size > bound, bound / (size + 1e-6), 1.0)
        mean, variance = statistics_after(level, state, count, collecting)
        yield factor * update, {"mean": mean, "var": variance, "count": count}

    return update


@per_tensor(takes_complex=True, ranges={"gammas": "[0, 1)"})
def normalize_by_norm_history(gammas: Betas = (0.7, 0.9), eps: Scalar = 1e-8):
    r"""Scale each leaf to its mean norm relative to the variation of that norm: Stable-SPAM's normalization.

    With $n = \lVert g \rVert$ for each leaf, $a = \gamma_1 a + (1-\gamma_1) n$ and $b = \gamma_2 b + (1-\gamma_2) n^2$:
    $\frac{g}{n} \frac{a}{1-\gamma_1^t} / (\sqrt{b / (1-\gamma_2^t)} + \epsilon)$. A zero leaf remains zero.

    Args:
        gammas: $(\gamma_1, \gamma_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a norm.

    Returns:
        A transformation that keeps shapes and dtypes. State: `norm_avg`, `norm_sq_avg`, 0-d float64 for each leaf.

    Raises:
        ValueError: If a gamma is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.normalize_by_norm_history(gammas=(0.5, 0.5))
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([3.0, 4.0], [300.0, 400.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([0.6000, 0.8000])
        tensor([0.4923, 0.6564])

    Source: Huang et al. 2025, arXiv:2502.17055. Departures: none from the paper.
    """
    gamma1, gamma2 = gammas

    def init(param):
        zero = scalar_zero(param)
        return {"norm_avg": zero, "norm_sq_avg": zero}

    def update(update, state, param, ctx):
        size = full_tensor(norm(update))
        average = running_mean(state["norm_avg"], size, gamma1)
        square = running_mean(state["norm_sq_avg"], size.square(), gamma2)
        typical = corrected_root(square, ctx, gamma2) + eps
        factor = quotient(average / ctx.bias_correction(gamma1), size * typical)
        return factor * update, {"norm_avg": average, "norm_sq_avg": square}

    return init, update
