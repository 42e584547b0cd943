"""Read and replace parts of a state by name, and compute the current learning rate."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._errors import Path
from gradtx._exact import exact, resolve
from gradtx._messages import describe, nearest, nearest_dotted
from gradtx._pure import TreeRun
from gradtx._runs import clock_at
from gradtx.core import Entry, GradientTransformation, check_transformation

__all__ = ["get", "learning_rate", "put"]


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
    numbers: list[Entry] = []
    for entry in tx._entries():
        if entry.argument.kind == "scalar" and entry.value is not None:
            numbers.append(entry)
    rates = _rates(numbers)
    if name is not None:
        rates = _named(tx, name, numbers, rates)
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


def _rates(numbers: list[Entry]) -> list[Entry]:
    """Return the learning rates; if none, Polyak's `max_lr`, which also is the rate in an optimizer's groups."""
    for argument in ("lr", "max_lr"):
        rates = [entry for entry in numbers if entry.argument.name == argument]
        if rates:
            return rates
    return []


def _named(
    tx: GradientTransformation, name: str, numbers: list[Entry], rates: list[Entry]
) -> list[Entry]:
    """Return the hyperparameters with this name; match names with a label only if there are no others."""
    named = [entry for entry in numbers if name in (entry.name, entry.full)]
    if not named:
        named = [entry for entry in numbers if name == entry.labelled]
    if not named:
        known: set[str] = set()
        for entry in rates or numbers:
            known.update((entry.name, entry.labelled))
        raise ValueError(
            f"learning_rate: {tx._name} has no scalar hyperparameter {name!r}; {nearest_dotted(name, known)}"
        )
    return named


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
