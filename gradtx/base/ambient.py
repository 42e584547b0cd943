"""Run rules without torch's autocast and default device, which would change what their operations compute."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import torch

from gradtx.base import torch_names as _torch

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
    autocasts = [
        (device_type, torch.get_autocast_dtype(device_type))
        for device_type in (AUTOCAST_TYPES if _torch.autocast_possible() else ())
        if torch.is_autocast_enabled(device_type)
    ]
    default_device = None
    if not torch.compiler.is_compiling():
        default_device = _torch.default_device()
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
