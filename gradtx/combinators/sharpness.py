"""Seek flat minima: SAM, ASAM and GSAM take the gradient a little uphill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gradtx._arguments import Scalar
from gradtx._exact import exact_dtype
from gradtx._sharding import stacked
from gradtx.combinators.frame import Frame
from gradtx.core import GradientTransformation, check_transformation
from gradtx.factories import combinator
from gradtx.transforms._math import safe_sqrt

__all__ = ["asam", "gsam", "sam"]

Tree = dict[str, Tensor]


def _around(
    base: GradientTransformation, function: Callable[[Tree, Tree, Callable[[Tree], Tree]], Tree], **agree: Any
) -> Frame:
    """The base with another gradient, which `function` makes of gradients, parameters and the gradient function."""

    def update(grads: Tree, state: Any, params: Tree, ctx: Any) -> tuple[Tree, Any]:
        return function(grads, params, ctx.grad_fn), state

    return Frame(base, gradient=update, agree=agree)


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of all entries of a tree: leaf by leaf, then in name order, in float64."""
    sums = [terms[name].sum() for name in sorted(terms)]
    return stacked([one.to(sums[0].device, exact_dtype(sums[0])) for one in sums]).sum()


def _size(tree: Tree) -> Tensor:
    return safe_sqrt(_total({name: x.square() for name, x in tree.items()}))


def _uphill(grads: Tree, params: Tree, weights: Mapping[str, Any], rho: Any, eps: Any) -> tuple[Tree, Tensor]:
    """The point p + rho T^2 g / (|T g| + eps), and |T g|; a T that is not in `weights` is 1."""
    scaled = {name: weights[name] * g if name in weights else g for name, g in grads.items()}
    size = _size(scaled)
    far = rho / (size + eps)
    steps = {name: weights[name] * x if name in weights else x for name, x in scaled.items()}
    return {name: params[name] + far.to(step.device) * step for name, step in steps.items()}, size


def _magnitudes(params: Tree, adaptive: bool) -> Tree:
    return {name: p.abs() for name, p in params.items()} if adaptive else {}


@combinator(needs=("grad_fn", "params"), ranges={"rho": "[0, inf)"}, example=lambda tx: {"base": tx})
def sam(base: GradientTransformation, rho: Scalar = 0.05, adaptive: bool = False, eps: Scalar = 1e-12):
    r"""Sharpness-aware minimization: give the base the gradient at a point a little uphill.

    $q = p + \rho T^2 g / (\lVert T g \rVert + \epsilon)$ with $T = 1$, or $|p|$ entry by entry if adaptive, and the
    norm over all leaves; the base updates $p$ with the gradient at $q$. Takes the extra `grad_fn`, which costs a second
    gradient a step, on the same batch; as a torch optimizer the closure is called again.

    Batch normalization: the second pass must not update the running statistics; set the layers' momentum to 0 in it.
    To accumulate gradients put `accumulate` inside, `sam(accumulate(tx, every))`: each call then looks uphill for its
    own batch. Gradients that are scaled (AMP) must be unscaled before.

    Args:
        base: What the gradient at $q$ goes through.
        rho: $\rho \ge 0$, the distance of $q$ from $p$ (measured in $|T^{-1}|$).
        adaptive: Scale the distance by the size of each weight.
        eps: $\epsilon \ge 0$; keep it above 0, so that a zero gradient gives $q = p$.

    Returns:
        A transformation with the state of `base` and nothing else. Inside, `ctx.grad` is the gradient at $q$.

    Raises:
        TypeError: `base` is no transformation.
        ValueError: numbers out of range, no `grad_fn`, missing `params`.

    Example:
        >>> tx = gradtx.sam(gradtx.sgd(lr=1.0), rho=0.5)
        >>> params, grad_fn = {"w": torch.tensor([3.0])}, torch.func.grad(lambda p: p["w"].square().sum())
        >>> tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)[0]["w"]  # the gradient at 3.5
        tensor([-7.])

    Source: Foret et al. 2020, arXiv:2010.01412. Departures: none.
    """
    check_transformation("sam", "base", base)

    def function(grads: Tree, params: Tree, grad_fn: Callable[[Tree], Tree]) -> Tree:
        return grad_fn(_uphill(grads, params, _magnitudes(params, adaptive), rho, eps)[0])

    return _around(base, function, rho=rho, adaptive=adaptive, eps=eps)


@combinator(
    needs=("grad_fn", "params"),
    ranges={"rho": "[0, inf)", "eta": "[0, inf)"},
    static=("mask",),
    example=lambda tx: {"base": tx},
)
def asam(
    base: GradientTransformation,
    rho: Scalar = 0.5,
    eta: Scalar = 0.01,
    eps: Scalar = 1e-12,
    mask: Callable[[str], bool] | None = None,
):
    r"""Adaptive SAM: `sam` whose distance is measured relative to the size of each weight.

    $q = p + \rho T^2 g / (\lVert T g \rVert + \epsilon)$ with $T = |p| + \eta$; so rescaling a layer and its successor
    does not change the sharpness. The rest is as in `sam`.

    Args:
        base: What the gradient at $q$ goes through.
        rho: $\rho \ge 0$, the distance of $q$ from $p$ in units of $T$.
        eta: $\eta \ge 0$, so that zero weights move too; 0 is `sam(adaptive=True)`.
        eps: $\epsilon \ge 0$.
        mask: A function of the leaf's name: whether it has that $T$, or 1. None: all leaves.

    Returns:
        A transformation with the state of `base` and nothing else. Inside, `ctx.grad` is the gradient at $q$.

    Raises:
        TypeError: `base` is no transformation, `mask` no function.
        ValueError: numbers out of range, no `grad_fn`, missing `params`.

    Example:
        >>> tx = gradtx.asam(gradtx.sgd(lr=1.0), rho=0.1, eta=0.0)
        >>> params, grad_fn = {"w": torch.tensor([10.0])}, torch.func.grad(lambda p: p["w"].square().sum())
        >>> tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)[0]["w"]  # at 10 + 0.1 * 10
        tensor([-22.])

    Source: Kwon et al. 2021, arXiv:2102.11600. Departures: the authors' code takes $T = 1$ for leaves without "weight"
    in their name: `mask=lambda name: "weight" in name`.
    """
    check_transformation("asam", "base", base)
    if mask is not None and not callable(mask):
        raise TypeError(f"asam: mask must be a function of a leaf's name, got {mask!r}")

    def function(grads: Tree, params: Tree, grad_fn: Callable[[Tree], Tree]) -> Tree:
        weights = {name: p.abs() + eta for name, p in params.items() if mask is None or mask(name)}
        return grad_fn(_uphill(grads, params, weights, rho, eps)[0])

    return _around(base, function, rho=rho, eta=eta, eps=eps, mask=mask)


@combinator(
    needs=("grad_fn", "params"),
    ranges={"rho": "[0, inf)", "alpha": "[0, inf)"},
    example=lambda tx: {"base": tx},
)
def gsam(
    base: GradientTransformation,
    rho: Scalar = 0.05,
    alpha: Scalar = 0.4,
    adaptive: bool = False,
    eps: Scalar = 1e-12,
):
    r"""Surrogate-gap SAM: `sam` that also shrinks the gap between the loss uphill and the loss here.

    With $g'$ the gradient at $q$ of `sam`, $c = \langle g, g' \rangle / (\lVert g \rVert \lVert g' \rVert + \epsilon)$
    and $g_\perp = g - c \lVert g \rVert g' / (\lVert g' \rVert + \epsilon)$, the part of $g$ orthogonal to $g'$, the
    base gets $g' - \alpha g_\perp$. Norms run over all leaves. The rest is as in `sam`.

    Args:
        base: What the combined gradient goes through.
        rho: $\rho \ge 0$, the distance of $q$ from $p$; usually a schedule that follows the learning rate.
        alpha: $\alpha \ge 0$; 0 is `sam`.
        adaptive: Scale the distance by the size of each weight; the norms in $c$ and $g_\perp$ stay plain.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation with the state of `base` and nothing else. Inside, `ctx.grad` is the combined gradient.

    Raises:
        TypeError: `base` is no transformation.
        ValueError: numbers out of range, no `grad_fn`, missing `params`.

    Example:
        >>> tx = gradtx.gsam(gradtx.sgd(lr=1.0), rho=1.0, alpha=0.5)
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> grads, grad_fn = {"w": torch.tensor([3.0, 4.0])}, lambda at: {"w": torch.tensor([5.0, 0.0])}
        >>> tx.update(grads, tx.init(params), params, grad_fn=grad_fn)[0]["w"]  # g' - 0.5 (0, 4), negated
        tensor([-5.,  2.])

    Source: Zhuang et al. 2022, arXiv:2203.08065. Departures: none. With several machines average the final gradient,
    not $g$ or $g'$.
    """
    check_transformation("gsam", "base", base)

    def function(grads: Tree, params: Tree, grad_fn: Callable[[Tree], Tree]) -> Tree:
        there = grad_fn(_uphill(grads, params, _magnitudes(params, adaptive), rho, eps)[0])
        here_size, there_size = _size(grads), _size(there)
        cosine = _total({name: g * there[name] for name, g in grads.items()}) / (here_size * there_size + eps)
        along = cosine * here_size / (there_size + eps)
        # g' - alpha (g - along g')
        return {name: (1 + alpha * along).to(g.device) * there[name] - alpha * g for name, g in grads.items()}

    return _around(base, function, rho=rho, alpha=alpha, adaptive=adaptive, eps=eps)
