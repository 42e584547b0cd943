"""Compile and launch kernels in Triton, which is imported on use."""

from __future__ import annotations

import functools
import hashlib
import itertools
import linecache
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gradtx.base.recent import MOST
from gradtx.compiler.write_triton import START

WARPS = 8  # 16 bytes per thread and argument in float32


class Call(NamedTuple):
    """A kernel, and what it is launched with.

    Attributes:
        function: The kernel.
        instances: The number of its instances.
        arguments: All arguments but the first, the number of its first instance.
        constants: Those that are fixed when it is compiled, the last ones, by name, in order.
    """

    function: Any
    instances: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@functools.cache
def is_importable() -> bool:
    """Whether Triton is installed; torch's builds for GPUs bring it along."""
    try:
        import triton.language  # noqa: F401
    except ImportError:
        return False
    return True


@functools.lru_cache(maxsize=MOST)
def compiled(source: str, called: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Return the functions of a kernel's text by name; equal texts share them.

    Args:
        source: The text.
        called: The kernels that it calls `kernel0`, `kernel1`, ...
    """
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    # Triton tells functions apart by module and name, within a kernel and on disk.
    module = f"gradtx_kernel_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    file = f"<{module}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[file] = (len(source), None, lines, file)  # Triton reads the text
    namespace = {"triton": triton, "tl": tl, "libdevice": libdevice}
    namespace |= {"__name__": module, **numbered(called)}
    exec(compile(source, file, "exec"), namespace)
    return namespace


def numbered(kernels: Sequence[Any]) -> dict[str, Any]:
    """Return kernels by the names that a text calls them."""
    return {f"kernel{i}": kernel for i, kernel in enumerate(kernels)}


def launch(
    kernel: Any, instances: int, arguments: Sequence[Any], **constants: Any
) -> None:
    kernel[(instances,)](*arguments, **constants)


def launch_in_turn(sequences: Iterable[Sequence[Call]]) -> None:
    """Launch sequences of kernels; those that come first share a launch, then those that come second, ..."""
    for calls in itertools.zip_longest(*sequences):
        present = [call for call in calls if call is not None and call.instances]
        if len(present) > 1:
            _launch_together(present)
            continue
        for function, instances, arguments, constants in present:
            arguments = (0, *arguments)
            launch(function, instances, arguments, **constants, num_warps=WARPS)


def _launch_together(calls: list[Call]) -> None:
    function = shared(tuple(call.function for call in calls))
    *stops, instances = itertools.accumulate(call.instances for call in calls)
    arguments = [*stops]
    for call in calls:
        arguments += [*call.arguments, *call.constants.values()]
    launch(function, instances, arguments, num_warps=WARPS)


@functools.lru_cache(maxsize=MOST)
def shared(functions: tuple[Any, ...]) -> Any:
    """Return a kernel whose first instances run the first function, the next ones the second, ..."""
    names = [f"stop{i}" for i in range(len(functions) - 1)]
    unspecialized, arguments = [*names], [f"{name}: tl.int32" for name in names]
    lines = ["pid = tl.program_id(0)"]
    for i, function in enumerate(functions):
        own = [f"{name}_{i}" for name in function.arg_names if name != START]
        unspecialized += [name for name in own if name[0] == "w"]
        arguments += map(_annotated, own)
        is_last = i == len(functions) - 1
        condition = "else" if is_last else f"{'elif' if i else 'if'} pid < stop{i}"
        first = f"stop{i - 1}" if i else "0"
        lines += [f"{condition}:", f"    kernel{i}({', '.join([first, *own])})"]
    name = "_".join(dict.fromkeys(function.__name__ for function in functions))
    head = f"@triton.jit(do_not_specialize={unspecialized})"
    head += f"\ndef {name}({', '.join(arguments)}):"
    source = "\n    ".join([head, *lines]) + "\n"
    return compiled(source, functions)[name]


def _annotated(argument: str) -> str:
    """Return an argument with its type; names tell which are constants and words."""
    if argument.isupper():
        return f"{argument}: tl.constexpr"
    is_word = argument[0] == "w" and not argument.startswith("words")
    return f"{argument}: tl.int64" if is_word else argument
