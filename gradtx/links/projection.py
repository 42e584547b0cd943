"""Projections of updates and constraints on weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import (
    Decay,
    NonNegative,
    PositiveOrInf,
    Scalar,
    Static,
    UnfitError,
    is_off,
)
from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.exact import exact
from gradtx.base.messages import describe
from gradtx.distributed.redistribution import full_tensor
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.links.clipping import shrink
from gradtx.maths.entries import (
    at_least,
    is_rounding,
    norm,
    plus_decay,
    quotient,
    remainder,
    running_mean,
    safe_pow,
    safe_sqrt,
    sum_of_squares,
    unit_centered,
    unit_norm,
)
from gradtx.rules import per_tensor, whole_tree
from gradtx.slots import linear

__all__ = [
    "centralize",
    "floor_relative_update",
    "keep_norm",
    "map_after_step",
    "map_tree_after_step",
    "orthogonalize_against_ema",
    "orthogonalize_against_params",
    "project_l2_ball",
    "project_neurons",
    "project_scale_invariant",
    "radial_brake",
    "scale_to_radius",
]


@per_tensor
def orthogonalize_against_ema(beta: Decay = 0.9):
    r"""Remove a gradient's component along the mean of earlier gradients.

    With $u = e_{t-1} / \max(\lVert e_{t-1} \rVert, 10^{-12})$, the result is $g_t - \langle g_t, u \rangle u$ over the
    whole leaf (in float64); then $e_t = \beta e_{t-1} + (1-\beta) g_t$ with the incoming gradient.

    Args:
        beta: $\beta$, in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_ema`, shaped as the parameter. The result is 0 where
        only rounding errors remain, as always for a leaf with one entry from the second step on.

    Example:
        >>> tx = gradtx.orthogonalize_against_ema()
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> _, state = tx.update({"w": torch.tensor([1.0, 0.0])}, state)
        >>> tx.update({"w": torch.tensor([1.0, 1.0])}, state)[0]["w"]
        tensor([0., 1.])

    Source: Han et al. 2025, arXiv:2504.01961, in the form of adam-atan2-pytorch 0.4.1. Departures: none from the
    latter, which fails for 0-d leaves.
    """

    def update(update, state, param, ctx):
        old, exact = state["grad_ema"], update.to(ctx.time.dtype)
        unit = old.to(exact.dtype)
        unit = unit / at_least(norm(unit), 1e-12)
        rest = exact - (exact * unit).sum() * unit
        # The mean has rounding errors of its own dtype.
        is_zero = is_rounding(norm(rest).to(old.dtype), norm(update))
        return torch.where(is_zero, 0.0, rest), {
            "grad_ema": running_mean(old, update, beta)
        }

    return {"grad_ema": linear()}, update


def project_neurons(params) -> Any:
    r"""Normalize each neuron's weights to mean 0 and norm 1: $w \mapsto (w - \bar w) / \lVert w - \bar w \rVert$.

    A neuron is an index of dimension 0; a neuron with equal weights becomes 0. Leaves with 0 or 1 dimensions are
    unchanged. `nero` keeps weights in this form. Apply it to them once before training, so that the first gradient is
    computed there.

    Args:
        params: A tree of tensors or a single tensor.

    Returns:
        A tree of the same structure.

    Raises:
        ValueError: If a neuron has a single weight, which would become 0.

    Example:
        >>> project_neurons(
        ...     {"weight": torch.tensor([[1.0, 3.0], [0.0, 8.0]]), "bias": torch.tensor([5.0])}
        ... )
        {'weight': tensor([[-0.7071,  0.7071],
                [-0.7071,  0.7071]]), 'bias': tensor([5.])}

    Source: Liu et al. 2021, arXiv:2102.07227. Departures: neurons with equal weights become 0.
    """
    return _tree.map_tensors(centered_unit_neurons, params)


def centered_unit_neurons(x: Tensor) -> Tensor:
    if x.ndim < 2:
        return x
    if math.prod(x.shape[1:]) == 1:
        raise ValueError(
            f"project_neurons: neurons of shape {tuple(x.shape)} have a single weight each, which would become 0; "
            "train them without constraints in another branch of partition(...)"
        )
    centered = unit_centered(x)
    size = unit_norm(centered)
    return centered * quotient(1.0, size, size > 0)


@per_tensor(elementwise=True, needs="params", agree="max_norm")
def project_l2_ball(max_norm: PositiveOrInf):
    r"""Constrain all weights together to a ball: after the step, $p \leftarrow p \min(1, r / \lVert p \rVert)$.

    Last link of a chain: it changes the update so that $p + u$ is in the ball. The norm is over the whole tree; leaves
    without a gradient are neither counted nor moved. An infinite norm gives the factor 0, a NaN makes every update NaN.

    Args:
        max_norm: $r > 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.project_l2_ball(10.0))
        >>> params = {"a": torch.tensor([6.0]), "b": torch.tensor([16.0])}
        >>> updates, _ = tx.update(
        ...     {"a": torch.tensor([-6.0]), "b": torch.tensor([0.0])}, tx.init(params), params
        ... )
        >>> gradtx.apply_updates(params, updates)  # the step leads to 12 and 16, of norm 20
        {'a': tensor([6.]), 'b': tensor([8.])}

    Source: Berrada et al. 2019, arXiv:1906.05661. Departures: the initial weights are not projected (the authors' code
    projects these as well).
    """

    def update(u, state, p, ctx):
        moved = p + u
        total = yield {"square": moved.square().sum()}
        size = safe_sqrt(total["square"])
        projected = shrink(size, max_norm) * moved - p
        yield torch.where(size <= exact(max_norm, size.device), u, projected), state

    return update


@per_tensor(whole="sums", needs="params")
def project_scale_invariant(
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    eps=1e-8,
    weight_decay: NonNegative = 0.0,
):
    r"""Remove the radial part of updates of weights that appear to be scale-invariant, and decay those less.

    With $\cos_i = |\langle g_i, p_i \rangle| / (\max(\lVert g_i \rVert, \epsilon) \max(\lVert p_i \rVert, \epsilon))$
    for the rows (indices of dimension 0) of a leaf, where $g$ is the gradient as passed to the clock: if
    $\max_i \cos_i < \delta / \sqrt n$, with $n$ the length of a row, then
    $u_i \leftarrow u_i - e_i \langle e_i, u_i \rangle$ with $e_i = p_i / (\lVert p_i \rVert + \epsilon)$, and $r$ =
    `wd_ratio`. Otherwise, the test is repeated with the whole leaf as one row; if that fails, $u$ is unchanged and
    $r = 1$. The result is $u + \lambda r p$: the link applies the decay itself, because only it knows $r$. Leaves with
    0 or 1 dimensions have $r = 1$.

    Args:
        delta: $\delta \ge 0$, the threshold of the test.
        wd_ratio: $r \ge 0$ for projected leaves.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$; decoupled where a `scale_by_learning_rate` follows.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(0.9), gradtx.project_scale_invariant())
        >>> params = {"w": torch.tensor([[1.0, 0.0]])}
        >>> _, state = tx.update({"w": torch.tensor([[1.0, 1.0]])}, tx.init(params), params)
        >>> # the momentum along w is gone
        >>> tx.update({"w": torch.tensor([[0.0, 1.0]])}, state, params)[0]["w"]
        tensor([[0.0000, 1.9000]])

    Source: Heo et al. 2021, arXiv:2006.08217. Departures: none from the authors' adamp 0.3.0.
    """

    def update(u, state, p, ctx):
        if p.ndim <= 1 or p.numel() == 0:
            yield plus_decay(u, weight_decay, p), state
            return
        grad, inner = ctx.grad, tuple(range(1, p.ndim))

        def products(x, y):
            return (x * y).sum(dim=inner, keepdim=True)

        # Four sums per row determine everything; those of the whole leaf are their sums.
        sums = {
            "grad_param": products(grad, p),
            "grad_grad": sum_of_squares(grad, inner),
            "param_param": sum_of_squares(p, inner),
            "update_param": products(u, p),
        }
        aligned, row_radial = _view(sums, p.shape[1:].numel(), delta, eps)
        of_leaf = {name: x.sum() for name, x in sums.items()}
        totals = yield OfLeaf(aligned=aligned.to(p.dtype).sum(), **of_leaf)
        by_row = totals["aligned"] == 0
        aligned, leaf_radial = _view(totals, p.numel(), delta, eps)
        radial = torch.where(aligned, 0.0, leaf_radial)
        radial = torch.where(by_row, row_radial, radial)
        projected = (by_row | ~aligned).to(p.dtype)
        ratio = 1 - (1 - wd_ratio) * projected
        # Projection and decay in one pass over p.
        multiple = -radial if is_off(weight_decay) else ratio * weight_decay - radial
        yield u + multiple * p, state

    return update


def _view(sums, length, delta, eps):
    """Return which rows of the gradient are not orthogonal to p, and the radial part of u as a multiple of p."""
    grad_norm, param_norm = safe_sqrt(sums["grad_grad"]), safe_sqrt(sums["param_param"])
    cosine = sums["grad_param"].abs() / (
        at_least(grad_norm, eps) * at_least(param_norm, eps)
    )
    radial = sums["update_param"] / (param_norm + eps).square()
    return ~(cosine < delta / length**0.5), radial


@per_tensor(needs="params")
def orthogonalize_against_params():
    r"""Remove a gradient's component along the weights, and restore its norm.

    $g_\perp = g - p \langle g, p \rangle / \lVert p \rVert^2$, result
    $g_\perp \lVert g \rVert / \lVert g_\perp \rVert$, over the whole leaf. The result is 0 where only rounding errors
    remain in $g_\perp$, as always for a leaf with one entry, and $g$ where the weights are 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.orthogonalize_against_params()
        >>> params = {"w": torch.tensor([2.0, 0.0])}
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init(params), params)[0]["w"]
        tensor([0., 5.])

    Source: Prieto et al. 2025, arXiv:2501.04697. Departures: no eps is added to the norms.
    """

    def update(update, state, param, ctx):
        along = quotient((update * param).sum(), param.square().sum()) * param
        rest = remainder(update, along)
        return rest * quotient(norm(update), norm(rest)), state

    return update


@per_tensor(by_rows=True)
def centralize(conv_only=False):
    """Subtract the mean of each output unit from its gradient (gradient centralization).

    The mean is over all dimensions but the first, for leaves with at least 2; others pass unchanged.

    Args:
        conv_only: Centralize only leaves with at least 4 dimensions.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.centralize()
        >>> tx.update({"w": torch.tensor([[1.0, 3.0], [2.0, 2.0]])}, tx.init({}))[0]["w"]
        tensor([[-1.,  1.],
                [ 0.,  0.]])

    Source: Yong et al. 2020, arXiv:2004.01461. Departures: none.
    """

    def update(update, state, param, ctx):
        if update.ndim <= (3 if conv_only else 1):
            return update, state
        return unit_centered(update), state

    return update


@per_tensor(needs="params", rate="after")
def map_after_step(fn: Static[Callable[[Tensor], Tensor]], before=False):
    r"""Apply a function to the parameter after the step: constraints, projections, proximal steps.

    $u \mapsto f(p + u) - p$, or with `before` $u \mapsto f(f(p) + u) - p$. Place it after the learning rate.

    Args:
        fn: A function of one tensor, written in torch operations that preserve its shape.
        before: Whether to apply `fn` to the parameter before the step as well.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        TypeError: If `fn` is not callable.
        ValueError: If `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.sgd(lr=1.0), gradtx.map_after_step(torch.relu))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([3.0, 1.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([0., 1.])
    """
    if not callable(fn):
        raise TypeError(
            f"map_after_step: fn must be a function of a tensor, got {describe(fn)}"
        )

    def update(update, state, param, ctx):
        start = fn(param) if before else param
        return fn(start + update) - param, state

    return update


@whole_tree(needs="params", rate="after", capturable=True)
def map_tree_after_step(fn: Static[Callable[[dict[str, Tensor]], dict[str, Tensor]]]):
    r"""Apply a function to all parameters together after the step, such as a projection of their joint vector.

    $u \mapsto f(p + u) - p$ with $p$ and $u$ as dicts by leaf name. Place it after the learning rate. Leaves without a
    gradient are not in the dict, and do not move. `map_after_step` applies a function to each leaf instead.

    Args:
        fn: A function of a dict of tensors by leaf name that returns one with the same names and shapes; see
            `gradtx.projections`. Tensors that are sharded are passed whole.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        TypeError: If `fn` is not callable, or does not return a tensor for each leaf.

    Example:
        >>> tx = gradtx.chain(
        ...     gradtx.sgd(lr=1.0), gradtx.map_tree_after_step(gradtx.projections.simplex)
        ... )
        >>> params = {"a": torch.tensor([0.5]), "b": torch.tensor([0.5])}
        >>> grads = {"a": torch.tensor([-0.5]), "b": torch.tensor([0.0])}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)  # the step leads to 1 and 0.5
        {'a': tensor([0.7500]), 'b': tensor([0.2500])}
    """
    if not callable(fn):
        raise TypeError(
            f"map_tree_after_step: fn must be a function of a dict of tensors, got {describe(fn)}"
        )

    def update(updates, state, params, ctx):
        # In name order, so that sums do not depend on the order of the caller's tree.
        start = {name: full_tensor(params[name]) for name in sorted(params)}
        ends = fn({name: p + full_tensor(updates[name]) for name, p in start.items()})
        if not isinstance(ends, dict) or ends.keys() != start.keys():
            raise TypeError(
                f"map_tree_after_step: {describe(fn)} must return a dict with the names that it receives, got "
                f"{describe(ends)}"
            )
        return {name: end - start[name] for name, end in ends.items()}, state

    return update


@per_tensor(needs="params")
def floor_relative_update(
    floor: NonNegative = 0.35,
    per: Literal["leaf", "row"] = "leaf",
    power: NonNegative = 1.0,
    eps=1e-8,
):
    r"""Enlarge updates that are small relative to their weights: $u \max(f \lVert p \rVert / \lVert u \rVert, 1)^k$.

    Place it before the learning rate. Updates that are mostly noise are enlarged as well, and a decaying momentum no
    longer anneals them: decrease the floor together with the rate.

    Args:
        floor: $f \ge 0$, lower bound of the ratio of the two norms; often a schedule.
        per: "leaf", or "row" for one norm per index of the first dimension in leaves with more than one dimension.
        power: $k \ge 0$; values below 1 only approach the floor.
        eps: Lower bound of both norms, >= 0. Use a positive value if an update may be 0; such updates remain 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.floor_relative_update(0.5)
        >>> params = {"w": torch.tensor([6.0, 8.0])}
        >>> tx.update({"w": torch.tensor([0.0, 0.25])}, tx.init(params), params)[0]["w"]
        tensor([0., 5.])

    Source: modded-nanogpt, track 3, u/w floor. Departures: none.
    """
    size = norm if per == "leaf" else unit_norm

    def update(update, state, param, ctx):
        ratio = at_least(size(param), eps) / at_least(size(update), eps)
        return update * safe_pow(at_least(floor * ratio, 1.0), power), state

    return update


@per_tensor(needs="params")
def radial_brake(
    outward: Scalar = 0.5,
    inward: Scalar = 1.0,
    form: Literal["direction", "norm", "component"] = "direction",
    eps=1e-8,
    *,
    descent=False,
):
    r"""Slow down changes of the norm of the weights.

    Place it after the learning rate. With $q = p + u$ and $s$ = `outward` where the norm grows, otherwise `inward`:

    - "norm": $q$ is rescaled to the norm $\lVert p \rVert + s (\lVert q \rVert - \lVert p \rVert)$.
    - "direction": with $a = \langle u, p \rangle / \lVert p \rVert^2$, $u \leftarrow u + (s - 1) a p$, and $p + u$ is
      rescaled to the norm $\lVert p \rVert + \langle u, p \rangle / \lVert p \rVert$, which also removes the growth of
      the norm due to a tangential step.
    - "component": the same without rescaling. It may also precede the learning rate, with `descent`. After it,
      `radial_brake(1.0, 1.0)` rescales alone.

    Args:
        outward: $s$ where the norm grows (except in "norm": where $a > 0$).
        inward: $s$ elsewhere.
        form: "direction", "norm" or "component".
        eps: Lower bound of the norm in the division, >= 0. Leaves of norm 0 are braked by "norm" only.
        descent: Whether the updates are still to be negated, so that the norm grows where $a < 0$; for "component".

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `form` is unknown or not "component" with `descent`.

    Example:
        >>> tx = gradtx.radial_brake(outward=0.5, form="norm")
        >>> params = {"w": torch.tensor([3.0, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([2.0, 0.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([4., 0.])

    Source: modded-nanogpt, track 3 ("direction", "component"); NVIDIA Emerging-Optimizers ("norm"). Departures: none.
    """
    if descent and form != "component":
        raise ValueError(
            f"radial_brake: form={form!r} rescales the weights after the step and follows the learning rate; descent "
            'is for "component"'
        )

    def factor(grows):
        device = grows.device
        return torch.where(grows, exact(outward, device), exact(inward, device))

    def by_norm(update, state, param, ctx):
        before, moved = norm(param), param + update
        growth = norm(moved) - before
        wanted = before + factor(growth >= 0) * growth
        return moved * (wanted / at_least(norm(moved), eps)) - param, state

    def braked(update, param, before):
        """Return the update with a braked component along the weights, and this component."""
        along = (update * param).sum() / at_least(before, eps).square()
        kept = factor(along < 0 if descent else along > 0) * along
        return update + (kept - along) * param, kept

    def by_component(update, state, param, ctx):
        return braked(update, param, norm(param))[0], state

    def by_direction(update, state, param, ctx):
        before = norm(param)
        slowed, kept = braked(update, param, before)
        moved, wanted = param + slowed, before * (1 + kept)
        rescaled = moved * quotient(wanted, norm(moved)) - param
        return torch.where(before == 0, update, rescaled), state

    forms = {"norm": by_norm, "direction": by_direction, "component": by_component}
    return forms[form]


def _radius(param: Tensor) -> dict[str, Tensor]:
    """Return the slot `radius`."""
    radius = norm(param)
    if param.numel() and _torch.readable(radius) and radius == 0:
        raise UnfitError(
            "has initial norm 0 and would never leave it; use another transformation for it with partition(...)"
        )
    return {"radius": radius}


def _on_sphere(x: Tensor, radius, eps) -> Tensor:
    return x * (radius / at_least(norm(x), eps))


@per_tensor(takes_complex=True, needs="params", length="sets")
def scale_to_radius(eps=1e-12):
    r"""Scale each update to the initial norm of its leaf: $u \mapsto R\, u / \max(\lVert u \rVert, \epsilon)$.

    Place it before the learning rate, which then is a relative step size. $R = \lVert p_0 \rVert$.

    Args:
        eps: $\epsilon \ge 0$. Use a positive value if an update may be 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `radius`, 0-d.

    Raises:
        ValueError: If the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.scale_to_radius()
        >>> params = {"w": torch.tensor([1.5, 2.0])}
        >>> tx.update({"w": torch.tensor([0.0, 1e-3])}, tx.init(params), params)[0]["w"]
        tensor([0.0000, 2.5000])

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none.
    """

    def update(update, state, param, ctx):
        return _on_sphere(update, state["radius"], eps), state

    return _radius, update


@per_tensor(takes_complex=True, needs="params")
def keep_norm(eps=1e-12):
    r"""Rescale each leaf to its initial norm after the step.

    With $q = p + u$, the leaf becomes $R q / \max(\lVert q \rVert, \epsilon)$, $R = \lVert p_0 \rVert$. Place it after
    the learning rate.

    Args:
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `radius`, 0-d.

    Raises:
        ValueError: If the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.keep_norm())
        >>> params = {"w": torch.tensor([5.0, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([2.0, -4.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]  # (3, 4) already has this norm
        tensor([3., 4.])

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none. A preceding `scale_to_radius` makes the step
    relative; `hyperball` combines both.
    """

    def update(update, state, param, ctx):
        return _on_sphere(param + update, state["radius"], eps) - param, state

    return _radius, update
