"""Compile and launch kernels in Triton, which is imported on use."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Sequence
from typing import Any


@functools.cache
def is_importable() -> bool:
    """Whether Triton is installed; torch's builds for GPUs bring it along."""
    try:
        import triton.language  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def compiled(source: str) -> dict[str, Any]:
    """Return the functions of a kernel's text by name; equal texts share them."""
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    file = f"<gradtx kernel {hash(source):x}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[file] = (len(source), None, lines, file)  # Triton reads the text
    namespace = {"triton": triton, "tl": tl, "libdevice": libdevice}
    exec(compile(source, file, "exec"), namespace)
    return namespace


def launch(
    kernel: Any, instances: int, arguments: Sequence[Any], **constants: Any
) -> None:
    kernel[(instances,)](*arguments, **constants)
