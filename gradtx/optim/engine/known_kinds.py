"""The kinds of leaves that earlier plans have found out, and when they are still true.

Which parameters have a gradient may be different in each step, as with experts that tokens choose. A new plan then
looks only at the parameters whose tensors have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import MemoryGuard
from gradtx.base.plain import TYPES
from gradtx.optim.run import Member, TensorKind
from gradtx.optim.step import Step
from gradtx.plans.families import LeafKind
from gradtx.state.layout import Layout


class KnownKind:
    """The kind of a leaf, while its tensors and the form of its gradient are the same.

    It keeps no tensor alive.
    """

    def __init__(self, member: Member, kind: LeafKind, tensors: list[Tensor]):
        self.kind = kind
        self._group = member.group
        self._layout: Layout = member.layout
        self._gradient = TensorKind.of(member.param.grad)  # type: ignore[arg-type]
        self._guard = MemoryGuard(tensors)

    def is_true(self, member: Member) -> bool:
        """Whether it is still the kind of this member, which has a gradient."""
        gradient: Any = member.param.grad
        if (
            member.layout is not self._layout
            or member.group != self._group
            or type(gradient) not in TYPES
            or TensorKind.of(gradient) != self._gradient
        ):
            return False
        tensors = tensors_of(member)
        return TYPES.issuperset(
            map(type, (*tensors, member.state.get("step")))
        ) and self._guard.holds(tensors)


class KnownKinds:
    """Kinds of leaves that share no memory, for steps with the same structures and inputs.

    Attributes:
        overlapping: The ids of members that shared memory with another one when a plan was last made for new members.
    """

    def __init__(self) -> None:
        self.overlapping: set[int] = set()
        self._of: dict[Member, KnownKind] = {}
        self._situation: Any = None

    def of(self, members: Iterable[Member], step: Step) -> dict[Member, LeafKind]:
        """Return the kinds that are known and still true, and forget parameters that have left the optimizer."""
        situation = _situation_of(step)
        if situation is None or situation != self._situation:
            self._of = {}
            self._situation = situation
        if not self._of:
            return {}
        by_param: Mapping[Tensor, Member] = step.by_param
        present = self._of.items()
        self._of = {
            member: known
            for member, known in present
            if by_param.get(member.param) is member
        }
        kinds = {}
        for member in members:
            known = self._of.get(member)
            if known is not None and known.is_true(member):
                kinds[member] = known.kind
        return kinds

    def __contains__(self, member: Member) -> bool:
        return member in self._of

    def members(self) -> list[Member]:
        """Return the members whose kinds are known."""
        return list(self._of)

    def forget(self, overlapping: set[int]) -> None:
        """Forget the kinds of members that share memory, given by id, and keep no new ones of these."""
        self.overlapping = overlapping
        for member in self.members() if overlapping else ():
            if id(member) in overlapping:
                del self._of[member]

    def keep(self, kinds: Mapping[Member, LeafKind]) -> None:
        """Keep new kinds of plain leaves, of which a comparison of addresses and layouts shows that nothing changed."""
        if self._situation is None:
            return
        for member, kind in kinds.items():
            tensors = [member.param.grad, *tensors_of(member)]
            is_plain = TYPES.issuperset(map(type, tensors))
            if is_plain and id(member) not in self.overlapping:
                self._of[member] = KnownKind(member, kind, tensors[1:])


def tensors_of(member: Member) -> list[Any]:
    """Return a parameter and its slots, which programs write; a user may have put something else there, or nothing."""
    return [member.param, *map(member.state.get, member.layout.slot_keys)]


def _situation_of(step: Step) -> Any:
    """Return what kinds depend on apart from their leaves; None if they also depend on inputs by leaf."""
    if step.trees:
        return None
    return (
        step.structures,
        step.scalar_dtypes,
        torch.is_inference_mode_enabled(),
        step.scaling is not None,
        step.host_knows_scalars,
    )
