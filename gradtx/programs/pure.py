"""Pure updates of plain tensors with the list back end, by programs that each transformation caches.

A program is recorded from `_pure.update` itself, for a tree with one leaf, and runs out of place. Programs are cached
by the structure of the trees, the dtypes and the shapes; they hold no tensor of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.ambient import add_note, runs_eagerly
from gradtx.base.complex_views import as_complex, as_real
from gradtx.base.errors import Path
from gradtx.base.exact import Schedule, resolve
from gradtx.base.forward import Transformation
from gradtx.execution import pure as _pure
from gradtx.execution.context import UNREAD
from gradtx.execution.execute import (
    FROZEN,
    Leaf,
    Operation,
    checks_extras,
    execute,
    takes_none,
)
from gradtx.execution.phases import has_late_sums, phases_of
from gradtx.execution.pure import (
    LEAF_STEPS,
    TreeRun,
    as_number,
    check_extras,
    leaves_of,
)
from gradtx.execution.runs import clock_at
from gradtx.programs.bundle import (
    ListBundle,
    ListPhase,
    chunks,
    differ_by_leaf,
    entries_of_a_call,
    is_on_accelerator,
)
from gradtx.programs.cache import SharedPrograms
from gradtx.programs.function import LeafFunction, Signature
from gradtx.programs.hyperparameters import ChainOf, Numbers
from gradtx.programs.layout import Layout
from gradtx.programs.planner import ListPrograms

# Limits of a transformation's cache: structures of trees and extras, and for each of them, layouts of tensors.
MOST_STRUCTURES, MOST_SHAPES = 32, 8
SlotOf: TypeAlias = tuple[
    Path, str
]  # the path of a stage, and the name of a slot or a shared value there
PLAIN = (Tensor, torch.nn.Parameter)


class _UnsuitableError(Exception):
    """Raised for a call that no program can run."""


def update(
    tx: Transformation,
    updates: Any,
    state: Any,
    params: Any,
    extras: dict[str, Any],
) -> Any:
    """Return the result of `_pure.update`, computed by a program; None if no program can run this call."""
    if (
        runs_eagerly()
        or _torch.is_intercepted()
        or _torch.inside_transform()
        or _torch.forward_mode_active()
    ):
        return None
    tensors: list[Any] = []
    try:
        steps, common_state = LeafSteps.split(state)
        structure = _structure((updates, common_state, params), tensors)
    except _UnsuitableError:
        return None
    known: dict[str, Any] = {}
    unread: dict[str, Any] = {}  # unless recording finds that a rule reads them
    for name, value in extras.items():
        if _is_number(value):
            known[name] = as_number(name, value)
        else:
            unread[name] = value
    numbers = numbers_of(tx)
    key = structure, tuple(known), tuple(unread), numbers.structure, steps.key
    programs_by_key = programs_of(tx)
    try:
        programs = programs_by_key.setdefault(key, [])
    except TypeError:  # an option that cannot be hashed
        return None
    if programs is None or _records_gradients(tensors, numbers.values):
        return None
    fitting = (program for program in programs if program.fits(tensors))
    program = next(fitting, None)
    if program is not None:
        if unread:
            _pure.check_unread(tx, updates, params, extras)
    else:
        # Raises an error if the call is invalid.
        result = _pure.update(tx, updates, state, params, extras)
        try:
            with torch.no_grad():
                arguments = _Extras(known, tuple(unread))
                trees = updates, common_state, params
                program = TreeProgram(
                    tx, numbers, trees, structure, arguments, tensors, steps
                )
        except Exception:
            # A user's rule may raise any error while it is recorded; it ran without programs, or raised it above.
            programs_by_key[key] = None
            return result
        programs.append(program)
        del programs[:-MOST_SHAPES]
        if len(programs_by_key) > MOST_STRUCTURES:
            oldest = next(iter(programs_by_key))
            programs_by_key.pop(oldest, None)  # another thread may have dropped it
    values = program.resolved(numbers.values, tensors, steps)
    if _records_gradients((), values):  # a schedule depends on a learned tensor
        return None
    return program(tensors, known, values, steps)


def _records_gradients(tensors: Iterable[Tensor], numbers: Iterable[Any]) -> bool:
    """Whether autograd would record a call with these values."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:
        if tensor.requires_grad:
            return True
    return any(
        isinstance(number, Tensor) and number.requires_grad for number in numbers
    )


_SHARED = SharedPrograms()


def programs_of(tx: Transformation) -> dict[Any, Any]:
    """Return the programs of a transformation, which it shares with others that differ only in numbers.

    Programs that hold functions or tensors of the user belong to one transformation, and are freed with it.
    """
    if tx._program_cache is None:
        tx._set(_program_cache=_SHARED.of_chain(tx))
    return tx._program_cache  # type: ignore[return-value]


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return type(value) is tuple


def _structure(tree: Any, tensors: list[Any]) -> Any:
    """Return the structure of a tree of dicts, lists and tuples, and append its tensors in order to `tensors`.

    Raises:
        _UnsuitableError: If the tree contains anything else.
    """
    kind = tree.__class__
    if kind in PLAIN and tree.layout is torch.strided and not tree.is_nested:
        tensors.append(tree)
        return None
    if kind is dict:
        return tuple(tree), tuple(
            [_structure(value, tensors) for value in tree.values()]
        )
    if kind is tuple or kind is list:
        return kind, tuple([_structure(value, tensors) for value in tree])
    if tree is None:
        return "None"
    raise _UnsuitableError


@dataclass(frozen=True)
class _Extras:
    """The extras of a call.

    Attributes:
        numbers: Those that are arguments of the program.
        unread: The names of the others, which no rule may read.
    """

    numbers: dict[str, Tensor]
    unread: tuple[str, ...]

    def stand_ins(self) -> dict[str, Any]:
        return dict.fromkeys(self.unread, UNREAD)


def _is_number(value: Any) -> bool:
    if type(value) is Tensor:
        return value.ndim == 0 and not value.requires_grad
    return type(value) is float


def _tree_of(structure: Any, leaves: Iterator[Any]) -> Any:
    """Return a tree with this structure."""
    if structure is None:
        return next(leaves)
    if structure.__class__ is str:
        return None
    kind, children = structure
    values = [_tree_of(child, leaves) for child in children]
    if kind is tuple or kind is list:
        return kind(values)
    return dict(zip(kind, values, strict=True))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
        tensor.requires_grad,
    )


class LeafSteps:
    """The counts of the updates of each leaf, as numbers, for a state in which they differ.

    Attributes:
        tensors: The count of each leaf by name; empty for a state with a single count.
        key: The names of leaves with equal counts, in the order of their counts.
        by_rank: The count of each of these groups.
        rank: The index of the group of each leaf.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        names_of: dict[int, list[str]] = {}
        for name, count in tensors.items():
            names_of.setdefault(int(count), []).append(name)
        counts = sorted(names_of)
        self.key = tuple(tuple(names_of[count]) for count in counts)
        self.by_rank = [tensors[names_of[count][0]] for count in counts]
        self.rank: dict[str, int] = {}
        for i, names in enumerate(self.key):
            self.rank.update(dict.fromkeys(names, i))

    @classmethod
    def split(cls, state: Any) -> tuple[LeafSteps, Any]:
        """Take the counts out of a state.

        Raises:
            _UnsuitableError: If the host cannot read them without waiting.
        """
        if not isinstance(state, dict) or LEAF_STEPS not in state:
            return cls({}), state
        common = {key: value for key, value in state.items() if key != LEAF_STEPS}
        counts = state[LEAF_STEPS]
        if not isinstance(counts, dict):
            raise _UnsuitableError
        for count in counts.values():
            if type(count) is not Tensor or count.ndim or count.device.type != "cpu":
                raise _UnsuitableError
        return cls(counts), common

    def after(self, like: Iterable[str], step: Tensor, counted: set[str]) -> Any:
        """Return the counts after an update that counts for some leaves."""
        after: dict[str, Tensor] = {}
        for name in self.tensors or like:
            count = self.tensors.get(name, step)
            after[name] = count + 1 if name in counted else count.clone()
        return after


def numbers_of(tx: Transformation) -> Numbers:
    """Return the numbers of a transformation, which keeps them."""
    if tx._numbers is None:
        tx._set(_numbers=Numbers(tx._entries()))
    return tx._numbers  # type: ignore[return-value]


class TreeProgram:
    """The program of one transformation for trees with the structure and the tensor layouts of these.

    Raises:
        Exception: If no program can process these leaves.
    """

    def __init__(
        self,
        tx: Transformation,
        numbers: Numbers,
        trees: tuple[Any, Any, Any],
        structure: Any,
        extras: _Extras,
        tensors: list[Tensor],
        steps: LeafSteps,
    ):
        _, (self._updates, self._state, _) = structure
        updates, state, params = _tree_of(structure, iter(range(len(tensors))))
        first, count = (len(list(_tree.tensors(tree))) for tree in trees[:2])
        self._of_state = range(first, first + count)
        self._have_same_layout: Callable[..., bool] = _torch.layout_check(tensors)
        self._layouts = list(map(_layout, tensors))
        self._complex = [i for i, tensor in enumerate(tensors) if tensor.is_complex()]
        tensors = self._real(tensors)
        run, leaves = _run_of(tx, *trees, extras)
        self._names = list(run.names)
        self._counted = {
            name for name, leaf in leaves.items() if leaf.program != [FROZEN]
        }
        self._has_steps = bool(steps.tensors) or run.lags
        slots: dict[SlotOf, dict[str, int]] = {}
        self._shared: dict[SlotOf, int] = {}
        for path, name, value in _entries(state, run.stages):
            if isinstance(value, int):
                self._shared[path, name] = value
            else:
                slots[path, name] = value
        self._counts = self._counts_for(numbers, run)
        on_host = not any(
            is_on_accelerator(value)
            for value in (
                *(tensors[i] for i in self._shared.values()),
                *extras.numbers.values(),
            )
        )
        columns = [*slots.values(), _tree.named(updates)]
        if params is not None:
            columns.insert(0, _tree.named(params))
        self._bundles: list[_Leaves] = []
        self._ranks: list[int] = []
        for names in _group_by_program(leaves, columns, tensors, steps.rank):
            leaf = leaves[names[0]]
            signature = self._signature(run, leaf, slots, tensors, numbers, extras)
            present = [column for column in columns if leaf.name in column]
            rows = {name: [column[name] for column in present] for name in names}
            function = LeafFunction(signature, ChainOf(tx, numbers.structure))
            bundles = _bundles(rows, function, on_host, tensors)
            self._bundles.extend(bundles)
            self._ranks.extend([steps.rank.get(leaf.name, 0)] * len(bundles))
        self._check_clocks(run)

    def _signature(
        self,
        run: TreeRun,
        leaf: Leaf,
        slots: Mapping[SlotOf, Mapping[str, int]],
        tensors: list[Tensor],
        numbers: Numbers,
        extras: _Extras,
    ) -> Signature:
        """Return the arguments of the program of a leaf, whose slots are keyed by path and name."""
        own = [place for place, column in slots.items() if leaf.name in column]
        passed = {part.path for operation in leaf.program for part in operation.parts}
        shared = [place for place in self._shared if place[0] in passed]
        codes = {
            path: store.codecs_of(run.slots(path, leaf), leaf)
            for path, store in run.stores.items()
        }
        return Signature(
            layout=Layout.keyed_by_place(own, shared, codes),
            choices=run.choices.get(leaf.name, {}),
            numbers=len(numbers.values),
            shared={place: tensors[self._shared[place]].dtype for place in shared},
            scalars={name: value.dtype for name, value in extras.numbers.items()},
            by_leaf=(),
            absent=extras.stand_ins(),
            known_extras=run.known_extras,
            has_param=leaf.param is not None,
            writes=False,
        )

    def _counts_for(self, numbers: Numbers, run: TreeRun) -> list[int]:
        """Return the index of the count that a schedule in place of each number would follow.

        Raises:
            _UnsuitableError: If a schedule follows a clock that a combinator may restart within a call.
        """
        restarts = any(each.restarts_inner for each in run.block.walk())
        self._step = self._shared.pop(((), "step"))
        counts: list[int] = []
        for value, place in zip(numbers.values, numbers.places, strict=True):
            path = clock_at(place, run.clock_paths)
            if isinstance(value, Schedule) and path is not None and restarts:
                raise _UnsuitableError
            counts.append(self._shared[path, "step"] if path else self._step)
        return counts

    def resolved(
        self, values: list[Any], tensors: list[Tensor], steps: LeafSteps
    ) -> list[Any]:
        """Return the numbers of a call: schedules are called at every update, because they may change."""
        numbers: list[Any] = []
        for value, i in zip(values, self._counts, strict=True):
            if isinstance(value, Schedule):
                latest = steps.by_rank if i == self._step else []
                value = resolve(value, latest[-1] if latest else tensors[i])
            numbers.append(value)
        return numbers

    def _check_clocks(self, run: TreeRun) -> None:
        """Check that some program advances each inner clock: without leaves, a clock counts the call nevertheless."""
        advanced: set[Any] = set()
        for bundle in self._bundles:
            advanced.update(bundle.phases[-1].names)
        clocks = run.block.clock_paths()
        if any(place[0] in clocks and place not in advanced for place in self._shared):
            raise _UnsuitableError

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether tensors have the dtypes, devices, shapes and strides that the program was created for."""
        if self._have_same_layout(*tensors):
            return True
        # The quick check rejects a tensor that occurs twice.
        return list(map(_layout, tensors)) == self._layouts

    def _real(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors as rules see them, with real views of complex ones."""
        return list(map(as_real, tensors)) if self._complex else tensors

    def __call__(
        self,
        tensors: list[Tensor],
        extras: dict[str, Any],
        values: list[Any],
        steps: LeafSteps,
    ) -> tuple[Any, dict[str, Any]]:
        """Return new `(updates, state)`."""
        tensors = self._real(tensors)
        results: list[Any] = [None] * len(tensors)
        step = tensors[self._step]
        latest = steps.by_rank[-1] if steps.by_rank else step
        calls: list[_Call] = []
        for bundle, rank in zip(self._bundles, self._ranks, strict=True):
            call = _Call(bundle, tensors, results, self._shared)
            count = steps.by_rank[rank] if steps.by_rank else step
            shared = [tensors[self._shared[place]] for place in bundle.shared]
            call.begin(
                call, [count + 1, latest, *values, *shared, *extras.values()], True
            )
            calls.append(call)
        try:
            with torch.no_grad():
                execute(calls)  # type: ignore[arg-type]
        except Exception as error:
            add_note(error)
            raise
        results[self._step] = step + 1
        for i in self._of_state:
            # A leaf without a gradient, or a stage that no leaf passes through.
            if results[i] is None:
                results[i] = tensors[i].clone()
        for i in self._complex:
            results[i] = None if results[i] is None else as_complex(results[i])
        leaves = iter(results)
        new_updates, state = (
            _tree_of(self._updates, leaves),
            _tree_of(self._state, leaves),
        )
        if self._has_steps:
            state[LEAF_STEPS] = steps.after(self._names, step, self._counted)
        return new_updates, state


def _run_of(
    tx: Transformation,
    updates: Any,
    state: Any,
    params: Any,
    extras: _Extras,
) -> tuple[TreeRun, dict[str, Leaf]]:
    """Return the run of a call, and the leaves that have a gradient.

    Raises:
        _UnsuitableError: If no program can process the leaves, or if a rule checks extras.
    """
    gradients, _ = _tree.flatten(updates, "updates")
    values: dict[str, Any] = {}
    if params is not None:
        values, _ = _tree.flatten(params, "params")
    kinds = check_extras(tx, params, {**extras.numbers, **extras.stand_ins()})
    if any(kinds[name].startswith("leaf") for name in extras.numbers):
        raise _UnsuitableError
    run = TreeRun(tx, values or gradients, None, state)
    run.check(gradients)
    has_extras = bool(extras.numbers or extras.unread)
    if run.opaque or (has_extras and checks_extras(run.block.operations)):
        raise _UnsuitableError
    present: dict[str, Leaf] = {}
    leaves = leaves_of(run, gradients, values or None, extras.numbers, kinds)
    for name, leaf in leaves.items():
        if leaf.inputs[0] is not None:
            present[name] = leaf
    run.lags = run.has_lag(leaves)
    has_missing = len(present) < len(gradients)
    if not present or (has_missing and takes_none(run.block.operations)):
        raise _UnsuitableError
    return run, present


def _entries(
    state: Any, stages: Any, path: Path = ()
) -> Iterator[tuple[Path, str, Any]]:
    """Yield the path, the name and the value of each entry of a state whose tensors are replaced by indices.

    The value is the index of a shared value, or a dict of the indices of a slot by leaf.
    """
    for key, value in state.items():
        if isinstance(value, dict) and (*path, key) in stages:
            yield from _entries(value, stages, (*path, key))
        elif isinstance(value, int | dict):
            yield path, key, value
        else:
            raise _UnsuitableError


def _group_by_program(
    leaves: dict[str, Leaf],
    columns: list[dict[str, int]],
    tensors: list[Tensor],
    rank: dict[str, int],
) -> Iterable[list[str]]:
    """Group the names of leaves that may share a program: those of one shape, or elementwise ones of any shape.

    Leaves in a group have the same count, and thus the same `rank`.
    """
    groups: dict[Any, list[str]] = {}
    for name, leaf in leaves.items():
        if not all(
            operation.has_list_program(leaf, True) for operation in leaf.program
        ):
            raise _UnsuitableError
        present = [name in column for column in columns]
        values = [tensors[column[name]] for column in columns if name in column]
        is_flat = _is_flat(leaf, values)
        traits: list[Any] = []
        for tensor in values:
            shape = tensor.ndim > 0 if is_flat else tensor.shape
            traits.append((tensor.dtype, tensor.device, shape))
        program = tuple(map(id, leaf.program))
        key = rank.get(name), program, tuple(present), tuple(traits)
        groups.setdefault(key, []).append(name)
    return groups.values()


def _is_flat(leaf: Leaf, values: list[Tensor]) -> bool:
    """Whether no operation of a leaf depends on the leaf's shape or name."""
    shape = values[0].shape
    if any(tensor.shape not in (shape, ()) for tensor in values):
        return False
    return all(
        operation.elementwise and not operation.positional for operation in leaf.program
    )


class _Leaves:
    """Leaves with the same program, and the indices of their tensors among those of the trees.

    Attributes:
        names: The names of the leaves.
        columns: The indices of their parameters if there are any, slots, and updates.
        written: The columns of updates and slots, in the order of the results.
        phases: The program.
        shared: The shared values that are arguments.
        device: The device of the leaves.
        chunks: The range of leaves for each call.
    """

    def __init__(
        self,
        rows: dict[str, list[int]],
        signature: Signature,
        phases: list[ListPhase],
        tensors: list[Tensor],
    ):
        self.names = list(rows)
        self.columns = list(map(list, zip(*rows.values(), strict=True)))
        slots = self.columns[1 if signature.has_param else 0 : -1]
        self.written = [self.columns[-1], *slots]
        self.phases = phases
        self.shared = list(signature.shared)
        self.device = tensors[self.columns[0][0]].device
        sizes = [max(tensors[i].numel() for i in row) for row in rows.values()]
        self.chunks = list(chunks(sizes, entries_of_a_call(self.device)))


def _bundles(
    rows: dict[str, list[int]],
    function: LeafFunction,
    on_host: bool,
    tensors: list[Tensor],
) -> list[_Leaves]:
    """Split leaves that may have the same program into bundles of those that do."""
    common_arguments = function.signature.shared_arguments()

    def record(arguments: list[Tensor]) -> list[ListPhase]:
        return phases_of(function, common_arguments, arguments, ListPhase)

    programs = ListPrograms(record, on_host, None, {})
    examples: dict[torch.Size, list[Tensor]] = {}
    for row in rows.values():
        examples.setdefault(tensors[row[-1]].shape, [tensors[i] for i in row])
    common = programs.common(examples)
    rows_of_program: dict[int, dict[str, list[int]]] = {}
    program_of_id: dict[int, list[ListPhase]] = {}
    for name, row in rows.items():
        program = common or programs.of(examples[tensors[row[-1]].shape])
        if isinstance(program, str) or has_late_sums(program):
            raise _UnsuitableError
        program_of_id[id(program)] = program
        rows_of_program.setdefault(id(program), {})[name] = row
    return [
        _Leaves(rows_of_program[i], function.signature, program, tensors)
        for i, program in program_of_id.items()
    ]


class _Call(ListBundle):
    """One call of a program with the caller's tensors."""

    def __init__(
        self,
        leaves: _Leaves,
        tensors: list[Tensor],
        results: list[Any],
        index_of_shared: Mapping[SlotOf, int],
    ):
        super().__init__(leaves.names[0], leaves.device)
        self.set_phases(leaves.phases)
        self._leaves = leaves
        self._tensors = tensors
        self._results = results
        self._index_of_shared = index_of_shared

    def combined(self, operation: Operation, waiting: list[tuple[Any, Any]]) -> Any:
        """Return the total for the bundles that wait at an operation."""
        return operation.combine(waiting)

    def columns(self) -> Iterator[list[list[Tensor]]]:
        for chunk in self._leaves.chunks:
            yield [
                [self._tensors[i] for i in column[chunk]]
                for column in self._leaves.columns
            ]

    def leaf_names(self) -> Iterator[list[str]]:
        for chunk in self._leaves.chunks:
            yield self._leaves.names[chunk]

    def end(self, phase: ListPhase, results: list[list[Any]]) -> None:
        written = self._leaves.written
        for chunk, of_chunk in zip(self._leaves.chunks, results, strict=True):
            for column, dtype, values in zip(
                written, phase.dtypes, of_chunk, strict=False
            ):
                numbers = column[chunk]
                if not differ_by_leaf(values):  # the same for all leaves
                    values = [self.as_tensor(values, dtype).clone() for _ in numbers]
                for i, value in zip(numbers, values, strict=True):
                    self._results[i] = value
        # Shared values are the same in every call.
        for position in range(len(written), len(phase.names)):
            number = self._index_of_shared[phase.names[position]]
            if self._results[number] is None:
                self._results[number] = self.as_tensor(
                    results[0][position], phase.dtypes[position]
                )
