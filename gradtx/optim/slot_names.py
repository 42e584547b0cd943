"""The names of all slots, which tell a checkpoint of another chain from one to which a wrapper has added keys."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gradtx.base.names import public_factories, public_value
from gradtx.state.slots import without_number


def is_slot_name(key: str) -> bool:
    """Whether a key of an optimizer's state may be that of a slot, of any link of this library."""
    parts = {without_number(part) for part in str(key).split(".")}
    return not parts.isdisjoint(_slot_names())


@functools.cache
def _slot_names() -> frozenset[str]:
    """Return the names of the slots of all links: initialized on first use, in 0.3 s, because rules compute them."""
    names: set[str] = set()
    sgd = public_value("sgd")
    for factory in public_factories("algorithms", "links", "combinators"):
        spec = factory.spec
        # Those whose arguments cannot be guessed keep nothing.
        with contextlib.suppress(TypeError, ValueError):
            tx = spec.factory(**spec.arguments.sample(spec.inner, sgd()))
            # Some slots exist only for 16-bit weights.
            params = {"": torch.ones(2, 2, dtype=torch.bfloat16)}
            names.update(_names_in(tx.init(params)))
    return frozenset(map(without_number, names))


def _names_in(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the slots and shared values of a state."""
    for name, value in state.items():
        if isinstance(value, dict) and "" not in value:
            yield from _names_in(value)
        else:
            yield name
