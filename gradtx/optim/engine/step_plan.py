"""The plan of an optimizer's steps: bundles that write parameters and slots in place, as long as these stay.

Its rows are all parameters with slots. Which of them have a gradient, and how often each has stepped, are data of a
step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import MemoryGuard, is_sharded
from gradtx.base.plain import TYPES, has_own_values
from gradtx.optim.engine.overlap import extent_of, have_overlap
from gradtx.optim.run import GRAD, PARAM, STATE, Member, TensorKind, stand_in
from gradtx.optim.step import Step
from gradtx.plans.plan import Plan

GROUP_AND_LAYOUT = operator.attrgetter("group", "layout")

# What a plan depends on, except gradients and the addresses of tensors: of the members, and of the step.
Fingerprint: TypeAlias = tuple[Any, Any]


class PlannedRow:
    """A row as it was planned.

    Args:
        gradient: A tensor like its gradient.
        param: Its parameter.
        state: Its state.
        keys: The slots in it that programs write.
    """

    def __init__(
        self,
        gradient: Tensor,
        param: Tensor,
        state: dict[str, Any],
        keys: Sequence[str],
    ):
        self._state = state
        self._slots = [(key, state[key]) for key in keys]
        self._tensors = [param, *map(state.__getitem__, keys)]
        self._guard = MemoryGuard(self._tensors)
        tensors = [gradient, *self._guard.memory]
        self._addresses = self._guard.addresses
        self._have_same_layout: Callable[..., bool] = _torch.layout_check(tensors)

    def is_there(self, gradient: Tensor) -> bool:
        """Whether the gradient has the planned layout, and the other tensors have this and their memory, too."""
        state = self._state
        for key, slot in self._slots:
            if state[key] is not slot:
                return False
        memory: list[Tensor] | None = self._tensors
        if self._guard.has_shards:
            memory = self._guard.memory_of(memory)
        return (
            memory is not None
            and self._have_same_layout(gradient, *memory)
            and list(map(Tensor.data_ptr, memory)) == self._addresses
        )


class StepPlan(Plan[Any]):
    """The bundles of an optimizer's steps, and the parameters that step eagerly.

    Args:
        fingerprint: Identifies the requests that the plan is for; see `fingerprint_of`.
        members: The parameters, its rows.
        bundles: Those that programs run.
        rest: The others.

    Attributes:
        taking_part: The bundles with gradients in the present step.
        tasks: These as tasks.
        absent: The parameters in no bundle that have no gradient in the present step.
        reasons: Why the engine does not run some of them, by name.
        needs_run: Whether bundles read or hand over values by the run of a step.
        gradients_are_as_planned: Whether the gradients of the present step have the types and layouts of those for
            which the plan was made; otherwise only the same dtypes and shapes.
    """

    def __init__(
        self,
        fingerprint: Fingerprint,
        members: list[Member],
        bundles: list[Any],
        rest: list[Member],
    ):
        self.fingerprint = fingerprint
        self.bundles = bundles
        self.taking_part: list[Any] = []
        self.tasks: list[Any] = []
        self.absent: list[Member] = []
        self.rest = rest
        self.reasons: dict[str, str] = {}
        self.gradients_are_as_planned = True
        self.members = members
        self._states = list(map(STATE, members))
        self._params = list(map(PARAM, members))
        row_of = {id(member): row for row, member in enumerate(members)}
        # The rows of each bundle.
        self._rows_of_bundles = [
            [row_of[id(member)] for member in bundle.members] for bundle in bundles
        ]
        gradients = [member.likely_gradient() for member in members]
        self._gradient_kinds = list(map(TensorKind.of, gradients))
        self._gradient_strides = list(map(Tensor.stride, gradients))
        self._have_planned_layout = _torch.layout_check(gradients)
        # In place of gradients, on first use: a plan holds none.
        self._stand_ins: list[Tensor] = []
        self._is_released = False
        self._find_slots()
        self._extents: list[int] | None = None
        self.needs_run = any(bundle.needs_run() for bundle in bundles)
        self._tensors = self._present_tensors()
        self._guard = MemoryGuard(self._tensors)
        # To compare single rows, of those with a gradient in a step in which others have none.
        self._rows: dict[int, PlannedRow] = {}
        # Of gradients and all other tensors together.
        self._are_planned: Callable[..., bool] = _torch.layout_check(
            [*gradients, *self._guard.memory]
        )

    def _find_slots(self) -> None:
        """Note the slots that programs write; eager steps replace theirs."""
        self._slot_states: list[dict[str, Any]] = []
        self._slot_keys: list[str] = []
        # By the id of the state.
        self._keys_of_state: dict[int, Sequence[str]] = {}
        for bundle, rows in zip(self.bundles, self._rows_of_bundles, strict=True):
            keys = bundle.signature.slots
            for state in map(self._states.__getitem__, rows):
                self._keys_of_state[id(state)] = keys
                self._slot_states += [state] * len(keys)
                self._slot_keys += keys

    def without_tensors(self) -> StepPlan | None:
        """Return this plan without members, for `of_others`; None if it depends on more than layouts.

        It does not if programs run all members and write all their slots, and all tensors are plain.
        """
        are_plain = TYPES.issuperset(map(type, self._tensors))
        if self.rest or self.reasons or not are_plain:
            return None
        for bundle in self.bundles:
            written = set(bundle.signature.slots)
            if any(
                set(member.layout.slot_keys) != written for member in bundle.members
            ):
                return None
        plan = self._copied([], (None, None))
        plan._extents = list(map(extent_of, self._tensors))
        plan.bundles = [bundle.of_others([]) for bundle in self.bundles]
        plan._slot_states, plan._keys_of_state, plan._tensors = [], {}, []
        plan._guard.follow([])
        return plan

    def of_others(
        self, members: list[Member], fingerprint: Fingerprint
    ) -> StepPlan | None:
        """Return the plan of others than those of this one, which has no tensors; None if theirs differ in layout.

        Args:
            members: The others, with the same groups, layouts of states, and kinds.
            fingerprint: As above.
        """
        plan = self._copied(members, fingerprint)
        plan._find_slots()
        gradients = [member.likely_gradient() for member in members]
        steps = [state["step"] for state in plan._states]
        try:
            tensors = plan._tensors = plan._present_tensors()
        except KeyError:
            return None
        if not (
            TYPES.issuperset(map(type, steps))
            and self._are_planned(*gradients, *tensors)
        ):
            return None
        plan._guard.follow(tensors)
        addresses = plan._guard.addresses
        has_odd_memory = 0 in addresses or have_overlap(addresses, self._extents or [])
        if has_odd_memory or any(map(Tensor.is_inference, steps)):
            return None
        plan.bundles = [
            bundle.of_others(list(map(members.__getitem__, rows)))
            for bundle, rows in zip(self.bundles, self._rows_of_bundles, strict=True)
        ]
        return plan

    def _copied(self, members: list[Member], fingerprint: Fingerprint) -> StepPlan:
        """Return a copy with other members, whose tensors are to be found."""
        plan = copy(self)
        plan.fingerprint, plan.members = fingerprint, members
        plan.taking_part, plan.tasks, plan.absent = [], [], []
        plan.reasons, plan._rows, plan._stand_ins = {}, {}, []
        plan.gradients_are_as_planned = True
        plan._states = list(map(STATE, members))
        plan._params = list(map(PARAM, members))
        plan._guard = copy(self._guard)
        return plan

    def release_states(self) -> None:
        """Let go of all slots, which others of the same layout are going to replace."""
        self._is_released = True
        self._states, self._slot_states, self._tensors = [], [], []
        self._guard.memory, self._rows, self._stand_ins = [], {}, []
        for bundle in self.bundles:
            bundle.release_states()

    def _takes_states(self, members: list[Member]) -> bool:
        """Take the present states, if they may have the layout of those that were released; return whether they may.

        `matches` compares the layouts of all tensors.
        """
        if self.rest:  # they may share memory
            return False
        self._states = list(map(STATE, members))
        self._find_slots()
        try:
            self._tensors = self._present_tensors()
        except KeyError:
            return False
        # A shortcut: `matches` compares layouts, which tell what else a memory may hold.
        are_plain = TYPES.issuperset(map(type, self._tensors))
        have_memory = are_plain and all(map(Tensor.data_ptr, self._tensors))
        if not (have_memory or all(map(_is_usual_slot, self._tensors))):
            return False
        for bundle in self.bundles:
            bundle.take_states()
        # Not those of any tensor: all have moved.
        self._guard.addresses = []
        self._is_released = False
        return True

    def _present_tensors(self) -> list[Tensor]:
        return [
            *self._params,
            *map(operator.getitem, self._slot_states, self._slot_keys),
        ]

    def matches(self, fingerprint: Any, step: Step, members: list[Member]) -> bool:
        """Whether the input is the same, and parameters and slots are the same tensors, of the same sizes and strides.

        If their memory has been replaced, as by `param.data = ...`, bundles find it again.
        """
        if fingerprint != self.fingerprint:
            return False
        if self._is_released:
            if not self._takes_states(members):
                return False
        elif any(map(operator.is_not, map(STATE, members), self._states)):
            return False
        # A shortcut: rows without a gradient are compared when they have one again. One comparison of all tensors takes
        # as long as those of half the rows, one by one.
        are_few = 2 * len(step.members) < len(members)
        if are_few and self._present_rows_match():
            return True
        present = self._present_tensors()
        if not all(map(operator.is_, present, self._tensors)):
            return False
        guard = self._guard
        memory = guard.memory_of(present) if guard.has_shards else present
        if memory is None or not self._have_same_layout(step, memory):
            return False
        has_moved = list(map(Tensor.data_ptr, memory)) != guard.addresses
        if has_moved and not self._moves_to(memory):
            return False
        if are_few and self.gradients_are_as_planned:
            self._note_rows()  # now: all are where they were planned
        return True

    def _present_rows_match(self) -> bool:
        """Whether the rows with gradients are as planned: tensors, layouts and memory."""
        rows = self._rows
        for i, gradient in enumerate(map(GRAD, self._params)):
            if gradient is None:
                continue
            if i not in rows or not rows[i].is_there(gradient):
                return False
        self.gradients_are_as_planned = True
        return True

    def _note_rows(self) -> None:
        """Note the rows with gradients, which were compared with all others."""
        like = self._with_stand_ins([None] * len(self._params))
        for i, param in enumerate(self._params):
            if param.grad is not None and i not in self._rows:
                state = self._states[i]
                keys = self._keys_of_state.get(id(state), [])
                self._rows[i] = PlannedRow(like[i], param, state, keys)

    def _have_same_layout(self, step: Step, memory: list[Tensor]) -> bool:
        """Whether memory and present gradients have the planned dtypes, sizes and strides."""
        gradients: list[Any] = list(map(GRAD, self._params))
        if not step.all_have_gradients:
            gradients = self._with_stand_ins(gradients)
        # A shortcut: one comparison of all tensors.
        self.gradients_are_as_planned = True
        if self._are_planned(*gradients, *memory):
            return True
        self.gradients_are_as_planned = self._have_planned_layout(*gradients)
        have_kinds = (
            self.gradients_are_as_planned
            or list(map(TensorKind.of, gradients)) == self._gradient_kinds
        )
        return have_kinds and self._guard.have_same_layout(*memory)

    def _with_stand_ins(self, gradients: list[Tensor | None]) -> list[Tensor]:
        """Return the gradients, and tensors of their planned layout where there are none."""
        if not self._stand_ins:
            kinds = zip(self._gradient_kinds, self._gradient_strides, strict=True)
            self._stand_ins = [
                stand_in(param, kind.dtype, stride)
                for param, (kind, stride) in zip(self._params, kinds, strict=True)
            ]
        return [
            like if gradient is None else gradient
            for gradient, like in zip(gradients, self._stand_ins, strict=True)
        ]

    def _moves_to(self, memory: list[Tensor]) -> bool:
        """Have the bundles find other memory of the same layout; return whether they may use it."""
        # Members that no bundle runs may share memory with others, too.
        if self.rest:
            return False
        if self._extents is None:
            self._extents = list(map(extent_of, memory))
        if have_overlap(list(map(Tensor.data_ptr, memory)), self._extents):
            return False
        for bundle in self.bundles:
            bundle.locate()
        self._guard.follow(memory)
        self._stand_ins, self._rows = [], {}  # they have the old memory
        return True


def _is_usual_slot(tensor: Any) -> bool:
    """Whether a plan may have been made with a tensor like this one, as far as its layout does not say it."""
    return isinstance(tensor, Tensor) and (is_sharded(tensor) or has_own_values(tensor))


def fingerprint_of(
    step: Step, members: list[Member], last: StepPlan | None
) -> Fingerprint:
    """Return what a plan depends on, given that of the last step."""
    trees = {}
    for name, tree in step.trees.items():
        trees[name] = {leaf: kind_of_extra(value) for leaf, value in tree.items()}
    of_step = (
        step.scalar_dtypes,
        trees,
        torch.is_inference_mode_enabled(),
        step.scaling is not None,
        step.counts.on_host,
    )
    if last is not None and step.repeats_last and members is last.members:
        return last.fingerprint[0], of_step
    of_members = members, list(map(GROUP_AND_LAYOUT, members)), step.structures
    return of_members, of_step


def kind_of_extra(tensor: Tensor | None) -> TensorKind | None:
    """Return the properties of a leaf's extra that a plan depends on."""
    return None if tensor is None else TensorKind.of(tensor)
