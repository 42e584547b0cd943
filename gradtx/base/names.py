"""Public names of a package, collected from the `__all__` of its modules, and where they are defined."""

from collections.abc import Mapping
from contextlib import suppress
from inspect import get_annotations
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

HOMES: dict[str, str] = {}
"""The module that defines each public function and class, whose `__module__` is the package."""


def public_names(namespace: Mapping[str, Any]) -> list[str]:
    """List the names in a package's namespace, without modules and names with a leading underscore."""
    return [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]


def is_ours(function: Any) -> bool:
    """Whether gradtx defines a function; false for objects of no module, such as some built-in functions."""
    module = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] == "gradtx"


def publish(package: str, values: Mapping[str, Any]) -> None:
    """Make the package the `__module__` of its public functions and classes.

    There, pickle and configuration files find them. In the module that defines it, a name may be out of reach of
    attributes: `gradtx.algorithms.adam` is a function, which hides the module.
    """
    for name, value in values.items():
        if isinstance(value, FunctionType | type) and is_ours(value):
            if isinstance(value, type):
                _resolve_annotations(value)
            HOMES[name] = value.__module__
            value.__module__ = package


def _resolve_annotations(of_class: type) -> None:
    """Replace the annotations of a class by their values: `get_type_hints` looks for names in its `__module__`."""
    with suppress(NameError):  # of names that only type checkers import
        hints = get_type_hints(of_class, include_extras=True)
        own = get_annotations(of_class)
        of_class.__annotations__ = {name: hints[name] for name in own}
