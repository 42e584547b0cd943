"""The parts of an optimizer, which its steps, checkpoints and copies use."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradtx import _torch
from gradtx.core import GradientTransformation
from gradtx.optim._agreement import Agreement
from gradtx.optim._evaluation import Evaluation
from gradtx.optim._hessian import HessianSource
from gradtx.optim._members import Members
from gradtx.optim._run import ChainTraits
from gradtx.optim._state import States

if TYPE_CHECKING:
    from gradtx.optim._offload import Offload
    from gradtx.optim.engine import Engine
    from gradtx.optim.engine.compiled import CompiledEngine


@dataclass(eq=False)
class Workings:
    """The parts of an optimizer.

    Attributes:
        members: Its parameters and groups.
        states: Their states.
        hessian: The source of second derivatives.
        engine: The compiled engine, if asked for.
        evaluation: The weights of training, while others are in their place. Kept here and not on the optimizer,
            because Lightning's wrapper inherits the optimizer's methods and takes what these set.
        offload: Moves parameters to the host for each step, if asked for.
        capturable: Whether CUDA graphs may capture steps.
    """

    members: Members
    states: States
    hessian: HessianSource
    engine: CompiledEngine | None
    evaluation: Evaluation | None = None
    offload: Offload | None = None
    capturable: bool = False

    @classmethod
    def of(
        cls,
        owner: str,
        tx: GradientTransformation,
        seed: Any,
        engine: CompiledEngine | None,
        offload: Offload | None = None,
    ) -> Workings:
        """The workings of an optimizer without parameters.

        Args:
            owner: Its class, for errors.
            tx: Its transformation.
            seed: The seed for estimates of second derivatives.
            engine: The compiled engine, if asked for.
            offload: Moves parameters to the host for each step, if asked for.
        """
        members = Members(owner, tx)
        return cls(members, States(members), HessianSource(owner, tx, seed), engine, offload=offload)

    def at_state(self, **changes: bool) -> contextlib.AbstractContextManager[None]:
        """Have the parameters on the device of their state, while both are used; `changes` as for `Offload.on_host`."""
        return self.with_state(self.members.by_param, **changes)

    def with_state(self, params: Iterable[Tensor], **changes: bool) -> contextlib.AbstractContextManager[None]:
        """The same for some parameters."""
        if self.offload is None:
            return contextlib.nullcontext()
        return self.offload.on_host(params, **changes)

    @functools.cached_property
    def agreement(self) -> Agreement:
        """The comparison of this rank's steps with those of others."""
        return Agreement()

    @functools.cached_property
    def lists(self) -> Engine:
        """The engine for leaves that are not compiled, imported at the first step."""
        from gradtx.optim.engine.lists import ListEngine

        return ListEngine()

    def engines(self) -> list[Engine]:
        """The engines of a step; each takes what those in front of it leave."""
        if _torch.is_intercepted():
            return [] if self.engine is None else [self.engine]
        return [self.lists] if self.engine is None else [self.engine, self.lists]

    @functools.cached_property
    def traits(self) -> ChainTraits:
        """Properties of the chain."""
        return ChainTraits.of(self.members.block(), self.hessian.link is not None)

    def counts_on_device(self, scaled: bool) -> bool:
        """Whether a step leaves counting to the device; `scaled` is whether a GradScaler decides about it."""
        return (scaled or self.capturable) and not self.counts_on_host()

    def counts_on_host(self) -> bool:
        """Whether the host must know the counts, also under a GradScaler."""
        if self.traits.needs_host_counts:
            return True
        devices = {param.device for param in self.members.by_param}
        return len(devices) > 1
