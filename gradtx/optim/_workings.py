"""The parts of an optimizer, which its steps, checkpoints and copies use."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradtx.core import GradientTransformation
from gradtx.optim._hessian import HessianSource
from gradtx.optim._members import Members
from gradtx.optim._run import ChainTraits
from gradtx.optim._state import States

if TYPE_CHECKING:
    from gradtx.optim.engine import Engine  # imported when an optimizer is made with `compile=`


@dataclass(eq=False)
class Workings:
    """The parts of an optimizer.

    Attributes:
        members: Its parameters and groups.
        states: Their states.
        hessian: The source of second derivatives.
        engine: The compiled engine, if asked for.
    """

    members: Members
    states: States
    hessian: HessianSource
    engine: Engine | None

    @classmethod
    def of(cls, owner: str, tx: GradientTransformation, seed: Any, engine: Engine | None) -> Workings:
        """The workings of an optimizer without parameters.

        Args:
            owner: Its class, for errors.
            tx: Its transformation.
            seed: The seed for estimates of second derivatives.
            engine: The compiled engine, if asked for.
        """
        members = Members(owner, tx)
        return cls(members, States(members), HessianSource(owner, tx, seed), engine)

    @functools.cached_property
    def traits(self) -> ChainTraits:
        """Properties of the chain."""
        return ChainTraits.of(self.members.block(), self.hessian.link is not None)

    def counts_on_host(self) -> bool:
        """Whether the host must know the counts, also under a GradScaler."""
        if self.traits.needs_host_counts:
            return True
        devices = {param.device for param in self.members.by_param}
        return len(devices) > 1
