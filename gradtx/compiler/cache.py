"""Programs by the key for which they were written, the most recently used ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from gradtx.base.forward import Transformation

# The programs of one table that are kept. Where rules read shapes, one takes a fifth of a megabyte.
MOST = 1024


class SharedPrograms:
    """The programs of the most recently used keys: structures of chains, or texts of recordings."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[Any, dict[Any, Any]] = OrderedDict()
        self._lock = threading.RLock()

    def of(self, key: Any) -> dict[Any, Any]:
        """Return the programs of a key, to which the caller may add."""
        # Another thread must not drop the key before it has moved to the end.
        with self._lock:
            programs = self._by_key.setdefault(key, {})
            self._by_key.move_to_end(key)
            excess = len(self._by_key) + sum(map(len, self._by_key.values())) - MOST
            while excess > 0 and len(self._by_key) > 1:
                _, oldest = self._by_key.popitem(last=False)
                excess -= 1 + len(oldest)
            while len(programs) > MOST:  # of one key, the first ones go
                del programs[next(iter(programs))]
        return programs


class ProgramsOfChains(SharedPrograms):
    """The programs of the most recently used structures of chains."""

    def of_chain(self, tx: Transformation) -> dict[Any, Any]:
        """Return the programs of a chain, shared by chains that differ only in scalars."""
        structure = tx._once("structure", tx._structure)
        return {} if structure is None else self.of(structure)
