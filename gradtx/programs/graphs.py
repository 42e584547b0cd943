"""Pure updates inside a function that `torch.compile` traces: one node of its graph for all leaves.

Dynamo does not read the library leaf by leaf: `_run` becomes a node with tensors as arguments, through which
AOTAutograd sees. For many leaves it is one operator, `gradtx::update`, which runs the program of the chain; for few
leaves, derivatives and transforms it runs the rules themselves.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.ambient import without_ambient
from gradtx.base.exact import Schedule
from gradtx.base.forward import Transformation
from gradtx.execution import pure as _pure
from gradtx.programs import trees as _trees
from gradtx.programs.bundle import FunctionOf, list_function_of
from gradtx.programs.hyperparameters import ChainOf

# Makes functions of phases; `gradtx.optim`, which this module may not import, replaces it by that of kernels.
function_of: FunctionOf = list_function_of
# Compilers fuse the rules of few leaves with what surrounds the update; for more, this takes them too long.
FEW_LEAVES = 16
# Parameters that one call of `gradtx::add` updates: compilers need time that is quadratic in the number of its results.
LEAVES_OF_A_CALL = 32
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
        if isinstance(value, float) or (isinstance(value, Tensor) and not value.ndim):
            known[name] = _pure.as_number(name, value)
    unread = tuple([name for name in extras if name not in known])
    tensors: list[Tensor] = []
    structure = _structure_of((updates, state, params), tensors)
    # Dynamo has no values of a chain that the compiled function makes.
    if structure is None or tx._is_traced:
        return None
    key = tx._plan(id(tx), structure, tuple(known), unread)
    # Not its floats, of which dynamo would make symbols where two chains have other ones, and compile twice.
    numbers = list(tx._numbers.tensors)
    results = _run(key, numbers, tensors, list(known.values()))
    if not results:
        return None
    kind, (of_updates, of_state, _) = structure
    return _trees.tree_of((kind, (of_updates, of_state)), iter(results))


def apply_updates(params: Any, updates: Any) -> Any:
    """Return new parameters; None if they are trees that no node takes."""
    of_params: list[Tensor] = []
    of_updates: list[Tensor] = []
    structure = _structure_of((params,), of_params)
    if structure is None or structure != _structure_of((updates,), of_updates):
        return None
    _allow()
    new = _applied(of_params, of_updates)
    if len(new) < len(of_params):
        return None
    return _trees.tree_of(structure, iter(new))[0]


@_torch.assume_constant
def _is_exporting() -> bool:
    # Dynamo of torch 2.10 and 2.11 always takes this for True.
    return torch.compiler.is_exporting()


def _structure_of(trees: Any, tensors: list[Tensor]) -> Any:
    if _is_exporting():  # other processes have no operators
        return None
    try:
        return _trees.structure_of(trees, tensors)
    except _trees.UnsuitableError:
        return None


# Dynamo calls these functions.


def _unread(*arguments: Any) -> Any:
    raise AssertionError("a rule calls an extra that its program does not read")


class Arguments(NamedTuple):
    """The tensors of a call.

    Attributes:
        numbers: Those among the numbers of the chain.
        tensors: Those of updates, state and parameters.
        extras: The extras that are numbers.
    """

    numbers: list[Tensor]
    tensors: list[Tensor]
    extras: list[Tensor]


class Plan:
    """The updates at one place in a graph.

    Args:
        tx: The transformation.
        structure: The structure of updates, state and parameters.
        known: The names of extras that are numbers.
        unread: The names of the others, which no rule reads.

    Attributes:
        key: Its name in graphs.
        suits: Whether the graph may have a node; None before the first call.
    """

    suits: bool | None = None

    def __init__(
        self,
        tx: Transformation,
        structure: Any,
        known: tuple[str, ...],
        unread: tuple[str, ...],
    ):
        self.key = str(next(_KEYS))
        self._tx = weakref.ref(tx)  # which owns the plan
        self._structure = structure
        self._known = known
        self._unread = dict.fromkeys(unread, _unread)
        # What the operator runs, and the sizes, strides and dtype of each of its results.
        self._program: _trees.TreeProgram | None = None
        self._forms: list[tuple[Any, ...]] = []

    def tried(self, given: Arguments) -> list[Tensor]:
        """Return the results of the first `run`; nothing if it fails."""
        if not _trees.are_dense(given.tensors):
            return []
        self._program = self._recorded(given)
        try:
            with _torch.refusing_reads():
                results = self._first(given)
        except Exception:  # what dynamo traces itself may read any tensor, or raises
            results = []
        self._forms = [(x.shape, x.stride(), x.dtype) for x in results]
        # Inductor finds a graph of another process by the text of its calls.
        digest = hashlib.sha256(repr(self._forms).encode()).hexdigest()
        self.key = f"{self.key} {digest}"
        _PLANS[self.key] = self
        self.suits = bool(results)
        return results

    def _first(self, given: Arguments) -> list[Tensor]:
        if self._program is not None:
            return self.computed(given, on_host=False)
        call = self._call(given)
        run, _ = _pure.begin(*call)
        schedules = [x for x in self._values(given) if isinstance(x, Schedule)]
        if run.opaque or any(each.reads_outside for each in schedules):
            raise _trees.UnsuitableError  # dynamo guards what functions of users read
        return self._by_rules(given)

    def run(self, given: Arguments) -> list[Tensor]:
        """Return the tensors of the results, by the operator or by the rules."""
        if self._program is None or _needs_rules(given):
            return self._by_rules(given)
        return torch.ops.gradtx.update(self.key, *given)

    @without_ambient
    def computed(self, given: Arguments, on_host: bool) -> list[Tensor]:
        """Return the results of the program; `on_host` is whether the host may read scalars."""
        assert self._program is not None
        values = self._program.resolved(self._values(given), given.tensors)
        return self._program.results(
            self._call(given), given.tensors, values, given.extras, on_host
        )

    def like(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return stand-ins for the results of the operator."""
        results = []
        for shape, stride, dtype in self._forms:
            results.append(tensors[0].new_empty_strided(shape, stride, dtype=dtype))
        return results

    def _by_rules(self, given: Arguments) -> list[Tensor]:
        call = self._call(given)
        chain = ChainOf(call.tx, _trees.numbers_of(call.tx).structure)
        tx = chain(self._values(given))
        updates, state = _pure.update(*call._replace(tx=tx))
        if not _are_alike((updates, state), (call.updates, call.state)):
            raise _trees.UnsuitableError
        return _tree.tensors((updates, state))

    def _call(self, given: Arguments) -> _trees.Call:
        tx = self._tx()
        assert tx is not None
        updates, state, params = _trees.tree_of(self._structure, iter(given.tensors))
        extras = {**dict(zip(self._known, given.extras, strict=True)), **self._unread}
        return _trees.Call(tx, updates, state, params, extras)

    def _values(self, given: Arguments) -> list[Any]:
        """Return the numbers of the chain, with the tensors of this call."""
        tensors = iter(given.numbers)
        values = _trees.numbers_of(self._tx()).values
        return [next(tensors) if isinstance(x, Tensor) else x for x in values]

    def _recorded(self, given: Arguments) -> _trees.TreeProgram | None:
        """Return the program; None if rules are to run."""
        if _needs_rules(given):
            return None
        try:
            with _torch.without_modes():
                examples = Arguments(*(list(map(_example, each)) for each in given))
                call = self._call(examples)
                if len(_tree.tensors(call.updates)) < FEW_LEAVES:
                    return None
                run, leaves = _pure.begin(*call)
                program = _trees.TreeProgram(
                    call.tx,
                    run,
                    leaves,
                    self._structure,
                    examples.tensors,
                    (),
                    {name: call.extras[name] for name in self._known},
                    list(self._unread),
                    function_of,
                )
        except Exception:  # a user's rule may raise any error
            return None
        return None if run.has_lag(leaves) else program


def _are_alike(new: Any, old: Any) -> bool:
    """Whether trees have the same structure."""
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return True
    if type(new) is not type(old) or new is None:
        return new is old
    if isinstance(new, dict):
        if list(new) != list(old):
            return False
        new, old = new.values(), old.values()
    return len(new) == len(old) and all(map(_are_alike, new, old))


def _needs_rules(lists: Iterable[list[Tensor]]) -> bool:
    """Whether a call needs derivatives, a transform or any size, for which operators are not made."""
    tensors = list(itertools.chain.from_iterable(lists))
    return (
        _torch.inside_transform()
        or _torch.forward_mode_active()
        or _trees.records_gradients(tensors, ())
        or any(map(_has_symbols, tensors))
    )


def _has_symbols(tensor: Tensor) -> bool:
    """Whether a graph is for any size or stride of a tensor: dynamo has seen several."""
    numbers = *tensor.shape, *tensor.stride()
    return any(isinstance(number, torch.SymInt) for number in numbers)


def _example(tensor: Tensor) -> Tensor:
    """Return a scalar with a value in place of a compiler's stand-in; other stand-ins have no memory and need none."""
    if tensor.ndim:
        return tensor
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device)


# Plans by their keys in graphs, which do not keep them alive.
_PLANS: weakref.WeakValueDictionary[str, Plan] = weakref.WeakValueDictionary()


@_torch.assume_constant
def _allow() -> None:
    """Make dynamo take functions as nodes; not before it runs, because this imports dynamo."""
    torch.compiler.allow_in_graph((_run, _applied))


def plan(
    tx: Transformation,
    structure: Any,
    known: tuple[str, ...],
    unread: tuple[str, ...],
) -> str:
    """Return the key of a new plan."""
    _allow()
    made = Plan(tx, structure, known, unread)
    _PLANS[made.key] = made
    tx._set(_plans=(*tx._plans, made))
    _trees.numbers_of(tx)  # dynamo reads them
    return made.key


def _applied(params: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """Return new parameters, by operators for many leaves at a time; nothing if they and the updates do not match."""
    pairs = list(zip(params, updates, strict=True))
    for param, update in pairs:
        is_wider = update.is_complex() and not param.is_complex()
        if update.shape != param.shape or is_wider:
            return []
    if len(pairs) < FEW_LEAVES or _needs_rules([params, updates]):
        return _pure.added(pairs)
    new: list[Tensor] = []
    for start in range(0, len(pairs), LEAVES_OF_A_CALL):
        some = slice(start, start + LEAVES_OF_A_CALL)
        new += torch.ops.gradtx.add(params[some], updates[some])
    return new


def _run(key: str, *lists: list[Tensor]) -> list[Tensor]:
    """Return the tensors of the results; nothing if dynamo has to trace the update itself."""
    plan, given = _PLANS[key], Arguments(*lists)
    if plan.suits is None:
        return plan.tried(given)
    return plan.run(given) if plan.suits else []


# The operators.


def _update(key: str, *lists: list[Tensor]) -> list[Tensor]:
    return _PLANS[key].computed(Arguments(*lists), on_host=True)


def _like_update(key: str, *lists: list[Tensor]) -> list[Tensor]:
    return _PLANS[key].like(Arguments(*lists).tensors)


def _add(params: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    return _pure.added(zip(params, updates, strict=True))


_LIBRARY = torch.library.Library("gradtx", "FRAGMENT")
_LIBRARY.define(
    "update(str plan, Tensor[] numbers, Tensor[] tensors, Tensor[] extras) -> Tensor[]"
)
_LIBRARY.define("add(Tensor[] params, Tensor[] updates) -> Tensor[]")
_LIBRARY.impl("update", _update, "CompositeExplicitAutograd")
_LIBRARY.impl("add", _add, "CompositeExplicitAutograd")
torch.library.register_fake("gradtx::update", _like_update, lib=_LIBRARY)
torch.library.register_fake("gradtx::add", _add, lib=_LIBRARY)
