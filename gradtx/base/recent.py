"""Values and programs by key, those that were used last: what a process keeps for later calls has a limit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Generic, TypeVar

from gradtx.base.forward import Transformation

K = TypeVar("K")
V = TypeVar("V")
# The programs of one table that are kept. Where rules read shapes, one takes a fifth of a megabyte.
MOST = 1024


class Recent(Generic[K, V]):
    """Values by key, in the order of their last use."""

    def __init__(self) -> None:
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._size = 0
        # Another thread must not drop a value before it has moved to the end.
        self._lock = threading.RLock()

    def get(self, key: K) -> V | None:
        """Return the value of a key, which then was used last; None if there is none."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(
        self, key: K, value: V, *, size: int = 1, most: int = 128
    ) -> list[tuple[K, V]]:
        """Keep a value that is used now; return those that are dropped, with their keys.

        Args:
            key, value: The value, which is never dropped now, however large it is.
            size: What it takes, in any unit.
            most: What all values may take.
        """
        dropped: list[tuple[K, V]] = []
        with self._lock:
            self.drop(key)
            self._values[key] = value, size
            self._size += size
            while self._size > most and len(self._values) > 1:
                oldest = next(iter(self._values))
                dropped.append((oldest, self._values[oldest][0]))
                self.drop(oldest)
        return dropped

    def drop(self, key: K) -> None:
        """Drop the value of a key, if there is one."""
        with self._lock:
            _, size = self._values.pop(key, (None, 0))
            self._size -= size


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
