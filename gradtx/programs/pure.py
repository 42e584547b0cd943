"""Pure updates of plain tensors with the list back end, by programs that each transformation caches.

A program is recorded from `_pure.update` itself, for a tree with one leaf, and runs out of place. Programs are cached
by the structure of the trees, the dtypes and the shapes; they hold no tensor of the caller.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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
from gradtx.execution.execute import Leaf, Operation, checks_extras, execute, takes_none
from gradtx.execution.phases import AwaitedSumError, Names, PassResult, passes_of
from gradtx.execution.pure import LEAF_STEPS, TreeRun, check_extras, leaves_of
from gradtx.execution.runs import Place, clock_at
from gradtx.programs import UnrecordableError
from gradtx.programs.bundle import (
    ListBundle,
    ListPass,
    differ_by_leaf,
    entries_of_a_call,
)
from gradtx.programs.cache import SharedPrograms
from gradtx.programs.probes import probes, representatives

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
        structure = _structure((updates, state, params), tensors)
    except _UnsuitableError:
        return None
    known: dict[str, Any] = {}
    unread: dict[str, Any] = {}  # unless recording finds that a rule reads them
    for name, value in extras.items():
        (known if _is_number(value) else unread)[name] = value
    numbers = Numbers.of(tx)
    key = structure, tuple(known), tuple(unread), numbers.structure
    programs_by_key = programs_of(tx)
    try:
        programs = programs_by_key.setdefault(key, [])
    except TypeError:  # an option that cannot be hashed
        return None
    if programs is None or _records_gradients(tensors, numbers.values):
        return None
    program = _fitting(programs, tensors)
    if program is not None:
        if unread:
            _pure.check_unread(tx, updates, params, extras)
    else:
        # Raises an error if the call is invalid.
        result = _pure.update(tx, updates, state, params, extras)
        try:
            with torch.no_grad():
                arguments = _Extras(known, tuple(unread))
                program = TreeProgram(
                    tx, numbers, updates, state, params, arguments, tensors
                )
        except _UnsuitableError:
            programs_by_key[key] = None
            return result
        programs.append(program)
        _forget_oldest(programs, programs_by_key)
    values = program.resolved(numbers.values, tensors)
    if _records_gradients((), values):  # a schedule depends on a learned tensor
        return None
    return program(tensors, known, values)


def _fitting(programs: Iterable[TreeProgram], tensors: list[Any]) -> TreeProgram | None:
    for program in programs:
        if program.fits(tensors):
            return program
    return None


def _forget_oldest(programs: list[Any], programs_by_key: dict[Any, Any]) -> None:
    """Limit the number of programs for one structure, and the number of structures."""
    del programs[:-MOST_SHAPES]
    if len(programs_by_key) > MOST_STRUCTURES:
        oldest = next(iter(programs_by_key))
        programs_by_key.pop(oldest, None)  # another thread may have dropped it


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
        skeleton = tx._skeleton()
        numbers = Numbers.of(tx)
        has_tensors = any(isinstance(number, Tensor) for number in numbers.values)
        is_private = (
            skeleton is None or has_tensors or not _is_shareable(numbers.structure)
        )
        tx._set(_program_cache={} if is_private else _SHARED.of(skeleton))
    return tx._program_cache  # type: ignore[return-value]


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return type(value) is tuple


def _is_shareable(structure: Any) -> bool:
    """Whether all hyperparameters have plain values, unlike a schedule, which may refer to any object."""
    if _is_tuple(structure):
        return all(map(_is_shareable, structure))
    return structure is None or type(structure) in (bool, int, float, str)


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


def _numbered(tree: Any, numbers: Iterator[int]) -> Any:
    """Return the tree with each tensor replaced by its index."""
    kind = tree.__class__
    if kind is dict:
        return {key: _numbered(value, numbers) for key, value in tree.items()}
    if kind is tuple or kind is list:
        values = [_numbered(value, numbers) for value in tree]
        return values if kind is list else tuple(values)
    return None if tree is None else next(numbers)


def _filled(template: Any, tensors: list[Any]) -> Any:
    """Return a tree of indices with each index replaced by its tensor."""
    kind = template.__class__
    if kind is int:
        return tensors[template]
    if kind is dict:
        return {key: _filled(value, tensors) for key, value in template.items()}
    if template is None:
        return None
    values = [_filled(value, tensors) for value in template]
    return values if kind is list else tuple(values)


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
        _UnsuitableError: If no program can process these leaves.
    """

    def __init__(
        self,
        tx: Transformation,
        numbers: Numbers,
        updates: Any,
        state: Any,
        params: Any,
        extras: _Extras,
        tensors: list[Tensor],
    ):
        numbers_of_tensors = iter(range(len(tensors)))
        self._updates, self._state, numbered_params = _numbered(
            (updates, state, params), numbers_of_tensors
        )
        self._count = len(tensors)
        self._have_same_layout: Callable[..., bool] = _torch.layout_check(tensors)
        self._layouts = list(map(_layout, tensors))
        if LEAF_STEPS in state:
            raise _UnsuitableError
        self._complex = [i for i, tensor in enumerate(tensors) if tensor.is_complex()]
        tensors = self._real(tensors)
        run, leaves = _run_of(tx, updates, state, params, extras)
        self._entries = list(_entries(self._state, run.stages))
        self._counts = self._counts_for(numbers, run)
        self._kept = self._numbers_of_state()
        common_numbers = _stand_ins(numbers, self._shared(tensors), extras.numbers)
        columns = _Columns(self._updates, numbered_params)
        has_param = params is not None
        self._bundles: list[_Leaves] = []
        for names in _group_by_program(leaves, self._entries, tensors):
            slots = [entry for entry in self._entries if names[0] in entry.leaves]
            leaves_of_program = _Leaves(names, columns.of(names, slots), has_param)
            function = _OneLeaf(
                tx, numbers, names[0], has_param, self._entries, slots, extras
            )
            self._bundles.extend(
                _bundles(leaves_of_program, function, common_numbers, tensors)
            )
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
        counts: list[int] = []
        for value, place in zip(numbers.values, numbers.places, strict=True):
            path = clock_at(place, run.clock_paths)
            if isinstance(value, Schedule) and path is not None and restarts:
                raise _UnsuitableError
            counts.append(indices[path or ()])
        return counts

    def resolved(self, values: list[Any], tensors: list[Tensor]) -> list[Any]:
        """Return the numbers of a call: schedules are called at every update, because they may change."""
        return [
            resolve(value, tensors[count]) if isinstance(value, Schedule) else value
            for value, count in zip(values, self._counts, strict=True)
        ]

    def _check_clocks(self, run: TreeRun) -> None:
        """Check that some program advances each inner clock: without leaves, a clock counts the call nevertheless."""
        advanced: set[Any] = set()
        for bundle in self._bundles:
            # The shared values follow the results of leaves.
            advanced.update(bundle.passes[-1].names[len(bundle.written) :])
        clocks = run.block.clock_paths()
        for entry in self._entries:
            is_value = entry.path in clocks and entry.shared is not None
            if is_value and entry.shared not in advanced:
                raise _UnsuitableError

    def _numbers_of_state(self) -> list[int]:
        """Return the indices of the state's tensors."""
        numbers: list[int] = []
        for entry in self._entries:
            if entry.shared is None:
                numbers.extend(entry.leaves.values())
            else:
                numbers.append(entry.shared)
        return numbers

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether tensors have the dtypes, devices, shapes and strides that the program was created for."""
        if self._have_same_layout(*tensors):
            return True
        # The quick check rejects a tensor that occurs twice.
        return list(map(_layout, tensors)) == self._layouts

    def _real(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors as rules see them, with real views of complex ones."""
        return list(map(as_real, tensors)) if self._complex else tensors

    def _shared(self, tensors: list[Tensor]) -> list[Tensor]:
        return [
            tensors[entry.shared] for entry in self._entries if entry.shared is not None
        ]

    def __call__(
        self, tensors: list[Tensor], extras: dict[str, Any], values: list[Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return new `(updates, state)`."""
        tensors = self._real(tensors)
        results: list[Any] = [None] * self._count
        numbers = [*values, *self._shared(tensors), *extras.values()]
        calls = [_Call(bundle, tensors, results) for bundle in self._bundles]
        for call in calls:
            call.begin(call, numbers, True)
        try:
            with torch.no_grad():
                execute(calls, _ignore)  # type: ignore[arg-type]
        except Exception as error:
            add_note(error)
            raise
        for i in self._kept:
            # A leaf without a gradient, or a stage that no leaf passes through.
            if results[i] is None:
                results[i] = tensors[i].clone()
        for i in self._complex:
            results[i] = None if results[i] is None else as_complex(results[i])
        return _filled(self._updates, results), _filled(self._state, results)


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
    leaves = leaves_of(run, gradients, values or None, extras.numbers, kinds)
    present = _with_gradient(leaves)
    has_missing = len(present) < len(gradients)
    if not present or (has_missing and takes_none(run.block.operations)):
        raise _UnsuitableError
    return run, present


def _with_gradient(leaves: dict[str, Leaf]) -> dict[str, Leaf]:
    return {name: leaf for name, leaf in leaves.items() if leaf.inputs[0] is not None}


class _Columns:
    """Looks up the indices of the tensors of leaves, in trees of indices."""

    def __init__(self, updates: Any, params: Any):
        self._updates = _tree.named(updates)
        self._params = None if params is None else _tree.named(params)

    def of(self, names: list[str], slots: list[Entry]) -> list[list[int]]:
        """Return the columns of these leaves: updates, parameters if there are any, and slots."""
        columns = [[self._updates[name] for name in names]]
        if self._params is not None:
            columns.append([self._params[name] for name in names])
        for entry in slots:
            columns.append([entry.leaves[name] for name in names])
        return columns


def _ignore(leaf: Any) -> None:
    """Do nothing: the results are already stored."""


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
    leaves: dict[str, Leaf], entries: list[Entry], tensors: list[Tensor]
) -> Iterable[list[str]]:
    """Group the names of leaves that may share a program: those of one shape, or elementwise ones of any shape."""
    groups: dict[Any, list[str]] = {}
    for name, leaf in leaves.items():
        if not all(
            operation.has_list_program(leaf, True) for operation in leaf.program
        ):
            raise _UnsuitableError
        values = [tensor for tensor in leaf.inputs if tensor is not None]
        values.extend(
            tensors[entry.leaves[name]] for entry in entries if name in entry.leaves
        )
        program = tuple(map(id, leaf.program))
        slots = tuple(name in entry.leaves for entry in entries)
        groups.setdefault((program, slots, _traits(leaf, values)), []).append(name)
    return groups.values()


def _traits(leaf: Leaf, values: list[Tensor]) -> tuple[Any, ...]:
    """Return the properties of a leaf's tensors in which all leaves with one program must agree."""
    is_flat = _is_flat(leaf, values)
    traits: list[Any] = []
    for tensor in values:
        shape = tensor.ndim > 0 if is_flat else tensor.shape
        traits.append((tensor.dtype, tensor.device, shape))
    return tuple(traits)


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


class _OneLeaf:
    """The update of a tree with one leaf, as a function of flat arguments.

    The arguments are hyperparameters, shared values, extras and totals of earlier passes, then the leaf's tensors.
    """

    def __init__(
        self,
        tx: Transformation,
        numbers: Numbers,
        name: str,
        has_param: bool,
        entries: list[Entry],
        slots: list[Entry],
        extras: _Extras,
    ):
        self._tx = tx
        self.numbers = numbers
        self._name = name
        self.has_param = has_param
        self._entries = entries
        self._slots = slots
        self._extras = extras

    def __call__(self, arguments: list[Tensor], known: Names) -> PassResult:
        remaining = iter(arguments)
        tx = self.numbers.chain_of(self._tx, remaining)
        state: dict[str, Any] = {}
        for entry in self._entries:
            _place(state, entry, next(remaining) if entry.shared is not None else {})
        extras = {name: next(remaining) for name in self._extras.numbers}
        totals = [{name: next(remaining) for name in names} for names in known]
        update = {self._name: next(remaining)}
        params = {self._name: next(remaining)} if self.has_param else None
        for entry in self._slots:
            _place(state, entry, {self._name: next(remaining)})
        run = _RecordedRun(tx, params or update, _same, state)
        run.totals = totals
        kinds = self._extras.check(tx, params)
        leaves = leaves_of(run, update, params, extras, kinds)
        for leaf in leaves.values():
            leaf.extras.update(self._extras.stand_ins())
        try:
            execute(leaves.values(), _ignore)
        except AwaitedSumError as awaited:
            return PassResult(
                list(awaited.sums.values()), tuple(awaited.sums), awaited.operation
            )
        if run.late_sums:
            raise UnrecordableError("a shared value is a sum over leaves")
        run.end()
        return self._result(run, leaves[self._name].result(), run.rebuilt(leaves))

    def _result(self, run: TreeRun, update: Any, state: Any) -> PassResult:
        """Return the new update, the new slots, then the shared values that this leaf's links have updated."""
        outputs = [update]
        outputs.extend(_at(state, entry)[self._name] for entry in self._slots)
        names: list[Any] = list(range(len(outputs)))
        for entry in self._entries:
            if entry.shared is None:
                continue
            is_clock = entry.path == ()
            if is_clock or entry.name in run.new_shared.get(entry.path, {}):
                outputs.append(_at(state, entry))
                names.append(entry.shared)
        return PassResult(outputs, tuple(names), None)


def _same(values: Any) -> Any:
    return values


def _place(state: dict[str, Any], entry: Entry, value: Any) -> None:
    for key in entry.path:
        state = state.setdefault(key, {})
    state[entry.name] = value


def _at(state: Any, entry: Entry) -> Any:
    for key in entry.path:
        state = state[key]
    return state[entry.name]


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
        passes: The program.
        device: The device of the leaves.
        chunks: The range of leaves for each call.
    """

    passes: list[ListPass]
    device: torch.device
    chunks: list[slice]

    def __init__(self, names: list[str], columns: list[list[int]], has_param: bool):
        self.names = names
        self.columns = columns
        self._has_param = has_param
        first_slot = 2 if has_param else 1
        self.written = [columns[0], *columns[first_slot:]]

    def select(self, positions: list[int]) -> _Leaves:
        """Return the leaves at these positions."""
        names = [self.names[i] for i in positions]
        columns: list[list[int]] = []
        for column in self.columns:
            columns.append([column[i] for i in positions])
        return _Leaves(names, columns, self._has_param)

    def tensors_at(self, position: int, tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors of one leaf."""
        return [tensors[column[position]] for column in self.columns]

    def set_passes(
        self, passes: list[ListPass], tensors: list[Tensor], on_host: bool
    ) -> None:
        self.passes = passes
        self.device = tensors[self.columns[0][0]].device
        with _planning():
            for each in passes:
                each.function(self.device, on_host)
        sizes: list[int] = []
        for position in range(len(self.names)):
            sizes.append(max(map(Tensor.numel, self.tensors_at(position, tensors))))
        self.chunks = list(_chunks(sizes, entries_of_a_call(self.device)))


@contextlib.contextmanager
def _planning() -> Generator[None, None, None]:
    """Raise `_UnsuitableError` for any error inside: a user's rule may raise any, and the eager run reports it."""
    try:
        yield
    except Exception as error:
        raise _UnsuitableError from error


def _bundles(
    leaves: _Leaves,
    function: _OneLeaf,
    common_numbers: list[Tensor],
    tensors: list[Tensor],
) -> list[_Leaves]:
    """Split leaves that may have the same program into bundles of those that do."""
    on_host = all(number.device.type == "cpu" for number in common_numbers)
    of_shape: dict[torch.Size, list[int]] = {}
    for position, number in enumerate(leaves.columns[0]):
        of_shape.setdefault(tensors[number].shape, []).append(position)

    @functools.cache
    def program(shape: torch.Size) -> list[ListPass]:
        of_leaf = leaves.tensors_at(of_shape[shape][0], tensors)
        with _planning():
            return passes_of(function, common_numbers, of_leaf, ListPass)

    if len(of_shape) == 1:
        leaves.set_passes(program(*of_shape), tensors, on_host)
        return [leaves]
    recorded: list[list[ListPass]] = []
    for shape in representatives(of_shape):
        recorded.append(program(shape))
        of_leaf = leaves.tensors_at(of_shape[shape][0], tensors)
        with _planning():
            for probe in probes(of_leaf):
                recorded.append(passes_of(function, common_numbers, probe, ListPass))
    if len({_text(passes) for passes in recorded}) == 1:
        leaves.set_passes(recorded[0], tensors, on_host)
        return [leaves]
    bundles: list[_Leaves] = []
    for shape, positions in of_shape.items():
        bundle = leaves.select(positions)
        bundle.set_passes(program(shape), tensors, on_host)
        bundles.append(bundle)
    return bundles


def _text(passes: list[ListPass]) -> tuple[str, ...]:
    return tuple(each.text for each in passes)


def _chunks(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Yield ranges of leaves with at most `limit` entries, but at least one leaf."""
    start = 0
    entries = 0
    for i, size in enumerate(sizes):
        if i > start and entries + size > limit:
            yield slice(start, i)
            start = i
            entries = 0
        entries += size
    yield slice(start, len(sizes))


class _Call(ListBundle):
    """One call of a program with the caller's tensors."""

    def __init__(self, leaves: _Leaves, tensors: list[Tensor], results: list[Any]):
        super().__init__(leaves.names[0], leaves.device, leaves.passes)
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

    def end(self, compiled: ListPass, results: list[list[Any]]) -> None:
        written = self._leaves.written
        for chunk, of_chunk in zip(self._leaves.chunks, results, strict=True):
            for column, dtype, values in zip(
                written, compiled.dtypes, of_chunk, strict=False
            ):
                numbers = column[chunk]
                if not differ_by_leaf(values):  # the same for all leaves
                    values = [self.as_tensor(values, dtype).clone() for _ in numbers]
                for i, value in zip(numbers, values, strict=True):
                    self._results[i] = value
        self._store_shared(compiled, results[0])

    def _store_shared(self, compiled: ListPass, values: list[Any]) -> None:
        """Store the shared values, which follow the results of leaves and are the same in every call."""
        for position in range(len(self._leaves.written), len(values)):
            number = compiled.names[position]
            if self._results[number] is None:
                self._results[number] = self.as_tensor(
                    values[position], compiled.dtypes[position]
                )
