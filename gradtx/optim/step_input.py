"""The data of one step that engines and features need."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

import torch

from gradtx.execution.execute import Leaf
from gradtx.optim.device_counts import Scaling
from gradtx.optim.groups import GroupView, Structure
from gradtx.optim.run import Member, OptimizerRun
from gradtx.programs.bundle import is_on_accelerator

Extras: TypeAlias = dict[str, Any]
Trees = Mapping[str, Mapping[str, Any]]  # extras by leaf: name -> leaf name -> tensor


class StepInput:
    """What engines and features read of a step.

    Attributes:
        run: Provides operations with old values and collects new ones.
        count: The number of finished steps, which schedules follow.
        members: The parameters that step.
        views: The parameter groups.
        numbers: The numbers of each group's hyperparameters, in the order of the structure.
        structures: The static part of each group's hyperparameters.
        scalars: The extras that all leaves share.
        scalar_dtypes: The dtypes of those that are tensors.
        trees: The extras by leaf.
        scaling: What a GradScaler asks for.
        on_host: Whether the host may read counts and numbers.
        consumes: Whether each gradient is freed as soon as it is used.
    """

    run: OptimizerRun
    count: int | torch.Tensor
    members: list[Member]
    views: list[GroupView]
    numbers: list[list[Any]]
    structures: list[Structure]
    scalars: Extras
    scalar_dtypes: dict[str, torch.dtype]
    trees: Trees
    scaling: Scaling | None
    on_host: bool
    consumes: bool

    def leaves(self, members: list[Member]) -> list[Leaf]:
        """Return the leaves of some members."""
        raise NotImplementedError

    def leaves_of(self, members: list[Member]) -> list[Leaf]:
        """Return leaves without values, for planning: values could be float32 copies of all weights and gradients."""
        raise NotImplementedError

    @cached_property
    def host_knows_scalars(self) -> bool:
        """Whether counts, numbers and shared extras are all on the host, and it may read them."""
        scalars = chain(*self.numbers, self.scalars.values())
        return self.on_host and not any(map(is_on_accelerator, scalars))
