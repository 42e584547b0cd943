"""Optimizers that are one link."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def arguments_of(link: Any) -> Callable[[Callable[..., Any]], Any]:
    """Give an optimizer that is one link the arguments of the link, with their types and defaults."""

    def decorate(function: Any) -> Any:
        function.__signature__ = inspect.signature(link.spec.function)
        function.__annotations__ = link.spec.function.__annotations__
        return function

    return decorate
