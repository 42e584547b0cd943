"""`Space`, the body of combinators whose inner transformation sees every leaf in other coordinates.

A `Frame` does not change the form of a leaf. A space rotates or projects it: the update, gradient and parameter on
entry, the update on exit, and the inner slots between their stored form and the form that rules see.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import torch
from torch import Tensor

from gradtx.base.dtensor import is_sharded
from gradtx.base.errors import Path
from gradtx.distributed.redistribution import full_tensor
from gradtx.execution.context import Clock
from gradtx.execution.execute import Leaf, Route
from gradtx.execution.leaf_rule import Rule, RuleOperation, StageState
from gradtx.execution.runs import Run, Scope, as_flag, selected
from gradtx.execution.traits import DRAWS, Traits
from gradtx.rules import Combinator
from gradtx.transform import GradientTransformation


class LeafCoordinates:
    """The coordinates of one leaf in one call; these do not change it.

    Attributes:
        takes_part: Whether the inner transformation takes part in this call; a tensor if the host does not know.
        restarts: Whether inner slots start again from their initial values; a tensor if the host does not know.
        inside: The update that the inner transformation receives.
    """

    takes_part: bool | Tensor = True
    restarts: bool | Tensor = False
    inside: Tensor

    def average(self, value: Tensor, decay) -> Tensor | None:
        """Return a stored average of updates that includes this one, if this is cheaper than `write`; else None."""
        return None

    def inward(self, x: Tensor) -> Tensor:
        """Convert a vector of the leaf's space to the inner coordinates."""
        return x

    def read(self, kind: str, value: Tensor) -> Tensor:
        """Convert an inner slot from its stored form to the form that rules see."""
        return value

    def write(self, kind: str, value: Tensor) -> Tensor:
        """The reverse of `read`."""
        return value

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the inner update converted back to the leaf's space, and the new slots of the combinator."""
        return update, {}


class Coordinates:
    """The coordinates in which an inner transformation sees leaves; these are their own.

    Attributes:
        delayed: Whether the inner clock lags one step behind.
        needs_kinds: Whether inner slots need a kind.
        capturable, waits_at_first: Traits of its computations; see `Traits`.
        spreads_errors: Whether inner slots are stored in the leaf's own coordinates, so that errors in large entries
            reach small inner ones.
    """

    delayed = False
    needs_kinds = True
    capturable = True
    waits_at_first = False
    spreads_errors = False

    @property
    def draws(self) -> int | None:
        """The seed if the coordinates are drawn at random."""
        return None

    def init(self, param: Tensor, *random) -> dict[str, Any]:
        """Return the initial slots of the combinator."""
        return {}

    def of_leaf(self, update: Tensor, state, param, ctx) -> LeafCoordinates:
        """Return the coordinates of a leaf in one call; pure."""
        return LeafCoordinates()

    def inside(self, x: Tensor) -> Tensor:
        """Return a tensor in the shape that the inner transformation receives, for `init`."""
        return x

    def stored(self, value: Tensor, like: Tensor) -> Tensor:
        """Return the stored form of an initial inner slot, for a leaf shaped like `like`."""
        return value

    def changes(self, shape: torch.Size) -> Any:
        """Return a true value if the inner coordinates of leaves of a shape differ from their own."""
        return True


@dataclasses.dataclass(frozen=True)
class Space(Combinator):
    """The body of a combinator that changes coordinates.

    Attributes:
        inner: The inner transformation.
        coordinates: Its coordinates.
        reads_grad: Whether coordinates or inner links may read `ctx.grad`.
    """

    inner: GradientTransformation
    coordinates: Coordinates
    reads_grad: bool = True

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        run = SpaceRun(self, scope, path, name)
        inside = scope.inside(path, 0)
        inside.space = run
        inside.lag += self.coordinates.delayed
        inside = inside.amplifying(self.coordinates.spreads_errors)
        inner = self.inner._expand(inside)
        by_leaf = self.coordinates.draws is None and all(map(can_run_at_owner, inner))
        enter = EnterSpace(run, scope, Route(inner, []), by_leaf)
        operations = [enter, *inner, LeaveSpace(enter)]
        has_spaces = any(isinstance(operation, EnterSpace) for operation in inner)
        if by_leaf and not (has_spaces or reads_by_leaf(self.inner)):
            run_at_owner(operations, self.inner, self.reads_grad)
        return operations

    def rejects(self) -> tuple[str, ...]:
        return ("rounds", "averages", "takes None", "makes gradient")


@dataclasses.dataclass(eq=False)
class Inside:
    """What is inside a combinator in one call."""

    run: Run
    path: Path

    def contains(self, path: Path) -> bool:
        """Whether a path belongs to the inner transformation."""
        depth = len(self.path)
        return len(path) > depth and path[:depth] == self.path

    def keep_shared(self, accept: Tensor, restarts: bool | Tensor) -> None:
        """Keep the old shared values, which may restart nevertheless, unless the new ones are accepted."""
        new_shared = self.run.new_shared
        for path in filter(self.contains, new_shared):
            old = self.run.kept_shared(path, restarts)
            # A branch that none of these leaves enters has no old values.
            if old:
                new_shared[path] = selected(accept, new_shared[path], old)


@dataclasses.dataclass
class Outside:
    """What a combinator changes of a leaf for its inner transformation, as it was before."""

    update: Any
    grad: Any
    param: Any
    clock: Clock
    active: Tensor | None
    restarts: bool | Tensor
    counts: bool

    @classmethod
    def of(cls, leaf: Leaf) -> Self:
        return cls(
            leaf.update,
            leaf.grad,
            leaf.param,
            leaf.clock,
            leaf.active,
            leaf.restarts,
            leaf.counts,
        )

    def restore(self, leaf: Leaf) -> None:
        """Restore everything but the update, and whether the leaf takes part."""
        leaf.grad = self.grad
        leaf.param = self.param
        leaf.clock = self.clock
        leaf.restarts = self.restarts


class SpaceRun(Inside):
    """A space in one call."""

    def __init__(self, space: Space, scope: Scope, path: Path, name: str):
        super().__init__(scope.run, path)
        self.space = space.coordinates
        self.name = name
        self.outer: SpaceRun | None = scope.space
        self.reads_params = "params" in space.inner.needs
        # Whether each leaf took part; a chain is expanded for each group of an optimizer, but has one state.
        self.taking_part: list[bool | Tensor] = self.run.taking_part.setdefault(
            path, []
        )
        self._restarts = scope.restarts
        self._clocks: dict[Clock, Clock] = {}
        if self.space.delayed and not self.run.initial:
            self.run.commits.append(self._commit)

    def stand_in(self, leaf: Leaf, like: Tensor) -> Tensor:
        """Return a tensor in the inner coordinates before the first step, for a leaf like this one."""
        return self.space.inside(full_tensor(self._like(leaf, like)))

    def _like(self, leaf: Leaf, like: Tensor) -> Tensor:
        return like if self.outer is None else self.outer.stand_in(leaf, like)

    def first(self, rule: Rule, slot: str, value, leaf: Leaf, like: Tensor) -> Any:
        """Convert a slot that an inner `init` returned to its stored form."""
        if not isinstance(value, Tensor):
            return value  # which the store refuses
        self._check_kind(rule, slot, value, self.stand_in(leaf, like))
        value = self.space.stored(value, self._like(leaf, like))
        return (
            value
            if self.outer is None
            else self.outer.first(rule, slot, value, leaf, like)
        )

    def read(self, rule: Rule, slot: str, value: Tensor, leaf: Leaf) -> Tensor:
        """Return an inner slot as the rule sees it."""
        if self.outer is not None:
            value = self.outer.read(rule, slot, value, leaf)
        coordinates: LeafCoordinates = leaf.saved[self]
        value = full_tensor(value)
        declared = rule.slot(slot)
        if declared.decay is not None and leaf.update is coordinates.inside:
            average = coordinates.average(value, declared.decay)
            if average is not None:
                leaf.saved[self, id(rule), slot] = average  # for `write`
        return coordinates.read(declared.kind, value)

    def write(self, rule: Rule, slot: str, value: Tensor, leaf: Leaf) -> Tensor:
        """The reverse of `read`."""
        coordinates: LeafCoordinates = leaf.saved[self]
        average = leaf.saved.pop((self, id(rule), slot), None)
        value = (
            coordinates.write(rule.slot(slot).kind, value)
            if average is None
            else average
        )
        return (
            value if self.outer is None else self.outer.write(rule, slot, value, leaf)
        )

    def _check_kind(self, rule: Rule, slot: str, value: Tensor, like: Tensor) -> None:
        """Raise an error for a slot that needs a kind and has none."""
        has_kind = rule.slot(slot).kind and value.shape in (like.shape, ())
        is_scalar = value.ndim == 0 and like.ndim > 0
        if has_kind or is_scalar or not self.space.needs_kinds:
            return
        raise TypeError(
            f"{self.name}: the inner link {rule.name!r} has the slot {slot!r}, which cannot be rotated as far as is "
            f"known; if it is a vector or has one value for each coordinate, let the rule return "
            f"{{{slot!r}: gradtx.slots.linear()}} or square() in place of init; else move the link outside"
        )

    def clock(self, outside: Clock) -> Clock:
        """Return the clock of the inner transformation."""
        if not self.space.delayed:
            return outside
        if outside not in self._clocks:
            # The inner transformation never takes part in the first step.
            step = (outside.step - 1).clamp(min=1)
            step_on_host = (
                None
                if outside.step_on_host is None
                else max(outside.step_on_host - 1, 1)
            )
            self._clocks[outside] = Clock(step, step_on_host, max(outside.least - 1, 1))
        return self._clocks[outside]

    def _commit(self) -> None:
        """Keep the old shared values of the inner transformation if no leaf took part."""
        like = torch.empty((), device=self.run.device)
        flags = [as_flag(mark, like) for mark in self.taking_part]
        takes_part = torch.stack(flags).any() if flags else torch.tensor(False)
        self.keep_shared(takes_part, self._restarts)


def can_run_at_owner(operation) -> bool:
    """Whether an operation may run on a single rank: it has no sums over leaves, no shared values, no randomness."""
    if not isinstance(operation, RuleOperation) or operation.rule.shared:
        return False
    traits = operation.traits
    return not (traits.has_sums or traits.of_leaf or traits.random)


def run_at_owner(
    operations: list[Any], tx: GradientTransformation, reads_grad: bool = True
) -> None:
    """Let the owner of a sharded leaf run the operations of a transformation, and those around them.

    The owner runs them as written, so programs for other leaves do not fuse them: both must round alike.
    """
    reads_param = "params" in tx.needs
    owner_reads = ("param",) * reads_param + ("grad",) * reads_grad
    for i, operation in enumerate(operations):
        operation.traits = dataclasses.replace(
            operation.traits,
            at_owner=True,
            begins_at_owner=i == 0,
            owner_reads=owner_reads,
        )


def reads_by_leaf(tx: GradientTransformation) -> bool:
    """Whether any link reads an extra with a separate value for each leaf."""
    kinds = [kind for link in tx._every_link() for kind in link._extras.values()]
    return "hessian_diag" in tx.needs or any(kind.startswith("leaf") for kind in kinds)


class LazyInnerTensor:
    """A tensor in the inner coordinates, computed on first use."""

    def __init__(self, coordinates: LeafCoordinates, tensor: Tensor):
        self._coordinates = coordinates
        self._tensor = tensor
        self._inside: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Tensor:
        if self._inside is None:
            self._inside = self._coordinates.inward(full_tensor(self._tensor).to(dtype))
        return self._inside.to(dtype)

    def __neg__(self) -> LazyInnerTensor:
        return LazyInnerTensor(self._coordinates, -self._tensor)


# Why programs may not run a space.
STAYS = "only programs over lists skip the work of steps in which its basis stays"
SHARES = "what is inside draws random numbers, or has sums or values of all leaves"


class EnterSpace(RuleOperation):
    """Convert a leaf to the inner coordinates, before the inner transformation."""

    role = "enter"

    def __init__(self, run: SpaceRun, scope: Scope, inner: Route, by_leaf: bool):
        space = run.space
        refusal = STAYS if by_leaf else SHARES
        if space.draws is not None:
            refusal = DRAWS
        traits = Traits(
            elementwise=False,
            takes_complex=False,
            refusal=refusal,
            skippable=by_leaf,
            capturable=space.capturable,
            waits_at_first=space.waits_at_first,
            random=space.draws is not None,
            keeps_slots=True,
            needs_all_rows="its coordinates are those of the whole leaf",
        )
        rule = Rule(
            run.name,
            space.of_leaf,
            traits,
            space.init,
            seed=space.draws,
        )
        stage = StageState(run.path, scope.amplifying(True), rule)
        super().__init__(rule, stage)
        self.space_run = run
        self.inner = inner

    def refusal(self, leaf: Leaf, skips_work: bool) -> str:
        """Without skipping, programs compute no bases and take no part in the space's commit."""
        changes = self.space_run.space.changes(leaf.shape)
        return super().refusal(leaf, skips_work or not changes)

    def compute_dtype(self, leaf: Leaf) -> torch.dtype:
        """Return the widest dtype that any inner link computes in, since the coordinates convert all their values."""
        dtype = super().compute_dtype(leaf)
        for operation in self.inner.walk():
            dtype = torch.promote_types(dtype, operation.compute_dtype(leaf))
        return dtype

    def _begin(self, leaf: Leaf) -> None:
        compute_dtype = self.compute_dtype(leaf)
        if leaf.update.dtype != compute_dtype:
            as_given = leaf.update
            leaf.update = as_given.to(compute_dtype)
            leaf.grad = leaf.update if leaf.grad is as_given else leaf.grad
        call = self._call(leaf)
        whole = call.with_full_tensors() if is_sharded(call.update) else call
        coordinates: LeafCoordinates = self._guarded(whole)
        leaf.saved[self] = call, Outside.of(leaf)
        leaf.saved[self.space_run] = coordinates
        update = coordinates.inside = coordinates.inward(whole.update)
        leaf.grad = (
            update
            if leaf.grad is leaf.update
            else LazyInnerTensor(coordinates, leaf.grad)
        )
        leaf.update = update
        reads_param = self.space_run.reads_params and leaf.param is not None
        leaf.param = coordinates.inward(whole.param) if reads_param else None
        leaf.clock = self.space_run.clock(leaf.clock)
        if coordinates.restarts is not False:
            leaf.restarts = coordinates.restarts | leaf.restarts
        self.space_run.taking_part.append(coordinates.takes_part)
        if coordinates.takes_part is not True:
            part = torch.as_tensor(coordinates.takes_part, device=leaf.device)
            leaf.active = part if leaf.active is None else part & leaf.active


class LeaveSpace(RuleOperation):
    """Convert a leaf back from the inner coordinates, after the inner transformation."""

    role = "leave"

    def __init__(self, enter: EnterSpace):
        super().__init__(enter.rule, enter.stage)
        self.traits = enter.traits
        self._enter = enter

    def refusal(self, leaf: Leaf, skips_work: bool) -> str:
        return self._enter.refusal(leaf, skips_work)

    def init(self, leaf: Leaf) -> None:
        """Do nothing: `EnterSpace` initializes the slots."""

    def _begin(self, leaf: Leaf) -> None:
        call, outside = leaf.saved.pop(self._enter)
        coordinates: LeafCoordinates = leaf.saved.pop(self._enter.space_run)
        update, state = coordinates.leave(leaf.update)
        outside.restore(leaf)
        if coordinates.takes_part is not True:
            part = torch.as_tensor(coordinates.takes_part, device=leaf.device)
            update = torch.where(part, update, 0.0)
            leaf.active = outside.active
        leaf.update = outside.update
        self._set_update(call, update)
        self.stage.write(leaf, state, call.old)
