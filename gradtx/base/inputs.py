"""Validation of the parameters and groups that users pass, before torch processes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

from torch import Tensor
from torch.nn import Module, Parameter, ParameterList

from gradtx.base.messages import shortly

# Not a union of iterables, from which mypy cannot infer the type of a list of groups.
Params: TypeAlias = Iterable[Tensor | dict[str, Any] | tuple[str, Tensor]]

FROM_MODEL = "pass model.parameters() or model.named_parameters()"
NEEDED = "needs a tensor or a pair (name, tensor)"


def are_parameters(value: Any) -> bool:
    """Whether a value is what an optimizer takes first: parameters, with names or in groups, or a model."""
    if isinstance(value, Tensor):
        return isinstance(value, Parameter) and value.ndim > 0
    if isinstance(value, tuple | list) and value:
        last = value[-1]  # of a pair, the tensor
        return are_parameters(last) or (isinstance(last, Tensor) and last.ndim > 0)
    return isinstance(value, Module | Iterator | Mapping)


def listed_params(owner: str, params: Any) -> Any:
    """Return parameters or groups as a list, but a tensor or a set unchanged, since torch itself rejects it.

    Raises:
        TypeError: If `params` has another type, or if an entry is neither a parameter nor a group.
        KeyError: If a group has no parameters, as in torch.
        ValueError: If the list is empty.
    """
    if isinstance(params, Tensor | set):
        return cast("Any", params)
    if isinstance(params, Mapping):
        remedy = (
            "put the group in a list"
            if "params" in params
            else "pass list(params.items())"
        )
        raise TypeError(
            f"{owner}: needs a list of parameters or of groups, got a dict; {remedy}"
        )
    entries = _listed(owner, params)
    if not entries:
        used = (
            "; a generator such as model.parameters() can be consumed only once"
            if isinstance(params, Iterator)
            else ""
        )
        raise ValueError(f"{owner}: got an empty parameter list{used}")
    if isinstance(entries[0], Mapping):
        for i, group in enumerate(entries):
            check_group(f"{owner}: group {i}", group)
    else:
        _check_entries(f"{owner}: params", entries)
    return entries


def listed_group(owner: str, group: Any) -> Any:
    """Check a group and return it with its parameters as a list."""
    if not isinstance(group, dict):
        return group  # torch rejects it
    check_group(f"{owner}: a group", group)
    params = group["params"]
    if isinstance(params, Tensor | set):
        return group
    entries = _listed(owner, params)
    _check_entries(f"{owner}: group['params']", entries)
    group["params"] = entries
    return group


def tensors_of_group(group: Any) -> Iterator[Tensor]:
    """Yield the parameters of a group, with or without names; none if torch will reject the group."""
    if not isinstance(group, dict) or not isinstance(group["params"], list):
        return
    for entry in cast("list[Any]", group["params"]):
        yield entry[1] if isinstance(entry, tuple) else entry


def check_group(what: str, group: Any) -> None:
    """Raise an error for a group that is not a dict, has no parameters, or has a key that is not a string."""
    if not isinstance(group, Mapping):
        raise TypeError(
            f"{what} is {shortly(group)}, needs a dict such as {{'params': [...]}}"
        )
    if "params" not in group:
        raise KeyError(f"{what} has no 'params', only {shortly(tuple(group))}")
    for key in group:
        if not isinstance(key, str):
            raise TypeError(
                f"{what} has the key {key!r}, needs names of hyperparameters"
            )


def check_groups(owner: str, groups: Iterable[Any]) -> None:
    """Check `param_groups`, which any code may have changed.

    Raises:
        TypeError, KeyError: If an entry is not a group of tensors.
    """
    for i, group in enumerate(groups):
        what = f"{owner}: param_groups[{i}]"
        check_group(what, group)
        params = group["params"]
        if not isinstance(params, tuple | list):
            raise TypeError(
                f"{what}['params'] is {shortly(params)}, needs a list of tensors"
            )
        for j, param in enumerate(params):
            if not isinstance(param, Tensor):
                raise TypeError(
                    f"{what}['params'][{j}] is {shortly(param)}, needs a tensor"
                )


def without_repeats(group: dict[str, Any]) -> dict[str, Any]:
    """Remove repeated parameters from a group, keep the first name of each, and return the group."""
    params: list[Tensor] = group["params"]
    first: dict[Tensor, int] = {}
    for i, param in enumerate(params):
        first.setdefault(param, i)
    if len(first) < len(params):
        group["params"] = list(first)
        if "param_names" in group:
            group["param_names"] = [group["param_names"][i] for i in first.values()]
    return group


def _listed(owner: str, params: Any) -> list[Any]:
    if isinstance(params, Module) and not isinstance(params, ParameterList):
        raise TypeError(
            f"{owner}: needs parameters, got a {type(params).__name__}; {FROM_MODEL}"
        )
    if isinstance(params, str) or not isinstance(params, Iterable):
        raise TypeError(
            f"{owner}: needs parameters, got {shortly(params)}; {FROM_MODEL}"
        )
    return list(params)


def _check_entries(what: str, entries: list[Any]) -> None:
    for i, entry in enumerate(entries):
        tensor = entry
        if isinstance(entry, tuple):
            if len(entry) != 2 or not isinstance(entry[0], str):
                raise TypeError(f"{what}[{i}] is {shortly(entry)}, {NEEDED}")
            tensor = entry[1]
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{what}[{i}] is {shortly(entry)}, {NEEDED}{_remedy(tensor)}"
            )
        if not (tensor.is_leaf or tensor.retains_grad):
            raise ValueError(
                f"{what}[{i}] is {shortly(entry)}, a non-leaf tensor, which an operation computed from others; pass "
                "the parameters themselves, or result.detach().requires_grad_()"
            )


def _remedy(entry: Any) -> str:
    if isinstance(entry, Module):
        return "; add its parameters() to the list"
    if isinstance(entry, Mapping):
        return "; a list must contain either groups or parameters, not both"
    if isinstance(entry, list | Iterator):
        return "; put its tensors in the list, [*a, *b]"
    return ""
