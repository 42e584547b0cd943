"""Without a learning rate: Prodigy, DoG, DoWG, COCOB."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch

from gradtx.algorithms.d_adaptation import corrected_rate, limited, resting
from gradtx.algorithms.scaling import descend
from gradtx.algorithms.weight_decay import add_decayed_weights, split_decay, with_decay
from gradtx.arguments import (
    AtLeastOneOrInf,
    Count,
    Decay,
    NonNegative,
    Positive,
)
from gradtx.base.exact import exact, exact_dtype
from gradtx.maths.entries import (
    MOMENTS,
    at_least,
    norm,
    plus_decay,
    quotient,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot, filled, linear, scalar, square, start
from gradtx.transform import chain

__all__ = [
    "cocob",
    "dog",
    "dowg",
    "ldog",
    "prodigy",
    "scale_by_cocob",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_ldog",
    "scale_by_prodigy",
]


@per_tensor(
    elementwise=lambda arguments: arguments["slice_p"] == 1,
    needs="params",
    rate="before",
    shared=lambda arguments: {
        "d": arguments["d0"],
        "d_max": arguments["d0"],
        "d_numerator": 0.0,
    },
    agree=("betas", "beta3", "d0", "d_coef", "growth_rate"),
)
def scale_by_prodigy(
    lr=1.0,
    betas=(0.9, 0.999),
    beta3: Decay | None = None,
    eps: Positive = 1e-8,
    weight_decay=0.0,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0: Positive = 1e-6,
    d_coef: Positive = 1.0,
    growth_rate: AtLeastOneOrInf = math.inf,
    slice_p: Count = 1,
):
    r"""Run Adam with an automatic rate from the distance that the weights have moved: Prodigy.

    $\delta = d \eta$, $N \leftarrow \beta_3 N + (d/d_0) \delta \sum g (p_0 - p)$,
    $m \leftarrow \beta_1 m + (1-\beta_1) d g$, $v \leftarrow \beta_2 v + (1-\beta_2) d^2 g^2$,
    $s \leftarrow \beta_3 s + (d/d_0) \delta g$, $\hat d = c N / \lVert s \rVert_1$,
    $p \leftarrow p (1 - \delta\lambda) - \delta m / (\sqrt v + d' \epsilon)$, sums over all leaves, with the next $d$:
    if $d = d_0$, $d \leftarrow \max(d, \hat d)$; $d_{max} \leftarrow \max(d_{max}, \hat d)$;
    $d' = \min(d_{max}, \kappa d)$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        beta3: $\beta_3$ in [0, 1); None for $\sqrt{\beta_2}$.
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$, decoupled.
        use_bias_correction: Multiply $\delta$ by $\sqrt{1-\beta_2^t} / (1-\beta_1^t)$.
        safeguard_warmup: Omit $\eta$ and the correction from $s$, so that a warm-up does not inflate $\hat d$.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.
        d_coef: $c > 0$, a multiplier of the estimate.
        growth_rate: $\kappa \ge 1$, the largest growth factor of $d$ in one step.
        slice_p: Use only every `slice_p`-th entry of a leaf for $N$ and $s$, which saves memory; >= 1.

    Returns:
        A transformation that keeps shapes and dtypes and returns a direction that includes the rate $\delta$: end the
        chain with `descend`, or leave lr at 1 and end it with `scale_by_learning_rate`. State: `exp_avg`,
        `exp_avg_sq`, `s`, `p0`, shaped as the parameter (the last two one-dimensional with `slice_p` above 1); shared
        by all leaves, `d`, `d_max`, `d_numerator`, 0-d.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if the link follows one that owns the
            learning rate.

    Example:
        >>> tx = gradtx.chain(gradtx.scale_by_prodigy(), gradtx.descend())
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for i in range(16):  # the loss is |w - 7|; d grows with the distance
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     if i % 5 == 0:
        ...         d = gradtx.get(state, "scale_by_prodigy.d")
        ...         print(f"{10 - params['w'].item():.1g}, d = {d:.1g}")
        3e-06, d = 1e-06
        0.0002, d = 8e-05
        0.02, d = 0.009
        3, d = 1

    Source: Mishchenko and Defazio 2023, arXiv:2306.06101. Departures from the authors' code: rates may differ between
    groups; with a first beta of 0 the direction includes the old $d$, as for every other beta.
    """
    beta1, beta2 = betas
    keep = beta2**0.5 if beta3 is None else beta3

    def part(x):
        return x if slice_p == 1 else x.flatten()[::slice_p]

    def update(g, state, p, ctx):
        d = state["d"]
        rate, growth = corrected_rate(d, lr, betas, use_bias_correction, ctx), d / d0
        weight = rate
        if safeguard_warmup:
            # A group with lr 0 must not contribute, regardless of the weights in s.
            weight = torch.where(exact(lr, g.device) == 0, 0.0, d)
        product = growth * rate * (part(g) * (state["p0"] - part(p))).sum()
        m = beta1 * state["exp_avg"] + ((1 - beta1) * d) * g
        v = beta2 * state["exp_avg_sq"] + ((1 - beta2) * d.square()) * g.square()
        s = keep * state["s"] + (growth * weight) * part(g)
        total = yield {"product": product, "size": s.abs().sum()}
        r = keep * state["d_numerator"] + total["product"]
        estimate = d_coef * quotient(r, total["size"])
        largest = torch.maximum(state["d_max"], estimate)
        base = torch.where(d == d0, torch.maximum(d, estimate), d)
        d = limited(largest, base, growth_rate)
        direction = rate * m / (safe_sqrt(v) + d * eps)
        direction = plus_decay(direction, weight_decay, p, rate)
        new = {"exp_avg": m, "exp_avg_sq": v, "s": s}
        shared = {"d": d, "d_max": largest, "d_numerator": r}
        yield resting(total["size"], state, direction, new, shared)

    slots = {
        **MOMENTS,
        "s": Slot(lambda p: torch.zeros_like(part(p)), slow=True),
        "p0": part,
    }
    return slots, update


def _dog(moved, square, state, init_eta):
    """Return the rate R / sqrt(G), or `init_eta`, if given, before the weights have moved, and the next R and G."""
    distance = torch.maximum(state["max_dist"], moved)
    squares = state["sum_sq"] + square
    rate = quotient(distance, safe_sqrt(squares))
    if init_eta is not None:
        rate = torch.where(distance == 0, init_eta, rate)
    return rate, {"max_dist": distance, "sum_sq": squares}


@per_tensor(
    elementwise=True,
    needs="params",
    shared=lambda arguments: {"max_dist": 0.0, "sum_sq": arguments["eps"]},
    agree=("reps_rel", "eps", "init_eta"),
)
def scale_by_dog(
    reps_rel: Positive = 1e-6,
    eps=1e-8,
    init_eta: NonNegative | None = None,
):
    r"""Multiply the gradient by the distance from the start over the norm of all gradients so far: DoG.

    $r \leftarrow \max(r, \lVert p - p_0 \rVert)$ from $r = c (1 + \lVert p_0 \rVert)$,
    $G \leftarrow G + \lVert g \rVert^2$ from $\epsilon$, direction $g r / \sqrt G$. Norms are over the whole tree.

    Args:
        reps_rel: $c > 0$, the approximate norm of the first step relative to the weights.
        eps: $\epsilon \ge 0$, in the units of a squared gradient.
        init_eta: An initial rate >= 0 instead of an initial distance: $r$ then starts at 0, and the direction is
            `init_eta` times $g$ until the weights have moved. None: use `reps_rel`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `param_init`, shaped as the parameter; shared by all
        leaves, `max_dist` ($r$, 0 until the first step) and `sum_sq` ($G$), 0-d.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.scale_by_dog(), gradtx.scale_by_learning_rate(1.0))
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for i in range(76):  # the loss is |w - 7|: steps grow with the distance
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     if i % 25 == 0:
        ...         print(f"{10 - params['w'].item():.2g}")
        1.1e-05
        0.0092
        0.39
        3.1

    Source: Ivgi, Hinder and Carmon 2023, arXiv:2302.12022. Departures: sums are over all leaves, whereas the authors'
    package sums over a parameter group; `init_eta` does not wait for a learning rate above 0.
    """

    def update(g, state, p, ctx):
        start = state["param_init"]
        total = yield {
            "moved": (p - start).square().sum(),
            "square": g.square().sum(),
            "start": start.square().sum(),
        }
        moved = safe_sqrt(total["moved"])
        if init_eta is None:
            least = reps_rel * (1 + safe_sqrt(total["start"]))
            is_first = state["max_dist"] == 0
            moved = torch.where(is_first, torch.maximum(moved, least), moved)
        rate, new = _dog(moved, total["square"], state, init_eta)
        yield rate * g, new

    return {"param_init": start()}, update


@per_tensor(takes_complex=True, needs="params")
def scale_by_ldog(
    reps_rel: Positive = 1e-6,
    eps=1e-8,
    init_eta: NonNegative | None = None,
):
    r"""Multiply the gradient by the distance from the start over the norm of its gradients, leaf by leaf: L-DoG.

    $r \leftarrow \max(r, \lVert p - p_0 \rVert)$ from $r = c (1 + \lVert p_0 \rVert)$,
    $G \leftarrow G + \lVert g \rVert^2$ from $\epsilon$, direction $g r / \sqrt G$, with the norms of each leaf.

    Args:
        reps_rel: $c > 0$, the approximate norm of a leaf's first step relative to its weights.
        eps: $\epsilon \ge 0$, in the units of a squared gradient.
        init_eta: An initial rate >= 0 instead of an initial distance: $r$ then starts at 0, and the direction is
            `init_eta` times $g$ until the leaf has moved. None: use `reps_rel`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `param_init`, shaped as the parameter; `max_dist` ($r$)
        and `sum_sq` ($G$), 0-d float64 for each leaf.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_ldog(reps_rel=0.01, eps=0.0)
        >>> params = {"a": torch.tensor([99.0]), "b": torch.tensor([9.0])}
        >>> grads = {"a": torch.tensor([1.0]), "b": torch.tensor([-1e3])}
        >>> # 0.01 (1 + |p|), regardless of the size of the gradient
        >>> tx.update(grads, tx.init(params), params)[0]
        {'a': tensor([1.]), 'b': tensor([-0.1000])}

    Source: Ivgi, Hinder and Carmon 2023, arXiv:2302.12022. Departures: as for `scale_by_dog`.
    """

    def least(param):
        return reps_rel * (1 + norm(param).to(exact_dtype(param)))

    def update(g, state, p, ctx):
        start = state["param_init"]
        rate, new = _dog(norm(p - start), g.square().sum(), state, init_eta)
        return rate * g, {"param_init": start, **new}

    return {
        "param_init": start(),
        "max_dist": scalar(least if init_eta is None else 0.0),
        "sum_sq": scalar(eps),
    }, update


def _first_sums(arguments):
    given = arguments["init_estim_sq_dist"]
    square = arguments["eps"] if given is None else given
    return {"estim_sq_dist": square, "weighted_sq_norm": 0.0}


@per_tensor(
    elementwise=True,
    needs="params",
    shared=_first_sums,
    agree=("eps", "init_estim_sq_dist"),
)
def scale_by_dowg(eps: Positive = 1e-4, init_estim_sq_dist: Positive | None = None):
    r"""Multiply the gradient by the squared distance from the start over a weighted norm of all gradients: DoWG.

    $r^2 \leftarrow \max(r^2, \lVert p - p_0 \rVert^2)$ from $\epsilon$,
    $w \leftarrow w + r^2 \lVert g \rVert^2$ from 0, direction $g r^2 / (\sqrt w + \epsilon)$. Norms are over the whole
    tree. Later gradients, computed at a larger distance, have a larger weight than in DoG.

    Args:
        eps: $\epsilon > 0$, added to the root, and the default initial value of $r^2$.
        init_estim_sq_dist: Initial value of $r^2$, > 0; None for $\epsilon$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `param_init`, shaped as the parameter; shared by all
        leaves, `estim_sq_dist` ($r^2$) and `weighted_sq_norm` ($w$), 0-d.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_dowg(eps=1.0)
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> # g / (5 + 1)
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init(params), params)[0]["w"]
        tensor([0.5000, 0.6667])

    Source: Khaled, Mishchenko and Jin 2023, arXiv:2305.16284. Departures: none; as in the authors' code and optax,
    $\epsilon$ is the initial value of the squared distance.
    """

    def update(g, state, p, ctx):
        total = yield {
            "moved": (p - state["param_init"]).square().sum(),
            "square": g.square().sum(),
        }
        distance = torch.maximum(state["estim_sq_dist"], total["moved"])
        weighted = state["weighted_sq_norm"] + distance * total["square"]
        rate = distance / (safe_sqrt(weighted) + eps)
        yield rate * g, {"estim_sq_dist": distance, "weighted_sq_norm": weighted}

    return {"param_init": start()}, update


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_cocob(alpha: NonNegative = 100.0, eps=1e-8):
    r"""Bet the accumulated reward of each weight on the sign of its next gradient: COCOB-Backprop.

    For each entry: $L \leftarrow \max(L, |g|)$ from $\epsilon$, $A \leftarrow A + |g|$,
    $R \leftarrow \max(R - g (p - p_0), 0)$, $\theta \leftarrow \theta - g$,
    $p \leftarrow p_0 + \theta \frac{L + R}{L \max(A + L, \alpha L)}$. There is no learning rate.

    Args:
        alpha: $\alpha \ge 0$: the first steps have size about $1 / \alpha$.
        eps: $\epsilon \ge 0$, initial value of the largest gradient of each weight.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State: `param_init`,
        `scale` ($L$), `abs_sum` ($A$), `reward` ($R$), `grad_sum` ($\theta$), shaped as the parameter.

    Raises:
        ValueError: If an argument is negative, if `params` is missing, or if a later link scales by a learning rate or
            decays.

    Example:
        >>> tx = gradtx.scale_by_cocob()
        >>> params = {"w": torch.tensor([5.0, 5.0])}
        >>> # regardless of their size
        >>> tx.update({"w": torch.tensor([1e-3, -70.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0100,  0.0100])

    Source: Orabona and Tommasi 2017, arXiv:1705.07795. Departures: none; $R$ uses the weights at which the gradient was
    computed.
    """

    def update(g, state, p, ctx):
        start = state["param_init"]
        size = torch.maximum(state["scale"], g.abs())
        path = state["abs_sum"] + g.abs()
        reward = at_least(state["reward"] - g * (p - start), 0.0)
        total = state["grad_sum"] - g
        bet = quotient(size + reward, size * torch.maximum(path + size, alpha * size))
        new = {
            "param_init": start,
            "scale": size,
            "abs_sum": path,
            "reward": reward,
            "grad_sum": total,
        }
        return start + bet * total - p, new

    return {
        "param_init": start(),
        "scale": square(filled(eps)),
        "abs_sum": square(slow=True),
        "reward": square(slow=True),
        "grad_sum": linear(slow=True),
    }, update


@alias
def prodigy(
    lr=1.0,
    betas=(0.9, 0.999),
    beta3: Decay | None = None,
    eps: Positive = 1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    **options: Annotated[Any, scale_by_prodigy],
):
    r"""Prodigy: Adam with an automatic learning rate, found faster than by D-Adaptation.

    $\delta = d \eta$, $p \leftarrow p - \delta m / (\sqrt v + d \epsilon)$ with the averages $m$ of $d g$ and $v$ of
    $(d g)^2$; $d$ grows with $\sum g (p_0 - p)$, see `scale_by_prodigy`.

    When to use: Adam when no rate is known; leave `lr` at 1.0 and use cosine decay. The first choice among methods
    without a learning rate.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        beta3: Decay rate of the sums in the estimate, in [0, 1); None for $\sqrt{\beta_2}$.
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Subtract $\delta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.
        use_bias_correction: Multiply $\delta$ by $\sqrt{1-\beta_2^t} / (1-\beta_1^t)$.
        safeguard_warmup: Exclude $\eta$ from the denominator of the estimate, for long warm-ups.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        d_coef: Multiplier of the estimate, > 0; use it to obtain a larger or smaller rate.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.
        slice_p: Estimate only from every `slice_p`-th entry of a leaf, which saves memory; >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `s`, `p0`; shared by
        all leaves, 0-d: `d`, `d_max`, `d_numerator`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.prodigy()
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(20):  # the loss is |w - 7|, for which no rate was chosen
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> f"d = {state['scale_by_prodigy']['d']:.1f}"  # the solution is 3 from the start
        'd = 2.5'

    Source: Mishchenko and Defazio 2023, arXiv:2306.06101. Departures: see `scale_by_prodigy`. (pytorch_optimizer's
    class has no `slice_p`, and its coupled decay differs.)
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled),
        scale_by_prodigy(lr, betas, beta3, eps, decoupled, **options),
        descend(),
    )


@alias(class_name="DoG")
def dog(
    lr=1.0,
    reps_rel: Positive = 1e-6,
    eps=1e-8,
    weight_decay=0.0,
    init_eta: NonNegative | None = None,
):
    r"""DoG: SGD whose rate is the distance from the initial weights over the norm of all gradients.

    $p \leftarrow p - \eta g r / \sqrt G$ with the largest distance $r$ from the initial weights and the sum $G$ of all
    squared gradients, over the whole tree; see `scale_by_dog`.

    When to use: SGD when no rate is known. As the authors do, evaluate an average of the weights (with `average` after
    it).

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1.
        reps_rel: Length of the first step relative to the weights, > 0.
        eps: $\epsilon \ge 0$, the initial value of $G$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        init_eta: Initial rate, >= 0, instead of an initial step length.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`; shared by all leaves, 0-d:
        `max_dist`, `sum_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.dog(reps_rel=0.1)
        >>> params = {"w": torch.tensor([9.0, 0.0])}
        >>> # 0.1 (1 + 9) long
        >>> tx.update({"w": torch.tensor([0.3, -0.4])}, tx.init(params), params)[0]["w"]
        tensor([-0.6000,  0.8000])

    Source: Ivgi, Hinder and Carmon 2023, arXiv:2302.12022. Departures: see `scale_by_dog`.
    """
    return with_decay(scale_by_dog(reps_rel, eps, init_eta), weight_decay, False, lr)


@alias(class_name="LDoG")
def ldog(
    lr=1.0,
    reps_rel: Positive = 1e-6,
    eps=1e-8,
    weight_decay=0.0,
    init_eta: NonNegative | None = None,
):
    r"""L-DoG: DoG with a separate rate for every leaf.

    $p \leftarrow p - \eta g r / \sqrt G$ with the largest distance $r$ from the initial weights and the sum $G$ of all
    squared gradients, leaf by leaf; see `scale_by_ldog`.

    When to use: like `dog`, if leaves differ widely in scale; the authors prefer it for fine-tuning transformers.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1.
        reps_rel: Length of the first step of a leaf relative to its weights, > 0.
        eps: $\epsilon \ge 0$, the initial value of $G$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        init_eta: Initial rate, >= 0, instead of an initial step length.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`, and per leaf `max_dist` and
        `sum_sq`, 0-d float64.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.ldog(reps_rel=0.1)
        >>> params = {"a": torch.tensor([9.0]), "b": torch.tensor([0.0])}
        >>> updates, _ = tx.update(
        ...     {"a": torch.tensor([3.0]), "b": torch.tensor([-3.0])}, tx.init(params), params
        ... )
        >>> updates
        {'a': tensor([-1.]), 'b': tensor([0.1000])}

    Source: Ivgi, Hinder and Carmon 2023, arXiv:2302.12022. Departures: see `scale_by_ldog`.
    """
    return with_decay(scale_by_ldog(reps_rel, eps, init_eta), weight_decay, False, lr)


@alias(class_name="DoWG")
def dowg(
    lr=1.0,
    eps: Positive = 1e-4,
    init_estim_sq_dist: Positive | None = None,
    weight_decay=0.0,
):
    r"""DoWG: SGD whose rate is the squared distance from the initial weights over a weighted norm of gradients.

    $p \leftarrow p - \eta g r^2 / (\sqrt w + \epsilon)$ with the largest distance $r$ from the initial weights and
    $w = \sum r^2 \lVert g \rVert^2$, over the whole tree; see `scale_by_dowg`.

    When to use: like `dog`; its final weights need no average (the paper's claim).

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1.
        eps: $\epsilon > 0$, added to the square root, and the initial value of $r^2$.
        init_estim_sq_dist: Initial value of $r^2$, > 0; None for $\epsilon$.
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`; shared by all leaves, 0-d:
        `estim_sq_dist`, `weighted_sq_norm`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.dowg(init_estim_sq_dist=4.0)  # a first step of about 2
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> tx.update({"w": torch.tensor([30.0, 40.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.2000, -1.6000])

    Source: Khaled, Mishchenko and Jin 2023, arXiv:2305.16284. Departures: none. (The package `dowg` is a different
    method.)
    """
    return with_decay(scale_by_dowg(eps, init_estim_sq_dist), weight_decay, False, lr)


@alias(class_name="COCOB")
def cocob(alpha: NonNegative = 100.0, eps=1e-8, weight_decay=0.0):
    r"""COCOB-Backprop: a step size per weight from bets on its gradients, without a learning rate.

    $p \leftarrow p_0 + \theta (L + R) / (L \max(A + L, \alpha L))$, entry by entry, with the sum $-\theta$ of the
    gradients, the largest of their magnitudes $L$, the sum $A$ of their magnitudes and the reward $R$ won so far; see
    `scale_by_cocob`.

    When to use: when no rate is known and gradients are noisy; weights move away from their initial values only slowly.

    Args:
        alpha: $\alpha \ge 0$: the length of the first steps is about $1 / \alpha$.
        eps: $\epsilon \ge 0$, the initial value of the largest gradient of each weight.
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`, `scale`, `abs_sum`, `reward`,
        `grad_sum`.

    Raises:
        ValueError: If a hyperparameter is negative, or if `params` is missing.

    Example:
        >>> tx = gradtx.cocob(alpha=10.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(4):  # a constant gradient: steps grow with the reward
        ...     updates, state = tx.update({"w": torch.tensor([1.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1200])
        tensor([-0.1760])
        tensor([-0.2904])

    Source: Orabona and Tommasi 2017, arXiv:1705.07795. Departures: none; optax puts a learning rate before it.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_cocob(alpha, eps))
