"""Execution of chains: every leaf passes through a list of operations, and a sum over leaves is a barrier.

Functional use and the optimizer adapter share this module: both create `Leaf` objects, expand a transformation into a
`Route` of operations and call `execute`. Their `Run` objects provide the old state.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Container,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.ambient import SWITCH
from gradtx.base.complex_views import PARTS, REMEDY, as_complex, as_real
from gradtx.base.dtensor import local
from gradtx.base.errors import Path, StateKey
from gradtx.base.exact import exact, is_stored_only
from gradtx.base.plain import TYPES, are_strided
from gradtx.distributed.redistribution import distributed_like
from gradtx.distributed.sums import total_of
from gradtx.execution.context import Clock, Context
from gradtx.execution.first_nonfinite import FirstNonFinite
from gradtx.execution.runs import Run, Scope, memory_of, restarted, selected
from gradtx.execution.traits import Traits
from gradtx.state.codes import Codec
from gradtx.state.random import indices

# Where leaves wait for one another: the path and the role of an operation.
Barrier: TypeAlias = tuple[Path, str]
# An operation that waits: it yields a payload, and receives the total of all payloads.
Steps: TypeAlias = Generator[Any, Any, None]


class Task:
    """What `execute` runs: a leaf, or leaves that one program processes.

    Attributes:
        run: The run of the current call.
        name: The name of the leaf, or of one of them.
        device: The device of the leaf or leaves.
        operations: What it passes through.
        at: The current index in the operations.
        writes: Whether its last operation writes results, rather than `finish`.
        only_follows: Whether it receives the totals of sums, and adds nothing to them: another task has its leaf.
    """

    run: Any
    name: str
    device: torch.device
    operations: list[Any]
    at = -1
    writes = False
    only_follows = False

    def start(self, operation: Operation) -> Steps | None:
        """Begin an operation; return what follows if it waits for other tasks."""
        raise NotImplementedError

    def release(self) -> None:
        """Drop all values."""


class Leaf(Task):
    """One tensor on its way through a chain.

    Attributes:
        update: The current update; None if the leaf has no gradient.
        grad: The gradient as the clock saw it, or the input of the alias around the current link.
        param: The parameter, in the dtype that rules compute in.
        inputs: Update and parameter as the caller passed them, except that complex ones are real views.
        is_complex: Whether the parameter is complex.
        is_stored_only: Whether torch only stores the dtype of the parameter (float8), so that it cannot be trained.
        shape: The shape of the parameter, or of the part of it that this leaf represents.
        compute_dtype: The dtype that rules compute in.
        negated: Whether the gradient is that of the negative loss (`maximize`).
        active: A 0-d bool tensor, whether the leaf takes part in this call; None if it certainly does.
        counts: Whether an update counts as a step of the leaf.
        restarts: Whether a combinator around the current link restarts its inner transformation.
        missed: How many steps each row of the leaf has missed, which averages make up for; None if none has.
        new: The new slots, by stage.
        starts: The initial slots of stages that may restart in this call, by stage.
        stream_name: The name that determines the leaf's random numbers, or its key (see `Stream`).
        codecs: The codec of each slot that `init` has encoded.
        saved: Values that a combinator keeps between `enter` and `leave`.
        key, state, layout: The adapter's member, its flat state, and the location of each stage's slots in it.
        probe: Called with every rule and its call before it runs, if the leaf is watched; its result is `probed`.
            Then, `update` is set after every operation, also where the first of several computes the results of all.
        probed: What `probe` has returned for the last rule.
        first_entry: For a part of a parameter, the index of its first entry in the parameter, a 0-d int64 tensor.
    """

    run: Run
    update: Any
    grad: Any
    param: Any
    inputs: tuple[Any, Any]
    negated = False
    active: Tensor | None = None
    counts = True
    restarts: bool | Tensor = False
    missed: Tensor | None = None
    key: Any = None
    layout: Any = None
    first_entry: Tensor | None = None
    probe: Callable[[Any, Any], Tensor | None] | None = None
    probed: Tensor | None = None
    _context: Context | None = None

    def __init__(
        self,
        run: Run,
        name: str,
        update: Any,
        param: Any,
        extras: dict[str, Any],
        clock: Clock,
        like: Any = None,
    ):
        self.run = run
        self.name = name
        self.stream_name: str | Tensor = name
        self.extras = extras
        self.clock = clock
        stored = _first_not_none(param, like, update)
        self.is_complex: bool = stored.is_complex()
        if update is not None and update.is_complex() != self.is_complex:
            raise TypeError(
                f"leaf {name!r} has a gradient of dtype {update.dtype}, but its parameter has dtype {stored.dtype}; "
                "both must be real or both complex"
            )
        if self.is_complex:
            update, param, stored = map(_real_view, (update, param, stored))
        first_input = _first_not_none(update, stored)
        self.device: torch.device = stored.device
        self.dtype: torch.dtype = first_input.dtype
        self.param_dtype: torch.dtype = stored.dtype
        # Rules never compute in half precision.
        self.compute_dtype = torch.float32
        self.is_stored_only = is_stored_only(self.param_dtype)
        if not self.is_stored_only:
            widest = torch.promote_types(self.param_dtype, self.dtype)
            self.compute_dtype = torch.promote_types(widest, torch.float32)
        self.inputs = (update, param)
        self.has_gradient = update is not None
        self.shape: torch.Size = stored.shape
        self.update, self.param = update, param
        if not self.is_stored_only:
            self.update = None if update is None else update.to(self.compute_dtype)
            self.param = None if param is None else param.to(self.compute_dtype)
        self.grad = self.update
        self.new: dict[Path, dict[str, Tensor]] = {}
        self.starts: dict[Path, dict[str, Tensor]] = {}
        self.codecs: dict[StateKey, Codec] = {}
        self.saved: dict[Any, Any] = {}
        self.state: dict[str, Any] = {}
        self.operations = []

    def start(self, operation: Operation) -> Steps | None:
        if self.update is None and not operation.traits.takes_none:
            return None
        return operation.start(self)

    def positions(self, like: Tensor) -> Tensor:
        """Return each entry's index in the whole parameter, for the local shard of a tensor of the leaf's shape."""
        positions = indices(like)
        return positions if self.first_entry is None else positions + self.first_entry

    def context(self, dtype: torch.dtype) -> Context:
        """Return the context of a rule; links with the same clock, gradient and dtype share one object."""
        context = self._context
        if context is None or not context.is_valid_for(self, dtype):
            context = self._context = Context(self, self.clock, dtype)
        return context

    def unless_skipped(
        self, new: dict[str, Tensor], old: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the new slots, or the old ones if the leaf is skipped in this call."""
        if self.active is None:
            return new
        return selected(self.active, new, old)

    def term(self, value: Any) -> Tensor:
        """Return the leaf's term in a sum over leaves, or 0 if the leaf is skipped in this call."""
        term = exact(value, self.device)
        if self.active is None:
            return term
        return torch.where(self.active, term, 0.0)  # not a product: 0 * inf is NaN

    def stand_for(self, other: Leaf) -> None:
        """Copy the properties of a leaf that its tensors do not determine, to stand in for it with other tensors."""
        self.dtype = other.dtype
        self.param_dtype = other.param_dtype
        self.compute_dtype = other.compute_dtype
        self.has_gradient = other.has_gradient
        self.negated = other.negated
        self.active = other.active
        self.restarts = other.restarts
        self.probe = other.probe

    def kept_slots(self, path: Path, restarts: bool | Tensor) -> dict[str, Tensor]:
        """Return the old slots of a stage whose new ones are discarded: the initial ones where it restarts."""
        old = self.run.slots(path, self)
        return restarted(old, self.starts.get(path, {}), restarts)

    def in_callers_form(self, value: Tensor) -> Tensor:
        """Return a slot, an update or weights in the caller's form: complex if shaped like a complex leaf."""
        if self.is_complex and value.shape == self.shape and value.dtype in PARTS:
            return as_complex(value)
        return value

    def memory(self) -> set[Any]:
        """Return the keys of the memory of the leaf's present values, which new ones must not share."""
        tensors = [tensor for tensor in self.inputs if tensor is not None]
        tensors += self.state.values()
        is_traced = torch.compiler.is_compiling() or _torch.inside_transform()
        are_plain = TYPES.issuperset(map(type, tensors)) and are_strided(tensors)
        if is_traced or not are_plain:
            return set(map(memory_of, tensors))
        # A shortcut: the same keys.
        return {tensor.untyped_storage()._cdata for tensor in tensors}

    def new_slots(
        self, taken: Container[Any], are_written: bool = True
    ) -> dict[str, Tensor]:
        """Return the new slots by their keys in the state, without those that are still the old tensors.

        Args:
            taken: The memory that they must not share.
            are_written: Whether the old tensors are written to. If not, and a history moves on, a slot takes the tensor
                of another one that lets go of it.
        """
        new_slots: dict[str, Tensor] = {}
        for path, slots in self.new.items():
            keys = self.layout.slots[path]
            for slot, value in slots.items():
                # The same tensor if, for example, a basis was not updated.
                if value is not self.state[keys[slot]]:
                    new_slots[keys[slot]] = value
        free = set[int]()
        if not are_written:
            free = {id(self.state[key]) for key in new_slots}
        for key, value in new_slots.items():
            if id(value) in free:
                free.remove(id(value))
            else:
                new_slots[key] = self.as_stored(value, taken)
        return new_slots

    def as_stored(self, value: Tensor, taken: Container[Any] = ()) -> Tensor:
        """Return a new slot in the caller's form, in memory of its own, contiguous unless it lies as the parameter."""
        value = self.run.memory.unshared(value, taken)
        like = self.inputs[1]
        if not local(value).is_contiguous() and value.stride() != like.stride():
            value = value.contiguous()
        return self.in_callers_form(value)

    def release(self) -> None:
        """Drop all values once results are written, which limits temporary memory to that of one leaf."""
        self.update = self.grad = self.param = self._context = None
        self.inputs = (None, None)
        self.new, self.starts, self.saved = {}, {}, {}

    def result(self) -> Tensor | None:
        """Return the update after the last link, in at least float32: it is rounded when it is added."""
        if self.update is None:
            return None
        if self.active is not None:
            self.update = torch.where(
                self.active, self.update, torch.zeros_like(self.update)
            )
        update, param = self.inputs
        return distributed_like(
            self.update.to(self.compute_dtype), _first_not_none(param, update)
        )


def _real_view(tensor: Any) -> Any:
    return None if tensor is None else as_real(tensor)


def _first_not_none(*values: Any) -> Any:
    for value in values:
        if value is not None:
            return value
    return None


class Operation:
    """One of a leaf's operations.

    `start` processes a leaf. It returns None when it has finished, or a generator if the leaf must wait until all
    leaves with this operation have arrived: it yields a payload, and receives the total that `combine` makes of all.

    Attributes:
        path: The stage's entry in the state.
        role: "enter" or "leave" for the operations of a combinator around those of its inner transformation, which
            share a path; else "op".
        traits: What combinators and back ends may assume of it.
        partners: The ranks with which it exchanges tensors in some steps, if any (`Team`).
    """

    path: Path = ()
    role = "op"
    traits = Traits()
    partners: Any = None

    def compute_dtype(self, leaf: Leaf) -> torch.dtype:
        """Return the dtype that it computes in."""
        return leaf.compute_dtype

    @property
    def barrier(self) -> Barrier:
        """Where leaves wait for one another."""
        return self.path, self.role

    @property
    def represents(self) -> list[Operation]:
        """The operations that it represents in a program."""
        return [self]

    @property
    def owned_paths(self) -> list[Path]:
        """The stages whose slots are kept by the owner of a leaf."""
        return []

    @property
    def ignores_sizes(self) -> bool:
        """Whether it looks at entries, and at nothing of the shape of a leaf but the number of these at most."""
        return self.traits.elementwise

    def refusal(self, leaf: Leaf, skips_work: bool) -> str:
        """Return why programs may not run it for this leaf, in words; empty if they may.

        Args:
            leaf: The leaf.
            skips_work: Whether programs skip work that is not due.
        """
        may_run = skips_work and self.traits.skippable
        return "" if may_run else self.traits.refusal

    def check(self, leaf: Leaf) -> None:
        """Raise an error for extras that do not fit the leaf, before any computation."""

    def prepare(self, leaves: list[Leaf]) -> None:
        """Compute what needs the values of all leaves that pass through it, before any is processed."""

    def init(self, leaf: Leaf) -> None:
        """Write the leaf's initial slots to `leaf.new`."""

    @property
    def starts_alike(self) -> bool:
        """Whether leaves of one shape, dtype and device, which selectors treat alike, have equal initial slots."""
        kind = type(self)
        return (kind.init, kind.init_all) == (Operation.init, Operation.init_all)

    def starts_at_zero(self, slot: str) -> bool:
        """Whether an initial slot is 0 in all entries, if leaves start alike."""
        return False

    @property
    def following_slots(self) -> list[str]:
        """The slots that only leaves with 16-bit weights have, and that follow from others."""
        return []

    def follow(self, leaf: Leaf) -> None:
        """Write to `leaf.new` those slots that follow from others."""

    def init_all(self, members: list[Leaf]) -> None:
        """Finish initialization; called once, after `init` of all leaves that pass through it."""

    def start(self, leaf: Leaf) -> Steps | None:
        raise NotImplementedError

    def combine(self, waiting: list[tuple[Leaf, dict[str, Any]]]) -> Any:
        """Return the sums over leaves, added in name order."""
        names = [leaf.name for leaf, _ in waiting]
        order = sorted(range(len(names)), key=names.__getitem__)
        first, sums = waiting[order[0]]
        for leaf, payload in waiting:
            if payload.keys() != sums.keys():
                raise ValueError(
                    f"{'.'.join(self.path)}: leaf {leaf.name!r} yields the sums {sorted(payload)}, "
                    f"but leaf {first.name!r} yields {sorted(sums)}; all leaves must yield the same sums"
                )
        total = {}
        for key in sums:
            total[key] = total_of([waiting[i][1][key].to(first.device) for i in order])
        return total

    def evaluate(self, leaf: Leaf) -> Any:
        """Return the tensor to evaluate with in place of the parameter, or None."""
        return None


def name_of_leaf(item: tuple[Leaf, Any]) -> str:
    return item[0].name


class Branch:
    """A fork in the program: every leaf continues with the route for its label."""

    def __init__(self, path: Path, selector: Any, routes: dict[Any, Route]):
        self.path = path
        self.selector = selector
        self.routes = routes


class Route:
    """A sequence of operations, and the selectors of leaves that are frozen within it."""

    def __init__(self, operations: list[Any], frozen: list[tuple[Path, Any]]):
        self.operations = operations
        self.frozen = frozen
        self._forks = Branch in map(type, operations)

    @classmethod
    def of(cls, tx: Any, run: Run, count: Any, around: Any = None) -> Route:
        """Expand a whole transformation for one run, optionally inside a frame (see `Enter.between`)."""
        frozen = []
        operations = tx._expand(Scope(run, (), count, frozen))
        if around is not None:
            operations = around.between(operations)
        return cls(operations, frozen)

    def for_leaf(self, leaf: Leaf) -> list[Operation]:
        """Return the operations of a leaf."""
        if self.is_frozen(leaf):
            return [FROZEN]
        if leaf.is_stored_only:
            if leaf.has_gradient:
                raise stored_only_error(leaf)
            return [FROZEN]
        operations = self._operations_for(leaf) if self._forks else self.operations
        for operation in operations if leaf.is_complex else ():
            if not operation.traits.takes_complex:
                raise complex_error(operation.path[-1], leaf)
        return operations

    def _operations_for(self, leaf: Leaf) -> list[Operation]:
        """Return the operations on a leaf's route through the branches."""
        operations = []
        for operation in self.operations:
            if isinstance(operation, Branch):
                label = leaf.run.choice(operation.path, leaf, operation.selector)
                operations.extend(operation.routes[label].for_leaf(leaf))
            else:
                operations.append(operation)
        return operations

    def labels(self, leaf: Leaf) -> list[tuple[Any, Any]]:
        """Return (selector, label) for every partition with named branches that the leaf passes through."""
        pairs = []
        for operation in self.operations:
            if isinstance(operation, Branch):
                label = leaf.run.choice(operation.path, leaf, operation.selector)
                if operation.selector.branches is not None:
                    pairs.append((operation.selector, label))
                pairs.extend(operation.routes[label].labels(leaf))
        return pairs

    def is_frozen(self, leaf: Leaf) -> bool:
        return any(
            leaf.run.choice(path, leaf, selector) for path, selector in self.frozen
        )

    def walk(self, choices: Mapping[Path, Any] | None = None) -> Iterator[Operation]:
        """Yield every operation, including those in branches; `choices` (path -> label) restricts the branches."""
        for operation in self.operations:
            if not isinstance(operation, Branch):
                yield operation
                continue
            for label, route in operation.routes.items():
                if choices is None or choices.get(operation.path, label) == label:
                    yield from route.walk(choices)

    def traits(self) -> Traits:
        """Return the traits of the chain of all operations, including those in branches."""
        return Traits.combined(operation.traits for operation in self.walk())

    def clock_paths(self) -> frozenset[Path]:
        """Return the paths of inner clocks."""
        return frozenset(
            operation.path for operation in self.walk() if operation.traits.has_clock
        )


def evaluation_weights(leaf: Leaf, operations: list[Any]) -> Any:
    """Return the evaluation weights of the last link that has any, or None."""
    for operation in reversed(operations):
        weights = operation.evaluate(leaf)
        if weights is not None:
            return weights
    return None


def stored_only_error(leaf: Leaf) -> TypeError:
    """Return the error for a gradient of a leaf whose dtype torch does not compute with."""
    return TypeError(
        f"leaf {leaf.name!r} has dtype {leaf.param_dtype}, which torch stores but does not add to; keep trained "
        "weights in 16 bits or more, or pass no gradient (None) for it"
    )


def complex_error(link: str, leaf: Leaf) -> TypeError:
    """Return the error for a link that cannot process a complex leaf."""
    return TypeError(
        f"{link}: leaf {leaf.name!r} is complex, which this link does not support because it depends on more "
        f"than entries and norms; {REMEDY}, or send the leaf to another transformation with partition(...)"
    )


def prepare(leaves: Iterable[Leaf]) -> None:
    """Prepare the operations of a run, each once."""
    passing: dict[Path, tuple[Operation, list[Leaf]]] = {}
    for leaf in leaves:
        for operation in leaf.operations:
            if operation.traits.prepares:
                passing.setdefault(operation.path, (operation, []))[1].append(leaf)
    for operation, members in passing.values():
        operation.prepare(members)


class _ZeroUpdate(Operation):
    """The only operation of a frozen leaf, which sets its update to exactly zero."""

    def start(self, leaf: Leaf) -> None:
        leaf.update = torch.zeros_like(leaf.update)


class _Negate(Operation):
    """Negates the gradient for `maximize`, which minimizes the negated loss."""

    def start(self, leaf: Leaf) -> None:
        leaf.saved[self] = leaf.grad
        leaf.update, leaf.grad = -leaf.update, -leaf.grad
        leaf.negated = True


class _BeginAlias(Operation):
    """Sets the gradient of the links in an alias to the input of the alias."""

    def start(self, leaf: Leaf) -> None:
        leaf.saved[self] = leaf.grad
        leaf.grad = leaf.update


class _EndAlias(Operation):
    """Restores the outer gradient for the links after an alias."""

    def __init__(self, begin: _BeginAlias):
        self._begin = begin

    def start(self, leaf: Leaf) -> None:
        # Absent if a link inside created an update for a leaf without a gradient.
        if self._begin in leaf.saved:
            leaf.grad = leaf.saved.pop(self._begin)


def around_alias(operations: list[Any]) -> list[Any]:
    """Wrap the operations of an alias whose input is not the gradient that the clock saw."""
    begin = _BeginAlias()
    return [begin, *operations, _EndAlias(begin)]


class _EndNegated(Operation):
    """Restores the gradient for the links after a transformation that maximizes."""

    def __init__(self, begin: _Negate):
        self._begin = begin

    def start(self, leaf: Leaf) -> None:
        # Absent if a link inside created an update for a leaf without a gradient.
        leaf.grad = leaf.saved.pop(self._begin, leaf.grad)
        leaf.negated = False


def negating(operations: list[Any]) -> list[Any]:
    """Let the operations of a transformation that maximizes see the gradient of the negated loss."""
    begin = _Negate()
    return [begin, *operations, _EndNegated(begin)]


FROZEN = _ZeroUpdate()


def _keep_results(leaf: Leaf) -> None:
    """Do nothing: results stay in the leaf."""


# A task, its operation that waits, and the payload, or the total.
Waiting: TypeAlias = tuple[Task, Steps | None, Any]


def resumed(steps: Steps | None, total: Any = None) -> Any:
    """Continue an operation; return the payload with which it waits again, or None if it has finished."""
    if steps is None:
        return None
    try:
        return steps.send(total)
    except StopIteration:
        return None


class Observer(Protocol):
    """Sees each operation of each task before it runs, or goes on after a wait, and each task after its last one."""

    def enter(self, leaf: Any, operation: Any) -> None: ...

    def check(self, leaf: Any) -> None: ...


def execute(
    tasks: Iterable[Any],
    finish: Callable[[Any], None] = _keep_results,
    watch: Observer | None = None,
    before_writes: Callable[[], None] | None = None,
) -> None:
    """Run every task through its operations, and call `finish` for each as soon as it is done.

    With `before_writes`, tasks that write wait until no task is blocked any more, and it has been called.
    A `watch` sees every operation; `eagerly(nan="raise")` adds one that sees those of torch, too, and checks results.
    """
    finds_nan = SWITCH.raises_on_nan and not torch.compiler.is_compiling()
    if finds_nan and not isinstance(watch, _WithFinder):
        finder = FirstNonFinite()
        with _torch.intercepting(finder.call):
            execute(tasks, finish, _WithFinder(watch, finder), before_writes)
        return
    blocked: dict[Barrier, list[Waiting]] = {}

    def advance(task: Any, steps: Steps | None, total: Any = None) -> None:
        if watch is not None and steps is not None:
            watch.enter(task, task.operations[task.at])
        # A shortcut, here and below: few operations wait.
        payload = None if steps is None else resumed(steps, total)
        while payload is None:
            task.at += 1
            if task.at >= len(task.operations):
                if watch is not None:
                    watch.check(task)
                finish(task)
                return
            if watch is not None:
                watch.enter(task, task.operations[task.at])
            steps = task.start(task.operations[task.at])
            payload = None if steps is None else resumed(steps)
        barrier = task.operations[task.at].barrier
        blocked.setdefault(barrier, []).append((task, steps, payload))

    for task in tasks:
        task.at = -1
        advance(task, None)
    held: list[Waiting] = []
    while blocked:
        is_single = len(blocked) == 1
        waiting = blocked.pop(
            next(iter(blocked)) if is_single else _next_barrier(blocked)
        )
        adding = [row for row in waiting if not row[0].only_follows]
        first, *_ = adding[0]
        total = first.run.combined(first.operations[first.at], _by_leaf(adding))
        for task, steps, _ in waiting:
            is_next_last = task.at + 2 == len(task.operations)
            if before_writes is not None and task.writes and is_next_last:
                held.append((task, steps, total))
            else:
                advance(task, steps, total)
    if before_writes is not None:
        before_writes()
    for task, steps, total in held:
        advance(task, steps, total)


class _WithFinder:
    """An observer, if there is one, and what finds the first value that is not finite."""

    def __init__(self, watch: Observer | None, finder: FirstNonFinite):
        self._observers = (finder,) if watch is None else (watch, finder)

    def enter(self, leaf: Any, operation: Any) -> None:
        for observer in self._observers:
            observer.enter(leaf, operation)

    def check(self, leaf: Any) -> None:
        for observer in self._observers:
            observer.check(leaf)


class LeafTerms(list[tuple[Any, Any]]):
    """The payload of a task that processes several leaves: a (leaf, payload) pair for each."""


def _by_leaf(waiting: list[Waiting]) -> list[tuple[Any, Any]]:
    """Return a (leaf, payload) pair for each waiting leaf."""
    by_leaf = []
    for task, _, payload in waiting:
        by_leaf.extend(payload if isinstance(payload, LeafTerms) else [(task, payload)])
    return by_leaf


def _next_barrier(blocked: dict[Barrier, list[Waiting]]) -> Barrier:
    """Return the barrier to lift next, in path order, because leaves arrive in another order on other processes."""
    for barrier in sorted(blocked):
        if not _is_still_expected(barrier, blocked):
            return barrier
    raise AssertionError("every barrier waits for a leaf that is blocked at another")


def _is_still_expected(barrier: Barrier, blocked: dict[Barrier, list[Waiting]]) -> bool:
    """Whether a task that waits at another barrier has yet to reach this one."""
    for other, waiting in blocked.items():
        if other == barrier:
            continue
        for task, *_ in waiting:
            later = task.operations[task.at + 1 :]
            if any(operation.barrier == barrier for operation in later):
                return True
    return False


def initialize(leaves: list[Leaf]) -> None:
    """Create the initial slots for every leaf's program."""
    members: dict[Operation, list[Leaf]] = {}
    for leaf in leaves:
        for operation in leaf.operations:
            operation.init(leaf)
            members.setdefault(operation, []).append(leaf)
    for operation, passing in members.items():
        operation.init_all(passing)
