"""`Frame`, the body of every combinator: functions around the inner transformation, and a clock."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.algorithms._spaces import can_run_at_owner, run_at_owner
from gradtx.base.errors import Path
from gradtx.base.messages import shortly
from gradtx.combinators._contract import (
    Sums,
    check_inner,
    check_inner_slots,
    check_names,
    check_start,
    checked_sums,
    checked_ticks,
)
from gradtx.execution.context import Clock, FrameContext
from gradtx.execution.execute import Leaf, Operation, Position, takes_none
from gradtx.execution.rule import (
    Call,
    Rule,
    RuleOperation,
    RuleState,
    StageState,
    empty_dict,
)
from gradtx.execution.runs import Run, Scope, as_flag, selected
from gradtx.execution.tree_rule import Functions, GradientOperation
from gradtx.rules import Combinator
from gradtx.state.slots import check_slots
from gradtx.transform import GradientTransformation

__all__ = ["Frame", "InnerClock"]

# By name: slots and shared values, the values of a clock, or sums.
Values: TypeAlias = dict[str, Tensor]
# What `enter`, `leave` and `ticks` return.
Result: TypeAlias = tuple[Tensor, Values]
Ticks: TypeAlias = Callable[[Values, Values], Result]


@dataclasses.dataclass(frozen=True)
class InnerClock:
    """The clock of a combinator whose inner transformation does not update in every call.

    In a call that the clock does not count, the inner transformation runs, but its state does not change and its update
    is zero. The state of the clock consists of `step`, the number of counted calls, and the values in `start`.

    Args:
        ticks: `(values, sums) -> (counts, values)`: whether this call counts, as a 0-d bool tensor, and the new values,
            a dict with the keys of `start`. Called once per call. It must use `torch.where`, not a Python `if` on a
            tensor.
        start: The initial values, integers by name, stored as 0-d int64 tensors. `ticks` may also read `step`, which
            the library counts.
        measure: `update -> {name: 0-d tensor}`; the sums over all leaves are passed to `ticks`.
        counts: Whether the inner transformation follows this clock; otherwise it follows the outer count.
    """

    ticks: Ticks
    start: Mapping[str, int] = dataclasses.field(default_factory=empty_dict)
    measure: Callable[[Tensor], Values] | None = None
    counts: bool = True

    def __post_init__(self) -> None:
        check_start(self.start)


@dataclasses.dataclass(frozen=True)
class Frame(Combinator):
    """The body of a combinator: functions of one tensor that run before and after an inner transformation.

    All functions are pure, like those of `per_tensor`. `ctx` is a `Context` with additional attributes: `ctx.ticks`,
    whether the clock counts this call; `ctx.keep(new, old)`, which returns `old` for a leaf that is skipped; and
    `ctx.inner`, the new inner slots by "link.slot". `enter`, `leave` and the inner rules run in every call: an `enter`
    that drops a non-finite gradient must replace it by zeros, so that no NaN propagates through derivatives.

    Args:
        inner: The inner transformation, or a dict of several, which all receive the same updates.
        init: `param -> slots`, the slots of the combinator for one leaf. With `inner_slots`: `(param, inner) -> slots`.
        enter: `(update, state, param, ctx) -> (update, state)`, runs before the inner links. The new update is their
            gradient. An optional third value, a 0-d bool tensor, is whether the leaf takes part.
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
        agree: Hyperparameters that must agree across the groups of an optimizer.
        elementwise: Whether `enter` and `leave` compute every entry independently.
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
    init: Callable[..., dict[str, Any]] | None = None
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
    whole: bool = False

    def __post_init__(self) -> None:
        check_inner_slots(self.inner_slots)
        if self.shared and self.clock is not None:
            raise TypeError(
                "Frame: shared cannot be combined with clock; the values of a clock are in InnerClock(start=...)"
            )

    def rejects(self) -> tuple[str, ...]:
        keeps_updates = self.leave is None and not isinstance(self.inner, Mapping)
        return () if keeps_updates else ("rounds",)

    def traits(self) -> set[str]:
        traits: set[str] = set()
        if self.evaluate is not None:
            traits.add("averages")
        if self.takes_none is not None:
            traits.add("takes None")
        return traits

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        if self.gradient is not None:
            return self._after_gradient(scope, path, name)
        return FrameRun(self, scope, path, name).around()

    def _after_gradient(self, scope: Scope, path: Path, name: str) -> list[Any]:
        assert isinstance(self.inner, GradientTransformation)
        functions = Functions.of(self.gradient, name)
        operation = GradientOperation(path, scope, name, functions, dict(self.agree))
        inside = scope.child(0, changed=False)
        inside.changed = False
        return [operation, *self.inner._expand(inside)]


class FrameRun:
    """A frame during one call: its state, its clock, and the operations around those of the inner transformation."""

    def __init__(self, frame: Frame, scope: Scope, path: Path, name: str):
        self.frame = frame
        self.path = path
        self.name = name
        self.run: Run = scope.run
        self.clock: Clock | None = None
        self.old_step: Any = None
        # Whether the inner clock counts this call; None until this is known.
        self.ticks: Tensor | None = None
        self._scope = scope
        self._old_shared: Values = {}
        self._new_shared: Values = {}
        self._leading: dict[Clock, Clock] = {}
        if frame.clock is not None:
            self._start_clock(frame.clock)

    def _start_clock(self, clock: InnerClock) -> None:
        device = self.run.device
        first_values: dict[str, Callable[[], Tensor]] = {}
        if clock.counts:
            first_values["step"] = _whole_number(0, device)
        for name, start in clock.start.items():
            first_values[name] = _whole_number(start, device)
        if first_values:
            self._old_shared = self._scope.shared(self.path, first_values)
        if clock.counts:
            self._start_count()
        if not self.run.initial:
            if clock.measure is None:
                self.decide({})
            self.run.commits.append(self._commit)

    def _start_count(self) -> None:
        """Create the clock of the inner transformation, which starts again where that restarts."""
        self.old_step = self._old_shared["step"]
        restarts = self._restarts()
        if restarts is not False:
            is_restart = as_flag(restarts, self.old_step)
            self.old_step = torch.where(is_restart, 0, self.old_step)
        self.clock = Clock(self.old_step + 1)
        self.run.inner_counts[self.path] = self.old_step

    def decide(self, sums: Mapping[str, Tensor]) -> None:
        """Determine whether the clock counts this call."""
        assert self.frame.clock is not None
        clock = self.frame.clock
        checked = Sums(sums, self.name, clock.measure is not None)
        result = clock.ticks(dict(self._old_shared), checked)
        self.ticks, self._new_shared = checked_ticks(self.name, result, clock.start)
        if self.clock is not None:
            step = torch.where(self.ticks, self.clock.step, self.old_step)
            self._new_shared["step"] = step

    def leading(self, clock: Clock) -> Clock:
        """Return an outer clock for inner operations whose state restarts while the clock goes on."""
        if clock not in self._leading:
            self._leading[clock] = Clock(clock.step, clock.host)
        return self._leading[clock]

    def ticks_for(self, leaf: Leaf) -> Tensor | None:
        """Return whether the inner clock counts this call, on the leaf's device."""
        return None if self.ticks is None else self.ticks.to(leaf.device)

    def _restarts(self) -> Any:
        """Return whether the inner transformation restarts in this call."""
        outer = self._scope.restarts
        if self.frame.restarts is None:
            return outer
        if self.run.initial:
            # Not False: it may restart later, which some links don't support.
            return torch.tensor(False)
        now = self.frame.restarts(self._scope.finished_updates() + 1)
        return now if outer is False else now | outer

    # Operations.

    def around(self) -> list[Any]:
        """Return the operations of the frame and of the inner transformation."""
        if isinstance(self.frame.inner, Mapping):
            return self._arms(self.frame.inner)
        if self.clock is not None and self._scope.place is not None:
            self.run.clock_paths[self._scope.place] = self.path
        return self.between(self._inner(self.frame.inner, self.path, 0))

    def _inner(self, tx: GradientTransformation, path: Path, i: int) -> list[Any]:
        """Return the operations of an inner transformation, which is the `i`th, at a path."""
        scope = self._scope.inside(path, i, self.old_step)
        if self.frame.enter is not None or self.frame.clock is not None:
            scope.changed = False
        scope.restarts = self._restarts()
        return tx._expand(scope)

    def between(self, inner: list[Any]) -> list[Any]:
        """Return the inner operations enclosed by those of the frame."""
        takes = self.frame.takes_none is not None or takes_none(inner)
        enter = Enter(self, self._scope, takes)
        leave = Leave(self, self._scope, enter)
        operations: list[Any] = [enter, *inner, leave]
        if self.frame.whole and all(map(can_run_at_owner, inner)):
            assert isinstance(self.frame.inner, GradientTransformation)
            run_at_owner(operations, self.frame.inner)
        return operations

    def _arms(self, txs: Mapping[str, GradientTransformation]) -> list[Any]:
        """Return the operations of the frame around several inner transformations."""
        programs: list[list[Any]] = []
        for i, (arm, tx) in enumerate(txs.items()):
            programs.append(self._inner(tx, (*self.path, arm), i))
        takes = any(takes_none(program) for program in programs)
        enter = Enter(self, self._scope, takes)
        operations: list[Any] = [enter]
        for arm, program in zip(txs, programs, strict=True):
            operations += [*program, NextArm(self, enter, arm)]
        return [*operations, Leave(self, self._scope, enter)]

    # The state of the inner transformation.

    def contains(self, path: Path) -> bool:
        """Whether a path belongs to the inner transformation."""
        return len(path) > len(self.path) and path[: len(self.path)] == self.path

    def inner_slots(self, leaf: Leaf) -> Iterator[tuple[Path, str]]:
        """Yield (path, slot) of the inner slots that the frame reads, in the order of the chain.

        Slots of rules for whole trees are excluded: at init, they do not exist yet when the frame creates its own.
        """
        for path in self.run.stages:
            if self.contains(path) and path not in self.run.free:
                for slot in self._slots(path, leaf):
                    if slot in self.frame.inner_slots:
                        yield path, slot

    def _slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        """Return the slots of an inner stage: the old ones if the leaf has skipped the stage."""
        return leaf.new[path] if path in leaf.new else leaf.run.slots(path, leaf)

    def inner_values(self, leaf: Leaf) -> dict[str, Tensor]:
        """Return the values of these slots by "stage.slot"."""
        if not self.frame.inner_slots:
            return {}
        values: Values = {}
        for path, slot in self.inner_slots(leaf):
            slots = self._slots(path, leaf)
            value = self.run.stores[path].value_of(slot, slots, leaf)
            values[self._inner_name(path, slot)] = value
        return values

    def first_inner_values(self, leaf: Leaf) -> dict[str, Tensor]:
        """Return the values of these slots after a restart of the inner transformation."""
        new, leaf.new = leaf.new, {}
        for operation in leaf.program:
            # Skip the end of this frame or of an arm.
            if self.contains(operation.path) and operation.path[-1]:
                operation.init(leaf)
        values = self.inner_values(leaf)
        leaf.new = new
        return values

    def replace_inner(self, leaf: Leaf, values: Mapping[str, Tensor]) -> None:
        """Replace the inner slots that are among `values`."""
        for path, slot in list(self.inner_slots(leaf)):
            value = values.get(self._inner_name(path, slot))
            if value is None:
                continue
            store = self.run.stores[path]
            slots = self._slots(path, leaf)
            leaf.new[path] = store.changed(slot, value, slots, leaf)

    def _inner_name(self, path: Path, slot: str) -> str:
        return ".".join([*path[len(self.path) :], slot])

    def keep_inner(self, leaf: Leaf, counts: Tensor, restarts: bool | Tensor) -> None:
        """Unless this call counts, keep the inner slots of a leaf, which may restart nevertheless."""
        for path, new in leaf.new.items():
            if self.contains(path):
                old = leaf.kept_slots(path, restarts)
                leaf.new[path] = selected(counts, new, old)

    def _commit(self) -> None:
        """Keep or replace the shared values and trees inside, and write those of the clock."""
        run = self.run
        # No leaf had a gradient, or programs ran all that had.
        if self.ticks is None:
            if run.has_one_leaf:
                self._leave_decision_to_others()
                return
            self.decide(run.sums_of_programs(self.path))
        assert self.ticks is not None
        self._keep_inner_values(self.ticks.to(run.device))
        if self._new_shared:
            run.new_shared[self.path] = self._new_shared

    def _leave_decision_to_others(self) -> None:
        """Discard the inner shared values: other leaves decide about them, also about the clocks inside."""
        new_shared = self.run.new_shared
        for path in list(new_shared):
            if self.contains(path):
                del new_shared[path]

    def _keep_inner_values(self, ticks: Tensor) -> None:
        """Unless this call counts, keep the inner shared values, which may restart nevertheless, and trees."""
        run = self.run
        restarts = self._restarts()
        for path, values in run.new_shared.items():
            if not self.contains(path):
                continue
            old = run.kept_shared(path, restarts)
            # A branch that none of these leaves enters has no old values.
            if old:
                run.new_shared[path] = selected(ticks, values, old)
        for path, tree in run.new_trees.items():
            if self.contains(path):
                run.new_trees[path] = run.select(ticks, tree, run.tree(path))


def _whole_number(start: int, device: torch.device) -> Callable[[], Tensor]:
    """Return a function that creates the initial value of a clock."""
    return lambda: torch.full((), start, dtype=torch.int64, device=device)


@dataclasses.dataclass
class OuterValues:
    """The attributes of a leaf before a frame, and the frame's state between `enter` and `leave`."""

    update: Any
    grad: Any
    clock: Clock
    active: Tensor | None
    restarts: Any
    inner_restarts: Any = False
    state: RuleState | None = None
    arms: dict[str, Any] = dataclasses.field(default_factory=empty_dict)


class FrameState(StageState):
    """The state of a frame. Its slots are single tensors, so their names may end in a number."""

    def __init__(self, frame_run: FrameRun, scope: Scope, rule: Rule):
        super().__init__(frame_run.path, scope, rule)
        self._frame_run = frame_run

    def init_slots(self, leaf: Leaf, device: Any = None) -> dict[str, Any]:
        frame = self._frame_run.frame
        if frame.init is None or not frame.inner_slots:
            return super().init_slots(leaf, device)
        like = self.like(leaf, device)
        return frame.init(like, self._frame_run.first_inner_values(leaf))

    def stored(
        self, slots: dict[str, Any], leaf: Leaf, old: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        return self.store.first(slots, self.like(leaf), leaf, old)

    def _flat(self, state: dict[str, Any]) -> dict[str, Any]:
        return state

    def _as_rule_sees(
        self, leaf: Leaf, old: dict[str, Tensor], flat: dict[str, Tensor]
    ) -> dict[str, Any]:
        return flat


class Enter(RuleOperation):
    """The operation before the inner transformation."""

    def __init__(self, frame_run: FrameRun, scope: Scope, takes_none: bool):
        frame = frame_run.frame
        shared: dict[str, Callable[[], Any]] = {}
        for name, value in frame.shared.items():
            shared[name] = _constant(value)
        rule = Rule(
            frame_run.name,
            frame.enter or _identity,
            init=frame.init,
            shared=shared,
            elementwise=frame.elementwise,
            takes_complex=frame.elementwise,
            agree=frame.agree,
        )
        super().__init__(rule, FrameState(frame_run, scope, rule), scope.run)
        self.takes_none = takes_none
        self.template_slot = frame.takes_none
        self.restarts_inner = frame.restarts is not None
        self.has_clock = frame.clock is not None
        self.waits = frame.clock is not None and frame.clock.measure is not None
        self._frame_run = frame_run
        self._frame = frame

    def init(self, leaf: Leaf) -> None:
        """Do nothing: `Leave` creates the frame's slots, after the inner ones."""

    def start(self, leaf: Leaf) -> Any:
        leaf.saved[self] = OuterValues(
            leaf.update, leaf.grad, leaf.clock, leaf.active, leaf.restarts
        )
        clock = self._frame.clock
        if clock is None or clock.measure is None:
            with self._isolate_for_owners(leaf):
                return self._enter(leaf)
        # An inner combinator accepts a leaf without a gradient.
        if leaf.update is None:
            return {}
        terms = checked_sums(self.rule.name, clock.measure(leaf.update))
        if leaf.active is None:
            return terms
        terms_if_active: Values = {}
        for name, term in terms.items():
            zero = torch.zeros_like(term)
            terms_if_active[name] = torch.where(leaf.active, term, zero)
        return terms_if_active

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        measured = [(leaf, terms) for leaf, terms in waiting if terms]
        return super().combine(measured) if measured else {}

    def resume(self, leaf: Leaf, total: Any) -> Any:
        if self._frame_run.ticks is None:
            self._frame_run.decide(total)
        return self._enter(leaf)

    def _enter(self, leaf: Leaf) -> None:
        accepts_leaf = leaf.update is not None or self._frame.takes_none is not None
        if self._frame.enter is not None and accepts_leaf:
            self._run_enter(leaf)
        if self._frame_run.clock is not None:
            leaf.clock = self._frame_run.clock
        elif self._frame.restarts is not None:
            leaf.clock = self._frame_run.leading(leaf.clock)
        if self._frame.restarts is not None:
            leaf.restarts = self._restarts(leaf)
        leaf.saved[self].inner_restarts = leaf.restarts

    def _restarts(self, leaf: Leaf) -> Any:
        """Return whether the inner transformation restarts in this call, for a leaf."""
        outside: OuterValues = leaf.saved[self]
        moment = outside.clock.on(leaf.device)
        step = moment.step if moment.host is None else moment.host
        assert self._frame.restarts is not None
        now = self._frame.restarts(step)
        return now if outside.restarts is False else now | outside.restarts

    def _run_enter(self, leaf: Leaf) -> None:
        update = leaf.update
        if update is not None:
            update = update.to(self.stage.compute_dtype(leaf))
        call = self._call_with(leaf, update)
        self._finish(call, self._guarded(call))

    def _call_with(self, leaf: Leaf, update: Any) -> Call:
        """Return the arguments of `enter` for a leaf with this update."""
        compute_dtype = self.stage.compute_dtype(leaf)
        old, state = self.stage.read(leaf, compute_dtype)
        param = None if leaf.param is None else leaf.param.to(compute_dtype)
        ticks = self._frame_run.ticks_for(leaf)
        context = FrameContext(leaf, compute_dtype, ticks, inner={})
        return Call(leaf, update, state, param, context, compute_dtype, old)

    def late_state(self, leaf: Leaf) -> RuleState:
        """Return the state of `enter`, applied to zeros, for a leaf whose update an inner combinator created."""
        assert leaf.update is not None
        zeros = torch.zeros_like(leaf.update, dtype=self.stage.compute_dtype(leaf))
        call = self._call_with(leaf, zeros)
        _, entered, _ = self._entered(self._guarded(call))
        return RuleState(entered, self.stage, leaf)

    def _entered(self, out: Any) -> tuple[Tensor, Values, Any]:
        """Return the results of `enter`: the update, the state, and whether the leaf takes part, or None."""
        if isinstance(out, types.GeneratorType):
            raise TypeError(
                f"{self.rule.name}: enter cannot yield sums; yield them in leave"
            )
        active = None
        if isinstance(out, tuple) and len(out) == 3:
            *out, active = out
            self._check_active(active)
        update, state = _checked_pair(self.rule.name, "enter", out)
        return update, state, active

    def _check_active(self, active: Any) -> None:
        if active is None:
            return
        if not isinstance(active, Tensor) or active.ndim:
            raise TypeError(
                f"{self.rule.name}: the third value of enter must be a 0-d bool tensor, got {shortly(active)}"
            )

    def _finish(self, call: Call, out: Any) -> None:
        leaf = call.leaf
        update, state, active = self._entered(out)
        if leaf.update is None:
            leaf.update = update
        self._set_update(call, update)
        leaf.grad = leaf.update
        leaf.saved[self].state = RuleState(state, self.stage, leaf)
        if active is not None:
            leaf.active = active

    def follow(self, position: Position) -> None:
        clock = self._frame.clock
        if clock is None or not clock.counts:
            return
        counts = position.counts[-1] is not None
        # With sums over leaves, the call is assumed to count.
        if clock.measure is None:
            counts = counts and bool(self._frame_run.ticks)
        position.counts.append(int(self._frame_run.old_step) if counts else None)


def _checked_pair(name: str, function: str, pair: Any) -> tuple[Tensor, Values]:
    """Return the update and the state that a function of the frame has returned."""
    values = list(pair) if isinstance(pair, tuple | list) else []
    if function == "leave" and len(values) == 3:
        raise TypeError(
            f"{name}: leave returned a third value (new inner slots); list these slots in inner_slots="
        )
    if len(values) != 2 or not isinstance(values[1], dict):
        raise TypeError(
            f"{name}: {function} must return (update, state), got {shortly(pair)}"
        )
    update, state = values
    return update, state


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _identity(update: Any, state: Any, param: Any, ctx: Any) -> Any:
    return update, state


class NextArm(Operation):
    """The operation between inner transformations that all receive the same updates."""

    def __init__(self, frame_run: FrameRun, enter: Enter, arm: str):
        self.path = (*frame_run.path, arm, "")
        self.takes_none = enter.takes_none
        self._enter = enter
        self._arm = arm

    def start(self, leaf: Leaf) -> None:
        outside: OuterValues = leaf.saved[self._enter]
        outside.arms[self._arm] = leaf.update
        leaf.update = outside.update
        leaf.grad = outside.grad
        leaf.active = outside.active


class Leave(RuleOperation):
    """The operation after the inner transformation."""

    def __init__(self, frame_run: FrameRun, scope: Scope, enter: Enter):
        frame = frame_run.frame
        rule = dataclasses.replace(
            enter.rule, update=frame.leave or _identity, evaluate=frame.evaluate
        )
        super().__init__(rule, enter.stage, scope.run)
        self.path = (*frame_run.path, "")
        self.takes_none = enter.takes_none
        self._frame_run = frame_run
        self._frame = frame
        self._enter = enter

    def init(self, leaf: Leaf) -> None:
        init = self._frame.init
        if init is None:
            return
        like = self.stage.like(leaf)
        inner: list[Values] = []
        if self._frame.inner_slots:
            inner.append(self._frame_run.inner_values(leaf))
        slots = init(like, *inner)
        check_slots(slots, self.rule.name, numbers=True)
        check_names(self.rule.name, slots, self.rule.shared)
        leaf.new[self.stage.path] = self.stage.stored(slots, leaf)

    def start(self, leaf: Leaf) -> Any:
        outside: OuterValues = leaf.saved.pop(self._enter)
        leaf.clock = outside.clock
        leaf.restarts = outside.restarts
        leaf.grad = outside.grad
        update = self._of_arms(outside.arms, leaf) if outside.arms else leaf.update
        if leaf.update is not None and outside.grad is None:
            # An inner combinator created an update for a leaf without a gradient.
            leaf.grad = torch.zeros_like(leaf.update)
        if outside.arms or update is None:
            return self._leave(leaf, outside, update)
        if self._frame.clock is not None:
            self._discard_unless_counted(leaf, outside)
        with self._isolate_for_owners(leaf):
            return self._leave(leaf, outside, leaf.update)

    def _discard_unless_counted(self, leaf: Leaf, outside: OuterValues) -> None:
        """Unless this call counts, set the update to zero and keep the old inner state."""
        ticks = self._frame_run.ticks_for(leaf)
        assert ticks is not None
        accept = ticks if leaf.active is None else ticks & leaf.active
        leaf.update = torch.where(accept, leaf.update, torch.zeros_like(leaf.update))
        self._frame_run.keep_inner(leaf, ticks, outside.inner_restarts)
        leaf.active = _either(ticks, leaf.active, outside.active)

    def _of_arms(self, arms: dict[str, Any], leaf: Leaf) -> Any:
        """Return the updates of all inner transformations; None unless all have one."""
        updates = [update for update in arms.values() if update is not None]
        if not updates:
            return None
        # No gradient, and not all inner transformations accumulate.
        if len(updates) < len(arms):
            leaf.update = torch.zeros_like(updates[0])
            return None
        leaf.update = updates[0]
        return arms

    def _leave(self, leaf: Leaf, outside: OuterValues, update: Any) -> Any:
        if update is None or (self._frame.leave is None and not outside.state):
            return None
        compute_dtype = self.stage.compute_dtype(leaf)
        old, state = self._state(leaf, outside, compute_dtype)
        param = None if leaf.param is None else leaf.param.to(compute_dtype)
        inner = self._frame_run.inner_values(leaf)
        ticks = self._frame_run.ticks_for(leaf)
        context = FrameContext(leaf, compute_dtype, ticks, inner)
        call = Call(leaf, update, state, param, context, compute_dtype, old)
        return self._begin_rule(call)

    def _state(
        self, leaf: Leaf, outside: OuterValues, compute_dtype: torch.dtype
    ) -> tuple[dict[str, Tensor], RuleState]:
        old, state = self.stage.read(leaf, compute_dtype)
        if outside.state is not None:
            return old, outside.state
        if self._frame.enter is not None and leaf.update is not None:
            return old, self._enter.late_state(leaf)
        return old, state

    def _finish(self, call: Call, out: Any) -> None:
        leaf = call.leaf
        if isinstance(out, tuple) and len(out) == 3 and self._frame.inner_slots:
            *out, new_inner = out
            self._finish_inner(call, new_inner)
        update, state = _checked_pair(self.rule.name, "leave", out)
        self._set_update(call, update)
        active = leaf.active
        # The functions of such a frame handle skipped leaves themselves.
        if self._frame.takes_none is not None:
            leaf.active = None
        self.stage.write(leaf, state, call.old)
        leaf.active = active

    def _finish_inner(self, call: Call, new: Mapping[str, Any]) -> None:
        """Store the inner slots that `leave` returned, unless the leaf is skipped."""
        context = call.context
        assert isinstance(context, FrameContext)
        check_inner(self.rule.name, new, context.inner)
        accepted: Values = {}
        for name, value in new.items():
            accepted[name] = context.keep(value, context.inner[name])
        self._frame_run.replace_inner(call.leaf, accepted)

    def follow(self, position: Position) -> None:
        if self._frame.clock is not None and self._frame.clock.counts:
            position.counts.pop()


def _either(
    counts: Tensor, inside: Tensor | None, outside: Tensor | None
) -> Tensor | None:
    """Return whether a leaf takes part after a clock: as inside the clock if the call counts, else as outside."""
    if inside is None and outside is None:
        return None
    yes = torch.ones_like(counts)
    if inside is None:
        inside = yes
    if outside is None:
        outside = yes
    return torch.where(counts, inside, outside)
