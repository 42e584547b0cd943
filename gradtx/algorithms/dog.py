"""DoG; also `ldog` and `dowg`.

SGD whose rate is the distance from the initial weights over the norm of all gradients.
"""

from __future__ import annotations

import torch

from gradtx.arguments import NonNegative, Positive
from gradtx.base.exact import exact_dtype
from gradtx.links.decay import with_decay
from gradtx.maths.entries import norm, quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar, start

__all__ = [
    "dog",
    "dowg",
    "ldog",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_ldog",
]


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
    length="sets",
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
        rate, new_state = _dog(moved, total["square"], state, init_eta)
        yield rate * g, new_state

    return {"param_init": start()}, update


@per_tensor(takes_complex=True, needs="params", length="sets")
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
        rate, new_state = _dog(norm(p - start), g.square().sum(), state, init_eta)
        return rate * g, {"param_init": start, **new_state}

    return {
        "param_init": start(),
        "max_dist": scalar(least if init_eta is None else 0.0),
        "sum_sq": scalar(eps),
    }, update


def _first_sums(arguments):
    estimate = arguments["init_estim_sq_dist"]
    square = arguments["eps"] if estimate is None else estimate
    return {"estim_sq_dist": square, "weighted_sq_norm": 0.0}


@per_tensor(
    elementwise=True,
    needs="params",
    shared=_first_sums,
    agree=("eps", "init_estim_sq_dist"),
    length="sets",
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

    Example:
        >>> tx = gradtx.dowg(init_estim_sq_dist=4.0)  # a first step of about 2
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> tx.update({"w": torch.tensor([30.0, 40.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.2000, -1.6000])

    Source: Khaled, Mishchenko and Jin 2023, arXiv:2305.16284. Departures: none. (The package `dowg` is a different
    method.)
    """
    return with_decay(scale_by_dowg(eps, init_estim_sq_dist), weight_decay, False, lr)
