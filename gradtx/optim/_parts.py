"""The parts of an optimizer that its steps, checkpoints and copies share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.eager import runs_eagerly
from gradtx.base.messages import describe
from gradtx.optim._agreement import Agreement
from gradtx.optim._evaluation import Evaluation
from gradtx.optim._groups import Group
from gradtx.optim._parameters import Members
from gradtx.optim._run import ChainTraits
from gradtx.optim._state import States
from gradtx.transform import GradientTransformation

if TYPE_CHECKING:
    from gradtx.optim._offload import Offload
    from gradtx.optim.engine import Engine
    from gradtx.optim.engine.compiled import CompiledEngine


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
        self._seed = _checked_seed(f"{owner}: seed", seed)
        needing = [link._name for link in tx._links() if "hessian_diag" in link._needs]
        self.link = needing[0] if needing else None

    def mark(self, group: Group) -> None:
        """Add the seed to a group that lacks it, if the chain needs second derivatives."""
        if self.link is not None:
            group.setdefault(SEED, self._seed)

    def seed_of(self, group: Group) -> int:
        return _checked_seed(f"{self._owner}: {SEED}", group.get(SEED, self._seed))


def _checked_seed(what: str, seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{what} must be an int, got {describe(seed)}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{what} must fit in 64 bits, got {seed}")
    return seed


@dataclass(eq=False)
class Parts:
    """The parts of an optimizer.

    Attributes:
        members: The parameters and groups.
        states: The states of the parameters.
        hessian: The source of second derivatives.
        engine: The compiled engine, if requested.
        evaluation: The training weights, while the parameters contain the evaluation weights. Not an attribute of the
            optimizer, because Lightning's wrapper inherits the optimizer's methods, so attributes that these methods
            set would end up on the wrapper.
        offload: Moves parameters to the host for each step, if requested.
        capturable: Whether CUDA graphs may capture steps.
    """

    members: Members
    states: States
    hessian: HessianSource
    engine: CompiledEngine | None
    evaluation: Evaluation | None = None
    offload: Offload | None = None
    capturable: bool = False

    def at_state(self, **changes: bool) -> contextlib.AbstractContextManager[None]:
        """Keep all parameters on their state's device inside a `with` block; `changes` as for `Offload.on_host`."""
        return self.with_state(self.members.by_param, **changes)

    def with_state(
        self, params: Iterable[Tensor], **changes: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Keep some parameters on their state's device inside a `with` block."""
        if self.offload is None:
            return contextlib.nullcontext()
        return self.offload.on_host(params, **changes)

    @functools.cached_property
    def agreement(self) -> Agreement:
        """The comparison of this rank's steps with those of other ranks."""
        return Agreement()

    @functools.cached_property
    def lists(self) -> Engine:
        """The engine for leaves that are not compiled; its module is imported at the first step."""
        from gradtx.optim.engine.lists import ListEngine

        return ListEngine()

    def engines(self) -> list[Engine]:
        """Return the engines of a step; each processes the parameters that the previous engines did not."""
        if runs_eagerly():
            return []
        if _torch.is_intercepted():
            return [] if self.engine is None else [self.engine]
        return [self.lists] if self.engine is None else [self.engine, self.lists]

    @functools.cached_property
    def traits(self) -> ChainTraits:
        """Properties of the chain."""
        return ChainTraits.of(self.members.block(), self.hessian.link is not None)

    def counts_on_device(self, scaled: bool) -> bool:
        """Whether the device counts steps; `scaled` specifies whether a GradScaler may skip the step."""
        return (scaled or self.capturable) and not self.counts_on_host()

    def counts_on_host(self) -> bool:
        """Whether the host must know the counts even under a GradScaler."""
        devices = {param.device for param in self.members.by_param}
        return self.traits.needs_host_counts or len(devices) > 1
