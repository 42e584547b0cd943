"""Links for pairs of matrices whose product is used: adapters of low rank, projections of attention."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import Count, NonNegative, Positive, Static, is_off
from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import local
from gradtx.base.messages import describe
from gradtx.base.selectors import Selector, listed, without_wrappers
from gradtx.base.tree import map_tensors
from gradtx.combinators.selection import Fork
from gradtx.distributed.redistribution import distributed_like, full_tensor
from gradtx.maths.entries import at_least, identity, norm, rms, running_mean, safe_sqrt
from gradtx.maths.matrices import inverse_root, orthonormal, pseudo_inverse
from gradtx.rules import combinator, whole_tree
from gradtx.transform import GradientTransformation, chain

__all__ = ["couple_pairs", "precondition_pairs", "scale_by_lora_rite"]


# The names of the factors of each product L R, or patterns of them.
Factors: TypeAlias = tuple[tuple[str, str], ...]

Tree: TypeAlias = dict[str, Tensor]  # by leaf name


@_torch.assume_constant
def _matched(who: str, patterns: Factors, names: tuple[str, ...]) -> Factors:
    """Return the names of the factors of each product.

    Raises:
        ValueError: If one of these leaves is in no product, or in several.
    """
    leaves = {without_wrappers(name): name for name in names}
    matched: list[tuple[str, str]] = []
    for pattern, other in patterns:
        regex = "(.*)".join(map(re.escape, pattern.split("*")))
        for name in leaves:
            match = re.fullmatch(regex, name)
            if match is not None:
                partner = other
                for text in match.groups():
                    partner = partner.replace("*", text, 1)
                matched.append((name, partner))
    counts = Counter(sum(matched, ()))
    odd = sorted(name for name, count in counts.items() if count > 1)
    odd += sorted(counts.keys() ^ leaves.keys())
    if odd:
        raise ValueError(
            f"{who}: every leaf of a pair needs exactly one partner, which has a gradient too; not so: {listed(odd)}"
        )
    return tuple((leaves[left], leaves[right]) for left, right in matched)


def _factors(who: str, patterns: Factors, leaves: Mapping[str, Tensor]) -> Factors:
    """Return the same, checked against the shapes of the leaves."""
    matched = _matched(who, patterns, tuple(leaves))
    for left, right in matched:
        shape, other = leaves[left].shape, leaves[right].shape
        if min(len(shape), len(other)) < 2 or math.prod(shape[1:]) != other[0]:
            raise ValueError(
                f"{who}: leaves {left!r} and {right!r}, of shapes {tuple(shape)} and {tuple(other)}, have no product"
            )
    return matched


class PairSelector(Selector):
    """Choose the leaves that are in a pair, and check that their partners exist."""

    def __init__(self, who: str, factors: Factors):
        super().__init__(who, (True, False), (sum(factors, ()), "*"))
        self._factors = factors

    def check_used(self, names: list[str]) -> None:
        super().check_used(names)
        chosen = tuple(name for name in names if self.choose(name, None))
        _matched(self.who, self._factors, chosen)


def _fork(
    who: str,
    pairs,
    rule: Callable[..., GradientTransformation],
    *options,
    reverse: bool = False,
) -> Fork:
    """Send the leaves of all pairs through a rule for whole trees; the others pass."""
    items = tuple(pairs.items()) if isinstance(pairs, Mapping) else ()
    if not items or not all(isinstance(name, str) for name in sum(items, ())):
        raise TypeError(
            f"{who}: pairs must be a dict of name pattern -> pattern of the partner, got {describe(pairs)}"
        )
    if reverse:
        items = tuple((right, left) for left, right in items)
    selector = PairSelector(who, items)
    return Fork(selector, {True: rule(items, *options), False: chain()})


def _matrix(x: Tensor) -> Tensor:
    """Return a leaf with all dimensions but the first flattened."""
    return full_tensor(x).flatten(1)


def _as_leaf(x: Tensor, like: Tensor) -> Tensor:
    """Reverse `_matrix`, with the strides of a leaf also for the transpose of a matrix."""
    return distributed_like(x.reshape(like.shape).contiguous(), like)


def _tall(pairs: Factors, tree: Tree) -> Tree:
    """Return both factors of each product as matrices of shape (size, rank)."""
    tall = {}
    for b, a in pairs:
        tall[b] = _matrix(tree[b])
        tall[a] = _matrix(tree[a]).mT
    return tall


def _as_leaves(pairs: Factors, tall: Tree, like: Tree) -> Tree:
    """Reverse `_tall`."""
    leaves = {}
    for b, a in pairs:
        leaves[b] = _as_leaf(tall[b], like[b])
        leaves[a] = _as_leaf(tall[a].mT, like[a])
    return leaves


def _partners(pairs: Factors) -> dict[str, str]:
    """Return the name of the other factor of each factor's product."""
    return {**dict(pairs), **{a: b for b, a in pairs}}


def _solved(matrix: Tensor, ridge, x: Tensor) -> Tensor:
    """Return (matrix + ridge I)^-1 x, without waiting for the device to report a singular matrix."""
    return torch.linalg.solve_ex(matrix + ridge * identity(len(matrix), x), x)[0]


@whole_tree(capturable=True)
def solve_pairs(factors: Static[Factors], damping: Positive):
    """Precondition the gradients of both factors of each product."""

    def update(updates, state, params, ctx):
        pairs = _factors("precondition_pairs", factors, updates)
        X, g = _tall(pairs, params), _tall(pairs, updates)
        new_state = {}
        for n, partner in _partners(pairs).items():
            Y = X[partner]
            new_state[n] = _solved(Y.mT @ Y, damping, g[n].mT).mT
        return _as_leaves(pairs, new_state, updates), state

    return update


@combinator(needs="params", amplifies=True)
def precondition_pairs(pairs: Static[Mapping[str, str]], damping: Positive = 1e-6):
    r"""Precondition the gradients of adapters of low rank: Riemannian preconditioned LoRA, or scaled gradient descent.

    For a weight $B A$ with A of shape (rank, in) and B of shape (out, rank):
    $g_A \leftarrow (B^\top B + \delta I)^{-1} g_A$ and $g_B \leftarrow g_B (A A^\top + \delta I)^{-1}$. The change of
    the product $B A$ then depends little on how the product is split between its factors, and rates of both factors
    need no ratio. Use it as the first link, before Adam or the rate.

    Args:
        pairs: Pattern of the names of B -> pattern of those of A. A `*` stands for any text, and those of the second
            pattern for what those of the first one matched: `{"*.lora_B.*": "*.lora_A.*"}`. Dimensions of A after the
            first are flattened, and those of B, whose sizes after the second are 1: convolutions fit. Leaves in no pair
            pass unchanged.
        damping: $\delta > 0$, in the units of a squared weight. With B = 0, as at the start of LoRA, $g_A$ is divided
            by it as soon as its gradient is not 0: Adam absorbs this, SGD needs 1e-2 or more.

    Returns:
        A transformation that keeps shapes and dtypes; no state. It processes whole trees, so it cannot be inside
        combinators that divide or rotate leaves. Sharded leaves are gathered, and every rank computes all pairs.

    Raises:
        TypeError: If `pairs` is not a dict of patterns.
        ValueError: If `damping` is not positive; if a pattern matches no leaf; if a leaf is in several pairs, or its
            partner does not exist or has no gradient; if the ranks differ; or if `params` is missing.

    Example:
        >>> tx = gradtx.precondition_pairs({"*.B": "*.A"}, damping=1e-8)
        >>> B, A = torch.tensor([[0.1], [0.0]]), torch.tensor([[10.0, 0.0, 0.0]])
        >>> params = {"w.B": B, "w.A": A}
        >>> product = torch.ones(2, 3)  # the gradient of B A
        >>> grads = {"w.B": product @ params["w.A"].T, "w.A": params["w.B"].T @ product}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> (updates["w.B"] @ params["w.A"]).round(decimals=3)  # the change by B
        tensor([[1., 0., 0.],
                [1., 0., 0.]])
        >>> (params["w.B"] @ updates["w.A"]).round(decimals=3)  # by A: 100 times as large
        tensor([[1., 1., 1.],
                [0., 0., 0.]])

    Source: Zhang and Pilanci 2024, arXiv:2402.02347. Departures: the authors' AdamW computes the factor of $g_B$ from
    the new A; the paper and their SGD from the present one, as here.
    """
    return _fork("precondition_pairs", pairs, solve_pairs, damping)


def _limited(g: Tree, clip, skip) -> Tree:
    """Replace gradients by 0 that are too large, and clip all together."""
    if not is_off(skip):
        g = {n: torch.where(rms(x) - skip > 0, 0.0, x) for n, x in g.items()}
    if is_off(clip):
        return g
    length = safe_sqrt(torch.stack([x.square().sum() for x in g.values()]).sum())
    share = clip / at_least(length, clip)
    return {name: share * x for name, x in g.items()}


def _moments_in_basis(m, V, g, P, betas, eps):
    """Return both moments in the new basis: m of the gradient times V^(-1/2), and V of the gradient."""
    b1, b2 = betas
    V = P @ V @ P.mT
    V = running_mean(0.5 * (V + V.mT), g.mT @ g / max(len(g), 1), b2)
    root = inverse_root(V, -0.5, floor=torch.finfo(V.dtype).tiny)
    return running_mean(m @ P.mT, _solved(root, eps, g.mT).mT, b1), V


@whole_tree(amplifies=True)
def rite_pairs(
    factors: Static[Factors],
    betas,
    eps: Positive,
    clip: NonNegative,
    skip: NonNegative,
    cap: NonNegative,
):
    """Replace the gradients of both factors of each product by LoRA-RITE's directions."""
    who = "scale_by_lora_rite"

    def init(params):  # the rank of a product is the smaller size of its factors
        zeros = map_tensors(torch.zeros_like, params)
        squares = {}
        for n, x in params.items():
            rank = min(x.shape[0], math.prod(x.shape[1:]))
            squares[n] = local(x).new_zeros(rank, rank)
        return {"exp_avg": zeros, "exp_avg_sq": squares, "basis": zeros}

    def update(updates, state, params, ctx):
        pairs = _factors(who, factors, updates)
        X = _tall(pairs, params)
        g = _tall(pairs, updates)
        old_m = _tall(pairs, state["exp_avg"])
        old_U = _tall(pairs, state["basis"])
        U, inverse, m, V, d = {}, {}, {}, {}, {}
        for n, x in X.items():
            size, rank = x.shape
            if size < rank:
                raise ValueError(
                    f"{who}: leaf {n!r} has rank {rank}, which exceeds its other size"
                )
            U[n] = orthonormal(x)
            inverse[n] = pseudo_inverse(U[n].mT @ x)
        corrected = [
            beta * ctx.bias_correction(beta, ctx.time - 1) / ctx.bias_correction(beta)
            for beta in betas
        ]
        partners = _partners(pairs)
        g = {n: g[n] @ inverse[partner] for n, partner in partners.items()}
        g = _limited(g, clip, skip)
        for n, partner in partners.items():
            P = U[partner].mT @ old_U[partner]
            old_V = full_tensor(state["exp_avg_sq"][n])
            m[n], V[n] = _moments_in_basis(old_m[n], old_V, g[n], P, corrected, eps)
            capped = m[n] if is_off(cap) else m[n] / at_least(rms(m[n]) / cap, 1.0)
            d[n] = capped @ inverse[partner].mT
        new_state = {
            "exp_avg": _as_leaves(pairs, m, updates),
            "exp_avg_sq": V,
            "basis": _as_leaves(pairs, U, updates),
        }
        return _as_leaves(pairs, d, updates), new_state

    return init, update


@combinator(needs="params", amplifies=True)
def scale_by_lora_rite(
    pairs: Static[Mapping[str, str]],
    betas=(0.9, 0.999),
    eps: Positive = 1e-6,
    *,
    clip: NonNegative = 1.0,
    skip: NonNegative = 1.0,
    cap: NonNegative = 0.0,
):
    r"""Adam with full matrices in the coordinates that the product of an adapter's factors has: LoRA-RITE's direction.

    Both factors, as (n, rank), $X = U_X R_X$ (QR), with partner Y: $\bar g = g_X R_Y^+$, or 0 if its root mean square
    exceeds `skip`; all $\bar g$ together are clipped to the norm `clip`. With $P = U_Y^\top U_{Y,\mathrm{old}}$:
    $V \leftarrow b_2 P V P^\top + (1-b_2) \bar g^\top \bar g / n$,
    $m \leftarrow b_1 m P^\top + (1-b_1) \bar g (V^{1/2} + \epsilon I)^{-1}$, where
    $b_i = \beta_i (1-\beta_i^{t-1}) / (1-\beta_i^t)$. The direction is
    $m / \max(1, \mathrm{rms}(m) / \mathrm{cap})\, (R_Y^+)^\top$. It is the same for all factorizations of the product.
    Weight decay and the rate follow. With B = 0, A stands still in the first step.

    Args:
        pairs: Pattern of the names of B (out, rank) -> pattern of those of A (rank, in), as for `precondition_pairs`.
            Leaves in no pair pass unchanged.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon > 0$.
        clip: Largest norm of all $\bar g$, >= 0; 0 for no limit. A NaN makes every update NaN.
        skip: Largest root mean square of $\bar g$, >= 0; 0 for no limit.
        cap: Largest root mean square of $m$, >= 0; 0 for no limit.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` ($m$) and `basis` ($U_X$), shaped as the
        parameter; `exp_avg_sq` ($V$), rank x rank. It processes whole trees, so it cannot be inside combinators that
        divide or rotate leaves. Sharded leaves are gathered, and every rank computes all pairs.

    Raises:
        TypeError: If `pairs` is not a dict of patterns.
        ValueError: If a number is out of range; if a pattern matches no leaf; if a leaf is in several pairs, or its
            partner does not exist or has no gradient; if the ranks differ or exceed a size; or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_lora_rite({"B": "A"}, skip=0.0)
        >>> product = torch.ones(2, 3)  # the gradient of B A
        >>> for size in (1.0, 100.0):  # the same product, split in two ways
        ...     params = {"B": torch.tensor([[size], [0.0]]), "A": torch.ones(1, 3) / size}
        ...     grads = {"B": product @ params["A"].T, "A": params["B"].T @ product}
        ...     updates, _ = tx.update(grads, tx.init(params), params)
        ...     print(updates["B"] @ params["A"] + params["B"] @ updates["A"])
        tensor([[1.5773, 1.5773, 1.5773],
                [0.5773, 0.5773, 0.5773]])
        tensor([[1.5773, 1.5773, 1.5773],
                [0.5773, 0.5773, 0.5773]])

    Source: Yen et al. 2024, arXiv:2410.20625, and the authors' code. Departures: its options to let mass escape and to
    balance the factors are not offered; $\bar g$ that is not finite is not replaced.
    """
    options = betas, eps, clip, skip, cap
    return _fork("scale_by_lora_rite", pairs, rite_pairs, *options)


@whole_tree(capturable=True)
def align_pairs(factors: Static[Factors], heads: Count, damping: Positive):
    """Couple the updates of both factors of each product."""

    def dot(x, y):
        return (x * y).sum(dim=(1, 2), keepdim=True)

    def rescaled(d, like):
        return d * (norm(like) / at_least(norm(d), 1e-12))

    def update(updates, state, params, ctx):
        new_state = {}
        for o, v in _factors("couple_pairs", factors, updates):
            s, rest = divmod(updates[v].shape[0], heads)
            if rest:
                raise ValueError(
                    f"couple_pairs: {heads} heads do not divide the rows of {v!r}, {updates[v].shape[0]}"
                )
            V, u_V = (_matrix(x[v]).unflatten(0, (heads, s)) for x in (params, updates))
            W, u_W = (
                _matrix(x[o]).unflatten(1, (heads, s)).movedim(1, 0)
                for x in (params, updates)
            )
            V_square, W_square = dot(V, V), dot(W, W)
            d_V = rescaled(u_V / safe_sqrt(W_square / s + damping), u_V)
            d_W = rescaled(u_W / safe_sqrt(V_square / s + damping), u_W)
            x = (dot(V, d_V) - dot(W, d_W)) / (V_square + W_square + 2 * s * damping)
            new_state[v] = _as_leaf(d_V - x * V, updates[v])
            new_state[o] = _as_leaf((d_W + x * W).movedim(0, 1), updates[o])
        return new_state, state

    return update


@combinator(needs="params", amplifies=True)
def couple_pairs(
    pairs: Static[Mapping[str, str]], heads: Count, damping: Positive = 1e-3
):
    r"""Balance the updates of the value and output projections of attention, head by head: Circuit-Muon.

    Head h uses $O_h V_h$, with s rows of V and s columns of O. Each leg of an update is scaled by the size of the
    other leg's weights, $\delta V_h \leftarrow \delta V_h\, (\lVert O_h \rVert^2 / s + \delta)^{-1/2}$ and vice versa,
    and then as a whole back to its norm. Then the part that moves size between the legs, without effect on the
    product, is removed: with $x_h = \frac{\langle V_h, \delta V_h \rangle - \langle O_h, \delta O_h \rangle}
    {\lVert V_h \rVert^2 + \lVert O_h \rVert^2 + 2 s \delta}$, $\delta V_h \leftarrow \delta V_h - x_h V_h$ and
    $\delta O_h \leftarrow \delta O_h + x_h O_h$. Use it after the direction, before decay and rate.

    Args:
        pairs: Pattern of the names of V (heads s, in) -> pattern of those of O (out, heads s), as for
            `precondition_pairs`. Leaves in no pair pass unchanged.
        heads: Number of heads, >= 1.
        damping: $\delta > 0$, in the units of a squared weight.

    Returns:
        A transformation that keeps shapes and dtypes; no state. It processes whole trees, so it cannot be inside
        combinators that divide or rotate leaves. Sharded leaves are gathered, and every rank computes all pairs.

    Raises:
        TypeError: If `pairs` is not a dict of patterns.
        ValueError: If a number is out of range; if a pattern matches no leaf; if a leaf is in several pairs, or its
            partner does not exist or has no gradient; if the shared dimensions differ, or `heads` does not divide them;
            or if `params` is missing.

    Example:
        >>> tx = gradtx.couple_pairs({"v": "o"}, heads=1, damping=1e-8)
        >>> params = {"v": torch.tensor([[3.0, 0.0]]), "o": torch.tensor([[3.0], [0.0]])}
        >>> grads = {"v": torch.tensor([[1.0, 1.0]]), "o": torch.tensor([[-1.0], [1.0]])}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> # v would grow, and o shrink as much
        >>> updates["v"].round(decimals=4), updates["o"].T.round(decimals=4)
        (tensor([[0., 1.]]), tensor([[0., 1.]]))

    Source: record 41 of track 3 of modded-nanogpt, Circuit-Muon. Departures: none.
    """
    return _fork("couple_pairs", pairs, align_pairs, heads, damping, reverse=True)
