"""Sort the leaves of a step into bundles, and reuse this plan as long as it is valid."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.ambient import SWITCH
from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import is_sharded, local
from gradtx.base.messages import warn_user
from gradtx.base.plain import LAYOUT, STRIDED, TYPES, holds_its_values
from gradtx.base.recent import Recent
from gradtx.execution.execute import FROZEN, Leaf, Operation
from gradtx.execution.owners import OwnedRegion, has_regions
from gradtx.optim.engine.family import MemberFamily
from gradtx.optim.engine.listed_plan import ListedPlan, listed_fingerprint
from gradtx.optim.engine.overlap import overlapping, tensors_of
from gradtx.optim.engine.step_plan import StepPlan, fingerprint_of
from gradtx.optim.engine.views import (
    OddTensorError,
    RefusedError,
    alias,
    is_positional,
)
from gradtx.optim.explain import Launch
from gradtx.optim.listed import LISTED, ListedMember
from gradtx.optim.outline import Outline
from gradtx.optim.run import DeviceCount, Member
from gradtx.optim.step import Step
from gradtx.plans.bundle import entries_of_a_call
from gradtx.plans.function import Signature
from gradtx.plans.plan import LeafKind, dtypes_and_devices, planned


def _kind_of_member(member: Member) -> Any:
    """Return what the kind of a member depends on, within one step; None if only its leaf tells.

    Members of one kind differ in the memory of their tensors alone.
    """
    step: Any = member.state.get("step")
    tensors = [*tensors_of(member), member.likely_gradient()]
    if not TYPES.issuperset(map(type, (*tensors, step))):
        return None
    if not STRIDED.issuperset(map(LAYOUT, tensors)):
        return None
    return (
        (member.group, id(member.layout), id(member.kinds), step.is_inference()),
        tuple(member.choices.items()),
        *map(_kind_of_tensor, tensors),
    )


def _kind_of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    return (
        type(tensor),
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
        tensor.is_inference(),
        holds_its_values(tensor),
    )


logger = logging.getLogger("gradtx")
MOST_ROWS = 2**14  # of the plans that one structure keeps for other optimizers
READS_SHAPE = "a rule reads the shape of its leaf"
SUM_OVER_SHARDS = "it is sharded, and a sum over leaves must include all shards"
PARTS_OF_ROWS = "it is sharded, and a rank has only a part of its rows"
OTHER_PROGRAMS = "the number of its rows is another one in each step, and a sum behind its rules counts them"
REDUCES_SHARD = (
    "it is sharded, and a reduction over a shard differs from one over the whole tensor"
)


class Precedents(NamedTuple):
    """The plans of optimizers with equal chains, without tensors.

    Attributes:
        plans: Those for one structure.
        key: What this optimizer's plan depends on, apart from the layouts of tensors.
        outlines: The chains of the groups.
        objects: The other objects whose ids are in the key.
    """

    plans: Recent[Any, Any]
    key: Any
    outlines: list[Outline]
    objects: list[Any]

    @classmethod
    def of(
        cls, of_engine: Any, members: list[Member], outlines: list[Outline]
    ) -> Precedents:
        """Return those for members, and chains of their groups that optimizers share."""
        objects: list[Any] = []
        for member in members:
            objects += (member.layout, member.kinds)
        groups = tuple(member.group for member in members)
        ids = *map(id, outlines), *map(id, objects)
        return cls(outlines[0].plans, (of_engine, groups, ids), outlines, objects)

    def plan(self, members: list[Member], fingerprint: Any) -> StepPlan | None:
        """Return the plan for members, if others like them had one."""
        precedent = self.plans.get(self.key)
        return (
            None if precedent is None else precedent[0].of_others(members, fingerprint)
        )

    def note(self, plan: StepPlan) -> None:
        """Note a plan for others, if their members have the same objects as these."""
        for member in plan.members:
            first = self.outlines[member.group].first_state(member.param)
            if first is None or first.kinds is not member.kinds:
                return
        without_tensors = plan.without_tensors()
        if without_tensors is not None:
            precedent = without_tensors, self.outlines, self.objects
            self.plans.put(self.key, precedent, size=len(plan.members), most=MOST_ROWS)


class Engine(ABC):
    """A back end of an optimizer: it runs steps through programs that its subclasses build.

    Each optimizer needs an engine of its own. A copy of an engine has no programs yet.

    Attributes:
        way: How this engine runs parameters, for `optimizer.explain()`.
        skips_work: Whether its programs skip work that is not due, if the host knows all scalars.
        is_taken: Whether it was given to an optimizer.
        plans: The plan of the last step (None), of the rows that sparse gradients listed in it (`LISTED`), and of the
            last step of each parameter whose gradient was released.
        failed: Whether the engine has given up and accepts no leaves.
        reasons: Why the engine does not run a leaf, by leaf name.
        consequence: The consequence of giving up, for a warning.
    """

    way: str
    skips_work = False
    is_taken = False
    consequence: str

    def __init__(self) -> None:
        self.plans: dict[Member | str | None, Any] = {}
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

        Args:
            step: The step.
            members: Parameters with slots, of which some may have no gradient.
            released: As above.
        """
        if not members or self._is_off():
            return [], members
        plan = self.plans.get(released)
        fingerprint = fingerprint_of(step, members, plan)
        if plan is not None and not plan.matches(fingerprint, step, members):
            plan = None
        if plan is None and not self.runs_on(step.device):
            return [], members
        precedents = None if plan is not None else self._precedents(step, members)
        if precedents is not None:
            plan = self._after_precedent(precedents, members, fingerprint)
            if self.failed:
                return [], members
        alike: list[list[Member]] = []
        leaves: list[Leaf] = []
        overlaps: set[int] = set()
        if plan is None:
            overlaps = overlapping(members)
            alike = self._sorted(members, step, overlaps)
            # Raises for invalid steps, as without an engine.
            leaves = step.leaves.outlines([first for first, *_ in alike])
        try:
            if plan is None:
                if released is None:
                    self.reasons = {}
                kinds = self._kinds(alike, leaves, step, overlaps)
                plan = self._make_plan(fingerprint, members, kinds, leaves, step)
                plan.reasons = self.reasons
                if precedents is not None:
                    precedents.note(plan)
            self._begin(plan, step)
        except Exception as error:
            # A bug in gradtx: training continues, but the traceback is logged.
            self._give_up(error)
            return [], members
        self.plans[released] = plan
        plan.members = members
        return plan.tasks, plan.rest

    def listed_bundles(
        self, step: Step, members: list[ListedMember]
    ) -> tuple[list[Any], list[Any]]:
        """Return, as `bundles` does, those of the rows that sparse gradients list; without any, drop their plan."""
        last: Any = self.plans.pop(LISTED, None)
        if not members or self._is_off() or not self.runs_on(step.device):
            return [], members
        alone = [member for member in members if not member.has_program]
        self._refuse(alone, OTHER_PROGRAMS)
        planned = [member for member in members if member.has_program]
        plan = self._listed_plan(step, planned, last) if planned else None
        if plan is None:
            return [], members
        self.plans[LISTED] = plan
        return plan.tasks, [*plan.rest, *alone]

    def _listed_plan(
        self, step: Step, members: list[ListedMember], last: ListedPlan | None
    ) -> ListedPlan | None:
        """Return the plan of listed rows, ready to run, given that of the last step; None if the engine gives up."""
        fingerprint = listed_fingerprint(step, members)
        plan: ListedPlan | None = None
        leaves: list[Leaf] = []
        if last is None or last.fingerprint != fingerprint:
            last = None
            leaves = step.leaves.outlines(members)  # raises for invalid steps
        try:
            if last is not None:
                plan = last.of_others(members)
            if plan is None:
                leaves = leaves or step.leaves.outlines(members)
                alike: list[list[Member]] = [[member] for member in members]
                kinds = self._kinds(alike, leaves, step, set())
                bundles, rest = self._sorted_into_bundles(members, kinds, leaves, step)
                plan = ListedPlan(fingerprint, members, bundles, rest)
                plan.reasons = self.reasons
            self._begin(plan, step)
        except Exception as error:
            return self._give_up(error)
        return plan

    def _is_off(self) -> bool:
        """Whether leaves are to run one at a time."""
        return self.failed or SWITCH.is_on or _torch.is_intercepted()

    def note_idle_step(self) -> None:
        """Note a step in which no parameter steps."""
        plan = self.plans.get(None)
        if plan is not None:
            plan.taking_part, plan.tasks, plan.absent = [], [], plan.rest

    def forget(self) -> None:
        """Drop all plans, which hold parameters and slots."""
        self.plans.clear()

    def release_states(self) -> None:
        """Let go of all slots; the plan of whole steps takes others of the same layout in the next step."""
        self.plans = {key: plan for key, plan in self.plans.items() if key is None}
        for plan in self.plans.values():
            plan.release_states()

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
    ) -> StepPlan:
        """Make a plan from the kinds of the members that this engine runs; some have leaves."""
        bundles, rest = self._sorted_into_bundles(members, kinds, leaves, step)
        return StepPlan(fingerprint, members, bundles, rest)

    def _sorted_into_bundles(
        self,
        members: Sequence[Member],
        kinds: dict[Member, LeafKind],
        leaves: list[Leaf],
        step: Step,
    ) -> tuple[list[Any], list[Any]]:
        """Return the bundles of members, and those in no bundle."""
        leaf_of = {leaf.key: leaf for leaf in leaves}

        def first(kind: LeafKind, member: Member) -> MemberFamily:
            leaf = leaf_of.get(member) or step.leaves.outlines([member])[0]
            return MemberFamily.first(kind, member, leaf, step)

        keyed = (
            (step.structures[member.group], kinds[member], member)
            for member in members
            if member in kinds
        )
        bundles = planned(keyed, first, self.bundled)
        in_bundles = {id(member) for bundle in bundles for member in bundle.members}
        rest = [member for member in members if id(member) not in in_bundles]
        return bundles, rest

    def _precedents(self, step: Step, members: list[Member]) -> Precedents | None:
        """Return what optimizers with equal chains have planned; None if the plan depends on more than layouts."""
        core, groups = step.core, step.core.members
        needs_step = core.traits.exchanges or groups.traits.restarts_inner
        if needs_step or step.trees or step.scaling is not None or groups.are_divided:
            return None
        outlines = list(map(groups.outline, step.groups))
        # While gradients are released, groups may change after the step has begun.
        structures = [outline.structure for outline in outlines]
        are_shared = all(outline.is_shared for outline in outlines)
        if not are_shared or structures != step.structures:
            return None
        extras = [
            (name, step.scalar_dtypes.get(name), value is None)
            for name, value in step.scalars.items()
        ]
        of_call = entries_of_a_call(step.device), torch.is_inference_mode_enabled()
        on_host = step.counts.on_host, step.host_knows_scalars
        of_engine = type(self), of_call, on_host, tuple(extras)
        return Precedents.of(of_engine, members, outlines)

    def _after_precedent(
        self, precedents: Precedents, members: list[Member], fingerprint: Any
    ) -> StepPlan | None:
        """Return the plan of members if others like them had one."""
        try:
            return precedents.plan(members, fingerprint)
        except Exception as error:  # a bug in gradtx, too
            return self._give_up(error)

    def _sorted(
        self, members: list[Member], step: Step, overlaps: set[int]
    ) -> list[list[Member]]:
        """Sort members so that one leaf tells the kind of all that are alike."""
        if step.trees:
            return [[member] for member in members]
        of_kind: dict[Any, list[Member]] = {}
        for member in members:
            kind: Any = member
            if id(member) not in overlaps:
                kind = _kind_of_member(member) or member
            of_kind.setdefault(kind, []).append(member)
        alike: list[list[Member]] = []
        for of_one_kind in of_kind.values():
            first, *others = of_one_kind
            # Otherwise the step fits the slots of each to its parameter.
            if others and first.present_kinds() != first.kinds:
                alike.extend([member] for member in of_one_kind)
            else:
                alike.append(of_one_kind)
        return alike

    def _kinds(
        self,
        alike: list[list[Member]],
        leaves: list[Leaf],
        step: Step,
        overlaps: set[int],
    ) -> dict[Member, LeafKind]:
        """Return the kinds of members that this engine runs.

        Args:
            alike: The members, sorted.
            leaves: The leaf of the first of each list.
            step: The step.
            overlaps: The ids of members that share memory.
        """
        kinds: dict[Member, LeafKind] = {}
        for members, leaf in zip(alike, leaves, strict=True):
            try:
                kind = self.leaf_kind(leaf.key, leaf, step, id(leaf.key) in overlaps)
            except RefusedError as refusal:
                self._refuse(members, str(refusal))
            else:
                kinds.update(dict.fromkeys(members, kind))
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
        if FROZEN in leaf.operations:
            raise RefusedError("it is frozen")
        # It may be passed as a vector.
        are_elementwise = all(op.traits.elementwise for op in leaf.operations)
        flat, strided = are_elementwise and slots_are_shaped_as(leaf), False
        sharded = is_sharded(param)
        if sharded:
            if is_positional(leaf.operations):
                raise RefusedError(
                    "a link needs the positions of its entries in the whole tensor"
                )
            self.check_shard(leaf, flat)
        self._check(leaf, step)
        try:
            written = _aliases(leaf, flat)
        except OddTensorError:
            if not flat or sharded or _needs_vectors(leaf):
                raise
            flat, strided = False, True
            written = _aliases(leaf, flat)
        by_leaf = [
            name for name, tree in step.trees.items() if tree[leaf.name] is not None
        ]
        read = [
            member.likely_gradient(),
            *(step.trees[name][leaf.name] for name in by_leaf),
        ]
        return LeafKind(
            layout=leaf.layout.label,
            written=dtypes_and_devices(written),
            # Sizes are those of the parameter.
            read=tuple((tensor.dtype.to_real(), tensor.device) for tensor in read),
            choices=tuple(sorted(member.choices.items())),
            flat=flat,
            strided=strided,
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
            reason = operation.refusal(leaf, skips_work)
            if reason:
                stage = ".".join(operation.path)
                logger.debug("%s has no program: %s", stage, reason)
                raise RefusedError(f"{stage} has no program: {reason}")

    def check_shard(self, leaf: Leaf, flat: bool) -> None:
        """Check that programs may run a shard.

        Raises:
            RefusedError: If its entries may depend on other shards.
        """
        if any(map(_sums_over_shards, leaf.operations)):
            raise RefusedError(SUM_OVER_SHARDS)
        if not flat:
            raise RefusedError(REDUCES_SHARD)

    def _begin(self, plan: StepPlan | ListedPlan, step: Step) -> None:
        """Pass each bundle its arguments for a step, and note the tasks: a bundle without gradients has none."""
        # Those that all rows of a group take, for all bundles of a family.
        of_group: dict[Any, tuple[list[Any], list[Any]]] = {}
        run = step.run if plan.needs_run else None
        taking_part: list[Any] = []
        for bundle in plan.bundles:
            rows, set_of_row = bundle.sets_of_rows(step.all_have_gradients)
            sets: list[list[Any]] = []
            for member in map(bundle.members.__getitem__, rows):
                key = id(bundle.signature), member.group
                if key not in of_group:
                    of_group[key] = _scalars_of_group(bundle.signature, member, step)
                before, after = of_group[key]
                count: Any = member.count
                made = count.made if isinstance(count, DeviceCount) else count
                scalars = [made + 1, *before]
                for (
                    slot
                ) in bundle.signature.equal:  # now: a bundle writes them at its end
                    scalars.append(member.state[slot].item())
                sets.append(scalars + after)
            if not sets:
                continue
            bundle.begin(run, sets, step.counts.on_host, set_of_row)
            bundle.consumes = step.consumes
            bundle.are_as_planned = plan.gradients_are_as_planned
            if bundle.signature.has_owners:
                bundle.set_leaves(step.leaves.without_values(bundle.stepping))
            taking_part.append(bundle)
        if plan.taking_part != taking_part:
            plan.taking_part, plan.tasks = taking_part, self.tasks(taking_part)
        plan.absent = []
        if not step.all_have_gradients:
            plan.absent = [x for x in plan.rest if x.param.grad is None]

    def _refuse(self, members: Sequence[Member], reason: str) -> None:
        """Leave leaves to the next engine; an empty reason is none that users would care about."""
        if reason:
            self.reasons.update({member.name: reason for member in members})


def _scalars_of_group(
    signature: Signature, member: Member, step: Step
) -> tuple[list[Any], list[Any]]:
    """Return the scalars that all rows of a group take, before and after equal slots, in the order of `Signature`.

    The count of a row comes before them.

    Args:
        signature: The arguments of the program.
        member: A row.
        step: The step.
    """
    before: list[Any] = [step.counts.updates]
    if step.scaling is not None:
        before.extend(step.scaling.on(local(member.param).device))
    before.extend(step.hyperparameters[member.group])
    for path, name in signature.shared:
        before.append(step.run.scalars(path)[name])
    after: list[Any] = []
    for name in signature.scalars:
        value: Any = step.scalars[name]
        if (
            step.counts.on_host
            and isinstance(value, Tensor)
            and value.device.type == "cpu"
        ):
            value = value.item()
        after.append(value)
    return before, after


def _sums_over_shards(operation: Operation) -> bool:
    """Whether an operation sums entries of a leaf, for this step or the next."""
    if isinstance(operation, OwnedRegion):  # its sums are those of the whole leaf
        return False
    return operation.traits.has_sums or operation.traits.of_leaf


def slots_are_shaped_as(leaf: Leaf) -> bool:
    """Whether every slot is 0-d or shaped like its parameter."""
    layout, param = leaf.layout, leaf.key.param
    own_shape, shape = as_real(local(param)).shape, as_real(param).shape
    for key, codec in layout.coded_keys.items():
        # Not if blocks are incomplete, even if a scale has the parameter's shape.
        if not codec.fills_rows(own_shape):
            return False
        if leaf.state[key].shape != codec.shapes(shape)[""]:
            return False
    coded = layout.coded_tensors
    return all(
        key in coded or leaf.state[key].shape in (param.shape, ())
        for key in layout.program_keys
    )


def _needs_vectors(leaf: Leaf) -> bool:
    """Whether programs take only flat aliases, in which the entries of codes and positions are consecutive."""
    return bool(leaf.layout.codes) or is_positional(leaf.operations)


def _aliases(leaf: Leaf, flat: bool) -> list[Tensor]:
    """Return aliases of a parameter and its slots, which programs write: inference tensors only in inference mode.

    Raises:
        OddTensorError: If a program cannot use or write them.
    """
    param, state = leaf.key.param, leaf.state
    tensors = [alias(param, param, flat)]
    for key in leaf.layout.program_keys:
        tensors.append(alias(state[key], param, flat))
    needs_order = not flat and (is_sharded(param) or has_regions(leaf.operations))
    if needs_order and not all(map(Tensor.is_contiguous, tensors)):
        raise OddTensorError
    written = [*tensors, state["step"]]
    if any(map(Tensor.is_inference, written)) and not torch.is_inference_mode_enabled():
        raise OddTensorError
    return tensors
