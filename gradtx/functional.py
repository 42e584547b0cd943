"""What loops of pure functions need: a whole step of training, and trees with a dimension of members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._arguments import describe
from gradtx.core import GradientTransformation, apply_updates, check_transformation

__all__ = ["stack", "train_step", "unstack"]


def train_step(
    loss_fn: Callable[..., Any], tx: GradientTransformation, *, has_aux: bool = False
) -> Callable[..., tuple[Any, dict[str, Any], Any]]:
    """Make the pure function of one training step: gradients, update, new parameters.

    It runs under `torch.vmap`, `torch.func` transforms and `torch.compile` as it is. Links that need the loss
    (`value`) or a second gradient (`grad_fn`, on the same batch) get them.

    Args:
        loss_fn: `loss_fn(params, *batch)` returns the loss, a 0-d tensor; with `has_aux` a pair `(loss, aux)`.
        tx: What makes updates of the gradients.
        has_aux: Whether `loss_fn` returns something beside the loss (predictions, new buffers): any tree of tensors.

    Returns:
        `step(params, state, *batch, **extras)`, which returns `(params, state, loss)`, or with `has_aux`
        `(params, state, (loss, aux))`. The loss is that of the parameters given. `extras` are handed to `tx.update`:
        `hessian_diag` and whatever else a link declares. Parameters that require gradients make a graph over all
        steps: detach them, unless that is the purpose.

    Raises:
        TypeError: `loss_fn` is no function, `tx` no transformation. The step: a loss that is no floating-point tensor,
            no pair where `has_aux` promises one, anything but tensors in `aux`.
        ValueError: The step: a loss that is not 0-d, an extra that a link needs and nobody gave, and whatever
            `tx.update` refuses.

    Example:
        >>> loss_fn = lambda params, x, y: (params["w"] * x - y).square().mean()
        >>> tx = gradtx.sgd(lr=0.1)
        >>> step = gradtx.train_step(loss_fn, tx)
        >>> params = {"w": torch.tensor(0.0)}
        >>> params, state, loss = step(params, tx.init(params), torch.ones(4), torch.full((4,), 2.0))
        >>> params["w"], loss
        (tensor(0.4000), tensor(4.))
    """
    if not callable(loss_fn):
        raise TypeError(f"train_step: loss_fn must be a function (params, *batch) -> loss, got {describe(loss_fn)}")
    check_transformation("train_step", "tx", tx)
    expected = [need for need in tx.needs if need not in ("params", "value", "grad_fn")]

    def step(params: Any, state: dict[str, Any], *batch: Any, **extras: Any) -> tuple[Any, dict[str, Any], Any]:
        for need in expected:
            if need not in extras:
                raise ValueError(f"train_step: {tx._name} needs {need}: call step(params, state, *batch, {need}=...)")

        def gradients(params: Any) -> tuple[Any, Any]:
            leaves, unflatten = _tree.flatten(params, "params")
            present = {name: leaf for name, leaf in leaves.items() if leaf is not None}

            def loss_at(values: dict[str, Tensor]) -> tuple[Tensor, Any]:
                return _loss_and_aux(loss_fn(unflatten({**leaves, **values}), *batch), has_aux)

            grads, found = torch.func.grad_and_value(loss_at, has_aux=True)(present)
            return unflatten({**leaves, **grads}), found

        grads, (loss, aux) = gradients(params)
        known = {"value": loss, "grad_fn": lambda params: gradients(params)[0]}
        updates, state = tx.update(grads, state, params, **{**known, **extras})
        return apply_updates(params, updates), state, (loss, aux) if has_aux else loss

    return step


def _loss_and_aux(found: Any, has_aux: bool) -> tuple[Tensor, Any]:
    """What a loss function returned, checked."""
    if has_aux and not (isinstance(found, tuple) and len(found) == 2):
        raise TypeError(f"train_step: with has_aux, loss_fn must return (loss, aux), got {describe(found)}")
    loss, aux = found if has_aux else (found, ())
    if isinstance(loss, tuple) and not has_aux:
        raise TypeError("train_step: loss_fn returned a tuple; pass has_aux=True if it is (loss, aux)")
    if not isinstance(loss, Tensor):
        raise TypeError(f"train_step: loss_fn must return a tensor, got {describe(loss)}")
    if loss.ndim:
        raise ValueError(f"train_step: the loss must be 0-d, got shape {tuple(loss.shape)}; take its mean or sum")
    if not loss.dtype.is_floating_point:
        raise TypeError(f"train_step: the loss must be a floating-point tensor, got {loss.dtype}")
    for name, leaf in _tree.flatten_any(aux, "train_step: aux")[0].items():
        if leaf is None:
            raise TypeError(f"train_step: leaf {name!r} of aux is None, needs a tensor")
    return loss, aux


def stack(trees: Iterable[Any]) -> Any:
    """Put equal trees on top of each other: parameters or states of the members of an ensemble, for `torch.vmap`.

    Args:
        trees: Trees of tensors of any dtype, at least one, whose leaves agree in name, shape, dtype and device. Leaves
            are matched by name; None stands on None.

    Returns:
        A tree like the first one, whose tensors have a new leading dimension: the members.

    Raises:
        TypeError: one tree instead of several, a leaf that is neither tensor nor None, leaves of different dtypes.
        ValueError: no trees, or a leaf that differs in name, shape or device; it is named.

    Example:
        >>> members = gradtx.stack([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])
        >>> members
        {'w': tensor([[0., 0.],
                [1., 1.]])}
        >>> tx = gradtx.adam()
        >>> state = torch.vmap(tx.init)(members)  # the same as gradtx.stack of both states
        >>> state["step"]
        tensor([0, 0])
    """
    if isinstance(trees, Mapping | Tensor) or not isinstance(trees, Iterable):
        raise TypeError(f"stack: needs a list of trees, got one {type(trees).__name__}")
    found = [_tree.flatten_any(tree, f"stack: tree {i}") for i, tree in enumerate(trees)]
    if not found:
        raise ValueError("stack: needs at least one tree")
    first, unflatten = found[0]
    for i, (leaves, _) in enumerate(found[1:], 1):
        _tree.check_names(leaves, first, f"stack: leaves of tree {i}", "leaves of tree 0")
        for name, leaf in leaves.items():
            _check_alike(name, leaf, first[name], i)
    return unflatten(
        {
            name: None if leaf is None else torch.stack([leaves[name] for leaves, _ in found])
            for name, leaf in first.items()
        }
    )


def _check_alike(name: str, leaf: Any, like: Any, i: int) -> None:
    if (leaf is None) != (like is None):
        none = i if leaf is None else 0
        raise ValueError(f"stack: leaf {name!r} is None in tree {none} and a tensor in tree {i - none}")
    if leaf is None:
        return
    if leaf.shape != like.shape:
        shapes = f"{tuple(leaf.shape)} in tree {i}, {tuple(like.shape)} in tree 0"
        raise ValueError(f"stack: leaf {name!r} has shape {shapes}; members must be built alike")
    if leaf.dtype != like.dtype:
        raise TypeError(f"stack: leaf {name!r} has dtype {leaf.dtype} in tree {i}, {like.dtype} in tree 0")
    if leaf.device != like.device:
        raise ValueError(f"stack: leaf {name!r} is on {leaf.device} in tree {i}, on {like.device} in tree 0")


def unstack(tree: Any) -> list[Any]:
    """Take stacked trees apart again: one tree for each index of the leading dimension.

    Args:
        tree: Tensors that have the same leading dimension, as `stack` and `torch.vmap` make them.

    Returns:
        A list of trees whose tensors lack that dimension and have memory of their own.

    Raises:
        TypeError: a leaf that is neither tensor nor None.
        ValueError: a leaf without dimensions, or with another number of members; no tensor at all.

    Example:
        >>> gradtx.unstack({"w": torch.tensor([[0.0, 1.0], [2.0, 3.0]])})
        [{'w': tensor([0., 1.])}, {'w': tensor([2., 3.])}]
    """
    leaves, unflatten = _tree.flatten_any(tree, "unstack")
    count, counted = None, ""
    for name, leaf in leaves.items():
        if leaf is None:
            continue
        if not leaf.ndim:
            raise ValueError(f"unstack: leaf {name!r} is 0-d, needs a leading dimension of members")
        if count is not None and len(leaf) != count:
            raise ValueError(f"unstack: leaf {name!r} has {len(leaf)} members, leaf {counted!r} has {count}")
        count, counted = len(leaf), name
    if count is None:
        raise ValueError("unstack: there is no tensor in the tree, so the number of members is unknown")
    # A view would keep the memory of all members alive, and save it along.
    return [
        unflatten({name: None if leaf is None else leaf[i].clone() for name, leaf in leaves.items()})
        for i in range(count)
    ]
