"""Update only the rows of a table that have a gradient: `lazy_rows`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base.exact import exact_dtype
from gradtx.combinators._spaces import Inside, Outside
from gradtx.execution.execute import Branch, Leaf, Operation, Route, Steps
from gradtx.execution.leaf_rule import Rule, RuleOperation, StageState
from gradtx.execution.runs import Scope
from gradtx.execution.traits import Traits
from gradtx.rules import Combinator, combinator
from gradtx.state.slots import numbered
from gradtx.transform import GradientTransformation

__all__ = ["lazy_rows"]

# Links whose result is proportional to the weights and updates that they receive.
PROPORTIONAL = frozenset(
    (
        "add_decayed_weights",
        "decay_after_step",
        "scale",
        "scale_by_inverse_time",
        "scale_by_learning_rate",
    )
)
DECAYS = frozenset(("add_decayed_weights", "decay_after_step"))
LAST_STEP = "last_step"


@combinator
def lazy_rows(tx: GradientTransformation, catch_up: bool = False):
    r"""Update only the rows of each leaf that have a gradient; weights and slots of other rows stand still.

    A row is an index of the first dimension, such as a word of an embedding. A row of zeros counts as one without a
    gradient. For sparse gradients, which list their rows, any transformation skips the others; this one also does so
    for dense gradients, and in links whose momentum would move rows, as that of `sgd` does. Neither do other rows add
    anything to norms and other sums.

    With `catch_up`, a row that has missed $k$ steps makes up for them when it has a gradient again, before its step:
    averages with decay $\beta$ are multiplied by $\beta^k$, and weights by $(1 - \eta \lambda)^k$ with decoupled decay.
    Both are then exactly what they would be in `tx` itself, which sees gradients of 0, as long as $\eta$ and $\lambda$
    are constant; under a schedule, the present ones count for all missed steps. What is not made up for are the steps
    that a momentum would have made meanwhile.

    Args:
        tx: A transformation whose links may update rows alone: element by element, or by sums over a row.
        catch_up: Whether rows make up for decay that they have missed. Every slot of `tx` has to declare its decay.

    Returns:
        A transformation with the entries of `tx`. With `catch_up`, its own state is `last_step`, an integer per row:
        the step in which the row had its last gradient, 0 before the first one.

    Raises:
        TypeError: If a link of `tx` also processes leaves without a gradient, as `accumulate` does, or computes the
            gradient: put `lazy_rows` inside.
        ValueError: If a link of `tx` needs all rows of a leaf; with `catch_up`, also if a slot or a weight decay of it
            is not known to be a decay, if a slot comes behind a momentum, or if a link inside counts steps itself.

    Example:
        >>> tx = gradtx.lazy_rows(gradtx.adamw(lr=0.1))
        >>> params = {"table": torch.ones(3, 2)}
        >>> grads = {"table": torch.tensor([[0.0, 0.0], [2.0, -2.0], [0.0, 0.0]])}
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["table"]
        tensor([[1.0000, 1.0000],
                [0.8990, 1.0990],
                [1.0000, 1.0000]])

    Source: torch.optim.SparseAdam for the rows; the lazy decay of Bottou 2012, Stochastic Gradient Descent Tricks.
    Departures: any rule; decay that is made up for is optional.
    """
    return LazyRows(tx, catch_up)


@dataclasses.dataclass(frozen=True)
class LazyRows(Combinator):
    """The body of `lazy_rows`."""

    inner: GradientTransformation
    catch_up: bool

    def rejects(self) -> tuple[str, ...]:
        return ("rounds", "takes None", "makes gradient", "exchanges")

    def expand(self, scope: Scope, name: str) -> list[Any]:
        path = scope.claim(name)
        enter = EnterRows(scope, path, name, self.catch_up)
        inner = self.inner._expand(scope.inside(path, 0))
        for operation in Route(inner, []).walk():
            if operation.traits.moving_slot is not None:
                standing = dataclasses.replace(operation.traits, moving_slot=None)
                operation.traits = standing
        return [enter, *_with_zeros(inner, enter), LeaveRows(enter)]


def _with_zeros(
    operations: Iterable[Any], enter: EnterRows, is_first: bool = True
) -> list[Any]:
    """Return operations with zeros in rows without a gradient before each that sums, to which these add nothing."""
    result: list[Any] = []
    for operation in operations:
        if isinstance(operation, Branch):
            for route in operation.routes.values():
                route.operations = _with_zeros(route.operations, enter, is_first)
        elif not is_first and _may_sum(operation):
            result.append(ZeroRows(enter))
        result.append(operation)
        is_first = False
    return result


def _may_sum(operation: Operation) -> bool:
    """Whether an operation may sum over rows, or keep an update for a later one that does."""
    traits = operation.traits
    is_rule = isinstance(operation, RuleOperation) and operation.role == "op"
    return traits.has_sums or traits.of_leaf or not (traits.elementwise and is_rule)


def _decay_of(rules: list[RuleOperation]) -> list[RuleOperation]:
    """Return the links from the first weight decay on, which decay weights in a step without a gradient."""
    names = [operation.rule.name for operation in rules]
    first = next((i for i, name in enumerate(names) if name in DECAYS), len(rules))
    return rules[first:]


def _check_rows(name: str, operations: Iterable[Operation]) -> None:
    """Check that links may update rows alone.

    Raises:
        ValueError: If one needs all rows.
    """
    for operation in operations:
        reason = operation.traits.needs_all_rows
        if reason:
            raise ValueError(
                f"{name}: {operation.path[-1]} cannot update some rows alone: {reason}; move it outside of {name}, or "
                "use masked for its leaves"
            )


def _check_clocks(name: str, operations: Iterable[Operation]) -> None:
    """Check that links make a step whenever `lazy_rows` makes one.

    Raises:
        ValueError: If one may not.
    """
    for operation in operations:
        if operation.traits.has_clock or isinstance(operation, EnterRows):
            inner = operation.path[-1]
            raise ValueError(
                f"{name}: catch_up counts the steps of {name}, but {inner} inside of it counts its own; put {name} "
                f"inside, as in {inner}({name}(...)), or omit catch_up"
            )


def _check_decay(name: str, rules: list[RuleOperation], leaf: Leaf) -> None:
    """Check that links change slots and weights by a factor in a step without a gradient.

    Raises:
        ValueError: If one changes them otherwise.
    """
    decay = _decay_of(rules)
    for operation in rules:
        rule = operation.rule
        _check_slots(name, operation, leaf)
        if operation not in decay and not is_off(
            rule.arguments.get("weight_decay", 0.0)
        ):
            raise ValueError(
                f"{name}: catch_up cannot make up for the weight decay of {rule.name}, which is not a link of its own; "
                "omit catch_up or this decay"
            )
    for operation in decay:
        if operation.rule.name not in PROPORTIONAL:
            raise ValueError(
                f"{name}: catch_up makes up for decoupled weight decay, but {operation.rule.name} follows this decay; "
                "use decoupled decay, as adamw does"
            )
    _check_order(name, rules)


def _check_slots(name: str, operation: RuleOperation, leaf: Leaf) -> None:
    """Check that a step without a gradient changes the slots of a link by a factor.

    Raises:
        ValueError: If one does not say its factor.
    """
    rule = operation.rule
    for slot, value in numbered(operation.stage.init_slots(leaf)).items():
        if value.ndim and rule.slot(slot).fading is None:
            raise ValueError(
                f"{name}: catch_up does not know what a step without a gradient makes of {slot!r} of {rule.name}; "
                "declare it with a decay, as slots.square(decay=beta2), or omit catch_up"
            )


def _check_order(name: str, rules: list[RuleOperation]) -> None:
    """Check that slots receive zeros in a step without a gradient.

    Raises:
        ValueError: If a momentum comes first, which then still moves them.
    """
    momentum = None
    for operation in rules:
        fading = [x for x in operation.rule.slots.values() if not is_off(x.fading, 1.0)]
        fading = [slot for slot in fading if slot.kind != "scalar"]
        if fading and momentum is not None:
            raise ValueError(
                f"{name}: catch_up multiplies the slots of {operation.rule.name} by their decay, but those of "
                f"{momentum}, which comes before it, may move them without a gradient; omit catch_up"
            )
        if any(slot.kind == "linear" for slot in fading):
            momentum = operation.rule.name


class EnterRows(RuleOperation):
    """Finds the rows of a leaf that have a gradient, and lets them make up for what they have missed."""

    role = "enter"

    def __init__(self, scope: Scope, path: Any, name: str, catch_up: bool):
        traits = Traits(elementwise=False, keeps_slots=catch_up)
        rule = Rule(
            name, _unused, traits, init=_first if catch_up else None, single=True
        )
        super().__init__(rule, StageState(path, scope, rule))
        self.inside = Inside(scope.run, path)
        self.catches_up = catch_up

    def init(self, leaf: Leaf) -> None:
        name = self.rule.name
        inside = [x for x in leaf.operations if self.inside.contains(x.path)]
        _check_rows(name, inside)
        if self.catches_up:
            _check_clocks(name, inside)
            _check_decay(name, _rules_of(inside), leaf)
            super().init(leaf)

    def _begin(self, leaf: Leaf) -> None:
        leaf.saved[self] = outside = RowsOutside.of(leaf)
        outside.has_gradient = has_gradient = _nonzero_rows(leaf.update)
        if not self.catches_up:
            return
        old, state = self.stage.read(leaf, leaf.compute_dtype)
        step, last = leaf.clock.on(leaf.device).step, state[LAST_STEP]
        by_row = last.reshape(has_gradient.shape)
        missed = torch.where(has_gradient, (step - by_row - 1).clamp(min=0), 0)
        outside.missed = leaf.missed
        leaf.missed = missed = missed.to(exact_dtype(leaf.update))
        steps = torch.where(has_gradient.reshape(last.shape), step, last)
        leaf.saved[self.stage] = {LAST_STEP: steps}, old
        inside = [x for x in leaf.operations if self.inside.contains(x.path)]
        decay = _decay_of(_rules_of(inside))
        if decay and leaf.param is not None:
            factor = self._factor(leaf, decay)
            leaf.param = (leaf.param * factor**missed).to(leaf.param.dtype)

    def _factor(self, leaf: Leaf, decay: list[RuleOperation]) -> Tensor:
        """Return what links multiply weights by in a step without a gradient."""
        weight = copy(leaf)
        dtype = exact_dtype(leaf.update)
        weight.update = torch.zeros((), dtype=dtype, device=leaf.device)
        weight.grad, weight.param = weight.update, torch.ones_like(weight.update)
        weight.inputs = weight.update, weight.param
        weight.missed, weight.new, weight.starts = None, {}, {}
        weight.probe, weight._context = None, None
        for operation in decay:
            operation.start(weight)
        return 1 + weight.update


@dataclasses.dataclass
class RowsOutside(Outside):
    """A leaf before `lazy_rows`.

    Attributes:
        has_gradient: Which rows have a gradient, with as many dimensions as the leaf.
        missed: What rows have missed outside.
    """

    has_gradient: Any = None
    missed: Any = None


class ZeroRows(RuleOperation):
    """Undoes what decay and momentum have made of the updates of rows without a gradient."""

    role = "zero"

    def __init__(self, enter: EnterRows):
        super().__init__(enter.rule, enter.stage)
        self._enter = enter

    def init(self, leaf: Leaf) -> None:
        """Do nothing: `EnterRows` creates the slots."""

    def _begin(self, leaf: Leaf) -> None:
        outside: RowsOutside = leaf.saved[self._enter]
        leaf.update = torch.where(outside.has_gradient, leaf.update, 0.0)


class LeaveRows(RuleOperation):
    """Lets rows without a gradient stand still."""

    role = "leave"

    def __init__(self, enter: EnterRows):
        super().__init__(enter.rule, enter.stage)
        self._enter = enter

    def init(self, leaf: Leaf) -> None:
        """Check the slots that inner operations have created; `EnterRows` creates those of this one."""
        count = len(leaf.param) if leaf.shape else 1
        for path, slots in leaf.new.items():
            if self._enter.inside.contains(path):
                for slot, value in slots.items():
                    self._check_slot(slot, value, count)

    def _begin(self, leaf: Leaf) -> Steps | None:
        outside: RowsOutside = leaf.saved.pop(self._enter)
        has_gradient, caught_up = outside.has_gradient, leaf.param
        for path, slots in leaf.new.items():
            if self._enter.inside.contains(path):
                old = leaf.kept_slots(path, leaf.restarts)
                leaf.new[path] = {
                    slot: self._kept(has_gradient, value, old[slot], slot)
                    for slot, value in slots.items()
                }
        outside.restore(leaf)
        leaf.missed = outside.missed
        update = leaf.update
        if caught_up is not leaf.param:
            update = update + (caught_up - leaf.param)
        leaf.update = torch.where(has_gradient, update, 0.0)
        if self._enter.catches_up:
            state, old = leaf.saved.pop(self._enter.stage)
            self.stage.write(leaf, state, old)

    def _kept(self, has_gradient: Tensor, value: Tensor, old: Tensor, slot: str) -> Any:
        """Return a slot with its old rows where there is no gradient."""
        count = has_gradient.numel()
        if not value.ndim or not has_gradient.ndim:
            return (
                torch.where(has_gradient, value, old)
                if value.ndim == has_gradient.ndim
                else value
            )
        self._check_slot(slot, value, count)
        by_row = has_gradient.reshape(count, *([1] * (value.ndim - 1)))
        return torch.where(by_row, value, old)

    def _check_slot(self, slot: str, value: Tensor, count: int) -> None:
        if value.ndim and len(value) != count:
            raise ValueError(
                f"{self.rule.name}: slot {slot!r} has shape {tuple(value.shape)}, without a row for each of the "
                f"{count} of its leaf; move what keeps it outside of {self.rule.name}"
            )


def _rules_of(operations: Iterable[Operation]) -> list[RuleOperation]:
    return [
        operation
        for operation in operations
        if isinstance(operation, RuleOperation) and not isinstance(operation, ZeroRows)
    ]


def _unused(update: Any, state: Any, param: Any, ctx: Any) -> Any:
    return update, state


def _first(param: Tensor) -> dict[str, Tensor]:
    return {LAST_STEP: param.new_zeros(param.shape[:1], dtype=torch.int64)}


def _nonzero_rows(update: Tensor) -> Tensor:
    """Return which rows of an update are not 0, with as many dimensions as it."""
    if update.ndim < 2:
        return update != 0
    if not update.numel():
        shape = len(update), *([1] * (update.ndim - 1))
        return torch.zeros(shape, dtype=torch.bool, device=update.device)
    return update.abs().amax(tuple(range(1, update.ndim)), keepdim=True) != 0
