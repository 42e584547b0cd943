"""One step of an optimizer, which reads, checks, computes and writes, in this order.

Here it reads and checks; `StepLeaves` has its leaves, `StepExecution` computes and writes, `StepCounts` counts.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import has_schedule
from gradtx.base import torch_names as _torch
from gradtx.base.exact import CPU
from gradtx.base.messages import describe
from gradtx.base.plain import LAYOUT, STRIDED, are_strided
from gradtx.base.selectors import in_model
from gradtx.base.tree import tensors
from gradtx.distributed.redistribution import gradient_like
from gradtx.execution.execute import FROZEN, prepare
from gradtx.execution.extras import (
    FUNCTIONS,
    check_extras,
    check_extras_of,
    is_by_leaf,
    split_extras,
)
from gradtx.execution.runs import Place
from gradtx.optim.chain_checks import check_scheduler, warn_of_unread_rate
from gradtx.optim.core import Core
from gradtx.optim.device_counts import Scaling, check_capture
from gradtx.optim.engine.overlap import check_tables
from gradtx.optim.group_agreement import check_groups
from gradtx.optim.groups import GroupSettings, Values
from gradtx.optim.listed import LISTED, ListedMember, listed_states
from gradtx.optim.ranks import Intent, hand_over_loaded
from gradtx.optim.run import (
    GRADIENT,
    PARAM,
    Extras,
    Member,
    OptimizerRun,
    clock_after,
    leaf_of,
)
from gradtx.optim.step_counts import LastCounts, StepCounts
from gradtx.optim.step_execution import StepExecution
from gradtx.optim.step_leaves import StepLeaves, check_fits
from gradtx.plans.bundle import is_on_accelerator
from gradtx.plans.hyperparameters import Structure
from gradtx.state.layout import State

CALL = "step(closure"
STRUCTURE = operator.attrgetter("structure")
NONES = itertools.repeat(None)
HAS_MOVED_IN = operator.attrgetter("has_moved_in")


class Step:
    """One step. The constructor runs all checks and prepares the state; `apply` computes and writes.

    Args:
        core: The core of the optimizer.
        extras: The caller's inputs other than gradients.
        scaling: What a GradScaler asks for.
        consumes: Whether each gradient is freed as soon as it is used.

    Attributes:
        core: The core of the optimizer.
        extras: The inputs other than gradients, of the caller or of its closure.
        device: The device of the first parameter.
        rows: The parameters with slots, of which those with a gradient step: the rows of plans.
        members: The parameters that step; of those with a sparse gradient, the listed rows.
        listed: These rows.
        all_have_gradients: Whether all rows have gradients.
        repeats_last: Whether states and groups are unchanged since the last step, which had the same rows.
        have_gradients: Which of all parameters had gradients when it began.
        groups: The settings of the parameter groups.
        by_param: All parameters of the optimizer.
        every: These, in order.
        rows_of_groups: These, by group.
        values: The values of each group.
        takes_none: Whether a link also processes parameters without a gradient, in this step.
        structures: The static part of each group's hyperparameters.
        hyperparameters: Those of each group that are arguments of programs, in the order of the structure.
        scalars: The extras that all leaves share.
        scalar_dtypes: The dtypes of those that are tensors.
        trees: The extras by leaf.
        counts: Its counts, and who counts.
        made_run: Its run, once anything has asked for it.
    """

    counts: StepCounts

    run_type = OptimizerRun
    begins_with_all = True  # whether all gradients are there when it begins
    made_run: OptimizerRun | None = None
    listed: Sequence[ListedMember] = ()
    _leaves: StepLeaves | None = None
    _has_sparse = False

    def __init__(
        self,
        core: Core,
        extras: Extras,
        scaling: Scaling | None,
        consumes: bool = False,
    ):
        members, traits = core.members, core.traits
        if traits.exchanges:
            _check_exchanges(core, scaling)
        self.core = core
        self.extras = extras
        self.scaling = scaling
        self.consumes = consumes
        self.groups = members.groups
        self.by_param = members.by_param
        self.device = next(iter(self.by_param)).device if self.by_param else CPU
        self.scalars: Extras = {}
        self.scalar_dtypes: dict[str, torch.dtype] = {}
        self.trees: dict[str, dict[str, Any]] = {}
        if extras or traits.needs_extras:
            self._split_extras()
        self.rows_of_groups = members.rows()
        self.every = members.every
        # Everything that can be checked is checked before anything changes.
        self.values: list[Values] = list(map(GroupSettings.values, self.groups))
        changed: list[tuple[GroupSettings, Values]] = []
        for settings, values in zip(self.groups, self.values, strict=True):
            if values is not settings.settled:
                changed.append((settings, values))
                self._notice_scheduler(settings, values)
        if core.may_lack_rate:
            core.may_lack_rate = warn_of_unread_rate(self._who, self.groups)
        self.have_gradients = self._read(self.every)
        # A step without any gradient changes nothing; without clocks, there is nothing that it could change.
        self._is_idle = bool(traits.takes_none or traits.clocks) and self._trains_none()
        self.takes_none = traits.takes_none and not self._is_idle
        can_be_captured = self.device.type not in _torch.NEVER_CAPTURED
        if can_be_captured and _torch.is_captured(self.device):
            check_capture(core, self.every)
        for settings, values in changed:
            settings.settle(values)
        self.structures: list[Structure] = list(map(STRUCTURE, self.groups))
        self.hyperparameters: list[list[Any]] = []
        creates_together = traits.owners_keep_slots and members.are_sharded
        if creates_together and self.begins_with_all:
            self._compare()
        # A shortcut: all parameters with gradients have the slots that their groups need.
        last_counts = core.last_counts
        rows = last_counts.complete_rows(self) if last_counts is not None else None
        self.repeats_last = rows is not None
        self.rows = self._completed() if rows is None else rows
        self.members, self.all_have_gradients = self.rows, True
        if self.rows is not self.every or not all(self.have_gradients):
            self.members, self.all_have_gradients = self._stepping()
        self.counts = StepCounts(core, self.every, self.device, scaling)
        for settings in self.groups:
            self.hyperparameters.append(settings.hyperparameters(self._schedule_count))
        if self._has_sparse and self.begins_with_all:
            self.members = self._with_listed(self.members)
        if traits.checks_extras:
            check_extras_of(self.leaves.without_values(self.members))

    @property
    def _who(self) -> str:
        return self.core.members.who

    @property
    def run(self) -> OptimizerRun:
        """Provides operations with old values and collects new ones; many programs need none."""
        if self.made_run is None:
            self.made_run = self._new_run()
        return self.made_run

    @property
    def leaves(self) -> StepLeaves:
        """The parameters as leaves of the run."""
        if self._leaves is None:
            count = self.counts.updates
            self._leaves = StepLeaves(
                self.run, self.core, self.values, count, self.scaling, self.device
            )
        return self._leaves

    def rehearsal(self) -> StepLeaves:
        """Return the leaves with a run of their own, so that they can run without any effect."""
        return self.leaves.rehearsal(self._new_run())

    def _new_run(self) -> OptimizerRun:
        core = self.core
        states: Mapping[Any, State] = core.states.by_param
        if self.listed:
            states = listed_states(states, self.listed)
        run = self.run_type(states, self.by_param, initial=False)
        run.functions = self.extras
        run.team = core.members.replicas
        run.known_extras = core.traits.known_extras
        run.leaf_extras, run.call_extras = self.trees, self.scalars
        if self.trees:  # a rule may return one of them unchanged
            run.memory.register(tensors(self.trees))
        return run

    def _trains_none(self) -> bool:
        """Whether no parameter has a gradient that it may follow."""
        is_frozen = self.core.members.is_frozen
        return all(
            member.param.grad is None or is_frozen(member) for member in self.every
        )

    def _notice_scheduler(self, settings: GroupSettings, values: Values) -> None:
        """Notice the scheduler of a trainer's wrapper when it replaces a schedule by a number."""
        core = self.core
        if "lr" not in settings.shown or core.expects_scheduler:
            return
        if not has_schedule(values["lr"]):
            core.expects_scheduler = check_scheduler(self._who, [settings])

    def _completed(self) -> list[Member]:
        """Return the members with slots, after creating those that are missing; their owners get what was loaded."""
        groups = list(zip(self.groups, self.rows_of_groups, strict=True))
        # New states take the shared values of others: first those that the user has moved to another parameter.
        for settings, row in groups:
            moved = list(filter(HAS_MOVED_IN, row))
            if moved:
                self._complete(settings, moved)
        for settings, row in groups:
            self._complete(settings, row)
        rows = self._with_slots()
        if self.core.traits.owners_keep_slots:
            takes_none = self.takes_none
            hand_over_loaded(
                [x for x in rows if takes_none or x.param.grad is not None]
            )
        return rows if len(rows) < len(self.every) else self.every

    def _split_extras(self) -> None:
        """Check the extras, and split them into 0-d values and trees by leaf."""
        extras = self.extras
        kinds = check_extras(self.core.members.tx, True, extras, CALL)
        names: list[str] = []
        kinds_of_values = map(kinds.__getitem__, extras.keys() - FUNCTIONS.keys())
        if any(map(is_by_leaf, kinds_of_values)):
            names = self.core.members.names()
            for key, value in extras.items():
                if is_by_leaf(kinds[key]):
                    extras[key] = _by_name(key, value, names)
        self.scalars, self.trees = split_extras(extras, kinds, dict.fromkeys(names))
        for name, value in self.scalars.items():
            if isinstance(value, Tensor):
                self.scalar_dtypes[name] = value.dtype

    def _read(self, members: list[Member]) -> list[bool]:
        """Look up the state and count of members, check gradients and slots, and return which have a gradient."""
        states = self.core.states.by_param
        gradients = list(map(GRADIENT, members))
        have_gradients = list(map(operator.is_not, gradients, NONES))
        present = gradients
        if not all(have_gradients):
            present = itertools.compress(gradients, have_gradients)
        if not STRIDED.issuperset(map(LAYOUT, present)):
            self._has_sparse = True
        last_counts = self.core.last_counts
        if last_counts is not None and last_counts.hold(members, states):
            return have_gradients
        self.core.last_counts = None
        for member in members:
            state = member.state = states.get(member.param, {})
            if state and not member.layout.keys <= state.keys():
                self.core.states.refit(member)
                state = member.state
            try:
                member.count = member.count_in(state)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(
                    f"{self._who}: state of parameter {member.name!r}: 'step' must be a number of steps, got "
                    f"{describe(state['step'])}"
                ) from error
        return have_gradients

    def _with_listed(self, members: list[Member]) -> list[Member]:
        """Let the rows that sparse gradients list step in place of their parameters, and return all that step."""
        core = self.core
        tables = [x for x in members if _is_sparse(x.param.grad)]
        if tables:
            _check_sparse(core, self.device)
            check_fits(core, tables)
            self._check_memory(members, tables)
        listed = []
        for table in tables:
            outline = core.members.outline(self.groups[table.group])
            leaf = leaf_of(outline.run, table, clock_after(0))
            operations = outline.route.for_leaf(leaf)
            if operations != [FROZEN]:
                listed.append(ListedMember.of(self._who, table, operations))
        in_place_of = {id(member.table): member for member in listed}
        self.listed = listed
        for extra, tree in self.trees.items():
            of_rows = {x.name: x.rows_of(tree[x.name]) for x in listed}
            self.trees[extra] = {**tree, **of_rows}
        if self.made_run is not None:
            self.made_run.state = listed_states(core.states.by_param, listed)
        return [in_place_of.get(id(x), x) for x in members]

    def _check_memory(self, members: list[Member], tables: list[Member]) -> None:
        """Check that parameters with sparse gradients share no memory, unless all that step are where they were."""
        if len(members) > 1:
            addresses = list(map(Tensor.data_ptr, map(PARAM, members)))
            present = addresses, list(map(id, tables))
            if present != self.core.disjoint:
                check_tables(self._who, members, tables)
                self.core.disjoint = present

    def _with_slots(self) -> list[Member]:
        return [x for x in self.every if x.state and x.layout.keys]

    def _stepping(self) -> tuple[list[Member], bool]:
        """Return the rows that step, and whether all have gradients."""
        rows, have_gradients = self.rows, self.have_gradients
        if rows is not self.every or not self.begins_with_all:
            have_gradients = list(map(operator.is_not, map(GRADIENT, rows), NONES))
        if all(have_gradients):
            return rows, True
        if self.takes_none:
            return rows, False
        return list(itertools.compress(rows, have_gradients)), False

    def _complete(self, settings: GroupSettings, row: list[Member]) -> None:
        """Create or update the slots of parameters that are about to step, to match their group's links."""
        structure, takes_none = settings.structure, self.takes_none
        params: list[Tensor] = []
        for member in row:
            if member.made_for is structure and member.state:
                continue
            param = member.param
            steps = param.grad is not None or (takes_none and param.requires_grad)
            if steps or member.has_moved_in:
                params.append(param)
        if params:
            self.core.last_counts = None
            self.core.states.create(settings, params)

    @functools.cached_property
    def host_knows_scalars(self) -> bool:
        """Whether counts, numbers and shared extras are all on the host, and it may read them."""
        scalars = itertools.chain(*self.hyperparameters, self.scalars.values())
        return self.counts.on_host and not any(map(is_on_accelerator, scalars))

    # Computing.

    def apply(self) -> None:
        """Compute the step and write its results."""
        core, traits = self.core, self.core.traits
        if traits.prepares:
            self._estimate()
        bundles, alone = self._planned()
        execution = StepExecution(self)
        if core.watch is not None:
            execution.observer = core.watch.begin(self)
        execution.run(bundles, alone)
        core.listed = self.listed
        if core.watch is not None:
            core.watch.end()
        if core.traits.clocks or self.made_run is not None:
            self._end_run()
        self.counts.end()
        last_counts = None
        if not self.counts.are_replaced:
            last_counts = core.last_counts
            if last_counts is None:
                last_counts = LastCounts.of(self.every, core.states.by_param)
            if last_counts is not None:
                last_counts.note(self)
        core.last_counts = last_counts
        if traits.calls_again:
            core.alone = [member.name for member in alone]
            core.ways = self.run.ways
        for settings in self.groups:
            if settings.shown:
                settings.show(self.counts.shown)

    def is_skipped(self) -> bool:
        """Whether the step changes nothing: without gradients, or for a GradScaler, for which the host waits."""
        scaling = self.scaling
        return self._is_idle or (scaling is not None and not bool(scaling.proceed))

    def is_counted(self) -> bool:
        """Whether any clock counts this step, as far as that is known before leaves run; True without a clock."""
        if not self.core.traits.clocks:
            return True
        ticks = self.rehearsal().run.ticks.values()
        return not ticks or any(map(bool, ticks))

    def _end_run(self) -> None:
        """Let combinators end the step, and write new shared values."""
        core = self.core
        run = self.made_run or self.run
        if self._is_idle:
            run.commits.clear()
        has_idle_clock = not core.traits.clocks <= run.new_shared.keys()
        if run.late_sums or (has_idle_clock and not self._is_idle):
            # Combinators decide whether the sums take effect, and count steps without any of their leaves.
            self.leaves.expanded()
        if run.late_sums or run.commits or run.stores:
            run.end()
        if run.new_shared:
            core.states.write_shared(run, self.core.capturable)

    def _estimate(self) -> None:
        """Let links call the closure, which may call `zero_grad()`, before anything is processed."""
        gradients = [member.param.grad for member in self.members]
        prepare(self.leaves.without_values(self.members))
        for member, gradient in zip(self.members, gradients, strict=True):
            member.param.grad = gradient

    def _align_gradients(self, members: Iterable[Member]) -> None:
        """Give gradients the placements of their parameters, which programs assume."""
        for member in members:
            if member.param.grad is not None:
                member.param.grad = gradient_like(member.param.grad, member.param)

    def _planned(self) -> tuple[list[Any], list[Member]]:
        """Return the bundles of the step, and the members that step one at a time."""
        core, traits = self.core, self.core.traits
        bundles: list[Any] = []
        rest = self.rows if self.members else []
        listed: list[Any] = list(self.listed)
        if listed:
            tables = {id(member.table) for member in self.listed}
            rest = [member for member in rest if id(member) not in tables]
        if core.members.are_divided and not core.agreement.is_done:
            self._compare()
        if core.members.are_sharded:  # after the comparison: ranks communicate here
            self._align_gradients(self.members)
        if not (traits.calls_again or (traits.exchanges and self._exchanges())):
            for engine in core.back_ends:
                if rest:
                    of_engine, rest = engine.bundles(self, rest)
                    bundles += of_engine
                elif not self.members or listed:
                    engine.note_idle_step()
                if listed or LISTED in engine.plans:
                    of_engine, listed = engine.listed_bundles(self, listed)
                    bundles += of_engine
        alone = rest if self.all_have_gradients else self._alone(bundles, rest)
        alone = [*alone, *listed]
        if traits.agree and len(self.groups) > 1:
            self._check_groups()
        if alone:
            self.leaves.expanded()  # an error must precede what bundles write
        return bundles, alone

    def _alone(self, bundles: list[Any], rest: list[Member]) -> list[Member]:
        """Return the members that step one at a time, except listed rows, given the rows that no bundle runs."""
        if not self.takes_none:
            return [member for member in rest if member.param.grad is not None]
        elsewhere = {id(member) for bundle in bundles for member in bundle.stepping}
        elsewhere.update(map(id, self.listed))
        return [member for member in self.members if id(member) not in elsewhere]

    def _compare(self) -> None:
        """Compare the step with those of the other ranks that take part in the optimizer."""
        gradients = [member.param.grad is not None for member in self.every]
        stepping = self.every
        if not self.takes_none:
            stepping = list(itertools.compress(self.every, gradients))
        fingerprint = self.every, gradients, self.structures
        intent = Intent(
            stepping, self.groups, self.values, self.hyperparameters, fingerprint
        )
        self.core.agreement.check(intent, self.core.members)

    def _exchanges(self) -> bool:
        """Whether ranks exchange tensors in this step, in which no engine runs."""
        routes = self.leaves.expanded().values()
        return any(route.traits().exchanges for route in routes)

    def _check_groups(self) -> None:
        check_groups(self.core, self.values, self.rows_of_groups, self.counts.updates)

    def _schedule_count(self, place: Place) -> int | Tensor:
        """Return the count that a hyperparameter's schedule follows."""
        core, count = self.core, self.counts.updates
        if not core.traits.clocks:
            return count
        path = core.members.clock_path(place)
        if path is None:
            return count
        if core.members.traits.restarts_inner:  # the count may restart in this step
            self.leaves.expanded()
            step = self.run.inner_counts[path]
        else:
            step = self.run.scalars(path).get("step", 0)
        return step if isinstance(count, Tensor) else int(step)


def _is_sparse(gradient: Tensor | None) -> bool:
    return gradient is not None and not are_strided([gradient])


def _check_sparse(core: Core, device: torch.device) -> None:
    """Check that parameters of an optimizer may have sparse gradients.

    Raises:
        RuntimeError: If they may not.
    """
    fault = ""
    if core.traits.calls_again or core.traits.prepares:
        fault = "the chain calls the closure at other weights, where other rows may have gradients"
    elif core.traits.exchanges:
        fault = "outer(process_group=...) exchanges all rows"
    elif device.type not in _torch.NEVER_CAPTURED and _torch.is_captured(device):
        fault = "the number of their rows, which the host reads, may differ in each step of a CUDA graph"
    if fault:
        raise RuntimeError(
            f"{core.members.who}: sparse gradients cannot be used here: {fault}; omit sparse=True in nn.Embedding"
        )


def _check_exchanges(core: Core, scaling: Scaling | None) -> None:
    """Check that all ranks step at the same time, each with its own gradients."""
    fault = None
    if scaling is not None:
        fault = "a GradScaler, which skips steps of single ranks; train in bfloat16"
    elif core.members.replicas is not None:
        fault = "the optimizer's process_group, whose ranks have equal gradients; omit one of them"
    if fault is not None:
        raise RuntimeError(
            f"{core.members.who}: outer(process_group=...) cannot be combined with {fault}"
        )


def _by_name(extra: str, values: Any, names: list[str]) -> Any:
    """Convert an extra to a dict by name: from a list in parameter order, or from names with those of wrappers."""
    if isinstance(values, tuple | list):
        if len(values) != len(names):
            raise ValueError(
                f"{extra}: needs one tensor per parameter, got {len(values)} tensors for {len(names)} parameters"
            )
        return dict(zip(names, values, strict=True))
    if isinstance(values, dict):
        bare = in_model(map(str, values))
        if set(bare) == set(names):
            return dict(zip(bare, values.values(), strict=True))
    return values
