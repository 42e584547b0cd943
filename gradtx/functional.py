"""Functional training loops: a complete training step, trees of ensemble members, parts of a state by name."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.errors import Path
from gradtx.base.exact import exact, resolve
from gradtx.base.messages import describe, nearest, nearest_dotted
from gradtx.execution.pure import TreeRun
from gradtx.execution.runs import clock_at
from gradtx.transform import (
    Entry,
    GradientTransformation,
    apply_updates,
    check_transformation,
)

__all__ = ["get", "learning_rate", "put", "stack", "train_step", "unstack"]


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


def get(state: dict[str, Any], name: str) -> Any:
    """Return a part of a state, by name.

    Args:
        state: A state returned by `init` or `update`, or the stacked state of an ensemble.
        name: A slot or a shared value, such as "exp_avg". If several parts have this name, prepend more of the path, as
            in "scale_by_adam_1.exp_avg". A full path always refers to that part: "step" is the outermost count,
            "accumulate.step" the count of the inner clock.

    Returns:
        For a slot, a dict leaf name -> tensor; for a shared value, a 0-d tensor. Tensors are not copied.

    Raises:
        TypeError: If `state` is not a dict, or if `name` is not a string.
        ValueError: If no part has this name, or if several parts have it; the error lists them.

    Example:
        >>> tx = gradtx.adam()
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> _, state = tx.update(params, tx.init(params))
        >>> gradtx.get(state, "exp_avg")
        {'w': tensor([0.1000, 0.2000])}
        >>> gradtx.get(state, "step")
        tensor(1)
    """
    return _tree.map_tensors(_itself, _at(state, _find("get", state, name)))


def put(state: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return a state with one part replaced; the old state does not change.

    Args:
        state: A state returned by `init` or `update`, or the stacked state of an ensemble.
        name: As in `get`.
        value: The new part, with the same leaf names, shapes, dtypes and devices. A number may replace a tensor.

    Returns:
        A new state, which shares all other tensors with the old one.

    Raises:
        TypeError: If `state` is not a dict, if `name` is not a string, or if the value has a different type or dtype.
        ValueError: If no part or several parts have this name, or if the value has different leaf names, shapes or
            devices.

    Example:
        >>> tx = gradtx.sgd(lr=1.0, momentum=0.9)
        >>> params = {"w": torch.tensor([2.0])}
        >>> _, state = tx.update(params, tx.init(params))
        >>> # forget the past
        >>> state = gradtx.put(state, "momentum_buffer", {"w": torch.zeros(1)})
        >>> tx.update(params, state)[0]
        {'w': tensor([-2.])}
    """
    path = _find("put", state, name)
    return _replaced(
        state, path, _fitting(f"put: {'.'.join(path)}", value, _at(state, path))
    )


def learning_rate(
    tx: GradientTransformation, state: dict[str, Any], name: str | None = None
) -> Tensor:
    """Return the learning rate of the next update; for a schedule, its value at the count of its clock.

    The result excludes factors that a rule applies to its rate (an estimated distance, a decay).

    Args:
        tx: The transformation.
        state: Its state.
        name: Selects a rate if there are several: a name as in `tx.hyperparams`, with its owner ("adamw.lr") or with
            the label of a branch ("head.lr"). Names of other scalar hyperparameters are accepted as well.

    Returns:
        A 0-d float64 tensor.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If there is no learning rate, if there are several and no name is given, if the name is unknown, or
            if the state is stacked or belongs to another chain.

    Example:
        >>> tx = gradtx.accumulate(
        ...     gradtx.sgd(lr=gradtx.linear_schedule(1.0, 0.1, 1.0, total_iters=9)), every=2
        ... )
        >>> params = {"w": torch.ones(1)}
        >>> state = tx.init(params)
        >>> for _ in range(4):  # the schedule counts updates, not calls
        ...     print(gradtx.learning_rate(tx, state).item())
        ...     _, state = tx.update(params, state)
        0.1
        0.1
        0.2
        0.2
    """
    check_transformation("learning_rate", "tx", tx)
    entry = _entry(tx, name)
    _check_single(state)
    run = TreeRun(tx, {}, None, state)
    path = clock_at(entry.place[0], run.clock_paths)
    count = run.old_step if path is None else run.inner_counts[path]
    return exact(resolve(entry.value, count), count.device)


def _check_single(state: Any) -> None:
    step = state.get("step") if isinstance(state, dict) else None
    if isinstance(step, Tensor) and step.ndim:
        raise ValueError(
            "learning_rate: this is a stack of states; "
            "use torch.vmap(lambda state: gradtx.learning_rate(tx, state))(state)"
        )


def _entry(tx: GradientTransformation, name: str | None) -> Entry:
    """Return the hyperparameter to which the caller refers."""
    numbers: dict[str, Entry] = {}
    for key, entry in tx._places().items():
        if entry.argument.kind == "scalar" and entry.value is not None:
            numbers[key] = entry
    if name is not None:
        if name not in numbers:
            raise ValueError(
                f"learning_rate: {tx._name} has no scalar hyperparameter {name!r}; {nearest_dotted(name, numbers)}"
            )
        return numbers[name]
    rates = _rates(entry for key, entry in numbers.items() if key == entry.name)
    if not rates:
        known = ", ".join(tx.hyperparams) or "none"
        raise ValueError(
            f"learning_rate: {tx._name} has no learning rate; its hyperparameters: {known}"
        )
    if len(rates) > 1:
        names = [entry.labelled for entry in rates]
        if len(set(names)) < len(names):
            names = [entry.full for entry in rates]
        raise ValueError(
            f"learning_rate: {tx._name} has several learning rates: {', '.join(names)}; "
            f"pass a name: learning_rate(tx, state, {names[0]!r})"
        )
    return rates[0]


def _rates(numbers: Iterable[Entry]) -> list[Entry]:
    """Return the learning rates; if none, Polyak's `max_lr`, which also is the rate in an optimizer's groups."""
    rates_of = {"lr": list[Entry](), "max_lr": list[Entry]()}
    for entry in numbers:
        rates_of.get(entry.argument.name, []).append(entry)
    return rates_of["lr"] or rates_of["max_lr"]


@dataclass(frozen=True)
class Part:
    """A part of a state: a dict or a tensor."""

    path: Path
    may_be_leaf: bool
    """Whether it is an entry of a dict that contains only tensors, like the leaves of a slot."""

    @property
    def dotted(self) -> str:
        return ".".join(self.path)


def _parts(state: dict[str, Any], path: Path = ()) -> Iterator[Part]:
    """Yield all parts of a state, including nested parts."""
    only_tensors = all(isinstance(value, Tensor) for value in state.values())
    may_be_leaf = bool(path) and only_tensors
    for key, value in state.items():
        yield Part((*path, key), may_be_leaf)
        if isinstance(value, dict):
            yield from _parts(value, (*path, key))


def _find(caller: str, state: Any, name: Any) -> Path:
    """Return the path of the part to which the caller refers."""
    if isinstance(state, dict) and "param_groups" in state:
        raise TypeError(
            f"{caller}: this is the state dict of an optimizer; read optimizer.state[param][{name!r}]"
        )
    if not isinstance(state, dict):
        raise TypeError(
            f"{caller}: state must be a dict such as init returns, got {describe(state)}"
        )
    if not isinstance(name, str):
        raise TypeError(
            f"{caller}: name must be a string such as 'exp_avg', got {describe(name)}"
        )
    parts = list(_parts(state))
    for candidates in _candidates(parts, name):
        if len(candidates) == 1:
            return candidates[0].path
        if candidates:
            paths = ", ".join(part.dotted for part in candidates)
            raise ValueError(
                f"{caller}: {name!r} is ambiguous: {paths}; pass one of these paths"
            )
    raise ValueError(
        f"{caller}: the state has no {name!r}; {nearest(name, _known(parts, name))}"
    )


def _candidates(parts: list[Part], name: str) -> Iterator[list[Part]]:
    """Yield the parts that match a name, by decreasing priority: a full path, the end of a path, a leaf."""
    yield [part for part in parts if part.dotted == name]
    ending = [part for part in parts if part.dotted.endswith(f".{name}")]
    yield [part for part in ending if not part.may_be_leaf]
    yield [part for part in ending if part.may_be_leaf]


def _known(parts: list[Part], name: str) -> set[str]:
    """Return names to suggest: not those of leaves, except a name that occurs once, which may be a shared value."""
    counts = Counter(part.path[-1] for part in parts)
    known: set[str] = set()
    for part in parts:
        if not part.may_be_leaf or counts[part.path[-1]] == 1:
            known.add(part.dotted if "." in name else part.path[-1])
    return known


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _at(state: dict[str, Any], path: Path) -> Any:
    part: Any = state
    for key in path:
        part = part[key]
    return part


def _replaced(state: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return a copy of the dicts of `state` with `value` at `path`; all other tensors are shared."""
    if not path:
        return value
    copy: dict[str, Any] = {}
    for key, old in state.items():
        if key == path[0]:
            copy[key] = _replaced(old, path[1:], value)
        else:
            copy[key] = _tree.map_tensors(_itself, old)
    return copy


def _fitting(where: str, value: Any, old: Any) -> Any:
    """Check the leaves of `value`, and rebuild it with the structure of `old`."""
    if isinstance(old, Tensor) and isinstance(value, numbers.Real):
        return _filled(where, value, old)
    if isinstance(old, Tensor) and not isinstance(value, Tensor):
        raise TypeError(f"{where} must be a tensor, got {describe(value)}")
    if isinstance(old, dict) and not isinstance(value, dict):
        raise TypeError(
            f"{where} must be a dict, leaf name -> tensor, got {describe(value)}"
        )
    expected, unflatten = _tree.flatten_any(old, where)
    given, _ = _tree.flatten_any(value, where)
    _tree.check_names(given, expected, where, "the old value")
    for name, like in expected.items():
        which = f"{where}: leaf {name!r}" if name else where
        _check_like(which, given[name], like)
    return unflatten(given)


def _check_like(which: str, leaf: Tensor | None, like: Tensor | None) -> None:
    """Check that a leaf can replace `like`."""
    if like is None:
        return
    if leaf is None:
        raise TypeError(f"{which} must be a tensor, got None")
    if leaf.shape != like.shape:
        raise ValueError(
            f"{which} has shape {tuple(leaf.shape)}, needs {tuple(like.shape)}"
        )
    if leaf.dtype != like.dtype:
        raise TypeError(f"{which} has dtype {leaf.dtype}, needs {like.dtype}")
    if leaf.device != like.device:
        raise ValueError(f"{which} is on {leaf.device}, needs {like.device}")


def _filled(where: str, value: Any, old: Tensor) -> Tensor:
    whole = not (old.dtype.is_floating_point or old.dtype.is_complex)
    if whole and value % 1 != 0:
        raise TypeError(f"{where} has dtype {old.dtype}, got {value!r}")
    return torch.full_like(old, value)
