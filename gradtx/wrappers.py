"""Combinators around one transformation, with slots or a clock of their own: `accumulate`, `skip_nonfinite`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._context import Clock
from gradtx._program import Leaf, Operation, Path, Scope, lacking, takes_none
from gradtx._stages import first_slots, value_for, widened
from gradtx.core import GradientTransformation, check_transformation
from gradtx.factories import Combinator, combinator

__all__ = ["accumulate", "skip_nonfinite"]


class Frame:
    """The run of a wrapper: own slots, and what stands before and after the inner operations."""

    def __init__(self, scope: Scope, name: str, tx: GradientTransformation):
        self.run, self.path, self.tx, self.state_dtype = scope.run, scope.claim(name), tx, scope.state_dtype

    def around(self, scope: Scope, count: Any = None) -> list[Any]:
        if count is not None:
            self.run.clock_paths[scope.place] = self.path
        inner = self.tx._expand(scope.inside(self.path, count))
        self.takes_none = self.takes_none or takes_none(inner)
        return self.between(inner)

    def between(self, inner: list[Any]) -> list[Any]:
        return [_Enter(self), *inner, _Exit(self)]

    takes_none = False
    agree: Mapping[str, Any] = {}  # what must be the same for all groups of an adapter

    def init_exit(self, leaf: Leaf) -> None:
        """First own slots, when those of the inner operations are there."""

    def evaluate(self, leaf: Leaf) -> Any:
        return None

    def holds(self, path: Path) -> bool:
        """Whether a path is one of the inner transformation's."""
        return len(path) > len(self.path) and path[: len(self.path)] == self.path

    def enter(self, leaf: Leaf) -> Any:
        return None

    def resume(self, leaf: Leaf, total: Any) -> Any:
        return None

    def exit(self, leaf: Leaf) -> None:
        pass

    def own(self, leaf: Leaf, *slots: str) -> dict[str, Tensor]:
        """Own slots as maths gets them, of which some must be there."""
        found = {slot: widened(value, leaf.wide) for slot, value in self.run.slots(self.path, leaf).items()}
        for slot in slots:
            if slot not in found:
                raise lacking((*self.path, slot), leaf.name)
        return found

    def store(self, leaf: Leaf, new: dict[str, Tensor]) -> None:
        """Own slots, in the dtypes they are kept in."""
        old = self.run.slots(self.path, leaf)
        kept = {slot: value_for(value, old[slot], self.path, slot, leaf.name) for slot, value in new.items()}
        leaf.new[self.path] = leaf.accepted(kept, old)

    def stored_dtype(self, leaf: Leaf) -> torch.dtype:
        return self.state_dtype or leaf.param_dtype

    def keep(self, leaf: Leaf, accept: Tensor) -> None:
        """Inner slots stay as they were unless `accept` (0-d bool)."""
        for path in leaf.new:
            if self.holds(path):
                old = self.run.slots(path, leaf)
                leaf.new[path] = {slot: torch.where(accept, new, old[slot]) for slot, new in leaf.new[path].items()}

    def keep_shared(self, accept: Tensor) -> None:
        """Inner shared values and trees stay as they were unless `accept`."""
        run = self.run
        for path in run.new_shared:
            old = run.scalars(path) if self.holds(path) else None
            if old:  # there are none of a branch that none of these leaves takes
                run.new_shared[path] = {
                    name: torch.where(accept, new, old[name]) for name, new in run.new_shared[path].items()
                }
        for path in filter(self.holds, run.new_trees):
            run.new_trees[path] = run.select(accept, run.new_trees[path], run.tree(path))


class _Enter(Operation):
    def __init__(self, frame: Any):
        self.frame, self.path, self.takes_none, self.agree = frame, frame.path, frame.takes_none, frame.agree

    def start(self, leaf: Leaf) -> Any:
        return self.frame.enter(leaf)

    def resume(self, leaf: Leaf, total: Any) -> Any:
        return self.frame.resume(leaf, total)


class _Exit(Operation):
    def __init__(self, frame: Any):
        self.frame, self.path = frame, (*frame.path, "")

    def init(self, leaf: Leaf) -> None:
        self.frame.init_exit(leaf)

    def start(self, leaf: Leaf) -> None:
        self.frame.exit(leaf)

    def evaluate(self, leaf: Leaf) -> Any:
        return self.frame.evaluate(leaf)


class _Accumulate(Frame):
    takes_none = True

    def __init__(self, scope: Scope, tx: GradientTransformation, every: int):
        super().__init__(scope, "accumulate", tx)
        zero = _zero_count(self.run)
        shared = self.run.shared(self.path, {"step": zero, "mini_step": zero})
        mini_step = shared["mini_step"] + 1
        self.every, self.emit, self.old_step = every, mini_step >= every, shared["step"]
        self.agree = {"every": every}
        self.clock = Clock(self.old_step + 1)
        if not self.run.initial:
            self.new = {
                "step": torch.where(self.emit, self.clock.step, self.old_step),
                "mini_step": torch.where(self.emit, torch.zeros_like(mini_step), mini_step),
            }
            self.run.commits.append(self.commit)

    def init_exit(self, leaf: Leaf) -> None:
        zeros = first_slots({"acc": torch.zeros_like(leaf.param)}, leaf.param, self.stored_dtype(leaf), "accumulate")
        leaf.new[self.path] = {**zeros, "seen": torch.zeros((), dtype=torch.bool, device=leaf.device)}

    def enter(self, leaf: Leaf) -> None:
        own = self.own(leaf, "acc", "seen")
        total, seen = own["acc"], own["seen"]
        active = leaf.active
        if leaf.update is not None and active is None:
            total, seen = total + leaf.update, torch.ones_like(seen)
        elif leaf.update is not None and active is not None:
            total, seen = torch.where(active, total + leaf.update, total), seen | active
        leaf.saved[self] = (leaf.clock, leaf.grad, total, seen)
        leaf.update = leaf.grad = total / self.every
        leaf.clock, leaf.active = self.clock, seen

    def exit(self, leaf: Leaf) -> None:
        leaf.clock, leaf.grad, total, seen = leaf.saved.pop(self)
        emit = self.emit.to(leaf.device)
        accept = emit if leaf.active is None else emit & leaf.active
        leaf.update = torch.where(accept, leaf.update, torch.zeros_like(leaf.update))
        leaf.active = None  # from here on it has an update, if a zero one
        self.keep(leaf, emit)
        self.store(leaf, {"acc": torch.where(emit, torch.zeros_like(total), total), "seen": seen & ~emit})

    def commit(self) -> None:
        self.keep_shared(self.emit)
        self.run.new_shared[self.path] = self.new


def _zero_count(run: Any) -> Callable[[], Tensor]:
    device = run.device
    return lambda: torch.zeros((), dtype=torch.int64, device=device)


class Wrapper(Combinator):
    def __init__(self, expand: Callable[[Scope], list[Any]]):
        self.expand = expand  # type: ignore[method-assign]


@combinator(example=lambda tx: {"tx": tx, "every": 2})
def accumulate(tx: GradientTransformation, every: int):
    r"""Average the gradients of `every` calls and update once.

    Calls in between return zero updates. The inner transformation has a clock of its own, which counts real
    updates; schedules inside follow it, and `ctx.grad` is the averaged gradient. A None gradient counts as zero;
    a leaf that saw only None in a cycle is skipped.

    Args:
        tx: What the averaged gradient goes through.
        every: Number of calls in a cycle, >= 1.

    Returns:
        A transformation with the state `step` and `mini_step` (int64), `acc` (the sum so far, shaped as the
        parameter), `seen` (bool, a leaf each) and the entries of `tx`.

    Raises:
        TypeError: `tx` is no transformation.
        ValueError: an `every` below 1.

    Example:
        >>> tx = gradtx.accumulate(gradtx.sgd(lr=1.0), every=2)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for gradient in (1.0, 3.0):
        ...     updates, state = tx.update({"w": torch.tensor([gradient])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-2.])
    """
    check_transformation("accumulate", "tx", tx)

    def expand(scope: Scope) -> list[Any]:
        frame = _Accumulate(scope, tx, every)
        return frame.around(scope, frame.old_step)

    return Wrapper(expand)


class _SkipNonfinite(Frame):
    def __init__(self, scope: Scope, tx: GradientTransformation):
        super().__init__(scope, "skip_nonfinite", tx)
        zero = _zero_count(self.run)
        shared = self.run.shared(self.path, {"step": zero, "skipped": zero})
        self.old_step, self.skipped = shared["step"], shared["skipped"]
        self.clock = Clock(self.old_step + 1)
        self.finite: Tensor | None = None
        if not self.run.initial:
            self.run.commits.append(self.commit)

    def enter(self, leaf: Leaf) -> Any:
        if leaf.update is None:  # on its way to an accumulation inside
            return {"bad": torch.zeros((), dtype=torch.float64, device=leaf.device)}
        bad = (~leaf.update.isfinite()).sum().to(torch.float64)
        return {"bad": bad if leaf.active is None else torch.where(leaf.active, bad, 0.0)}

    def resume(self, leaf: Leaf, total: Any) -> None:
        finite = self.finite = total["bad"] == 0
        leaf.saved[self] = (leaf.clock, leaf.grad)
        leaf.clock = self.clock
        if leaf.update is None:
            return
        # The inner rules run in any case; on zeros, so that no NaN comes back through a gradient of `where`.
        leaf.update = leaf.grad = torch.where(finite.to(leaf.device), leaf.update, torch.zeros_like(leaf.update))

    def exit(self, leaf: Leaf) -> None:
        leaf.clock, leaf.grad = leaf.saved.pop(self)
        assert self.finite is not None
        finite = self.finite.to(leaf.device)
        leaf.update = torch.where(finite, leaf.update, torch.zeros_like(leaf.update))
        self.keep(leaf, finite)

    def commit(self) -> None:
        finite = self.finite  # None where no leaf had a gradient: nothing to skip
        if finite is None:
            self.run.new_shared.setdefault(self.path, {"step": self.clock.step, "skipped": self.skipped})
            return
        finite = finite.to(self.old_step.device)
        self.keep_shared(finite)
        self.run.new_shared[self.path] = {
            "step": torch.where(finite, self.clock.step, self.old_step),
            "skipped": torch.where(finite, self.skipped, self.skipped + 1),
        }


@combinator(example=lambda tx: {"tx": tx})
def skip_nonfinite(tx: GradientTransformation):
    """Skip an update, with its state and its count, if any leaf of it is not finite.

    A skipped call returns zero updates. The inner clock counts real updates. No value is read on the host.

    Args:
        tx: What finite updates go through.

    Returns:
        A transformation with the state `step` and `skipped` (int64: how many calls did and did not count) and the
        entries of `tx`.

    Raises:
        TypeError: `tx` is no transformation.

    Example:
        >>> tx = gradtx.skip_nonfinite(gradtx.sgd(lr=1.0))
        >>> updates, state = tx.update({"w": torch.tensor([float("nan")])}, tx.init({"w": torch.zeros(1)}))
        >>> updates["w"], state["skip_nonfinite"]["skipped"]
        (tensor([0.]), tensor(1))
    """
    check_transformation("skip_nonfinite", "tx", tx)

    def expand(scope: Scope) -> list[Any]:
        frame = _SkipNonfinite(scope, tx)
        return frame.around(scope, frame.old_step)

    return Wrapper(expand)
