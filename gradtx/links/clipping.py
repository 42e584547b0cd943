"""Bounds on gradients and updates: by value, norm, root mean square, history or spikes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gradtx.arguments import (
    Count,
    Decay,
    Decays,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveOrInf,
    Scalar,
    Static,
)
from gradtx.distributed.redistribution import full_tensor
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.maths.entries import (
    at_least,
    at_most,
    corrected_root,
    largest,
    norm,
    norms,
    quotient,
    running_mean,
    safe_sqrt,
    unit_norm,
)
from gradtx.rules import per_tensor
from gradtx.slots import scalar, square

__all__ = [
    "bound_norm",
    "clip_adaptive",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "clip_by_zscore",
    "clip_spikes",
    "clip_to_history",
    "clip_to_peak_history",
    "normalize_by_global_norm",
    "normalize_by_norm_history",
    "normalize_by_std",
    "soft_row_clip",
    "zero_nans",
]


def clip_rare_spikes(g: Tensor, v: Tensor, ctx, threshold, clip_after: int, every: int):
    """Clip entries whose square exceeds the threshold times its average, except shortly after a restart."""
    due = (ctx.step >= clip_after) & (ctx.step % every >= clip_after)
    limit = threshold * v
    return torch.where(due & (g.square() > limit), g.sign() * safe_sqrt(limit), g)


@per_tensor(elementwise=True)
def clip_spikes(
    threshold: Positive = 5000.0,
    beta2: Decay = 0.999,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
):
    r"""Clip entries whose square is many times its average: SPAM's clipping.

    With $v$ the average of squares before this step, from 0 and without bias correction: where $g^2 > \theta v$, $g$
    becomes $\mathrm{sign}(g) \sqrt{\theta v}$, if $t \ge c$ and $t \bmod N \ge c$. Then
    $v \leftarrow \beta_2 v + (1-\beta_2) g^2$ with the clipped $g$. Use it inside `restart` with the same period, which
    resets $v$ to 0. Before Adam, use `scale_by_spam` instead, which shares one $v$.

    Args:
        threshold: $\theta > 0$.
        beta2: $\beta_2$ in [0, 1).
        clip_after: $c \ge 0$, number of steps after a restart without clipping. Use at least 2: where $v$ is still 0,
            the gradient is clipped to 0, as are all later ones.
        every: $N \ge 1$, the number of steps between restarts.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.clip_spikes(threshold=4.0, beta2=0.75, clip_after=2)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([2.0, 2.0], [1.0, -9.0]):  # v is 1, so entries are clipped to 2
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([2., 2.])
        tensor([ 1., -2.])

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: none.
    """

    def update(g, state, p, ctx):
        v = state["exp_avg_sq"]
        g = clip_rare_spikes(g, v, ctx, threshold, clip_after, every)
        return g, {"exp_avg_sq": running_mean(v, g.square(), beta2)}

    return {"exp_avg_sq": square()}, update


@per_tensor(elementwise=True, length="bounds")
def clip_by_value(max_value: PositiveOrInf):
    """Clamp every entry to [-max_value, max_value].

    Args:
        max_value: The bound, > 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.clip_by_value(1.0)
        >>> tx.update({"w": torch.tensor([-3.0, 0.5])}, tx.init({}))[0]["w"]
        tensor([-1.0000,  0.5000])
    """

    def update(update, state, param, ctx):
        return update.clamp(-max_value, max_value), state

    return update


@per_tensor(takes_complex=True, length="bounds", by_rows=True)
def clip_by_norm(max_norm: PositiveOrInf):
    r"""Scale each leaf separately to a norm of at most `max_norm`: $u \min(1, c / \lVert u \rVert)$.

    An infinite norm gives the factor 0, a NaN makes the whole leaf NaN.

    Args:
        max_norm: $c > 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.clip_by_norm(1.0)
        >>> tx.update({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.5])}, tx.init({}))[0]
        {'a': tensor([0.6000, 0.8000]), 'b': tensor([0.5000])}

    Source: Pascanu et al. 2012, arXiv:1211.5063. Departures: the norm is computed for each leaf separately.
    """

    def update(update, state, param, ctx):
        return update * shrink(norm(update), max_norm), state

    return update


@per_tensor(
    elementwise=True,
    agree=("max_norm", "eps"),
    # Of the previous step; the initial value 0 does not clip.
    shared=lambda arguments: {"norm": 0.0} if arguments["stale"] else {},
    summed={"norm": safe_sqrt},
    extras={"global_norm": "scalar?"},
    length="bounds",
    by_rows=True,
)
def clip_by_global_norm(
    max_norm: PositiveOrInf,
    eps=1e-6,
    stale: Static[bool] = False,
):
    r"""Scale the whole tree to a norm of at most `max_norm`, preserving its direction.

    $u \min(1, c / (G + \epsilon))$, where $G$ is the 2-norm over all leaves together, as in torch's `clip_grad_norm_`.
    An infinite norm gives the factor 0, a NaN makes every update NaN, as there. If other processes have more leaves of
    the model, as the stages of a pipeline do, pass the norm over all of them to `update` or `step` as the extra
    `global_norm`.

    Args:
        max_norm: $c > 0$.
        eps: $\epsilon \ge 0$.
        stale: Clip by the norm $G$ of the previous step, so that no leaf waits for the others (`release_gradients`).
            The first step is not clipped.

    Returns:
        A transformation that keeps shapes and dtypes. State: with `stale`, `norm`, the norm of the previous updates
        over all leaves, 0-d float64; otherwise none.

    Example:
        >>> tx = gradtx.clip_by_global_norm(1.0, eps=0.0)
        >>> tx.update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, tx.init({}))[0]
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}

    Source: Pascanu et al. 2012, arXiv:1211.5063. Departures: eps, as in torch's `clip_grad_norm_`; `stale` is an
    addition.
    """

    def update(g, state, p, ctx):
        norm = ctx.global_norm
        if norm is None:
            total = yield {"square": g.square().sum()}
            norm = safe_sqrt(total["square"])
        yield g * shrink(norm + eps, max_norm), state

    def update_by_norm_of_before(g, state, p, ctx):
        factor = shrink(state["norm"] + eps, max_norm)
        return g * factor, {"norm": g.square().sum()}

    return update_by_norm_of_before if stale else update


@per_tensor(elementwise=True, agree="eps", length="sets", by_rows=True)
def normalize_by_global_norm(eps=1e-6):
    r"""Scale the whole tree to norm 1, preserving its direction: $u / (G + \epsilon)$.

    $G$ is the 2-norm over all leaves together. An infinite norm gives the factor 0, a NaN makes every update NaN.

    Args:
        eps: $\epsilon \ge 0$; with 0, a tree of zeros is unchanged.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.normalize_by_global_norm(eps=0.0)
        >>> tx.update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, tx.init({}))[0]
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}

    Source: Hazan, Levy and Shalev-Shwartz 2015, arXiv:1507.02030. Departures: eps, as in optax's
    `normalize_by_update_norm`.
    """

    def update(update, state, param, ctx):
        total = yield {"square": update.square().sum()}
        yield quotient(update, safe_sqrt(total["square"]) + eps, floor=eps), state

    return update


def shrink(size: Tensor, bound) -> Tensor:
    """Return min(1, bound / size), with safe values and gradients at size 0 and bound inf."""
    return quotient(bound, size, size > bound, 1.0)


@per_tensor(needs="params", length="bounds")
def clip_adaptive(clipping: Positive = 0.01, eps: NonNegative = 1e-3):
    r"""Clip the update of each output unit relative to the norm of its weights (adaptive gradient clipping).

    If a unit's $\lVert u_i \rVert > \lambda \max(\lVert p_i \rVert, \epsilon)$, it is scaled down to that bound.
    A unit is an index of dimension 0; a leaf with 0 or 1 dimensions is one unit. An infinite norm gives the factor 0, a
    NaN makes the whole unit NaN.

    Args:
        clipping: $\lambda > 0$.
        eps: $\epsilon \ge 0$, which allows zero weights to learn.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.clip_adaptive(0.5)
        >>> params = {"w": torch.tensor([[3.0, 4.0], [0.0, 10.0]])}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[0.0, 5.0], [1.0, 0.0]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[0.0000, 2.5000],
                [1.0000, 0.0000]])

    Source: Brock et al. 2021, arXiv:2102.06171. Departures: units are along dimension 0, as in torch.
    """

    def update(g, state, p, ctx):
        size, limit = unit_norm(g), clipping * at_least(unit_norm(p), eps)
        clipped = g * (limit / at_least(size, 1e-6))
        return torch.where(size <= limit, g, clipped), state

    return update


@per_tensor(takes_complex=True, needs="params")
def bound_norm(p_bound: Positive):
    r"""Keep the norm of each leaf of weights below a multiple of its initial norm.

    Place it after the learning rate. With $x = p + u$ the update becomes
    $x \min(1, b / \lVert x \rVert) - p$, $b = c \lVert p_0 \rVert$. An infinite norm gives the factor 0, a NaN makes
    the whole leaf NaN.

    Args:
        p_bound: $c > 0$; only read by `init`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `bound`, the $b$ of each leaf, 0-d float64.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.bound_norm(2.0))
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([-27.0, -36.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([6., 8.])

    Source: Bernstein et al. 2020, arXiv:2002.03432. Departures: none.
    """

    def update(update, state, param, ctx):
        moved = param + update
        return moved * shrink(norm(moved), state["bound"]) - param, state

    return {"bound": scalar(lambda p: p_bound * norm(p))}, update


def soft_row_clip(x: Tensor, max_norm: Scalar) -> Tensor:
    r"""Divide each row (last axis) of a tensor with 2 or more dimensions by its softly clamped norm.

    $n' = h \tanh((n - c)/h) + c$ with $c = (M+1)/2$, $h = (M-1)/2$; the result is $x / \max(n', 10^{-5})$, so rows with
    norms in about [1, M] end near norm 1. For use in `map_after_step`.

    Args:
        x: The parameter.
        max_norm: $M > 1$.

    Returns:
        A new tensor of the same shape; `x` unchanged if it has fewer than 2 dimensions.

    Raises:
        ValueError: If `max_norm` is not above 1.

    Example:
        >>> soft_row_clip(torch.tensor([[1.5, 0.0]]), 2.0)
        tensor([[1., 0.]])

    Source: Volchkov and Rivlin 2026, "Clip to Grok", in the form of adam-atan2-pytorch 0.4.1. Departures: none from the
    latter.
    """
    if isinstance(max_norm, float | int) and not max_norm > 1:
        raise ValueError(f"soft_row_clip: max_norm must be above 1, got {max_norm!r}")
    if x.ndim < 2:
        return x
    middle, half = (max_norm + 1) / 2, (max_norm - 1) / 2
    size = norms(x, -1)
    return x / at_least(half * ((size - middle) / half).tanh() + middle, 1e-5)


@per_tensor(takes_complex=True, length="bounds", by_rows=True)
def clip_to_history(
    lambda_rel: Positive = 1.05,
    lambda_abs: Positive = 1.0,
    beta: Decay = 0.98,
    warmup_steps: NonNegativeInt = 100,
    eps=1e-8,
):
    r"""Clip each leaf slightly above its usual norm: AdaGC's clipping.

    While $t < T$, and at a leaf's first gradient, $\hat g = g \min(1, \lambda_{abs} / (G + \epsilon))$, where $G$ is
    the norm over all leaves, and $\gamma \leftarrow \min(\gamma, \lVert \hat g \rVert)$ for each leaf. Afterwards
    $\hat g = g \min(1, \lambda_{rel} \max(\gamma, \epsilon) / \max(\lVert g \rVert, \epsilon))$ and
    $\gamma \leftarrow \beta \gamma + (1-\beta) \lVert \hat g \rVert$. An infinite norm gives the factor 0, a NaN makes
    all updates that it scales NaN, and with them $\gamma$: wrap the chain in `skip_nonfinite`.

    Args:
        lambda_rel: $\lambda_{rel} > 0$, bound relative to $\gamma$. A value below 1 shrinks $\gamma$ to 0.
        lambda_abs: $\lambda_{abs} > 0$, bound on the norm over all leaves during the warm-up.
        beta: $\beta$ in [0, 1).
        warmup_steps: $T \ge 0$.
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `gamma`, 0-d float64 for each leaf, initially infinite.

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

    def update(g, state, p, ctx):
        size, old = full_tensor(norm(g)), state["gamma"]
        total = yield {"square": size.square()}
        early = old.isinf() | (ctx.step < warmup_steps)
        # Keep infinities out of the average.
        usual = torch.where(early, 1.0, old)
        whole = safe_sqrt(total["square"]) + eps
        measured, bound = at_least(size, eps), lambda_rel * at_least(usual, eps)
        factor = torch.where(early, shrink(whole, lambda_abs), shrink(measured, bound))
        clipped = factor * size
        average = running_mean(usual, clipped, beta)
        smallest = torch.minimum(old, clipped.to(old.dtype))
        yield factor * g, {"gamma": torch.where(early, smallest, average)}

    return {"gamma": scalar(math.inf)}, update


@per_tensor(
    elementwise=True,
    shared={"mean": 0.0, "var": 0.0, "count": 0.0},
    agree=("z_thresh", "alpha", "warmup_steps", "max_norm", "eps", "mode", "clip_to"),
    length="bounds",
    by_rows=True,
)
def clip_by_zscore(
    z_thresh: Positive = 2.5,
    alpha: Decay = 0.97,
    warmup_steps: Count = 25,
    max_norm: PositiveOrInf | None = 1.0,
    eps=1e-6,
    mode: Literal["zscore", "percentile"] = "zscore",
    clip_to: Literal["scaled", "mean"] = "scaled",
):
    r"""Clip gradients whose norm is an outlier among earlier norms: ZClip.

    With $n$ the norm over all leaves, $\mu$ and $\sigma^2$ mean and variance of norms, $z = (n-\mu)/(\sigma+\epsilon)$:
    where $z > z^*$, the level is $\mu + z^{*2} \sigma / z$ (or $\mu$), otherwise $n$. The tree is scaled to the smaller
    of the level and `max_norm`. $\mu \leftarrow \alpha \mu + (1-\alpha) \mathrm{level}$, then
    $\sigma^2 \leftarrow \alpha \sigma^2 + (1-\alpha) (\mathrm{level} - \mu)^2$. During the first $W$ steps the level is
    $n$, and $\mu$ and $\sigma^2$ are those of all norms so far. First link of a chain. Clipped to a finite level, an
    infinite norm gives the factor 0; a NaN makes every update NaN.

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

    def level_of(size, mean, deviation):
        if mode == "percentile":
            return torch.minimum(size, mean + z_thresh * deviation)
        tiny = torch.finfo(deviation.dtype).tiny
        score = (size - mean) / at_least(deviation + eps, tiny)
        outlier, calm = score > z_thresh, mean
        if clip_to == "scaled":
            divisor = torch.where(outlier, score, 1.0)
            calm = mean + z_thresh**2 * deviation / divisor
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
        factor = torch.where(size <= bound, 1.0, bound / (size + 1e-6))
        mean, variance = statistics_after(level, state, count, collecting)
        yield factor * update, {"mean": mean, "var": variance, "count": count}

    return update


@per_tensor(takes_complex=True, length="sets", by_rows=True)
def normalize_by_norm_history(gammas: Decays = (0.7, 0.9), eps=1e-8):
    r"""Scale each leaf to its mean norm relative to the variation of that norm: Stable-SPAM's normalization.

    With $n = \lVert g \rVert$ for each leaf, $a = \gamma_1 a + (1-\gamma_1) n$ and $b = \gamma_2 b + (1-\gamma_2) n^2$:
    $\frac{g}{n} \frac{a}{1-\gamma_1^t} / (\sqrt{b / (1-\gamma_2^t)} + \epsilon)$. A zero leaf remains zero. A norm that
    is not finite makes the whole leaf NaN, also later: wrap the chain in `skip_nonfinite`.

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

    def update(update, state, param, ctx):
        size = full_tensor(norm(update))
        average = running_mean(state["norm_avg"], size, gamma1)
        square = running_mean(state["norm_sq_avg"], size.square(), gamma2)
        typical = corrected_root(square, ctx, gamma2) + eps
        factor = quotient(average / ctx.bias_correction(gamma1), size * typical)
        return factor * update, {"norm_avg": average, "norm_sq_avg": square}

    return {"norm_avg": scalar(), "norm_sq_avg": scalar()}, update


@per_tensor(by_rows=True)
def clip_to_peak_history(theta: Decay = 0.999):
    r"""Scale down entries that exceed the usual largest entry: Stable-SPAM's clipping.

    With $G = \max |g|$ over a leaf, $M \leftarrow \theta M + (1-\theta) G$ and $\hat M = M / (1-\theta^t)$: where
    $|g| > \hat M$, $g$ becomes $g \hat M / G$. An entry that is not finite makes the whole leaf NaN, also later: wrap
    the chain in `skip_nonfinite`.

    Args:
        theta: $\theta$ in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `max_avg`, 0-d float64 for each leaf.

    Example:
        >>> tx = gradtx.clip_to_peak_history(theta=0.5)
        >>> state = tx.init({"w": torch.zeros(3)})
        >>> # the mean of the largest entries is 5
        >>> for grad in ([1.0, 1.0, 1.0], [1.0, 6.0, 7.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([1., 1., 1.])
        tensor([1.0000, 4.2857, 5.0000])

    Source: Huang et al. 2025, arXiv:2502.17055. Departures: none from the paper.
    """

    def update(update, state, param, ctx):
        sizes = update.abs()
        peak = largest(sizes)
        average = running_mean(state["max_avg"], peak, theta)
        usual = average / ctx.bias_correction(theta)
        clipped = update * quotient(usual, peak)
        # An infinite peak would allow any entry.
        within = (sizes <= usual) & peak.isfinite()
        return torch.where(within, update, clipped), {"max_avg": average}

    return {"max_avg": scalar()}, update


def rms_of_sums(sums, x: Tensor) -> Tensor:
    """Return the root mean square of a whole leaf, or 0 if it is empty."""
    return safe_sqrt(sums["square"] / max(x.numel(), 1))


@per_tensor(whole="sums", length="bounds")
def clip_by_block_rms(threshold: Positive = 1.0):
    r"""Scale each leaf to a root mean square of at most `threshold`: $u / \max(1, \mathrm{rms}(u)/d)$.

    An infinite root mean square gives the factor 0, a NaN makes the whole leaf NaN.

    Args:
        threshold: $d > 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.clip_by_block_rms(0.5)
        >>> gradients = {"a": torch.tensor([4.0, 4.0]), "b": torch.tensor([0.25])}
        >>> tx.update(gradients, tx.init({}))[0]
        {'a': tensor([0.5000, 0.5000]), 'b': tensor([0.2500])}

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: none.
    """

    def update(update, state, param, ctx):
        sums = yield OfLeaf(square=update.square().sum())
        yield update / at_least(rms_of_sums(sums, update) / threshold, 1.0), state

    return update


@per_tensor(length="sets")
def normalize_by_std(eps=1e-8):
    r"""Divide each leaf by the standard deviation of its entries: $u / (\sigma(u) + \epsilon)$.

    Leaves with 1 or 2 entries pass unchanged; the mean is not subtracted; $\sigma$ is the unbiased estimate.

    Args:
        eps: $\epsilon \ge 0$; use a positive value, because a constant leaf has $\sigma = 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.normalize_by_std()
        >>> tx.update({"w": torch.tensor([1.0, 3.0, 5.0])}, tx.init({}))[0]["w"]
        tensor([0.5000, 1.5000, 2.5000])

    Source: Wright and Demeure 2021, arXiv:2106.13731 (Ranger21). Departures: none.
    """

    def update(update, state, param, ctx):
        if update.numel() <= 2:
            return update, state
        # Not `var`, for which kernels have no code.
        squares = (update - update.mean()).square().sum()
        return update / (safe_sqrt(squares / (update.numel() - 1)) + eps), state

    return update


@per_tensor(elementwise=True)
def zero_nans():
    """Replace every NaN by 0; infinities are unchanged.

    First link of a chain, before any link that keeps state. `ctx.grad` still contains the NaN: links that read the
    gradient itself need `skip_nonfinite` instead.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.zero_nans()
        >>> tx.update({"w": torch.tensor([torch.nan, torch.inf, 2.0])}, tx.init({}))[0]["w"]
        tensor([0., inf, 2.])
    """

    def update(update, state, param, ctx):
        return torch.where(update.isnan(), 0.0, update), state

    return update
