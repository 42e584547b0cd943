"""The expansion of a chain into operations, in which bodies of factories run again with the values of a step."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Any

import torch


class Expansion:
    """One expansion of a chain, from its outermost transformation.

    What bodies create in it has the values of this expansion already, so that its own bodies run once.

    Attributes:
        count: The count at which it resolves values.
        is_trusted: Whether the bodies that run have passed their checks, as those of this library have when a
            transformation was created; those of users may rely on the errors of what they call.
    """

    def __init__(self, count: Any):
        self.count = count
        self.is_trusted = False


class _Present(threading.local):
    """The present expansion of a thread."""

    expansion: Expansion | None = None


_PRESENT = _Present()


def present() -> Expansion | None:
    """Return the expansion that is under way; None while dynamo traces, which would guard it."""
    return None if torch.compiler.is_compiling() else _PRESENT.expansion


def is_checked_already() -> bool:
    """Whether what is created now is part of a chain that has been checked with other values."""
    expansion = present()
    return expansion is not None and expansion.is_trusted


@contextlib.contextmanager
def expanding(count: Any) -> Generator[Expansion | None, None, None]:
    """Expand a transformation inside the block, as a part of the present expansion if there is one."""
    expansion = present()
    if expansion is not None or torch.compiler.is_compiling():
        yield expansion
        return
    expansion = _PRESENT.expansion = Expansion(count)
    try:
        yield expansion
    finally:
        _PRESENT.expansion = None


@contextlib.contextmanager
def running_body(is_ours: bool) -> Generator[None, None, None]:
    """Run the body of a factory inside the block; `is_ours` is whether it is one of this library."""
    expansion = present()
    if expansion is None:
        yield
        return
    before, expansion.is_trusted = expansion.is_trusted, is_ours
    try:
        yield
    finally:
        expansion.is_trusted = before
