"""Averages of weights: lookahead, EMA, MADGRAD, SRMM."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.weight_decay import add_decayed_weights, split_decay
from gradtx.arguments import Count, Decay, Fraction, NonNegative, NonNegativeInt, is_off
from gradtx.base.exact import exact
from gradtx.maths.entries import (
    at_least,
    plus_decay,
    quotient,
    running_mean,
    safe_pow,
    synchronized,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, scalar, square, start
from gradtx.transform import chain

__all__ = [
    "average",
    "lookahead",
    "madgrad",
    "scale_by_asgd",
    "scale_by_madgrad",
    "scale_by_srmm",
    "srmm",
]


@per_tensor(elementwise=True, needs="params", rate="after")
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

    def update(u, state, p, ctx):
        now = ctx.step % k == 0
        slow = synchronized(now, state["slow"], p + u, alpha)
        return torch.where(now, slow - p, u), {"slow": slow}

    return {"slow": start(slow=True)}, update, lambda state, param: state["slow"]


@per_tensor(elementwise=True, needs="params", rate="after")
def average(decay: Decay | None = None, start: NonNegativeInt = 0, debias=False):
    r"""Keep an average of the weights for evaluation; updates pass unchanged.

    Last link of a chain. With $p' = p + u$: $a \leftarrow p'$ while $t \le$ `start`; afterwards
    $a \leftarrow a + (p' - a)/(t - \mathrm{start})$ (Polyak's mean), or, with a decay,
    $a \leftarrow \beta a + (1-\beta) p'$; with `debias`, the weight of $p'$ is
    $(1-\beta)/(1-\beta^{t-\mathrm{start}})$.

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

    def averaged(old, new, ctx):
        steps = at_least(ctx.time - start, 1)
        if decay is None:
            return old + (new - old) / steps
        if debias:
            return old + (1 - decay) / ctx.bias_correction(decay, steps) * (new - old)
        return running_mean(old, new, decay)

    def update(update, state, param, ctx):
        new = param + update
        mean = averaged(state["average"], new, ctx)
        return update, {"average": torch.where(ctx.step <= start, new, mean)}

    slots = {"average": linear(lambda p: p, slow=True)}
    return slots, update, lambda state, param: state["average"]


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_madgrad(
    lr=1e-2,
    momentum: Decay = 0.9,
    eps=1e-6,
    weight_decay=0.0,
):
    r"""Step from the starting point along the weighted sum of gradients, divided by a cube root: MADGRAD.

    With $\lambda_t = r \sqrt t$, $r = \eta + \epsilon$ (0 where $\eta = 0$): $s_t = s_{t-1} + \lambda_t g_t$,
    $\nu_t = \nu_{t-1} + \lambda_t g_t^2$, $z_t = x_0 - s_t / (\sqrt[3]{\nu_t} + \epsilon)$,
    $p \leftarrow \mu p + (1-\mu) z_t - r \lambda p$.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1). With a literal 0.0, $x_0$ is recomputed from the weights instead of stored.
        eps: $\epsilon \ge 0$; with 0, entries that have had only zero gradients do not move.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State:
        `grad_sum_sq`, `s` and, with momentum, `x0`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_madgrad(lr=0.125, momentum=0.0, eps=0.0)
        >>> params = {"w": torch.tensor([1.0, 1.0])}
        >>> # 0.125 * 8 / cbrt(8)
        >>> tx.update({"w": torch.tensor([8.0, 0.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.5000,  0.0000])

    Source: Defazio and Jelassi 2021, arXiv:2101.11075. Departures: none from the authors' code. With momentum, $x_0$
    never decays, so later steps undo the decoupled decay of a step; without momentum, the decay persists.
    """
    reconstructs = is_off(momentum)

    def moved(sums):
        root = safe_pow(sums["grad_sum_sq"], 1 / 3) + eps
        return quotient(sums["s"], root, floor=eps)

    def update(g, state, p, ctx):
        rate = exact(lr, g.device)
        rate = torch.where(rate == 0, 0.0, rate + eps)
        weight = rate * ctx.time.sqrt()
        new = {
            "grad_sum_sq": state["grad_sum_sq"] + weight * g.square(),
            "s": state["s"] + weight * g,
        }
        first = p + moved(state) if reconstructs else state["x0"]
        target = first - moved(new)
        step = (1 - momentum) * (target - p)
        return plus_decay(step, weight_decay, p, -rate), new

    slots = {
        "grad_sum_sq": square(slow=True),
        "s": linear(slow=True),
        "x0": None if reconstructs else start(),
    }
    return slots, update


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_srmm(
    lr=0.01,
    beta: NonNegative = 0.5,
    memory_length: Count | None = 100,
    proximal: NonNegative = 0.0,
):
    r"""Step from an average of the weights along an average of the gradients computed there: SRMM.

    With $w = (n+1)^{-\beta}$, $n = t \bmod$ `memory_length`: $\bar g \leftarrow (1-w) \bar g + w g$,
    $\bar p \leftarrow (1-w) \bar p + w p$, $p \leftarrow (1 - \eta\lambda) \bar p + \eta\lambda p - \eta \bar g$.

    Args:
        lr: $\eta \ge 0$, or $1 / (L + \lambda)$ in the paper's notation.
        beta: $\beta \ge 0$: how fast the weight of new gradients decreases; 0 keeps no memory.
        memory_length: Steps after which the averages restart, >= 1; None for never.
        proximal: $\lambda \ge 0$, the pull toward the current weights; $\eta \lambda \le 1$.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State:
        `mov_avg_grad` and `mov_avg_param` (initialized to the parameter), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `lr * proximal` is above 1, if `params` is missing, or if a later
            link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_srmm(lr=1.0, beta=1.0)
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> # 1/2 of the gradient, then the mean of 1/2, 1/2 * 2/3 + 1/3, from the mean weight
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([1.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([-0.5000])
        tensor([-0.8333])

    Source: Lyu 2022, arXiv:2201.01652, eq. 23. Departures from the authors' code: $\bar p$ starts at the parameters
    (theirs at 0), and the memory is refreshed (theirs never is, due to an operator precedence error).
    """
    if isinstance(lr, float) and isinstance(proximal, float) and lr * proximal > 1:
        raise ValueError(
            f"scale_by_srmm: lr * proximal must be in [0, 1], got {lr!r} * {proximal!r}; lower one of them"
        )

    def update(g, state, p, ctx):
        n = ctx.time if memory_length is None else ctx.time % memory_length
        weight = (n + 1) ** -beta
        grad = (1 - weight) * state["mov_avg_grad"] + weight * g
        mean = (1 - weight) * state["mov_avg_param"] + weight * p
        step = (1 - lr * proximal) * (mean - p) - lr * grad
        return step, {"mov_avg_grad": grad, "mov_avg_param": mean}

    return {"mov_avg_grad": linear(), "mov_avg_param": start(slow=True)}, update


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_asgd(
    lr=1e-2,
    lambd: NonNegative = 1e-4,
    alpha: NonNegative = 0.75,
    t0: NonNegative = 1e6,
):
    r"""Descend with a decaying rate and a small weight decay, and average the weights from a given step on.

    $p_t = p_{t-1} (1 - \lambda \eta_t) - \eta_t g_t$, $a_t = a_{t-1} + \mu_t (p_t - a_{t-1})$; then
    $\eta_{t+1} = \eta / (1 + \lambda \eta t)^\alpha$ and $\mu_{t+1} = 1 / \max(1, t - t_0)$, from $\eta_1 = \eta$ and
    $\mu_1 = 1$. It owns the learning rate: no decay or learning rate may follow.

    Args:
        lr: $\eta$ in [0, inf). The value passed for a step takes effect at the next one; the first value is used twice.
        lambd: $\lambda \ge 0$, decay of the weights and of the rate.
        alpha: $\alpha \ge 0$, exponent of the rate's decay.
        t0: $t_0 \ge 0$. While $\mu = 1$, up to step $t_0 + 2$, the average equals the weights.

    Returns:
        A transformation whose updates are added to the parameters. State: `ax` ($a_t$), shaped as the parameter, which
        `eval_params` returns; `eta` and `mu`, the next $\eta_t$ and $\mu_t$, 0-d float64 for each leaf.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_asgd(lr=1.0, lambd=0.0, t0=0.0)
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.tensor([-2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([6.]), tensor([5.]))

    Source: Polyak and Juditsky 1992, in the form of torch.optim.ASGD. Departures: `eta` and `mu` are stored in
    float64, whereas torch rounds them to its default dtype.
    """

    def update(g, state, p, ctx):
        # torch creates its state at the first step, so a rate written after `init` must take effect there as well.
        rate = torch.where(ctx.seen, state["eta"], exact(lr, p.device))
        old, weight = state["ax"], state["mu"]
        step = -rate * g - (lambd * rate) * p
        moved = p + step
        mean = torch.where(weight == 1, moved, old + weight * (moved - old))
        rate = lr / (1 + lambd * lr * ctx.time) ** alpha
        return step, {"ax": mean, "eta": rate, "mu": 1 / at_least(ctx.time - t0, 1)}

    slots = {"ax": start(slow=True), "eta": scalar(lr), "mu": scalar(1.0)}
    return slots, update, lambda state, p: state["ax"]


@alias(class_name="MADGRAD")
def madgrad(
    *,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **options: Annotated[Any, scale_by_madgrad],
):
    r"""MADGRAD: dual averaging from the initial weights, divided by the cube root of the sum of squares.

    With $\lambda_t = r \sqrt t$, $r = \eta + \epsilon$: $s \leftarrow s + \lambda_t g$,
    $\nu \leftarrow \nu + \lambda_t g^2$, $p \leftarrow \mu p + (1-\mu) (x_0 - s / (\sqrt[3]\nu + \epsilon))$.

    When to use: sparse problems, and vision tasks on which SGD beats Adam; needs less weight decay than other methods,
    often none.

    Args:
        lr: $\eta$ in [0, inf). Good values differ from those of SGD and of Adam; try powers of 2.
        momentum: $\mu$ in [0, 1). With a literal 0.0, $x_0$ is computed from the weights instead of stored.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$; smaller values than with other optimizers, often 0.
        decoupled_weight_decay: Subtract $r \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_sum_sq`, `s`, [`x0`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.madgrad(lr=0.125, momentum=0.5, eps=0.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> # half of 0.125 * 8 / cbrt(8)
        >>> tx.update({"w": torch.tensor([8.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.2500])

    Source: Defazio and Jelassi 2021, arXiv:2101.11075. Departures: none from the authors' code. As there, later steps
    undo decoupled decay with momentum, because $x_0$ never decays.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled),
        scale_by_madgrad(weight_decay=decoupled, **options),
    )


@alias(class_name="SRMM")
def srmm(**arguments: Annotated[Any, scale_by_srmm]):
    r"""SRMM: stochastic regularized majorization-minimization, a step from averaged weights along averaged gradients.

    With $w = (n+1)^{-\beta}$, $n = t \bmod$ `memory_length`: $\bar g \leftarrow (1-w) \bar g + w g$,
    $\bar p \leftarrow (1-w) \bar p + w p$, $p \leftarrow (1 - \eta\lambda) \bar p + \eta\lambda p - \eta \bar g$.

    When to use: streams of dependent data, such as samples of a Markov chain, where a guarantee matters more than
    speed.

    Args:
        lr: $\eta \ge 0$, in the paper's terms $1 / (L + \lambda)$.
        beta: $\beta \ge 0$, the speed at which the weight of new gradients falls; with 0, nothing is remembered.
        memory_length: Number of steps after which the averages restart, >= 1; None for never.
        proximal: $\lambda \ge 0$, the pull toward the current weights; $\eta \lambda \le 1$.

    Returns:
        A transformation whose updates are added to the parameters. State: `mov_avg_grad`, `mov_avg_param`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `lr * proximal` is above 1, or if `params` is missing.

    Example:
        >>> tx = gradtx.srmm(lr=1.0, beta=0.0)  # no memory: gradient descent
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([0.5])}, tx.init(params), params)[0]["w"]
        tensor([-0.5000])

    Source: Lyu 2022, arXiv:2201.01652, eq. 23. Departures from the authors' code: see `scale_by_srmm`.
    (pytorch_optimizer's class overwrites $\bar p$ with the weights, so that it averages gradients only.)
    """
    return scale_by_srmm(**arguments)
