"""Families of an optimizer's parameters, and the arguments of their programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local
from gradtx.base.errors import StateKey
from gradtx.compiler.terms import constants_in
from gradtx.execution.execute import Leaf
from gradtx.optim.device_counts import scaling_from
from gradtx.optim.engine.views import cut
from gradtx.optim.run import Member
from gradtx.optim.step import Step
from gradtx.plans.hyperparameters import ChainOf
from gradtx.plans.phases import RecordedPhase
from gradtx.plans.plan import Family, LeafKind, signature_of
from gradtx.state.layout import by_state_key


@dataclass(frozen=True, kw_only=True)
class MemberFamily(Family[Member]):
    """Parameters with the same structure and kind in a step.

    Attributes:
        step: The step.
    """

    step: Step

    @classmethod
    def first(
        cls, kind: LeafKind, member: Member, leaf: Leaf, step: Step
    ) -> MemberFamily:
        """Return the family of a first parameter, still without members."""
        shared: dict[StateKey, torch.dtype] = {}
        for (path, name), _ in by_state_key(leaf.layout.shared):
            shared[path, name] = step.run.scalars(path)[name].dtype
        signature = signature_of(
            leaf,
            kind,
            layout=leaf.layout,
            hyperparameters=len(step.hyperparameters[member.group]),
            shared=shared,
            scalars=step.scalar_dtypes,
            absent={name: None for name, value in leaf.extras.items() if value is None},
            scaled=step.scaling is not None,
        )
        return cls(
            kind,
            signature,
            leaf.operations,
            ChainOf(step.groups[0].tx, step.structures[member.group]),
            step.counts.on_host,
            scaling=scaling_from,
            step=step,
        )

    def arguments(self, member: Member) -> list[Tensor]:
        """Return the arguments of a leaf, of which only dtypes and shapes matter."""
        tensors = [
            member.param,
            *(member.state[key] for key in self.signature.slots_by_leaf),
            member.likely_gradient(),
        ]
        trees = self.step.trees
        tensors.extend(trees[name][member.name] for name in self.signature.by_leaf)
        return [as_real(local(tensor)) for tensor in tensors]


def operations_of(phases: list[RecordedPhase]) -> list[Any]:
    """Return the operations of a program with their Python scalars; see `constants_in`."""
    return [constants_in(phase.recording.graph) for phase in phases]


def whole_arguments(member: Member, tensors: list[Tensor]) -> list[Tensor]:
    """Return the arguments of the whole elementwise leaf, given those of a shard, without memory of its size."""
    real_and_imaginary = (2,) if member.param.is_complex() else ()
    shape = *member.param.shape, *real_and_imaginary
    whole = tensors.copy()
    for i, tensor in enumerate(tensors):
        if tensor.shape == tensors[0].shape:
            whole[i] = tensor.new_empty(()).expand(shape)
    return whole


def first_entries(tensors: list[Tensor], count: int) -> list[Tensor]:
    """Return the arguments for the first entries of a leaf, as vectors."""
    size = tensors[0].numel()
    flat = [tensor.reshape(-1) if tensor.ndim else tensor for tensor in tensors]
    return [cut(tensor, slice(0, count), size) for tensor in flat]
