"""Pure functions inside a function that `torch.compile` traces: one node of its graph for all leaves.

Dynamo does not read the library leaf by leaf: `_run` becomes a node with tensors as arguments, through which
AOTAutograd sees. For many leaves it is one operator, `gradtx::run`, which runs the plan of the chain; for few
leaves, derivatives and transforms it runs the rules themselves.
"""

from __future__ import annotations

import contextlib
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
from gradtx.base.plain import are_dense
from gradtx.execution.extras import as_scalar
from gradtx.plans.hyperparameters import ChainOf
from gradtx.pure import structures as _trees
from gradtx.pure import tree_plan as _plans
from gradtx.pure import tree_run as _pure
from gradtx.pure.known_trees import NO_LAYOUTS
from gradtx.pure.structures import TensorSpec

# Compilers fuse the rules of few leaves with what surrounds the update; for more, this takes them too long.
FEW_LEAVES = 16
# Parameters that one call of `gradtx::add` updates: compilers need time that is quadratic in the number of its results.
LEAVES_OF_A_CALL = 32
_KEYS = itertools.count()


def function_of(*arguments: Any) -> Any:
    """Return the function of a phase, of kernels if there are some; their writers are imported on use."""
    from gradtx.plans.kernel_function import kernel_function_of

    return kernel_function_of(*arguments)


# Dynamo traces these functions.


def init(tx: Transformation, params: Any, counts: str) -> Any:
    """Return the initial state; None if dynamo must trace the rules."""
    tensors: list[Tensor] = []
    structure = _structure_of(params, tensors)
    if not tensors:
        return None
    return _results(tx, ("init", structure, counts), tensors, [])


def update(call: _pure.UpdateCall) -> Any:
    """Return new `(updates, state)`; None if dynamo must trace the rules."""
    tx, updates, state, params, extras = call
    scalar_extras = {}
    for name, value in extras.items():
        if isinstance(value, float) or _is_0d(value):
            scalar_extras[name] = as_scalar(name, value)
    tensors: list[Tensor] = []
    structure = _structure_of((updates, state, params), tensors)
    if structure is None:
        return None
    arguments = "update", structure, tuple(scalar_extras), tuple(extras)
    return _results(tx, arguments, tensors, list(scalar_extras.values()))


def _is_0d(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.ndim


def _results(
    tx: Transformation, arguments: Any, tensors: list[Tensor], extras: list[Tensor]
) -> Any:
    """Return the trees of a node; None if there is none."""
    # Dynamo has no values of a chain that the compiled function makes.
    origin, replaced = tx._origin or (tx, {})
    if origin._is_traced or not all(map(_is_0d, replaced.values())):
        return None
    key, order = origin._graph_node(id(origin), tuple(replaced), *arguments)
    # Not its floats, of which dynamo would make symbols where two chains have other ones, and compile twice.
    hyperparameters = [*origin._hyperparameters.tensors, *replaced.values()]
    scalars = [hyperparameters[i] for i in order]
    results = _run(key, scalars, tensors, extras)
    if not results:
        return None
    return _trees.tree_of(_structure_after(key), iter(results))


def apply_updates(params: Any, updates: Any) -> Any:
    """Return new parameters; None if they are trees that no node takes."""
    of_params: list[Tensor] = []
    of_updates: list[Tensor] = []
    structure = _structure_of((params,), of_params)
    have_updates = _have_updates(structure, _structure_of((updates,), of_updates))
    if structure is None or have_updates is None:
        return None
    new_params = _applied(of_params, of_updates, have_updates)
    return _trees.tree_of(structure, iter(new_params))[0] if new_params else None


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


@_torch.assume_constant
def _have_updates(params: Any, updates: Any) -> tuple[bool, ...] | None:
    """Return whether each leaf has an update, given structures; None if they do not match."""
    _allow()
    if params is None:  # a tensor
        return (updates is None,) if updates in (None, "None") else None
    if params == "None" or not isinstance(updates, tuple) or updates[0] != params[0]:
        return () if params == updates == "None" else None
    kind, of_params = params
    _, of_updates = updates
    tensors = [None] * len(kind)  # of a dict
    pairs = zip(
        tensors if of_params is None else of_params,
        tensors if of_updates is None else of_updates,
        strict=True,
    )
    flags: tuple[bool, ...] = ()
    for pair in pairs:
        of_pair = _have_updates(*pair)
        if of_pair is None:
            return None
        flags += of_pair
    return flags


def _unread(*arguments: Any) -> Any:
    raise AssertionError("a rule calls an extra that its program does not read")


class NodeArguments(NamedTuple):
    """The tensors of a call.

    Attributes:
        scalars: The tensors among the hyperparameters of the chain.
        tensors: Those of updates, state and parameters.
        extras: The extras that are scalars.
    """

    scalars: list[Tensor]
    tensors: list[Tensor]
    extras: list[Tensor]


def _laid_out(result: Tensor, spec: TensorSpec) -> Tensor:
    """Return a result, or a copy if its entries have another order in memory than rules gave them.

    Lists and kernels follow other operands than a rule does, where these have several orders. Compilers address the
    entries by the strides that the operator announced.
    """
    if result.stride() == spec.stride:
        return result
    return spec.empty().copy_(result)


class GraphNode:
    """What one node of a graph computes.

    Args:
        tx: The transformation.
        structure: The structure of the trees that it takes.

    Attributes:
        key: Its name in graphs.
        structure: The structure of its results; None before the first call.
        suits: Whether the graph may have a node; None before the first call.
    """

    structure: Any = None
    suits: bool | None = None

    def __init__(self, tx: Transformation, structure: Any):
        self.key = str(next(_KEYS))
        self._tx = weakref.ref(tx)
        self._structure_of_arguments = structure
        # Those of the operator's results.
        self._specs: list[TensorSpec] = []

    def tried(self, arguments: NodeArguments) -> list[Tensor]:
        """Return the results of the first `run`; nothing if it fails."""
        if not are_dense(arguments.tensors):
            return []
        results: list[Tensor] = []
        try:
            self._prepare(arguments)
            with _torch.refusing_reads():
                trees = self._first(arguments)
            self.structure = _flattened(trees, results)
        except Exception:  # what dynamo traces itself may read any tensor, or raises
            results = []
        self._specs = list(map(TensorSpec.of, results))
        # Inductor finds a graph of another process by the text of its calls.
        digest = hashlib.sha256(repr(self._specs).encode()).hexdigest()
        self.key = f"{self.key} {digest}"
        _NODES[self.key] = self
        self.suits = bool(results)
        return results

    def run(self, arguments: NodeArguments) -> list[Tensor]:
        """Return the tensors of the results, by the operator or by the rules."""
        if not self._needs_rules(arguments):
            return torch.ops.gradtx.run(self.key, *arguments)
        results: list[Tensor] = []
        if _flattened(self._by_rules(arguments), results) != self.structure:
            raise _trees.UnsuitableError
        return results

    @without_ambient
    def computed(self, arguments: NodeArguments) -> list[Tensor]:
        """Return the results of the operator, with the strides that `like` announces."""
        results: list[Tensor] = []
        _trees.structure_of(self._computed(arguments), results)
        return list(map(_laid_out, results, self._specs))

    def like(self) -> list[Tensor]:
        """Return stand-ins for the results of the operator."""
        return [spec.empty() for spec in self._specs]

    def _prepare(self, arguments: NodeArguments) -> None:
        """Prepare the first call."""

    def _first(self, arguments: NodeArguments) -> Any:
        """Return the trees of the first call, whose arguments have no values."""
        raise NotImplementedError

    def _needs_rules(self, arguments: NodeArguments) -> bool:
        """Whether rules run this call, not the operator."""
        raise NotImplementedError

    def _by_rules(self, arguments: NodeArguments) -> Any:
        """Return the trees that rules compute."""
        raise NotImplementedError

    def _computed(self, arguments: NodeArguments) -> Any:
        """Return the trees that the operator computes."""
        return self._by_rules(arguments)

    def _chain(self) -> Transformation:
        tx = self._tx()
        assert tx is not None
        return tx

    def _chain_of(self, arguments: NodeArguments) -> Transformation:
        """Return the chain with the tensors of this call among its hyperparameters."""
        tx = self._chain()
        return ChainOf(tx, _plans.hyperparameters_of(tx).structure)(
            self._values(arguments)
        )

    def _values(self, arguments: NodeArguments) -> list[Any]:
        """Return the hyperparameters of the chain, with the tensors of this call."""
        tensors = iter(arguments.scalars)
        values = _plans.hyperparameters_of(self._chain()).values
        return [
            next(tensors) if isinstance(value, Tensor) else value for value in values
        ]


class StartNode(GraphNode):
    """The initial state of a transformation.

    Args:
        tx, structure: As in `GraphNode`.
        counts: As in `init`.
    """

    def __init__(self, tx: Transformation, structure: Any, counts: str):
        super().__init__(tx, structure)
        self._counts = counts

    def _needs_rules(self, arguments: NodeArguments) -> bool:
        return len(arguments.tensors) < FEW_LEAVES or _needs_rules(arguments)

    def _first(self, arguments: NodeArguments) -> Any:
        run = _pure.TreeRun(
            self._chain_of(arguments), *_tree.flatten(self._params(arguments), "params")
        )
        if run.opaque:
            raise _trees.UnsuitableError  # dynamo guards what functions of users read
        return self._by_rules(arguments)

    def _by_rules(self, arguments: NodeArguments) -> Any:
        return _pure.init(
            self._chain_of(arguments), self._params(arguments), self._counts
        )

    def _params(self, arguments: NodeArguments) -> Any:
        return _trees.tree_of(self._structure_of_arguments, iter(arguments.tensors))


class UpdateNode(GraphNode):
    """An update.

    Args:
        tx: The transformation.
        structure: The structure of updates, state and parameters.
        scalar_extras: The names of extras that are scalars.
        extras: The names of all extras; no rule reads the others.
    """

    def __init__(
        self,
        tx: Transformation,
        structure: Any,
        scalar_extras: tuple[str, ...],
        extras: tuple[str, ...],
    ):
        super().__init__(tx, structure)
        self._scalar_extras = scalar_extras
        self._unread = dict.fromkeys(extras, _unread)
        # What the operator runs; without one, what `update` finds at each call, if the counts of leaves differ.
        self._plan: _plans.TreePlan | None = None
        self._has_lag = False

    def _prepare(self, arguments: NodeArguments) -> None:
        if _needs_rules(arguments):
            return
        # A user's rule may raise any error.
        with _torch.without_modes(), contextlib.suppress(Exception):
            self._make_plan(
                NodeArguments(*(list(map(_example, tensors)) for tensors in arguments))
            )

    def _make_plan(self, examples: NodeArguments) -> None:
        """Make the plan, unless rules are to run."""
        call = self._call(examples)
        if len(_tree.tensors(call.updates)) < FEW_LEAVES:
            return
        run, leaves = _pure.begin(call)
        self._has_lag = run.leaf_steps is not None or run.has_lag(leaves)
        run.release()
        trees = self._trees(examples, on_host=True)
        plan = self._plan_for(call, trees)
        if plan.accepts(trees.absent):
            self._plan = plan

    def _plan_for(self, call: _pure.UpdateCall, trees: _trees.Trees) -> _plans.TreePlan:
        """Return the plan for calls like this one, which lack any updates."""
        tx = call.tx
        of_chain = _plans.hyperparameters_of(tx).structure
        key = (
            trees.structure,
            "node",
            self._scalar_extras,
            tuple(self._unread),
            of_chain,
        )
        known = _plans.plans_of(tx)
        plan = known.get(key, NO_LAYOUTS).fitting(trees)
        if plan is not None:
            return plan
        trees = trees.with_likely_updates({})
        call = call._replace(updates=trees.updates())
        run, leaves = _pure.begin(call)
        scalars = {name: call.extras[name] for name in self._scalar_extras}
        plan = _plans.TreePlan(call, run, leaves, trees, scalars, function_of)
        known.keep(key, plan, trees)
        return plan

    def _first(self, arguments: NodeArguments) -> Any:
        if self._plan is not None:
            return self._by_plan(arguments, on_host=False)
        call = self._whole_call(arguments)
        run, _ = _pure.begin(call)
        schedules = [
            value for value in self._values(arguments) if isinstance(value, Schedule)
        ]
        if run.opaque or any(schedule.reads_outside for schedule in schedules):
            raise _trees.UnsuitableError  # dynamo guards what functions of users read
        return _pure.update(call)

    def _needs_rules(self, arguments: NodeArguments) -> bool:
        has_operator = self._plan is not None or self._has_lag
        return not has_operator or _needs_rules(arguments)

    def _by_rules(self, arguments: NodeArguments) -> Any:
        return _pure.update(self._whole_call(arguments))

    def _computed(self, arguments: NodeArguments) -> Any:
        if self._plan is not None:
            return self._by_plan(arguments, on_host=True)
        call = self._whole_call(arguments)
        return _plans.update(call) or _pure.update(call)

    @without_ambient
    def _by_plan(self, arguments: NodeArguments, on_host: bool) -> Any:
        """Return the trees of the plan; `on_host` is whether the host may read scalars."""
        assert self._plan is not None
        values = self._values(arguments)
        trees = self._trees(arguments, on_host)
        values = self._plan.resolved(values, trees.tensors, on_host)
        call = self._call(arguments)
        return self._plan(call, trees, values, arguments.extras, on_host)

    def _trees(self, arguments: NodeArguments, on_host: bool) -> _trees.Trees:
        """Return the trees of a call; counts are taken for equal if the host may not read them.

        Raises:
            UnsuitableError: If the host may, but would have to wait.
        """
        _, updates, state, params, _ = self._call(arguments)
        counts = _trees.counts_of(state) if on_host else None
        types = frozenset(map(type, arguments.tensors))
        return _trees.Trees.of(updates, state, params, counts, types)

    def _whole_call(self, arguments: NodeArguments) -> _pure.UpdateCall:
        return self._call(arguments)._replace(tx=self._chain_of(arguments))

    def _call(self, arguments: NodeArguments) -> _pure.UpdateCall:
        updates, state, params = _trees.tree_of(
            self._structure_of_arguments, iter(arguments.tensors)
        )
        extras = {
            **self._unread,
            **dict(zip(self._scalar_extras, arguments.extras, strict=True)),
        }
        return _pure.UpdateCall(self._chain(), updates, state, params, extras)


KINDS: dict[str, type[GraphNode]] = {"init": StartNode, "update": UpdateNode}


def _flattened(trees: Any, tensors: list[Tensor]) -> Any:
    """Return the structure of results, whose tensors may be a compiler's stand-ins."""
    types = frozenset(map(type, _tree.tensors(trees)))
    return _trees.structure_of(trees, tensors, types)


def _needs_rules(lists: Iterable[list[Tensor]]) -> bool:
    """Whether a call needs derivatives, a transform or any size, for which operators are not made."""
    tensors = list(itertools.chain.from_iterable(lists))
    return (
        _torch.inside_transform()
        or _torch.forward_mode_active()
        or _pure.records_gradients(tensors, ())
        or any(map(_has_symbols, tensors))
    )


def _has_symbols(tensor: Tensor) -> bool:
    """Whether a graph is for any size or stride of a tensor: dynamo has seen several."""
    sizes = *tensor.shape, *tensor.stride()
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _example(tensor: Tensor) -> Tensor:
    """Return a scalar with a value in place of a compiler's stand-in; other stand-ins have no memory and need none."""
    if tensor.ndim:
        return tensor
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device)


# Nodes by their keys in graphs, which do not keep them alive.
_NODES: weakref.WeakValueDictionary[str, GraphNode] = weakref.WeakValueDictionary()


def _allow() -> None:
    """Make dynamo take functions as nodes; not before it runs, because this imports dynamo."""
    torch.compiler.allow_in_graph((_run, _applied))


def node_for(
    tx: Transformation, places: tuple[Any, ...], kind: str, *arguments: Any
) -> tuple[str, list[int]]:
    """Return the key of a new node, and the indices of the tensors that it takes.

    Args:
        tx: The transformation that owns the node.
        places: Those of its hyperparameters that are replaced by tensors, which follow its own.
        kind: The kind in `KINDS`.
        arguments: More arguments of the node.
    """
    _allow()
    stand_ins = [torch.zeros((), dtype=torch.float64) for _ in places]
    identities = list(map(id, [*_plans.hyperparameters_of(tx).tensors, *stand_ins]))
    replaced = tx._replaced(dict(zip(places, stand_ins, strict=True)), True)
    order = [
        identities.index(id(tensor))
        for tensor in _plans.hyperparameters_of(replaced).tensors
    ]
    made = KINDS[kind](replaced, *arguments)
    _NODES[made.key] = made
    # A chain that refers to itself would wait for the garbage collector.
    needed = (made,) if replaced is tx else (made, replaced)
    tx._set(_graph_nodes=(*tx._graph_nodes, *needed))
    return made.key, order


@_torch.assume_constant
def _structure_after(key: str) -> Any:
    """Return the structure of a node's results, which dynamo has called with stand-ins."""
    return _NODES[key].structure


def _applied(
    params: list[Tensor], updates: list[Tensor], have_updates: tuple[bool, ...]
) -> list[Tensor]:
    """Return new parameters; nothing if they and the updates do not match."""
    leaves = [i for i, has_update in enumerate(have_updates) if has_update]
    changed = [params[i] for i in leaves]
    for param, update in zip(changed, updates, strict=True):
        is_wider = update.is_complex() and not param.is_complex()
        if update.shape != param.shape or is_wider:
            return []
    new_params = list(params)
    for i, param in zip(leaves, _added(changed, updates), strict=True):
        new_params[i] = param
    return new_params


def _added(params: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """Return the sums, by operators for many leaves at a time."""
    if len(params) < FEW_LEAVES or _needs_rules([params, updates]):
        return _pure.added(params, updates)
    sums: list[Tensor] = []
    for start in range(0, len(params), LEAVES_OF_A_CALL):
        some = slice(start, start + LEAVES_OF_A_CALL)
        sums += torch.ops.gradtx.add(params[some], updates[some])
    return sums


def _run(key: str, *lists: list[Tensor]) -> list[Tensor]:
    """Return the tensors of the results; nothing if dynamo has to trace the update itself."""
    node, arguments = _NODES[key], NodeArguments(*lists)
    if node.suits is None:
        return node.tried(arguments)
    return node.run(arguments) if node.suits else []


# The operators.


def _computed(key: str, *lists: list[Tensor]) -> list[Tensor]:
    return _NODES[key].computed(NodeArguments(*lists))


def _like(key: str, *lists: list[Tensor]) -> list[Tensor]:
    return _NODES[key].like()


_LIBRARY = torch.library.Library("gradtx", "FRAGMENT")
_LIBRARY.define(
    "run(str node, Tensor[] scalars, Tensor[] tensors, Tensor[] extras) -> Tensor[]"
)
_LIBRARY.define("add(Tensor[] params, Tensor[] updates) -> Tensor[]")
_LIBRARY.impl("run", _computed, "CompositeExplicitAutograd")
_LIBRARY.impl("add", _pure.added, "CompositeExplicitAutograd")
torch.library.register_fake("gradtx::run", _like, lib=_LIBRARY)
torch.library.register_fake("gradtx::add", _pure.added, lib=_LIBRARY)
