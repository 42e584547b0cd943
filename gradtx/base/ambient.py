"""Ambient state: autocast and the default device, which rules run without, and the switch to run rules eagerly."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch

from gradtx.base import torch_names as _torch

__all__ = ["eagerly"]

# The device types whose autocast torch enables separately.
AUTOCAST_TYPES = ("cpu", "cuda", "mps", "xpu")
Autocasts: TypeAlias = tuple[tuple[str, torch.dtype], ...]
Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Ambient:
    """The caller's autocast and default device.

    Attributes:
        autocasts: The device type and the dtype of each enabled autocast.
        default_device: The default device; None for the CPU, and while dynamo traces.
    """

    autocasts: Autocasts
    default_device: torch.device | None

    def suspend(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function without autocast, and with the CPU as default device."""
        device = None if self.default_device is None else torch.device("cpu")
        return _within(self.autocasts, False, device, function, *args)

    def around(self, value: Any) -> Any:
        """Return a function that runs in these surroundings; anything else unchanged."""
        if not callable(value):
            return value
        return functools.partial(
            _within, self.autocasts, True, self.default_device, value
        )

    def around_all(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.around(value) for name, value in values.items()}


def _within(
    autocasts: Autocasts,
    enabled: bool,
    device: torch.device | None,
    function: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # Plain `with` statements, because dynamo does not trace autocast in an ExitStack.
    if autocasts:
        device_type, dtype = autocasts[0]
        with torch.autocast(device_type, dtype, enabled):
            return _within(autocasts[1:], enabled, device, function, *args, **kwargs)
    if device is not None:
        with device:
            return function(*args, **kwargs)
    return function(*args, **kwargs)


def ambient() -> Ambient | None:
    """Return the caller's autocast and default device; None if there is nothing to suspend."""
    if not _torch.may_be_ambient():
        return None
    autocasts = [
        (device_type, torch.get_autocast_dtype(device_type))
        for device_type in AUTOCAST_TYPES
        if torch.is_autocast_enabled(device_type)
    ]
    default_device = None
    if not torch.compiler.is_compiling():
        default_device = torch.get_default_device()
        if default_device.type == "cpu":
            default_device = None
    if not autocasts and default_device is None:
        return None
    return Ambient(tuple(autocasts), default_device)


def without_ambient(method: Method) -> Method:
    """Make a method ignore the caller's autocast and default device."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        around = ambient()
        if around is None:
            return method(*args, **kwargs)
        return around.suspend(functools.partial(method, **kwargs), *args)

    return cast("Method", call)


# Eager rules.

NOTE = (
    "gradtx ran rules as a recorded program here; inside `with gradtx.eagerly():`, or with the environment variable "
    "GRADTX_EAGER=1, they run line by line, with values"
)


class _Switch:
    """Whether rules run line by line; one for all threads, because steps during backward run in threads of autograd."""

    is_on = os.environ.get("GRADTX_EAGER", "0") not in ("", "0")
    raises_on_nan = False


SWITCH = _Switch()


def runs_eagerly() -> bool:
    """Whether rules run line by line."""
    return SWITCH.is_on


@contextlib.contextmanager
def eagerly(nan: Literal["raise"] | None = None) -> Generator[None, None, None]:
    """Run every rule line by line inside a `with` block, for debugging.

    By default, `tx.update` and the steps of an optimizer call a rule once, with tensors that have a shape but no
    values, record its operations, and then repeat these for all leaves. So a `print` or a breakpoint in a rule shows
    tensors on the meta device, and only once, and Python state that a rule reads keeps its value of the first call.
    Inside this block each rule is called for each leaf, with its values, and `compile=True` has no effect. Results are
    equal except for rounding; steps are several times slower. The environment variable GRADTX_EAGER=1 does the same for
    a process.

    With `nan="raise"`, an update, a slot or a weight that becomes NaN or infinite is an error that names the origin:
    the first link, leaf, step and line whose result is not finite although its arguments are. If no link is to blame,
    the error names the input that is not finite, such as the gradient, or a slot that is NaN since an earlier step. A
    rule that hides it, as a sign does (that of NaN is 0), is found where it stores it. A step that raises the error
    writes nothing. What `torch.where` and links such as `skip_nonfinite` discard is no error.

    Args:
        nan: "raise", or None for no check.

    Raises:
        ValueError: If `nan` is another value.
        FloatingPointError: Inside the block, with `nan="raise"`.

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
    if nan not in (None, "raise"):
        raise ValueError(f"eagerly: nan must be 'raise' or None, got {nan!r}")
    before = SWITCH.is_on, SWITCH.raises_on_nan
    SWITCH.is_on, SWITCH.raises_on_nan = True, nan is not None
    try:
        yield
    finally:
        SWITCH.is_on, SWITCH.raises_on_nan = before


def note_program(error: Exception, run: Callable[[], object]) -> None:
    """Add to an error from a recorded program how to run rules line by line, and the notes that name the rule.

    Args:
        error: The error.
        run: Runs the same rules again. Inside it they run line by line, and nothing is written.
    """
    error.add_note(NOTE)
    try:
        with eagerly():
            run()
    except Exception as again:
        for note in getattr(again, "__notes__", ()):
            error.add_note(note)
