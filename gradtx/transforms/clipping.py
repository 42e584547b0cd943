"""Bound or normalize updates by value or by the norm of a leaf, a row, or the whole tree; bound weights."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.base.exact import Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, norm, quotient, safe_sqrt, unit_norm

__all__ = [
    "bound_norm",
    "clip_adaptive",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "normalize_by_global_norm",
    "soft_row_clip",
]


@per_tensor(
    ranges={"max_value": "(0, inf]"}, elementwise=True, example={"max_value": 0.5}
)
def clip_by_value(max_value: Scalar):
    """Clamp every entry to [-max_value, max_value].

    Args:
        max_value: The bound, > 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `max_value` is not above 0.

    Example:
        >>> tx = gradtx.clip_by_value(1.0)
        >>> tx.update({"w": torch.tensor([-3.0, 0.5])}, tx.init({}))[0]["w"]
        tensor([-1.0000,  0.5000])
    """

    def update(update, state, param, ctx):
        return update.clamp(-max_value, max_value), state

    return update


@per_tensor(
    takes_complex=True, ranges={"max_norm": "(0, inf]"}, example={"max_norm": 1.0}
)
def clip_by_norm(max_norm: Scalar):
    r"""Scale each leaf separately to a norm of at most `max_norm`: $u \min(1, c / \lVert u \rVert)$.

    Args:
        max_norm: $c > 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `max_norm` is not above 0.

    Example:
        >>> tx = gradtx.clip_by_norm(1.0)
        >>> tx.update({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.5])}, tx.init({}))[0]
        {'a': tensor([0.6000, 0.8000]), 'b': tensor([0.5000])}

    Source: Pascanu et al. 2012, arXiv:1211.5063. Departures: the norm is computed for each leaf separately.
    """

    def update(update, state, param, ctx):
        return update * shrink(norm(update), max_norm), state

    return update


def _norm_of_before(arguments):
    """Return the shared norm of the previous step, if `stale`; its initial value 0 does not clip."""
    return {"norm": 0.0} if arguments["stale"] else {}


@per_tensor(
    ranges={"max_norm": "(0, inf]"},
    elementwise=True,
    agree=("max_norm", "eps"),
    shared=_norm_of_before,
    summed={"norm": safe_sqrt},
    static=("stale",),
    extras={"global_norm": "scalar?"},
    example={"max_norm": 1.0},
)
def clip_by_global_norm(max_norm: Scalar, eps: Scalar = 1e-6, stale: bool = False):
    r"""Scale the whole tree to a norm of at most `max_norm`, preserving its direction.

    $u \min(1, c / (G + \epsilon))$, where $G$ is the 2-norm over all leaves together, as in torch's `clip_grad_norm_`.
    If other processes have more leaves of the model, as the stages of a pipeline do, pass the norm over all of them to
    `update` or `step` as the extra `global_norm`.

    Args:
        max_norm: $c > 0$.
        eps: $\epsilon \ge 0$.
        stale: Clip by the norm $G$ of the previous step, so that no leaf waits for the others (`release_gradients`).
            The first step is not clipped.

    Returns:
        A transformation that keeps shapes and dtypes. State: with `stale`, `norm`, the norm of the previous updates
        over all leaves, 0-d float64; otherwise none.

    Raises:
        ValueError: If `max_norm` is not above 0 or `eps` is negative.

    Example:
        >>> tx = gradtx.clip_by_global_norm(1.0, eps=0.0)
        >>> tx.update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, tx.init({}))[0]
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}

    Source: Pascanu et al. 2012, arXiv:1211.5063. Departures: eps, as in torch's `clip_grad_norm_`; `stale` is an
    addition.
    """

    def update(update, state, param, ctx):
        norm = ctx.global_norm
        if norm is None:
            total = yield {"square": update.square().sum()}
            norm = safe_sqrt(total["square"])
        yield update * shrink(norm + eps, max_norm), state

    def update_by_norm_of_before(update, state, param, ctx):
        return update * shrink(state["norm"] + eps, max_norm), {
            "norm": update.square().sum()
        }

    return update_by_norm_of_before if stale else update


@per_tensor(elementwise=True, agree=("eps",))
def normalize_by_global_norm(eps: Scalar = 1e-6):
    r"""Scale the whole tree to norm 1, preserving its direction: $u / (G + \epsilon)$.

    $G$ is the 2-norm over all leaves together.

    Args:
        eps: $\epsilon \ge 0$; with 0, a tree of zeros is unchanged.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `eps` is negative.

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


@per_tensor(ranges={"clipping": "(0, inf)"}, needs=("params",))
def clip_adaptive(clipping: Scalar = 0.01, eps: Scalar = 1e-3):
    r"""Clip the update of each output unit relative to the norm of its weights (adaptive gradient clipping).

    If a unit's $\lVert u_i \rVert > \lambda \max(\lVert p_i \rVert, \epsilon)$, it is scaled down to that bound.
    A unit is an index of dimension 0; a leaf with 0 or 1 dimensions is one unit.

    Args:
        clipping: $\lambda > 0$.
        eps: $\epsilon \ge 0$, which allows zero weights to learn.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

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

    def update(update, state, param, ctx):
        size, limit = unit_norm(update), clipping * at_least(unit_norm(param), eps)
        return torch.where(
            size > limit, update * (limit / size.clamp(min=1e-6)), update
        ), state

    return update


@per_tensor(
    takes_complex=True,
    needs=("params",),
    ranges={"p_bound": "(0, inf)"},
    example={"p_bound": 1.5},
)
def bound_norm(p_bound: Scalar):
    r"""Keep the norm of each leaf of weights below a multiple of its initial norm.

    Place it after the learning rate. With $x = p + u$ the update becomes
    $x \min(1, b / \lVert x \rVert) - p$, $b = c \lVert p_0 \rVert$.

    Args:
        p_bound: $c > 0$; only read by `init`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `bound`, the $b$ of each leaf, 0-d float64.

    Raises:
        ValueError: If `p_bound` is not above 0, or if `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.bound_norm(2.0))
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([-27.0, -36.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([6., 8.])

    Source: Bernstein et al. 2020, arXiv:2002.03432. Departures: none.
    """

    def init(param):
        return {"bound": exact(p_bound * norm(param), param.device)}

    def update(update, state, param, ctx):
        moved = param + update
        return moved * shrink(norm(moved), state["bound"]) - param, state

    return init, update


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
    size = safe_sqrt(x.square().sum(dim=-1, keepdim=True))
    return x / (half * ((size - middle) / half).tanh() + middle).clamp(min=1e-5)
