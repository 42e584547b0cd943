"""Optimizers that pass arguments on to one link."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def arguments_of(link: Any) -> Callable[[Callable[..., Any]], Any]:
    """Give an optimizer the arguments of a link, types and defaults included, in place of its `**` argument."""
    of_link = inspect.signature(link.spec.function).parameters.values()

    def decorate(function: Any) -> Any:
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        function.__signature__ = signature.replace(parameters=[*own, *of_link])
        function.__annotations__ |= link.spec.function.__annotations__
        return function

    return decorate
