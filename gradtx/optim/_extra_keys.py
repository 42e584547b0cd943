"""Keys in a parameter's state that wrappers of optimizers have written there, such as timm's Lookahead.

torch.optim keeps them in state dicts, and so do optimizers of this library. A key that a link of this library or an
optimizer of torch uses is none of these: it belongs to another chain, and to drop it would lose state.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

from gradtx._narrowing import is_tuple

OTHER_SLOTS = ("steps", "counter")  # what another library calls `step`; what links that draw random numbers keep
MODULES = ("gradtx.transforms", "gradtx.combinators", "torch.optim.")


def extra_keys(unknown: Iterable[str]) -> list[str]:
    """The keys, of those that a chain does not keep, that no other chain keeps either."""
    return [key for key in unknown if "." not in key and key not in _words() and _stem(key) not in _words()]


def _stem(key: str) -> str:
    """The name of a slot without the number of its dimension or copy."""
    return key.rstrip("0123456789").removesuffix("_")


@functools.cache
def _words() -> frozenset[str]:
    """Every word in the functions of links, the names of all slots among them.

    A list of slots would need the state of each link with each of its options.
    """
    words: set[str] = set(OTHER_SLOTS)
    for name, module in list(sys.modules.items()):
        if name.startswith(MODULES):
            for value in list(vars(module).values()):
                _add_words(value, name, words)
    return frozenset(words)


def _add_words(value: Any, module: str, words: set[str]) -> None:
    """Add the words in a function, in the functions of a class, or in the function that a decorator has wrapped."""
    value = getattr(getattr(value, "spec", None), "function", value)
    if isinstance(value, type) and value.__module__ == module:
        for method in vars(value).values():
            _add_words(method, module, words)
    elif isinstance(value, FunctionType) and value.__module__ == module:
        _add_constants(inspect.unwrap(value).__code__, words)


def _add_constants(code: CodeType, words: set[str]) -> None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_constants(constant, words)
        elif isinstance(constant, str):
            words.add(constant)
        elif is_tuple(constant):
            words.update(word for word in constant if isinstance(word, str))


def kept(saved: Mapping[str, Any], keys: Iterable[str], param: Tensor) -> dict[str, Any]:
    """The values of extra keys, as torch.optim loads them: on the parameter's device, in its dtype."""
    values: dict[str, Any] = {}
    for key in keys:
        value = saved[key]
        if isinstance(value, Tensor):
            dtype = param.dtype if param.is_floating_point() else value.dtype
            value = value.detach().to(param.device, dtype, copy=True)
        values[key] = value
    return values
