"""Public names of a package, collected from the `__all__` of its modules, and what the package itself defines."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any


def public_names(namespace: Mapping[str, Any]) -> list[str]:
    """List the names in a package's namespace, without modules and names with a leading underscore."""
    return [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]


def is_ours(function: Any) -> bool:
    """Whether gradtx defines a function; false for objects of no module, such as some built-in functions."""
    return (getattr(function, "__module__", None) or "").startswith("gradtx.")
