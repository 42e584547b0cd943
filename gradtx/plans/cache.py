"""Programs shared by chains of the same structure, in all optimizers and pure updates of the process."""

from __future__ import annotations

from typing import Any

from gradtx.base.forward import Transformation
from gradtx.compiler.cache import SharedPrograms


class ProgramsOfChains(SharedPrograms):
    """The programs of the most recently used structures of chains."""

    def of_chain(self, tx: Transformation) -> dict[Any, Any]:
        """Return the programs of a chain, shared by chains that differ only in scalars."""
        structure = tx._structure()
        return {} if structure is None else self.of(structure)
