"""Parts of error messages: values as a user would type them, and suggestions for unknown names."""

from __future__ import annotations

import difflib
import inspect
import itertools
import linecache
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from gradtx.base.torch_names import assume_constant, readable

# Packages whose lines a warning passes over, to show the line that called gradtx.
INNER_PACKAGES = ("gradtx", "torch", "contextlib", "functools")
ON_ITS_DEVICE = (
    "create tensors on the device of the others, as torch.zeros_like(update) does"
)


def describe(value: Any) -> str:
    """Format `value` as a user would type it, as far as possible."""
    if isinstance(value, Tensor):
        return _describe_tensor(value)
    if isinstance(value, tuple):
        entries = ", ".join(map(describe, value))
        return f"({entries},)" if len(value) == 1 else f"({entries})"
    if isinstance(value, list):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(
        value, set | frozenset
    ):  # in an order that is the same in all processes
        entries = ", ".join(sorted(map(describe, value)))
        return f"{{{entries}}}" if value else f"{type(value).__name__}()"
    if isinstance(value, Mapping):
        entries = [f"{key!r}: {describe(item)}" for key, item in value.items()]
        return "{" + ", ".join(entries) + "}"
    # A module's repr has a line for every layer.
    if isinstance(value, torch.nn.Module | torch.optim.Optimizer | LRScheduler):
        return f"{type(value).__name__}(...)"
    if callable(value) and hasattr(value, "__qualname__"):
        # Without the functions that define it.
        return value.__qualname__.rpartition("<locals>.")[2]
    return repr(value)


def shortly(value: Any) -> str:
    """Format `value` for an error message, where a long list or dict is abbreviated to its type and length."""
    if not isinstance(value, list | dict):
        return describe(value)
    entries = list(value.values()) if isinstance(value, dict) else value
    if len(entries) > 3 or any(isinstance(entry, list | dict) for entry in entries):
        return f"a {type(value).__name__} of {len(entries)}"
    return describe(value)


def in_bytes(count: int) -> str:
    """Format a number of bytes in a unit in which it does not round to 0."""
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3f} {unit}"
    return f"{count} {'byte' if count == 1 else 'bytes'}"


def schedule_remedy(value: Any) -> str:
    """Suggest a replacement for a function, or a torch scheduler, that was passed as a schedule."""
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, LRScheduler):
        return (
            f"; torch schedulers write to param_groups: create the optimizer with a number, then "
            f"{kind.__name__}(optimizer, ...), or pass a schedule such as gradtx.step_schedule(lr, step_size)"
        )
    return "; wrap it: gradtx.Schedule(...)" if callable(value) else ""


def _describe_tensor(tensor: Tensor) -> str:
    if tensor.ndim == 0 and readable(tensor):
        return f"tensor({tensor.item():g})"
    return f"tensor(shape={tuple(tensor.shape)})"


def describe_kind(tensor: Tensor | None) -> str:
    """Describe the kind of a tensor: its dtype, shape and device."""
    if tensor is None:
        return "None"
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def close(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most similar to an unknown name, or None."""
    return _closest(name, tuple(sorted(known)), cutoff)


@assume_constant
def _closest(name: str, known: tuple[str, ...], cutoff: float) -> str | None:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return matches[0] if matches else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest a known name for an unknown one, or list all known names."""
    known = sorted(known)
    suggestion = close(name, known)
    if suggestion is not None:
        return f"did you mean {suggestion!r}?"
    return f"known: {', '.join(known)}" if known else "there are none"


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called gradtx, at any depth of the call stack."""
    level = 1  # the frame of this function
    frame = inspect.currentframe()
    while (
        frame is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in INNER_PACKAGES
    ):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def _frames(error: BaseException) -> list[tuple[str, FrameType, int]]:
    """Return the package, the frame and the line number of each call that an error left, innermost last."""
    frames: list[tuple[str, FrameType, int]] = []
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        frames.append((package, frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return frames


def line_of_user(error: Exception) -> str:
    """Return the innermost line of the user's code that an error comes from; empty if there is none."""
    for package, frame, number in reversed(_frames(error)):
        if package not in INNER_PACKAGES:
            path = frame.f_code.co_filename
            line = linecache.getline(path, number).strip()
            return f", {Path(path).name}:{number}: {line}"
    return ""


def note_rule(error: Exception, rule: str, leaves: Collection[Any]) -> None:
    """Add to an error in a user's rule the rule's name, its leaves with their shapes, and the user's line.

    Errors that gradtx raises itself need no note, only those of torch inside it.
    """
    line = line_of_user(error)
    packages = [package for package, _, _ in _frames(error) if package != "torch"]
    is_ours = packages[-1:] == ["gradtx"] and not isinstance(error, RuntimeError)
    if not line or is_ours:
        return
    shown = [
        f"{leaf.name!r} of shape {tuple(leaf.shape)} on {leaf.device}"
        for leaf in itertools.islice(leaves, 4)
    ]
    if len(leaves) > len(shown):
        shown.append(f"... ({len(leaves)} in all)")
    what = "leaf" if len(leaves) == 1 else "leaves"
    remedy = f"; {ON_ITS_DEVICE}" if "same device" in str(error) else ""
    error.add_note(f"{rule}: {what} {', '.join(shown)}{line}{remedy}")


def check_device(who: str, what: str, value: Tensor, like: Tensor) -> None:
    """Raise an error for a tensor that a user's function returned on another device than it received."""
    if value.device != like.device and not (value.is_meta or like.is_meta):
        raise ValueError(
            f"{who}: {what} is on {value.device}, needs {like.device}; {ON_ITS_DEVICE}"
        )


def aligned(
    rows: Sequence[Sequence[str]], justified: Callable[[str, int], str]
) -> list[str]:
    """Return the lines of a table, whose cells are justified by `str.ljust` or `str.rjust`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(justified, row, widths)).rstrip() for row in rows]
