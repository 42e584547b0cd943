"""Programs by the structure for which they were written, the most recently used ones."""

from __future__ import annotations

import collections
import threading
from typing import Any

MOST = 128  # the number of structures whose programs are cached


class SharedPrograms:
    """The programs of the most recently used structures."""

    def __init__(self) -> None:
        self._by_skeleton: collections.OrderedDict[Any, dict[Any, Any]] = (
            collections.OrderedDict()
        )
        self._lock = threading.RLock()

    def of(self, skeleton: Any) -> dict[Any, Any]:
        """Return the programs of a structure, or of a recording's text, to which the caller may add."""
        # Another thread must not drop the structure before it has moved to the end.
        with self._lock:
            programs = self._by_skeleton.setdefault(skeleton, {})
            self._by_skeleton.move_to_end(skeleton)
            if len(self._by_skeleton) > MOST:
                self._by_skeleton.popitem(last=False)
        return programs
