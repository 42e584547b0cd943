"""Pure updates inside a function that `torch.compile` traces: one node of its graph for all leaves.

Dynamo does not read the library leaf by leaf: `_run` becomes a node with tensors as arguments, through which
AOTAutograd sees. For many leaves on the CPU it runs the program of the chain, whose kernels for flat leaves are the
operator `gradtx::run`; for few leaves, other devices, derivatives and transforms it runs the rules themselves.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.forward import Transformation
from gradtx.execution import pure as _pure
from gradtx.execution.runs import Memory
from gradtx.programs import trees as _trees
from gradtx.programs.hyperparameters import ChainOf

COMPILERS: dict[str, _trees.CompileFlat] = {}  # by type of device
# Compilers fuse the rules of few leaves with what surrounds the update; for more, this takes them too long.
FEW_LEAVES = 16
_KEYS = itertools.count()

# Dynamo traces these functions.


def update(
    tx: Transformation,
    updates: Any,
    state: Any,
    params: Any,
    extras: dict[str, Any],
) -> Any:
    """Return new `(updates, state)`; None if dynamo must trace the rules."""
    known = {}
    for name, value in extras.items():
        if isinstance(value, float | Tensor):
            known[name] = _pure.as_number(name, value)
    unread = tuple([name for name in extras if name not in known])
    tensors: list[Tensor] = []
    structure = _structure_of((updates, state, params), tensors)
    # Dynamo has no values of a chain that the compiled function makes.
    if structure is None or tx._is_traced:
        return None
    key = _key_of(tx, structure, unread)
    # Not its floats, of which dynamo would make symbols where two chains have other ones, and compile twice.
    numbers = list(tx._numbers.tensors)
    results = _run(key, numbers, tensors, known)
    if not results:
        return None
    kind, (of_updates, of_state, _) = structure
    return _trees.tree_of((kind, (of_updates, of_state)), iter(results))


def apply_updates(params: Any, updates: Any) -> Any:
    """Return new parameters; None if they are trees that no node takes."""
    structure = _structure_of((params, updates), [])
    if structure is None:
        return None
    _allow()
    return _trees.tree_of(structure[1][0], iter(_applied(params, updates)))


def _structure_of(trees: Any, tensors: list[Tensor]) -> Any:
    try:
        return _trees.structure_of(trees, tensors)
    except _trees.UnsuitableError:
        return None


# Dynamo calls these functions.


def _unread(*arguments: Any) -> Any:
    raise AssertionError("a rule calls an extra that its program does not read")


class Plan:
    """The updates at one place in a graph.

    Args:
        tx: The transformation.
        structure: The structure of updates, state and parameters.
        unread: The names of extras that no rule reads.

    Attributes:
        suits: Whether the graph may have a node; None before the first call.
        program: The program; None if none can run it.
    """

    suits: bool | None = None
    program: _trees.TreeProgram | None = None

    def __init__(self, tx: Transformation, structure: Any, unread: tuple[str, ...]):
        self._tx = weakref.ref(tx)  # which owns the plan
        self._structure = structure
        self._unread = dict.fromkeys(unread, _unread)

    def tried(
        self, numbers: list[Tensor], tensors: list[Tensor], known: dict[str, Tensor]
    ) -> list[Tensor]:
        """Return the results of the first `run`; nothing if it fails."""
        try:
            with _torch.refusing_reads():
                results = self.run(numbers, tensors, known)
        except Exception:  # what dynamo traces itself may read any tensor, or raises
            results = []
        self.suits = bool(results)
        return results

    def run(
        self, numbers: list[Tensor], tensors: list[Tensor], known: dict[str, Tensor]
    ) -> list[Tensor]:
        """Return the tensors of the results, by the program or by the rules."""
        tx, extras = self._tx(), {**known, **self._unread}
        updates, state, params = _trees.tree_of(self._structure, iter(tensors))
        compile_flat = _compiler_for(_tree.tensors(updates))
        needs_rules = compile_flat is None or _needs_rules(
            [*tensors, *known.values()], numbers
        )
        of_tx = _trees.numbers_of(tx)
        given = iter(numbers)
        values = [next(given) if isinstance(x, Tensor) else x for x in of_tx.values]
        if self.suits is None and not needs_rules:
            self.program = self._program(tx, tensors, known, compile_flat)
        if needs_rules or self.program is None:
            chain = ChainOf(tx, of_tx.structure)(values)
            updates, new_state = _pure.update(chain, updates, state, params, extras)
            if _tree.named(new_state).keys() != _tree.named(state).keys():
                raise _trees.UnsuitableError
            return _tree.tensors((updates, new_state))
        call = _trees.Call(tx, updates, state, params, extras)
        values = self.program.resolved(values, tensors)
        new = self.program.results(call, tensors, values, known.values())
        memory = Memory()
        memory.register([*tensors, *known.values()])
        count = len(_tree.tensors((updates, state)))
        return list(map(memory.unshared, new[:count]))

    def _program(
        self,
        tx: Transformation,
        tensors: list[Tensor],
        known: dict[str, Tensor],
        compile_flat: _trees.CompileFlat | None,
    ) -> _trees.TreeProgram | None:
        """Return the program, recorded with other tensors in place of stand-ins; None if there is none."""
        try:
            with _torch.without_modes():
                tensors = list(map(_example, tensors))
                known = {name: _example(value) for name, value in known.items()}
                trees = _trees.tree_of(self._structure, iter(tensors))
                extras = {**known, **self._unread}
                run, leaves = _pure.begin(tx, trees[0], trees[1], trees[2], extras)
                program = _trees.TreeProgram(
                    tx,
                    run,
                    leaves,
                    self._structure,
                    tensors,
                    (),
                    known,
                    list(self._unread),
                    compile_flat,
                )
        except Exception:  # a user's rule may raise any error
            return None
        return None if run.has_lag(leaves) else program


def _compiler_for(leaves: list[Tensor]) -> _trees.CompileFlat | None:
    """Return what compiles kernels for leaves; None if the compiler is to see the operations of each."""
    if len(leaves) < FEW_LEAVES:
        return None
    return COMPILERS.get(leaves[0].device.type)


def _needs_rules(tensors: list[Tensor], numbers: list[Tensor]) -> bool:
    """Whether a call needs derivatives, a transform or any size, for which operators are not made."""
    return (
        _torch.inside_transform()
        or _torch.forward_mode_active()
        or _trees.records_gradients(tensors, numbers)
        or any(map(_has_symbols, tensors))
    )


def _has_symbols(tensor: Tensor) -> bool:
    """Whether a graph is for any size of a tensor: dynamo has seen several."""
    return any(isinstance(size, torch.SymInt) for size in tensor.shape)


def _example(tensor: Tensor) -> Tensor:
    if tensor.ndim:  # memory that is never touched
        form = list(map(int, tensor.shape)), list(map(int, tensor.stride()))
        return torch.empty_strided(*form, dtype=tensor.dtype, device=tensor.device)
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device)


# Plans and compiled phases by their keys in graphs.
_NAMED: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def key_for(value: Any) -> str:
    """Return the key of a plan or a compiled phase in graphs, which do not keep it alive."""
    key = str(next(_KEYS))
    _NAMED[key] = value
    return key


@_torch.assume_constant
def _allow() -> None:
    """Make dynamo take functions as nodes; not before it runs, because this imports dynamo."""
    torch.compiler.allow_in_graph((_run, _applied))


@_torch.assume_constant
def _key_of(tx: Transformation, structure: Any, unread: tuple[str, ...]) -> str:
    _allow()
    plan = Plan(tx, structure, unread)
    tx._set(_plans=(*tx._plans, plan))
    _trees.numbers_of(tx)  # dynamo reads them
    return key_for(plan)


def _applied(params: Any, updates: Any) -> list[Tensor]:
    return _tree.tensors(_pure.apply_updates(params, updates, _added))


def _added(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return new parameters, by operators for many leaves at a time."""
    params = [param for param, _ in pairs]
    updates = [update for _, update in pairs]
    if _compiler_for(params) is None or _needs_rules([*params, *updates], []):
        return _pure.added(pairs)
    new: list[Tensor] = []
    for some in _trees.calls_in_graph(len(pairs)):
        new += torch.ops.gradtx.add(params[some], updates[some])
    return new


def _run(
    key: str, numbers: list[Tensor], tensors: list[Tensor], known: dict[str, Tensor]
) -> list[Tensor]:
    """Return the tensors of the results; nothing if dynamo has to trace the update itself."""
    plan: Plan = _NAMED[key]
    if plan.suits is None:
        return plan.tried(numbers, tensors, known)
    return plan.run(numbers, tensors, known) if plan.suits else []


_LIBRARY = torch.library.Library("gradtx", "FRAGMENT")
_LIBRARY.define("run(str phase, Tensor[] numbers, Tensor[] leaves) -> Tensor[]")


def _run_phase(key: str, numbers: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    return _NAMED[key](numbers, leaves)


def _like_phase(key: str, numbers: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    return _NAMED[key].like(leaves)


_LIBRARY.define("add(Tensor[] params, Tensor[] updates) -> Tensor[]")


def _add(params: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    return _pure.added(zip(params, updates, strict=True))


_LIBRARY.impl("add", _add, "CompositeExplicitAutograd")
torch.library.register_fake("gradtx::add", _add, lib=_LIBRARY)
_LIBRARY.impl("run", _run_phase, "CompositeExplicitAutograd")
torch.library.register_fake("gradtx::run", _like_phase, lib=_LIBRARY)
