"""Whether a chain needs second derivatives, and the seed of their estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradtx.base.messages import describe
from gradtx.transform import GradientTransformation

SEED = "hessian_seed"  # the seed's key in a group


class HessianSource:
    """Whether a chain needs second derivatives, and the seed for new groups.

    Args:
        owner: The optimizer's class, for error messages.
        tx: The optimizer's transformation.
        seed: The seed for new groups.

    Attributes:
        link: The name of the first link that needs `hessian_diag`; None if no link does.
    """

    def __init__(self, owner: str, tx: GradientTransformation, seed: Any):
        self._owner = owner
        self._seed: int = _checked_seed(f"{owner}: seed", seed)
        self.link: str | None = None
        for link in tx._links():
            if "hessian_diag" in link._needs:
                self.link = link._name
                break

    def mark(self, group: dict[str, Any]) -> None:
        """Add the seed to a group that lacks it, if the chain needs second derivatives."""
        if self.link is not None:
            group.setdefault(SEED, self._seed)

    def seed_of(self, group: Mapping[str, Any]) -> int:
        return _checked_seed(f"{self._owner}: {SEED}", group.get(SEED, self._seed))


def _checked_seed(what: str, seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{what} must be an int, got {describe(seed)}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{what} must fit in 64 bits, got {seed}")
    return seed
