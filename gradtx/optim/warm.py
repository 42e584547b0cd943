"""A step like the last one, which compares what may have changed and calls the same bundles."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch

from gradtx.base import torch_names as _torch
from gradtx.base.ambient import SWITCH, note_program
from gradtx.execution.execute import execute
from gradtx.execution.runs import Place
from gradtx.optim.core import Core
from gradtx.optim.engine.base import Engine, Plan, begin
from gradtx.optim.engine.joint import JointBundles
from gradtx.optim.groups import GroupSettings, are_identical
from gradtx.optim.run import COUNT, FLOAT32_COUNTS, Extras, KnownCounts, OptimizerRun
from gradtx.optim.step import Step, count_up
from gradtx.pure.tree_run import FUNCTIONS, as_scalar

STRUCTURE = operator.attrgetter("structure")
VALUE = "value"
# What a closure supplies; no link of the chain needs it.
OF_CLOSURES = frozenset((VALUE, *FUNCTIONS))


class WarmStep:
    """What a step like the last one compares, and its bundles.

    It has the attributes of a `Step` that bundles read: there are no extras but those of a closure, no scaler, and no
    single leaves. Whatever differs from the last step, it leaves to a `Step`, which also raises the errors of invalid
    input.

    Args:
        step: The last step, which has been applied.
        known: The counts after it.
        plans: The plan of each engine that ran some of its parameters.

    Attributes:
        count: The number of finished updates, which schedules follow.
        hyperparameters: Those of each group that are arguments of programs.
        run: Receives shared values, and combines sums over leaves; None if there are none.
    """

    scaling = None
    consumes = False
    on_host = True

    def __init__(self, step: Step, known: KnownCounts, plans: list[Plan]):
        # Not the core, which refers to this object: a cycle would keep parameters alive.
        self._known = known
        self._plans = plans
        self._every = step.members
        self._groups = step.groups
        self._structures = step.structures
        self._tasks = [task for plan in plans for task in plan.tasks]
        self._is_inference = torch.is_inference_mode_enabled()
        self._device = step.run.device
        self._may_be_captured = self._device.type not in _torch.NEVER_CAPTURED
        self._needs_run = not all(map(_is_alone, self._tasks))
        self._must_agree = step.core.traits.agrees and len(self._groups) > 1
        self._extra_names = frozenset(step.extras)
        self._scalar_dtypes = step.scalar_dtypes
        self.scalars: Extras = {}
        self._missed = 0 if known.missed is None else int(known.missed)
        self.count = max(map(COUNT, self._every)) + self._missed
        self.hyperparameters: list[list[Any]] = []
        self.run: OptimizerRun | None = None

    @classmethod
    def after(cls, step: Step) -> WarmStep | None:
        """Return what follows a step that has been applied; None if the next one needs a `Step` in any case."""
        core, known = step.core, step.core.known_counts
        if type(step) is not Step or known is None:
            return None
        if not (step.members and known.complete_for):
            return None
        traits, members = core.traits, core.members
        has_features = (
            traits.takes_none
            or traits.clocks
            or traits.checks_extras
            or traits.needs_extras
            or traits.calls_again
            or traits.exchanges
            or traits.makes_gradient
            or traits.estimates
            or members.are_divided
            or core.offload is not None
            or core.capturable
        )
        has_usual_extras = step.extras.keys() <= OF_CLOSURES
        is_usual = step.on_host and has_usual_extras and not step.consumes
        if has_features or not is_usual or step.run.late_sums:
            return None
        plans = _plans_of(core.back_ends, step.members)
        return None if plans is None else cls(step, known, plans)

    def applied(self, core: Core, extras: Extras) -> bool:
        """Apply the step if it is like the last one; otherwise nothing is written."""
        has_extras = bool(extras or self._extra_names)
        if (has_extras and not self._takes(extras)) or not self._is_repeated(core):
            return False
        self.run = None
        if self._needs_run:
            states, by_param = core.states.by_param, core.members.by_param
            self.run = OptimizerRun(states, by_param, initial=False)
            self.run.functions = extras
            self.run.known_extras = core.traits.known_extras
        self.hyperparameters = []
        for settings in self._groups:
            numbers = settings.hyperparameters(self._schedule_count)
            self.hyperparameters.append(numbers)
        try:
            for plan in self._plans:
                begin(plan, self)
        except Exception:  # which the engine of a `Step` reports
            return False
        self._process(core)
        if self.run is not None and self.run.new_shared:
            core.states.write_shared(self.run, False)
        self.run = None
        self.count += 1
        for settings in self._groups:
            if settings.shown:
                settings.show(self._schedule_count)
        return True

    def _takes(self, extras: Extras) -> bool:
        """Take inputs like those of the last step."""
        if extras.keys() != self._extra_names:
            return False
        self.scalars = dict(extras)
        if VALUE not in extras:
            return True
        try:
            loss = self.scalars[VALUE] = as_scalar(VALUE, extras[VALUE])
        except (TypeError, ValueError):  # which a `Step` raises
            return False
        return loss.dtype == self._scalar_dtypes.get(VALUE)

    def _is_repeated(self, core: Core) -> bool:
        """Whether nothing has changed since the last step but gradients and numbers."""
        known = self._known
        is_plain = not (
            SWITCH.is_on
            or SWITCH.raises_on_nan
            or _torch.is_intercepted()
            or torch.is_inference_mode_enabled() is not self._is_inference
            or (self._may_be_captured and _torch.is_captured(self._device))
        )
        if not (
            is_plain
            and core.known_counts is known
            and core.members.every is self._every
            and self.count < FLOAT32_COUNTS
            and self._have_same_structure(core)
            and known.hold(self._every, core.states.by_param)
            and (known.missed is None or int(known.missed) == self._missed)
        ):
            return False
        return all(map(Plan.is_repeated, self._plans))

    def _have_same_structure(self, core: Core) -> bool:
        """Whether groups have the same links, after taking their present values."""
        values = list(map(GroupSettings.values, self._groups))
        for settings, present in zip(self._groups, values, strict=True):
            if present is not settings.settled:
                if "lr" in settings.shown:  # a scheduler may have replaced a schedule
                    return False
                settings.settle(present)
        if self._must_agree and not are_identical(values, core.agreed):
            return False
        return list(map(STRUCTURE, self._groups)) == self._structures

    def _schedule_count(self, place: Place) -> int:
        """Return the count that a schedule follows."""
        return self.count

    def _process(self, core: Core) -> None:
        """Run the tasks, and count the steps of those that are done."""
        done: list[Any] = []
        try:
            if self._needs_run:
                execute(self._tasks, done.append)
            else:
                for task in self._tasks:
                    task.at = 0
                    task.process(task.operations[0])
                    done.append(task)
        except Exception as error:
            failed = [task for task in self._tasks if task not in done]
            note_program(error, functools.partial(run_again, core, failed))
            raise
        finally:
            count_up(done, {})


def _plans_of(back_ends: Sequence[Engine], members: list[Any]) -> list[Plan] | None:
    """Return the plan of each engine that ran parameters; None if some parameters ran alone, or need their leaves."""
    plans: list[Plan] = []
    for engine in back_ends:
        if not members:
            break
        plan = engine.plans.get(None)
        if plan is None or plan.members is not members:
            return None
        if any(bundle.signature.has_owners for bundle in plan.bundles):
            return None
        plans.append(plan)
        members = plan.rest
    return None if members else plans


def _is_alone(task: Any) -> bool:
    """Whether a task is a bundle of one phase that neither reads nor hands over shared values."""
    if isinstance(task, JointBundles):
        return False
    first, *others = task.operations
    return not (others or first.names or task.signature.shared)


def run_again(core: Core, tasks: list[Any]) -> None:
    """Run the rules of tasks for each leaf alone, without writing the results."""
    Step(core, {}, None).run_again(tasks)
