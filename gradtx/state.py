"""Look into a state by name, change it, and ask for the learning rate in use."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._arguments import describe, exact, nearest, nearest_dotted, resolve
from gradtx._functional import TreeRun
from gradtx._program import Path, clock_at
from gradtx.core import Entry, GradientTransformation, check_transformation

__all__ = ["get", "learning_rate", "put"]


def get(state: dict[str, Any], name: str) -> Any:
    """Find a part of a state by its name.

    Args:
        state: What `init` or `update` returned; also of an ensemble.
        name: A slot or a shared number, such as "exp_avg"; with more of its path in front where several have the name,
            such as "scale_by_adam_1.exp_avg". A whole path always means what stands there: "step" is the outermost
            count, "accumulate.step" that of the clock inside.

    Returns:
        For a slot a dict, leaf name -> tensor; for a number that all leaves share a 0-d tensor. The tensors are those
        of the state, not copies.

    Raises:
        TypeError: `state` is no dict, `name` no string.
        ValueError: nothing has this name, or several parts have; they are listed.

    Example:
        >>> tx = gradtx.adam()
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> _, state = tx.update(params, tx.init(params))
        >>> gradtx.get(state, "exp_avg")
        {'w': tensor([0.1000, 0.2000])}
        >>> gradtx.get(state, "step")
        tensor(1)
    """
    return _tree.map_tensors(lambda tensor: tensor, _at(state, _find("get", state, name)))


def put(state: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Make a state with another value at one place; the old one stays as it is.

    Args:
        state: What `init` or `update` returned; also of an ensemble.
        name: As in `get`.
        value: What takes the place: the same leaf names, shapes, dtypes and devices. For one tensor a number does, too.

    Returns:
        A new state. All other tensors are those of the old one, not copies.

    Raises:
        TypeError: as `get`; a value of another kind or dtype.
        ValueError: as `get`; a value with other leaf names, shapes or devices.

    Example:
        >>> tx = gradtx.sgd(lr=1.0, momentum=0.9)
        >>> params = {"w": torch.tensor([2.0])}
        >>> _, state = tx.update(params, tx.init(params))
        >>> state = gradtx.put(state, "momentum_buffer", {"w": torch.zeros(1)})  # forget the past
        >>> tx.update(params, state)[0]
        {'w': tensor([-2.])}
    """
    path = _find("put", state, name)
    return _replaced(state, path, _fitting(f"put: {'.'.join(path)}", value, _at(state, path)))


def learning_rate(tx: GradientTransformation, state: dict[str, Any], name: str | None = None) -> Tensor:
    """The learning rate that the next update uses: of a schedule, its value at the count of its clock.

    What a rule makes of its rate (an estimated distance, a decay of its own) does not show.

    Args:
        tx: The transformation.
        state: Its state.
        name: Which one, where several links have one: as in `tx.hyperparams`, with the owner ("adamw.lr") or with the
            label of a branch ("head.lr"). Other numbers are found by their names as well.

    Returns:
        A 0-d tensor in float64.

    Raises:
        TypeError: `tx` is no transformation.
        ValueError: no learning rate, several and no name, no number of that name; a stacked state, or that of another
            chain.

    Example:
        >>> tx = gradtx.accumulate(gradtx.sgd(lr=gradtx.linear_schedule(1.0, 0.1, 1.0, total_iters=9)), every=2)
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
    step = state.get("step") if isinstance(state, dict) else None
    if isinstance(step, Tensor) and step.ndim:
        raise ValueError(
            "learning_rate: this is a stack of states; "
            "use torch.vmap(lambda state: gradtx.learning_rate(tx, state))(state)"
        )
    run = TreeRun(tx, {}, None, state)
    path = clock_at(entry.place[0], run.clock_paths)
    count = run.old_step if path is None else run.scalars(path)["step"]
    return exact(resolve(entry.value, count), count.device)


def _entry(tx: GradientTransformation, name: str | None) -> Entry:
    """The hyperparameter that is meant."""
    numbers = [entry for entry in tx._entries() if entry.argument.kind == "scalar" and entry.value is not None]
    # Polyak's largest step is the rate where there is no other, as in the groups of an optimizer.
    rates = next((found for word in ("lr", "max_lr") if (found := [e for e in numbers if e.argument.name == word])), [])
    if name is not None:
        found = [entry for entry in numbers if name in (entry.name, entry.full)]
        found = found or [entry for entry in numbers if name == entry.labelled]
        if not found:
            known = {word for entry in rates or numbers for word in (entry.name, entry.labelled)}
            raise ValueError(f"learning_rate: {tx._name} has no number {name!r}; {nearest_dotted(name, known)}")
        rates = found
    if not rates:
        known = ", ".join(tx.hyperparams) or "none"
        raise ValueError(f"learning_rate: {tx._name} has no learning rate; its hyperparameters: {known}")
    if len(rates) > 1:
        short = [entry.labelled for entry in rates]
        names = short if len(set(short)) == len(short) else [entry.full for entry in rates]
        raise ValueError(
            f"learning_rate: {tx._name} has several: {', '.join(names)}; "
            f"say which: learning_rate(tx, state, {names[0]!r})"
        )
    return rates[0]


def _parts(state: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, bool]]:
    """The path of every part of a state, and whether it may be one leaf of a slot."""
    leaves = bool(path) and all(isinstance(value, Tensor) for value in state.values())
    for key, value in state.items():
        yield (*path, key), leaves
        if isinstance(value, dict):
            yield from _parts(value, (*path, key))


def _find(caller: str, state: Any, name: Any) -> Path:
    if not isinstance(state, dict):
        raise TypeError(f"{caller}: state must be a dict as init makes it, got {describe(state)}")
    if not isinstance(name, str):
        raise TypeError(f"{caller}: name must be a string such as 'exp_avg', got {describe(name)}")
    parts = [(".".join(path), path, leaf) for path, leaf in _parts(state)]
    for found in (
        [path for where, path, _ in parts if where == name],
        [path for where, path, leaf in parts if not leaf and where.endswith(f".{name}")],
        [path for where, path, leaf in parts if leaf and where.endswith(f".{name}")],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            paths = ", ".join(".".join(path) for path in found)
            raise ValueError(f"{caller}: the state has {name!r} several times: {paths}; give one of these paths")
    # Names of leaves are of no help; what stands in one place only may be a number that all leaves share.
    counts = Counter(path[-1] for _, path, _ in parts)
    known = {where if "." in name else path[-1] for where, path, leaf in parts if not leaf or counts[path[-1]] == 1}
    raise ValueError(f"{caller}: the state has no {name!r}; {nearest(name, known)}")


def _at(state: dict[str, Any], path: Path) -> Any:
    found: Any = state
    for key in path:
        found = found[key]
    return found


def _replaced(state: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    if not path:
        return value
    return {
        key: _replaced(old, path[1:], value) if key == path[0] else _tree.map_tensors(lambda tensor: tensor, old)
        for key, old in state.items()
    }


def _fitting(where: str, value: Any, old: Any) -> Any:
    """`value`, built as `old` is."""
    if isinstance(old, Tensor) and isinstance(value, numbers.Real):
        return _filled(where, value, old)
    if not isinstance(value, Tensor if isinstance(old, Tensor) else dict):
        needs = "a tensor" if isinstance(old, Tensor) else "a dict, leaf name -> tensor"
        raise TypeError(f"{where} is {needs}, got {describe(value)}")
    expected, unflatten = _tree.flatten_any(old, where)
    given, _ = _tree.flatten_any(value, where)
    _tree.check_names(given, expected, f"{where}: the new leaves", "the old ones")
    for name, like in expected.items():
        leaf, which = given[name], f"{where}: leaf {name!r}" if name else where
        if isinstance(like, Tensor):
            if leaf is None:
                raise TypeError(f"{which} must be a tensor, got None")
            if leaf.shape != like.shape:
                raise ValueError(f"{which} has shape {tuple(leaf.shape)}, needs {tuple(like.shape)}")
            if leaf.dtype != like.dtype:
                raise TypeError(f"{which} has dtype {leaf.dtype}, needs {like.dtype}")
            if leaf.device != like.device:
                raise ValueError(f"{which} is on {leaf.device}, needs {like.device}")
    return unflatten(given)


def _filled(where: str, value: Any, old: Tensor) -> Tensor:
    whole = not (old.dtype.is_floating_point or old.dtype.is_complex)
    if whole and value % 1 != 0:
        raise TypeError(f"{where} has dtype {old.dtype}, got {value!r}")
    return torch.full_like(old, value)
