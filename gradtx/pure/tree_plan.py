"""Pure updates of plain tensors with the list back end, by programs that each transformation caches.

A program is recorded from `gradtx.pure.tree_run.update` itself, for a tree with one leaf, and runs out of place.
Programs are cached by the structure of the trees, the dtypes and the shapes; they hold no tensor of the caller.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.ambient import note_program, runs_eagerly
from gradtx.base.chunks import chunks
from gradtx.base.complex_views import as_complex, as_real
from gradtx.base.errors import Path, StateKey
from gradtx.base.exact import Schedule, resolve
from gradtx.base.forward import Transformation
from gradtx.base.plain import TYPES, are_dense, is_plain
from gradtx.execution.context import UNREAD
from gradtx.execution.execute import Leaf, execute
from gradtx.execution.runs import LateTerm, Run
from gradtx.plans.bundle import (
    FunctionOf,
    ListBundle,
    differ_by_leaf,
    entries_of_a_call,
    is_on_accelerator,
    list_function_of,
)
from gradtx.plans.cache import ProgramsOfChains
from gradtx.plans.families import (
    Family,
    LeafKind,
    forms_of,
    signature_of,
)
from gradtx.plans.function import Signature
from gradtx.plans.hyperparameters import ChainOf, Hyperparameters
from gradtx.plans.phases import RecordedPhase
from gradtx.plans.plan import Plan, planned
from gradtx.pure import tree_run as _pure
from gradtx.pure.tree_run import (
    TreeRun,
    UpdateCall,
    as_scalar,
    count_after,
    records_gradients,
)
from gradtx.state.layout import Layout
from gradtx.state.nested import LEAF_STEPS, NestedState
from gradtx.state.slots import without_number

# Limits of a transformation's cache: structures of trees and extras, and for each of them, layouts of tensors.
MOST_STRUCTURES, MOST_SHAPES = 32, 8


class UnsuitableError(Exception):
    """Raised for a call that no program can run."""


def update(call: UpdateCall) -> Any:
    """Return the result of `_pure.update`, computed by a program; None if no program can run this call."""
    if (
        runs_eagerly()
        or _torch.is_intercepted()
        or _torch.inside_transform()
        or _torch.forward_mode_active()
    ):
        return None
    tx, updates, state, params, extras = call
    tensors: list[Any] = []
    try:
        structure = structure_of((updates, state, params), tensors)
        equal_counts = _equal_counts(state)
    except UnsuitableError:
        return None
    known: dict[str, Tensor] = {}
    for name, value in extras.items():
        if _is_scalar(value):
            known[name] = as_scalar(name, value)
    hyperparameters = hyperparameters_of(tx)
    key = (
        structure,
        tuple(known),
        tuple(extras),
        hyperparameters.structure,
        equal_counts,
    )
    programs_by_key = programs_of(tx)
    try:
        programs = programs_by_key.setdefault(key, [])
    except TypeError:  # an option that cannot be hashed
        return None
    if programs is None or records_gradients(tensors, hyperparameters.tensors):
        return None
    program = _program_for(tensors, programs)
    if program is None and not are_dense(tensors):
        return None
    is_new = program is None
    if program is None:
        program = _recorded(call, structure, tensors, equal_counts, known)
    if program is None:
        result = _pure.update(call)  # raises an error if the call is invalid
        programs_by_key[key] = None
        return result
    values = hyperparameters.values
    if hyperparameters.scheduled:
        values = program.resolved(values, tensors)
        if records_gradients((), values):  # a schedule depends on a learned tensor
            return None
    try:
        if not is_new:
            return program(call, tensors, values, known.values())
        result = _first_result(program, call, tensors, values, known)
    except UnsuitableError:
        programs_by_key[key] = None
        return None
    programs.append(program)
    del programs[:-MOST_SHAPES]
    _bound(programs_by_key)
    return result


def _bound(programs_by_key: dict[Any, Any]) -> None:
    """Drop the oldest structure if there are too many."""
    if len(programs_by_key) > MOST_STRUCTURES:
        oldest = next(iter(programs_by_key))
        programs_by_key.pop(oldest, None)  # another thread may have dropped it


def _first_result(
    program: TreePlan,
    call: UpdateCall,
    tensors: list[Tensor],
    values: list[Any],
    known: dict[str, Tensor],
) -> Any:
    """Return the result of a new program; if it fails, the definition tells what is invalid in the call."""
    failure: Exception | None = None
    try:
        return program(call, tensors, values, known.values())
    except UnsuitableError:
        raise
    except Exception as error:
        failure = error
    try:
        _pure.update(call)
        raise failure
    finally:
        failure = None  # a cycle would keep tensors alive


def _program_for(tensors: list[Tensor], programs: list[TreePlan]) -> TreePlan | None:
    """Return the program for tensors; None if there is none, or a tensor is sparse or nested."""
    # First: torch's comparison ends the process if it meets a sparse tensor.
    if not programs or not are_dense(tensors):
        return None
    for program in programs:
        if program.have_same_layout(*tensors):
            return program
    return next((program for program in programs if program.fits(tensors)), None)


def _recorded(
    call: UpdateCall,
    structure: Any,
    tensors: list[Tensor],
    equal_counts: tuple[int, ...],
    known: dict[str, Tensor],
) -> TreePlan | None:
    """Return a program for calls like this one; None if there is none, as for an invalid call.

    Recording runs the checks of the definition, on stand-ins. One needs the state: an entry that a list of slots lacks
    would only make it shorter.
    """
    try:
        with torch.no_grad():
            run, leaves = _pure.begin(call)
            program = TreePlan(
                *(call, run, leaves, structure, tensors, equal_counts, known)
            )
            has_lists = _has_lists(NestedState(call.state, run.stages))
    except Exception:  # of a user's rule, it may be any
        return None
    if has_lists:
        _pure.update(call)
    return program


def _has_lists(state: NestedState) -> bool:
    """Whether rules keep lists in a state, whose entries are numbered slots."""
    return any(
        without_number(slot) != slot
        for path in state.stages
        for slot, _ in state.slots(path)
    )


_SHARED = ProgramsOfChains()


def programs_of(tx: Transformation) -> dict[Any, Any]:
    """Return the programs of a transformation, which it shares with others that differ only in scalars.

    Programs that hold functions or tensors of the user belong to one transformation, and are freed with it.
    """
    if tx._program_cache is None:
        tx._set(_program_cache=_SHARED.of_chain(tx))
    return tx._program_cache  # type: ignore[return-value]


def structure_of(tree: Any, tensors: list[Any], types: Set[type] = TYPES) -> Any:
    """Return the structure of a tree of dicts, lists and tuples, and append its tensors in order to `tensors`.

    Args:
        tree: The tree.
        tensors: Receives its tensors.
        types: Their types.

    Raises:
        UnsuitableError: If the tree contains anything else.
    """
    head: Any = type(tree)  # torch 2.15 does not trace `__class__` of a dict
    values = tree
    if head is dict:
        head, values = tuple(tree), tree.values()
        # No instruction per tensor: dynamo takes 0.1 ms for each.
        if frozenset(map(type, values)) <= types:
            tensors.extend(values)
            return head, None
    elif tree is None:
        return "None"
    elif head is tuple or head is list:
        head = head.__name__  # dynamo has no constants that are types
    else:
        raise UnsuitableError
    children: list[Any] = []
    for value in values:
        if type(value) in types:
            tensors.append(value)
            children.append(None)
        else:
            children.append(structure_of(value, tensors, types))
    return head, tuple(children)


def _is_scalar(value: Any) -> bool:
    if is_plain(value):
        return value.ndim == 0 and not value.requires_grad
    return type(value) is float


def tree_of(structure: Any, leaves: Iterator[Any]) -> Any:
    """Return a tree with this structure."""
    if structure is None:
        return next(leaves)
    if structure == "None":
        return None
    kind, children = structure
    if children is None:  # a dict of tensors
        return dict(zip(kind, leaves, strict=False))
    values = [tree_of(child, leaves) for child in children]
    if kind == "list":
        return values
    if kind == "tuple":
        return tuple(values)
    return dict(zip(kind, values, strict=True))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
        tensor.requires_grad,
    )


def _equal_counts(state: Any) -> tuple[int, ...]:
    """Return which counts are equal in a state with one count per leaf; else nothing.

    This is, for each leaf, the position of the first leaf with the same count.

    Raises:
        UnsuitableError: If the host cannot read them without waiting.
    """
    counts = state.get(LEAF_STEPS) if isinstance(state, dict) else None
    if not isinstance(counts, dict) or not counts:
        return ()
    for count in counts.values():
        if not is_plain(count) or count.ndim or count.device.type != "cpu":
            raise UnsuitableError
    values = list(map(int, counts.values()))
    first: dict[int, int] = {}
    return tuple(first.setdefault(value, i) for i, value in enumerate(values))


def hyperparameters_of(tx: Transformation) -> Hyperparameters:
    """Return the hyperparameters of a transformation, which keeps them."""
    if tx._hyperparameters is None:
        tx._set(_hyperparameters=Hyperparameters(tx._entries()))
    return tx._hyperparameters  # type: ignore[return-value]


class TreePlan(Plan["TreeBundle"]):
    """The plan of one transformation for trees with the structure and the tensor layouts of these.

    Args:
        call: The call.
        run, leaves: The call, which has begun.
        structure: The structure of updates, state and parameters.
        tensors: Their tensors.
        equal_counts: See `_equal_counts`.
        known: The extras that are arguments of the program; no rule may read the others.
        function_of: As in `ListBundle`.

    Raises:
        Exception: If no program can process these leaves.
    """

    def __init__(
        self,
        call: UpdateCall,
        run: TreeRun,
        leaves: dict[str, Leaf],
        structure: Any,
        tensors: list[Tensor],
        equal_counts: tuple[int, ...],
        known: dict[str, Tensor],
        function_of: FunctionOf = list_function_of,
    ):
        self._function_of = function_of
        _check_call(call, run, leaves, known)
        kind, (*of_results, of_params) = structure
        self._new = kind, of_results
        indices = iter(range(len(tensors)))
        updates, state = tree_of(self._new, indices)
        rest = list(indices)
        self._of_results = range(len(tensors) - len(rest))
        params = tree_of(of_params, iter(rest))
        self.have_same_layout: Callable[..., bool] = _torch.layout_check(tensors)
        self._layouts = list(map(_layout, tensors))
        self._complex = [i for i, tensor in enumerate(tensors) if tensor.is_complex()]
        tensors = self._real(tensors)
        count_of = self._note_counts(run, leaves, state, equal_counts)
        old = NestedState(state, run.stages)
        self._shared: dict[StateKey, int] = {}
        for path in run.stages:
            for name in run.scalars(path):
                self._shared[path, name] = old.tree((*path, name))
        hyperparameters = hyperparameters_of(call.tx)
        self._counts = self._counts_for(hyperparameters, run)
        scalars = [*(tensors[i] for i in self._shared.values()), *known.values()]
        on_host = not any(map(is_on_accelerator, scalars))
        trees = _tree.named(params), old, _tree.named(updates)
        # The leaves without a program: their slots, and the indices of their arguments.
        self._alone: dict[str, tuple[list[StateKey], list[int]]] = {}
        chain = ChainOf(call.tx, hyperparameters.structure)

        def first(kind: LeafKind, row: TreeRow) -> Family[TreeRow]:
            signature = self._signature(call, run, row, kind, tensors, known)
            return Family(kind, signature, row.leaf.operations, chain, on_host)

        rows = self._rows(leaves, count_of, trees, tensors)
        keyed = ((row.count_index, row.kind(run), row) for row in rows)
        self.bundles = planned(keyed, first, self._bundles_of)
        if not self.bundles:
            raise UnsuitableError
        self._has_tree_run = self._needs_tree_run(run.route.clock_paths())
        run.release()

    def _note_counts(
        self,
        run: TreeRun,
        leaves: dict[str, Leaf],
        state: dict[str, Any],
        equal_counts: tuple[int, ...],
    ) -> dict[str, int]:
        """Note which counts a call advances; return the index of each leaf's own count, if leaves have their own.

        Leaves with equal counts share the first of them.
        """
        self._step: int = state["step"]
        counts: dict[str, int] = state.get(LEAF_STEPS, {})
        own = list(counts.values()) or [self._step]
        ticks = {name: count_after(leaves.get(name), 0) for name in run.names}
        counted = [i for name, i in counts.items() if ticks.get(name)]
        self._counted = [self._step, *counted]
        # In the first update after which the counts of leaves differ.
        self._first_ticks = {} if counts or not run.has_lag(leaves) else ticks
        return {name: own[i] for name, i in zip(counts, equal_counts, strict=True)}

    def _rows(
        self,
        leaves: dict[str, Leaf],
        count_of: dict[str, int],
        trees: tuple[Any, NestedState, Any],
        tensors: list[Tensor],
    ) -> list[TreeRow]:
        """Return the leaves that may have a program; the others stay alone."""
        rows: list[TreeRow] = []
        for name, leaf in leaves.items():
            if not leaf.has_gradient:
                continue
            count = count_of.get(name, self._step)
            row = TreeRow.of(leaf, count, *trees, tensors)
            # Whether recording is worth an attempt.
            if all(
                operation.has_program(leaf, skips_work=True)
                for operation in leaf.operations
            ):
                rows.append(row)
            else:
                self._leave_alone(row)
        return rows

    def _leave_alone(self, row: TreeRow) -> None:
        """Note where a leaf's arguments are, but not its tensors, which a program must not keep alive."""
        self._alone[row.leaf.name] = row.slots, row.indices

    def _form_of(self, *arguments: Any) -> Any:
        return self._function_of(*arguments).form

    def _bundles_of(self, family: Family[TreeRow]) -> list[TreeBundle]:
        """Return the bundles of a family; leaves that cannot be recorded stay alone."""
        shared = [self._shared[place] for place in family.signature.shared]
        programs = family.programs(self._form_of, {})
        arguments = [(row, row.tensors) for row in family.members]
        bundles: list[TreeBundle] = []
        for phases, rows in programs.by_program(arguments):
            if isinstance(phases, str):
                for row in rows:
                    self._leave_alone(row)
            else:
                bundle = TreeBundle(rows, phases, shared)
                bundle.function_of = self._function_of
                bundles.append(bundle)
        return bundles

    def _signature(
        self,
        call: UpdateCall,
        run: TreeRun,
        row: TreeRow,
        kind: LeafKind,
        tensors: list[Tensor],
        known: dict[str, Tensor],
    ) -> Signature:
        """Return the arguments of the program of a leaf, whose slots are keyed by path and name."""
        leaf = row.leaf
        passed = {
            represented.path
            for operation in leaf.operations
            for represented in operation.represents
        }
        shared = [place for place in self._shared if place[0] in passed]
        codes = {
            path: store.codecs_of(run.slots(path, leaf), leaf)
            for path, store in run.stores.items()
        }
        return signature_of(
            leaf,
            kind,
            layout=Layout.keyed_by_path(row.slots, shared, codes),
            hyperparameters=len(self._counts),
            shared={place: tensors[self._shared[place]].dtype for place in shared},
            scalars={name: value.dtype for name, value in known.items()},
            absent={name: UNREAD for name in call.extras if name not in known},
            writes=False,
        )

    def _counts_for(self, hyperparameters: Hyperparameters, run: TreeRun) -> list[int]:
        """Return the index of the count that a schedule in place of each hyperparameter would follow.

        Raises:
            UnsuitableError: If a schedule follows a clock that a combinator may restart within a call.
        """
        restarts = any(link.restarts_inner for link in run.route.traits())
        counts = []
        for value, place in zip(
            hyperparameters.values, hyperparameters.places, strict=True
        ):
            path = run.clock_path(place)
            if isinstance(value, Schedule) and path is not None and restarts:
                raise UnsuitableError
            counts.append(self._shared[path, "step"] if path else self._step)
        return counts

    def resolved(
        self, values: list[Any], tensors: list[Tensor], on_host: bool = True
    ) -> list[Any]:
        """Return the hyperparameters of a call: schedules are called at every update, because they may change."""
        scalars = []
        for value, i in zip(values, self._counts, strict=True):
            if isinstance(value, Schedule):
                count = tensors[i]
                is_known = on_host and not is_on_accelerator(count)
                value = value.at(int(count)) if is_known else resolve(value, count)
            scalars.append(value)
        return scalars

    def _needs_tree_run(self, clocks: Collection[Path]) -> bool:
        """Whether programs leave work to the run: single leaves, sums that end late, clocks without leaves."""
        names: set[Any] = set()
        for bundle in self.bundles:
            names.update(bundle.operations[-1].names)
        of_clocks = (place for place in self._shared if place[0] in clocks)
        has_late_sums = any(isinstance(name, LateTerm) for name in names)
        return bool(self._alone) or has_late_sums or not names.issuperset(of_clocks)

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether tensors have the dtypes, devices, shapes and strides that the program was created for."""
        # The quick check rejects a tensor that occurs twice.
        return (
            self.have_same_layout(*tensors)
            or list(map(_layout, tensors)) == self._layouts
        )

    def _real(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors as rules see them, with real views of complex ones."""
        return list(map(as_real, tensors)) if self._complex else tensors

    def __call__(
        self,
        call: UpdateCall,
        tensors: list[Tensor],
        scalars: list[Any],
        extras: Iterable[Tensor],
        on_host: bool = True,
    ) -> tuple[Any, dict[str, Any]]:
        """Return new `(updates, state)`; `on_host` is whether the host may read scalars.

        Raises:
            UnsuitableError: If autograd has recorded the update of a leaf without a program.
        """
        old, tensors = tensors, self._real(tensors)
        results: list[Any] = [None] * len(tensors)
        run, leaves = Run(), {}
        if self._has_tree_run:
            run, leaves = _pure.begin(call, self._alone)
        for i in self._counted:
            results[i] = tensors[i] + 1
        calls: list[TreeBundle] = []
        for bundle in self.bundles:
            bundle = bundle.of_call(tensors, results)
            shared = [tensors[i] for i in bundle.shared]
            after = results[bundle.count]
            # A tensor that a rule may return must not be a result already.
            if after is None or not on_host:
                after = tensors[bundle.count] + 1
            counts = after, tensors[self._step]
            bundle.begin(run, [*counts, *scalars, *shared, *extras], on_host)
            calls.append(bundle)
        # The functions of a caller, such as `grad_fn`, may need autograd.
        needs_autograd = self._has_tree_run and torch.is_grad_enabled()
        try:
            with torch.set_grad_enabled(needs_autograd):
                execute(itertools.chain(calls, leaves.values()))
                run.end()
        except Exception as error:
            note_program(error, functools.partial(_pure.update, call))
            raise
        if any(leaf.update.requires_grad for leaf in leaves.values()):
            raise UnsuitableError  # a rule has a learned tensor of its own
        for path, values in run.new_shared.items():
            for name, value in values.items():
                results[self._shared[path, name]] = value
        for i in self._complex:
            results[i] = None if results[i] is None else as_complex(results[i])
        if isinstance(run, TreeRun):
            self._write_alone(run, leaves, call, old, results)
        return self._trees(old, results)

    def _trees(
        self, old: list[Tensor], results: list[Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the results as trees."""
        for i in self._of_results:
            # A leaf without a gradient, or a stage that no leaf passes through.
            if results[i] is None:
                results[i] = old[i].clone()
        updates, state = tree_of(self._new, iter(results))
        if self._first_ticks:
            step = old[self._step]
            state[LEAF_STEPS] = {
                name: step + tick for name, tick in self._first_ticks.items()
            }
        return updates, state

    def _write_alone(
        self,
        run: TreeRun,
        leaves: dict[str, Leaf],
        call: UpdateCall,
        old: list[Tensor],
        results: list[Any],
    ) -> None:
        """Write the results of the leaves without a program, and ensure that no result shares memory with another."""
        for name, leaf in leaves.items():
            slots, indices = self._alone[name]
            *_, gradient = indices
            update: Any = leaf.result()
            results[gradient] = leaf.in_callers_form(update)
            of_slots = indices[leaf.param is not None :]
            for (path, slot), i in zip(slots, of_slots, strict=False):
                results[i] = _pure.new_slot(leaf, path, slot, old[i])
        run.memory.register([*old, *_tree.tensors(call.extras)])
        for i in self._of_results:
            if results[i] is not None:
                results[i] = run.memory.unshared(results[i])


def _check_call(
    call: UpdateCall, run: TreeRun, leaves: dict[str, Leaf], known: Collection[str]
) -> None:
    """Check that programs may run a call.

    Raises:
        UnsuitableError: If they may not, for example because a rule checks extras.
    """
    traits = run.route.traits()
    if any(name in run.leaf_extras for name in known):
        raise UnsuitableError
    if run.opaque or (call.extras and any(link.checks_extras for link in traits)):
        raise UnsuitableError
    if not _pure.is_update(leaves.values()):
        raise UnsuitableError  # which is no update
    have_gradients = [leaf.has_gradient for leaf in leaves.values()]
    if sum(have_gradients) < len(run.names) and any(link.takes_none for link in traits):
        raise UnsuitableError


class TreeRow(NamedTuple):
    """The arguments of a leaf.

    Attributes:
        leaf: The leaf.
        count_index: The index of its count.
        slots: Its slots.
        indices: The indices of its parameter if there is one, its slots and its gradient.
        tensors: These tensors.
    """

    leaf: Leaf
    count_index: int
    slots: list[StateKey]
    indices: list[int]
    tensors: list[Tensor]

    @classmethod
    def of(
        cls,
        leaf: Leaf,
        count: int,
        params: dict[str, int],
        state: NestedState,
        gradients: dict[str, int],
        tensors: list[Tensor],
    ) -> TreeRow:
        """Return the arguments of a leaf from trees of indices of tensors."""
        slots: dict[StateKey, Any] = {
            (path, slot): i
            for path in state.stages
            for slot, i in state.slots_of(path, leaf.name).items()
        }
        indices = [*slots.values(), gradients[leaf.name]]
        if leaf.param is not None:
            indices.insert(0, params[leaf.name])
        return cls(leaf, count, list(slots), indices, [tensors[i] for i in indices])

    def kind(self, run: TreeRun) -> LeafKind:
        """Return what leaves with a common program share."""
        *written, read = forms_of(self.tensors)
        return LeafKind(
            layout=tuple(self.slots),
            written=tuple(written),
            read=(read,),
            choices=tuple(sorted(run.choices.get(self.leaf.name, {}).items())),
            has_param=self.leaf.param is not None,
        )


class TreeBundle(ListBundle):
    """Leaves with the same program, whose tensors are those of a call with these indices; each call has a copy.

    Args:
        rows: The arguments of the leaves.
        phases: The program.
        shared: The indices of the shared values that are arguments.

    Attributes:
        tensors: The tensors of the call.
        results: Receives the new ones.
    """

    tensors: list[Tensor]
    results: list[Any]

    def __init__(
        self,
        rows: list[TreeRow],
        phases: list[RecordedPhase],
        shared: list[int],
    ):
        leaf = rows[0].leaf
        super().__init__(leaf.name, leaf.device)
        self.operations = phases
        self.count = rows[0].count_index
        self.shared = shared
        self._columns = list(zip(*(row.indices for row in rows), strict=True))
        *slots, updates = self._columns[leaf.param is not None :]
        self._written = [updates, *slots]  # in the order of the results
        sizes = [max(map(Tensor.numel, row.tensors)) for row in rows]
        self._chunks = list(chunks(sizes, entries_of_a_call(self.device)))
        names = [row.leaf.name for row in rows]
        self.leaf_names = [names[chunk] for chunk in self._chunks]

    def of_call(self, tensors: list[Tensor], results: list[Any]) -> TreeBundle:
        """Return a copy for a call."""
        bundle = object.__new__(TreeBundle)
        bundle.__dict__.update(self.__dict__, tensors=tensors, results=results)
        return bundle

    def columns(self) -> Iterator[list[list[Tensor]]]:
        tensor_at = self.tensors.__getitem__
        for chunk in self._chunks:
            yield [list(map(tensor_at, column[chunk])) for column in self._columns]

    def end(self, phase: RecordedPhase, results: list[list[Any]]) -> None:
        for chunk, of_chunk in zip(self._chunks, results, strict=True):
            columns = zip(self._written, phase.dtypes, of_chunk, strict=False)
            for column, dtype, values in columns:
                indices = column[chunk]
                if not differ_by_leaf(values):  # the same for all leaves
                    values = [self.as_tensor(values, dtype).clone() for _ in indices]
                for i, value in zip(indices, values, strict=True):
                    self.results[i] = value
        self.hand_over(phase, results, len(self._written))
