"""DoG, L-DoG, DoWG: learning rates from the distance that the weights have moved."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import norm, quotient, safe_sqrt

__all__ = ["scale_by_dog", "scale_by_dowg", "scale_by_ldog"]

DOG_RANGES = {"reps_rel": "(0, inf)", "init_eta": "[0, inf)"}


def _ratio(distance, squares, init_eta):
    """Return R / sqrt(G), or `init_eta`, if given, before the weights have moved."""
    rate = quotient(distance, safe_sqrt(squares))
    return rate if init_eta is None else torch.where(distance == 0, init_eta, rate)


@per_tensor(
    elementwise=True,
    needs=("params",),
    shared=lambda arguments: {"max_dist": 0.0, "sum_sq": arguments["eps"]},
    agree=("reps_rel", "eps", "init_eta"),
    ranges=DOG_RANGES,
)
def scale_by_dog(
    reps_rel: Scalar = 1e-6, eps: Scalar = 1e-8, init_eta: Scalar | None = None
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

    def init(param):
        return {"param_init": param}

    def update(update, state, param, ctx):
        start = state["param_init"]
        total = yield {
            "moved": (param - start).square().sum(),
            "square": update.square().sum(),
            "start": start.square().sum(),
        }
        distance = torch.maximum(state["max_dist"], safe_sqrt(total["moved"]))
        if init_eta is None:
            least = reps_rel * (1 + safe_sqrt(total["start"]))
            distance = torch.where(
                state["max_dist"] == 0, torch.maximum(distance, least), distance
            )
        squares = state["sum_sq"] + total["square"]
        rate = _ratio(distance, squares, init_eta)
        yield (
            rate * update,
            {"param_init": start, "max_dist": distance, "sum_sq": squares},
        )

    return init, update


@per_tensor(takes_complex=True, needs=("params",), ranges=DOG_RANGES)
def scale_by_ldog(
    reps_rel: Scalar = 1e-6, eps: Scalar = 1e-8, init_eta: Scalar | None = None
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

    def init(param):
        least = (
            0.0
            if init_eta is not None
            else exact(reps_rel, param.device) * (1 + norm(param))
        )
        return {
            "param_init": param,
            "max_dist": exact(least, param.device),
            "sum_sq": exact(eps, param.device),
        }

    def update(update, state, param, ctx):
        start = state["param_init"]
        distance = torch.maximum(state["max_dist"], norm(param - start))
        squares = state["sum_sq"] + update.square().sum()
        new = {"param_init": start, "max_dist": distance, "sum_sq": squares}
        return _ratio(distance, squares, init_eta) * update, new

    return init, update


def _first_square(arguments):
    initial_estimate = arguments["init_estim_sq_dist"]
    return arguments["eps"] if initial_estimate is None else initial_estimate


@per_tensor(
    elementwise=True,
    needs=("params",),
    shared=lambda arguments: {
        "estim_sq_dist": _first_square(arguments),
        "weighted_sq_norm": 0.0,
    },
    agree=("eps", "init_estim_sq_dist"),
    ranges={"eps": "(0, inf)", "init_estim_sq_dist": "(0, inf)"},
)
def scale_by_dowg(eps: Scalar = 1e-4, init_estim_sq_dist: Scalar | None = None):
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

    def init(param):
        return {"param_init": param}

    def update(update, state, param, ctx):
        start = state["param_init"]
        total = yield {
            "moved": (param - start).square().sum(),
            "square": update.square().sum(),
        }
        distance = torch.maximum(state["estim_sq_dist"], total["moved"])
        weighted = state["weighted_sq_norm"] + distance * total["square"]
        rate = distance / (safe_sqrt(weighted) + eps)
        yield (
            rate * update,
            {
                "param_init": start,
                "estim_sq_dist": distance,
                "weighted_sq_norm": weighted,
            },
        )

    return init, update
