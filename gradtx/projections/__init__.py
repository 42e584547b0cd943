r"""Projections onto sets: the nearest point of a set, for a tensor or a tree, for `map_after_step`.

Each function takes a tensor or a tree of tensors, whose entries it projects as one vector, as optax's do, and returns a
new one of the same structure, shapes and dtypes. They are differentiable and run under `torch.vmap`. 16-bit tensors are
computed in float32. In a chain, `map_after_step` applies a function to each leaf, and `map_tree_after_step` to all
leaves as one vector; pass numbers by `functools.partial`:

    >>> import functools
    >>> tx = gradtx.chain(
    ...     gradtx.sgd(lr=1.0),
    ...     gradtx.map_after_step(functools.partial(gradtx.projections.l2_ball, scale=2.0)),
    ... )
    >>> params = {"w": torch.tensor([1.5, 2.0])}
    >>> updates, _ = tx.update({"w": torch.tensor([-1.5, -2.0])}, tx.init(params), params)
    >>> gradtx.apply_updates(params, updates)["w"]  # the step leads to (3, 4)
    tensor([1.2000, 1.6000])
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_number
from gradtx.base import tree as _tree
from gradtx.base.messages import describe
from gradtx.base.vectors import JointVector
from gradtx.links.clipping import shrink
from gradtx.maths.entries import safe_sqrt

__all__ = [
    "affine",
    "box",
    "halfspace",
    "hyperplane",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "non_negative",
    "simplex",
]


def simplex(tree: Any, scale: float | Tensor = 1.0) -> Any:
    r"""Project onto the simplex $\{x : x_i \ge 0, \sum_i x_i = s\}$.

    $x_i = \max(v_i - \theta, 0)$ with the $\theta$ for which they sum to $s$, found by sorting.

    Args:
        tree: $v$, a tensor or a tree.
        scale: $s > 0$, a number or a 0-d tensor.

    Returns:
        The projection.

    Raises:
        ValueError: If `scale` is not positive.

    Example:
        >>> gradtx.projections.simplex(torch.tensor([0.5, 1.2, -3.0]))
        tensor([0.1500, 0.8500, 0.0000])

    Source: Duchi et al. 2008, Efficient projections onto the l1-ball.
    """
    scale = _size("simplex", scale, positive=True)
    return _jointly("simplex", lambda v: _on_simplex(v, scale), tree)


def l1_ball(tree: Any, scale: float | Tensor = 1.0) -> Any:
    r"""Project onto the ball $\{x : \lVert x \rVert_1 \le s\}$, which makes small entries 0.

    Args:
        tree: A tensor or a tree.
        scale: $s \ge 0$, a number or a 0-d tensor.

    Returns:
        The projection.

    Raises:
        ValueError: If `scale` is negative.

    Example:
        >>> gradtx.projections.l1_ball(torch.tensor([3.0, -0.5, 2.5]))
        tensor([0.7500, -0.0000, 0.2500])

    Source: Duchi et al. 2008, Efficient projections onto the l1-ball.
    """
    scale = _size("l1_ball", scale)

    def project(v: Tensor) -> Tensor:
        is_outside = v.abs().sum() > scale
        on_sphere = v.sign() * _on_simplex(v.abs(), scale)
        return torch.where(is_outside, on_sphere, v)

    return _jointly("l1_ball", project, tree)


def l2_ball(tree: Any, scale: float | Tensor = 1.0) -> Any:
    r"""Project onto the ball $\{x : \lVert x \rVert_2 \le s\}$: $v \min(1, s / \lVert v \rVert)$.

    Args:
        tree: A tensor or a tree.
        scale: $s \ge 0$, a number or a 0-d tensor.

    Returns:
        The projection.

    Raises:
        ValueError: If `scale` is negative.

    Example:
        >>> gradtx.projections.l2_ball({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}
    """
    scale = _size("l2_ball", scale)
    return _jointly(
        "l2_ball", lambda v: v * shrink(safe_sqrt(v.square().sum()), scale), tree
    )


def linf_ball(tree: Any, scale: float | Tensor = 1.0) -> Any:
    r"""Project onto the cube $\{x : |x_i| \le s\}$ by clamping each entry.

    Args:
        tree: A tensor or a tree.
        scale: $s \ge 0$, a number or a 0-d tensor.

    Returns:
        The projection.

    Raises:
        ValueError: If `scale` is negative.

    Example:
        >>> gradtx.projections.linf_ball(torch.tensor([-3.0, 0.5]))
        tensor([-1.0000,  0.5000])
    """
    scale = _size("linf_ball", scale)
    return _by_entry("linf_ball", lambda x: _clamped(x, scale), tree)


def box(tree: Any, lower: Any, upper: Any) -> Any:
    r"""Project onto the box $\{x : l_i \le x_i \le u_i\}$ by clamping each entry.

    Args:
        tree: A tensor or a tree.
        lower: $l$: a number, or a tensor or tree of bounds with the structure of `tree`; None for no bound.
        upper: $u \ge l$, as `lower`.

    Returns:
        The projection.

    Raises:
        ValueError: If a lower bound that is a number exceeds an upper one, or if trees differ.

    Example:
        >>> upper = torch.tensor([1.0, 0.2, 3.0])
        >>> gradtx.projections.box(torch.tensor([-1.0, 0.5, 4.0]), 0.0, upper)
        tensor([0.0000, 0.2000, 3.0000])
    """
    are_numbers = all(isinstance(bound, numbers.Real) for bound in (lower, upper))
    if are_numbers and lower > upper:
        raise ValueError(
            f"projections.box: lower must be at most upper, got {lower!r} and {upper!r}"
        )
    leaves, unflatten = _tree.flatten_real(tree, "projections.box: the tree")
    bounds = [_bounds(leaves, bound) for bound in (lower, upper)]
    clamped = {}
    for name, leaf in leaves.items():
        least, most = (bound[name] for bound in bounds)
        clamped[name] = leaf
        if leaf is not None and least is not None:
            clamped[name] = torch.maximum(clamped[name], _like(least, leaf))
        if leaf is not None and most is not None:
            clamped[name] = torch.minimum(clamped[name], _like(most, leaf))
    return unflatten(clamped)


def non_negative(tree: Any) -> Any:
    r"""Project onto $\{x : x_i \ge 0\}$: negative entries become 0.

    Args:
        tree: A tensor or a tree.

    Returns:
        The projection.

    Example:
        >>> gradtx.projections.non_negative(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    return _by_entry("non_negative", lambda x: x.clamp(min=0.0), tree)


def halfspace(tree: Any, a: Any, b: float | Tensor) -> Any:
    r"""Project onto the half-space $\{x : \langle a, x \rangle \le b\}$.

    $v - \max(\langle a, v \rangle - b, 0)\, a / \lVert a \rVert^2$.

    Args:
        tree: $v$, a tensor or a tree.
        a: The normal of the boundary, not 0, with the structure of `tree`.
        b: $b$, a number or a 0-d tensor.

    Returns:
        The projection.

    Raises:
        ValueError: If the trees differ.

    Example:
        >>> a = torch.tensor([1.0, 1.0])
        >>> gradtx.projections.halfspace(torch.tensor([2.0, 3.0]), a, 1.0)
        tensor([0., 1.])
    """
    return _jointly(
        "halfspace",
        lambda v, a: v - ((a @ v - b).clamp(min=0.0) / a.square().sum()) * a,
        tree,
        a,
    )


def hyperplane(tree: Any, a: Any, b: float | Tensor) -> Any:
    r"""Project onto the hyperplane $\{x : \langle a, x \rangle = b\}$.

    $v - (\langle a, v \rangle - b)\, a / \lVert a \rVert^2$.

    Args:
        tree: $v$, a tensor or a tree.
        a: The normal, not 0, with the structure of `tree`.
        b: $b$, a number or a 0-d tensor.

    Returns:
        The projection.

    Raises:
        ValueError: If the trees differ.

    Example:
        >>> a = torch.tensor([1.0, 1.0])
        >>> gradtx.projections.hyperplane(torch.tensor([2.0, 3.0]), a, 0.0)
        tensor([-0.5000,  0.5000])
    """
    return _jointly(
        "hyperplane", lambda v, a: v - ((a @ v - b) / a.square().sum()) * a, tree, a
    )


def affine(tree: Any, a: Tensor, b: Tensor) -> Any:
    r"""Project onto the affine set $\{x : A x = b\}$: $v - A^+ (A v - b)$.

    Args:
        tree: $v$, a tensor or a tree; the entries of its leaves in order, each row by row.
        a: $A$, of shape (equations, entries). $A^+$ is its pseudo-inverse, so rows may depend on each other.
        b: $b$, of shape (equations,).

    Returns:
        The projection; the nearest point among those with the least error if no $x$ fulfills all equations.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> a = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]])
        >>> b = torch.tensor([0.0, 1.0])
        >>> x = gradtx.projections.affine(torch.tensor([3.0, 0.0, 0.0]), a, b)
        >>> torch.allclose(a @ x, b, atol=1e-6)
        True
    """

    def project(v: Tensor) -> Tensor:
        if a.ndim != 2 or b.shape != a.shape[:1] or a.shape[1] != v.numel():
            raise ValueError(
                f"projections.affine: needs a of shape (equations, {v.numel()}) and b of shape (equations,), got "
                f"{tuple(a.shape)} and {tuple(b.shape)}"
            )
        matrix, right = a.to(v.dtype), b.to(v.dtype)
        return v - torch.linalg.pinv(matrix) @ (matrix @ v - right)

    return _jointly("affine", project, tree)


def _on_simplex(v: Tensor, scale: float | Tensor) -> Tensor:
    """Project a vector: its largest entries, minus what their sum exceeds the scale by, in equal parts."""
    descending = v.sort(descending=True).values
    sums = descending.cumsum(0) - scale
    counts = torch.arange(1, len(v) + 1, device=v.device, dtype=v.dtype)
    stays = descending - sums / counts >= 0
    excess = torch.where(stays, descending, 0.0).sum() - scale
    return (v - excess / stays.sum().to(v.dtype)).clamp(min=0.0)


def _clamped(x: Tensor, scale: float | Tensor) -> Tensor:
    bound = _like(scale, x)
    return torch.minimum(torch.maximum(x, -bound), bound)


def _size(name: str, scale: float | Tensor, positive: bool = False) -> float | Tensor:
    """Check the size of a set."""
    if isinstance(scale, Tensor) and scale.ndim == 0:
        return scale
    if not is_number(scale):
        raise TypeError(
            f"projections.{name}: scale must be a number or a 0-d tensor, got {describe(scale)}"
        )
    if not scale >= 0 or (positive and scale == 0):
        interval = "(0, inf)" if positive else "[0, inf)"
        raise ValueError(
            f"projections.{name}: scale must be in {interval}, got {scale!r}"
        )
    return float(scale)


def _jointly(name: str, project: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """Apply a function to the vector of all entries of a tree, and to those of other trees of its structure."""
    leaves, unflatten = _tree.flatten_real(tree, f"projections.{name}: the tree")
    present = {n: leaf for n, leaf in leaves.items() if leaf is not None}
    if not present:
        return tree
    space = JointVector(list(present.values()))
    vectors = [space.joined(space.like)]
    for other in others:
        of_tree = _tree.match(other, leaves, f"projections.{name}: a", "the tree")
        for leaf_name, leaf in present.items():
            if of_tree[leaf_name].shape != leaf.shape:
                raise ValueError(
                    f"projections.{name}: a: leaf {leaf_name!r} has shape {tuple(of_tree[leaf_name].shape)}, needs "
                    f"{tuple(leaf.shape)}"
                )
        vectors.append(space.joined([of_tree[leaf_name] for leaf_name in present]))
    projected = dict(zip(present, space.parts(project(*vectors)), strict=True))
    return unflatten({**leaves, **projected})


def _by_entry(name: str, project: Callable[[Tensor], Tensor], tree: Any) -> Any:
    leaves, unflatten = _tree.flatten_real(tree, f"projections.{name}: the tree")
    return unflatten(
        {n: None if leaf is None else project(leaf) for n, leaf in leaves.items()}
    )


def _bounds(leaves: dict[str, Any], bound: Any) -> dict[str, Any]:
    """Return a bound for each leaf."""
    if bound is None or isinstance(bound, numbers.Real):
        return dict.fromkeys(leaves, bound)
    if isinstance(bound, Tensor) and bound.ndim == 0:
        return dict.fromkeys(leaves, bound)
    return _tree.match(bound, leaves, "projections.box: a bound", "the tree")


def _like(bound: Any, leaf: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=leaf.dtype, device=leaf.device)
