"""Programs by the key for which they were written, the most recently used ones."""

from __future__ import annotations

import collections
import threading
from typing import Any

from gradtx.base.forward import Transformation

MOST = 128  # the number of keys whose programs are cached


class SharedPrograms:
    """The programs of the most recently used keys: structures of chains, or texts of recordings."""

    def __init__(self) -> None:
        self._by_key: collections.OrderedDict[Any, dict[Any, Any]] = (
            collections.OrderedDict()
        )
        self._lock = threading.RLock()

    def of(self, key: Any) -> dict[Any, Any]:
        """Return the programs of a key, to which the caller may add."""
        # Another thread must not drop the key before it has moved to the end.
        with self._lock:
            programs = self._by_key.setdefault(key, {})
            self._by_key.move_to_end(key)
            if len(self._by_key) > MOST:
                self._by_key.popitem(last=False)
        return programs


class ProgramsOfChains(SharedPrograms):
    """The programs of the most recently used structures of chains."""

    def of_chain(self, tx: Transformation) -> dict[Any, Any]:
        """Return the programs of a chain, shared by chains that differ only in scalars."""
        structure = tx._once("structure", tx._structure)
        return {} if structure is None else self.of(structure)
