"""Pure updates of plain tensors with the list back end, by programs that each transformation caches.

A program is recorded from `_pure.update` itself, for a tree with one leaf, and runs out of place. Programs are cached
by the structure of the trees, the dtypes and the shapes; they hold no tensor of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.complex_views import as_complex, as_real
from gradtx.base.eager import add_note, runs_eagerly
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
from gradtx.execution.phases import AwaitedSumError, Names, PhaseResult, phases_of
from gradtx.execution.pure import LEAF_STEPS, TreeRun, check_extras, leaves_of
from gradtx.execution.runs import Place, clock_at
from gradtx.programs import UnrecordableError
from gradtx.programs.bundle import (
    ListBundle,
    ListPhase,
    chunks,
    differ_by_leaf,
    entries_of_a_call,
)
from gradtx.programs.cache import SharedPrograms
from gradtx.programs.planner import ListPrograms
from gradtx.state.nested import enter

# Limits of a transformation's cache: structures of trees and extras, and for each of them, layouts of tensors.
MOST_STRUCTURES, MOST_SHAPES = 32, 8
NUMBER = "a number"  # the placeholder for a number in a structure
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
        (known if _is_number(value) else unread)[name] = value
    numbers = Numbers.of(tx)
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

    numbers: dict[str, Any]
    unread: tuple[str, ...]

    def check(self, tx: Transformation, params: Any) -> dict[str, str]:
        """Check that no extra is missing, and return the kinds of all extras."""
        return check_extras(tx, params, {**self.numbers, **self.stand_ins()})

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


@dataclass(frozen=True)
class Entry:
    """A slot or a shared value of the state: the path of its stage, its name there, and the indices of its tensors.

    For a slot, `leaves` has the index of each leaf's tensor. A shared value has its index in `shared`, and no leaves.
    """

    path: Path
    name: str
    leaves: dict[str, int]
    shared: int | None


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


class Numbers:
    """The numeric hyperparameters of a transformation, which are arguments of its programs.

    Attributes:
        structure: All values, with `NUMBER` in place of each number.
        values: The numbers: floats, tensors and schedules.
        places: The place in the chain of the node to which each number belongs.
    """

    def __init__(self, tx: Transformation):
        self.values: list[Any] = []
        self.places: list[Place] = []
        structure: list[Any] = []
        for entry in tx._entries():
            off = entry.argument.range.off
            value = entry.value
            # Rules receive these unchanged.
            if entry.argument.kind == "named floats":
                structure.append((entry.place, value))
            elif _is_tuple(value):
                taken = tuple(self._take(item, off, entry.place) for item in value)
                structure.append((entry.place, taken))
            else:
                structure.append((entry.place, self._take(value, off, entry.place)))
        self.structure = tuple(structure)

    @classmethod
    def of(cls, tx: Transformation) -> Numbers:
        if tx._numbers is None:
            tx._set(_numbers=cls(tx))
        return tx._numbers  # type: ignore[return-value]

    def _take(self, item: Any, off: Any, place: Any) -> Any:
        is_number = type(item) is float and not is_off(item, off)
        if not is_number and not isinstance(item, Tensor | Schedule):
            return item
        self.values.append(item)
        self.places.append(place[0])
        return NUMBER

    def chain_of(self, tx: Transformation, tensors: Iterator[Tensor]) -> Transformation:
        """Return the transformation with tensors in place of the numbers."""
        arguments: dict[Any, Any] = {}
        for place, value in self.structure:
            if _is_tuple(value):
                arguments[place] = tuple(
                    next(tensors) if item is NUMBER else item for item in value
                )
            else:
                arguments[place] = next(tensors) if value is NUMBER else value
        return tx._replaced(arguments, checked=False)


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
        self._entries = list(_entries(state, run.stages))
        self._counts = self._counts_for(numbers, run)
        common = _stand_ins(numbers, self._shared(tensors), extras.numbers)
        by_tree = [_tree.named(updates)]
        if params is not None:
            by_tree.append(_tree.named(params))
        self._bundles: list[_Leaves] = []
        self._ranks: list[int] = []
        for names in _group_by_program(leaves, self._entries, tensors, steps.rank):
            slots = [entry for entry in self._entries if names[0] in entry.leaves]
            by_name = [*by_tree, *(entry.leaves for entry in slots)]
            rows = {name: [column[name] for column in by_name] for name in names}
            function = _OneLeaf(
                tx, numbers, names[0], params is not None, self._entries, slots, extras
            )
            bundles = _bundles(rows, function, common, tensors)
            self._bundles.extend(bundles)
            self._ranks.extend([steps.rank.get(names[0], 0)] * len(bundles))
        self._check_clocks(run)

    def _counts_for(self, numbers: Numbers, run: TreeRun) -> list[int]:
        """Return the index of the count that a schedule in place of each number would follow.

        Raises:
            _UnsuitableError: If a schedule follows a clock that a combinator may restart within a call.
        """
        indices = {
            entry.path: entry.shared
            for entry in self._entries
            if entry.name == "step" and entry.shared is not None
        }
        restarts = any(each.restarts_inner for each in run.block.walk())
        self._step = cast("int", indices[()])
        counts: list[int] = []
        for value, place in zip(numbers.values, numbers.places, strict=True):
            path = clock_at(place, run.clock_paths)
            if isinstance(value, Schedule) and path is not None and restarts:
                raise _UnsuitableError
            counts.append(indices[path or ()])
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
            advanced.update(bundle.shared_results().values())
        clocks = run.block.clock_paths()
        for entry in self._entries:
            is_value = entry.path in clocks and entry.shared is not None
            if is_value and entry.shared not in advanced:
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

    def _shared(self, tensors: list[Tensor], count: Tensor | None = None) -> list[Any]:
        """Return the shared values, with `count` in place of the outermost one."""
        shared: list[Any] = []
        for entry in self._entries:
            if entry.shared is not None:
                is_count = count is not None and entry.shared == self._step
                shared.append(count if is_count else tensors[entry.shared])
        return shared

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
        calls: list[_Call] = []
        for bundle, rank in zip(self._bundles, self._ranks, strict=True):
            count = steps.by_rank[rank] if steps.by_rank else tensors[self._step]
            shared = self._shared(tensors, count)
            call = _Call(bundle, tensors, results)
            call.begin(call, [*values, *shared, *extras.values()], True)
            calls.append(call)
        try:
            with torch.no_grad():
                execute(calls)  # type: ignore[arg-type]
        except Exception as error:
            add_note(error)
            raise
        for i in self._of_state:
            # A leaf without a gradient, or a stage that no leaf passes through.
            if results[i] is None:
                results[i] = tensors[i].clone()
        for i in self._complex:
            results[i] = None if results[i] is None else as_complex(results[i])
        if self._has_steps:
            results[self._step] = tensors[self._step] + 1
        leaves = iter(results)
        new_updates, state = (
            _tree_of(self._updates, leaves),
            _tree_of(self._state, leaves),
        )
        if self._has_steps:
            step = tensors[self._step]
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
    kinds = extras.check(tx, params)
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


def _entries(state: Any, stages: Any, path: Path = ()) -> Iterator[Entry]:
    """Yield the entries of a state whose tensors are replaced by indices."""
    for key, value in state.items():
        if isinstance(value, int):
            yield Entry(path, key, {}, value)
        elif not isinstance(value, dict):
            raise _UnsuitableError
        elif (*path, key) in stages:
            yield from _entries(value, stages, (*path, key))
        else:
            yield Entry(path, key, cast("dict[str, int]", value), None)


def _group_by_program(
    leaves: dict[str, Leaf],
    entries: list[Entry],
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
        values = [tensor for tensor in leaf.inputs if tensor is not None]
        slots: list[bool] = []
        for entry in entries:
            slots.append(name in entry.leaves)
            if name in entry.leaves:
                values.append(tensors[entry.leaves[name]])
        is_flat = _is_flat(leaf, values)
        traits: list[Any] = []
        for tensor in values:
            shape = tensor.ndim > 0 if is_flat else tensor.shape
            traits.append((tensor.dtype, tensor.device, shape))
        program = tuple(map(id, leaf.program))
        key = rank.get(name), program, tuple(slots), tuple(traits)
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


def _stand_ins(
    numbers: Numbers, shared: list[Tensor], extras: dict[str, Any]
) -> list[Tensor]:
    """Return 0-d tensors with the dtypes of all numbers that leaves share."""
    stand_ins = [torch.empty((), dtype=torch.float64) for _ in numbers.values]
    stand_ins.extend(shared)
    for value in extras.values():
        dtype = torch.float64 if type(value) is float else None
        stand_ins.append(torch.as_tensor(value, dtype=dtype))
    return stand_ins


@dataclass(frozen=True)
class _OneLeaf:
    """The update of a tree with one leaf, as a function of flat arguments.

    The arguments are hyperparameters, shared values, extras and totals of earlier phases, then the leaf's tensors.

    Attributes:
        tx, numbers: The transformation and its numeric hyperparameters.
        name: The name of the leaf.
        has_param: Whether parameters are passed.
        entries, slots: The entries of the state, and those with a tensor of the leaf.
        extras: The extras of the call.
    """

    tx: Transformation
    numbers: Numbers
    name: str
    has_param: bool
    entries: list[Entry]
    slots: list[Entry]
    extras: _Extras

    def __call__(self, arguments: list[Tensor], known: Names) -> PhaseResult:
        remaining = iter(arguments)
        tx = self.numbers.chain_of(self.tx, remaining)
        state: dict[str, Any] = {}
        for entry in self.entries:
            value = next(remaining) if entry.shared is not None else {}
            enter(state, entry.path)[entry.name] = value
        extras = {name: next(remaining) for name in self.extras.numbers}
        totals = [{name: next(remaining) for name in names} for names in known]
        update = {self.name: next(remaining)}
        params = {self.name: next(remaining)} if self.has_param else None
        for entry in self.slots:
            enter(state, entry.path)[entry.name] = {self.name: next(remaining)}
        run = _RecordedRun(tx, params or update, dict, state)
        run.totals = totals
        kinds = self.extras.check(tx, params)
        leaves = leaves_of(run, update, params, extras, kinds)
        for leaf in leaves.values():
            leaf.extras.update(self.extras.stand_ins())
        try:
            execute(leaves.values())
        except AwaitedSumError as awaited:
            return awaited.result()
        if run.late_sums:
            raise UnrecordableError("a shared value is a sum over leaves")
        run.end()
        return self._result(run, leaves[self.name].result(), run.rebuilt(leaves))

    def _result(self, run: TreeRun, update: Any, state: Any) -> PhaseResult:
        """Return the new update, the new slots, then the shared values that this leaf's links have updated."""
        outputs = [update]
        for entry in self.slots:
            outputs.append(enter(state, entry.path)[entry.name][self.name])
        names: list[Any] = list(range(len(outputs)))
        for entry in self.entries:
            if entry.shared is None:
                continue
            is_clock = entry.path == ()
            if is_clock or entry.name in run.new_shared.get(entry.path, {}):
                outputs.append(enter(state, entry.path)[entry.name])
                names.append(entry.shared)
        return PhaseResult(outputs, tuple(names), None)


class _RecordedRun(TreeRun):
    """A run on stand-ins, up to the first sum whose total is not known yet."""

    has_one_leaf = True
    has_names = False
    totals: list[dict[str, Tensor]]

    def combined(self, operation: Operation, waiting: list[tuple[Leaf, Any]]) -> Any:
        if self.totals:
            return self.totals.pop(0)
        raise AwaitedSumError(operation, operation.combine(waiting))


class _Leaves:
    """Leaves with the same program, and the indices of their tensors among those of the trees.

    Attributes:
        names: The names of the leaves.
        columns: The indices of their updates, parameters if there are any, and slots.
        written: The columns of updates and slots.
        phases: The program.
        device: The device of the leaves.
        chunks: The range of leaves for each call.
    """

    def __init__(
        self,
        rows: dict[str, list[int]],
        has_param: bool,
        phases: list[ListPhase],
        tensors: list[Tensor],
    ):
        self.names = list(rows)
        self.columns = list(map(list, zip(*rows.values(), strict=True)))
        self.written = [self.columns[0], *self.columns[2 if has_param else 1 :]]
        self.phases = phases
        self.device = tensors[self.columns[0][0]].device
        sizes = [max(tensors[i].numel() for i in row) for row in rows.values()]
        self.chunks = list(chunks(sizes, entries_of_a_call(self.device)))

    def shared_results(self) -> dict[int, int]:
        """Return the index of each shared value, by its position in the results, which follow those of leaves."""
        names = self.phases[-1].names
        return {i: names[i] for i in range(len(self.written), len(names))}


def _bundles(
    rows: dict[str, list[int]],
    function: _OneLeaf,
    common_numbers: list[Tensor],
    tensors: list[Tensor],
) -> list[_Leaves]:
    """Split leaves that may have the same program into bundles of those that do."""

    def record(arguments: list[Tensor]) -> list[ListPhase]:
        return phases_of(function, common_numbers, arguments, ListPhase)

    on_host = all(number.device.type == "cpu" for number in common_numbers)
    programs = ListPrograms(record, on_host, None, {})
    examples: dict[torch.Size, list[Tensor]] = {}
    for row in rows.values():
        examples.setdefault(tensors[row[0]].shape, [tensors[i] for i in row])
    common = programs.common(examples)
    rows_of_program: dict[int, dict[str, list[int]]] = {}
    program_of_id: dict[int, list[ListPhase]] = {}
    for name, row in rows.items():
        program = common or programs.of(examples[tensors[row[0]].shape])
        if isinstance(program, str):
            raise _UnsuitableError
        program_of_id[id(program)] = program
        rows_of_program.setdefault(id(program), {})[name] = row
    has_param = function.has_param
    return [
        _Leaves(rows_of_program[i], has_param, program, tensors)
        for i, program in program_of_id.items()
    ]


class _Call(ListBundle):
    """One call of a program with the caller's tensors."""

    def __init__(self, leaves: _Leaves, tensors: list[Tensor], results: list[Any]):
        super().__init__(leaves.names[0], leaves.device)
        self.set_phases(leaves.phases)
        self._leaves = leaves
        self._tensors = tensors
        self._results = results

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
        for position, number in self._leaves.shared_results().items():
            if self._results[number] is None:
                self._results[number] = self.as_tensor(
                    results[0][position], phase.dtypes[position]
                )
