"""Bundles: leaves that one list program processes together."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard, TypeVar

import torch
from torch import Tensor

from gradtx.base.chunks import slices_within
from gradtx.base.errors import StateKey
from gradtx.base.exact import dtype_on
from gradtx.base.recent import SharedPrograms
from gradtx.compiler.scalars import PYTHON_NUMBERS
from gradtx.compiler.write_expressions import UnsuitableProgramError
from gradtx.compiler.write_lists import ListFunction, list_function
from gradtx.execution.execute import LeafTerms, Steps, Task
from gradtx.plans.phases import RecordedPhase

T = TypeVar("T")

# Entries in the lists of one call. On the CPU, temporaries then remain in the cache. Accelerators need long lists, to
# which they take longer than the host; the limit bounds temporary memory, of which codes need up to 40 bytes per entry.
CHUNK = 2**18
CHUNK_OF_ACCELERATOR = 2**24
CHUNK_OF_CODES = 2**22
# On the CPU, programs of these have so many times the temporaries: arguments in float32, and results before rounding.
OF_HALVES = 4
HALVES = frozenset((torch.bfloat16, torch.float16))

# By the text of a recording: optimizers with other settings often repeat programs.
_FUNCTIONS = SharedPrograms()


def entries_of_a_call(
    device: torch.device, has_codes: bool = False, dtype: torch.dtype | None = None
) -> int:
    """Return the maximum number of entries in the lists of one call, whose parameters may have a dtype of 16 bits."""
    if device.type == "cpu":
        is_half = dtype in HALVES and not has_codes
        return max(CHUNK // OF_HALVES, 1) if is_half else CHUNK
    return CHUNK_OF_CODES if has_codes else CHUNK_OF_ACCELERATOR


def list_function_of(
    phase: RecordedPhase,
    device: torch.device,
    on_device: frozenset[int],
    varying: frozenset[int] = frozenset(),
) -> ListFunction | None:
    """Return the function of a phase for lists on a device; some scalars are 0-d tensors, and some vary by row.

    It is None if operations cannot take scalars that vary.
    """
    functions = _FUNCTIONS.of(phase.text)
    key = device, on_device, varying
    if key not in functions:
        try:
            functions[key] = list_function(
                phase.recording, device, on_device, phase.segment, varying
            )
        except UnsuitableProgramError:
            functions[key] = None
    return functions[key]


# Returns the function of a phase on a device, where scalars with these indices are 0-d tensors; with other indices
# beside, those of the scalars that vary by row, for which there may be none.
FunctionOf: TypeAlias = Callable[..., Any]
# Returns what is the same for phases of one text that one function can run.
VariantOf: TypeAlias = Callable[[RecordedPhase, torch.device, frozenset[int]], Any]


def list_variant_of(
    phase: RecordedPhase, device: torch.device, on_device: frozenset[int]
) -> Any:
    """Return the variant of a list function, which may depend on the shapes of leaves."""
    function = list_function_of(phase, device, on_device)
    assert function is not None  # no scalar varies
    return function.variant


def scalars_for(
    values: Sequence[Any],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    on_host: bool,
) -> tuple[list[Any], frozenset[int]]:
    """Return Python scalars, and 0-d tensors on the device for those that the host does not know, with their indices.

    Args:
        values: The scalars.
        dtypes: Their dtypes.
        device: The device.
        on_host: Whether the host may read tensors that are on the host.
    """
    if PYTHON_NUMBERS.issuperset(map(type, values)):  # a shortcut
        return list(values), frozenset()
    scalars: list[Any] = []
    on_device: set[int] = set()
    for i, (value, dtype) in enumerate(zip(values, dtypes, strict=True)):
        if not isinstance(value, Tensor):
            scalars.append(value)
        elif on_host and value.device.type == "cpu":
            scalars.append(value.item())
        else:
            on_device.add(i)
            scalars.append(_as_0d(value, dtype, device))
    return scalars, frozenset(on_device)


class NamedLeaf(NamedTuple):
    """The attributes of a leaf that sums over leaves use."""

    name: str
    device: torch.device


# In place of the index of a set: the row has no gradient.
ABSENT = -1
# The indices of varying scalars if there are none.
SHARED_BY_ROWS: frozenset[int] = frozenset()


def sets_of_rows(
    keys: Sequence[Any], are_present: Iterable[Any]
) -> tuple[list[int], list[int]]:
    """Return the first row of each set of scalars, and the set of each row, or `ABSENT`.

    Args:
        keys: What the scalars of each row depend on; rows with equal keys have one set.
        are_present: Whether each row has a gradient.
    """
    set_of_row = [ABSENT] * len(keys)
    sets: dict[Any, int] = {}
    first_rows: list[int] = []
    for row in itertools.compress(range(len(keys)), are_present):
        index = sets.setdefault(keys[row], len(sets))
        if index == len(first_rows):
            first_rows.append(row)
        set_of_row[row] = index
    return first_rows, set_of_row


class Selection(NamedTuple):
    """The leaves, or parts of leaves, that one call of a list program processes.

    Attributes:
        at: Their indices among those of a bundle; None for all.
    """

    at: range | list[int] | None = None

    def some(self, items: list[T]) -> list[T]:
        """Return the items of these leaves, given those of all; this may be the same list."""
        if self.at is None:
            return items
        if isinstance(self.at, range):
            return items[self.at.start : self.at.stop]
        return list(map(items.__getitem__, self.at))


class ListBundle(Task):
    """Leaves that one list program processes together, its rows. The operations are the phases of the program.

    In a call, some rows may be absent, and rows may have other scalars than others. Subclasses provide the tensors.

    Args:
        name: The name of a leaf, which determines the bundle's position in sums.
        device: The device of the leaves.
        names: The name of each row.
        rows: The row of each item of columns: leaves, or parts of leaves.
        sizes: The entries of each item.
        limit: The most entries of a call, unless an item has more.

    Attributes:
        has_sharded_terms: Whether terms of sums over leaves are parts of sharded ones.
        function_of: Returns the function of a phase: a `ListFunction`, or what has its attributes.
        varying: The indices of the scalars that rows may have of their own.
        consumes: Whether each call frees gradients after use.
    """

    writes = True
    has_sharded_terms = False
    function_of: FunctionOf
    varying = SHARED_BY_ROWS
    consumes = False
    _frees = False

    def __init__(
        self,
        name: str,
        device: torch.device,
        names: list[str],
        rows: list[int],
        sizes: list[int],
        limit: int,
    ):
        self.name = name
        self.device = device
        self.operations = []
        self.run = None
        self.function_of = list_function_of
        self.names = names
        self.rows = rows
        self._sizes = sizes
        self._limit = limit
        # The calls if all rows have the only set of scalars.
        self._whole = self._calls_of(range(len(rows)))
        self._functions: dict[Any, Any] = {}
        # The scalars of each set, and the set of each row, or `ABSENT`; None if all rows have the only set.
        self._sets: list[list[Any]] = []
        self._set_of_row: list[int] | None = None
        # What each call of the present phase has processed.
        self._calls: list[Selection] = []
        # What earlier phases have received for each leaf, by leaf name.
        self._results: list[dict[str, Any]] = []
        self._on_host = True

    def _calls_of(self, items: range | list[int]) -> list[Selection]:
        """Return the calls of some items, of bounded size."""
        sizes = list(map(self._sizes.__getitem__, items))
        parts = [items[part] for part in slices_within(sizes, self._limit)]
        if parts == [range(len(self.rows))]:
            return [Selection()]
        return list(map(Selection, parts))

    def begin(
        self,
        run: Any,
        sets: list[list[Any]],
        on_host: bool,
        set_of_row: list[int] | None = None,
    ) -> None:
        """Receive the run and the scalars of the current call.

        Args:
            run: The run.
            sets: The scalars: one list for all rows, or several.
            on_host: Whether the host may read the scalars.
            set_of_row: The index of the set of each row, or `ABSENT`; None if all rows have the only set.
        """
        self.run = run
        self._sets = sets
        self._set_of_row = set_of_row
        self._results = []  # a step that failed may have left some
        self._on_host = on_host

    def needs_run(self) -> bool:
        """Whether the bundle reads or hands over values by its run."""
        first, *others = self.operations
        return bool(others or first.names)

    def start(self, operation: Any) -> Steps | None:
        terms = self.process(operation)
        return None if terms is None else self._wait(operation, terms)

    def _wait(self, phase: Any, terms: Any) -> Steps:
        total = yield terms
        self.receive(phase, total)

    def share(self, name: StateKey, value: Tensor) -> None:
        """Hand over a new shared value, which is the same for all bundles."""
        path, key = name
        self.run.new_shared.setdefault(path, {}).setdefault(key, value)

    def receive(self, phase: Any, total: dict[str, Tensor]) -> None:
        """Add the totals of a sum to the arguments."""
        if phase.ends_at_owner or phase.ends_at_leaf_sum:
            self.receive_by_leaf(phase, total)
            return
        totals = list(map(total.__getitem__, phase.names))
        for scalars in self._sets:
            scalars += totals

    def receive_by_leaf(self, phase: Any, total: dict[str, Any]) -> None:
        """Add what has been computed for each leaf to the arguments."""
        raise NotImplementedError

    def columns(self, call: Selection) -> list[list[Tensor]]:
        """Return the lists of a call of the program."""
        raise NotImplementedError

    def free(self, call: Selection) -> None:
        """Free the gradients of a call."""
        raise NotImplementedError

    def end(self, phase: RecordedPhase, results: list[list[Any]]) -> None:
        """Receive the results of the last phase, one list for each call."""
        raise NotImplementedError

    def process(self, phase: RecordedPhase) -> Any:
        scalars, on_device = scalars_for(
            self._sets[0], phase.common, self.device, self._on_host
        )
        sets = [scalars]
        if len(self._sets) > 1:
            sets, on_device = self.sets_for(phase)
        key = phase, on_device, SHARED_BY_ROWS
        function = self._functions.get(key)
        if function is None:
            function = self._function(*key)
        results: list[list[Any]] = []
        self._frees = self.consumes and self.at == len(self.operations) - 1
        if self._set_of_row is None:
            self._calls = self._whole
            prepared = function.prepare(scalars)
            for call in self._whole:
                results.append(function.run(prepared, self.columns(call)))
                if self._frees:
                    self.free(call)
        else:
            of_rows = self._function(phase, on_device, self.varying)
            self._process_rows(function, of_rows, sets, results)
        if phase.operation is None:
            return self.end(phase, results)
        return self.terms(phase, results)

    def sets_for(self, phase: RecordedPhase) -> tuple[list[Any], frozenset[int]]:
        """Return the scalars of each set as `scalars_for` does, with the indices of those that are tensors in any set.

        These then are in all: one group may have a number where another has a tensor.
        """
        sets: list[Any] = []
        are_tensors: list[frozenset[int]] = []
        for own in self._sets:
            scalars, on_device = scalars_for(
                own, phase.common, self.device, self._on_host
            )
            sets.append(scalars)
            are_tensors.append(on_device)
        of_any = frozenset[int]().union(*are_tensors)
        if of_any:
            for scalars, on_device in zip(sets, are_tensors, strict=True):
                for i in of_any - on_device:
                    scalars[i] = _as_0d(scalars[i], phase.common[i], self.device)
        return sets, of_any

    def _process_rows(
        self,
        function: Any,
        of_rows: Any,
        sets: list[list[Any]],
        results: list[list[Any]],
    ) -> None:
        """Call a program for the rows that are present.

        Rows with several sets of scalars are one call if operations take a scalar for each row, and these say alike
        which work to skip; if not, there are several calls.

        Args:
            function: The function of rows with one set.
            of_rows: That of rows with several sets; None if there is none.
            sets: The scalars of each set.
            results: Receives those of each call.
        """
        cases: list[Any] = list(range(len(sets)))
        if of_rows is not None:
            cases = list(map(of_rows.spread.case_of, sets))
        self._calls = []
        for call, own in self._calls_by_row(cases):
            # Other calls may have sets that skip other work.
            index_of_set = {index: i for i, index in enumerate(dict.fromkeys(own))}
            of_call = list(map(sets.__getitem__, index_of_set))
            if of_rows is None or len(of_call) == 1:
                prepared = function.prepare(*of_call)
                result = function.run(prepared, self.columns(call))
            else:
                prepared = of_rows.spread(
                    of_call, list(map(index_of_set.__getitem__, own))
                )
                result = of_rows.run(prepared, self.columns(call))
            self._calls.append(call)
            results.append(result)
            if self._frees:
                self.free(call)

    def _calls_by_row(self, cases: list[Any]) -> Iterator[tuple[Selection, list[int]]]:
        """Yield each call, whose items have the same case, and the set of each item, given the case of each set."""
        assert self._set_of_row is not None
        sets = list(map(self._set_of_row.__getitem__, self.rows))
        of_case: dict[Any, list[int]] = {}
        for item, index in enumerate(sets):
            if index != ABSENT:
                of_case.setdefault(cases[index], []).append(item)
        for items in of_case.values():
            for call in self._calls_of(items):
                yield call, call.some(sets)

    def _function(
        self,
        phase: RecordedPhase,
        on_device: frozenset[int],
        varying: frozenset[int],
    ) -> Any:
        """Return the function of a phase; None if it cannot take a scalar for each row."""
        if varying and len(self._sets) == 1:
            return None
        key = phase, on_device, varying
        if key not in self._functions:
            more = (varying,) if varying else ()
            self._functions[key] = self.function_of(
                phase, self.device, on_device, *more
            )
        return self._functions[key]

    def hand_over(
        self, phase: RecordedPhase, results: list[list[Any]], start: int = 0
    ) -> None:
        """Hand over the results that are not columns: the new shared values, and the terms of late sums."""
        outputs = zip(phase.names, phase.dtypes, results[0], strict=True)
        has_terms = False
        for name, dtype, value in itertools.islice(outputs, start, None):
            if phase.is_term(name):
                has_terms = True
            else:
                self.share(name, self.as_tensor(value, dtype))
        for leaf, terms in self.terms(phase, results) if has_terms else ():
            for key, term in terms.items():
                self.run.add_late(key, leaf.name, term)

    def terms(self, phase: RecordedPhase, results: list[list[Any]]) -> LeafTerms:
        """Return the terms of each leaf in sums over leaves."""
        if phase.ends_at_owner or phase.ends_at_leaf_sum:
            return self.terms_by_leaf(phase, results)
        if len(results) > 1 or self.has_sharded_terms:
            return self.terms_of_calls(phase, results)
        # A shortcut: the only call contains all leaves, each once.
        columns: dict[Any, Sequence[Any]] = {}
        [call], [outputs] = self._calls, results
        named = self._named_leaves
        if call.at is not None:
            named = call.some(named)
        for key, dtype, values in zip(phase.names, phase.dtypes, outputs, strict=True):
            if phase.operation is None and not phase.is_term(key):
                continue
            is_by_leaf = isinstance(values, list | tuple)
            columns[key] = (
                values if is_by_leaf else [self.as_tensor(values, dtype)] * len(named)
            )
        rows = zip(*columns.values(), strict=True)
        payloads = [dict(zip(columns, terms, strict=True)) for terms in rows]
        return LeafTerms(zip(named, payloads, strict=True))

    def names_in(self, call: Selection) -> list[str]:
        """Return the name of the leaf of each item of a call."""
        return list(map(self.names.__getitem__, call.some(self.rows)))

    def terms_by_leaf(
        self, phase: RecordedPhase, results: list[list[Any]]
    ) -> LeafTerms:
        """Return what is computed next for each leaf alone."""
        raise NotImplementedError

    def terms_of_calls(
        self, phase: RecordedPhase, results: list[list[Any]]
    ) -> LeafTerms:
        """Return the terms of each leaf; those of the parts of a leaf are added."""
        terms_of_leaf: dict[str, dict[Any, Tensor]] = {}
        for call, results_of_call in zip(self._calls, results, strict=True):
            leaves = self.names_in(call)
            outputs = zip(phase.names, phase.dtypes, results_of_call, strict=True)
            for key, dtype, values in outputs:
                if not phase.is_term(key):
                    continue
                terms_of_call = self._by_leaf(values, dtype, leaves)
                for leaf, term in zip(leaves, terms_of_call, strict=True):
                    terms = terms_of_leaf.setdefault(leaf, {})
                    if key not in terms:
                        terms[key] = term
                    elif differ_by_leaf(values):
                        terms[key] = terms[key] + term
        return LeafTerms(
            (NamedLeaf(leaf, self.device), terms)
            for leaf, terms in terms_of_leaf.items()
        )

    @functools.cached_property
    def _named_leaves(self) -> list[NamedLeaf]:
        """The leaf of each item."""
        return [NamedLeaf(self.names[row], self.device) for row in self.rows]

    def _by_leaf(
        self, values: Any, dtype: torch.dtype, leaves: list[str]
    ) -> Sequence[Any]:
        """Return a result of a call for each of its leaves."""
        if differ_by_leaf(values):
            return values
        return [self.as_tensor(values, dtype)] * len(leaves)

    def as_tensor(self, value: Any, dtype: torch.dtype) -> Tensor:
        """Return a result that all leaves share, as a 0-d tensor."""
        if differ_by_leaf(value):
            value = value[0]
        return _as_0d(value, dtype, self.device)


def differ_by_leaf(values: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether a result is a list with one value per leaf; others, such as a count of entries, are shared by all."""
    return isinstance(values, list | tuple)


def is_on_accelerator(value: Any) -> bool:
    """Whether the host would have to synchronize to read a scalar."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _as_0d(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a scalar as a 0-d tensor: a copy from the host would wait for the device, `full` and addition do not."""
    dtype = dtype_on(device, dtype)
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)
    if value.device.type == device.type:
        return value.to(device, dtype)
    return torch.zeros((), dtype=dtype, device=device) + value.to(dtype)
