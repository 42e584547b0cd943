"""Pure updates inside a function that `torch.compile` traces: one node of its graph for all leaves.

Dynamo does not read the library leaf by leaf: `_run` becomes a node with trees of tensors as arguments, through which
AOTAutograd sees. It calls the operator `gradtx::run`, which runs the recorded program of the chain; for derivatives and
transforms it calls the rules themselves.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.forward import Transformation
from gradtx.execution import pure as _pure
from gradtx.execution.runs import Memory
from gradtx.programs import trees as _trees
from gradtx.programs.hyperparameters import ChainOf

Trees: TypeAlias = tuple[Any, Any, Any]  # updates, state, params


# Dynamo traces these functions.


def update(
    tx: Transformation, trees: Trees, extras: dict[str, Any], applies: bool = False
) -> Any:
    """Return new `(updates, state)`, or with `applies` new `(params, state)`; None if it must be traced instead."""
    known = {}
    for name, value in extras.items():
        if isinstance(value, float):  # to dynamo a symbol, which no node takes
            known[name] = _pure.as_number(name, value)
        elif isinstance(value, Tensor) or _has_usual_containers(value):
            known[name] = value
    # Dynamo has no values of a chain that the compiled function makes.
    if tx._is_traced or not _has_usual_containers(trees):
        return None
    unread = tuple([name for name in extras if name not in known])
    key = _key_of(unread, applies, tx)
    numbers = [value for value in tx._numbers.values if isinstance(value, Tensor)]
    results = _run(key, numbers, trees, known)
    if not _suits(key):
        return None
    updates, state, params = trees
    return _filled((params if applies else updates, state), iter(results))


def apply_updates(params: Any, updates: Any) -> Any:
    """Return new parameters; None if they are trees that no node takes."""
    if not _has_usual_containers((params, updates)):
        return None
    _allow()
    return _filled(params, iter(_applied(params, updates)))


def _has_usual_containers(tree: Any) -> bool:
    kind = type(tree)
    if kind is dict:
        tree = tree.values()
    elif kind is not tuple and kind is not list:
        return False
    for item in tree:
        if isinstance(item, Tensor) or item is None or _has_usual_containers(item):
            continue
        return False
    return True


def _filled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a tree with other tensors."""
    values = tree.values() if type(tree) is dict else tree
    new = []
    for item in values:
        if isinstance(item, Tensor):
            new.append(next(tensors))
        else:
            new.append(None if item is None else _filled(item, tensors))
    if type(tree) is dict:
        return dict(zip(tree, new, strict=True))
    return tuple(new) if type(tree) is tuple else new


# Dynamo calls these functions.


class Plan:
    """The updates at one place in a graph.

    Attributes:
        tx: The transformation.
        tensors: The tensors among its numbers, in the order in which they are passed.
        unread: The names of extras that no rule reads.
        applies: Whether it returns new parameters instead of updates.
        suits: Whether the graph may have a node; None before the first call.
        program: The program; None if none can run it.
    """

    suits: bool | None = None
    program: _trees.TreeProgram | None = None

    def __init__(
        self,
        tx: Transformation,
        unread: tuple[str, ...],
        applies: bool,
    ):
        self.tx = tx
        values = _trees.numbers_of(tx).values
        self.tensors = [id(value) for value in values if isinstance(value, Tensor)]
        self.unread = dict.fromkeys(unread, _unread)
        self.applies = applies

    def make_program(self, trees: Trees, known: dict[str, Any]) -> None:
        """Record the program, with other tensors in place of stand-ins."""
        with _torch.without_modes():
            examples = updates, state, params = _examples(trees)
            tensors: list[Tensor] = []
            structure = _trees.structure_of(examples, tensors)
            extras = {**_examples(known), **self.unread}
            run, leaves = _pure.begin(self.tx, updates, state, params, extras)
            if run.has_lag(leaves):
                raise _trees.UnsuitableError
            program = _trees.TreeProgram(
                self.tx,
                run,
                leaves,
                structure,
                tensors,
                (),
                known,
                list(self.unread),
                False,
                self.applies,
                COMPILERS.get(tensors[0].device.type),
            )
        self.program = program
        indices = _trees.tree_of(structure, iter(range(len(tensors))))
        updates, state, params = map(_tree.named, indices)
        # The indices of each result and of the tensor it replaces.
        results = params if self.applies else updates
        self.sources = [
            (updates.get(n), i) for n, i in results.items() if i is not None
        ]
        self.sources.extend((i, i) for i in state.values())

    def numbers(self, tensors: list[Tensor]) -> list[Any]:
        """Return the numbers of the chain with these tensors."""
        given = dict(zip(self.tensors, tensors, strict=True))
        return [given.get(id(x), x) for x in _trees.numbers_of(self.tx).values]

    def results(
        self, key: str, numbers: list[Tensor], trees: Trees, known: dict[str, Any]
    ) -> list[Tensor]:
        """Return the tensors of the results, by the program or by the rules."""
        tensors = _tree.tensors(trees)
        needs_rules = (
            _torch.inside_transform()
            or _torch.forward_mode_active()
            or _trees.records_gradients([*tensors, *_tree.tensors(known)], numbers)
        )
        if self.suits is None and not needs_rules:
            with contextlib.suppress(Exception):  # a user's rule may raise any error
                self.make_program(trees, known)
        if needs_rules or self.program is None:
            return self.by_rules(numbers, trees, {**known, **self.unread})
        values = self.program.resolved(self.numbers(numbers), tensors)
        call = _trees.Call(self.tx, *trees, {**known, **self.unread})
        new = self.program.results(call, tensors, values, known.values())
        memory = Memory()
        memory.register([*tensors, *known.values()])
        results = []
        for source, i in self.sources:
            # A parameter without a gradient is kept.
            result = tensors[i] if source is None else new[source]
            results.append(memory.unshared(result))
        return results

    def by_rules(
        self, numbers: list[Tensor], trees: Trees, extras: dict[str, Any]
    ) -> list[Tensor]:
        """Run the rules, leaf by leaf."""
        chain = ChainOf(self.tx, _trees.numbers_of(self.tx).structure)
        updates, state = _pure.update(chain(self.numbers(numbers)), *trees, extras)
        if _tree.named(state).keys() != _tree.named(trees[1]).keys():
            raise _trees.UnsuitableError
        if self.applies:
            updates = _pure.apply_updates(trees[2], updates)
        return _tree.tensors((updates, state))


def _unread(*arguments: Any) -> Any:
    raise AssertionError("a rule calls an extra that its program does not read")


def _examples(tree: Any) -> Any:
    """Return a tree with other tensors in place of stand-ins; its containers are Python's, not of fx."""
    if isinstance(tree, dict):
        return {name: _examples(item) for name, item in tree.items()}
    if isinstance(tree, tuple | list):
        items = map(_examples, tree)
        return tuple(items) if isinstance(tree, tuple) else list(items)
    if tree is None:
        return None
    if tree.ndim:  # memory that is never touched
        form = list(map(int, tree.shape)), list(map(int, tree.stride()))
        return torch.empty_strided(*form, dtype=tree.dtype, device=tree.device)
    return torch.zeros((), dtype=tree.dtype, device=tree.device)


COMPILERS: dict[str, _trees.CompileFlat] = {}  # by type of device
_PLANS: dict[str, Plan] = {}
_KEYS = itertools.count()


@_torch.assume_constant
def _allow() -> None:
    """Make dynamo take functions as nodes; not before it runs, because this imports dynamo."""
    torch.compiler.allow_in_graph((_run, _applied))


@_torch.assume_constant
def _key_of(unread: tuple[str, ...], applies: bool, tx: Transformation) -> str:
    _allow()
    key = str(next(_KEYS))
    _PLANS[key] = Plan(tx, unread, applies)
    return key


@_torch.assume_constant
def _suits(key: str) -> bool:
    return bool(_PLANS[key].suits)


def _applied(params: Any, updates: Any) -> list[Tensor]:
    return _tree.tensors(_pure.apply_updates(params, updates))


def _run(
    key: str, numbers: list[Tensor], trees: Trees, known: dict[str, Any]
) -> list[Tensor]:
    """Return the tensors of the results; nothing if dynamo has to trace the update itself."""
    plan = _PLANS[key]
    known = {name: _as_extra(name, value) for name, value in known.items()}
    if plan.suits is None:
        try:
            results = plan.results(key, numbers, trees, known)
        except (TypeError, ValueError):
            raise  # of an invalid call
        except Exception:
            plan.suits = False  # what dynamo traces itself may read any tensor
        else:
            plan.suits = True
            return results
    return plan.results(key, numbers, trees, known) if plan.suits else []


def _as_extra(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return _pure.as_number(name, value)
    return value


_PHASES: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def add_phase(phase: Any) -> str:
    """Return the name of a compiled phase in graphs."""
    key = str(next(_KEYS))
    _PHASES[key] = phase
    return key


_LIBRARY = torch.library.Library("gradtx", "FRAGMENT")
_LIBRARY.define("run(str phase, Tensor[] numbers, Tensor[] leaves) -> Tensor[]")


def _run_phase(key: str, numbers: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    return _PHASES[key](numbers, leaves)


def _like_phase(key: str, numbers: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    return _PHASES[key].like(leaves)


_LIBRARY.impl("run", _run_phase, "CompositeExplicitAutograd")
torch.library.register_fake("gradtx::run", _like_phase, lib=_LIBRARY)
