"""Type guards for containers; after a bare `isinstance`, type checkers do not know the types of the entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard


def is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def is_sequence(value: Any) -> TypeGuard[tuple[Any, ...] | list[Any]]:
    """Whether a value is a tuple or a list."""
    return isinstance(value, tuple | list)


def is_dict(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def is_iterable(value: Any) -> TypeGuard[Iterable[Any]]:
    return isinstance(value, Iterable)
