"""Families of leaves that may share a program, and the recordings with which engines plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local
from gradtx.base.errors import StateKey
from gradtx.execution.execute import Leaf, Operation
from gradtx.optim.device_counts import scaling_from
from gradtx.optim.engine.views import cut
from gradtx.optim.run import Member
from gradtx.optim.step import Step
from gradtx.programs.function import LeafFunction, Signature
from gradtx.programs.hyperparameters import ChainOf
from gradtx.programs.phases import RecordedPhase
from gradtx.programs.terms import numbers_in
from gradtx.state.layout import by_place


@dataclass(frozen=True)
class LeafKind:
    """The common properties of the leaves of one program, apart from the structure of their group's chain.

    Attributes:
        flat: Whether they are passed as flat aliases of their memory.
        written: The dtype and device of the parameter and of each slot.
        read: The dtype and device of the gradient and of each per-leaf extra.
        by_leaf: The names of per-leaf extras.
        choices: The decisions of selectors.
        layout: The positions of slots and shared values in the state.
        sharded: Whether they are shards.
    """

    flat: bool
    written: tuple[Any, ...]
    read: tuple[Any, ...]
    by_leaf: tuple[str, ...]
    choices: tuple[Any, ...]
    layout: str
    sharded: bool


@dataclass(frozen=True)
class Family:
    """Leaves with the same group, count and kind in a step.

    Attributes:
        kind: Their common properties.
        signature: The arguments of their programs.
        operations: The operations of each.
        step: The step.
        members: The parameters.
    """

    kind: LeafKind
    signature: Signature
    operations: list[Operation]
    step: Step
    members: list[Member]

    @classmethod
    def of(cls, kind: LeafKind, member: Member, leaf: Leaf, step: Step) -> Family:
        """Return the family of a first leaf, whose program has the arguments of the others'."""
        shared: dict[StateKey, torch.dtype] = {}
        for (path, name), _ in by_place(leaf.layout.shared):
            shared[path, name] = step.run.scalars(path)[name].dtype
        signature = Signature(
            layout=leaf.layout,
            choices=member.choices,
            numbers=len(step.numbers[member.group]),
            shared=shared,
            scalars=step.scalar_dtypes,
            by_leaf=kind.by_leaf,
            absent={name: None for name, value in leaf.extras.items() if value is None},
            known_extras=step.run.known_extras,
            sharded=kind.sharded,
            scaled=step.scaling is not None,
        )
        return cls(kind, signature, leaf.operations, step, [member])

    def some(self, members: list[Member]) -> Family:
        """Return a family of some of the leaves."""
        return dataclasses.replace(self, members=members)

    def signed(self, **changes: Any) -> Family:
        """Return the same leaves for programs with other arguments."""
        signature = dataclasses.replace(self.signature, **changes)
        return dataclasses.replace(self, signature=signature)

    @property
    def key(self) -> tuple[Any, ...]:
        """The key of the family's programs, among those of the same chain."""
        return self._structure(), self.kind, *self.signature.key()

    def _structure(self) -> Any:
        return self.step.structures[self.members[0].group]

    def function(self) -> LeafFunction:
        """Return the step of leaves as a function of flat arguments."""
        make_chain = ChainOf(self.step.groups[0].tx, self._structure())
        return LeafFunction(self.signature, make_chain, scaling_from)

    def arguments(self, member: Member) -> list[Tensor]:
        """Return the arguments of a leaf, of which only dtypes and shapes matter."""
        tensors = [
            member.param,
            *(member.state[key] for key in self.signature.slots_by_leaf),
            member.param.grad,
        ]
        trees = self.step.trees
        tensors.extend(trees[name][member.name] for name in self.signature.by_leaf)
        return [as_real(local(tensor)) for tensor in tensors]

    def recorded(self, tensors: list[Tensor]) -> list[RecordedPhase]:
        """Record the list program for these arguments; return an empty list if that is impossible."""
        try:
            return self.function().record(tensors)
        except Exception:
            # Where a program is required, recording it again raises the error.
            return []


def operations_of(phases: list[RecordedPhase]) -> list[Any]:
    """Return the operations of a program with their Python scalars; see `numbers_in`."""
    return [numbers_in(each.recording.graph) for each in phases]


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
