"""What an optimizer consists of; its steps, checkpoints and copies work on these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradtx.optim._hessian import HessianSource
from gradtx.optim._members import Members
from gradtx.optim._run import ChainTraits
from gradtx.optim._state import States

if TYPE_CHECKING:
    from gradtx.optim.engine import Engine  # imported when an optimizer is made with `compile=`


@dataclass
class Workings:
    """What an optimizer consists of.

    Attributes:
        members: Its parameters and groups.
        states: Their states.
        traits: Properties of its chain.
        hessian: The source of second derivatives.
        engine: The compiled engine, if asked for.
    """

    members: Members
    states: States
    traits: ChainTraits
    hessian: HessianSource
    engine: Engine | None

    def counts_on_host(self) -> bool:
        """Whether the host must know the counts, also under a GradScaler."""
        if self.traits.needs_host_counts:
            return True
        devices = {param.device for param in self.members.by_param}
        return len(devices) > 1
