"""One call of `init` or `update`: the source of old values and the destination of new ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.complex_views import real_views
from gradtx.base.dtensor import local
from gradtx.base.errors import OWN_STATE, Path, StateKey, lacking
from gradtx.base.exact import CPU
from gradtx.base.forward import Leaf, Operation, SpaceRun, Transformation
from gradtx.base.jacobian import Jacobian, Vectorizer
from gradtx.base.plain import is_plain
from gradtx.distributed.sums import total_of
from gradtx.state.storage import Storage, Store

# The child indices on the path from a transformation to one of its nodes.
Place = tuple[int, ...]
Passed = tuple[tuple[Transformation, Place], ...]


class OwnMemory:
    """Ensure that every output has memory of its own, without entries of any other tensor."""

    def __init__(self) -> None:
        self._taken: dict[Any, bool] = {}

    def register(self, tensors: Iterable[Tensor]) -> None:
        """Register inputs, whose memory no output may share."""
        for tensor in tensors:
            self._taken[memory_of(tensor)] = True

    def unshared(self, tensor: Tensor, excluded: Container[Any] = ()) -> Tensor:
        """Return the tensor unchanged, or a copy if its memory is taken, is listed in `excluded`, or holds more."""
        key, fills_memory = _memory_and_use(tensor)
        if key in self._taken or key in excluded or not fills_memory:
            tensor = tensor.clone()
            key = memory_of(tensor)
        self._taken[key] = True
        return tensor


def memory_of(tensor: Tensor) -> Any:
    """Return a key for a tensor's memory, also inside vmap and grad; while dynamo traces, the tensor or its base."""
    return _memory_and_use(tensor)[0]


def _memory_and_use(tensor: Tensor) -> tuple[Any, bool]:
    """Return the key of a tensor's memory, and whether the tensor has all its entries, each once.

    A slice has not, nor has what `expand` returns.
    """
    if torch.compiler.is_compiling():
        base = _torch.base_of(tensor)
        return tensor if base is None else base, True
    tensor = _torch.below_transforms(local(tensor))
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # of a transform that cannot be unwrapped
        return id(tensor), True
    # Other classes manage their memory themselves.
    return storage._cdata, not is_plain(tensor) or storage.nbytes() == tensor.nbytes


class LateTerm(NamedTuple):
    """The destination of a leaf's term in a sum over leaves that is not read within the same step.

    Attributes:
        path, name: The path and name of the shared value that stores the sum.
        finish: Function of the sum that returns the stored value.
    """

    path: Path
    name: str
    finish: Callable[[Tensor], Tensor]


class Run:
    """One call of `init` or `update`; subclasses look up the old state.

    Attributes:
        initial: Whether this is a call of `init`.
        is_recorded: Whether a program is recorded, whose leaf stands for any leaves and has no name of its own.
        is_pure: Whether the state is the caller's tree, which has the shared values of all stages, and any trees of
            plain functions.
        has_shards: Whether leaves are shards without their layouts, whose sums are terms of those of whole leaves.
        device: The device of shared values.
        known_extras: The kind of each extra that any link of the chain declares.
        leaf_extras: The extras that have a separate value for each leaf.
        call_extras: The extras that all leaves share.
        new_shared: The new 0-d values of each stage.
        starts: The initial 0-d values of stages that may restart in this call.
        late_sums: The sums that are complete only when all leaves have finished, by path and name: how each is stored,
            and its terms by leaf.
        sums: The sums that decide whether a clock counts, by the barrier at which leaves waited (`Operation.barrier`).
        new_trees: The new state of each pair of plain functions.
        stages: The name of each stage, in the order of the chain.
        opaque: The stages whose state is a user's tree.
        free: The stages whose shared values may have any names.
        declared: The names of the shared values of all other stages.
        random_indices: The index of each random stage among those of the chain, in their order.
        selectors: All selectors of the chain.
        clock_paths: The path of each combinator with a clock, by its place.
        inner_counts: The number of finished updates on each combinator's clock, after any restart in this call.
        ticks: Whether each of these clocks counts this call, as far as this is known.
        stores: The store of each stage, which converts its slots.
        seen_slots: The slots that each `state_dtype` applies to; recorded at init.
        taking_part: Whether each leaf took part in a space whose clock lags, by the path of the space.
        commits: Functions to call when all leaves are finished, in reverse order.
        estimates: What operations have prepared, by path.
        estimated_loss: The loss that they have computed; None if none has.
        ways: How rules for whole trees have computed their steps, in words, by path.
        measured: What these have measured, 0-d tensors by name, by path.
        relay: Carries a failure from one mesh to another (`Relay`); None where all messages go to the same ranks.
    """

    initial = False
    is_recorded = False
    is_pure = False
    has_shards = False
    device = CPU
    known_extras: Mapping[str, str] = {}
    leaf_extras: Container[str] = ()
    call_extras: Mapping[str, Any] = {}
    relay: Any = None

    def __init__(self) -> None:
        self.new_shared: dict[Path, dict[str, Any]] = {}
        self.starts: dict[Path, dict[str, Tensor]] = {}
        self.late_sums: dict[StateKey, tuple[LateTerm, dict[str, Any]]] = {}
        self.sums: dict[Any, Mapping[str, Tensor]] = {}
        self.new_trees: dict[Path, Any] = {}
        self.stages: dict[Path, str] = {}
        self.opaque: set[Path] = set()
        self.free: set[Path] = set()
        self.declared: dict[Path, Container[str]] = {}
        self.random_indices: dict[Path, int] = {}
        self.selectors: list[Any] = []
        self._resolved: dict[Any, Any] = {}
        self.clock_paths: dict[Place, Path] = {}
        self.inner_counts: dict[Path, Tensor] = {}
        self.ticks: dict[Path, Tensor] = {}
        self.taking_part: dict[Path, list[bool | Tensor]] = {}
        self.commits: list[Callable[[], None]] = []
        self.estimates: dict[Path, Any] = {}
        self.estimated_loss: Tensor | None = None
        self.ways: dict[Path, str] = {}
        self.measured: dict[Path, dict[str, Tensor]] = {}
        self.memory = OwnMemory()
        self.stores: dict[Path, Store] = {}
        self.seen_slots: dict[Storage, set[StateKey]] = {}

    # Subclasses look up the old state.

    def scalars(self, path: Path) -> dict[str, Tensor]:
        """Return the old shared values of a stage."""
        raise NotImplementedError

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        """Return the old slots of a leaf at a stage, with real views of complex ones."""
        keys = leaf.layout.slots.get(path, {})
        slots = {slot: leaf.state[key] for slot, key in keys.items()}
        return real_views(slots) if leaf.is_complex else slots

    def tree(self, path: Path) -> Any:
        """Return the old state of a pair of plain functions."""
        raise NotImplementedError

    def kept_shared(self, path: Path, restarts: Any) -> dict[str, Tensor]:
        """Return the old shared values of a stage whose new ones are discarded: the initial ones if it restarts."""
        return restarted(self.scalars(path), self.starts.get(path, {}), restarts)

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        """Return the decision that a selector made for a leaf at init."""
        raise NotImplementedError

    def resolved(self, selector: Any, params: Callable[[], Any]) -> Any:
        """Return a selector; one that asks a function of the whole tree as that of these parameters, asked once."""
        if not getattr(selector, "needs_tree", False):
            return selector
        key = selector.who, selector.key
        if key not in self._resolved:
            self._resolved[key] = selector.resolved(params())
        return self._resolved[key]

    def by_name(self, tree: Any) -> dict[str, Any]:
        """The reverse of `whole`."""
        raise NotImplementedError

    def whole(self, values: dict[str, Any]) -> Any:
        """Build the caller's tree from leaves by name; missing leaves are None."""
        raise NotImplementedError

    def gradients_at(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients from the caller's `grad_fn` with some leaves replaced."""
        raise NotImplementedError

    def value_along(
        self,
        origin: dict[str, Tensor],
        direction: dict[str, Tensor],
        length: Tensor,
        sloped: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss from the caller's `value_fn` with some leaves moved along a direction, and its slope."""
        raise NotImplementedError

    def linearized(
        self,
        extra: str,
        finish: Vectorizer,
        params: dict[str, Tensor],
    ) -> Jacobian:
        """Return the Jacobian by some leaves of the vector that `finish` makes of what the function returns."""
        raise NotImplementedError

    def evaluated(
        self,
        extra: str,
        finish: Vectorizer,
        params: dict[str, Tensor],
    ) -> Tensor:
        """Return this vector with some leaves at other values."""
        raise NotImplementedError

    def follow_loss(
        self, extra: str, finish: Vectorizer, loss_of: Callable[[Tensor], Tensor]
    ) -> None:
        """Let `value_along` compute the loss, as `loss_of` makes it of the vector of the caller's function."""
        raise NotImplementedError

    def typical_call(self, how: str) -> str:
        """Return how a caller passes an extra, for messages."""
        raise NotImplementedError

    def tensor_of(self, leaf: Leaf) -> Tensor:
        """Return the parameter of a leaf."""
        return leaf.param

    def losses_along(
        self, estimator: Any, points: list[tuple[int, Any]], leaves: list[Leaf]
    ) -> list[Tensor]:
        """Return the losses from the caller's `value_fn` at points along random directions: (sample, length)."""
        raise NotImplementedError

    def recorded_owner(
        self, operation: Operation, leaf: Leaf, payload: Mapping[str, Tensor]
    ) -> Tensor | None:
        """While recording a program, return a stand-in for the result that a leaf's owner computes from `payload`."""
        return None

    def as_written(
        self, operation: Operation, leaf: Leaf
    ) -> AbstractContextManager[None]:
        """Return a context in which an operation that owners compute runs exactly as written, without fusion."""
        return nullcontext()

    def fusion_barrier(self, update: Tensor) -> Tensor:
        """Return the update, marked as a fusion boundary between links that owner ranks compute and other links."""
        return update

    # Common to all subclasses.

    def add_late(self, key: LateTerm, leaf: str, term: Any) -> None:
        """Add the term of a leaf, or of part of a leaf, to a sum that is complete when all leaves have finished."""
        name = key.path, key.name
        _, terms = self.late_sums.setdefault(name, (key, {}))
        terms[leaf] = terms[leaf] + term if leaf in terms else term

    def end(self) -> None:
        """Complete the late sums, in name order, then let combinators accept or reject new shared values."""
        for key, terms in self.late_sums.values():
            total = total_of(
                [term.to(self.device) for _, term in sorted(terms.items())]
            )
            self.new_shared.setdefault(key.path, {})[key.name] = key.finish(total)
        for commit in reversed(self.commits):
            commit()
        self.release()

    def release(self) -> None:
        """Forget what refers to the run: a cycle would keep its tensors until Python's garbage collector runs."""
        self.commits.clear()
        self.stores.clear()

    def random_index(self, path: Path) -> int:
        """Return the index of a random stage among those of the chain; a stage may be expanded more than once."""
        return self.random_indices.setdefault(path, len(self.random_indices))

    def clock_path(self, place: Place) -> Path | None:
        """Return the path of the clock that a node at this place follows; None for the outermost clock."""
        for length in range(len(place), -1, -1):
            path = self.clock_paths.get(place[:length])
            if path is not None:
                return path
        return None

    def combined(self, operation: Operation, waiting: list[tuple[Leaf, Any]]) -> Any:
        """Return the total for the leaves that wait at an operation."""
        total = operation.combine(waiting)
        if operation.traits.has_clock:
            self.sums[operation.barrier] = total
        return total

    def shared(
        self, path: Path, start: Mapping[str, Callable[[], Tensor]]
    ) -> dict[str, Tensor]:
        """Return a stage's old shared values; at init, create them with `start` and record them."""
        self.declared[path] = tuple(start)
        old = {} if self.initial else self.scalars(path)
        # In an optimizer, a branch without leaves keeps none.
        if self.initial or not (self.is_pure or old):
            first = {name: make() for name, make in start.items()}
            if self.initial:
                self.new_shared[path] = first
            return first
        for name in start:
            if name not in old:
                raise lacking((*path, name))
            if old[name].ndim:
                shape = tuple(old[name].shape)
                raise ValueError(
                    f"state has {'.'.join([*path, name])!r} of shape {shape}, needs 0-d; {OWN_STATE}"
                )
        return {name: old[name] for name in start}


def as_flag(flag: bool | Tensor, like: Tensor) -> Tensor:
    """Return a decision as a bool tensor on the device of `like`."""
    return (
        flag.to(like.device)
        if isinstance(flag, Tensor)
        else torch.full_like(like, flag, dtype=torch.bool)
    )


def selected(
    condition: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the new values where a 0-d condition holds, else the old ones."""
    return {name: torch.where(condition, new[name], old[name]) for name in new}


def moved_along(
    origin: dict[str, Tensor], direction: dict[str, Tensor], length: Tensor
) -> dict[str, Tensor]:
    """Return the parameters after a step of this length along `direction`."""
    return {
        name: origin[name] + length.to(step.device, step.dtype) * step
        for name, step in direction.items()
    }


def restarted(
    values: dict[str, Tensor], first: Mapping[str, Tensor], restarts: bool | Tensor
) -> dict[str, Tensor]:
    """Return the initial values if their stage restarts, else the present ones."""
    if not isinstance(restarts, Tensor):
        return {**values, **first} if restarts else values
    return {
        name: torch.where(restarts.to(value.device), first.get(name, value), value)
        for name, value in values.items()
    }


@dataclasses.dataclass
class Scope:
    """The current position while a chain is expanded: path of state entries, count, options.

    Attributes:
        run: The call that the operations belong to.
        path: The path of the enclosing combinator's state entry.
        count: The number of finished updates that schedules follow.
        frozen: Collects the selectors of `freeze`, for the enclosing route.
        state_dtype: How slots are stored, unless a link specifies otherwise.
        place: The child indices that lead here; None inside an alias, whose own links have no public place.
        changed: Whether an earlier link has processed the updates since the clock saw the gradient.
        restarts: Whether an enclosing combinator restarts its inner transformation in this call.
        names: How often each stage name has been claimed at this path.
        space: The innermost enclosing combinator that changes coordinates, if any.
        own: The hyperparameters of the combinator that expands here.
        negated: Whether a transformation around this position maximizes, and has negated the gradient.
        lag: How many steps the clock of the leaves is behind `count`.
        amplified: Whether small errors in slots here can become as large as the result of this link or a later one.
        passed: The transformations that the enclosing alias, or link that stands for a chain, received, with their
            places, which they keep inside.
    """

    run: Run
    path: Path
    count: Any
    frozen: list[Any]
    state_dtype: Storage | None = None
    place: Place | None = ()
    changed: bool = False
    restarts: bool | Tensor = False
    names: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # dynamo takes no dict[...]()
    space: SpaceRun | None = None
    passed: Passed = ()
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lag: int = 0
    negated: bool = False
    amplified: bool = False

    def finished_updates(self) -> Any:
        """Return the number of finished updates on the clock of the leaves."""
        if not self.lag:
            return self.count
        updates = self.count - self.lag
        return updates.clamp(min=0) if isinstance(updates, Tensor) else max(updates, 0)

    def shared(
        self, path: Path, start: Mapping[str, Callable[[], Tensor]]
    ) -> dict[str, Tensor]:
        """Return the shared values of a stage; initial values from `start` if an enclosing combinator restarts."""
        values = self.run.shared(path, start)
        if self.restarts is False or self.run.initial:
            return values
        first = self.run.starts[path] = {name: start[name]() for name in values}
        return restarted(values, first, self.restarts)

    def claim(self, name: str) -> Path:
        """Return the path of the next stage called `name`; the second such stage is `name_1`."""
        occurrence = self.names.get(name, 0)
        self.names[name] = occurrence + 1
        path = (*self.path, name if occurrence == 0 else f"{name}_{occurrence}")
        self.run.stages[path] = name
        return path

    def skip(self, name: str) -> None:
        """Count a stage that is left out, so that the names of other stages do not depend on it."""
        self.names[name] = self.names.get(name, 0) + 1

    def child(self, i: int, changed: bool = False, amplified: bool = False) -> Scope:
        """Return the position of the i-th child of a chain.

        Args:
            i: Its number.
            changed: Whether earlier links process the updates.
            amplified: Whether later links can make small errors in them as large as their result.
        """
        return self._with(
            place=self._child_place(i),
            changed=self.changed or changed,
            amplified=self.amplified or amplified,
        )

    def amplifying(self, amplifies: bool) -> Scope:
        """Return the position of a link that may amplify errors in its own slots."""
        return self._with(amplified=self.amplified or amplifies)

    def alias(self, passed: Passed) -> Scope:
        """Return the position inside an alias. Its links have no places, and their gradient is the alias's input."""
        return self.inner_chain(passed)._with(changed=False)

    def again(self) -> Scope:
        """Return this position with a copy of the claimed names, so that a second expansion yields the same paths."""
        return self._with(names=dict(self.names))

    def inner_chain(self, passed: Passed) -> Scope:
        """Return the position inside a link that stands for a chain. The links of that chain have no places."""
        if self.place is None:
            return self._with()
        of_chain = tuple((tx, (*self.place, *place)) for tx, place in passed)
        return self._with(place=None, passed=of_chain)

    def of(self, tx: Transformation) -> Scope:
        """Return the position of `tx`, which has a place again if it was passed to an enclosing alias or link."""
        if self.place is None:
            for argument, place in self.passed:
                if argument is tx:
                    return self._with(place=place)
        return self

    def stored_as(self, storage: Storage | None) -> Scope:
        """Return this position with a different storage for slots; None keeps the storage."""
        if storage is None:
            return self
        if self.run.initial:
            self.run.seen_slots.setdefault(storage, set())
        return self._with(state_dtype=storage)

    def inside(self, path: Path, i: int = 0, count: Any = None) -> Scope:
        """Return the position inside a combinator, which may own a clock. A freeze inside covers the outer chain."""
        self.run.stages.setdefault(path, path[-1])
        scope = self._with(path=path, place=self._child_place(i), names={})
        if count is not None:
            scope.count = count
            scope.lag = 0
        return scope

    def _with(self, **changes: Any) -> Scope:
        # Not dataclasses.replace: older versions of dynamo cannot trace it.
        values = {name: getattr(self, name) for name in _FIELDS}
        return Scope(**{**values, **changes})

    def _child_place(self, i: int) -> Place | None:
        return None if self.place is None else (*self.place, i)


_FIELDS = tuple(field.name for field in dataclasses.fields(Scope))
