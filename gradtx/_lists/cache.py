"""Programs that transformations, or optimizers, of the same structure share."""

from __future__ import annotations

import collections
from typing import Any

MOST = 128  # structures whose programs are kept


class SharedPrograms:
    """The programs of the structures that were used last."""

    def __init__(self) -> None:
        self._by_skeleton: collections.OrderedDict[Any, dict[Any, Any]] = collections.OrderedDict()

    def of(self, skeleton: Any) -> dict[Any, Any]:
        """The programs of a structure, which the caller adds to."""
        programs = self._by_skeleton.setdefault(skeleton, {})
        self._by_skeleton.move_to_end(skeleton)
        if len(self._by_skeleton) > MOST:
            self._by_skeleton.popitem(last=False)
        return programs
