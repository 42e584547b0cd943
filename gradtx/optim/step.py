"""One step of an optimizer, which reads, checks, computes and writes, in this order."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import has_schedule
from gradtx.base import torch_names as _torch
from gradtx.base.ambient import SWITCH, note_program
from gradtx.base.dtensor import is_sharded
from gradtx.base.errors import Path
from gradtx.base.exact import CPU, python_scalar
from gradtx.base.messages import describe
from gradtx.base.plain import LAYOUT, STRIDED
from gradtx.base.random_streams import RandomStreams
from gradtx.base.selectors import in_model
from gradtx.base.tree import tensors
from gradtx.distributed.collectives import Relay
from gradtx.distributed.redistribution import gradient_like
from gradtx.execution.context import Clock
from gradtx.execution.execute import (
    FROZEN,
    Leaf,
    Observer,
    Operation,
    Route,
    execute,
    prepare,
)
from gradtx.execution.extras import (
    FUNCTIONS,
    add_extras,
    check_extras,
    check_extras_of,
    is_by_leaf,
    split_extras,
)
from gradtx.execution.owners import with_regions
from gradtx.execution.runs import Place
from gradtx.optim.chain_checks import check_scheduler, warn_of_unread_rate
from gradtx.optim.core import Core
from gradtx.optim.device_counts import (
    Scaling,
    check_capture,
    keep_counts_in_place,
    move_counts,
    unscaling,
)
from gradtx.optim.gradients import likely_gradient
from gradtx.optim.groups import (
    UNSEEN,
    GroupSettings,
    Values,
    are_floats,
    are_identical,
    has_any,
    is_same,
)
from gradtx.optim.missed import MissedUpdates
from gradtx.optim.ranks import Intent, hand_over_loaded
from gradtx.optim.run import (
    COUNT,
    FLOAT32_COUNTS,
    GRADIENT,
    STEP,
    DeviceCount,
    Extras,
    KnownCounts,
    Member,
    OptimizerRun,
    Trees,
    as_step,
    clock_after,
    leaf_of,
    missed_in,
)
from gradtx.plans.bundle import is_on_accelerator
from gradtx.plans.hyperparameters import Structure, each_item

CALL = "step(closure"
STATE = operator.attrgetter("state")
STRUCTURE = operator.attrgetter("structure")
NONES = itertools.repeat(None)
FLOAT32_EPS = torch.finfo(torch.float32).eps


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
        tick: The increment that the step adds to counts.
        count: The number of finished updates, in which any parameter had a gradient: schedules follow it.
        rows: The parameters with slots, of which those with a gradient step: the rows of plans.
        members: The parameters that step.
        all_have_gradients: Whether all rows have gradients.
        continues: Whether states and groups are unchanged since the last step, which had the same rows.
        have_gradients: Which of all parameters had gradients when it began.
        groups: The settings of the parameter groups.
        by_param: All parameters of the optimizer.
        structures: The static part of each group's hyperparameters.
        hyperparameters: Those of each group that are arguments of programs, in the order of the structure.
        scalars: The extras that all leaves share.
        scalar_dtypes: The dtypes of those that are tensors.
        trees: The extras by leaf.
        on_host: Whether the host may read counts and numbers.
    """

    count: int | Tensor

    tick: int | Tensor = 1
    run_type = OptimizerRun
    begins_with_all = True  # whether all gradients are there when it begins
    _has_eager = False
    _has_counted = False
    _run: OptimizerRun | None = None
    _observer: Observer | None = None  # sees leaves that run alone
    # On first use: the expanded chain for each group and device, and the clock of each count.
    _routes: dict[tuple[int, torch.device], Route] | None = None
    _clocks: dict[int | DeviceCount, Clock] | None = None

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
        self.trees: Trees = {}
        if extras or traits.needs_extras:
            self._split_extras()
        self._rows = members.rows()
        self._every = members.every
        # Everything that can be checked is checked before anything changes.
        self._values: list[Values] = list(map(GroupSettings.values, self.groups))
        changed: list[tuple[GroupSettings, Values]] = []
        for settings, values in zip(self.groups, self._values, strict=True):
            if values is not settings.settled:
                changed.append((settings, values))
                self._notice_scheduler(settings, values)
        if core.may_lack_rate:
            core.may_lack_rate = warn_of_unread_rate(self._who, self.groups)
        self.have_gradients = self._read(self._every)
        # A step without any gradient changes nothing; without clocks, there is nothing that it could change.
        self._is_idle = bool(traits.takes_none or traits.clocks) and self._trains_none()
        self._takes_none = traits.takes_none and not self._is_idle
        can_be_captured = self.device.type not in _torch.NEVER_CAPTURED
        if can_be_captured and _torch.is_captured(self.device):
            check_capture(core, self._every)
        for settings, values in changed:
            settings.settle(values)
        self.structures: list[Structure] = list(map(STRUCTURE, self.groups))
        self.hyperparameters: list[list[Any]] = []
        creates_together = traits.owners_keep_slots and members.are_sharded
        if creates_together and self.begins_with_all:
            self._compare()
        # A shortcut: all parameters with gradients have the slots that their groups need.
        known = core.known_counts
        rows = known.complete_rows(self) if known is not None else None
        self.continues = rows is not None
        self.rows = self._completed() if rows is None else rows
        self.members, self.all_have_gradients = self.rows, True
        if self.rows is not self._every or not all(self.have_gradients):
            self.members, self.all_have_gradients = self._stepping()
        self._count(core)
        for settings in self.groups:
            self.hyperparameters.append(settings.hyperparameters(self._schedule_count))
        if traits.checks_extras:
            check_extras_of(self.leaves_of(self.members))

    @property
    def _who(self) -> str:
        return self.core.members.who

    @property
    def run(self) -> OptimizerRun:
        """Provides operations with old values and collects new ones; many programs need none."""
        if self._run is not None:
            return self._run
        core = self.core
        states = core.states.by_param
        run = self._run = self.run_type(states, self.by_param, initial=False)
        run.functions = self.extras
        run.known_extras = core.traits.known_extras
        run.leaf_extras, run.call_extras = self.trees, self.scalars
        if self.trees:  # a rule may return one of them unchanged
            run.memory.register(tensors(self.trees))
        return run

    def _trains_none(self) -> bool:
        """Whether no parameter has a gradient that it may follow."""
        is_frozen = self.core.members.is_frozen
        return all(
            member.param.grad is None or is_frozen(member) for member in self._every
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
        for settings, row in zip(self.groups, self._rows, strict=True):
            self._complete(settings, row)
        rows = self._with_slots()
        if self.core.traits.owners_keep_slots:
            takes_none = self._takes_none
            hand_over_loaded(
                [x for x in rows if takes_none or x.param.grad is not None]
            )
        return rows if len(rows) < len(self._every) else self._every

    def _count(self, core: Core) -> None:
        """Decide whether the device counts, and compute the counts after the step."""
        known, scaling = core.known_counts, self.scaling
        may_count_on_device = scaling is not None or core.capturable
        on_device = may_count_on_device and not core.counts_on_host()
        self.on_host = not on_device and scaling is None
        # For each count on the device, the count after the step.
        self._after: dict[Any, DeviceCount] = {}
        device, largest = CPU, None
        if on_device:
            move_counts(self._every, self.device)
            device, largest = self.device, self._largest_on_device()
        elif known is not None:
            largest = known.largest
        if largest is None:
            if DeviceCount in map(type, map(COUNT, self._every)):
                move_counts(self._every, None)
            largest = max(map(COUNT, self._every), default=0)
        if not on_device and largest >= FLOAT32_COUNTS:
            self._keep_exact()
        self._largest: int | Tensor = largest
        states = map(STATE, self._every)
        missed = missed_in(states) if known is None else known.missed
        # Schedules follow the updates before this step.
        self.count = largest
        self._missed: MissedUpdates | None = None
        if on_device or missed is not None:
            is_stored = known is not None and known.all_have_missed
            self._missed = MissedUpdates(
                self._every, missed, device, largest, is_stored
            )
            self.count = self._missed.before

    def _largest_on_device(self) -> Tensor:
        """Compute the counts after the step, and return the largest count before it."""
        device = self.device
        if self.scaling is not None:
            _, self.tick = self.scaling.on(device)
        # Parameters without state have a count on the host.
        counts = self._counts_on_device()
        self._after = {count: count.after(self.tick) for count in counts}
        if not counts:
            return torch.zeros((), dtype=torch.int64, device=device)
        if max(count.bound for count in counts) >= FLOAT32_COUNTS:
            self._keep_exact()
        return torch.stack([count.made for count in counts]).amax()

    def _counts_on_device(self) -> list[DeviceCount]:
        """Return the counts on the device, as they are in the states."""
        steps: dict[DeviceCount, Any] = {}
        for member in self._every:
            if isinstance(member.count, DeviceCount):
                steps.setdefault(member.count, member.state["step"])
        for count, step in steps.items():
            count.follow(step)
        return list(steps)

    def _keep_exact(self) -> None:
        """Store counts that float32 may not hold after this step in float64."""
        if _torch.is_captured(self.device):  # state keeps its memory
            return
        for member in self._every:
            step = member.state.get("step")
            if isinstance(step, Tensor) and step.dtype != torch.float64:
                member.state["step"] = as_step(member.count, torch.float64)
                member.set_count(member.count)
                self.core.known_counts = None

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
            self._check_dense(members)
        known = self.core.known_counts
        if known is not None and known.hold(members, states):
            return have_gradients
        self.core.known_counts = None
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

    def _check_dense(self, members: list[Member]) -> None:
        for member in members:
            gradient = member.param.grad
            if gradient is not None and gradient.is_sparse:
                raise RuntimeError(
                    f"{self._who}: parameter {member.name!r} has a sparse gradient, but rules require dense ones; "
                    "omit sparse=True in its nn.Embedding, or set param.grad = param.grad.to_dense() before step()"
                )

    def _check_fits(self, members: list[Member]) -> None:
        """Check that parameters, gradients and slots fit. A valid plan implies this without a look at them."""
        for member in members:
            param, gradient = member.param, member.param.grad
            what = f"{self._who}: parameter {member.name!r}"
            if gradient is not None and gradient.shape != param.shape:
                raise ValueError(
                    f"{what} has shape {tuple(param.shape)}, but its gradient has shape {tuple(gradient.shape)}, as "
                    "from before a change of the parameter; call zero_grad() and backward() again"
                )
            if _has_shared_entries(param):
                raise ValueError(
                    f"{what} has several entries in the same memory, as after expand(), so a step cannot write them; "
                    "copy it: param.data = param.data.clone(memory_format=torch.contiguous_format)"
                )
            is_known = member.present_kinds() == member.kinds
            if not (is_known and isinstance(member.state["step"], Tensor)):
                self.core.states.refit(member)

    def _with_slots(self) -> list[Member]:
        return [x for x in self._every if x.state and x.layout.keys]

    def _stepping(self) -> tuple[list[Member], bool]:
        """Return the rows that step, and whether all have gradients."""
        rows, have_gradients = self.rows, self.have_gradients
        if rows is not self._every or not self.begins_with_all:
            have_gradients = list(map(operator.is_not, map(GRADIENT, rows), NONES))
        if all(have_gradients):
            return rows, True
        if self._takes_none:
            return rows, False
        return list(itertools.compress(rows, have_gradients)), False

    def _complete(self, settings: GroupSettings, row: list[Member]) -> None:
        """Create or update the slots of parameters that are about to step, to match their group's links."""
        structure, takes_none = settings.structure, self._takes_none
        params: list[Tensor] = []
        for member in row:
            if member.made_for is structure and member.state:
                continue
            param = member.param
            steps = param.grad is not None or (takes_none and param.requires_grad)
            if steps or member.has_moved_in:
                params.append(param)
        if params:
            self.core.known_counts = None
            self.core.states.create(settings, params)

    @functools.cached_property
    def host_knows_scalars(self) -> bool:
        """Whether counts, numbers and shared extras are all on the host, and it may read them."""
        scalars = itertools.chain(*self.hyperparameters, self.scalars.values())
        return self.on_host and not any(map(is_on_accelerator, scalars))

    # Leaves.

    def leaves_of(self, members: list[Member]) -> list[Leaf]:
        """Return leaves without values: these could be float32 copies of all weights and gradients."""
        gradients = [member.param.grad for member in members]
        return self._without_values(members, gradients, self._route)

    def outlines(self, members: list[Member]) -> list[Leaf]:
        """Like `leaves_of`, for plans: as if all had gradients.

        Their operations need not be those of this step, if they tell as much.
        """
        traits, known = self.core.traits, self.core.members
        route_of = self._route
        if not (
            self.scaling is not None or traits.exchanges or known.traits.restarts_inner
        ):

            def route_of(member: Member) -> Route:
                return known.outline(self.groups[member.group])

        gradients = list(map(likely_gradient, members))
        return self._without_values(members, gradients, route_of)

    def _without_values(
        self,
        members: list[Member],
        gradients: list[Any],
        route_of: Callable[[Member], Route],
    ) -> list[Leaf]:
        self._check_fits(members)
        leaves: list[Leaf] = []
        for member, gradient in zip(members, gradients, strict=True):
            leaf = self._leaf(member, gradient, route_of)
            leaf.release()
            leaves.append(leaf)
        return leaves

    def _expanded(self) -> dict[tuple[int, torch.device], Route]:
        """Return the chain as the operations of each group and device, expanded on first use."""
        if self._routes is not None:
            return self._routes
        routes: dict[tuple[int, torch.device], Route] = {}
        scaling = self.scaling
        around = None if scaling is None else unscaling(self.run, scaling)
        for group, (settings, values) in enumerate(
            zip(self.groups, self._values, strict=True)
        ):
            devices = {member.param.device for member in self._rows[group]}
            for device in devices or {self.device}:
                chain = settings.chain(values, device)
                route = Route.of(chain, self.run, self.count, around)
                routes[group, device] = route
        self._routes = routes
        return routes

    def _route(self, member: Member) -> Route:
        """Return the operations of this step."""
        routes = self._expanded()
        return routes[member.group, member.param.device]

    def _leaf(
        self, member: Member, gradient: Any, route_of: Callable[[Member], Route]
    ) -> Leaf:
        route = route_of(member)
        if self._clocks is None:
            self._clocks = {}
        clock = self._clocks.get(member.count)
        if clock is None:
            clock = self._clocks[member.count] = clock_after(member.count)
        # Not written to the parameter: its gradient may have a graph, from which the Hessian is estimated.
        gradient = gradient_like(gradient, member.param)
        leaf = leaf_of(self.run, member, clock, gradient, self.scalars)
        if self.trees:
            add_extras(leaf, self.trees)
        operations = route.for_leaf(leaf)
        leaf.operations = with_regions(
            operations, member.param, self.core.members.replicas
        )
        return leaf

    # Computing.

    def apply(self) -> None:
        """Compute the step and write its results."""
        core = self.core
        if core.traits.prepares:
            self._estimate()
        bundles, eager = self._planned()
        if core.watch is not None:
            self._observer = core.watch.begin(self)
        self._advance(bundles, eager)
        if core.watch is not None:
            core.watch.end()
        if core.traits.clocks or self._run is not None:
            self._end_run(self.run)
        after = list(map(COUNT, self._every))
        self._note_missed(after)
        if self.core.capturable:
            keep_counts_in_place(core.members.by_param.values(), self._after)
        if self._has_eager:  # those have new tensors
            core.known_counts = None
        else:
            known = core.known_counts
            if known is None:
                known = KnownCounts.of(self._every, core.states.by_param)
                core.known_counts = known
            if known is not None:
                known.note(self)
        for settings in self.groups:
            if settings.shown:
                settings.show(self._known_count)

    def _rehearsal(self) -> Step:
        """Return a copy of this step with a run of its own, so that its leaves can run without any effect."""
        rehearsal = copy(self)
        rehearsal._run = rehearsal._routes = rehearsal._clocks = None
        if self.core.traits.prepares:
            rehearsal.run.estimates = self.run.estimates
        streams = RandomStreams()  # clocks of users may draw
        rehearsal._expanded()
        streams.restore()
        return rehearsal

    def _can_rehearse_first(self, eager: list[Member]) -> bool:
        """Whether the leaves of bundles can run once more before these, and so without holding memory beside them.

        They need the sums of the step itself if other leaves add to these, or if sums need messages.
        """
        members = self.core.members
        return not (eager or members.are_divided) and not any(
            is_sharded(member.param) for member in self.members
        )

    def _copies_of(self, bundles: list[Any]) -> Iterable[Leaf]:
        """Return the leaves of bundles once more, for the observer.

        Leaves in no bundle are seen as they step, because their rules may draw random numbers, or call the closure.
        """
        members = [member for bundle in bundles for member in bundle.stepping]
        return self._rehearsal()._eager_leaves(members) if members else ()

    def _rehearsed(self, bundles: list[Any]) -> Iterator[Leaf]:
        """Yield copies of the leaves of bundles that only follow these, and come before them: bundles write weights."""
        for leaf in self._copies_of(bundles):
            leaf.only_follows = True
            yield leaf

    def is_skipped(self) -> bool:
        """Whether the step changes nothing: without gradients, or for a GradScaler, for which the host waits."""
        scaling = self.scaling
        return self._is_idle or (scaling is not None and not bool(scaling.proceed))

    def is_counted(self) -> bool:
        """Whether any clock counts this step, as far as that is known before leaves run; True without a clock."""
        if not self.core.traits.clocks:
            return True
        ticks = self._rehearsal().run.ticks.values()
        return not ticks or any(map(bool, ticks))

    def _note_missed(self, after: list[Any]) -> None:
        """Note whether the parameter with the most updates has missed this one, given the counts after it."""
        missed = self._missed
        if missed is None:
            if not self._has_counted or max(after) != self._largest:
                return
            missed = self._missed = MissedUpdates(self._every, None, CPU, self._largest)
        if missed.end(after, self.tick, self.core.capturable, self._has_counted):
            self.core.known_counts = None

    def _end_run(self, run: OptimizerRun) -> None:
        """Let combinators end the step, and write new shared values."""
        core = self.core
        if self._is_idle:
            run.commits.clear()
        has_idle_clock = not core.traits.clocks <= run.new_shared.keys()
        if run.late_sums or (has_idle_clock and not self._is_idle):
            # Combinators decide whether the sums take effect, and count steps without any of their leaves.
            self._expanded()
        if run.late_sums or run.commits or run.stores:
            run.end()
        if run.new_shared:
            core.states.write_shared(run, self.core.capturable)

    def _estimate(self) -> None:
        """Let links call the closure, which may call `zero_grad()`, before anything is processed."""
        gradients = [member.param.grad for member in self.members]
        prepare(self.leaves_of(self.members))
        for member, gradient in zip(self.members, gradients, strict=True):
            member.param.grad = gradient

    def _known_count(self, place: Place) -> int | None:
        """Return the count that a schedule follows; None if reading it would synchronize in a captured step."""
        core = self.core
        has_own_clock = (
            bool(core.traits.clocks) and core.members.clock_path(place) is not None
        )
        if self.core.capturable and has_own_clock:
            return None
        if self.on_host and not (has_own_clock or self._has_eager):
            largest = max(map(COUNT, self._every), default=0)
            return largest if self._missed is None else self._missed.updates(largest)
        return core.states.count(place)

    def _check_agreement(self) -> None:
        """Check that hyperparameters that apply to all leaves jointly are equal in all groups."""
        known, free = self.core.agreed, self.core.members.independent_names
        if are_identical(self._values, known):
            return
        agree = len(known) == len(self._values) and _still_agree(
            self._values, known, free
        )
        if not agree:
            self._compare_groups()
            agree = _agree_for_good(self._values, free)
        self.core.agreed = self._values if agree else []

    def _compare_groups(self) -> None:
        first = {}
        count = self.count if isinstance(self.count, int) else 0
        for settings, values, row in zip(
            self.groups, self._values, self._rows, strict=True
        ):
            # On the host, which need not wait then.
            run = OptimizerRun({}, self.core.members.by_param, initial=True)
            route = Route.of(settings.chain(values, CPU), run, count)
            # The selectors' decisions that are the same for all members of the group.
            labels: dict[Path, set[Any]] = defaultdict(set)
            for member in row:
                for path, label in member.choices.items():
                    labels[path].add(label)
            common = {
                path: min(all_) for path, all_ in labels.items() if len(all_) == 1
            }
            for operation in route.walk(common):
                for name, value in operation.traits.agree.items():
                    expected = first.setdefault((operation.path, name), value)
                    if not _agree(expected, value):
                        stage = ".".join(operation.path)
                        raise ValueError(
                            f"{stage}: {name} must agree across groups, got {_shown(expected)!r} and {_shown(value)!r}"
                        )

    def _eager_leaves(self, members: list[Member]) -> Iterator[Leaf]:
        """Yield leaves that are in no bundle, each created when the previous leaves have finished or are suspended."""
        if self.trees:
            self.leaves_of(members)  # checks the extras of all leaves first
        for member in members:
            leaf = self._leaf(member, member.param.grad, self._route)
            if leaf.operations != [FROZEN]:
                yield leaf

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
        if core.members.are_divided and not core.agreement.is_done:
            self._compare()
        if core.members.are_sharded:  # after the comparison: ranks communicate here
            self._align_gradients(self.members)
        if not (traits.calls_again or (traits.exchanges and self._exchanges())):
            for engine in core.back_ends:
                if rest:
                    of_engine, rest = engine.bundles(self, rest)
                    bundles += of_engine
                elif not self.members:
                    engine.note_idle_step()
        eager = rest if self.all_have_gradients else self._alone(bundles, rest)
        if traits.agree and len(self.groups) > 1:
            self._check_agreement()
        if eager:
            self._expanded()  # an error must precede what bundles write
        return bundles, eager

    def _alone(self, bundles: list[Any], rest: list[Member]) -> list[Member]:
        """Return the members that step one at a time, given the rows that no bundle runs."""
        if not self._takes_none:
            return [member for member in rest if member.param.grad is not None]
        together = {id(member) for bundle in bundles for member in bundle.stepping}
        return [member for member in self.members if id(member) not in together]

    def _compare(self) -> None:
        """Compare the step with those of the other ranks that take part in the optimizer."""
        gradients = [member.param.grad is not None for member in self._every]
        stepping = self._every
        if not self._takes_none:
            stepping = list(itertools.compress(self._every, gradients))
        fingerprint = self._every, gradients, self.structures
        intent = Intent(
            stepping, self.groups, self._values, self.hyperparameters, fingerprint
        )
        self.core.agreement.check(intent, self.core.members)

    def _exchanges(self) -> bool:
        """Whether ranks exchange tensors in this step, in which no engine runs."""
        routes = self._expanded().values()
        return any(route.traits().exchanges for route in routes)

    def _advance(self, bundles: list[Any], eager: list[Member]) -> None:
        """Run bundles and single leaves, and write the results of each as soon as it has finished.

        No parameter may change before the last call of a closure, or before the last message of other ranks.
        """
        done: list[Any] = []  # bundles, which have written their results
        try:
            if self._observer is not None and self._can_rehearse_first(eager):
                execute(self._copies_of(bundles), Leaf.release, self._observer)
                self._observer = None
            if eager or self._observer is not None or self.core.members.are_divided:
                self._advance_leaves(bundles, eager, done)
            elif self._run is not None:
                execute(bundles, done.append)
            else:  # bundles that need no run do not wait for each other
                for bundle in bundles:
                    bundle.at = 0
                    bundle.start(bundle.operations[0])
                    done.append(bundle)
        except Exception as error:
            failed = [bundle for bundle in bundles if bundle not in done]
            # Otherwise all ranks would have to run the rules again.
            if failed and not self.core.members.are_divided:
                note_program(error, functools.partial(self.run_again, failed))
            raise
        finally:
            if done:
                self._has_counted = True
            count_up(done, self._after)

    def _advance_leaves(
        self, bundles: list[Any], eager: list[Member], done: list[Any]
    ) -> None:
        """Run bundles, which are added to `done` one at a time, and single leaves; those that send messages first."""
        finished: list[Leaf] = []
        keeps = always_keeps = self.core.traits.calls_again or SWITCH.raises_on_nan

        def finish(task: Any) -> None:
            if not isinstance(task, Leaf):
                done.append(task)
            elif task.only_follows:
                task.release()
            elif keeps:
                finished.append(task)
            else:
                self._write(task)

        if eager:
            self._has_eager = True
            self._check_fits(eager)
        communicating: list[Any] = []
        silent = bundles
        if self.core.members.are_divided:
            communicating, silent, eager = self._by_messages(bundles, eager)
        if communicating:
            keeps = True
            execute(communicating, finish, self._observer, self._end_messages)
            keeps = always_keeps
            while finished and not keeps:
                self._write(finished.pop(0))
        leaves = itertools.chain(silent, self._eager_leaves(eager))
        if self._observer is not None:
            leaves = itertools.chain(self._rehearsed(silent), leaves)
        execute(leaves, finish, self._observer)
        for leaf in finished:
            self._write(leaf)

    def _by_messages(
        self, bundles: list[Any], eager: list[Member]
    ) -> tuple[list[Any], list[Any], list[Member]]:
        """Return the tasks that may send messages, and the bundles and single members that need none."""
        sending = [bundle for bundle in bundles if len(bundle.operations) > 1]
        tasks: list[Any] = []
        if self._observer is not None:
            tasks += self._rehearsed(sending)
        tasks += sending
        silent = [bundle for bundle in bundles if len(bundle.operations) == 1]
        alone = []
        for leaf in self._eager_leaves(eager):
            is_shard = is_sharded(leaf.key.param)
            if any(_may_send(operation, is_shard) for operation in leaf.operations):
                tasks.append(leaf)
            else:
                alone.append(leaf.key)
                leaf.release()
        if tasks and self.core.agreement.has_several_teams:
            self.run.relay = Relay()
        return tasks, silent, alone

    def _end_messages(self) -> None:
        """Raise a failure of which the messages of this step have reported."""
        if self.run.relay is not None:
            self.run.relay.end()

    def run_again(self, bundles: list[Any]) -> None:
        """Run the rules of bundles for each leaf alone, without writing the results."""
        for bundle in bundles:
            execute(self._eager_leaves(bundle.stepping))

    def _schedule_count(self, place: Place) -> int | Tensor:
        """Return the count that a hyperparameter's schedule follows."""
        if not self.core.traits.clocks:
            return self.count
        path = self.core.members.clock_path(place)
        if path is None:
            return self.count
        if (
            self.core.members.traits.restarts_inner
        ):  # the count may restart in this step
            self._expanded()
            step = self.run.inner_counts[path]
        else:
            step = self.run.scalars(path).get("step", 0)
        return step if isinstance(self.count, Tensor) else int(step)

    # Writing.

    def _write(self, leaf: Leaf) -> None:
        """Write the new slots, the count and the parameter of a leaf that has finished.

        This is the only place where parameters of eager leaves are changed.
        """
        update = leaf.result()
        # Not collected for all leaves in advance, because freed memory of replaced state may be reused for a later
        # leaf's new state.
        taken = leaf.memory()
        new_slots = leaf.new_slots(taken)
        # Programs know the slots of a leaf that runs alone in this step since it has no gradient.
        is_absent = self._takes_none and leaf.key.param.grad is None
        if self.core.capturable or is_absent:
            update = None if update is None else leaf.run.memory.unshared(update, taken)
            for key, value in new_slots.items():
                leaf.state[key].copy_(value)
        else:
            leaf.state.update(new_slots)
        # Combinators may return one without a gradient.
        if update is not None:
            if leaf.counts:
                self._count_step(leaf)
            leaf.inputs[1].add_(update)
        if self.consumes:
            leaf.key.param.grad = None
        leaf.release()

    def _count_step(self, leaf: Leaf) -> None:
        """Count the step of a leaf that has finished."""
        self._has_counted = True
        member, step = leaf.key, leaf.state["step"]
        if not self._after:
            leaf.state["step"] = step + self.tick
            member.count += 1
            return
        after = self._after[member.count]
        if self.core.capturable:
            step.copy_(after.made)
        else:
            leaf.state["step"] = as_step(after, step.dtype)
        member.set_count(after)


def _may_send(operation: Operation, is_shard: bool) -> bool:
    """Whether an operation may send messages for a leaf."""
    traits = operation.traits
    sends = traits.waits or traits.of_leaf or traits.exchanges
    # Others run on DTensors, whose operations send what they need.
    return sends or (is_shard and not traits.elementwise)


def _has_shared_entries(tensor: Tensor) -> bool:
    """Whether entries of a tensor have the same memory, as after `expand`."""
    return any(
        stride == 0 and size > 1
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
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


def count_up(bundles: Iterable[Any], after: Mapping[Any, DeviceCount]) -> None:
    """Write the counts after the step into the states of the members of bundles that are done."""
    counted: list[Member] = []  # on the host
    on_device: list[Member] = []
    for bundle in bundles:
        if after:
            for member in bundle.stepping:
                (counted if isinstance(member.count, int) else on_device).append(member)
        else:
            counted += bundle.stepping
    for member in counted:
        member.count += 1  # type: ignore[operator]
    try:
        _torch.count_up_(list(map(STEP, map(STATE, counted))))
    except (RuntimeError, TypeError):  # the user has written an integer
        for member in counted:
            step = torch.as_tensor(member.state["step"])
            member.state["step"] = step.fill_(member.count)  # type: ignore[arg-type]
    if on_device:
        later = [after[member.count] for member in on_device]
        steps = [member.state["step"] for member in on_device]
        _torch.copy_each_(steps, list(map(as_step, later)))
        for member, count in zip(on_device, later, strict=True):
            member.set_count(count)


def _still_agree(
    values_of_groups: list[Values], before: list[Values], free: Collection[str]
) -> bool:
    """Whether values agree if those before did: only numbers differ, which need not agree, or are equal in all groups.

    Args:
        values_of_groups: The values of each group.
        before: Those that agreed.
        free: As for `_agree_for_good`.
    """
    for values, known in zip(values_of_groups, before, strict=True):
        for name, value in values.items():
            if value is known.get(name, UNSEEN):
                continue
            if not are_floats(value):
                return False
            others = (other[name] for other in values_of_groups if name in other)
            is_free = name.rpartition(".")[2] in free
            if not (is_free or all(is_same(value, other) for other in others)):
                return False
    return True


def _agree_for_good(values_of_groups: list[Values], free: Collection[str]) -> bool:
    """Whether values that agree now always will: tensors may be written, and schedules may differ at later counts.

    Args:
        values_of_groups: The values of each group.
        free: The names of those that need not agree.
    """
    for values in values_of_groups:
        if has_any(Tensor, values.values()):
            return False
        for name, value in values.items():
            if name.rpartition(".")[2] in free or not has_schedule(value):
                continue
            others = [other[name] for other in values_of_groups if name in other]
            if not all(is_same(value, other) for other in others):
                return False
    return True


def _agree(a: Any, b: Any) -> bool:
    """Whether two values are equal, up to the rounding of a float32 tensor."""
    if a is b:
        return True
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_agree, a, b))
    a, b = python_scalar(a), python_scalar(b)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=FLOAT32_EPS)
    return bool(a == b)


def _shown(value: Any) -> Any:
    return each_item(python_scalar, value)
