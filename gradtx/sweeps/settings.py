"""The settings of a sweep, and the groups of them that one vmapped loop can train."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from gradtx.arguments import is_number, items_of
from gradtx.base.messages import describe, nearest
from gradtx.schedules._factory import MadeSchedule
from gradtx.transform import GradientTransformation

Setting: TypeAlias = dict[str, Any]
T = TypeVar("T")
Make: TypeAlias = Callable[..., GradientTransformation]
COLUMNS = ("optimizer", "seed", "step", "loss", "diverged")  # of the records


def settings_of(over: Any) -> list[Setting]:
    """Return the settings of a grid, a dict of lists, or of a list of dicts with the same names."""
    settings = _settings_of(over)
    for setting in settings:
        for name, value in setting.items():
            if isinstance(value, Tensor) and not value.ndim:
                setting[name] = value.item()
    return settings


def _settings_of(over: Any) -> list[Setting]:
    if isinstance(over, Mapping):
        columns = []
        for name, values in over.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise TypeError(
                    f"sweep: over[{name!r}] must be a list of values, got {describe(values)}"
                )
            columns.append(list(values))
            if not columns[-1]:
                raise ValueError(f"sweep: over[{name!r}] is empty")
        if not columns:
            raise ValueError("sweep: over is empty")
        rows = itertools.product(*columns)
        return [dict(zip(over, row, strict=True)) for row in rows]
    if isinstance(over, str) or not isinstance(over, Iterable):
        raise TypeError(
            f"sweep: over must be a dict of lists or a list of dicts, got {describe(over)}"
        )
    settings = list(over)
    if not settings:
        raise ValueError("sweep: over is empty")
    for setting in settings:
        if not isinstance(setting, Mapping):
            raise TypeError(f"sweep: over must contain dicts, got {describe(setting)}")
        if setting.keys() != settings[0].keys():
            raise ValueError(
                f"sweep: all settings must have the same names, got {sorted(settings[0])} and {sorted(setting)}"
            )
    return [dict(setting) for setting in settings]


def check_names(make: Make, settings: Sequence[Setting], fixed: Setting) -> None:
    """Check that a callable accepts the names of the settings."""
    for name in settings[0]:
        if name in COLUMNS:
            raise ValueError(
                f"sweep: {name!r} in over is also a column of the records; pass a function with another name for it"
            )
        if name in fixed:
            raise ValueError(f"sweep: {name!r} is both in over and in fixed")
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for name in (*settings[0], *fixed):
        if name not in known:
            raise TypeError(
                f"sweep: {name_of(make)} takes no argument {name!r}; {nearest(name, known)}"
            )


def name_of(make: Make) -> str:
    """Return the name of a callable."""
    return getattr(make, "__name__", type(make).__name__)


@dataclass(frozen=True)
class Group:
    """Settings that differ in numbers only, so that one vmapped loop trains them.

    Attributes:
        make: Builds a transformation from a setting: a function with its fixed arguments.
        settings: The settings, by their index among all settings.
        varying: The names whose numbers differ.
    """

    make: functools.partial[GradientTransformation]
    settings: dict[int, Setting]
    varying: tuple[str, ...]

    def scalars_of(self, index: int, name: str) -> tuple[float, ...]:
        """Return the numbers of one setting."""
        return _scalars(self.settings[index][name])

    def structure(self) -> Any:
        """Return what groups have in common whose transformations differ in these numbers only."""
        structures: dict[str, Any] = {}
        for name, value in next(iter(self.settings.values())).items():
            is_varying = name in self.varying
            structures[name] = _structure(value) if is_varying else ("value", value)
        fixed = {name: ("value", value) for name, value in self.make.keywords.items()}
        func = _identity_of(self.make.func)
        return _frozen([func, self.make.args, fixed, structures, self.varying])

    def with_scalars(
        self, values: Mapping[str, Sequence[Any]]
    ) -> GradientTransformation:
        """Build the transformation of a setting, given the numbers that differ as 0-d tensors."""
        setting = dict(next(iter(self.settings.values())))
        for name, entries in values.items():
            setting[name] = _replaced(setting[name], entries)
        return self.make(**setting)


def groups_of(
    make: functools.partial[GradientTransformation], settings: Sequence[Setting]
) -> list[Group]:
    """Divide settings into groups. `make` must accept each of them."""
    varying = [name for name in settings[0] if _may_vary(make, settings, name)]
    pairs = []
    for index, setting in enumerate(settings):
        structure = [
            _structure(value) if name in varying else ("value", type(value), value)
            for name, value in setting.items()
        ]
        pairs.append((structure, index))
    groups = []
    for _, indices in by_key(pairs):
        of_group = {index: settings[index] for index in indices}
        differing = [
            name
            for name in varying
            if len({_scalars(setting[name]) for setting in of_group.values()}) > 1
        ]
        groups.append(Group(make, of_group, tuple(differing)))
    return groups


def by_key(pairs: Iterable[tuple[Any, T]]) -> list[tuple[Any, list[T]]]:
    """Return the items of each key; keys are compared, because settings may have no hash."""
    groups: list[tuple[Any, list[T]]] = []
    for key, item in pairs:
        for key_of_group, items in groups:
            if key_of_group == key:
                items.append(item)
                break
        else:
            groups.append((key, [item]))
    return groups


def _may_vary(make: Make, settings: Sequence[Setting], name: str) -> bool:
    """Whether a callable accepts 0-d tensors in place of the numbers of this argument."""
    if not all(_scalars(setting[name]) for setting in settings):
        return False
    # Settings that differ in these numbers alone are one call.
    others = [
        ({**setting, name: _structure(setting[name])}, setting) for setting in settings
    ]
    for _, (setting, *_) in by_key(others):
        value = setting[name]

        def made(entries: tuple[Tensor, ...], setting: Setting = setting) -> Tensor:
            make(**{**setting, name: _replaced(setting[name], entries)})
            return entries[0]

        try:
            torch.vmap(made)(tuple(torch.tensor([x]).double() for x in _scalars(value)))
        except Exception:  # whatever the user's callable raises
            return False
    return True


def _scalars(value: Any) -> tuple[float, ...]:
    """Return the numbers of a value that may differ within a group; none if it is not numeric."""
    if isinstance(value, MadeSchedule):
        return tuple(value.scalars().values())
    entries = items_of(value)
    return tuple(map(float, entries)) if all(map(is_number, entries)) else ()


def _replaced(value: Any, entries: Sequence[Any]) -> Any:
    """Return a value like this with other numbers."""
    if isinstance(value, MadeSchedule):
        return value.with_scalars(dict(zip(value.scalars(), entries, strict=True)))
    return tuple(entries) if isinstance(value, tuple) else entries[0]


def _frozen(value: Any) -> Any:
    """Return a value as one that can be hashed if its items can; equal numbers of several types differ."""
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_frozen, value))
    return type(value), value


# What stays as it is: not objects whose attributes may change between sweeps.
FIXED = (bool, int, float, str, type(None), type, FunctionType, ModuleType)


def _is_fixed(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_fixed, value))
    return isinstance(value, FIXED)


def _identity_of(function: Any) -> Any:
    """Return what a function has in common with others that do the same, such as those of a `lambda` in a loop.

    It is the function itself if others find it again by its name, or if it reads what may change.
    """
    is_local = "<" in getattr(function, "__qualname__", "")
    if not isinstance(function, FunctionType) or not is_local:
        return function
    code = function.__code__
    try:
        variables = inspect.getclosurevars(function)
    except ValueError:  # one of them has no value yet
        return function
    options = tuple((function.__kwdefaults__ or {}).items())
    defaults = function.__defaults__ or (), options
    read = {**variables.globals, **variables.nonlocals}
    has_inner = any(isinstance(item, CodeType) for item in code.co_consts)
    if has_inner or not _is_fixed((*read.values(), *defaults)):
        return function
    return code, read, *defaults


def _structure(value: Any) -> Any:
    """Return what the values of a group have in common besides numbers."""
    if isinstance(value, MadeSchedule):
        return value.structure()
    return ("tuple", len(value)) if isinstance(value, tuple) else "number"
