"""Progress bars of long work, which need tqdm."""

from __future__ import annotations

import importlib
import sys
from typing import Any


class NoBar:
    """Stands in for a progress bar."""

    def update(self, n: int = 1) -> None: ...

    def set_postfix_str(self, text: str) -> None: ...

    def close(self) -> None: ...


def progress_bar(who: str, progress: bool | None, total: int, unit: str) -> Any:
    """Return a bar of tqdm, or what stands in for one.

    Args:
        who: The function that shows it.
        progress: Whether to show it; None for "if stderr is a terminal and tqdm is installed". Without a stderr, there
            is no bar in either case.
        total: How many units the work has.
        unit: The name of these.

    Raises:
        ImportError: If it is wanted and tqdm is not installed.
    """
    if progress is False or not _has_stderr():
        return NoBar()
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        if progress:
            raise ImportError(
                f"{who}: progress=True needs tqdm: pip install tqdm"
            ) from None
        return NoBar()
    # tqdm takes None for "unless stderr is a terminal".
    disable = None if progress is None else False
    return tqdm(total=total, desc=who, unit=f" {unit}", leave=False, disable=disable)


def _has_stderr() -> bool:
    """Whether there is a stderr: services and windowed programs have none, or a closed one."""
    return sys.stderr is not None and not getattr(sys.stderr, "closed", False)
