"""Functional training loops: a complete training step, trees of ensemble members, parts of a state by name."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.errors import Path
from gradtx.base.exact import exact, resolve
from gradtx.base.messages import describe, describe_kind, nearest
from gradtx.base.torch_names import with_own_code
from gradtx.links.record import recorded_in
from gradtx.pure.tree_run import TreeRun
from gradtx.transform import (
    Entry,
    GradientTransformation,
    apply_updates,
    check_transformation,
)

__all__ = [
    "get",
    "learning_rate",
    "put",
    "recorded",
    "scale_gradient",
    "stack",
    "train_step",
    "unstack",
]


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
        TypeError: If `tx` is not a transformation. `step` raises the errors of `torch.func.grad_and_value`, for example
            if the loss is not 0-d, and those of `tx.update`.

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
    check_transformation("train_step", "tx", tx)

    def step(
        params: Any, state: dict[str, Any], *batch: Any, **extras: Any
    ) -> tuple[Any, dict[str, Any], Any]:
        at = LossAt(loss_fn, batch, has_aux)
        grads, (loss, aux) = at.gradients(params)
        extras = {**at.extras(loss), **extras}
        new_params, state = stepped(tx, grads, loss, params, state, extras)
        return new_params, state, (loss, aux) if has_aux else loss

    return with_own_code(step)


def stepped(
    tx: GradientTransformation,
    grads: Any,
    loss: Tensor,
    params: Any,
    state: dict[str, Any],
    extras: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Return new parameters and a new state, given the gradients and the loss."""
    if not loss.is_floating_point():  # its gradients would be 0
        raise TypeError(
            f"train_step: the loss must be a floating-point tensor, got {loss.dtype}"
        )
    updates, state = tx.update(grads, state, params, **extras)
    return apply_updates(params, updates), state


class LossAt(NamedTuple):
    """A loss on one batch, as a function of the parameters, with its gradients."""

    loss_fn: Callable[..., Any]
    batch: tuple[Any, ...]
    has_aux: bool = False

    def values(self, params: Any) -> tuple[Tensor, Any]:
        """Return the loss and auxiliary output."""
        returned = self.loss_fn(params, *self.batch)
        return returned if self.has_aux else (returned, ())

    def gradients(self, params: Any) -> tuple[Any, tuple[Tensor, Any]]:
        """Return the gradients, and the loss with auxiliary output."""
        leaves, unflatten = _tree.flatten(params, "params")
        present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
        differentiate = torch.func.grad_and_value(
            lambda values: self.values(unflatten({**leaves, **values})), has_aux=True
        )
        grads, result = differentiate(present)
        return unflatten({**leaves, **grads}), result

    def extras(self, loss: Tensor) -> dict[str, Any]:
        """Return what links may ask of the loss, given its value."""
        return {
            "value": loss,
            "value_fn": lambda params: self.values(params)[0],
            "grad_fn": lambda params: self.gradients(params)[0],
        }


def scale_gradient(inputs: Any, scale: Any) -> Any:
    r"""Return a tree unchanged, through which gradients pass multiplied by a factor.

    Inside a loss, it gives a part of a model another gradient: 0 stops it, a negative factor reverses it (as for a
    domain classifier). Entries that are not finite get no gradient.

    Args:
        inputs: A tensor or a tree of tensors.
        scale: The factor, a number or a 0-d tensor, to which no gradient flows.

    Returns:
        A tree of the same structure and values.

    Example:
        >>> loss = lambda x: (gradtx.scale_gradient(x, 0.5) ** 2).sum()
        >>> x = torch.tensor([3.0])
        >>> loss(x), torch.func.grad(loss)(x)
        (tensor(9.), tensor([3.]))
    """
    factor = scale.detach() if isinstance(scale, Tensor) else scale

    def scaled(x: Tensor) -> Tensor:
        fixed = x.detach()
        difference = torch.where(
            fixed.isfinite(), x - fixed, 0.0
        )  # 0, with a derivative
        return fixed + (factor * difference).to(x.dtype)

    return _tree.map_tensors(scaled, inputs)


def stack(trees: Iterable[Any]) -> Any:
    """Stack trees of equal structure for `torch.vmap`: the parameters or states of an ensemble's members.

    Args:
        trees: At least one tree of tensors of any dtype. The leaves must agree in name, shape, dtype and device. They
            are matched by name; None matches only None.

    Returns:
        A tree like the first one, whose tensors have a new leading dimension for the members.

    Raises:
        TypeError: If `trees` is a single tree, or if a leaf is neither a tensor nor None.
        ValueError: If there are no trees, or if a leaf differs in name, shape, dtype or device; the error names the
            leaf.

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
    if not isinstance(trees, Iterable) or isinstance(trees, Mapping | Tensor):
        raise TypeError(f"stack: needs a list of trees, got one {type(trees).__name__}")
    flat = [_tree.flatten_any(tree, f"stack: tree {i}") for i, tree in enumerate(trees)]
    if not flat:
        raise ValueError("stack: needs at least one tree")
    first, unflatten = flat[0]
    for i, (leaves, _) in enumerate(flat):
        _check_alike(f"stack: tree {i}", leaves, first, "tree 0")
    stacked: dict[str, Tensor | None] = {}
    for name, leaf in first.items():
        stacked[name] = (
            None if leaf is None else torch.stack([leaves[name] for leaves, _ in flat])
        )
    return unflatten(stacked)


def _check_alike(
    what: str, leaves: Mapping[str, Any], expected: Mapping[str, Any], of: str
) -> None:
    """Check that leaves have the names, shapes, dtypes and devices of others."""
    _tree.check_names(leaves, expected, what, of)
    for name, like in expected.items():
        if describe_kind(leaves[name]) != describe_kind(like):
            where = f"{what}: leaf {name!r}" if name else what
            raise ValueError(
                f"{where} is {describe_kind(leaves[name])}, needs {describe_kind(like)}, as in {of}"
            )


def unstack(tree: Any) -> list[Any]:
    """Split a stacked tree into members: one tree for each index of the leading dimension.

    Args:
        tree: Tensors with the same leading dimension, such as a result of `stack` or `torch.vmap`.

    Returns:
        A list of trees whose tensors lack that dimension and share no memory.

    Raises:
        TypeError: If a leaf is neither a tensor nor None.
        ValueError: If leaves differ in the number of members, or if there is no tensor.

    Example:
        >>> gradtx.unstack({"w": torch.tensor([[0.0, 1.0], [2.0, 3.0]])})
        [{'w': tensor([0., 1.])}, {'w': tensor([2., 3.])}]
    """
    leaves, unflatten = _tree.flatten_any(tree, "unstack")
    counts = {
        name: leaf.shape[0] if leaf.ndim else 0
        for name, leaf in leaves.items()
        if leaf is not None
    }
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"unstack: tensors need one leading dimension of members, got the sizes {counts}"
        )
    trees = []
    for i in range(max(counts.values())):
        member: dict[str, Tensor | None] = {}
        for name, leaf in leaves.items():
            # A view would keep the memory of all members alive, and torch.save would write all of it.
            member[name] = None if leaf is None else leaf[i].clone()
        trees.append(unflatten(member))
    return trees


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
        TypeError: If `state` is not a dict.
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
    part = state
    for key in _find("get", state, name):
        part = part[key]
    return _copied(part)


def recorded(state: dict[str, Any]) -> dict[str, float]:
    """Return what the `record` links of a chain have recorded in the last update, for any logger.

    Args:
        state: A state returned by `update`.

    Returns:
        The values by "stage/quantity/leaf", inside `blocks` by "stage/quantity/leaf/block", for the whole tree by
        "stage/quantity". Reading them waits for the device.

    Raises:
        ValueError: If the state is that of an ensemble; pass the members of `unstack(state)`.

    Example:
        >>> tx = gradtx.chain(gradtx.sgd(0.1), gradtx.record(what=("rms",), per="all"))
        >>> params = {"w": torch.ones(3)}
        >>> _, state = tx.update(params, tx.init(params), params)
        >>> {name: round(value, 3) for name, value in gradtx.recorded(state).items()}
        {'record/rms': 0.1}
    """
    step = state.get("step")
    if isinstance(step, Tensor) and step.ndim:
        raise ValueError(
            "recorded: this is the state of an ensemble; call it for each member of gradtx.unstack(state)"
        )
    parts = _parts(state)
    return recorded_in({path: part for path, part in parts if isinstance(part, dict)})


def put(state: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return a state with one part replaced; the old state does not change.

    Args:
        state: A state returned by `init` or `update`, or the stacked state of an ensemble.
        name: As in `get`.
        value: The new part, with the same leaf names, shapes, dtypes and devices. A number may replace a tensor.

    Returns:
        A new state, which shares all other tensors with the old one.

    Raises:
        TypeError: If `state` is not a dict.
        ValueError: If no part or several parts have this name, or if the value has different leaf names, shapes, dtypes
            or devices.

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
    new_state = part = _copied(state)
    *outer, last = path
    for key in outer:
        part = part[key]
    part[last] = _fitting(f"put: {'.'.join(path)}", value, part[last])
    return new_state


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
            if the state belongs to another chain.

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
    run = TreeRun(tx, {}, None, state)
    path = run.clock_path(entry.place[0])
    count = run.schedule_count() if path is None else run.inner_counts[path]
    return exact(resolve(entry.value, count), count.device)


def _entry(tx: GradientTransformation, name: str | None) -> Entry:
    """Return the hyperparameter to which the caller refers."""
    numbers = {
        key: entry
        for key, entry in tx._places().items()
        if entry.argument.kind == "scalar" and entry.value is not None
    }
    if name is not None:
        if name not in numbers:
            raise ValueError(
                f"learning_rate: {tx._name} has no scalar hyperparameter {name!r}; {nearest(name, numbers)}"
            )
        return numbers[name]
    # Polyak's `max_lr` also is the rate in an optimizer's groups.
    for argument in ("lr", "max_lr"):
        rates: dict[str, Entry] = {}
        for entry in numbers.values():
            if entry.argument.name == argument:
                rates[entry.full] = entry
        if len(rates) == 1:
            return rates.popitem()[1]
        if rates:
            raise ValueError(
                f"learning_rate: {tx._name} has several learning rates: {', '.join(rates)}; pass one of these names"
            )
    known = ", ".join(tx.hyperparams) or "none"
    raise ValueError(
        f"learning_rate: {tx._name} has no learning rate; its hyperparameters: {known}"
    )


def _parts(state: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield all parts of a state with their paths, including nested parts."""
    for key, value in state.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from _parts(value, (*path, key))


def _find(caller: str, state: Any, name: str) -> Path:
    """Return the path of the part to which the caller refers: a full path, or the end of a path."""
    if not isinstance(state, dict):
        raise TypeError(
            f"{caller}: state must be a dict such as init returns, got {describe(state)}"
        )
    paths = {".".join(map(str, path)): path for path, _ in _parts(state)}
    if name in paths:
        return paths[name]
    ending = [dotted for dotted in paths if dotted.endswith(f".{name}")]
    if len(ending) == 1:
        return paths[ending[0]]
    if ending:
        raise ValueError(
            f"{caller}: {name!r} is ambiguous: {', '.join(ending)}; pass one of these paths"
        )
    known = set(paths) if "." in name else {str(path[-1]) for path in paths.values()}
    raise ValueError(f"{caller}: the state has no {name!r}; {nearest(name, known)}")


def _copied(tree: Any) -> Any:
    """Return a tree with the same tensors in new containers."""
    return _tree.map_tensors(lambda tensor: tensor, tree)


def _fitting(where: str, value: Any, old: Any) -> Any:
    """Check the leaves of `value`, and rebuild it with the structure of `old`."""
    if isinstance(old, Tensor) and isinstance(value, numbers.Real):
        is_whole = not (old.is_floating_point() or old.is_complex())
        if is_whole and float(value) % 1 != 0:
            raise TypeError(f"{where} has dtype {old.dtype}, got {value!r}")
        return torch.full_like(old, value)  # type: ignore[arg-type]
    expected, unflatten = _tree.flatten_any(old, where)
    leaves, _ = _tree.flatten_any(value, where)
    _check_alike(where, leaves, expected, "the old value")
    return unflatten(leaves)
