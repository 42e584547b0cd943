"""The switch that makes every rule run line by line, without recorded programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import Any

__all__ = ["eagerly"]

NOTE = (
    "gradtx ran rules as a recorded program here; inside `with gradtx.eagerly():`, or with the environment variable "
    "GRADTX_EAGER=1, they run line by line, with values"
)


class _Switch:
    """Whether rules run line by line; one for all threads, because steps during backward run in threads of autograd."""

    is_on = os.environ.get("GRADTX_EAGER", "0") not in ("", "0")


_SWITCH = _Switch()


def runs_eagerly() -> bool:
    """Whether rules run line by line."""
    return _SWITCH.is_on


@contextlib.contextmanager
def eagerly() -> Generator[None, None, None]:
    """Run every rule line by line inside a `with` block, for debugging.

    By default, `tx.update` and the steps of an optimizer call a rule once, with tensors that have a shape but no
    values, record its operations, and then repeat these for all leaves. So a `print` or a breakpoint in a rule shows
    tensors on the meta device, and only once, and Python state that a rule reads keeps its value of the first call.
    Inside this block each rule is called for each leaf, with its values, and `compile=True` has no effect. Results are
    equal except for rounding; steps are several times slower. The environment variable GRADTX_EAGER=1 does the same for
    a process.

    Example:
        >>> @gradtx.per_tensor
        ... def shout():
        ...     def update(update, state, param, ctx):
        ...         print(update)
        ...         return -update, state
        ...     return update
        >>> tx, params = shout(), {"w": torch.ones(2)}
        >>> with gradtx.eagerly():
        ...     updates, state = tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init(params))
        tensor([3., 4.])
    """
    before, _SWITCH.is_on = _SWITCH.is_on, True
    try:
        yield
    finally:
        _SWITCH.is_on = before


def add_note(error: Exception) -> None:
    """Add to an error from a recorded program how to run its rules line by line."""
    add: Any = getattr(error, "add_note", None)
    if add is not None:  # Python 3.11
        add(NOTE)
