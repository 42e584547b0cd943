"""Mutations of states: each is taken, or refused with an error that names it, and then nothing has changed."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import gradtx
from tests.optim.chains import CHAINS
from tests.optim.problems import assert_equal, descend, parameters, whole

REFUSALS = (ValueError, TypeError, KeyError)
NAMES = (
    "design",
    "nested partition",
    "masked by predicate",
    "freeze",
    "accumulate a partition",
    "skip an accumulation",
    "with lookahead",
    "record",
    "prodigy",
    "schedule free",
)
Where = tuple[Any, ...]
# Words of torch and Python for a fault that this library did not look for.
UNNAMED = ("invalid data type", "NoneType", "has no attribute", "not subscriptable", "not iterable", "unhashable")


def places(tree: Any, at: Where = ()) -> Iterator[Where]:
    """The paths of all parts of a tree of dicts and lists."""
    if at:
        yield at
    if isinstance(tree, dict):
        for key in tree:
            yield from places(tree[key], (*at, key))
    elif isinstance(tree, list | tuple):
        for i, item in enumerate(tree):
            yield from places(item, (*at, i))


def of_tensor(value: Tensor) -> list[Any]:
    """Other things in place of a tensor."""
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    others = [
        value.to(torch.complex64),
        value.to(torch.bool),
        value.to(torch.int32),
        torch.full_like(value, -1),
        value.to(torch.float64) + 0.5,
        value.unsqueeze(0),
        value.reshape(-1)[:0],
        torch.zeros(7, 7),
        value.to("meta"),
        value.unsqueeze(0).to_sparse(),
        nested,
        [value],
        {"value": value},
        value.tolist(),
    ]
    if value.is_floating_point():
        others += [torch.full_like(value, float("nan")), torch.full_like(value, float("inf"))]
    return others


def damaged(value: Any) -> list[Any]:
    """Other things in place of a part."""
    others: list[Any] = [None, "text", b"bytes", 3, -1, 2.5, float("nan"), True, [], {}, object(), torch.ones(2, 2)]
    if isinstance(value, Tensor):
        others += of_tensor(value)
    if isinstance(value, dict):
        others += [list(value.items()), list(value), {**value, "extra": torch.ones(1)}, {**value, 3: torch.ones(1)}]
        others += [{**value, "extra": None}, {str(key) + "x": item for key, item in value.items()}]
    if isinstance(value, list | tuple):
        others += [dict(enumerate(value)), [value], [*value, *value], list(reversed(value)), [None] * len(value)]
    return others


def changed(tree: Any, where: Where, change: Callable[[Any, Any], None]) -> None:
    """Apply `change(container, key)` at a path; tuples become lists."""
    for key in where[:-1]:
        if isinstance(tree[key], tuple):
            tree[key] = list(tree[key])
        tree = tree[key]
    change(tree, where[-1])


def mutation(tree: Any, rng: random.Random) -> str:
    """Damage a tree in one place; return what was done."""
    where = rng.choice(list(places(tree)))
    value = tree
    for key in where:
        value = value[key]
    if rng.random() < 0.2:

        def drop(container: Any, key: Any) -> None:
            del container[key]

        changed(tree, where, drop)
        return f"drop {where}"
    other = rng.choice(damaged(value))

    def put(container: Any, key: Any) -> None:
        container[key] = other

    changed(tree, where, put)
    shown = f"{other.dtype} {other.layout}" if isinstance(other, Tensor) else repr(other)[:60]
    return f"{where} = {shown}"


def check_blame(error: Exception, what: str) -> None:
    message = str(error)
    if not isinstance(error, REFUSALS) or not message or any(word in message for word in UNNAMED):
        raise AssertionError(f"{what}: {type(error).__name__}: {message}") from error


class OptimizerStates:
    """The state dict of an optimizer, with one part damaged."""

    def __init__(self, name: str):
        self.name = name
        self.params = parameters(torch.float32)
        self.optimizer = gradtx.as_optimizer(CHAINS[name], list(self.params.items()))
        descend(self.optimizer, self.params, 3)
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        descend(self.optimizer, self.params, 2, start=3)

    def run(self, rng: random.Random) -> bool:
        """Load one damaged state dict; return whether it was refused."""
        damaged_dict = copy.deepcopy(self.saved)
        evaluating = rng.random() < 0.2 and self.name in ("with lookahead", "schedule free", "design")
        if evaluating:
            self.optimizer.eval()
            damaged_dict = copy.deepcopy(self.optimizer.state_dict())
        what = f"{self.name}: {mutation(damaged_dict, rng)}"
        before = whole(self.optimizer)
        try:
            self.optimizer.load_state_dict(damaged_dict)
        except Exception as error:
            check_blame(error, what)
            assert_equal(whole(self.optimizer), before)
            self.optimizer.train()
            return True
        self.check_step(what)
        return False

    def check_step(self, what: str) -> None:
        """What was taken must be good for a step, and for the next state dict."""
        self.optimizer.train()
        try:
            descend(self.optimizer, self.params, 1)
            self.optimizer.state_dict()
        except Exception as error:
            raise AssertionError(f"{what}: taken, but then {type(error).__name__}: {error}") from error
        self.__init__(self.name)


class NestedStates:
    """The state of pure use, with one part damaged."""

    def __init__(self, name: str):
        self.name = name
        self.tx = CHAINS[name]
        self.params = {name: param.detach() for name, param in parameters(torch.float32).items()}
        self.grads = {name: torch.ones_like(param) for name, param in self.params.items()}
        state = self.tx.init(self.params)
        for _ in range(3):
            _, state = self.tx.update(self.grads, state, self.params)
        self.state = state

    def run(self, rng: random.Random) -> bool:
        state = copy.deepcopy(self.state)
        what = f"{self.name}, pure: {mutation(state, rng)}"
        kept = _copied(state)
        refused = False
        for call in (lambda: self.tx.update(self.grads, state, self.params), lambda: self.eval_params(state)):
            try:
                call()
            except Exception as error:
                check_blame(error, what)
                refused = True
        assert repr(_copied(state)) == repr(kept)
        return refused

    def eval_params(self, state: Any) -> Any:
        return self.tx.eval_params(state, self.params)


def _copied(tree: Any) -> Any:
    return {where: repr(_at(tree, where)) for where in places(tree)}


def _at(tree: Any, where: Where) -> Any:
    for key in where:
        tree = tree[key]
    return tree


def run(seed: int) -> str:
    """One mutation; whether it was refused or taken."""
    rng = random.Random(seed)
    name = NAMES[seed % len(NAMES)]
    kind = OptimizerStates if rng.random() < 0.6 else NestedStates
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = _subjects.get((kind, name))
        if subject is None:
            subject = _subjects[kind, name] = kind(name)
        try:
            refused = subject.run(rng)
        except AssertionError:
            del _subjects[kind, name]  # it may be half-written
            raise
    return "refused" if refused else "taken"


_subjects: dict[Any, Any] = {}
