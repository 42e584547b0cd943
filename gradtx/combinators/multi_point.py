"""The loss or its gradient at other points: sharpness-aware minimization (SAM) and its variants, line searches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import (
    AtLeastOne,
    Count,
    Decay,
    NonNegative,
    OpenFraction,
    Positive,
    Static,
)
from gradtx.base import torch_names as _torch
from gradtx.base.exact import exact
from gradtx.base.plain import is_plain
from gradtx.base.selectors import answer, check_signature
from gradtx.base.tree import map_tensors
from gradtx.combinators.frame import Frame
from gradtx.distributed.redistribution import full_tensor
from gradtx.distributed.sums import total
from gradtx.execution.runs import Scope
from gradtx.execution.tree_rule import Functions, TreeOperation
from gradtx.maths.entries import quotient, running_mean, safe_sqrt
from gradtx.rules import Combinator, combinator
from gradtx.transform import GradientTransformation

__all__ = [
    "asam",
    "friendly_sam",
    "gsam",
    "line_search",
    "looksam",
    "sam",
    "wsam",
]

Tree: TypeAlias = dict[str, Tensor]  # by leaf name


# For variants of SAM, which compute the gradient at other weights.
sharpness_aware = combinator(needs=("grad_fn", "params"))


def _norm(tree: Tree) -> Tensor:
    """Return the norm of all leaves together."""
    return safe_sqrt(_product(tree, tree))


def _product(tree: Tree, other: Tree) -> Tensor:
    """Return the inner product of all leaves together."""
    return total({name: x * other[name] for name, x in tree.items()})


def _mixed(a, tree: Tree, b, other: Tree) -> Tree:
    """Return a x + b y for the leaves x and y of two trees and numbers a and b, which may be 0-d tensors."""

    def on_device(number, x):
        return number.to(x.device) if isinstance(number, Tensor) else number

    return {
        name: on_device(a, x) * x + on_device(b, x) * other[name]
        for name, x in tree.items()
    }


def _weighted(tree: Tree, weights: Tree) -> Tree:
    """Return T x for each leaf x; a T that is not in `weights` is 1."""
    return {
        name: weights[name] * x if name in weights else x for name, x in tree.items()
    }


def _magnitudes(params: Tree, adaptive: bool) -> Tree:
    """Return the weights T of `sam`."""
    return {name: p.abs() for name, p in params.items()} if adaptive else {}


def _uphill(ctx, directions: Tree, params: Tree, weights: Tree, rho, eps) -> Tree:
    """Return the gradient at p + rho T^2 d / (|T d| + eps) for directions d."""
    scaled = _weighted(directions, weights)  # T d
    length = rho / (_norm(scaled) + eps)
    return ctx.grad_fn(_mixed(length, _weighted(scaled, weights), 1.0, params))


def _around(
    base: GradientTransformation,
    combined: Callable[[Tree, Tree], Tree],
    rho,
    adaptive: bool,
    eps,
) -> Frame:
    """Pass the base what `combined` makes of the gradient and of the one at the point of `sam`."""

    def update(grads, state, params, ctx):
        weights = _magnitudes(params, adaptive)
        uphill = _uphill(ctx, grads, params, weights, rho, eps)
        return combined(grads, uphill), state

    return Frame(base, gradient=update)


@sharpness_aware
def sam(
    base: GradientTransformation,
    rho: NonNegative = 0.05,
    adaptive=False,
    eps=1e-12,
):
    r"""Sharpness-aware minimization: pass the base the gradient at a point slightly uphill.

    $q = p + \rho T^2 g / (\lVert T g \rVert + \epsilon)$ with $T = 1$, or $|p|$ elementwise if adaptive, and the norm
    over all leaves; the base updates $p$ with the gradient at $q$. Requires the extra `grad_fn`, which computes a
    second gradient per step on the same batch; a torch optimizer calls the closure again. An infinite norm gives the
    distance 0, a NaN makes every update NaN.

    Batch normalization: the second pass must not update the running statistics; set the layers' momentum to 0 in it.
    To accumulate gradients, put `accumulate` inside, `sam(accumulate(tx, every))`: each call then goes uphill for its
    own batch. Scaled gradients (AMP) must be unscaled first.

    Args:
        base: The transformation of the gradient at $q$.
        rho: $\rho \ge 0$, the distance of $q$ from $p$ (measured in $|T^{-1}|$).
        adaptive: Scale the distance by the size of each weight.
        eps: $\epsilon \ge 0$; keep it above 0, so that $q = p$ for a zero gradient.

    Returns:
        A transformation with the state of `base` and nothing else. Inside, `ctx.grad` is the gradient at $q$.

    Raises:
        TypeError: If `base` is not a transformation.
        ValueError: If an argument is out of range, or if `grad_fn` or `params` is missing.

    Example:
        >>> tx = gradtx.sam(gradtx.sgd(lr=1.0), rho=0.5)
        >>> params = {"w": torch.tensor([3.0])}
        >>> grad_fn = torch.func.grad(lambda p: p["w"].square().sum())
        >>> # the gradient at 3.5
        >>> tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)[0]["w"]
        tensor([-7.])

    Source: Foret et al. 2020, arXiv:2010.01412. Departures: none.
    """
    return _around(base, lambda grads, uphill: uphill, rho, adaptive, eps)


@sharpness_aware
def asam(
    base: GradientTransformation,
    rho: NonNegative = 0.5,
    eta: NonNegative = 0.01,
    eps=1e-12,
    mask: Static[Callable[[str], bool]] | None = None,
):
    r"""Adaptive SAM: `sam` with a distance relative to the size of each weight.

    $q = p + \rho T^2 g / (\lVert T g \rVert + \epsilon)$ with $T = |p| + \eta$, so that rescaling a layer and its
    successor does not change the sharpness. Otherwise as `sam`.

    Args:
        base: The transformation of the gradient at $q$.
        rho: $\rho \ge 0$, the distance of $q$ from $p$ in units of $T$.
        eta: $\eta \ge 0$, so that zero weights move too; 0 corresponds to `sam(adaptive=True)`.
        eps: $\epsilon \ge 0$.
        mask: A function of the leaf's name: whether the leaf uses this $T$; otherwise $T = 1$. None for all leaves.

    Returns:
        A transformation with the state of `base` and nothing else. Inside, `ctx.grad` is the gradient at $q$.

    Raises:
        TypeError: If `base` is not a transformation, or if `mask` is not a function.
        ValueError: If an argument is out of range, if `grad_fn` or `params` is missing, or if `mask` reads the name of
            a parameter that an optimizer received without a name.

    Example:
        >>> tx = gradtx.asam(gradtx.sgd(lr=1.0), rho=0.1, eta=0.0)
        >>> params = {"w": torch.tensor([10.0])}
        >>> grad_fn = torch.func.grad(lambda p: p["w"].square().sum())
        >>> # at 10 + 0.1 * 10
        >>> tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)[0]["w"]
        tensor([-22.])

    Source: Kwon et al. 2021, arXiv:2102.11600. Departures: the authors' code uses $T = 1$ for leaves without "weight"
    in their name: `mask=lambda name: "weight" in name`.
    """
    if mask is not None and not callable(mask):
        raise TypeError(f"asam: mask must be a function of a leaf's name, got {mask!r}")
    if mask is not None:
        returns = 'bool, such as lambda name: "weight" in name'
        check_signature("asam: mask", mask, ("name",), returns)

    def update(grads, state, params, ctx):
        weights = {
            name: p.abs() + eta
            for name, p in params.items()
            if mask is None or answer("asam: mask", mask, name)
        }
        return _uphill(ctx, grads, params, weights, rho, eps), state

    return Frame(base, gradient=update)


@sharpness_aware
def gsam(
    base: GradientTransformation,
    rho: NonNegative = 0.05,
    alpha: NonNegative = 0.4,
    adaptive=False,
    eps=1e-12,
):
    r"""Surrogate-gap SAM: `sam` that also shrinks the gap between the uphill loss and the loss.

    With $g'$ the gradient at $q$ of `sam`, $c = \langle g, g' \rangle / (\lVert g \rVert \lVert g' \rVert + \epsilon)$
    and $g_\perp = g - c \lVert g \rVert g' / (\lVert g' \rVert + \epsilon)$, the part of $g$ orthogonal to $g'$, the
    base receives $g' - \alpha g_\perp$. Norms are over all leaves. Otherwise as `sam`.

    Args:
        base: The transformation of the combined gradient.
        rho: $\rho \ge 0$, the distance of $q$ from $p$; usually a schedule that follows the learning rate.
        alpha: $\alpha \ge 0$; 0 corresponds to `sam`.
        adaptive: Scale the distance by the size of each weight; the norms in $c$ and $g_\perp$ remain unscaled.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation with the state of `base` and nothing else. Inside, `ctx.grad` is the combined gradient.

    Raises:
        TypeError: If `base` is not a transformation.
        ValueError: If an argument is out of range, or if `grad_fn` or `params` is missing.

    Example:
        >>> tx = gradtx.gsam(gradtx.sgd(lr=1.0), rho=1.0, alpha=0.5)
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> grads = {"w": torch.tensor([3.0, 4.0])}
        >>> grad_fn = lambda at: {"w": torch.tensor([5.0, 0.0])}
        >>> # g' - 0.5 (0, 4), negated
        >>> tx.update(grads, tx.init(params), params, grad_fn=grad_fn)[0]["w"]
        tensor([-5.,  2.])

    Source: Zhuang et al. 2022, arXiv:2203.08065. Departures: none. With several machines, average the final gradient,
    not $g$ or $g'$.
    """

    def combined(grads, uphill):
        norm, uphill_norm = _norm(grads), _norm(uphill)
        cosine = _product(grads, uphill) / (norm * uphill_norm + eps)
        projection = cosine * norm / (uphill_norm + eps)
        factor = 1 + alpha * projection
        # g' - alpha (g - projection g')
        return _mixed(factor, uphill, -alpha, grads)

    return _around(base, combined, rho, adaptive, eps)


@sharpness_aware
def wsam(
    base: GradientTransformation,
    rho: NonNegative = 0.05,
    gamma: Decay = 0.9,
    adaptive=False,
    eps=1e-12,
):
    r"""Weighted SAM: `sam` with a weight for the sharpness relative to the loss.

    With $g'$ the gradient at $q$ of `sam` and $\alpha = \gamma / (1 - \gamma)$, the base receives
    $g + \alpha (g' - g)$, the gradient of the loss plus $\alpha$ times the sharpness. Otherwise as `sam`.

    Args:
        base: The transformation of the combined gradient.
        rho: $\rho \ge 0$, the distance of $q$ from $p$.
        gamma: $\gamma$ in [0, 1), the weight of the sharpness: 0 leaves the gradient unchanged, 0.5 corresponds to
            `sam`, and larger values favor flat minima more strongly.
        adaptive: Scale the distance by the size of each weight.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation with the state of `base` and nothing else. Inside, `ctx.grad` is the combined gradient.

    Raises:
        TypeError: If `base` is not a transformation.
        ValueError: If an argument is out of range, or if `grad_fn` or `params` is missing.

    Example:
        >>> tx = gradtx.wsam(gradtx.sgd(lr=1.0), rho=0.5, gamma=0.75)
        >>> params = {"w": torch.tensor([3.0])}
        >>> grad_fn = torch.func.grad(lambda p: p["w"].square().sum())
        >>> # 6 + 3 (7 - 6)
        >>> tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)[0]["w"]
        tensor([-9.])

    Source: Yue et al. 2023, arXiv:2305.15817. Departures: the coupled form; the authors' default applies the sharpness
    outside the base, which requires its learning rate there.
    """
    alpha = gamma / (1 - gamma)

    def combined(grads, uphill):
        return {name: g + alpha * (uphill[name] - g) for name, g in grads.items()}

    return _around(base, combined, rho, adaptive, eps)


@sharpness_aware
def looksam(
    base: GradientTransformation,
    rho: NonNegative = 0.1,
    k: Count = 10,
    alpha: NonNegative = 0.7,
    adaptive=False,
    eps=1e-12,
):
    r"""LookSAM: `sam` that computes the uphill gradient at every k-th step and reuses it in between.

    If $(t-1) \bmod k = 0$, the base receives $g'$, the gradient at $q$ of `sam`, and stores
    $v = g' - \frac{\langle g', g \rangle}{\lVert g \rVert^2} g$, the component that leads to flat minima. At all other
    steps the base receives $g + \alpha \frac{\lVert g \rVert}{\lVert v \rVert + \epsilon} v$. Products and norms are
    over all leaves. Otherwise as `sam`; an optimizer calls the closure again only at steps that need it.

    Args:
        base: The transformation of the new gradient.
        rho: $\rho \ge 0$, the distance of $q$ from $p$.
        k: Steps between uphill gradients, >= 1; 1 corresponds to `sam`.
        alpha: $\alpha \ge 0$, the length of the reused component relative to the gradient.
        adaptive: Scale the distance by the size of each weight.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation with the state `sharpness` ($v$), shaped like the parameter, and that of `base`. Inside,
        `ctx.grad` is the new gradient.

    Raises:
        TypeError: If `base` is not a transformation.
        ValueError: If an argument is out of range, or if `grad_fn` or `params` is missing.

    Example:
        >>> tx = gradtx.looksam(gradtx.sgd(lr=1.0), k=2, alpha=0.5)
        >>> params, grads = {"w": torch.zeros(2)}, {"w": torch.tensor([4.0, 0.0])}
        >>> uphill, state = {"w": torch.tensor([4.0, 1.0])}, tx.init(params)
        >>> # the gradient uphill; then g and, half as long, the direction that was new there
        >>> for _ in range(2):
        ...     updates, state = tx.update(grads, state, params, grad_fn=lambda at: uphill)
        ...     print(updates["w"])
        tensor([-4., -1.])
        tensor([-4., -2.])

    Source: Liu et al. 2022, arXiv:2203.02714. Departures: none from the paper's algorithm without layer-wise scaling;
    public code (rollovd/LookSAM, pytorch_optimizer) computes the products and norms leaf by leaf.
    """

    def update(grads, state, params, ctx):
        norm = _norm(grads)

        def perturb():
            weights = _magnitudes(params, adaptive)
            uphill = _uphill(ctx, grads, params, weights, rho, eps)
            share = quotient(_product(grads, uphill), norm.square())
            return uphill, _mixed(1.0, uphill, -share, grads)

        def reuse():
            sharpness = state["sharpness"]
            length = alpha * quotient(norm, _norm(sharpness) + eps)
            return _mixed(length, sharpness, 1.0, grads), sharpness

        ahead, sharpness = ctx.every(k, 1, perturb, reuse)
        return ahead, {"sharpness": sharpness}

    def init(params):
        return {"sharpness": map_tensors(torch.zeros_like, params)}

    return Frame(base, gradient=(init, update))


@sharpness_aware
def friendly_sam(
    base: GradientTransformation,
    rho: NonNegative = 0.05,
    sigma: NonNegative = 1.0,
    lmbda: Decay = 0.9,
    adaptive=False,
    eps=1e-12,
):
    r"""Friendly SAM: `sam` that goes uphill along the batch noise, without the full-data gradient.

    $d_t = g_t - \sigma m_{t-1}$ ($d_1 = g_1$), $m_t = \lambda m_{t-1} + (1-\lambda) g_t$ ($m_1 = g_1$); $q$ of `sam` is
    computed with $d$ instead of $g$, and the base receives the gradient at $q$. Otherwise as `sam`.

    Args:
        base: The transformation of the gradient at $q$.
        rho: $\rho \ge 0$, the distance of $q$ from $p$.
        sigma: $\sigma \ge 0$, the multiple of the mean gradient that is subtracted; 0 corresponds to `sam`.
        lmbda: $\lambda$ in [0, 1), weight of the old mean.
        adaptive: Scale the distance by the size of each weight.
        eps: $\epsilon \ge 0$; keep it above 0, so that $q = p$ for $d = 0$.

    Returns:
        A transformation with the state `exp_avg` ($m$), shaped like the parameter, and that of `base`. Inside,
        `ctx.grad` is the gradient at $q$.

    Raises:
        TypeError: If `base` is not a transformation.
        ValueError: If an argument is out of range, or if `grad_fn` or `params` is missing.

    Example:
        >>> tx = gradtx.friendly_sam(gradtx.sgd(lr=1.0), rho=0.5)
        >>> params = {"w": torch.tensor([3.0])}
        >>> grad_fn = torch.func.grad(lambda p: p["w"].square().sum())
        >>> state = tx.init(params)
        >>> # the same gradient again is no noise: the second step is taken here
        >>> for _ in range(2):
        ...     updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        ...     print(updates["w"])
        tensor([-7.])
        tensor([-6.])

    Source: Li et al. 2024, arXiv:2403.12350. Departures: none from the authors' code.
    """

    def update(grads, state, params, ctx):
        first = ctx.step == 1
        directions, means = {}, {}
        for name, g in grads.items():
            mean, now = state["exp_avg"][name], first.to(g.device)
            directions[name] = torch.where(now, g, g - sigma * mean)
            means[name] = torch.where(now, g, running_mean(mean, g, lmbda))
        weights = _magnitudes(params, adaptive)
        uphill = _uphill(ctx, directions, params, weights, rho, eps)
        return uphill, {"exp_avg": means}

    def init(params):
        return {"exp_avg": map_tensors(torch.zeros_like, params)}

    return Frame(base, gradient=(init, update))


# Minimum distance of a trial from the ends of a bracket, as a fraction of its width.
EDGE = 0.1
# How many times as long the next trial is while there is no bracket: at least, and at most.
SHORTEST, LONGEST = 2.0, 10.0


@combinator(needs=("params", "value_fn"))
def line_search(
    tx: GradientTransformation,
    max_steps: Count = 10,
    shrink: OpenFraction = 0.5,
    c1: OpenFraction = 1e-4,
    start: Positive = 1.0,
    growth: AtLeastOne | None = None,
    conditions: Literal["armijo", "strong_wolfe"] = "armijo",
    c2: OpenFraction = 0.9,
):
    r"""Scale the updates of an optimizer so that the loss decreases sufficiently.

    With the final update $u$, the loss $\varphi(a)$ at $p + a u$ and $m = \langle g, u \rangle$ over all leaves,
    "armijo" tries $a = a_0, a_0 s, a_0 s^2, \ldots$ and accepts the first with
    $\varphi(a) \le \varphi(0) + c_1 a m$. "strong_wolfe" also requires $|\varphi'(a)| \le c_2 |m|$: until a bracket
    contains such a point, it goes on to the minimum of the cubic through the last two trials, at least twice and at
    most ten times as far; then it tries the minimum of the cubic through both ends, kept a tenth of the bracket away
    from them. If no trial satisfies both conditions, it uses the one with the lowest loss that satisfies the first. The
    search ends with the first accepted trial, under `vmap` with that of the last member, for which the host waits.
    Where it cannot, in compiled and captured graphs, all trials run, with the same result.

    The caller passes `value_fn`, a function of the parameters that returns the loss of this batch; a torch optimizer
    calls its closure instead, never twice at one point within `step(closure, max_iter=20)`. All trials use the same
    batch. If `value` is also passed, it is used as $\varphi(0)$, which saves one loss a step.

    Args:
        tx: The optimizer whose updates are scaled, such as `lbfgs()`.
        max_steps: Number of trials, >= 1.
        shrink: $s$ in (0, 1), for "armijo".
        c1: $c_1$ in (0, 1).
        start: $a_0 > 0$ of the first step; without `growth`, of every step.
        growth: Factor >= 1: $a_0$ of the next step is this factor times the accepted $a$, or $s a_0$ after a failure.
        conditions: "armijo" or "strong_wolfe", which needs a derivative at every trial: through `value_fn` in pure use,
            by the closure's `backward` in an optimizer.
        c2: $c_2$ in (0, 1), greater than $c_1$, for "strong_wolfe".

    Returns:
        A transformation whose updates are added to the parameters. State: `step_size` (the last $a$, 0-d), `next_size`
        ($a_0$, 0-d) if `growth` is given, and the entries of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation, or if `value_fn` is not a function.
        ValueError: If an argument is out of range, if `conditions` is unknown, if `c2` is not greater than `c1`, if
            `value_fn` or `params` is missing, or if the loss is not 0-d.

    Example:
        >>> loss = lambda p: p["w"].pow(4).sum()
        >>> tx = gradtx.line_search(gradtx.sgd(lr=1.0))
        >>> params = {"w": torch.tensor([2.0])}
        >>> updates, state = tx.update(
        ...     torch.func.grad(loss)(params), tx.init(params), params, value_fn=loss
        ... )
        >>> # the gradient is 32, which would overshoot
        >>> updates["w"], state["line_search"]["step_size"]
        (tensor([-2.]), tensor(0.0625, dtype=torch.float64))

    Source: Armijo 1966; Wolfe 1969; Nocedal and Wright 2006, algorithms 3.5 and 3.6. Departures: a single loop of
    trials both brackets and zooms. If no trial is accepted, the parameters do not change, but the state of `tx` has
    advanced. An update that is not a descent direction ($m \ge 0$) is accepted if the loss decreases.
    """
    if isinstance(c1, float) and isinstance(c2, float) and not c1 < c2:
        raise ValueError(f"line_search: c2 must be greater than c1, got {c2} and {c1}")

    def init(params):
        device = next(iter(params.values())).device
        first = exact(start, device)
        sizes = {"step_size": torch.zeros_like(first)}
        return sizes if growth is None else {**sizes, "next_size": first}

    def update(updates, state, params, ctx):
        slope = total({name: ctx.grad[name] * u for name, u in updates.items()})
        value = ctx.value
        if value is None:
            value, _ = ctx.value_along(params, updates, torch.zeros_like(slope))
        line = Line(params, updates, ctx, value.to(slope), slope, c1)
        first = exact(start, slope.device) if growth is None else state["next_size"]
        first = first.to(slope)
        if conditions == "armijo":
            length = backtracked(line, first, max_steps, shrink)
        else:
            length = wolfe(line, first, max_steps, c2)
        moves = length > 0
        scaled = {}
        for name, u in updates.items():
            moved = length.to(u.device, u.dtype) * u
            # Where, since 0 * inf is NaN.
            scaled[name] = torch.where(moves.to(u.device), moved, 0.0)
        sizes = {"step_size": length}
        if growth is not None:
            sizes["next_size"] = torch.where(moves, growth * length, shrink * first)
        return scaled, sizes

    return Search(tx, Functions(init, update))


@dataclasses.dataclass(frozen=True)
class Search(Combinator):
    """The inner operations, followed by one operation for all leaves."""

    inner: GradientTransformation
    functions: Functions

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        inner = self.inner._expand(scope.inside(path, 0))
        operation = TreeOperation(path, scope, name, self.functions, scope.own)
        return [*inner, operation]


@dataclasses.dataclass(frozen=True)
class Line:
    """The loss along an update.

    Attributes:
        origin, direction: The parameters and the update, by leaf name.
        ctx: The context of the step.
        value, slope: The loss and its slope at length 0.
        c1: The share of the slope that a sufficient decrease has.
    """

    origin: dict[str, Tensor]
    direction: dict[str, Tensor]
    ctx: Any
    value: Tensor
    slope: Tensor
    c1: Any

    def at(self, length: Tensor, sloped: bool = False) -> tuple[Tensor, Any]:
        """Return the loss at a length, and its slope if `sloped`."""
        value, slope = self.ctx.value_along(self.origin, self.direction, length, sloped)
        return value.to(self.slope), None if slope is None else slope.to(self.slope)

    def decreases(self, length: Tensor, value: Tensor) -> Tensor:
        """Whether the loss at a length is a sufficient decrease."""
        return value <= self.value + self.c1 * length * self.slope

    def is_over(self, is_found: Tensor) -> bool:
        """Whether no further trial is needed, under `vmap` by no member; False where the host cannot know.

        It waits for a device, since a trial takes longer.
        """
        if self.ctx.counts_on_host:
            return bool(is_found)
        if _torch.is_intercepted():
            return False
        values = _torch.below_transforms(full_tensor(is_found))
        is_known = is_plain(values) and not values.is_meta
        if not is_known or _torch.is_captured(values.device):
            return False
        return bool(values.all())


def backtracked(line: Line, first: Tensor, max_steps: int, shrink) -> Tensor:
    """Return the first of a decreasing sequence of lengths with sufficient decrease; 0 if there is none."""
    accepted = torch.zeros_like(first)
    is_found = torch.zeros_like(first, dtype=torch.bool)
    length = first
    for _ in range(max_steps):
        value, _ = line.at(length)
        enough = line.decreases(length, value)
        accepted = torch.where(~is_found & enough, length, accepted)
        is_found = is_found | enough
        if line.is_over(is_found):
            break
        length = shrink * length
    return accepted


class End(NamedTuple):
    """A length, and the loss and slope at that length."""

    length: Tensor
    value: Tensor
    slope: Tensor

    def where(self, choice: Tensor, otherwise: End) -> End:
        """Return this end where `choice` is true, else `otherwise`."""
        ends = zip(self, otherwise, strict=True)
        return End(*(torch.where(choice, a, b) for a, b in ends))


def wolfe(line: Line, first: Tensor, max_steps: int, c2) -> Tensor:
    """Return a length that satisfies the strong Wolfe conditions, or the one of lowest loss with sufficient decrease.

    `low` is the best end so far, `high` the other end of the bracket once there is one.
    """
    low = high = End(torch.zeros_like(first), line.value, line.slope)
    bracketed = is_found = torch.zeros_like(first, dtype=torch.bool)
    length = first
    for _ in range(max_steps):
        value, slope = line.at(length, sloped=True)
        trial = End(length, value, slope)
        enough = line.decreases(length, value)
        too_far = ~enough | (value >= low.value)  # also true if the value is NaN
        flat = ~too_far & (slope.abs() <= c2 * line.slope.abs())
        turns = ~too_far & (
            slope * torch.where(bracketed, high.length - low.length, 1.0) >= 0
        )
        last = low
        new_high = trial.where(too_far, low.where(turns, high))
        new_low = low.where(too_far, trial)
        low, high = low.where(is_found, new_low), high.where(is_found, new_high)
        bracketed, is_found = bracketed | too_far | turns, is_found | flat
        if line.is_over(is_found):
            break
        length = torch.where(bracketed, _between(low, high), _beyond(last, low))
    return low.length


def _between(low: End, high: End) -> Tensor:
    """Return the minimum of the cubic through both ends, clamped between them; the midpoint if there is no minimum."""
    share = _lowest(low, high, 0.5).clamp(EDGE, 1 - EDGE)
    return low.length + share * (high.length - low.length)


def _beyond(last: End, end: End) -> Tensor:
    """Return the minimum of the cubic through the last two trials as far as it is ahead; the longest if none is."""
    share = _lowest(last, end, 0.0)
    ahead = last.length + share * (end.length - last.length)
    longest = LONGEST * end.length
    length = torch.where(share > 1, ahead, longest)
    return length.clamp(SHORTEST * end.length, longest)


def _lowest(start: End, end: End, otherwise: float) -> Tensor:
    """Return where the cubic through both ends is lowest, as a share of the way; `otherwise` if it has no minimum."""
    width = end.length - start.length
    safe = torch.where(width == 0, 1.0, width)
    bend = start.slope + end.slope - 3 * (end.value - start.value) / safe
    square = bend.square() - start.slope * end.slope
    root = torch.where(square > 0, square, 1.0).sqrt() * width.sign()
    bottom = end.slope - start.slope + 2 * root
    share = 1 - (end.slope + root - bend) / torch.where(bottom == 0, 1.0, bottom)
    usable = (square > 0) & (bottom != 0) & share.isfinite()
    return torch.where(usable, share, otherwise)
