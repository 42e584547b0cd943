"""D-Adaptation: `dadapt_adam`, `dadapt_sgd`, `dadapt_adan`, `dadapt_lion` and `dadapt_adagrad`."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import AtLeastOneOrInf, Decay, Positive, is_off
from gradtx.base.exact import exact
from gradtx.links.decay import add_decayed_weights, split_decay
from gradtx.links.scaling import descend
from gradtx.maths.entries import (
    MOMENTS,
    change_of,
    plus_decay,
    quotient,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square, start
from gradtx.transform import chain

__all__ = [
    "dadapt_adagrad",
    "dadapt_adam",
    "dadapt_adan",
    "dadapt_lion",
    "dadapt_sgd",
    "scale_by_dadapt_adagrad",
    "scale_by_dadapt_adam",
    "scale_by_dadapt_adan",
    "scale_by_dadapt_lion",
    "scale_by_dadapt_sgd",
]


OWN = {"elementwise": True, "needs": "params", "rate": "before"}


def started(*averages: str) -> Any:
    """Return the initial shared values: d, and averages from 0."""
    return lambda arguments: {"d": arguments["d0"], **dict.fromkeys(averages, 0.0)}


def limited(estimate: Tensor, d: Tensor, growth_rate) -> Tensor:
    """Return the estimate, limited to `growth_rate` times d."""
    growth = exact(growth_rate, d.device)
    endless = growth == math.inf  # inf * d would have a NaN derivative
    limit = d * torch.where(endless, 1.0, growth)
    return torch.where(endless, estimate, torch.minimum(estimate, limit))


def estimated(d: Tensor, top: Tensor, bottom: Tensor, growth_rate) -> Tensor:
    """Return the next d, which never falls: the estimate top / bottom, limited."""
    return torch.maximum(d, limited(quotient(top, bottom), d, growth_rate))


def resting(
    size: Tensor,
    state: dict[str, Tensor],
    direction: Tensor,
    new_state: dict[str, Tensor],
    shared: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a rule's results; without a gradient so far (size 0), neither weights nor shared values change."""
    rests = size == 0
    for slot, value in shared.items():
        new_state[slot] = torch.where(rests, state[slot], value)
    return torch.where(rests, 0.0, direction), new_state


def corrected_rate(d: Tensor, lr, betas, use_bias_correction: bool, ctx) -> Tensor:
    """Return the rate of a step: d times lr, optionally with Adam's bias correction."""
    if not use_bias_correction:
        return d * lr
    root = safe_sqrt(ctx.bias_correction(betas[1]))
    return d * lr * root / ctx.bias_correction(betas[0])


def _sums(gradient: Tensor, s: Tensor, root: Tensor, rate: Tensor) -> dict[str, Tensor]:
    """Return the sums of the estimate for AdaGrad and Adan."""
    return {
        "square": rate.square() * (gradient.square() / root).sum(),
        "weighted": (s.square() / root).sum(),
        "size": s.abs().sum(),
    }


@per_tensor(**OWN, shared=started("gsq_weighted"), agree=("d0", "growth_rate"))
def scale_by_dadapt_adagrad(
    lr=1.0,
    momentum: Decay = 0.0,
    eps=1e-6,
    d0: Positive = 1e-6,
    growth_rate: AtLeastOneOrInf = math.inf,
):
    r"""Run dual averaging over AdaGrad's denominator with an automatic rate: D-Adapt AdaGrad.

    $\delta = d \eta$, $A \leftarrow A + g^2$ from $10^{-6}$, $D = \sqrt A + \epsilon$, $s \leftarrow s + \delta g$,
    $G \leftarrow G + \delta^2 \sum g^2/D$, $\hat d = (\sum s^2/D - G) / \lVert s \rVert_1$,
    $p \leftarrow \mu p + (1-\mu)(x_0 - s/D)$. Sums are over all leaves; then
    $d \leftarrow \max(d, \min(\hat d, \kappa d))$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        momentum: $\mu$ in [0, 1). With a literal 0.0 the direction is the change of $s$ (over its denominator),
            regardless of how other links move the weights; otherwise it leads to the averaged iterate.
        eps: $\epsilon \ge 0$.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.
        growth_rate: $\kappa \ge 1$, the largest growth factor of $d$ in one step.

    Returns:
        A transformation that keeps shapes and dtypes and returns a direction that includes the rate $\delta$: end the
        chain with `descend`, or leave lr at 1 and end it with `scale_by_learning_rate`. State: `alphak`
        ($A$), `sk` ($s$), `x0`, shaped as the parameter; shared by all leaves, `d`, `gsq_weighted` ($G$), 0-d.

    Example:
        >>> tx = gradtx.chain(gradtx.scale_by_dadapt_adagrad(), gradtx.descend())
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for i in range(120):  # the loss is |w - 7|; d starts to grow when gradients agree
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     if i % 40 == 0:
        ...         print(f"{state['scale_by_dadapt_adagrad']['d']:.1g}")
        1e-06
        0.0006
        0.04

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures from the authors' code: the sums are recomputed
    at every step (the authors keep running totals, which retain earlier terms of leaves that no longer have a
    gradient), and rates may differ between groups.
    """

    def update(g, state, p, ctx):
        rate = state["d"] * lr
        accumulated, s = state["alphak"] + g.square(), state["sk"] + rate * g
        root = safe_sqrt(accumulated) + eps
        total = yield _sums(g, s, root, rate)
        if is_off(momentum):
            before = safe_sqrt(state["alphak"]) + eps
            direction = s / root - state["sk"] / before
        else:
            direction = -((1 - momentum) * (state["x0"] - s / root - p))
        squares, size = state["gsq_weighted"] + total["square"], total["size"]
        d = estimated(state["d"], total["weighted"] - squares, size, growth_rate)
        new_state, shared = (
            {"alphak": accumulated, "sk": s},
            {"d": d, "gsq_weighted": squares},
        )
        yield resting(size, state, direction, new_state, shared)

    return {
        "alphak": square(lambda p: torch.full_like(p, 1e-6), slow=True),
        "sk": linear(slow=True),
        "x0": start(),
    }, update


@per_tensor(
    **OWN, shared=started("numerator_weighted"), agree=("betas", "d0", "growth_rate")
)
def scale_by_dadapt_adam(
    lr=1.0,
    betas=(0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay=0.0,
    use_bias_correction=False,
    d0: Positive = 1e-6,
    growth_rate: AtLeastOneOrInf = math.inf,
):
    r"""Run Adam with an automatic rate: D-Adapt Adam.

    $\delta = d \eta$, $c = \sqrt{\beta_2}$, $N = \sum \delta g s / (\sqrt v + \epsilon)$ with the old $s$ and $v$;
    $m \leftarrow \beta_1 m + (1-\beta_1) \delta g$, $v \leftarrow \beta_2 v + (1-\beta_2) g^2$,
    $s \leftarrow c s + (1-c) \delta g$, $r \leftarrow c r + (1-c) N$, $\hat d = r / ((1-c) \lVert s \rVert_1)$,
    $p \leftarrow p (1 - \delta \lambda) - m / (\sqrt v + \epsilon)$. Sums are over all leaves; then
    $d \leftarrow \max(d, \min(\hat d, \kappa d))$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$, decoupled.
        use_bias_correction: Multiply $\delta$ by $\sqrt{1-\beta_2^t} / (1-\beta_1^t)$.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.
        growth_rate: $\kappa \ge 1$, the largest growth factor of $d$ in one step.

    Returns:
        A transformation that keeps shapes and dtypes and returns a direction that includes the rate $\delta$: end the
        chain with `descend`, or leave lr at 1 and end it with `scale_by_learning_rate`. State: `exp_avg`
        (which includes $\delta$), `exp_avg_sq`, `s`, shaped as the parameter; shared by all leaves, `d`,
        `numerator_weighted` ($r$), 0-d.

    Example:
        >>> tx = gradtx.scale_by_dadapt_adam()
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):  # d first moves at the second step
        ...     _, state = tx.update({"w": torch.tensor([1.0])}, state, params)
        ...     print(f"{state['scale_by_dadapt_adam']['d']:.2g}")
        1e-06
        1.6e-05

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures from the authors' code: rates may differ between
    groups, and $v$ is also accumulated while lr is 0.
    """
    beta1, beta2 = betas
    keep = beta2**0.5

    def update(g, state, p, ctx):
        d = state["d"]
        rate = corrected_rate(d, lr, betas, use_bias_correction, ctx)
        scaled = state["s"] / (safe_sqrt(state["exp_avg_sq"]) + eps)
        product = rate * (g * scaled).sum()
        m = beta1 * state["exp_avg"] + ((1 - beta1) * rate) * g
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        s = keep * state["s"] + ((1 - keep) * rate) * g
        total = yield {"product": product, "size": s.abs().sum()}
        r = running_mean(state["numerator_weighted"], total["product"], keep)
        d = estimated(d, r, (1 - keep) * total["size"], growth_rate)
        direction = plus_decay(m / (safe_sqrt(v) + eps), weight_decay, p, rate)
        new_state = {"exp_avg": m, "exp_avg_sq": v, "s": s}
        shared = {"d": d, "numerator_weighted": r}
        yield resting(total["size"], state, direction, new_state, shared)

    return {
        **MOMENTS,
        "s": linear(slow=True),
    }, update


@per_tensor(
    **OWN,
    shared=started("numerator_weighted", "g0_norm"),
    agree=("d0", "growth_rate"),
)
def scale_by_dadapt_sgd(
    lr=1.0,
    momentum: Decay = 0.0,
    d0: Positive = 1e-6,
    growth_rate: AtLeastOneOrInf = math.inf,
):
    r"""Run SGD with an automatic rate, relative to the norm of the first gradient: D-Adapt SGD.

    $G_0 = \lVert g_1 \rVert$ of the gradient before any link, $\delta = d \eta / G_0$,
    $N \leftarrow N + \sum \delta g s$ with the old $s$, $s \leftarrow s + \delta g$, $\hat d = 2 N / \lVert s \rVert$,
    $p \leftarrow \mu p + (1-\mu)(x_0 - s)$. Sums are over all leaves; then
    $d \leftarrow \max(d, \min(\hat d, \kappa d))$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        momentum: $\mu$ in [0, 1). With a literal 0.0 the direction is the change of $s$ (over its denominator),
            regardless of how other links move the weights; otherwise it leads to the averaged iterate.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.
        growth_rate: $\kappa \ge 1$, the largest growth factor of $d$ in one step.

    Returns:
        A transformation that keeps shapes and dtypes and returns a direction that includes the rate $\delta$: end the
        chain with `descend`, or leave lr at 1 and end it with `scale_by_learning_rate`. State: `s`, `x0`,
        shaped as the parameter; shared by all leaves, `d`, `numerator_weighted` ($N$), `g0_norm` ($G_0$, 0 until a
        gradient arrives at a rate above 0), 0-d.

    Example:
        >>> tx = gradtx.scale_by_dadapt_sgd(d0=0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, state = tx.update({"w": params["w"]}, tx.init(params), params)
        >>> updates["w"], state["scale_by_dadapt_sgd"]["g0_norm"]  # the update has norm d0
        (tensor([0.0600, 0.0800]), tensor(5., dtype=torch.float64))

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures from the authors' code: rates may differ between
    groups, and $G_0$ is taken from the first nonzero gradient (a zero gradient makes the authors' code divide by 0).
    """

    def update(g, state, p, ctx):
        d, first_norm, before = state["d"], state["g0_norm"], state["s"]
        off = exact(lr, g.device) == 0
        rate = quotient(d * lr, first_norm)
        s = before + rate * g
        total = yield {
            "first": torch.where(off, 0.0, ctx.grad.square().sum()),
            "product": rate * (g * before).sum(),
            "square": s.square().sum(),
        }
        # S has not moved yet: make its first move at the rate that follows from this norm.
        is_first_move = first_norm == 0
        norm = torch.where(is_first_move, safe_sqrt(total["first"]), first_norm)
        s = torch.where(is_first_move, before + quotient(d * lr, norm) * g, s)
        r = state["numerator_weighted"] + total["product"]
        d = estimated(d, 2 * r, safe_sqrt(total["square"]), growth_rate)
        direction = s - before
        if not is_off(momentum):
            direction = -((1 - momentum) * (state["x0"] - s - p))
        shared = {"d": d, "numerator_weighted": r, "g0_norm": norm}
        yield resting(norm, state, direction, {"s": s}, shared)

    return {"s": linear(slow=True), "x0": start()}, update


@per_tensor(**OWN, shared=started("gsq_weighted"), agree=("betas", "d0", "growth_rate"))
def scale_by_dadapt_adan(
    lr=1.0,
    betas=(0.98, 0.92, 0.99),
    eps: Positive = 1e-8,
    weight_decay=0.02,
    no_prox=False,
    d0: Positive = 1e-6,
    growth_rate: AtLeastOneOrInf = math.inf,
):
    r"""Run Adan with an automatic rate: D-Adapt Adan.

    $\delta = d \eta$, $\Delta = g_t - g_{t-1}$ (0 at first), $m \leftarrow \beta_1 m + (1-\beta_1) \delta g$,
    $f \leftarrow \beta_2 f + (1-\beta_2) \delta \Delta$,
    $n \leftarrow \beta_3 n + (1-\beta_3)(g + \beta_2 \Delta)^2$, $D = \sqrt n + \epsilon$,
    $s \leftarrow \beta_3 s + (1-\beta_3) \delta g$, $G \leftarrow \beta_3 G + (1-\beta_3) \delta^2 \sum g^2/D$,
    $\hat d = (\sum s^2/D / (1-\beta_3) - G) / \lVert s \rVert_1$, $y = (m + \beta_2 f)/D$,
    $p \leftarrow (p - y)/(1 + \delta\lambda)$. Sums are over all leaves; then
    $d \leftarrow \max(d, \min(\hat d, \kappa d))$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1): weights of the old averages.
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$.
        no_prox: Use $p \leftarrow (1 - \delta\lambda) p - y$ instead of the division.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.
        growth_rate: $\kappa \ge 1$, the largest growth factor of $d$ in one step.

    Returns:
        A transformation that keeps shapes and dtypes and returns a direction that includes the rate $\delta$: end the
        chain with `descend`, or leave lr at 1 and end it with `scale_by_learning_rate`. State: `exp_avg`,
        `exp_avg_diff` (both include $\delta$), `exp_avg_sq`, `s`, `previous_grad`, shaped as the parameter; shared by
        all leaves, `d`, `gsq_weighted` ($G$), 0-d.

    Example:
        >>> tx = gradtx.scale_by_dadapt_adan(d0=0.1, weight_decay=1.0, betas=(0.0, 0.0, 0.0))
        >>> tx = gradtx.chain(tx, gradtx.descend())
        >>> params = {"w": torch.tensor([11.1])}
        >>> updates, _ = tx.update({"w": torch.tensor([4.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]  # (11.1 - 0.1) / (1 + 0.1)
        tensor([10.])

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, with Xie et al. 2022, arXiv:2208.06677. Departures from the
    authors' code: rates may differ between groups.
    """
    beta1, beta2, beta3 = betas

    def update(g, state, p, ctx):
        rate = state["d"] * lr
        change = change_of(g, state, ctx)
        m = beta1 * state["exp_avg"] + ((1 - beta1) * rate) * g
        f = beta2 * state["exp_avg_diff"] + ((1 - beta2) * rate) * change
        v = running_mean(state["exp_avg_sq"], (g + beta2 * change).square(), beta3)
        s = beta3 * state["s"] + ((1 - beta3) * rate) * g
        root = safe_sqrt(v) + eps
        total = yield _sums(g, s, root, rate)
        squares = running_mean(state["gsq_weighted"], total["square"], beta3)
        top, size = total["weighted"] / (1 - beta3) - squares, total["size"]
        d = estimated(state["d"], top, size, growth_rate)
        direction = plus_decay((m + beta2 * f) / root, weight_decay, p, rate)
        if not (no_prox or is_off(weight_decay)):
            direction = direction / (1 + rate * weight_decay)
        new_state = {
            "exp_avg": m,
            "exp_avg_diff": f,
            "exp_avg_sq": v,
            "s": s,
            "previous_grad": g,
        }
        shared = {"d": d, "gsq_weighted": squares}
        yield resting(size, state, direction, new_state, shared)

    slots = {
        "exp_avg": linear(),
        "exp_avg_diff": linear(),
        "exp_avg_sq": square(),
        "s": linear(slow=True),
        "previous_grad": linear(),
    }
    return slots, update


@per_tensor(**OWN, shared=started("numerator_weighted"), agree=("betas", "d0"))
def scale_by_dadapt_lion(
    lr=1.0,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    d0: Positive = 1e-6,
):
    r"""Run Lion with an automatic rate: D-Adapt Lion.

    $\delta = d \eta$, $c = \sqrt{\beta_2}$, $y = \mathrm{sign}(\beta_1 m + (1-\beta_1) g)$,
    $p \leftarrow (1 - \delta\lambda) p - \delta y$, $m \leftarrow \beta_2 m + (1-\beta_2) \delta g$,
    $N = \sum \delta y s$ with the old $s$, $s \leftarrow c s + (1-c) \delta y$, $r \leftarrow c r + (1-c) N$,
    $\hat d = r / ((1-c) \lVert s \rVert_1)$. Sums are over all leaves; then $d \leftarrow \max(d, \hat d)$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2)$: weights of the old momentum in the direction and in the next momentum, each in
            [0, 1).
        weight_decay: $\lambda \ge 0$, decoupled.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.

    Returns:
        A transformation that keeps shapes and dtypes and returns a direction that includes the rate $\delta$: end the
        chain with `descend`, or leave lr at 1 and end it with `scale_by_learning_rate`. State: `exp_avg`
        (which includes $\delta$), `s`, shaped as the parameter; shared by all leaves, `d`, `numerator_weighted`
        ($r$), 0-d.

    Example:
        >>> tx = gradtx.scale_by_dadapt_lion(d0=0.1)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([3.0, -0.1])}, tx.init(params), params)[0]["w"]
        tensor([ 0.1000, -0.1000])

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, with Chen et al. 2023, arXiv:2302.06675; the authors'
    package. Departures: rates may differ between groups, and there is no decay before the first gradient. As in that
    package, $m$ includes $\delta$ but the new gradient in $y$ does not, so for a small $d$ the sign is nearly that of
    $g$.
    """
    beta1, beta2 = betas
    keep = beta2**0.5

    def update(g, state, p, ctx):
        d = state["d"]
        rate = d * lr
        y = running_mean(state["exp_avg"], g, beta1).sign()
        m = beta2 * state["exp_avg"] + ((1 - beta2) * rate) * g
        s = keep * state["s"] + ((1 - keep) * rate) * y
        product = rate * (y * state["s"]).sum()
        total = yield {"product": product, "size": s.abs().sum()}
        r = running_mean(state["numerator_weighted"], total["product"], keep)
        d = estimated(d, r, (1 - keep) * total["size"], math.inf)
        direction = rate * plus_decay(y, weight_decay, p)
        shared = {"d": d, "numerator_weighted": r}
        yield resting(total["size"], state, direction, {"exp_avg": m, "s": s}, shared)

    return {"exp_avg": linear(), "s": linear(slow=True)}, update


@alias(class_name="DAdaptAdaGrad")
def dadapt_adagrad(
    lr=1.0,
    momentum: Decay = 0.0,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_dadapt_adagrad],
):
    r"""D-Adapt AdaGrad: AdaGrad with an automatic learning rate.

    $\delta = d \eta$, $A \leftarrow A + g^2$, $s \leftarrow s + \delta g$,
    $p \leftarrow \mu p + (1-\mu)(x_0 - s/(\sqrt A + \epsilon))$; $d$ is a lower bound of the distance to the solution
    that increases during training; see `scale_by_dadapt_adagrad`.

    When to use: sparse problems suited to `adagrad`, when no rate is known.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        momentum: $\mu$ in [0, 1).
        weight_decay: $\lambda \ge 0$, added to the gradient.
        eps: $\epsilon \ge 0$.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `alphak`, `sk`, `x0`; shared by all leaves,
        0-d: `d`, `gsq_weighted`.

    Example:
        >>> tx = gradtx.dadapt_adagrad()
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(200):  # the loss is |w - 7|, for which no rate was chosen
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> # 3 from the start
        >>> f"{params['w'].item():.0f}, d = {state['scale_by_dadapt_adagrad']['d']:.1f}"
        '7, d = 3.1'

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures: see `scale_by_dadapt_adagrad`.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_dadapt_adagrad(lr, momentum, **options),
        descend(),
    )


@alias(class_name="DAdaptAdam")
def dadapt_adam(
    lr=1.0,
    betas=(0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **options: Annotated[Any, scale_by_dadapt_adam],
):
    r"""D-Adapt Adam: Adam with an automatic learning rate.

    $\delta = d \eta$, $m \leftarrow \beta_1 m + (1-\beta_1) \delta g$, $p \leftarrow p - m / (\sqrt v + \epsilon)$, $v$
    the average of $g^2$; $d$ is a lower bound of the distance to the solution that increases during training; see
    `scale_by_dadapt_adam`.

    When to use: Adam when no rate is known; leave `lr` at 1.0 and schedule it as usual. `prodigy` often finds its rate
    sooner.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Subtract $\delta \lambda p$ from the weights instead.
        use_bias_correction: Multiply $\delta$ by $\sqrt{1-\beta_2^t} / (1-\beta_1^t)$.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `s`; shared by all
        leaves, 0-d: `d`, `numerator_weighted`.

    Example:
        >>> # a first step of d0 / sqrt(1 - beta2)
        >>> tx = gradtx.dadapt_adam(d0=0.1, betas=(0.0, 0.99))
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> tx.update({"w": torch.tensor([0.3, -7.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.0000,  1.0000])

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures: see `scale_by_dadapt_adam`.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled),
        scale_by_dadapt_adam(lr, betas, eps, decoupled, **options),
        descend(),
    )


@alias(class_name="DAdaptSGD")
def dadapt_sgd(
    lr=1.0,
    momentum: Decay = 0.0,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_dadapt_sgd],
):
    r"""D-Adapt SGD: SGD with an automatic learning rate.

    $\delta = d \eta / \lVert g_1 \rVert$, $s \leftarrow s + \delta g$, $p \leftarrow \mu p + (1-\mu)(x_0 - s)$; $d$ is
    a lower bound of the distance to the solution that increases during training; see `scale_by_dadapt_sgd`.

    When to use: SGD when no rate is known, mainly for convolutional networks.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        momentum: $\mu$ in [0, 1).
        weight_decay: $\lambda \ge 0$, added to the gradient, but not to $g_1$ in $\lVert g_1 \rVert$.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `s`, `x0`; shared by all leaves, 0-d: `d`,
        `numerator_weighted`, `g0_norm`.

    Example:
        >>> tx = gradtx.dadapt_sgd(d0=1e-3, growth_rate=2.0)
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(5):  # d first moves at the second step, then it doubles
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(f"{10 - params['w'].item():.3f}")
        0.001
        0.002
        0.003
        0.005
        0.009

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures: see `scale_by_dadapt_sgd`.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_dadapt_sgd(lr, momentum, **options),
        descend(),
    )


@alias(class_name="DAdaptAdan")
def dadapt_adan(**direction: Annotated[Any, scale_by_dadapt_adan]):
    r"""D-Adapt Adan: Adan with an automatic learning rate.

    $\delta = d \eta$, $\Delta = g_t - g_{t-1}$, $m \leftarrow \beta_1 m + (1-\beta_1) \delta g$,
    $f \leftarrow \beta_2 f + (1-\beta_2) \delta \Delta$, $p \leftarrow (p - (m + \beta_2 f)/D) / (1 + \delta\lambda)$,
    $D$ from the average of $(g + \beta_2 \Delta)^2$; $d$ is a lower bound of the distance to the solution that
    increases during training; see `scale_by_dadapt_adan`.

    When to use: Adan when no rate is known.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1): weights of the old averages (the Adan paper writes
            $1 - \beta$).
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$.
        no_prox: Use $p \leftarrow (1 - \delta\lambda) p - (m + \beta_2 f)/D$ instead of the division.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_diff`, `exp_avg_sq`, `s`,
        `previous_grad`; shared by all leaves, 0-d: `d`, `gsq_weighted`.

    Example:
        >>> tx = gradtx.dadapt_adan(
        ...     d0=0.1, betas=(0.0, 0.0, 0.0), weight_decay=1.0, no_prox=True
        ... )
        >>> params = {"w": torch.tensor([10.0])}
        >>> # -d0 (sign + p)
        >>> tx.update({"w": torch.tensor([4.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.1000])

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, with Xie et al. 2022, arXiv:2208.06677. Departures: see
    `scale_by_dadapt_adan`. (pytorch_optimizer's class of that name is a different method.)
    """
    return chain(scale_by_dadapt_adan(**direction), descend())


@alias(class_name="DAdaptLion")
def dadapt_lion(**direction: Annotated[Any, scale_by_dadapt_lion]):
    r"""D-Adapt Lion: Lion with an automatic learning rate.

    $\delta = d \eta$, $y = \mathrm{sign}(\beta_1 m + (1-\beta_1) g)$, $p \leftarrow (1 - \delta\lambda) p - \delta y$,
    $m \leftarrow \beta_2 m + (1-\beta_2) \delta g$; $d$ is a lower bound of the distance to the solution that increases
    during training; see `scale_by_dadapt_lion`.

    When to use: Lion when no rate is known.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: Weights of the old momentum in the direction and in the next momentum, each in [0, 1).
        weight_decay: $\lambda \ge 0$, decoupled.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `s`; shared by all leaves, 0-d:
        `d`, `numerator_weighted`.

    Example:
        >>> tx = gradtx.dadapt_lion(lr=0.5, d0=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([2.0, 2.0])}
        >>> # -0.05 (sign + p)
        >>> tx.update({"w": torch.tensor([9.0, -1e-5])}, tx.init(params), params)[0]["w"]
        tensor([-0.1500, -0.0500])

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, with Chen et al. 2023, arXiv:2302.06675. Departures: see
    `scale_by_dadapt_lion`.
    """
    return chain(scale_by_dadapt_lion(**direction), descend())
