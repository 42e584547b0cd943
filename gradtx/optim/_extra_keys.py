"""Keys that optimizer wrappers, such as timm's Lookahead, write into a parameter's state.

torch.optim keeps these keys in state dicts, and so do gradtx optimizers. A key that a gradtx link or torch optimizer
uses is not an extra key: it is the state of another chain, and dropping it would lose that state.
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

# Another library's name for `step`; the slot of links that draw random numbers.
OTHER_SLOTS = ("steps", "counter")
MODULES = ("gradtx.transforms", "gradtx.combinators", "torch.optim.")


def extra_keys(unknown: Iterable[str]) -> list[str]:
    """Return the keys, among those unknown to a chain, that no other chain keeps either."""
    return [
        key
        for key in unknown
        if "." not in key and key not in _words() and _stem(key) not in _words()
    ]


def _stem(key: str) -> str:
    """Return the name of a slot without the number of its dimension or copy."""
    return key.rstrip("0123456789").removesuffix("_")


@functools.cache
def _words() -> frozenset[str]:
    """Return all string constants in the functions of links, which include the names of all slots.

    A precise list of slots would require the state of each link with each of its options.
    """
    words: set[str] = set(OTHER_SLOTS)
    for name, module in list(sys.modules.items()):
        if name.startswith(MODULES):
            for value in list(vars(module).values()):
                _add_words(value, name, words)
    return frozenset(words)


def _add_words(value: Any, module: str, words: set[str]) -> None:
    """Add the string constants of a function, of a class's methods, or of the function wrapped by a decorator."""
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


def kept(
    saved: Mapping[str, Any], keys: Iterable[str], param: Tensor
) -> dict[str, Any]:
    """Return the values of extra keys as torch.optim loads them: on the parameter's device, in its dtype."""
    values: dict[str, Any] = {}
    for key in keys:
        value = saved[key]
        if isinstance(value, Tensor):
            dtype = param.dtype if param.is_floating_point() else value.dtype
            value = value.detach().to(param.device, dtype, copy=True)
        values[key] = value
    return values
