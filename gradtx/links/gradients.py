"""Links that change gradients before an optimizer sees them: slow parts, variance, inputs of a layer."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from gradtx.arguments import (
    Count,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Static,
)
from gradtx.base.selectors import listed
from gradtx.distributed.redistribution import full_tensor, gathered
from gradtx.maths.entries import at_least, at_most, identity, mean, norm, running_mean
from gradtx.rules import per_tensor, whole_tree
from gradtx.slots import linear, weights, window

__all__ = [
    "amplify_slow_gradients",
    "amplify_slow_gradients_window",
    "correct_variance",
    "precondition_inputs",
]


@whole_tree(extras={"input_gram": "tensors?"}, capturable=True, amplifies=True)
def precondition_inputs(
    every: Count = 64,
    rate: Fraction = 0.05,
    *,
    start: Positive = 0.001,
    ridge: NonNegative = 0.2,
    blocks: Static[Count] = 1,
):
    r"""Multiply the gradient of a matrix by the inverse second moment of its layer's inputs: Newton-Muon's first link.

    Where $t$ is a multiple of `every` and the extra `input_gram` has an entry for the matrix, the mean of $x x^\top$
    over the tokens of this step: $C \leftarrow C + \eta\, (\mathrm{gram} - C)$ from $s I$, and
    $K = (C + (\rho\, \mathrm{tr}(C) / n + 10^{-8}) I)^{-1}$. At every step, $g \leftarrow g K$, with $K = I$ before the
    first entry. `trace_ema` and `orthogonalize` follow.

    Pass `input_gram`, a dict by leaf name, to `update` or `step` where it is due; `collect_input_grams` measures it. In
    a distributed run, average it over the ranks first.

    Args:
        every: Number of steps between two entries, >= 1. Only the batch of such a step counts.
        rate: $\eta$ in [0, 1].
        start: $s > 0$.
        ridge: $\rho \ge 0$.
        blocks: Number k of equal runs of columns, >= 1. If above 1, entries have the shape (k, c/k, c/k): the diagonal
            blocks for these runs, which save memory and time for wide layers. Otherwise their shape is (c, c).

    Returns:
        A transformation that keeps shapes and dtypes. State: `covariance` ($C$) and `inverse` ($K$),
        k x c/k x c/k for a matrix with c columns; leaves that are not matrices have none and pass unchanged. Select the
        matrices with `masked`, to save the state of those that never get an entry. It processes whole trees, so it
        cannot be inside combinators that divide or rotate leaves.

    Raises:
        TypeError: If `input_gram` is not a dict of tensors.
        ValueError: If `blocks` does not divide the columns of a matrix, if an entry has another shape, or if there are
            entries, but none for a matrix with a gradient.

    Example:
        >>> tx = gradtx.precondition_inputs(every=1, rate=1.0, ridge=0.0)
        >>> grads = {"w": torch.tensor([[4.0, 1.0]])}
        >>> gram = {"w": torch.tensor([[4.0, 0.0], [0.0, 0.25]])}
        >>> tx.update(grads, tx.init(grads), input_gram=gram)[0]["w"]
        tensor([[1., 4.]])

    Source: Newton-Muon, arXiv:2604.01472, and record 15 of track 3 of modded-nanogpt. Departures: the number of blocks
    is an option, because it determines the state.
    """

    def init(params):
        covariances, inverses = {}, {}
        for name, param in params.items():
            if param.ndim != 2:
                continue
            n, rest = divmod(param.shape[1], blocks)
            if rest:
                raise ValueError(
                    f"precondition_inputs: {blocks} blocks do not divide the columns of {name!r}, {param.shape[1]}"
                )
            inverses[name] = identity(n, param).repeat(blocks, 1, 1)
            covariances[name] = start * inverses[name]
        return {"covariance": covariances, "inverse": inverses}

    def refreshed(name, C, gram):
        if gram.shape not in (C.shape, C.shape[blocks == 1 :]):
            raise ValueError(
                f"precondition_inputs: input_gram[{name!r}] has shape {tuple(gram.shape)}, needs {tuple(C.shape)}"
            )
        C = running_mean(C, gram.to(C), 1 - rate)
        size = mean(C.diagonal(dim1=-2, dim2=-1), -1)[:, None, None]
        shift = (ridge * size + 1e-8) * identity(C.shape[-1], C)
        return [C, torch.linalg.inv_ex(C + shift)[0]]

    def update(updates, state, params, ctx):
        grams = ctx.input_gram or {}
        matrices = {name: g for name, g in updates.items() if g.ndim == 2}
        if grams and matrices and grams.keys().isdisjoint(matrices):
            raise ValueError(
                f"precondition_inputs: no matrix has a name of input_gram, {listed(grams)}; "
                f"matrices: {listed(matrices)}"
            )
        new_state = {"covariance": {}, "inverse": {}}
        result = dict(updates)
        for name, g in matrices.items():
            old = C, K = [full_tensor(state[slot][name]) for slot in new_state]
            if name in grams:
                compute = functools.partial(refreshed, name, C, grams[name])
                C, K = ctx.every(every, 0, compute, lambda old=old: old)
            new_state["covariance"][name], new_state["inverse"][name] = C, K
            runs = g.unflatten(1, (blocks, -1)).movedim(1, 0)
            result[name] = (runs @ gathered(K, g)).movedim(0, 1).flatten(1)
        return result, new_state

    return init, update


def _corrected(grad: Tensor, last: Tensor, gamma, beta) -> Tensor:
    """Return g + gamma beta / (1 - beta) (g - g_last), clipped to a norm of at most 1."""
    change = grad + gamma * beta / (1 - beta) * (grad - last)
    return change / at_least(norm(change), 1.0)


@whole_tree(needs=("params", "grad_fn"), capturable=True)
def correct_variance_exactly(gamma: NonNegative, beta: Decay, min_ndim: NonNegativeInt):
    """Apply `correct_variance` with the gradient of the current batch at the previous parameters."""

    def update(updates, state, params, ctx):
        last = ctx.grad_fn(state["prev_param"])
        corrected = dict(updates)
        for name, grad in updates.items():
            if grad.ndim >= min_ndim:
                corrected[name] = _corrected(grad, last[name], gamma, beta)
        return corrected, {"prev_param": params}

    # All leaves are stored, because the gradient is computed at the complete previous parameters.
    return {"prev_param": weights(lambda params: params)}, update


@per_tensor(length="bounds")
def correct_variance(
    gamma: NonNegative = 0.025,
    beta: Decay = 0.95,
    exact=False,
    min_ndim: NonNegativeInt = 0,
):
    r"""Add a fraction of the gradient's last change to reduce its variance: MARS's correction.

    $c_t = g_t + \gamma \frac{\beta}{1-\beta} (g_t - g')$, then $c_t / \max(1, \lVert c_t \rVert)$, leaf by leaf, with
    $g' = g_{t-1}$ and $g_0 = 0$; or, if exact, $g'$ is the gradient of the current batch at the previous parameters
    (STORM), which costs a second gradient per step. First link of a chain.

    Args:
        gamma: $\gamma \ge 0$, strength of the correction.
        beta: $\beta$ in [0, 1), that of the momentum that follows.
        exact: Use the extra `grad_fn` to compute the gradient at the previous parameters.
        min_ndim: Leaves with fewer dimensions, >= 0, pass unchanged.

    Returns:
        A transformation that keeps shapes and dtypes. State: `last_grad`, shaped as the parameter, for the leaves that
        are corrected; if exact, `prev_param` for all leaves, under `correct_variance_exactly`.

    Raises:
        ValueError: If `exact` is set and `params` or `grad_fn` is missing.

    Example:
        >>> tx = gradtx.correct_variance(gamma=0.5, beta=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (0.2, 0.2, 0.4):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([0.3000])
        tensor([0.2000])
        tensor([0.5000])

    Source: Yuan et al. 2024, arXiv:2411.10438; exact: Cutkosky and Orabona 2019, arXiv:1905.10018. Departures: if
    exact, $g'$ is $g_1$ at the first step, as in the paper; the authors' code uses 0.
    """
    if exact:
        return correct_variance_exactly(gamma, beta, min_ndim)

    def first(param):
        return None if param.ndim < min_ndim else torch.zeros_like(param)

    def update(g, state, p, ctx):
        if g.ndim < min_ndim:
            return g, state
        return _corrected(g, state["last_grad"], gamma, beta), {"last_grad": g}

    return {"last_grad": linear(first)}, update


@per_tensor(elementwise=True)
def amplify_slow_gradients(alpha: Decay = 0.98, lamb: NonNegative = 2.0):
    r"""Add a multiple of the average gradient to each gradient: Grokfast's filter.

    $e_1 = g_1$, $e_t = \alpha e_{t-1} + (1-\alpha) g_t$; returns $g_t + \lambda e_t$. First link of a chain, before a
    coupled decay. A constant gradient is multiplied by $1 + \lambda$, which does not affect methods such as Adam.

    Args:
        alpha: $\alpha$ in [0, 1), decay of the average.
        lamb: $\lambda \ge 0$, weight of the average.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_ema`, shaped as the parameter.

    Example:
        >>> tx = gradtx.amplify_slow_gradients(alpha=0.5, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([1.0, 1.0], [1.0, -1.0]):  # entries that keep their sign are amplified
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([2., 2.])
        tensor([ 2., -1.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """

    def update(update, state, param, ctx):
        average = running_mean(state["grad_ema"], update, alpha)
        average = torch.where(ctx.seen, average, update)
        return update + lamb * average, {"grad_ema": average}

    return {"grad_ema": linear()}, update


@per_tensor(elementwise=True)
def amplify_slow_gradients_window(
    window_size: Count = 100,
    lamb: NonNegative = 5.0,
    filter_type: Literal["mean", "sum"] = "mean",
    warmup=True,
):
    r"""Add a multiple of the mean of the last gradients to each gradient: Grokfast's filter with a window.

    Returns $g_t + \lambda \bar g_t$, where $\bar g_t$ is the mean or the sum of the last $n = \min(t, w)$ gradients,
    including the current one. `amplify_slow_gradients` is a close approximation with only one slot.

    Args:
        window_size: $w \ge 1$, the number of gradients to keep.
        lamb: $\lambda \ge 0$, weight of the mean.
        filter_type: "mean" or "sum".
        warmup: Pass gradients unchanged until the window is full, while t < w.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_0` ... `grad_{w-1}`, the last gradients, newest
        first, shaped as the parameter.

    Example:
        >>> tx = gradtx.amplify_slow_gradients_window(window_size=2, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 3.0, -3.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([5.])
        tensor([-3.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """

    def update(update, state, param, ctx):
        window = [update, *state["grad"][:-1]]
        slow = sum(window[1:], window[0])  # gradients before the first are zeros
        if filter_type == "mean":
            slow = slow / at_most(ctx.time, window_size)
        amplified = update + lamb * slow
        if warmup:
            amplified = torch.where(ctx.step < window_size, update, amplified)
        return amplified, {"grad": window}

    return {"grad": window(window_size)}, update
