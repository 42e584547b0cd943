"""Functional training loops: a complete training step, and trees with a leading dimension of ensemble members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._messages import describe
from gradtx.core import GradientTransformation, apply_updates, check_transformation

__all__ = ["stack", "train_step", "unstack"]


def train_step(
    loss_fn: Callable[..., Any], tx: GradientTransformation, *, has_aux: bool = False
) -> Callable[..., tuple[Any, dict[str, Any], Any]]:
    """Create a pure function that runs one training step: gradients, update, new parameters.

    The function works under `torch.vmap`, `torch.func` transforms and `torch.compile`. It passes the loss (`value`),
    and functions for losses and gradients on the same batch (`value_fn`, `grad_fn`), to links that need them.

    Args:
        loss_fn: `loss_fn(params, *batch)` returns the loss, a 0-d tensor; with `has_aux` a pair `(loss, aux)`.
        tx: The transformation that converts gradients to updates.
        has_aux: Whether `loss_fn` also returns auxiliary output (predictions, new buffers): any tree of tensors.

    Returns:
        `step(params, state, *batch, **extras)`, which returns `(params, state, loss)`, or with `has_aux`
        `(params, state, (loss, aux))`. The loss is that of the input parameters. `step` passes `extras` to `tx.update`:
        `hessian_diag` and others that a link declares. If the parameters require gradients, autograd keeps the graph of
        all steps, and memory grows with each: detach them before the loop, unless you differentiate through training.

    Raises:
        TypeError: If `loss_fn` is not a function or `tx` is not a transformation; from `step`, if the loss is not a
            floating-point tensor, if `loss_fn` returns no pair despite `has_aux`, or if `aux` contains anything but
            tensors.
        ValueError: If, in `step`, the loss is not 0-d, a required extra is missing, or `tx.update` raises one.

    Example:
        >>> loss_fn = lambda params, x, y: (params["w"] * x - y).square().mean()
        >>> tx = gradtx.sgd(lr=0.1)
        >>> step = gradtx.train_step(loss_fn, tx)
        >>> params = {"w": torch.tensor(0.0)}
        >>> params, state, loss = step(
        ...     params, tx.init(params), torch.ones(4), torch.full((4,), 2.0)
        ... )
        >>> params["w"], loss
        (tensor(0.4000), tensor(4.))
    """
    if isinstance(loss_fn, GradientTransformation):
        raise TypeError(
            "train_step: the first argument must be the loss function: train_step(loss_fn, tx)"
        )
    if not callable(loss_fn):
        raise TypeError(
            f"train_step: loss_fn must be a function (params, *batch) -> loss, got {describe(loss_fn)}"
        )
    check_transformation("train_step", "tx", tx)
    expected = [
        need
        for need in tx.needs
        if need not in ("params", "value", "value_fn", "grad_fn")
    ]

    def step(
        params: Any, state: dict[str, Any], *batch: Any, **extras: Any
    ) -> tuple[Any, dict[str, Any], Any]:
        for need in expected:
            if need not in extras:
                raise ValueError(
                    f"train_step: {tx._name} needs {need}: call step(params, state, *batch, {need}=...)"
                )
        loss_on_batch = _LossOnBatch(loss_fn, batch, has_aux)
        grads, (loss, aux) = loss_on_batch.gradients(params)
        known: dict[str, Any] = {
            "value": loss,
            "value_fn": loss_on_batch.value_fn,
            "grad_fn": loss_on_batch.grad_fn,
        }
        updates, state = tx.update(grads, state, params, **{**known, **extras})
        new_params = apply_updates(params, updates)
        return new_params, state, (loss, aux) if has_aux else loss

    return step


class _LossOnBatch:
    """A loss on one batch, as a function of the parameters."""

    def __init__(
        self, loss_fn: Callable[..., Any], batch: tuple[Any, ...], has_aux: bool
    ):
        self._loss_fn = loss_fn
        self._batch = batch
        self._has_aux = has_aux

    def gradients(self, params: Any) -> tuple[Any, tuple[Tensor, Any]]:
        """Return the gradients and `(loss, aux)`."""
        leaves, unflatten = _tree.flatten(params, "params")
        present = {name: leaf for name, leaf in leaves.items() if leaf is not None}

        def loss_at(values: dict[str, Tensor]) -> tuple[Tensor, Any]:
            return self._loss_and_aux(unflatten({**leaves, **values}))

        grads, (loss, aux) = torch.func.grad_and_value(loss_at, has_aux=True)(present)
        return unflatten({**leaves, **grads}), (loss, aux)

    def value_fn(self, params: Any) -> Tensor:
        loss, _ = self._loss_and_aux(params)
        return loss

    def grad_fn(self, params: Any) -> Any:
        grads, _ = self.gradients(params)
        return grads

    def _loss_and_aux(self, params: Any) -> tuple[Tensor, Any]:
        return _loss_and_aux(self._loss_fn(params, *self._batch), self._has_aux)


def _loss_and_aux(returned: Any, has_aux: bool) -> tuple[Tensor, Any]:
    """Check the result of a loss function and split it."""
    if not has_aux:
        if isinstance(returned, tuple):
            raise TypeError(
                "train_step: loss_fn returned a tuple; pass has_aux=True if it is (loss, aux)"
            )
        _check_loss(returned)
        return returned, ()
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise TypeError(
            f"train_step: with has_aux, loss_fn must return (loss, aux), got {describe(returned)}"
        )
    loss, aux = returned
    _check_loss(loss)
    leaves, _ = _tree.flatten_any(aux, "train_step: aux")
    for name, leaf in leaves.items():
        if leaf is None:
            raise TypeError(f"train_step: leaf {name!r} of aux is None, needs a tensor")
    return loss, aux


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"train_step: loss_fn must return a tensor, got {describe(loss)}"
        )
    if loss.ndim:
        raise ValueError(
            f"train_step: the loss must be 0-d, got shape {tuple(loss.shape)}; take its mean or sum"
        )
    if not loss.dtype.is_floating_point:
        raise TypeError(
            f"train_step: the loss must be a floating-point tensor, got {loss.dtype}"
        )


def stack(trees: Iterable[Any]) -> Any:
    """Stack trees of equal structure for `torch.vmap`: the parameters or states of an ensemble's members.

    Args:
        trees: At least one tree of tensors of any dtype. The leaves must agree in name, shape, dtype and device. They
            are matched by name; None matches only None.

    Returns:
        A tree like the first one, whose tensors have a new leading dimension for the members.

    Raises:
        TypeError: If `trees` is a single tree, if a leaf is neither a tensor nor None, or if dtypes differ.
        ValueError: If there are no trees, or if a leaf differs in name, shape or device; the error names the leaf.

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
    members, unflatten = _leaves_of_members(trees)
    first = members[0]
    for i, leaves in enumerate(members[1:], 1):
        _tree.check_names(leaves, first, f"stack: tree {i}", "tree 0")
        for name, leaf in leaves.items():
            _check_alike(name, leaf, first[name], i)
    stacked: dict[str, Tensor | None] = {}
    for name, leaf in first.items():
        stacked[name] = (
            None if leaf is None else torch.stack([leaves[name] for leaves in members])
        )
    return unflatten(stacked)


def _leaves_of_members(
    trees: Any,
) -> tuple[list[dict[str, Any]], Callable[[Mapping[str, Any]], Any]]:
    """Return the leaves of each tree by name, and a function that builds a tree like the first one."""
    if not _are_several(trees):
        raise TypeError(f"stack: needs a list of trees, got one {type(trees).__name__}")
    members: list[dict[str, Any]] = []
    unflatten_first: Callable[[Mapping[str, Any]], Any] | None = None
    for i, tree in enumerate(trees):
        leaves, unflatten = _tree.flatten_any(tree, f"stack: tree {i}")
        members.append(leaves)
        if unflatten_first is None:
            unflatten_first = unflatten
    if unflatten_first is None:
        raise ValueError("stack: needs at least one tree")
    return members, unflatten_first


def _are_several(trees: Any) -> TypeGuard[Iterable[Any]]:
    return isinstance(trees, Iterable) and not isinstance(trees, Mapping | Tensor)


def _check_alike(name: str, leaf: Any, like: Any, i: int) -> None:
    if (leaf is None) != (like is None):
        none = i if leaf is None else 0
        raise ValueError(
            f"stack: leaf {name!r} is None in tree {none} and a tensor in tree {i - none}"
        )
    if leaf is None:
        return
    if leaf.shape != like.shape:
        shapes = f"{tuple(leaf.shape)} in tree {i}, {tuple(like.shape)} in tree 0"
        raise ValueError(
            f"stack: leaf {name!r} has shape {shapes}; all members must have the same shapes"
        )
    if leaf.dtype != like.dtype:
        raise TypeError(
            f"stack: leaf {name!r} has dtype {leaf.dtype} in tree {i}, {like.dtype} in tree 0"
        )
    if leaf.device != like.device:
        raise ValueError(
            f"stack: leaf {name!r} is on {leaf.device} in tree {i}, on {like.device} in tree 0"
        )


def unstack(tree: Any) -> list[Any]:
    """Split a stacked tree into members: one tree for each index of the leading dimension.

    Args:
        tree: Tensors with the same leading dimension, such as a result of `stack` or `torch.vmap`.

    Returns:
        A list of trees whose tensors lack that dimension and share no memory.

    Raises:
        TypeError: If a leaf is neither a tensor nor None.
        ValueError: If a leaf has no dimensions, if leaves differ in the number of members, or if there is no tensor.

    Example:
        >>> gradtx.unstack({"w": torch.tensor([[0.0, 1.0], [2.0, 3.0]])})
        [{'w': tensor([0., 1.])}, {'w': tensor([2., 3.])}]
    """
    leaves, unflatten = _tree.flatten_any(tree, "unstack")
    trees: list[Any] = []
    for i in range(_count_of_members(leaves)):
        member: dict[str, Tensor | None] = {}
        for name, leaf in leaves.items():
            # A view would keep the memory of all members alive, and torch.save would write all of it.
            member[name] = None if leaf is None else leaf[i].clone()
        trees.append(unflatten(member))
    return trees


def _count_of_members(leaves: Mapping[str, Tensor | None]) -> int:
    """Return the size of the leading dimension, on which all leaves must agree."""
    count: int | None = None
    counted = ""  # the leaf that determined the count
    for name, leaf in leaves.items():
        if leaf is None:
            continue
        if not leaf.ndim:
            raise ValueError(
                f"unstack: leaf {name!r} is 0-d, needs a leading dimension of members"
            )
        if count is not None and len(leaf) != count:
            raise ValueError(
                f"unstack: leaf {name!r} has {len(leaf)} members, leaf {counted!r} has {count}"
            )
        count = len(leaf)
        counted = name
    if count is None:
        raise ValueError(
            "unstack: the tree contains no tensors, so the number of members is unknown"
        )
    return count
