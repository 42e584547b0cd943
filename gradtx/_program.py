"""How a chain runs: every tensor goes through a list of operations; sums over tensors are barriers.

Functional use and the adapter share this module: both make `Leaf` objects, expand a transformation into a
`Block` of operations and call `execute`. Where old state is found is their `Run`'s affair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import functorch
from gradtx._context import Clock, Context, Moment
from gradtx._sharding import is_sharded, local, placed_as, stacked

Path = tuple[str, ...]


class Leaf:
    """One tensor on its way through a chain: what it is, where it stands, what came of it."""

    update: Any  # None where there is no gradient
    grad: Any
    param: Any
    given: tuple[Any, Any]

    def __init__(
        self, run: Run, name: str, update: Any, param: Any, extras: dict[str, Any], clock: Clock, like: Any = None
    ):
        self.run, self.name, self.extras, self.clock = run, name, extras, clock
        self._context: Context | None = None
        stored = param if param is not None else like if like is not None else update
        given = update if update is not None else stored
        self.device, self.dtype, self.param_dtype = stored.device, given.dtype, stored.dtype
        # Rules never see half precision.
        single = stored.dtype is torch.float32 and given.dtype is torch.float32
        self.wide = torch.float32 if single else _promoted(stored.dtype, given.dtype, torch.float32)
        self.given = (update, param)
        self.update = None if update is None else update.to(self.wide)
        self.param = None if param is None else param.to(self.wide)
        self.grad = self.update
        self.negated = False  # whether its gradient is that of minus the loss: `maximize`
        self.active: Tensor | None = None  # a 0-d bool where the leaf may turn out to be skipped
        self.new: dict[Path, dict[str, Tensor]] = {}
        self.saved: dict[Any, Any] = {}
        self.key: Any = None  # the adapter's own handle of the tensor, and where it keeps the state
        self.state: dict[str, Any] = {}
        self.layout: Any = None
        self.window: slice | None = None  # where this is a part of a flattened tensor
        self.program: list[Any] = []
        self.at = 0
        self.pending: Any = None

    def moment(self) -> Moment:
        return self.clock.on(self.device)

    def context(self, dtype: torch.dtype) -> Context:
        """What rules may know, the same for all links as long as clock, gradient and dtype stay."""
        context = self._context
        if context is None or not context.holds_for(self.clock, self.grad, dtype):
            context = self._context = Context(self, self.clock, dtype)
        return context

    def accepted(self, new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
        """New slots, unless the leaf turned out to be skipped."""
        if self.active is None:
            return new
        return {slot: torch.where(self.active, value, old[slot]) for slot, value in new.items()}

    def release(self) -> None:
        """Let go of what was computed, once it is written: temporary memory is that of one leaf."""
        self.update = self.grad = self.param = self._context = None
        self.new, self.saved = {}, {}

    def result(self) -> Tensor | None:
        """The update after the last link, rounded once."""
        if self.update is None:
            return None
        return placed_as(self.update.to(self.dtype), self.given[0] if self.given[1] is None else self.given[1])


class Run:
    """One call of `init` or `update`: where operations find shared values and leave new ones.

    `initial` says which of the two. Subclasses know where the old state is.
    """

    initial = False
    watches = False  # whether rules that work in place are found out
    keeps_trees = False  # whether a pair of plain functions may keep a tree of its own
    device = torch.device("cpu")
    known_extras: Container[str] = ()
    leaf_extras: Container[str] = ()  # those given by leaf

    def __init__(self) -> None:
        self.new_shared: dict[Path, dict[str, Any]] = {}
        self.new_trees: dict[Path, Any] = {}
        self.stages: dict[Path, str] = {}
        self.opaque: set[Path] = set()  # stages whose state is a tree of the user's
        self.free: set[Path] = set()  # stages that may keep any shared scalars
        self.declared: dict[Path, Container[str]] = {}  # the shared scalars of the others
        self.selectors: list[Any] = []
        self.clock_paths: dict[Any, Path] = {}  # place of a wrapper with a clock -> its path
        self.commits: list[Callable[[], None]] = []
        self.memory = Memory()

    def watch(self) -> None:
        """Find out rules that work in place, where tensors are plain ones."""
        self.watches = not torch.compiler.is_compiling() and functorch.peek_interpreter_stack() is None

    def scalars(self, path: Path) -> dict[str, Tensor]:
        """The old 0-d values of a stage that all leaves share."""
        raise NotImplementedError

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        """The old slots of a leaf at a stage."""
        raise NotImplementedError

    def tree(self, path: Path) -> Any:
        """The old state of a pair of plain functions."""
        raise NotImplementedError

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        """What a selector decided for a leaf at init."""
        raise NotImplementedError

    def select(self, accept: Tensor, new: Any, old: Any) -> Any:
        """A user's new state where `accept`, else the old one."""
        raise NotImplementedError

    def by_name(self, tree: Any) -> dict[str, Any]:
        """The reverse of `whole`."""
        raise NotImplementedError

    def whole(self, values: dict[str, Any]) -> Any:
        """Leaves by name as the tree that the caller uses; leaves that are not given are None."""
        raise NotImplementedError

    def gradients_at(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The caller's `grad_fn` at the parameters with some leaves replaced."""
        raise NotImplementedError

    def combined(self, operation: Operation, waiting: list[tuple[Leaf, Any]]) -> Any:
        """What the leaves that wait at an operation get."""
        return operation.combine(waiting)

    def shared(self, path: Path, start: dict[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """A stage's shared scalars: the old ones, or at init those that `start` makes, which are then written down."""
        self.declared[path] = tuple(start)
        if self.initial:
            self.new_shared[path] = {name: make() for name, make in start.items()}
            return self.new_shared[path]
        found = self.scalars(path)
        for name in start:
            if name not in found:
                raise lacking((*path, name))
            if found[name].ndim:
                shape = tuple(found[name].shape)
                raise ValueError(f"state has {'.'.join([*path, name])!r} of shape {shape}, needs 0-d; {OWN_STATE}")
        return {name: found[name] for name in start}


class Memory:
    """Sees to it that no output shares memory with an input, or with another output."""

    def __init__(self) -> None:
        self._taken: dict[Any, bool] = {}

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Inputs, whose memory no output may have."""
        self._taken.update({memory_of(tensor): True for tensor in tensors})

    def fresh(self, tensor: Tensor, besides: Container[Any] = ()) -> Tensor:
        """An output: itself, or a copy where its memory is taken, or is among some others'."""
        key = memory_of(tensor)
        if key in self._taken or key in besides:
            tensor = tensor.clone()
        self._taken[memory_of(tensor)] = True
        return tensor


def clock_at(place: tuple[int, ...], clock_paths: Mapping[Any, Path]) -> Path | None:
    """Where the clock of a node stands that is at this place; None for the outermost one."""
    paths = (clock_paths.get(place[:n]) for n in range(len(place), -1, -1))
    return next((path for path in paths if path is not None), None)


OWN_STATE = "pass the state made by this chain's own init, with these parameters"


def lacking(path: Iterable[str], leaf: str | None = None) -> ValueError:
    """The error for a state without something that this chain keeps, of one leaf or of all."""
    return ValueError(f"state lacks {'.'.join(path)!r}{'' if leaf is None else f' of leaf {leaf!r}'}; {OWN_STATE}")


def memory_of(tensor: Tensor) -> Any:
    """What identifies a tensor's memory, also inside vmap and grad; while dynamo traces, the tensor or its base."""
    if torch.compiler.is_compiling():
        return tensor if tensor._base is None else tensor._base
    try:
        return local(tensor).untyped_storage()._cdata
    except NotImplementedError:  # a tensor of a transform has no memory of its own
        return memory_of(functorch.get_unwrapped(tensor))


class Scope:
    """Where in a chain expansion stands: the path of state entries, and the clock that schedules follow."""

    def __init__(self, run: Run, path: Path, count: Any, frozen: list[Any], state_dtype: Any = None, place: Any = ()):
        self.run, self.path, self.count, self.frozen, self.state_dtype = run, path, count, frozen, state_dtype
        self.place = place  # the indices of children that lead here; None inside an alias
        self._counts: dict[str, int] = {}

    def below(self, i: int) -> Any:
        return None if self.place is None else (*self.place, i)

    def claim(self, name: str) -> Path:
        """The path of the next stage called `name`: a second one is `name_1`."""
        n = self._counts.get(name, 0)
        self._counts[name] = n + 1
        path = (*self.path, name if n == 0 else f"{name}_{n}")
        self.run.stages[path] = name
        return path

    def skip(self, name: str) -> None:
        """Count a stage that is left out, so that the names of others don't depend on it."""
        self._counts[name] = self._counts.get(name, 0) + 1

    def inside(self, path: Path, count: Any = None) -> Scope:
        """The inside of a wrapper, which may own a clock; a freeze in it covers the whole chain around it."""
        count = self.count if count is None else count
        return Scope(self.run, path, count, self.frozen, self.state_dtype, self.below(0))

    def arm(self, path: Path, i: int) -> Scope:
        """The inside of one of several transformations that every leaf goes through; freezes as `inside`."""
        self.run.stages[path] = path[-1]
        return Scope(self.run, path, self.count, self.frozen, self.state_dtype, self.below(i))

    def branch(self, path: Path, i: int) -> Scope:
        """The inside of a branch: a freeze in it covers the branch."""
        self.run.stages[path] = path[-1]
        return Scope(self.run, path, self.count, [], self.state_dtype, self.below(i))


class Operation:
    """A step of a leaf's program.

    `start` and `resume` do the work on `leaf`; they return None when done, or a payload to wait with until all
    leaves that have this operation are there. `combine` then makes of the payloads what `resume` gets.
    """

    path: Path = ()
    takes_none = False  # whether a leaf without gradient enters; others pass by
    agree: Mapping[str, Any] = {}  # hyperparameters that must be the same for all groups of an adapter
    elementwise = True  # whether entries of a leaf don't mix, sums over leaves apart
    compiles = True  # whether the adapter's compiled engine takes it
    hessian_period = 0  # how often it reads `hessian_diag`: at the first of so many steps; 0 is never

    def init(self, leaf: Leaf) -> None:
        """Put the leaf's first slots in `leaf.new`."""

    def start(self, leaf: Leaf) -> Any:
        raise NotImplementedError

    def resume(self, leaf: Leaf, total: Any) -> Any:
        raise NotImplementedError

    def combine(self, waiting: list[tuple[Leaf, dict[str, Any]]]) -> Any:
        """Sums over leaves, in float64, added in name order."""
        waiting = sorted(waiting, key=lambda item: item[0].name)
        device = waiting[0][0].device
        total = {}
        for leaf, payload in waiting:
            if payload.keys() != waiting[0][1].keys():
                raise ValueError(
                    f"{'.'.join(self.path)}: leaf {leaf.name!r} yields the sums {sorted(payload)}, "
                    f"leaf {waiting[0][0].name!r} {sorted(waiting[0][1])}"
                )
        for key in waiting[0][1]:
            terms = [payload[key].to(device) for _, payload in waiting]
            total[key] = terms[0] if len(terms) == 1 and not is_sharded(terms[0]) else stacked(terms).sum()
        return total

    def init_all(self) -> None:
        """Called once, after `init` of all leaves."""

    def evaluate(self, leaf: Leaf) -> Any:
        """The tensor to evaluate with in place of the parameter, or None."""
        return None


class Branch:
    """A fork in the program: every leaf takes the block of its label."""

    def __init__(self, path: Path, selector: Any, blocks: dict[Any, Block]):
        self.path, self.selector, self.blocks = path, selector, blocks


class Block:
    """Operations in order, and the selectors of what is frozen in them."""

    def __init__(self, operations: list[Any], frozen: list[tuple[Path, Any]]):
        self.operations, self.frozen = operations, frozen
        self._forks = any(isinstance(operation, Branch) for operation in operations)

    @classmethod
    def of(cls, tx: Any, run: Run, count: Any, around: Any = None) -> Block:
        """A whole transformation, expanded for one run; `around` it may be a wrapper's frame."""
        frozen: list[Any] = []
        operations = tx._expand(Scope(run, (), count, frozen))
        return cls(operations if around is None else around.between(operations), frozen)

    def for_leaf(self, leaf: Leaf) -> list[Operation]:
        if self.is_frozen(leaf):
            return [FROZEN]
        if not self._forks:
            return self.operations
        program: list[Operation] = []
        for operation in self.operations:
            if isinstance(operation, Branch):
                label = leaf.run.choice(operation.path, leaf, operation.selector)
                program.extend(operation.blocks[label].for_leaf(leaf))
            else:
                program.append(operation)
        return program

    def labels(self, leaf: Leaf) -> list[tuple[Any, Any]]:
        """(selector, label) of every partition that the leaf goes through."""
        found = []
        for operation in self.operations:
            if isinstance(operation, Branch):
                label = leaf.run.choice(operation.path, leaf, operation.selector)
                if operation.selector.labels != (True,):
                    found.append((operation.selector, label))
                found.extend(operation.blocks[label].labels(leaf))
        return found

    def is_frozen(self, leaf: Leaf) -> bool:
        return any(leaf.run.choice(path, leaf, selector) for path, selector in self.frozen)


def takes_none(operations: Iterable[Any]) -> bool:
    """Whether a leaf without gradient has business in these operations."""
    return any(
        any(takes_none(block.operations) for block in operation.blocks.values())
        if isinstance(operation, Branch)
        else operation.takes_none
        for operation in operations
    )


class _Frozen(Operation):
    def start(self, leaf: Leaf) -> None:
        leaf.update = torch.zeros_like(leaf.update)


class _Negate(Operation):
    def start(self, leaf: Leaf) -> None:
        leaf.update, leaf.grad = -leaf.update, -leaf.grad
        leaf.negated = not leaf.negated


FROZEN, NEGATE = _Frozen(), _Negate()


def _promoted(*dtypes: torch.dtype) -> torch.dtype:
    return functools.reduce(torch.promote_types, dtypes)


def execute(leaves: Iterable[Leaf], finish: Callable[[Leaf], None]) -> None:
    """Run every leaf through its program; `finish` is called for each as soon as it is through."""
    blocked: dict[Path, list[tuple[Leaf, Any]]] = {}

    def advance(leaf: Leaf, payload: Any) -> None:
        while payload is None:
            leaf.at += 1
            if leaf.at >= len(leaf.program):
                finish(leaf)
                return
            operation = leaf.program[leaf.at]
            if leaf.update is not None or operation.takes_none:
                payload = operation.start(leaf)
        blocked.setdefault(leaf.program[leaf.at].path, []).append((leaf, payload))

    for leaf in leaves:
        leaf.at = -1
        advance(leaf, None)
    while blocked:
        # Not in the order of arrival, which for divided tensors need not be that of other processes.
        path = next(path for path in sorted(blocked) if not _awaited(path, blocked))
        waiting = blocked.pop(path)
        first = waiting[0][0]
        total = first.run.combined(first.program[first.at], waiting)
        for leaf, _ in waiting:
            advance(leaf, leaf.program[leaf.at].resume(leaf, total))


def _awaited(path: Path, blocked: dict[Path, list[tuple[Leaf, Any]]]) -> bool:
    """True if a leaf that waits elsewhere has yet to come to `path`."""
    return len(blocked) > 1 and any(
        operation.path == path
        for other, waiting in blocked.items()
        if other != path
        for leaf, _ in waiting
        for operation in leaf.program[leaf.at + 1 :]
    )


def initialize(leaves: list[Leaf]) -> None:
    """First slots for every leaf's program."""
    for leaf in leaves:
        for operation in leaf.program:
            operation.init(leaf)
    for operation in {id(operation): operation for leaf in leaves for operation in leaf.program}.values():
        operation.init_all()
