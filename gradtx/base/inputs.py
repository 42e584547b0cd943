"""Validation of the parameters and groups that users pass, before torch processes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module, Parameter, ParameterList

from gradtx.base.messages import shortly

# Not a union of iterables, from which mypy cannot infer the type of a list of groups.
Params: TypeAlias = Iterable[Tensor | dict[str, Any] | tuple[str, Tensor]]


def accepts(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a user's function can be called with some arguments, as far as its signature tells."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:
        pass  # a C function without a signature
    return True


def check_count(what: str, value: Any) -> None:
    """Raise an error that names `what` for a value that is not an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} must be an int of at least 1, got {value!r}")


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """Return the parameters of a user's function; none of a C function without a signature."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def as_builtin(value: Any) -> Any:
    """Return a tuple or dict in place of another library's sequence, array or mapping, and other values unchanged.

    Configuration files contain such values, those of OmegaConf for example.
    """
    if isinstance(value, float | int | str | bytes | tuple | list | dict | Tensor):
        return value
    if hasattr(value, "tolist"):  # of an array, or a number of its dtype
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: as_builtin(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(as_builtin, value))
    return value


def as_tuples(value: Any) -> Any:
    """Return nested tuples in place of lists, arrays and tensors, and other values unchanged."""
    value = value.tolist() if isinstance(value, Tensor) else as_builtin(value)
    return tuple(map(as_tuples, value)) if isinstance(value, tuple | list) else value


def are_parameters(value: Any) -> bool:
    """Whether a value is parameters, with names or in groups, a model, or a transformation, but no hyperparameter."""
    if isinstance(value, Tensor):
        return isinstance(value, Parameter) and value.ndim > 0
    if isinstance(value, tuple | list) and value:
        last = value[-1]  # of a pair, the tensor
        return are_parameters(last) or (isinstance(last, Tensor) and last.ndim > 0)
    return isinstance(value, Module | Iterable) and not isinstance(value, str)


def listed_params(who: str, params: Any) -> Any:
    """Return parameters or groups as a list, but a tensor or a set unchanged, since torch itself rejects it.

    Raises:
        TypeError: If `params` has another type, or if an entry is neither a parameter nor a group.
        ValueError: If the list is empty.
    """
    if isinstance(params, Tensor | set):
        return params
    if isinstance(params, Mapping):
        raise TypeError(
            f"{who}: needs a list of parameters or of groups, got a dict; pass list(params.items()), or put the "
            "group in a list"
        )
    entries = _listed(who, params)
    if not entries:
        raise ValueError(
            f"{who}: got an empty parameter list; a generator such as model.parameters() can be consumed only once"
        )
    if not isinstance(entries[0], Mapping):
        _check_entries(f"{who}: params", entries)
    return entries


def listed_group(who: str, group: Any) -> Any:
    """Check a group and return it with its parameters as a list."""
    _check_group(f"{who}: a group", group)
    params = group["params"]
    if not isinstance(params, Tensor | set):
        group["params"] = _listed(who, params)
        _check_entries(f"{who}: group['params']", group["params"])
    return group


def named_dtype(name: str) -> torch.dtype | None:
    """Return the dtype of a name, as configuration files have it: "bfloat16" or "torch.bfloat16"."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def check_groups(who: str, groups: Iterable[Any]) -> None:
    """Check `param_groups`, which any code may have changed.

    Raises:
        TypeError, KeyError: If an entry is not a group of tensors.
    """
    for i, group in enumerate(groups):
        what = f"{who}: param_groups[{i}]"
        _check_group(what, group)
        what, params = f"{what}['params']", group["params"]
        if isinstance(params, Iterator):
            raise TypeError(
                f"{what} is {shortly(params)}, which can be read only once, so that no step would find the parameters; "
                "put a list there: list(model.parameters())"
            )
        if isinstance(params, Tensor):
            raise TypeError(f"{what} is a tensor; put a list there: [parameter]")
        _check_entries(what, _listed(what, params))


def _check_group(what: str, group: Any) -> None:
    if not isinstance(group, dict) or "params" not in group:
        error = KeyError if isinstance(group, dict) else TypeError  # as in torch
        raise error(
            f"{what} is {shortly(group)}, needs a dict such as {{'params': [...]}}"
        )


def without_repeats(group: dict[str, Any]) -> dict[str, Any]:
    """Remove repeated parameters from a group, keep the first name of each, and return the group."""
    params: list[Tensor] = group["params"]
    if len(set(map(id, params))) == len(params):
        return group
    first: dict[Tensor, int] = {}
    for i, param in enumerate(params):
        first.setdefault(param, i)
    if len(first) < len(params):
        group["params"] = list(first)
        if "param_names" in group:
            group["param_names"] = [group["param_names"][i] for i in first.values()]
    return group


def _listed(who: str, params: Any) -> list[Any]:
    is_model = isinstance(params, Module) and not isinstance(params, ParameterList)
    if is_model or isinstance(params, str) or not isinstance(params, Iterable):
        raise TypeError(
            f"{who}: needs parameters, got {shortly(params)}; pass model.parameters() or model.named_parameters()"
        )
    return list(params)


ARE_TENSORS = frozenset((Tensor, Parameter))


def _check_entries(what: str, entries: list[Any]) -> None:
    if ARE_TENSORS.issuperset(map(type, entries)):
        return
    for i, entry in enumerate(entries):
        tensor = entry
        if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
            tensor = entry[1]
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{what}[{i}] is {shortly(entry)}, needs a tensor or a pair (name, tensor)"
            )
