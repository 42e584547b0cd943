"""The plan of a step: bundles that write parameters and slots in place, as long as these are where they were."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import MemoryGuard
from gradtx.optim.engine.overlap import extent_of, have_overlap
from gradtx.optim.run import Member, TensorKind
from gradtx.optim.step import COUNT, STATE, Step
from gradtx.plans.plan import Plan

GRADIENT = operator.attrgetter("grad")
ARE_STILL_EQUAL = operator.methodcaller("slots_are_still_equal")
GROUP_AND_LAYOUT = operator.attrgetter("group", "layout")

# What a plan depends on, except gradients and the addresses of tensors: of the members, and of the step.
Fingerprint: TypeAlias = tuple[Any, Any]


class StepPlan(Plan[Any]):
    """The bundles of a step, and the parameters that step eagerly.

    Args:
        fingerprint: Identifies the requests that the plan is for; see `fingerprint_of`.
        members: The parameters that step.
        bundles: Those that programs run.
        rest: The others.
        tasks: The bundles as tasks.

    Attributes:
        reasons: Why the engine does not run some of them, by name.
        needs_run: Whether bundles read or hand over values by the run of a step.
        has_moved: Whether the memory of the present step is not that of the last one.
        gradients_are_as_planned: Whether the gradients of the present step have the types and layouts of those for
            which the plan was made; otherwise only the same dtypes and shapes.
    """

    def __init__(
        self,
        fingerprint: Fingerprint,
        members: list[Member],
        bundles: list[Any],
        rest: list[Member],
        tasks: list[Any],
    ):
        self.fingerprint = fingerprint
        self.bundles = bundles
        self.tasks = tasks
        self.rest = rest
        self.reasons: dict[str, str] = {}
        self.gradients_are_as_planned = True
        self.members = members
        self._states = [member.state for member in members]
        self._params = [member.param for member in members]
        gradients = list(map(GRADIENT, self._params))
        self._gradient_forms = list(map(form_of, gradients))
        # Links that process parameters without a gradient accept None, for which there is no such check.
        self._have_planned_layout: Callable[..., bool] | None = None
        have_gradients = all(isinstance(gradient, Tensor) for gradient in gradients)
        if have_gradients:
            self._have_planned_layout = _torch.layout_check(gradients)
        # The slots that programs write; eager steps replace theirs.
        self._slot_states: list[dict[str, Any]] = []
        self._slot_keys: list[str] = []
        self._with_equal_slots = [
            bundle for bundle in bundles if bundle.signature.equal
        ]
        for bundle in bundles:
            for member in bundle.members:
                for key in bundle.signature.slots:
                    self._slot_states.append(member.state)
                    self._slot_keys.append(key)
        self.has_moved = False
        self._extents: list[int] | None = None
        self.needs_run = any(bundle.needs_run() for bundle in bundles)
        self._tensors = self._present_tensors()
        self._guard = MemoryGuard(self._tensors)
        # Of gradients and all other tensors together.
        self._are_planned: Callable[..., bool] | None = None
        if have_gradients:
            self._are_planned = _torch.layout_check([*gradients, *self._guard.memory])

    def _present_tensors(self) -> list[Tensor]:
        return [
            *self._params,
            *map(operator.getitem, self._slot_states, self._slot_keys),
        ]

    def is_of(self, by_param: Mapping[Tensor, Member]) -> bool:
        """Whether all of its tensors are still those of the parameters of an optimizer."""
        are_members = all(
            by_param.get(member.param) is member for member in self.members
        )
        if not are_members or any(
            map(operator.is_not, map(STATE, self.members), self._states)
        ):
            return False
        present = self._present_tensors()
        are_same = all(map(operator.is_, present, self._tensors))
        return are_same and self._guard.holds(present)

    def matches(self, fingerprint: Any, members: list[Member]) -> bool:
        """Whether the input is the same, and parameters and slots are the same tensors, of the same sizes and strides.

        If their memory has been replaced, as by `param.data = ...`, bundles find it again.
        """
        self.has_moved = False
        if fingerprint != self.fingerprint or any(
            map(operator.is_not, map(STATE, members), self._states)
        ):
            return False
        present = self._present_tensors()
        if not all(map(operator.is_, present, self._tensors)):
            return False
        memory = self._guard.memory_of(present)
        if memory is None or not self._have_same_layout(memory):
            return False
        if self._guard.have_moved(memory):
            return self._moves_to(memory)
        return all(map(ARE_STILL_EQUAL, self._with_equal_slots))

    def _have_same_layout(self, memory: list[Tensor]) -> bool:
        """Whether memory and present gradients have the planned dtypes, sizes and strides."""
        gradients = list(map(GRADIENT, self._params))
        # A shortcut: one comparison of all tensors.
        are_planned = self._are_planned
        self.gradients_are_as_planned = True
        if are_planned is not None and are_planned(*gradients, *memory):
            return True
        self.gradients_are_as_planned = (
            self._have_planned_layout is not None
            and self._have_planned_layout(*gradients)
        )
        have_forms = (
            self.gradients_are_as_planned
            or list(map(form_of, gradients)) == self._gradient_forms
        )
        return have_forms and self._guard.have_same_layout(*memory)

    def _moves_to(self, memory: list[Tensor]) -> bool:
        """Have the bundles find other memory of the same layout; return whether they may use it."""
        # Members that no bundle runs may share memory with others, too.
        if self.rest or not all(map(ARE_STILL_EQUAL, self._with_equal_slots)):
            return False
        if self._extents is None:
            self._extents = list(map(extent_of, memory))
        if have_overlap(list(map(Tensor.data_ptr, memory)), self._extents):
            return False
        for bundle in self.bundles:
            bundle.locate()
        self._guard.follow(memory)
        self.has_moved = True
        return True


def fingerprint_of(
    step: Step, members: list[Member], last: StepPlan | None
) -> Fingerprint:
    """Return what a plan depends on, given that of the last step."""
    trees = {}
    for name, tree in step.trees.items():
        trees[name] = {leaf: form_of(value) for leaf, value in tree.items()}
    of_step = (
        step.scalar_dtypes,
        trees,
        torch.is_inference_mode_enabled(),
        step.scaling is not None,
        step.on_host,
    )
    if last is not None and step.continues and members is last.members:
        return last.fingerprint[0], of_step
    counts = list(map(COUNT, members))
    # Of counts, only which members have equal ones.
    last_with_count = dict(zip(counts, range(len(counts)), strict=True))
    of_members = (
        members,
        list(map(GROUP_AND_LAYOUT, members)),
        list(map(last_with_count.__getitem__, counts)),
        step.structures,
    )
    return of_members, of_step


def form_of(tensor: Tensor | None) -> TensorKind | None:
    """Return the properties of a leaf's gradient or extra that a plan depends on."""
    return None if tensor is None else TensorKind.of(tensor)
