"""The structure of a program: the order of its arguments, and the common properties of its leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradtx.base.errors import Path
from gradtx.execution.execute import Leaf
from gradtx.optim.member import Layout, Member
from gradtx.optim.step_input import StepInput


@dataclass(frozen=True)
class LeafKind:
    """The common properties of the leaves of one program, apart from the structure of their group's chain.

    Attributes:
        flat: Whether they are passed as flat aliases of their memory.
        written: The traits of the parameter and slots that a program depends on: dtype, device, and more for some
            engines.
        read: The dtype and device of the gradient and of each per-leaf extra.
        by_leaf: The names of per-leaf extras.
        choices: The decisions of selectors.
        layout: The positions of slots and shared values in the state.
        width: The number of leaves that a program processes.
    """

    flat: bool
    written: tuple[Any, ...]
    read: tuple[Any, ...]
    by_leaf: tuple[str, ...]
    choices: tuple[Any, ...]
    layout: str
    width: int


@dataclass(frozen=True)
class Signature:
    """The arguments of a program, and the decisions of selectors for its leaves.

    The flat arguments are: the number of this step; the count passed to schedules; under a GradScaler, the inverse
    scale and whether to proceed; hyperparameters; shared values; equal slots; 0-d extras; totals of earlier phases. For
    each leaf they continue with: whether it is real (if the last bundle is padded), parameter, slots, gradient, extras,
    and the index of its first entry.

    Attributes:
        layout: The positions of a leaf's slots in its state.
        choices: The decision of each selector.
        numbers: The number of hyperparameters among the arguments.
        shared: The dtype of each shared value.
        scalars: The dtype of each 0-d extra.
        by_leaf: The names of per-leaf extras.
        absent: The names of extras that are None.
        known_extras: The extras that some link declares.
        width: The number of leaves.
        scaled: Whether a GradScaler is active.
        padded: Whether some leaves may be padding, so that each has a flag that marks it as real.
        placed: Whether leaves are parts of parameters, so that each has the index of its first entry.
        has_owners: Whether owners compute the operations that need whole leaves.
        equal: The dtype of each 0-d slot that is equal in all leaves and is passed once, by key.
    """

    layout: Layout
    choices: Mapping[Path, Any]
    numbers: int
    shared: Mapping[tuple[Path, str], torch.dtype]
    scalars: Mapping[str, torch.dtype]
    by_leaf: tuple[str, ...]
    absent: tuple[str, ...]
    known_extras: Any
    width: int
    scaled: bool
    padded: bool = True
    has_owners: bool = False
    placed: bool = False
    equal: Mapping[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])

    @classmethod
    def of(
        cls,
        member: Member,
        leaf: Leaf,
        kind: LeafKind,
        step_input: StepInput,
    ) -> Signature:
        """Return the signature of all leaves like this one."""
        layout = member.layout
        assert layout is not None
        shared: dict[tuple[Path, str], torch.dtype] = {}
        for path, names in layout.shared.items():
            values = step_input.run.scalars(path)
            for name in names:
                shared[path, name] = values[name].dtype
        return cls(
            layout=layout,
            choices=member.choices,
            numbers=len(step_input.numbers[member.group]),
            shared=shared,
            scalars={
                name: value.dtype for name, value in step_input.tensor_scalars().items()
            },
            by_leaf=kind.by_leaf,
            absent=tuple(name for name, value in leaf.extras.items() if value is None),
            known_extras=step_input.run.known_extras,
            width=kind.width,
            scaled=step_input.scaling is not None,
        )

    @property
    def slots(self) -> list[str]:
        """The keys of slots that programs write."""
        return self.layout.program_keys

    @property
    def slots_by_leaf(self) -> list[str]:
        """The keys of slots that are passed for each leaf, in order."""
        return [key for key in self.slots if key not in self.equal]

    def key(self) -> tuple[Any, ...]:
        """Return the part of a program's cache key that `LeafKind` does not cover."""
        return (
            tuple(self.shared.items()),
            tuple(self.scalars.items()),
            self.absent,
            self.scaled,
            self.has_owners,
            self.placed,
            tuple(self.equal.items()),
        )


def dtype_and_shape(tensor: Tensor | None) -> tuple[torch.dtype, torch.Size] | None:
    """Return the properties of a gradient or an extra that a plan depends on."""
    return None if tensor is None else (tensor.dtype, tensor.shape)
