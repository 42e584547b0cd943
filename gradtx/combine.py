"""Combinators: transformations of transformations."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import describe
from gradtx._program import Block, Branch, Clock, Leaf, Operation, Path, Scope
from gradtx._stages import first_slots, value_for, widened
from gradtx.core import Combinator, GradientTransformation, chain, check_transformation, combinator, per_tensor

Where = str | tuple[str, ...] | Callable[[str, Tensor], bool]


@torch.compiler.assume_constant_result
def _first_match(name: str, patterns: tuple[tuple[str, ...], ...]) -> int:
    """The index of the first group of patterns that the name matches, or -1."""
    return next((i for i, group in enumerate(patterns) if any(fnmatch.fnmatchcase(name, p) for p in group)), -1)


class Selector:
    """Chooses a label for a leaf: the first whose patterns match, or whose predicate is true.

    Patterns decide by name, at any time; what a predicate said about the parameter at init is remembered.
    """

    def __init__(self, owner: str, labels: Any, wheres: Any):
        self.owner, self.labels, self._wheres = owner, labels, wheres
        self.by_name = isinstance(wheres, tuple) and all(isinstance(where, tuple) for where in wheres)

    @classmethod
    def of(cls, owner: str, where: Any) -> Selector:
        """A choice between True, where `where` holds, and False."""
        return cls(owner, (True,), (_patterns(owner, where),))

    def choose(self, name: str, tensor: Any) -> Any:
        if self.by_name:
            found = _first_match(name, self._wheres)
        elif isinstance(self._wheres, tuple):
            found = -1
            for i, where in enumerate(self._wheres):
                if _first_match(name, (where,)) == 0 if isinstance(where, tuple) else where(name, tensor):
                    found = i
                    break
        else:
            label = self._wheres(name, tensor)
            if label not in self.labels:
                raise ValueError(f"{self.owner}: leaf {name!r} has label {label!r}; labels: {_listed(self.labels)}")
            return label
        if found >= 0:
            return self.labels[found]
        if self.labels == (True,):
            return False
        raise ValueError(
            f"{self.owner}: leaf {name!r} has no label; add a pattern that matches it, such as '*' for the rest"
        )

    def mark(self, path: Path, label: Any) -> Path | None:
        """Where the state marks the leaf as a member; None where a missing mark says it."""
        return (path if label is True else None) if self.labels == (True,) else (*path, label)

    def recall(self, path: Path, marked: Callable[[Path], bool]) -> Any:
        if self.labels == (True,):
            return marked(path)
        return next((label for label in self.labels if marked((*path, label))), None)

    def check_used(self, names: list[str]) -> None:
        for where in self._wheres if isinstance(self._wheres, tuple) else ():
            for pattern in where if isinstance(where, tuple) else ():
                if names and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                    raise ValueError(f"{self.owner}: {pattern!r} matches no leaf; leaves: {_listed(names)}")


def _patterns(owner: str, where: Any) -> Any:
    if isinstance(where, str):
        return (where,)
    if isinstance(where, list | tuple) and where and all(isinstance(item, str) for item in where):
        return tuple(where)
    if callable(where) and not isinstance(where, GradientTransformation):
        return where
    raise TypeError(
        f"{owner}: select leaves with a name pattern, a tuple of patterns or a function (name, tensor) -> bool, "
        f"got {describe(where)}"
    )


def _listed(items: Iterable[Any], most: int = 8) -> str:
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f", ... ({len(items)} in all)" if len(items) > most else "")


class _Fork(Combinator):
    def __init__(self, name: str, selector: Selector, txs: Mapping[Any, GradientTransformation], levels: bool):
        self._name, self.selector, self._txs, self._levels = name, selector, txs, levels

    def expand(self, scope: Scope) -> list[Any]:
        path = scope.claim(self._name)
        scope.run.selectors.append(self.selector)
        blocks = {}
        for i, (label, tx) in enumerate(self._txs.items()):
            inside = scope.branch((*path, label) if self._levels else path, i)
            blocks[label] = Block(tx._expand(inside), inside.frozen)
        return [Branch(path, self.selector, blocks)]


@combinator(static=("labels",), example=lambda tx: {"transforms": {"a": tx}, "labels": {"a": "*"}})
def partition(transforms: Mapping[str, GradientTransformation], labels: Mapping[str, Where] | Callable[..., str]):
    """Send every leaf through the transformation of its label.

    Sums over leaves inside a branch see that branch only. State: one entry a label.

    Args:
        transforms: label -> transformation.
        labels: label -> selector, tried in order (`"*"` for the rest), or a function `(name, tensor) -> label`.
            A selector is a name pattern (`fnmatch` on the dotted leaf name, `*` crosses dots), a tuple of them or a
            function `(name, tensor) -> bool`, which sees the parameter at init.

    Raises:
        ValueError: a leaf has no label, a pattern matches no leaf at init, or the two sets of labels differ.

    Example:
        >>> tx = gradtx.partition({"head": gradtx.sgd(lr=1.0), "rest": gradtx.freeze("*")}, {"head": "head.*", "rest": "*"})
        >>> grads = {"head": {"w": torch.ones(2)}, "body": {"w": torch.ones(2)}}
        >>> tx.update(grads, tx.init(grads))[0]
        {'head': {'w': tensor([-1., -1.])}, 'body': {'w': tensor([0., 0.])}}
    """
    if not isinstance(transforms, Mapping) or not transforms:
        raise TypeError(f"partition: transforms must be a dict of label -> transformation, got {describe(transforms)}")
    for label, tx in transforms.items():
        check_transformation("partition", f"transforms[{label!r}]", tx)
        if not isinstance(label, str) or "." in label:
            raise ValueError(f"partition: label {label!r} must be a string without dots")
    if isinstance(labels, Mapping):
        if set(labels) != set(transforms):
            raise ValueError(f"partition: labels are {_listed(labels)}, transforms are {_listed(transforms)}")
        selector = Selector(
            "partition", tuple(labels), tuple(_patterns("partition", where) for where in labels.values())
        )
    elif callable(labels):
        selector = Selector("partition", tuple(transforms), labels)
    else:
        raise TypeError(f"partition: labels must be a dict or a function (name, tensor), got {describe(labels)}")
    return _Fork("partition", selector, transforms, True)


@combinator(static=("where",), example=lambda tx: {"tx": tx, "where": "*"})
def masked(tx: GradientTransformation, where: Where):
    """Send only some leaves through a transformation; the others pass unchanged.

    Args:
        tx: What the selected leaves go through. Sums over leaves see these only.
        where: A selector, as in `partition`.

    Raises:
        ValueError: a pattern matches no leaf at init.

    Example:
        >>> tx = gradtx.masked(gradtx.scale(10.0), "*.bias")
        >>> grads = {"l": {"weight": torch.ones(1), "bias": torch.ones(1)}}
        >>> tx.update(grads, tx.init(grads))[0]
        {'l': {'weight': tensor([1.]), 'bias': tensor([10.])}}
    """
    check_transformation("masked", "tx", tx)
    return _Fork("masked", Selector.of("masked", where), {True: tx, False: chain()}, False)


class _Freeze(Combinator):
    def __init__(self, selector: Selector):
        self._selector = selector

    def expand(self, scope: Scope) -> list[Any]:
        scope.run.selectors.append(self._selector)
        scope.frozen.append((scope.claim("freeze"), self._selector))
        return []


@combinator(static=("where",), example=lambda tx: {"where": "*"})
def freeze(where: Where):
    """Keep some leaves exactly as they are.

    Covers the whole chain it stands in, wherever it stands: frozen leaves are taken out before the first link (no
    slots, not in norms) and get an exactly zero update. Inside a branch of `partition` it covers that branch.

    Args:
        where: A selector, as in `partition`.

    Raises:
        ValueError: a pattern matches no leaf at init.

    Example:
        >>> tx = gradtx.chain(gradtx.adam(lr=0.1), gradtx.freeze("embed.*"))
        >>> grads = {"embed": {"w": torch.ones(1)}, "head": {"w": torch.ones(1)}}
        >>> state = tx.init(grads)
        >>> list(state["scale_by_adam"]["exp_avg"])
        ['head.w']
        >>> tx.update(grads, state)[0]
        {'embed': {'w': tensor([0.])}, 'head': {'w': tensor([-0.1000])}}
    """
    return _Freeze(_Negated("freeze", where))


class _Negated(Selector):
    """As `Selector.of`, but a mark says that a leaf is not selected, so that frozen leaves leave no trace."""

    def __init__(self, owner: str, where: Any):
        super().__init__(owner, (True,), (_patterns(owner, where),))

    def mark(self, path: Path, label: Any) -> Path | None:
        return None if label is True else path

    def recall(self, path: Path, marked: Callable[[Path], bool]) -> Any:
        return not marked(path)


class Frame:
    """The run of a wrapper: own slots, and what stands before and after the inner operations."""

    def __init__(self, scope: Scope, name: str, tx: GradientTransformation):
        self.run, self.path, self.tx, self.state_dtype = scope.run, scope.claim(name), tx, scope.state_dtype

    def around(self, scope: Scope, count: Any = None) -> list[Any]:
        if count is not None:
            self.run.clock_paths[scope.place] = self.path
        inner = self.tx._expand(scope.inside(self.path, count))
        return [_Enter(self), *inner, _Exit(self)]

    takes_none = False

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

    def own(self, leaf: Leaf) -> dict[str, Tensor]:
        return {slot: widened(value, leaf.wide) for slot, value in self.run.slots(self.path, leaf).items()}

    def store(self, leaf: Leaf, new: dict[str, Tensor]) -> None:
        """Own slots, in the dtypes they are kept in."""
        old = self.run.slots(self.path, leaf)
        leaf.new[self.path] = {
            slot: value_for(value, old[slot], self.path, slot, leaf.name) for slot, value in new.items()
        }

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
            if self.holds(path):
                old = run.scalars(path)
                run.new_shared[path] = {
                    name: torch.where(accept, new, old[name]) for name, new in run.new_shared[path].items()
                }
        for path in filter(self.holds, run.new_trees):
            run.new_trees[path] = run.select(accept, run.new_trees[path], run.tree(path))


class _Enter(Operation):
    def __init__(self, frame: Any):
        self.frame, self.path, self.takes_none = frame, frame.path, frame.takes_none

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
        self.clock = Clock(self.old_step + 1)
        if not self.run.initial:
            self.new = {
                "step": torch.where(self.emit, self.clock.step, self.old_step),
                "mini_step": torch.where(self.emit, torch.zeros_like(mini_step), mini_step),
            }
            self.run.commits.append(self.commit)

    def init_exit(self, leaf: Leaf) -> None:
        assert leaf.param is not None
        zeros = first_slots({"acc": torch.zeros_like(leaf.param)}, leaf.param, self.stored_dtype(leaf))
        leaf.new[self.path] = {**zeros, "seen": torch.zeros((), dtype=torch.bool, device=leaf.device)}

    def enter(self, leaf: Leaf) -> None:
        own = self.own(leaf)
        given, seen = leaf.update, own["seen"]
        total = own["acc"] if given is None else own["acc"] + given
        seen = seen if given is None else torch.ones_like(seen)
        leaf.saved[self] = (leaf.clock, leaf.grad, leaf.active, total, seen)
        leaf.update = leaf.grad = total / self.every
        leaf.clock = self.clock
        leaf.active = seen if leaf.active is None else leaf.active & seen

    def exit(self, leaf: Leaf) -> None:
        leaf.clock, leaf.grad, active, total, seen = leaf.saved.pop(self)
        accept = self.emit.to(leaf.device) & seen
        assert leaf.update is not None
        leaf.update = torch.where(accept, leaf.update, torch.zeros_like(leaf.update))
        self.keep(leaf, accept)
        leaf.active = active
        emit = self.emit.to(leaf.device)
        self.store(leaf, {"acc": torch.where(emit, torch.zeros_like(total), total), "seen": seen & ~emit})

    def commit(self) -> None:
        self.keep_shared(self.emit)
        self.run.new_shared[self.path] = self.new


def _zero_count(run: Any) -> Callable[[], Tensor]:
    return lambda: torch.zeros((), dtype=torch.int64, device=run.device)


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
        assert leaf.update is not None
        bad = (~leaf.update.isfinite()).sum().to(torch.float64)
        return {"bad": bad if leaf.active is None else torch.where(leaf.active, bad, 0.0)}

    def resume(self, leaf: Leaf, total: Any) -> None:
        self.finite = total["bad"] == 0
        leaf.saved[self] = (leaf.clock, leaf.grad)
        assert leaf.update is not None
        # The inner rules run in any case; on zeros, so that no NaN comes back through a gradient of `where`.
        leaf.update = leaf.grad = torch.where(self.finite.to(leaf.device), leaf.update, torch.zeros_like(leaf.update))
        leaf.clock = self.clock

    def exit(self, leaf: Leaf) -> None:
        leaf.clock, leaf.grad = leaf.saved.pop(self)
        assert leaf.update is not None
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


@per_tensor(needs=("params",), static=("fn",), example={"fn": torch.tanh})
def map_after_step(fn: Callable[[Tensor], Tensor], before: bool = False):
    r"""Make the parameter after the step go through a function: constraints, projections, prox steps.

    $u \mapsto f(p + u) - p$, or with `before` $u \mapsto f(f(p) + u) - p$. Stands after the learning rate.

    Args:
        fn: A function of one tensor, in torch operations that keep its shape.
        before: Whether the parameter goes through `fn` before the step as well.

    Example:
        >>> tx = gradtx.chain(gradtx.sgd(lr=1.0), gradtx.map_after_step(torch.relu))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([3.0, 1.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]
        tensor([0., 1.])
    """
    if not callable(fn):
        raise TypeError(f"map_after_step: fn must be a function of a tensor, got {describe(fn)}")

    def update(update, state, param, ctx):
        start = fn(param) if before else param
        return fn(start + update) - param, state

    return update
