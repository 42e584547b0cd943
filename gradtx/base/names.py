"""Public names: which module defines each, and what `__module__` says of them."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from inspect import get_annotations
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

from gradtx.base.table import MODULES

HOMES: dict[str, str] = {name: f"gradtx.{module}" for name, module in MODULES.items()}
"""The module that defines each public name of `gradtx`."""


def public_names(namespace: Mapping[str, Any]) -> list[str]:
    """List the names in a package's namespace, without modules and names with a leading underscore."""
    return [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]


def public_value(name: str) -> Any:
    """Return what a public name of `gradtx` stands for; its module is imported at the first access."""
    return getattr(import_module(HOMES[name]), name)


def public_factories(*packages: str) -> Iterator[Any]:
    """Yield the decorated factories that the modules of some packages, such as "links", define."""
    for name, module in MODULES.items():
        if module.partition(".")[0] in packages:
            value = public_value(name)
            if hasattr(value, "spec"):
                yield value


def is_ours(function: Any) -> bool:
    """Whether gradtx defines a function; false for objects of no module, such as some built-in functions."""
    module = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] == "gradtx"


def publish(function: Any) -> None:
    """Make `gradtx` the `__module__` of a public function or class of this library.

    There, pickle and configuration files find it, wherever its file may move.
    """
    is_public = HOMES.get(function.__name__) == function.__module__
    if is_public and isinstance(function, FunctionType | type):
        if isinstance(function, type):
            _resolve_annotations(function)
        function.__module__ = "gradtx"


def _resolve_annotations(of_class: type) -> None:
    """Replace the annotations of a class by their values: `get_type_hints` looks for names in its `__module__`."""
    with suppress(NameError):  # of names that only type checkers import
        hints = get_type_hints(of_class, include_extras=True)
        own = get_annotations(of_class)
        of_class.__annotations__ = {name: hints[name] for name in own}
