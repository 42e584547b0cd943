"""Pure updates of plain tensors with the list back end, by plans that each transformation caches.

The programs of a plan are recorded from `gradtx.pure.tree_run.update` itself, for a tree with one leaf, and run out of
place. Plans are cached by the structure of the trees, the dtypes and the shapes; they hold no tensor of the caller.
Which leaves have a gradient, and how often each has stepped, are data of a call.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.ambient import note_program, runs_eagerly
from gradtx.base.complex_views import as_complex, as_real
from gradtx.base.errors import StateKey
from gradtx.base.exact import Schedule, resolve
from gradtx.base.forward import Transformation
from gradtx.base.plain import are_dense
from gradtx.base.recent import ProgramsOfChains
from gradtx.execution.context import UNREAD
from gradtx.execution.execute import FROZEN, Leaf, execute
from gradtx.execution.extras import as_scalar
from gradtx.execution.runs import LateTerm, Run
from gradtx.plans.bundle import FunctionOf, is_on_accelerator, list_function_of
from gradtx.plans.function import Signature
from gradtx.plans.hyperparameters import ChainOf, Hyperparameters, hyperparameters_of
from gradtx.plans.plan import Family, LeafKind, Plan, planned, signature_of
from gradtx.pure import members as _members
from gradtx.pure import tree_run as _pure
from gradtx.pure.known_trees import NO_LAYOUTS, KnownTrees, Layouts, SharedTrees
from gradtx.pure.repeated_calls import recorded_update
from gradtx.pure.structures import (
    TensorSpec,
    Trees,
    UnsuitableError,
    count_of,
    counts_of,
    is_scalar,
    plain,
    tree_of,
)
from gradtx.pure.tree_bundle import TreeBundle, TreeRow
from gradtx.pure.tree_run import (
    TreeRun,
    UpdateCall,
    count_after,
    records_gradients,
)
from gradtx.state.layout import Layout
from gradtx.state.nested import LEAF_STEPS, NestedState
from gradtx.state.slots import without_number


def update(call: UpdateCall) -> Any:
    """Return the result of `_pure.update`, computed by a plan; None if none can run this call."""
    if runs_eagerly() or _torch.is_intercepted() or _torch.forward_mode_active():
        return None
    if _torch.inside_transform():
        return _members.update(call)
    tx, updates, state, params, extras = call
    try:
        trees = Trees.of(updates, state, params, counts_of(state))
    except UnsuitableError:
        return None
    scalar_extras: dict[str, Tensor] = {}
    for name, value in extras.items():
        if is_scalar(value):
            scalar_extras[name] = as_scalar(name, value)
    hyperparameters = hyperparameters_of(tx)
    key = (
        trees.structure,
        tuple(scalar_extras),
        tuple(extras),
        hyperparameters.structure,
    )
    known = plans_of(tx)
    try:
        layouts = known.get(key, NO_LAYOUTS)
    except TypeError:  # an option that cannot be hashed
        return None
    tensors = trees.present() if trees.absent else trees.tensors
    if layouts is None:
        return None
    # First: torch's comparison ends the process if it meets a sparse tensor.
    if not are_dense(tensors):
        return None
    if records_gradients(tensors, hyperparameters.tensors):
        return _recorded(call, trees, known, key)
    plan = layouts.fitting(trees)
    is_new = plan is None
    if plan is None:
        plan = _new_plan(call, trees, scalar_extras, layouts)
        if plan is None:
            return _refused(call, trees, known, key)
    values = hyperparameters.values
    if hyperparameters.scheduled:
        values = plan.resolved(values, trees.tensors)
        if records_gradients((), values):  # a schedule depends on a learned tensor
            return None
    if trees.absent != plan.always_absent and not plan.accepts(trees.absent):
        if is_new:
            known.keep(key, plan, trees)
        return None
    try:
        if not is_new:
            return plan(call, trees, values, scalar_extras.values())
        result = _first_result(plan, call, trees, values, scalar_extras)
    except UnsuitableError:
        known.refuse(key, trees)
        return None
    known.keep(key, plan, trees)
    return result


def _recorded(call: UpdateCall, trees: Trees, known: KnownTrees, key: Any) -> Any:
    """Return the result of a call that autograd may record; None if the definition is to run.

    Results of rules that read no parameter have no derivative by parameters: where the definition has recorded nothing
    of such a call, programs run later ones.
    """
    flags = [tensor is not None and tensor.requires_grad for tensor in trees.tensors]
    _, (*others, _) = trees.structure
    count = sum(map(count_of, others))
    if any(flags[:count]) or records_gradients((), hyperparameters_of(call.tx).tensors):
        return recorded_update(call)
    _, scalar_extras, extras, _ = key
    if scalar_extras != extras:  # a function of the user may need autograd
        return None
    # Another chain of this structure may have a decay that is not 0.
    of_call = weakref.ref(call.tx), flags
    layouts = known.get(key, NO_LAYOUTS)
    if layouts.unrecorded == of_call:
        with torch.no_grad():
            return update(call)
    result = recorded_update(call) or _pure.update(call)
    if not any(tensor.requires_grad for tensor in _tree.tensors(result)):
        with torch.no_grad():
            update(call)  # makes a plan
        if known.get(key):
            known[key].unrecorded = of_call
    return result


def _refused(call: UpdateCall, trees: Trees, known: KnownTrees, key: Any) -> Any:
    """Return the result of a call for which there is no plan, and note that; raise an error if the call is invalid."""
    result = _pure.update(call)
    known.refuse(key, trees)
    return result


def _first_result(
    plan: TreePlan,
    call: UpdateCall,
    trees: Trees,
    values: list[Any],
    scalar_extras: dict[str, Tensor],
) -> Any:
    """Return the result of a new plan; if it fails, the definition tells what is invalid in the call."""
    failure: Exception | None = None
    try:
        return plan(call, trees, values, scalar_extras.values())
    except UnsuitableError:
        raise
    except Exception as error:
        failure = error
    try:
        _pure.update(call)
        raise failure
    finally:
        failure = None  # a cycle would keep tensors alive


def _new_plan(
    call: UpdateCall,
    trees: Trees,
    scalar_extras: dict[str, Tensor],
    layouts: Layouts,
) -> TreePlan | None:
    """Return a plan for calls like this one; None if there is none, as for an invalid call.

    Recording runs the checks of the definition, on stand-ins. One needs the state: an entry that a list of slots lacks
    would only make it shorter.

    Args:
        call, trees: The call.
        scalar_extras: As in `TreePlan`.
        layouts: Earlier plans for trees of this structure.
    """
    try:
        earlier = reversed(layouts.of_shapes(trees))
        alike = (plan for plan in earlier if plan.differs_in_updates(trees))
        seen = next((plan.seen for plan in alike), {})
        with torch.no_grad():
            likely = trees.with_likely_updates(seen)
            whole = call._replace(updates=likely.updates())
            run, leaves = _pure.begin(whole)
            plan = TreePlan(whole, run, leaves, likely, scalar_extras)
            has_lists = _has_lists(NestedState(call.state, run.stages))
    except Exception:  # of a user's rule, it may be any
        return None
    if has_lists:
        _pure.update(call)
    plan.seen = {**seen, **plan.specs_of_updates(trees.absent)}
    return plan


def _has_lists(state: NestedState) -> bool:
    """Whether rules keep lists in a state, whose entries are numbered slots."""
    return any(
        without_number(slot) != slot
        for path in state.stages
        for slot, _ in state.slots(path)
    )


_SHARED = SharedTrees()
# What plans of other structures may record again, which takes most of the time of a new plan.
_RECORDINGS = ProgramsOfChains()


@dataclass(frozen=True)
class VariantOfPhase:
    """Returns the variant of the function of a phase; equal to that of another plan with such functions.

    Attributes:
        function_of: As in `ListBundle`.
    """

    function_of: FunctionOf

    def __call__(self, *arguments: Any) -> Any:
        return self.function_of(*arguments).variant


def plans_of(tx: Transformation) -> KnownTrees:
    """Return the plans of a transformation."""
    if tx._plan_cache is None:
        tx._set(_plan_cache=_SHARED.of_chain(tx))
    return tx._plan_cache  # type: ignore[return-value]


class Increments(NamedTuple):
    """Which counts the updates of a plan increment.

    Attributes:
        step: The index of the common count.
        own: For each leaf with a count of its own that an update increments, the indices of the count and the update.
        first: For each leaf, the index of the update that increments its first own count, if any; empty if leaves have
            counts of their own already.
        trained: The indices of the updates of all leaves that are not frozen.
        differ: Whether the counts of leaves differ even if all have gradients.
    """

    step: int
    own: list[tuple[int, int]]
    first: dict[str, int | None]
    trained: frozenset[int]
    differ: bool

    @classmethod
    def of(
        cls,
        run: TreeRun,
        leaves: dict[str, Leaf],
        updates: dict[str, int],
        state: dict[str, Any],
    ) -> Increments:
        """Return the counts that a call increments, given the indices of updates and of the tensors of the state."""
        counts: dict[str, int] = state.get(LEAF_STEPS, {})
        first: dict[str, int | None] = {}
        for name in run.names:
            is_counted = count_after(leaves.get(name), 0)
            first[name] = updates[name] if is_counted else None
        own: list[tuple[int, int]] = []
        for name, i in counts.items():
            update = first.get(name)
            if update is not None:
                own.append((i, update))
        trained = frozenset(
            updates[name]
            for name, leaf in leaves.items()
            if leaf.has_gradient and leaf.operations != [FROZEN]
        )
        differ = run.has_lag(leaves)
        return cls(state["step"], own, {} if counts else first, trained, differ)

    def first_counts(self, absent: Set[int], step: Tensor) -> dict[str, Tensor]:
        """Return the first own counts of leaves, given the common one before the call."""
        return {
            name: step + int(update is not None and update not in absent)
            for name, update in self.first.items()
        }


class TreePlan(Plan["TreeBundle"]):
    """The plan of one transformation for trees with the structure and the tensor layouts of these.

    Its rows are all leaves that ever have a gradient: a call may lack some.

    Args:
        call: The call.
        run, leaves: The call, which has begun.
        trees: Its trees; updates that are absent now always are.
        scalar_extras: The extras that are arguments of the program; no rule may read the others.
        function_of: As in `ListBundle`.

    Attributes:
        always_absent: The indices of updates that are always absent.
        seen: What updates were in calls, by their indices.

    Raises:
        Exception: If no program can process these leaves.
    """

    seen: Mapping[int, TensorSpec]

    def __init__(
        self,
        call: UpdateCall,
        run: TreeRun,
        leaves: dict[str, Leaf],
        trees: Trees,
        scalar_extras: dict[str, Tensor],
        function_of: FunctionOf = list_function_of,
    ):
        self._function_of = function_of
        self._recordings = _RECORDINGS.of_chain(call.tx)
        self._takes_none = _check_call(call, run, leaves, scalar_extras)
        _, (of_updates, of_state, of_params) = plain(trees.structure)
        indices = iter(range(len(trees.tensors)))
        updates, state = tree_of(of_updates, indices), tree_of(of_state, indices)
        rest = list(indices)
        self._of_results = range(len(trees.tensors) - len(rest))
        params, gradients = map(_tree.named, (tree_of(of_params, iter(rest)), updates))
        self._note_layouts(trees)
        self._count_of_updates = trees.count_of_updates
        tensors = self._real(trees.tensors)
        self._increments = Increments.of(run, leaves, gradients, state)
        old = NestedState(state, run.stages)
        self._shared: dict[StateKey, int] = {}
        for path in run.stages:
            for name in run.scalars(path):
                self._shared[path, name] = old.tree((*path, name))
        hyperparameters = hyperparameters_of(call.tx)
        self._counts = self._counts_for(hyperparameters, run)
        scalars = [
            *(tensors[i] for i in self._shared.values()),
            *scalar_extras.values(),
        ]
        on_host = not any(map(is_on_accelerator, scalars))
        # The leaves without a program: their slots, and the indices of their arguments.
        self._alone: dict[str, tuple[list[StateKey], list[int]]] = {}
        chain = ChainOf(call.tx, hyperparameters.structure)

        def first(kind: LeafKind, row: TreeRow) -> Family[TreeRow]:
            signature = self._signature(call, run, row, kind, tensors, scalar_extras)
            return Family(kind, signature, row.leaf.operations, chain, on_host)

        index_of_count = {name: i for i, name in enumerate(state.get(LEAF_STEPS, ()))}
        rows = self._rows(leaves, index_of_count, (params, old, gradients), tensors)
        keyed = ((None, row.kind(run), row) for row in rows)
        self.bundles = planned(keyed, first, self._bundles_of)
        if not self.bundles:
            raise UnsuitableError
        self._clocks = run.route.clock_paths()
        self._has_tree_run = self._needs_tree_run(self.bundles)
        run.release()

    def _note_layouts(self, trees: Trees) -> None:
        """Note the layouts of tensors."""
        self.always_absent = trees.absent
        nothing = torch.empty(0)
        tensors = [nothing if x is None else x for x in trees.tensors]
        self.have_same_layout: Callable[..., bool] = _torch.layout_check(tensors)
        self._specs = list(map(TensorSpec.of, tensors))
        self._stand_ins: dict[int, Tensor] = {}
        self._complex = [i for i, tensor in enumerate(tensors) if tensor.is_complex()]

    def _rows(
        self,
        leaves: dict[str, Leaf],
        index_of_count: dict[str, int],
        trees: tuple[Any, NestedState, Any],
        tensors: list[Tensor],
    ) -> list[TreeRow]:
        """Return the leaves that may have a program; the others stay alone.

        Args:
            leaves: The leaves.
            index_of_count: The index of each leaf's own count; empty if leaves have none.
            trees, tensors: As in `TreeRow.of`.
        """
        rows: list[TreeRow] = []
        for name, leaf in leaves.items():
            if not leaf.has_gradient:
                continue
            row = TreeRow.of(leaf, index_of_count.get(name), *trees, tensors)
            # Whether recording is worth an attempt.
            if any(op.refusal(leaf, skips_work=True) for op in leaf.operations):
                self._leave_alone(row)
            else:
                rows.append(row)
        return rows

    def _leave_alone(self, row: TreeRow) -> None:
        """Note where a leaf's arguments are, but not its tensors, which a program must not keep alive."""
        self._alone[row.leaf.name] = row.slots, row.indices

    def _bundles_of(self, family: Family[TreeRow]) -> list[TreeBundle]:
        """Return the bundles of a family; leaves that cannot be recorded stay alone."""
        shared = [self._shared[key] for key in family.signature.shared]
        programs = family.programs(VariantOfPhase(self._function_of), self._recordings)
        arguments = [(row, row.tensors) for row in family.members]
        bundles: list[TreeBundle] = []
        for phases, rows in programs.by_program(arguments):
            if isinstance(phases, str):
                for row in rows:
                    self._leave_alone(row)
            else:
                bundle = TreeBundle(rows, family, phases, shared)
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
        scalar_extras: dict[str, Tensor],
    ) -> Signature:
        """Return the arguments of the program of a leaf, whose slots are keyed by path and name."""
        leaf = row.leaf
        passed = {
            represented.path
            for operation in leaf.operations
            for represented in operation.represents
        }
        shared = [key for key in self._shared if key[0] in passed]
        codes = {
            path: store.codecs_of(run.slots(path, leaf), leaf)
            for path, store in run.stores.items()
        }
        return signature_of(
            leaf,
            kind,
            layout=Layout.keyed_by_path(row.slots, shared, codes),
            hyperparameters=len(self._counts),
            shared={key: tensors[self._shared[key]].dtype for key in shared},
            scalars={name: value.dtype for name, value in scalar_extras.items()},
            absent={name: UNREAD for name in call.extras if name not in scalar_extras},
            writes=False,
        )

    def _counts_for(self, hyperparameters: Hyperparameters, run: TreeRun) -> list[int]:
        """Return the index of the count that a schedule in place of each hyperparameter would follow.

        Raises:
            UnsuitableError: If a schedule follows a clock that a combinator may restart within a call.
        """
        restarts = run.route.traits().restarts_inner
        counts = []
        for value, place in zip(
            hyperparameters.values, hyperparameters.places, strict=True
        ):
            path = run.clock_path(place)
            if isinstance(value, Schedule) and path is not None and restarts:
                raise UnsuitableError
            counts.append(self._shared[path, "step"] if path else self._increments.step)
        return counts

    def resolved(
        self, values: list[Any], tensors: list[Tensor], on_host: bool = True
    ) -> list[Any]:
        """Return the hyperparameters of a call: schedules are called at every update, because they may change."""
        scalars = []
        for value, i in zip(values, self._counts, strict=True):
            if isinstance(value, Schedule):
                count = tensors[i]
                is_on_host = on_host and not is_on_accelerator(count)
                value = value.at(int(count)) if is_on_host else resolve(value, count)
            scalars.append(value)
        return scalars

    def _needs_tree_run(self, bundles: Iterable[TreeBundle]) -> bool:
        """Whether programs leave work to the run: single leaves, sums that end late, clocks without leaves."""
        names: set[Any] = set()
        for bundle in bundles:
            names.update(bundle.operations[-1].names)
        of_clocks = (key for key in self._shared if key[0] in self._clocks)
        has_late_sums = any(isinstance(name, LateTerm) for name in names)
        return bool(self._alone) or has_late_sums or not names.issuperset(of_clocks)

    def fits(self, trees: Trees) -> bool:
        """Whether tensors have the dtypes, devices, shapes and strides that the plan was created for."""
        tensors = self.completed(trees)
        # The quick check rejects a tensor that occurs twice.
        return (
            self.have_same_layout(*tensors)
            or list(map(TensorSpec.of, tensors)) == self._specs
        )

    def differs_in_updates(self, trees: Trees) -> bool:
        """Whether tensors but for updates are what the plan was created for."""
        tensors = trees.tensors[self._count_of_updates :]
        specs = self._specs[self._count_of_updates :]
        return list(map(TensorSpec.of, tensors)) == specs

    def completed(self, trees: Trees) -> list[Tensor]:
        """Return the tensors of a call, with stand-ins for absent updates."""
        if not trees.absent:
            return trees.tensors
        for i in trees.absent - self._stand_ins.keys():
            self._stand_ins[i] = self._specs[i].stand_in()
        return trees.filled({i: self._stand_ins[i] for i in trees.absent}).tensors

    def specs_of_updates(self, absent: Set[int]) -> dict[int, TensorSpec]:
        """Return what updates are, but for absent ones."""
        return {i: self._specs[i] for i in self._increments.trained - absent}

    def accepts(self, absent: Set[int]) -> bool:
        """Whether the plan computes the update of a call that lacks these updates."""
        if absent == self.always_absent:
            return True
        if self._takes_none or not self.always_absent <= absent:
            return False
        return not self._increments.trained <= absent  # or else it is no update

    def _real(self, tensors: list[Any]) -> list[Any]:
        """Return the tensors as rules see them, with real views of complex ones."""
        return [None if tensor is None else as_real(tensor) for tensor in tensors]

    def __call__(
        self,
        call: UpdateCall,
        trees: Trees,
        scalars: list[Any],
        extras: Iterable[Tensor],
        on_host: bool = True,
    ) -> tuple[Any, dict[str, Any]]:
        """Return new `(updates, state)`; `on_host` is whether the host may read scalars.

        Raises:
            UnsuitableError: If autograd has recorded the update of a leaf without a program.
        """
        tensors = self._real(trees.tensors) if self._complex else trees.tensors
        results: list[Any] = [None] * len(tensors)
        step = self._increments.step
        results[step] = tensors[step] + 1
        for i, update in self._increments.own:
            if update not in trees.absent:
                results[i] = tensors[i] + 1
        taking_part = self._taking_part(trees, tensors, results)
        run, leaves = Run(), {}
        if self._has_tree_run or len(taking_part) < len(self.bundles):
            run, leaves = self._begun(call, trees.absent, taking_part)
        # A tensor that a rule may return must not be a result already.
        after = results[step] if on_host else tensors[step] + 1
        for bundle, (counts, set_of_row) in taking_part.items():
            shared = list(map(tensors.__getitem__, bundle.shared))
            sets: list[list[Any]] = []
            for count in counts:
                now = after if count is None else count + 1
                sets.append([now, tensors[step], *scalars, *shared, *extras])
            bundle.begin(run, sets, on_host, set_of_row)
        # The functions of a caller, such as `grad_fn`, may need autograd.
        needs_autograd = isinstance(run, TreeRun) and torch.is_grad_enabled()
        try:
            with torch.set_grad_enabled(needs_autograd):
                execute(itertools.chain(taking_part, leaves.values()))
                run.end()
        except Exception as error:
            note_program(error, functools.partial(_pure.update, call))
            raise
        if leaves and any(leaf.update.requires_grad for leaf in leaves.values()):
            raise UnsuitableError  # a rule has a learned tensor of its own
        for path, values in run.new_shared.items():
            for name, value in values.items():
                results[self._shared[path, name]] = value
        for i in self._complex:
            results[i] = None if results[i] is None else as_complex(results[i])
        if isinstance(run, TreeRun):
            self._write_alone(run, leaves, call, trees, results)
        return self._trees(trees, results)

    def _taking_part(
        self, trees: Trees, tensors: list[Any], results: list[Any]
    ) -> dict[TreeBundle, tuple[list[int | None], list[int] | None]]:
        """Return copies of the bundles of which some leaf has a gradient, with what `sets_of_rows` returns."""
        taking_part: dict[TreeBundle, Any] = {}
        for bundle in self.bundles:
            sets = bundle.sets_of_rows(trees.absent, trees.counts)
            counts, _ = sets
            if counts:
                taking_part[bundle.of_call(tensors, results)] = sets
        return taking_part

    def _begun(
        self, call: UpdateCall, absent: Set[int], bundles: Collection[TreeBundle]
    ) -> tuple[Run, dict[str, Leaf]]:
        """Return the run of a call, and its leaves without a program, given the bundles that have some leaf."""
        if not self._needs_tree_run(bundles):
            return Run(), {}
        alone = self._alone
        if absent:
            alone = {
                name: arguments
                for name, arguments in alone.items()
                if arguments[1][-1] not in absent
            }
        return _pure.begin(call, alone)

    def _trees(self, trees: Trees, results: list[Any]) -> tuple[Any, dict[str, Any]]:
        """Return the results as trees."""
        old = trees.tensors
        for i in self._of_results:
            # A slot of a leaf without a gradient, or a stage that no leaf passes through.
            if results[i] is None and i not in trees.absent:
                results[i] = old[i].clone()
        _, (of_updates, of_state, _) = trees.structure
        leaves = iter(results)
        updates = tree_of(of_updates, leaves, opens=True)
        state = tree_of(of_state, leaves)
        increments = self._increments
        if increments.first and (
            increments.differ or trees.absent & increments.trained
        ):
            state[LEAF_STEPS] = increments.first_counts(
                trees.absent, old[increments.step]
            )
        return updates, state

    def _write_alone(
        self,
        run: TreeRun,
        leaves: dict[str, Leaf],
        call: UpdateCall,
        trees: Trees,
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
                results[i] = _pure.new_slot(leaf, path, slot, trees.tensors[i])
        run.memory.register([*trees.present(), *_tree.tensors(call.extras)])
        for i in self._of_results:
            if results[i] is not None:
                results[i] = run.memory.unshared(results[i])


def _check_call(
    call: UpdateCall,
    run: TreeRun,
    leaves: dict[str, Leaf],
    scalar_extras: Collection[str],
) -> bool:
    """Check that programs may run a call; return whether a rule takes leaves without a gradient.

    Raises:
        UnsuitableError: If they may not, for example because a rule checks extras.
    """
    traits = run.route.traits()
    if any(name in run.leaf_extras for name in scalar_extras):
        raise UnsuitableError
    if run.opaque or (call.extras and traits.checks_extras):
        raise UnsuitableError
    if not _pure.is_update(leaves.values()):
        raise UnsuitableError  # which is no update
    have_gradients = [leaf.has_gradient for leaf in leaves.values()]
    if sum(have_gradients) < len(run.names) and traits.takes_none:
        raise UnsuitableError
    return traits.takes_none
