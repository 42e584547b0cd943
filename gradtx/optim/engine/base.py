"""Sort the leaves of a step into bundles, and reuse this plan as long as it is valid."""

from __future__ import annotations

import logging
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.ambient import SWITCH
from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import MemoryGuard, is_sharded, local
from gradtx.base.messages import warn_user
from gradtx.base.plain import LAYOUT, STRIDED, TYPES
from gradtx.execution.execute import FROZEN, Leaf, Operation
from gradtx.execution.owners import OwnedRegion
from gradtx.optim.engine.family import MemberFamily
from gradtx.optim.engine.known_kinds import KnownKinds, tensors_of
from gradtx.optim.engine.views import (
    OddTensorError,
    RefusedError,
    alias,
    holds_its_values,
    is_positional,
)
from gradtx.optim.explain import Launch
from gradtx.optim.run import DeviceCount, Member, TensorKind
from gradtx.optim.step import COUNT, STATE, Step
from gradtx.plans.families import LeafKind, forms_of, in_families
from gradtx.plans.function import Signature

GRADIENT = operator.attrgetter("grad")
ARE_STILL_EQUAL = operator.methodcaller("slots_are_still_equal")
GROUP_AND_LAYOUT = operator.attrgetter("group", "layout")


class Plan:
    """The bundles of a step, and the parameters that step eagerly.

    Args:
        fingerprint: Identifies the requests that the plan is for; see `_fingerprint_of`.
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


# What a plan depends on, except gradients and the addresses of tensors: of the members, and of the step.
Fingerprint: TypeAlias = tuple[Any, Any]


def _fingerprint_of(
    step: Step, members: list[Member], last: Plan | None
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


class Span(NamedTuple):
    """The memory of a tensor: device, address of the first byte, address after the last byte, id of its member."""

    device: str
    start: int
    end: int
    owner: int


def overlapping(members: Iterable[Member]) -> set[int]:
    """Return the ids of members with overlapping tensors, whose writes must be visible to one another."""
    shared = set()
    reach: Span | None = None  # the span with the highest end so far
    for span in sorted(_spans(members)):
        if reach is not None and span.device == reach.device and span.start < reach.end:
            shared.update((reach.owner, span.owner))
        if reach is None or span.device != reach.device or span.end > reach.end:
            reach = span
    return shared


def _spans(members: Iterable[Member]) -> list[Span]:
    spans = []
    of_form: dict[Any, tuple[str, int] | None] = {}
    for member in members:
        for tensor in tensors_of(member):
            if not isinstance(tensor, Tensor):  # of a known member that does not step
                continue
            tensor = local(tensor)
            form = tensor.device, tensor.dtype, tensor.shape, tensor.stride()
            if form not in of_form:
                of_form[form] = _device_and_bytes(tensor)
            known = of_form[form]
            if known is not None:
                device, size = known
                start = tensor.data_ptr()
                spans.append(Span(device, start, start + size, id(member)))
    return spans


def _device_and_bytes(tensor: Tensor) -> tuple[str, int] | None:
    """Return the device of a tensor and the bytes from its first to its last entry; None if it has no memory."""
    if not tensor.numel() or tensor.device.type == "meta":
        return None
    return str(tensor.device), extent_of(tensor)


def _form_of_member(member: Member) -> Any:
    """Return what the kind of a member depends on, within one step; None if only its leaf tells.

    Members of one form differ in the memory of their tensors alone.
    """
    step: Any = member.state.get("step")
    tensors = [*tensors_of(member), member.param.grad]
    if not TYPES.issuperset(map(type, (*tensors, step))):
        return None
    if not STRIDED.issuperset(map(LAYOUT, tensors)):
        return None
    return (
        (member.group, id(member.layout), id(member.kinds), step.is_inference()),
        tuple(member.choices.items()),
        *map(_form_of_tensor, tensors),
    )


def _form_of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    return (
        type(tensor),
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
        tensor.is_inference(),
        holds_its_values(tensor),
    )


def extent_of(tensor: Tensor) -> int:
    """Return the bytes from the first to the last entry of a tensor."""
    if not tensor.numel():
        return 0
    last = 0
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        last += (size - 1) * stride
    return (last + 1) * tensor.element_size()


def have_overlap(addresses: list[int], extents: list[int]) -> bool:
    """Whether spans of memory overlap, given their first addresses, if all were on one device."""
    starts, ends = [], []
    for start, extent in sorted(zip(addresses, extents, strict=True)):
        starts.append(start)
        ends.append(start + extent)
    return any(map(operator.gt, ends, starts[1:]))


# More than the gradients of two or three tasks in turn, or of an alternating schedule, have.
KEPT_PLANS = 4
logger = logging.getLogger("gradtx")
READS_SHAPE = "a rule reads the shape of its leaf"
SUM_OVER_SHARDS = "it is sharded, and a sum over leaves must include all shards"
PARTS_OF_ROWS = "it is sharded, and a rank has only a part of its rows"
REDUCES_SHARD = (
    "it is sharded, and a reduction over a shard differs from one over the whole tensor"
)


class Engine(ABC):
    """A back end of an optimizer: it runs steps through programs that its subclasses build.

    Each optimizer needs an engine of its own. A copy of an engine has no programs yet.

    Attributes:
        way: How this engine runs parameters, for `optimizer.explain()`.
        skips_work: Whether its programs skip work that is not due, if the host knows all scalars.
        is_taken: Whether it was given to an optimizer.
        plans: The plan of the last step (None), and of the last step of each parameter whose gradient was released.
        failed: Whether the engine has given up and accepts no leaves.
        reasons: Why the engine does not run a leaf, by leaf name.
        consequence: The consequence of giving up, for a warning.
    """

    way: str
    skips_work = False
    is_taken = False
    consequence: str

    def __init__(self) -> None:
        self.plans: dict[Member | None, Plan] = {}
        # Of whole steps, the last one first: which parameters have gradients may return.
        self._kept: list[Plan] = []
        self._known = KnownKinds()
        self.failed = False
        self.reasons: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def bundles(
        self,
        step: Step,
        members: list[Member],
        released: Member | None = None,
    ) -> tuple[list[Any], list[Member]]:
        """Return the bundles of a step as tasks, ready to run, and the members that are not in them.

        None are in bundles where a mode observes operations: it sees those of each leaf. The plan of a `released`
        member, the only one of a step, is kept separately from that of whole steps.
        """
        if self.failed or SWITCH.is_on or _torch.is_intercepted():
            return [], members
        if not members:
            return [], members
        plan = self.plans.get(released)
        fingerprint = _fingerprint_of(step, members, plan)
        if plan is not None and not plan.matches(fingerprint, members):
            plan = None
        if plan is None and released is None:
            plan = self._returning(fingerprint, members)
        if plan is None and not self.runs_on(step.device):
            return [], members
        known: dict[Member, LeafKind] = {}
        alike: list[list[Member]] = []
        leaves: list[Leaf] = []
        if plan is None:
            known = self._known_kinds(members, step)
            alike = self._sorted(
                [member for member in members if member not in known], step
            )
            # Raises for invalid steps, as without an engine.
            leaves = step.outlines([first for first, *_ in alike])
        try:
            if plan is not None and plan.has_moved:
                self._forget_replaced(step.by_param, plan)
            if plan is None:
                if released is None:
                    self.reasons = {}
                known |= self._new_kinds(alike, leaves, step)
                plan = self._make_plan(fingerprint, members, known, leaves, step)
                plan.reasons = self.reasons
                if released is None:
                    self._keep(plan, step.by_param)
            begin(plan, step)
        except Exception as error:
            # A bug in gradtx: training continues, but the traceback is logged.
            self._give_up(error)
            return [], members
        self.plans[released] = plan
        return plan.tasks, plan.rest

    def _returning(self, fingerprint: Any, members: list[Member]) -> Plan | None:
        """Return the kept plan of an earlier step that had the same input."""
        for i, plan in enumerate(self._kept):
            if plan.matches(fingerprint, members):
                self._kept.insert(0, self._kept.pop(i))
                plan.members = members
                self.reasons = plan.reasons
                return plan
        return None

    def _keep(self, plan: Plan, by_param: Mapping[Tensor, Member]) -> None:
        """Keep a plan for steps that return to it, and drop those whose tensors have been replaced."""
        self._forget_replaced(by_param)
        self._kept = [plan, *self._kept[: KEPT_PLANS - 1]]

    def _forget_replaced(
        self, by_param: Mapping[Tensor, Member], present: Plan | None = None
    ) -> None:
        """Drop plans, other than the present one, with tensors or memory that parameters no longer have."""
        self._kept = [
            kept for kept in self._kept if kept is present or kept.is_of(by_param)
        ]

    def forget(self) -> None:
        """Drop all plans, which hold parameters and slots."""
        self.plans.clear()
        self._kept.clear()
        self._known = KnownKinds()

    def _give_up(self, error: BaseException) -> None:
        self.failed = True
        self.forget()
        logger.error(self.consequence, exc_info=error)
        reason = next(iter(str(error).strip().splitlines()), "")
        warn_user(
            f"{self.consequence}: {type(error).__name__}: {reason}", RuntimeWarning
        )

    # Methods of subclasses.

    def runs_on(self, device: torch.device) -> bool:
        """Whether the engine takes leaves on a device."""
        return True

    def tasks(self, bundles: list[Any]) -> list[Any]:
        """Return the tasks of a step, given its bundles, of which some may run together."""
        return bundles

    def launches(self, task: Any) -> list[Launch]:
        """Return the kernels that a step of a task launches, for `optimizer.explain()`, if the engine writes them."""
        return []

    @abstractmethod
    def bundled(self, family: MemberFamily) -> list[Any]:
        """Return the bundles of a family; it may leave out leaves."""

    # Planning.

    def _make_plan(
        self,
        fingerprint: Any,
        members: list[Member],
        kinds: dict[Member, LeafKind],
        leaves: list[Leaf],
        step: Step,
    ) -> Plan:
        """Make a plan from the kinds of the members that this engine runs; some have leaves."""
        leaf_of = {leaf.key: leaf for leaf in leaves}

        def first(kind: LeafKind, member: Member) -> MemberFamily:
            leaf = leaf_of.get(member) or step.outlines([member])[0]
            return MemberFamily.first(kind, member, leaf, step)

        families = in_families(
            (
                ((member.group, member.count), kinds[member], member)
                for member in members
                if member in kinds
            ),
            first,
        )
        bundles = []
        for family in families:
            bundles.extend(self.bundled(family))
        in_bundles = {id(member) for bundle in bundles for member in bundle.members}
        rest = [member for member in members if id(member) not in in_bundles]
        return Plan(fingerprint, members, bundles, rest, self.tasks(bundles))

    def _known_kinds(self, members: list[Member], step: Step) -> dict[Member, LeafKind]:
        """Return the kinds that are known, of members that share no memory with new ones."""
        known = self._known.of(members, step)
        if len(known) < len(members):
            # Known members that do not step now may step later.
            self._known.forget(overlapping({*members, *self._known.members()}))
        return {member: kind for member, kind in known.items() if member in self._known}

    def _sorted(self, members: list[Member], step: Step) -> list[list[Member]]:
        """Sort members of which nothing is known, so that one leaf tells the kind of all that are alike."""
        if step.trees:
            return [[member] for member in members]
        of_form: dict[Any, list[Member]] = {}
        for member in members:
            form: Any = member
            if id(member) not in self._known.overlapping:
                form = _form_of_member(member) or member
            of_form.setdefault(form, []).append(member)
        alike: list[list[Member]] = []
        for of_one_form in of_form.values():
            first, *others = of_one_form
            # Otherwise the step fits the slots of each to its parameter.
            if others and first.present_kinds() != first.kinds:
                alike.extend([member] for member in of_one_form)
            else:
                alike.append(of_one_form)
        return alike

    def _new_kinds(
        self, alike: list[list[Member]], leaves: list[Leaf], step: Step
    ) -> dict[Member, LeafKind]:
        """Return the kinds of members that this engine runs, and keep them for the next plan.

        Args:
            alike: The members, sorted.
            leaves: The leaf of the first of each list.
            step: The step.
        """
        kinds: dict[Member, LeafKind] = {}
        for members, leaf in zip(alike, leaves, strict=True):
            shares_memory = id(leaf.key) in self._known.overlapping
            try:
                kind = self.leaf_kind(leaf.key, leaf, step, shares_memory)
            except RefusedError as refusal:
                self._refuse(members, str(refusal))
            else:
                kinds.update(dict.fromkeys(members, kind))
        self._known.keep(kinds)
        return kinds

    def leaf_kind(
        self, member: Member, leaf: Leaf, step: Step, shares: bool
    ) -> LeafKind:
        """Return the kind of a leaf.

        Raises:
            RefusedError: If this engine does not run the leaf.
        """
        param = member.param
        if not self.runs_on(local(param).device):
            raise RefusedError("")
        if shares:
            raise RefusedError("it shares memory with another parameter")
        if param.grad is None or FROZEN in leaf.operations:
            raise RefusedError("it has no gradient of matching shape, or it is frozen")
        flat = _is_flat(leaf)
        sharded = is_sharded(param)
        if sharded:
            if is_positional(leaf.operations):
                raise RefusedError(
                    "a link needs the positions of its entries in the whole tensor"
                )
            self.check_shard(leaf, flat)
        self._check(leaf, step)
        written = _aliases(leaf, flat)
        by_leaf = [
            name for name, tree in step.trees.items() if tree[leaf.name] is not None
        ]
        read = [
            param.grad,
            *(step.trees[name][leaf.name] for name in by_leaf),
        ]
        return LeafKind(
            layout=leaf.layout.label,
            written=forms_of(written),
            # Sizes are those of the parameter.
            read=tuple((tensor.dtype.to_real(), tensor.device) for tensor in read),
            choices=tuple(sorted(member.choices.items())),
            flat=flat,
            by_leaf=tuple(by_leaf),
            sharded=sharded,
        )

    def _check(self, leaf: Leaf, step: Step) -> None:
        """Check that programs may run all operations of a leaf.

        Raises:
            RefusedError: If they may not.
        """
        skips_work = self.skips_work and step.host_knows_scalars
        for operation in leaf.operations:
            if not operation.has_program(leaf, skips_work):
                stage = ".".join(operation.path)
                logger.debug("%s has no program", stage)
                raise RefusedError(f"{stage} has no program")

    def check_shard(self, leaf: Leaf, flat: bool) -> None:
        """Check that programs may run a shard.

        Raises:
            RefusedError: If its entries may depend on other shards.
        """
        if any(map(_sums_over_shards, leaf.operations)):
            raise RefusedError(SUM_OVER_SHARDS)
        if not flat:
            raise RefusedError(REDUCES_SHARD)

    def _refuse(self, members: list[Member], reason: str) -> None:
        """Leave leaves to the next engine; an empty reason is none that users would care about."""
        if reason:
            self.reasons.update({member.name: reason for member in members})


def begin(plan: Plan, step: Step) -> None:
    """Pass each bundle its arguments for a step; bundles with the same scalars get the same list."""
    scalars: dict[Any, list[Any]] = {}
    run = step.run if plan.needs_run else None
    for bundle in plan.bundles:
        member = bundle.members[0]
        # Bundles whose equal slots had the same values when the plan was made may have other values by now.
        shared = bundle if bundle.signature.equal else bundle.signature
        key = member.group, member.count, id(shared)
        if key not in scalars:
            scalars[key] = _scalars_of(member, bundle.signature, step)
        bundle.begin(run, scalars[key], step.on_host)
        bundle.consumes = step.consumes
        bundle.are_as_planned = plan.gradients_are_as_planned
        if bundle.signature.has_owners:
            bundle.set_leaves(step.leaves_of(bundle.members))


def _scalars_of(member: Member, signature: Signature, step: Step) -> list[Any]:
    """Return the scalars that the leaves of a bundle share, in the order of `Signature`."""
    count = member.count
    scalars = [
        count.made + 1 if isinstance(count, DeviceCount) else count + 1,
        step.count,
    ]
    if step.scaling is not None:
        scalars.extend(step.scaling.on(local(member.param).device))
    scalars.extend(step.hyperparameters[member.group])
    for path, name in signature.shared:
        scalars.append(step.run.scalars(path)[name])
    # Now: a bundle writes them at its end.
    for key in signature.equal:
        scalars.append(member.state[key].item())
    for name in signature.scalars:
        value: Any = step.scalars[name]
        if step.on_host and isinstance(value, Tensor) and value.device.type == "cpu":
            value = value.item()
        scalars.append(value)
    return scalars


def _sums_over_shards(operation: Operation) -> bool:
    """Whether an operation sums entries of a leaf, for this step or the next."""
    if isinstance(operation, OwnedRegion):  # its sums are those of the whole leaf
        return False
    return operation.traits.has_sums or operation.traits.of_leaf


def _is_flat(leaf: Leaf) -> bool:
    """Whether a leaf may be passed as a vector: all rules are elementwise, slots are 0-d or shaped like the leaf."""
    for operation in leaf.operations:
        if not operation.traits.elementwise:
            return False
    return slots_are_shaped_as(leaf)


def slots_are_shaped_as(leaf: Leaf) -> bool:
    """Whether every slot is 0-d or shaped like its parameter."""
    layout, param = leaf.layout, leaf.key.param
    if not layout.is_flat(as_real(local(param)).shape):
        # Even if a scale has the parameter's shape, since blocks are incomplete.
        return False
    shape = as_real(param).shape
    for key, codec in layout.coded_keys.items():
        if leaf.state[key].shape != codec.shapes(shape)[""]:
            return False
    coded = layout.coded_tensors
    return all(
        key in coded or leaf.state[key].shape in (param.shape, ())
        for key in layout.program_keys
    )


def _aliases(leaf: Leaf, flat: bool) -> list[Tensor]:
    """Return aliases of a parameter and its slots, which programs write: inference tensors only in inference mode.

    Raises:
        OddTensorError: If a program cannot use or write them.
    """
    param, state = leaf.key.param, leaf.state
    tensors = [alias(param, param, flat)]
    for key in leaf.layout.program_keys:
        tensors.append(alias(state[key], param, flat))
    written = [*tensors, state["step"]]
    if any(map(Tensor.is_inference, written)) and not torch.is_inference_mode_enabled():
        raise OddTensorError
    return tensors
