"""`Frame`, the body of every combinator: functions around the inner transformation, and a clock."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from gradtx.base.errors import Path, lacking
from gradtx.base.exact import exact
from gradtx.base.messages import describe, shortly
from gradtx.combinators._spaces import Inside, Outside, can_run_at_owner, run_at_owner
from gradtx.execution.context import Clock, FrameContext, selected_tree
from gradtx.execution.execute import Leaf, Operation, Route, Steps
from gradtx.execution.leaf_rule import (
    Rule,
    RuleCall,
    RuleOperation,
    RuleState,
    StageState,
)
from gradtx.execution.runs import Run, Scope, as_flag, selected
from gradtx.execution.traits import (
    RESTARTS,
    SUMS_ROWS,
    Traits,
    empty_dict,
    reason_for_all_rows,
)
from gradtx.execution.tree_rule import Functions, GradientOperation
from gradtx.rules import Combinator
from gradtx.state.nested import LEAF_STEPS
from gradtx.transform import GradientTransformation

__all__ = [
    "Frame",
    "InnerClock",
]

# By name: slots and shared values, the values of a clock, or sums.
Values: TypeAlias = dict[str, Tensor]
# What `enter`, `leave` and `ticks` return.
Result: TypeAlias = tuple[Tensor, Values]
Ticks: TypeAlias = Callable[[Values, Values], Result]


@dataclasses.dataclass(frozen=True)
class InnerClock:
    """The clock of a combinator whose inner transformation does not update in every call.

    In a call that the clock does not count, the inner transformation runs, but its state does not change and its update
    is zero. The state of the clock consists of `step`, the number of counted calls, which inner schedules follow, the
    values in `start`, and `leaf_steps`, the number of counted calls in which each leaf took part: its count inside.

    Args:
        ticks: `(values, sums) -> (counts, values)`: whether this call counts, as a 0-d bool tensor, and the new values,
            a dict with the keys of `start`. Called once per call. It must use `torch.where`, not a Python `if` on a
            tensor.
        start: The initial values, integers by name, stored as 0-d int64 tensors. `ticks` may also read `step`, which
            the library counts.
        measure: `update -> {name: 0-d tensor}`; the sums over all leaves are passed to `ticks`.
        counts: Whether the inner transformation follows this clock; otherwise it follows the outer count.
        reads: The names of 0-d extras that `ticks` receives in a dict, as a third argument.
    """

    ticks: Ticks
    start: Mapping[str, int] = dataclasses.field(default_factory=empty_dict)
    measure: Callable[[Tensor], Values] | None = None
    counts: bool = True
    reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.start.items():
            if name == "step" or type(value) is not int:
                raise TypeError(
                    "InnerClock: start must be ints by name, without 'step', the name of the clock's count; "
                    f"got {describe(self.start)}"
                )


@dataclasses.dataclass(frozen=True)
class Frame(Combinator):
    """The body of a combinator: functions of one tensor that run before and after an inner transformation.

    All functions are pure, like those of `per_tensor`. `ctx` is a `Context` with additional attributes: `ctx.ticks`,
    whether the clock counts this call; `ctx.keep(new, old)`, which returns `old` for a leaf that is skipped; and
    `ctx.inner`, the new inner slots by "link.slot". `enter`, `leave` and the inner rules run in every call: an `enter`
    that drops a non-finite gradient must replace it by zeros, so that no NaN propagates through derivatives.

    Args:
        inner: The inner transformation, or a dict of several, which all receive the same updates.
        init: `param -> slots`, the slots of the combinator for one leaf; float32 for 16-bit weights. Or a dict of
            `gradtx.slots`, as in a rule. With `inner_slots`: `(param, inner) -> slots`.
        enter: `(update, state, param, ctx) -> (update, state)`, runs before the inner links. The new update is their
            gradient. An optional third value, a 0-d bool tensor, is whether the leaf takes part. Around links that
            also process leaves without a gradient (`accumulate`), `enter` cannot be combined with `init`.
        leave: `(update, state, param, ctx) -> (update, state)`, runs after them; `state` is as returned by `enter`. It
            may yield sums, like a rule. With several inner transformations, `update` is a dict, name -> update (None
            if a leaf was skipped). With `inner_slots` it may return a third value: new inner slots, as in `ctx.inner`.
        evaluate: `(state, param) -> tensor`, for `eval_params`.
        clock: An `InnerClock`, if not every call is an update.
        gradient: `(init, update)` or `update`, functions of dicts by leaf name like those of a `whole_tree` rule, which
            compute the gradient for the inner transformation. `ctx.grad_fn` computes gradients at other parameters.
        restarts: `step -> bool`, also for a tensor: whether the inner transformation restarts, with the state of
            `init` at the current parameters, before this step of the outer clock. A `clock` restarts as well.
        shared: 0-d values of the whole combinator, name -> start; `leave` reads and returns them like slots. A frame
            with a clock has those of the clock instead.
        inner_slots: The names of inner slots that `init` and `leave` read, in `ctx.inner`; those of rules for whole
            trees are not among them.
        takes_none: A slot shaped like the parameter. If set, leaves without a gradient also enter: `enter` receives
            None as their update, and the functions must apply `ctx.keep` to their slots.
        agree: Hyperparameters that must agree across the groups of an optimizer; with `gradient`, all of them must.
        elementwise: Whether `enter` and `leave` compute every entry independently.
        by_rows: Whether `enter` and `leave` may update some rows of a leaf without the others, or why they may not, as
            in `per_tensor`. By default, they may if they are elementwise and yield no sums.
        whole: Whether `enter` and `leave` need whole leaves instead of shards, and no sums. The owner of a sharded leaf
            then runs them and the inner transformation, as for rules with `per_tensor(whole=True)`.

    Example:
        >>> @gradtx.combinator
        ... def at_most_twice(tx: gradtx.GradientTransformation, size: gradtx.Scalar = 1.0):
        ...     def leave(update, state, param, ctx):
        ...         return update.clamp(-2 * size, 2 * size), state
        ...     return gradtx.Frame(tx, leave=leave)
        >>> tx = at_most_twice(gradtx.scale(10.0), size=2.0)
        >>> tx.update({"w": torch.tensor([0.1, 5.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([1., 4.])
    """

    inner: GradientTransformation | Mapping[str, GradientTransformation]
    init: Callable[..., dict[str, Any]] | Mapping[str, Any] | None = None
    enter: Callable[..., Any] | None = None
    leave: Callable[..., Any] | None = None
    evaluate: Callable[..., Any] | None = None
    clock: InnerClock | None = None
    gradient: Any = None
    restarts: Callable[[Any], Any] | None = None
    shared: Mapping[str, float] = dataclasses.field(default_factory=empty_dict)
    inner_slots: tuple[str, ...] = ()
    takes_none: str | None = None
    agree: Mapping[str, Any] = dataclasses.field(default_factory=empty_dict)
    elementwise: bool = True
    by_rows: bool | str | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.shared and self.clock is not None:
            raise TypeError(
                "Frame: shared cannot be combined with clock; the values of a clock are in InnerClock(start=...)"
            )

    def rejects(self) -> tuple[str, ...]:
        rejected = []
        has_arms = isinstance(self.inner, Mapping)
        if self.leave is not None or has_arms:
            rejected.append("rounds")
        # Such a leaf does not enter, but an inner combinator may update it.
        has_slots = self.enter is not None and self.init is not None
        if has_arms or (has_slots and not self.takes_none):
            rejected.append("takes None")
        if self.clock is not None:
            rejected.append("exchanges")
        reads_gradient = self.enter is not None or self.gradient is not None
        if reads_gradient or self.clock is not None or has_arms:
            rejected.append("makes gradient")
        return tuple(rejected)

    def effects(self) -> set[str]:
        parts = {"averages": self.evaluate, "takes None": self.takes_none}
        return {effect for effect, part in parts.items() if part is not None}

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        inner = self.inner
        if self.gradient is not None:
            assert isinstance(inner, GradientTransformation)
            functions = Functions.of(self.gradient, name)
            operation = GradientOperation(
                path, scope, name, functions, scope.own, capturable=True
            )
            inside = scope.child(0)
            inside.changed = False
            return [operation, *inner._expand(inside)]
        enter = Enter(self, scope, path, name)
        if isinstance(inner, Mapping):
            arms = []
            for i, (arm, tx) in enumerate(inner.items()):
                arms += [*enter.inside(tx, (*path, arm), i), NextArm(enter, arm)]
            return enter.between(arms)
        if enter.counts and scope.place is not None:
            scope.run.clock_paths[scope.place] = path
        return enter.between(enter.inside(inner, path, 0))


@dataclasses.dataclass
class Entered(Outside):
    """A leaf before a frame, and the frame's state between `enter` and `leave`."""

    inner_restarts: bool | Tensor = False
    state: RuleState | None = None
    arms: dict[str, Any] = dataclasses.field(default_factory=empty_dict)


@dataclasses.dataclass(eq=False)
class InnerState(Inside):
    """The state of the inner transformation in one call.

    Attributes:
        names: The names of the slots that the frame reads.
    """

    names: tuple[str, ...]

    def keep(self, leaf: Leaf, counts: Tensor, restarts: bool | Tensor) -> None:
        """Unless this call counts, keep the slots of a leaf, which may restart nevertheless."""
        for path, new_slots in leaf.new.items():
            if self.contains(path):
                old = leaf.kept_slots(path, restarts)
                leaf.new[path] = selected(counts, new_slots, old)

    def _slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        """Return the slots of a stage: the old ones if the leaf has skipped the stage."""
        return leaf.new[path] if path in leaf.new else leaf.run.slots(path, leaf)

    def _names(self, leaf: Leaf) -> Iterator[tuple[str, Path, str]]:
        """Yield ("stage.slot", path, slot) of the slots that the frame reads, in the order of the chain.

        Slots of rules for whole trees are excluded: at init, they do not exist yet when the frame creates its own.
        """
        for path in self.run.stages:
            if self.contains(path) and path not in self.run.free:
                for slot in self._slots(path, leaf):
                    if slot in self.names:
                        yield ".".join([*path[len(self.path) :], slot]), path, slot

    def values(self, leaf: Leaf) -> Values:
        """Return the values of these slots by "stage.slot"."""
        if not self.names:
            return {}
        return {
            name: self.run.stores[path].value_of(slot, self._slots(path, leaf), leaf)
            for name, path, slot in self._names(leaf)
        }

    def first_values(self, leaf: Leaf) -> Values:
        """Return the values of these slots at init, or after a restart of the inner transformation."""
        finished, leaf.new = leaf.new, {}
        for operation in leaf.operations:
            # The ends of frames inside create the slots of these frames.
            if self.contains(operation.path) and operation.role != "leave":
                operation.init(leaf)
        values = self.values(leaf)
        leaf.new = finished
        return values

    def replace(self, leaf: Leaf, values: Mapping[str, Any], ctx: FrameContext) -> None:
        """Replace the slots that are among `values`, unless the leaf is skipped."""
        for name, path, slot in list(self._names(leaf)):
            if name in values:
                slots = self._slots(path, leaf)
                value = ctx.keep(values[name], ctx.inner[name])
                store = self.run.stores[path]
                leaf.new[path] = store.encode_slots({slot: value}, slots, leaf)


class Enter(RuleOperation):
    """The operation before the inner transformation. It holds the state and the clock of the frame in one call."""

    role = "enter"

    def __init__(self, frame: Frame, scope: Scope, path: Path, name: str):
        inner = InnerState(scope.run, path, frame.inner_slots)
        functions = Functions.of((frame.init, frame.enter or _identity), name)
        init = functions.init
        self.counts = frame.clock is not None and frame.clock.counts
        if self.counts:
            init = functools.partial(_with_leaf_steps, init)
        traits = Traits(
            elementwise=frame.elementwise,
            takes_complex=frame.elementwise,
            agree=frame.agree,
            keeps_slots=init is not None,
            template_slot=frame.takes_none,
            restarts_inner=frame.restarts is not None,
            has_clock=frame.clock is not None,
            waits=frame.clock is not None and frame.clock.measure is not None,
            needs_all_rows=_needs_all_rows(frame),
            moving_slot=frame.takes_none,
        )
        rule = Rule(
            name,
            functions.update,
            traits,
            init=init,
            slots=functions.slots,
            inner=inner.first_values if frame.inner_slots else None,
            single=True,
            shared=frame.shared,
        )
        super().__init__(rule, StageState(path, scope, rule))
        self.frame = frame
        self.inner = inner
        self.run: Run = scope.run
        self.old_step: Any = None
        # Whether the inner clock counts this call; None until this is known.
        self.ticks: Tensor | None = None
        self._scope = scope
        self._restarts = scope.restarts
        if frame.restarts is not None:
            # Not False at init: it may restart later, which some links don't support.
            self._restarts = (
                torch.tensor(False)
                if scope.run.initial
                else self._restarts_at(scope.finished_updates() + 1, scope.restarts)
            )
        self._old_shared: Values = {}
        self._new_shared: Values = {}
        if frame.clock is not None:
            self._start_clock(frame.clock)

    # The clock.

    def _start_clock(self, clock: InnerClock) -> None:
        run = self.run
        starts = {"step": 0, **clock.start} if clock.counts else clock.start
        if starts:
            values = {
                name: functools.partial(
                    torch.full, (), start, dtype=torch.int64, device=run.device
                )
                for name, start in starts.items()
            }
            self._old_shared = self._scope.shared(self.path, values)
        if clock.counts:
            # It starts again where the inner transformation restarts.
            step = self._old_shared["step"]
            if self._restarts is not False:
                step = torch.where(as_flag(self._restarts, step), 0, step)
            self.old_step = run.inner_counts[self.path] = step
        if not run.initial:
            if clock.measure is None and not clock.reads:
                self._decide({})
            run.commits.append(self._commit)

    def _decide(self, sums: Any, extras: Mapping[str, Any] = {}) -> None:
        """Determine whether the clock counts this call; `sums` is None if it measures leaves, and none has arrived."""
        clock, name = self.frame.clock, self.rule.name
        assert clock is not None
        nothing = defaultdict(lambda: exact(0.0, self.run.device))
        read = [{name: self._extra(name, extras) for name in clock.reads}]
        arguments = read if clock.reads else []
        result = clock.ticks(dict(self._old_shared), sums or nothing, *arguments)
        self.ticks, self._new_shared = checked_ticks(name, result, clock.start)
        if sums is None:
            # Like the state of an optimizer, a clock starts with the first gradient of a leaf.
            self.ticks = self.ticks & self._has_started(clock.start)
        if self.counts:
            self.run.ticks[self.path] = self.ticks
            step = torch.where(self.ticks, self.old_step + 1, self.old_step)
            self._new_shared["step"] = step

    def _extra(self, name: str, extras: Mapping[str, Any]) -> Tensor:
        value = extras.get(name)
        if value is None:
            raise ValueError(
                f"{self.rule.name} needs {name}: pass {name}= to update or step"
            )
        return exact(value, self.run.device)

    def _has_started(self, start: Mapping[str, int]) -> Tensor:
        """Return whether a shared value has changed since `init`."""
        started = torch.zeros((), dtype=torch.bool, device=self.run.device)
        for name, value in self._old_shared.items():
            started = started | (value != start.get(name, 0))
        return started

    def _clock_of(self, leaf: Leaf) -> Clock:
        """Return the inner clock of a leaf, which counts its own updates: a leaf may come late, or miss some."""
        steps = leaf.run.slots(self.path, leaf).get(LEAF_STEPS)
        if steps is None:
            raise lacking((*self.path, LEAF_STEPS), leaf.name)
        if leaf.restarts is not False:
            steps = torch.where(as_flag(leaf.restarts, steps), 0, steps)
        return Clock(steps + 1)

    def ticks_for(self, leaf: Leaf) -> Tensor | None:
        """Return whether the inner clock counts this call, on the leaf's device."""
        return None if self.ticks is None else self.ticks.to(leaf.device)

    def _restarts_at(self, step, outside) -> Any:
        """Return whether the inner transformation restarts at a step, or with its surroundings."""
        assert self.frame.restarts is not None
        restarts = self.frame.restarts(step)
        return restarts if outside is False else restarts | outside

    # The operations around the inner ones.

    def inside(self, tx: GradientTransformation, path: Path, i: int) -> list[Any]:
        """Return the operations of an inner transformation, which is the `i`th, at a path."""
        scope = self._scope.inside(path, i, self.old_step)
        if self.frame.enter is not None or self.frame.clock is not None:
            scope.changed = False
        scope.restarts = self._restarts
        return tx._expand(scope)

    def between(self, inner: list[Any]) -> list[Any]:
        """Return the inner operations enclosed by those of the frame."""
        takes_none = (
            self.frame.takes_none is not None or Route(inner, []).traits().takes_none
        )
        self.traits = dataclasses.replace(self.traits, takes_none=takes_none)
        operations = [self, *inner, Leave(self)]
        if self.frame.whole and all(map(can_run_at_owner, inner)):
            assert isinstance(self.frame.inner, GradientTransformation)
            run_at_owner(operations, self.frame.inner)
        return operations

    def _commit(self) -> None:
        """Keep or replace the shared values and trees inside, and write those of the clock."""
        run = self.run
        # No leaf had a gradient, or programs ran all that had.
        if self.ticks is None:
            assert self.frame.clock is not None
            nothing = {} if self.frame.clock.measure is None else None
            self._decide(run.sums.get(self.barrier, nothing), run.call_extras)
        assert self.ticks is not None
        ticks = self.ticks.to(run.device)
        if self._new_shared:
            run.new_shared[self.path] = self._new_shared
        # Unless this call counts, keep what is inside.
        self.inner.keep_shared(ticks, self._restarts)
        for path in filter(self.inner.contains, run.new_trees):
            old = run.tree(path)
            run.new_trees[path] = selected_tree(ticks, run.new_trees[path], old)

    # One leaf.

    def init(self, leaf: Leaf) -> None:
        """Do nothing: `Leave` creates the frame's slots, after the inner ones."""

    @property
    def starts_alike(self) -> bool:
        return True

    def _begin(self, leaf: Leaf) -> Steps | None:
        leaf.saved[self] = Entered.of(leaf)
        clock = self.frame.clock
        if clock is None or clock.measure is None:
            if clock is not None and self.ticks is None:
                self._decide({}, leaf.extras)
            return self._enter(leaf)
        return self._measure(leaf, clock.measure)

    def _measure(self, leaf: Leaf, measure: Callable[[Tensor], Values]) -> Steps:
        """Wait for the sums that decide whether the call counts, then enter."""
        terms: Values = {}
        # An inner combinator accepts a leaf without a gradient.
        if leaf.update is not None:
            terms = measure(leaf.update)
            if not isinstance(terms, Mapping) or any(
                term.ndim for term in terms.values()
            ):
                raise TypeError(
                    f"{self.rule.name}: measure must return a dict of 0-d tensors, got {describe(terms)}"
                )
        total = yield {name: leaf.term(value) for name, value in terms.items()}
        if self.ticks is None:
            self._decide(total, leaf.extras)
        self._enter(leaf)

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        measured = [(leaf, terms) for leaf, terms in waiting if terms]
        return super().combine(measured) if measured else {}

    def _enter(self, leaf: Leaf) -> Any:
        outside: Entered = leaf.saved[self]
        accepts_leaf = leaf.update is not None or self.frame.takes_none is not None
        if self.frame.enter is not None and accepts_leaf:
            update = leaf.update
            if update is not None:
                update = update.to(self.compute_dtype(leaf))
            call = self.call(leaf, update, {})
            self._finish(call, self._guarded(call))
        if self.frame.restarts is not None:
            now = outside.clock.on(leaf.device)
            step = now.step if now.step_on_host is None else now.step_on_host
            leaf.restarts = self._restarts_at(step, outside.restarts)
        outside.inner_restarts = leaf.restarts
        if self.counts:
            leaf.clock = self._clock_of(leaf)

    def call(
        self, leaf: Leaf, update, inner: Values, state: RuleState | None = None
    ) -> RuleCall:
        """Return the arguments of `enter` or `leave` for a leaf; without a state, the stored one."""
        compute_dtype = self.compute_dtype(leaf)
        old, stored = self.stage.read(leaf, compute_dtype)
        stored.pop(LEAF_STEPS, None)
        if state is None:
            state = stored
        param = None if leaf.param is None else leaf.param.to(compute_dtype)
        shared = self._old_shared, self._new_shared
        ticks = self.ticks_for(leaf)
        context = FrameContext(leaf, compute_dtype, ticks, inner, *shared)
        return RuleCall(leaf, update, state, param, context, compute_dtype, old)

    def _finish(self, call: RuleCall, out) -> None:
        leaf = call.leaf
        if isinstance(out, types.GeneratorType):
            raise TypeError(
                f"{self.rule.name}: enter cannot yield sums; yield them in leave"
            )
        update, state, active = _checked(self.rule.name, "enter", out)
        if active is not None:
            if not isinstance(active, Tensor) or active.ndim:
                raise TypeError(
                    f"{self.rule.name}: the third value of enter must be a 0-d bool tensor, got {shortly(active)}"
                )
            leaf.active = active
        if leaf.update is None:
            leaf.update = update
            leaf.negated = self._scope.negated
        self._set_update(call, update)
        leaf.grad = leaf.update
        leaf.saved[self].state = RuleState(state, self.stage, leaf)


def _needs_all_rows(frame: Frame) -> str:
    """Return why a frame cannot update some rows of a leaf without the others; empty if it can."""
    by_rows = frame.by_rows
    if by_rows is None:
        by_rows = frame.elementwise and not frame.whole
        if frame.restarts is not None:
            by_rows = RESTARTS
        elif by_rows and (frame.shared or inspect.isgeneratorfunction(frame.leave)):
            by_rows = SUMS_ROWS
    return reason_for_all_rows(by_rows)


def _with_leaf_steps(
    init: Callable[..., dict[str, Any]] | None, param: Tensor, *inner: Any
) -> dict[str, Any]:
    """Return the slots of a frame, and the count of the leaf on its clock."""
    slots = {} if init is None else init(param, *inner)
    return {**slots, LEAF_STEPS: param.new_zeros((), dtype=torch.int64)}


def _checked(name: str, function: str, out) -> tuple[Tensor, Values, Any]:
    """Return the update and the state that a function of the frame has returned, and a third value or None."""
    values: Any = out if isinstance(out, tuple | list) else ()
    if len(values) not in (2, 3) or not isinstance(values[1], dict):
        raise TypeError(
            f"{name}: {function} must return (update, state), got {shortly(out)}"
        )
    update, state, third, *_ = (*values, None)
    return update, state, third


def _identity(update, state, param, ctx) -> Any:
    return update, state


class NextArm(Operation):
    """The operation between inner transformations that all receive the same updates."""

    def __init__(self, enter: Enter, arm: str):
        self._enter = enter
        self._arm = arm

    def start(self, leaf: Leaf) -> None:
        outside: Entered = leaf.saved[self._enter]
        outside.arms[self._arm] = leaf.update
        leaf.update = outside.update
        leaf.grad = outside.grad
        leaf.active = outside.active


class Leave(RuleOperation):
    """The operation after the inner transformation."""

    role = "leave"

    def __init__(self, enter: Enter):
        frame = enter.frame
        rule = dataclasses.replace(
            enter.rule, update=frame.leave or _identity, evaluate=frame.evaluate
        )
        super().__init__(rule, enter.stage)
        is_generator = inspect.isgeneratorfunction(frame.leave)
        self.traits = dataclasses.replace(enter.traits, waits=is_generator)
        self._frame = frame
        self._enter = enter

    def _begin(self, leaf: Leaf) -> Steps | None:
        outside: Entered = leaf.saved.pop(self._enter)
        clock = leaf.clock
        outside.restore(leaf)
        if outside.arms:
            leaf.update, *_ = outside.arms.values()
            return self._leave(leaf, outside, outside.arms)
        if leaf.update is None:
            return None
        if outside.grad is None:
            # An inner combinator created an update for a leaf without a gradient.
            leaf.grad = torch.zeros_like(leaf.update)
        ticks = self._enter.ticks_for(leaf)
        if ticks is not None:
            accept = ticks if leaf.active is None else ticks & leaf.active
            if self._enter.counts:
                now = clock.on(leaf.device).step
                counts = accept & (leaf.counts or not outside.counts)
                leaf.saved[self] = {LEAF_STEPS: torch.where(counts, now, now - 1)}
            self._discard_unless_counted(leaf, outside, ticks, accept)
        return self._leave(leaf, outside, leaf.update)

    def _discard_unless_counted(
        self, leaf: Leaf, outside: Entered, ticks: Tensor, accept: Tensor
    ) -> None:
        """Unless this call counts, set the update to zero and keep the old inner state."""
        leaf.update = torch.where(accept, leaf.update, 0.0)
        self._enter.inner.keep(leaf, ticks, outside.inner_restarts)
        inside = leaf.active
        if inside is None and outside.active is None:
            return
        # As inside the clock if the call counts, else as outside.
        leaf.active = torch.where(
            ticks,
            True if inside is None else inside,
            True if outside.active is None else outside.active,
        )

    def _leave(self, leaf: Leaf, outside: Entered, update) -> Steps | None:
        has_state = outside.state is not None and len(outside.state) > 0
        if self._frame.leave is None and not has_state and self not in leaf.saved:
            return None
        inner = self._enter.inner.values(leaf)
        return self._begin_rule(self._enter.call(leaf, update, inner, outside.state))

    def _finish(self, call: RuleCall, out) -> None:
        leaf = call.leaf
        update, state, new_inner = _checked(self.rule.name, "leave", out)
        if new_inner is not None:
            self._finish_inner(call, new_inner)
        self._set_update(call, update)
        active = leaf.active
        # The functions of such a frame handle skipped leaves themselves.
        if self._frame.takes_none is not None:
            leaf.active = None
        count = leaf.saved.pop(self, {})
        self.stage.write(leaf, {**state, **count}, call.old)
        leaf.active = active

    def _finish_inner(self, call: RuleCall, new_inner: Mapping[str, Any]) -> None:
        """Store the inner slots that `leave` returned."""
        if not self._frame.inner_slots:
            raise TypeError(
                f"{self.rule.name}: leave returned a third value (new inner slots); list these slots in inner_slots="
            )
        context = call.context
        assert isinstance(context, FrameContext)
        old = context.inner
        for name, value in new_inner.items():
            shape = old[name].shape if name in old else None
            if not isinstance(value, Tensor) or value.shape != shape:
                raise ValueError(
                    f"{self.rule.name}: leave must return inner slots in their shapes, which are {describe(old)}; "
                    f"got {name!r}: {describe(value)}"
                )
        self._enter.inner.replace(call.leaf, new_inner, context)


def checked_ticks(
    who: str, result, start: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the checked result of a clock's `ticks`."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    counts, new_values = result if is_pair else (None, None)
    if not _is_scalar(counts, torch.bool) or not isinstance(new_values, Mapping):
        raise TypeError(
            f"{who}: ticks must return (counts, values), a 0-d bool tensor and a dict, got {describe(result)}"
        )
    # The library counts steps itself.
    values = {name: value for name, value in new_values.items() if name != "step"}
    if values.keys() != set(start) or not all(map(_is_scalar, values.values())):
        raise TypeError(
            f"{who}: ticks must return 0-d int64 tensors for {sorted(start)}, got {describe(values)}"
        )
    return counts, values


def _is_scalar(value, dtype: torch.dtype = torch.int64) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and not value.ndim and value.dtype == dtype
