"""Bundles of leaves that one list program processes, and the phases of such a program."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.errors import StateKey
from gradtx.base.exact import python_scalar
from gradtx.execution.execute import LeafTerms, Operation, Steps, Task
from gradtx.execution.phases import (
    LeafSum,
    Names,
    PhaseFunction,
    PhaseResult,
    RunPhase,
)
from gradtx.execution.runs import LateTerm
from gradtx.programs.cache import SharedPrograms
from gradtx.programs.record import META, Recording, record
from gradtx.programs.terms import parts_add_up, runs_on_shards
from gradtx.programs.write_lists import ListFunction, list_function

# Entries in the lists of one call. On the CPU, temporaries then remain in the cache. Accelerators need long lists, to
# which they take longer than the host; the limit bounds temporary memory, of which codes need up to 40 bytes per entry.
CHUNK = 2**18
CHUNK_OF_ACCELERATOR = 2**24
CHUNK_OF_CODES = 2**22
PYTHON_NUMBERS = frozenset((float, int, bool))

# By the text of a recording: optimizers with other settings often repeat programs.
_FUNCTIONS = SharedPrograms()


def entries_of_a_call(device: torch.device, has_codes: bool = False) -> int:
    """Return the maximum number of entries in the lists of one call."""
    if device.type == "cpu":
        return CHUNK
    return CHUNK_OF_CODES if has_codes else CHUNK_OF_ACCELERATOR


class Phase(Operation):
    """One pass of a program, as an operation of the bundles that run the program.

    If it ends where owners compute (`of_leaf`), its outputs go to the owner of each leaf.

    Attributes:
        examples: Examples of the sums that it returns; empty for the last phase.
        names: The names of its outputs.
        operation: The operation that waits for the outputs; None for the last phase.
    """

    examples: list[Tensor]
    names: tuple[Any, ...]
    operation: Operation | None

    def note(self, result: PhaseResult) -> None:
        """Note what the phase returns."""
        self.names = result.names
        self.operation = result.operation
        self.examples = []
        if result.operation is not None:
            self.examples = result.outputs
            self.path, self.role = result.operation.barrier
            self.traits = result.operation.traits

    def start(self, bundle: Any) -> Steps | None:  # type: ignore[override]
        terms = bundle.process(self)
        return None if terms is None else self._wait(bundle, terms)

    def _wait(self, bundle: Any, terms: Any) -> Steps:
        total = yield terms
        bundle.receive(self, total)

    def combine(self, waiting: list[tuple[Any, Any]]) -> Any:
        assert self.operation is not None
        return self.operation.combine(waiting)

    def is_term(self, name: Any) -> bool:
        """Whether an output is a term of a sum over leaves, for this step or for the next one."""
        return self.operation is not None or isinstance(name, LateTerm)

    def terms(self, outputs: Iterable[Any]) -> list[Any]:
        """Return the outputs that are terms of sums over leaves."""
        pairs = zip(self.names, outputs, strict=True)
        return [output for name, output in pairs if self.is_term(name)]


PhaseT = TypeVar("PhaseT", bound=Phase)


def phases_of(
    function: PhaseFunction,
    common: list[Tensor],
    leaves: list[Tensor],
    make_phase: Callable[[RunPhase, list[Tensor], list[Tensor]], PhaseT],
) -> list[PhaseT]:
    """Return the phases of a function: each but the last ends at sums, whose totals the later ones also receive."""
    phases = []
    known: Names = ()
    common, leaves = list(common), list(leaves)
    while True:
        run = functools.partial(function, known=known)
        next_phase = make_phase(run, list(common), list(leaves))
        phases.append(next_phase)
        if next_phase.operation is None:
            return phases
        known = (*known, next_phase.names)
        for name, total in zip(next_phase.names, next_phase.examples, strict=True):
            arguments = leaves if isinstance(name, LeafSum) else common
            arguments.append(torch.zeros((), dtype=total.dtype, device=total.device))


class ListPhase(Phase):
    """One pass of a program over lists, which ends at a sum over leaves or at the end of the program.

    A program for shards also ends where the owner of a leaf computes. Its parts are cut out of one recording after its
    operations were fused, so that shards go through the same arithmetic as whole leaves.

    Args:
        recording: The operations, as they were recorded.
        result: What the recorded function returned.
        common: The dtype of each scalar that all leaves share.
        part: Of a program for shards, the part between two owners; otherwise None.

    Attributes:
        common, recording: As above.
        dtypes: The dtype of each result.
        text: A text that identifies the program, so that leaves with equal programs can share one.
        ends_at_owner: Whether it ends where owners compute.
        ends_at_leaf_sum: Whether it ends at sums over single leaves.
    """

    def __init__(
        self,
        recording: Recording,
        result: PhaseResult,
        common: list[torch.dtype],
        part: int | None = None,
    ):
        self.recording = recording
        self._result = result
        self.common = common
        self.dtypes = [output.dtype for output in result.outputs]
        self.text = recording.text()
        self._part = part
        self._functions: dict[Any, ListFunction] = {}
        self.ends_at_owner = False
        self.ends_at_leaf_sum = any(isinstance(name, LeafSum) for name in result.names)
        self.note(result)
        if part is not None:
            self._end_at_owner(part)

    def _end_at_owner(self, part: int) -> None:
        """Reduce the phase to one part of a program for shards."""
        owned = self.recording.owned
        self.text = f"{self.text}\npart {part} of {len(owned) + 1}"
        self.ends_at_owner = part < len(owned)
        if self.ends_at_owner:
            meta = owned[part].meta
            payload: dict[str, torch.dtype] = meta["payload"]
            self.note(PhaseResult([], tuple(payload), meta["operation"]))
            self.dtypes = list(payload.values())

    def parts_at_owners(self) -> list[ListPhase]:
        """Return the parts of a last phase, between operations that owners compute."""
        parts = []
        for part in range(len(self.recording.owned) + 1):
            parts.append(ListPhase(self.recording, self._result, self.common, part))
        return parts

    def parts_add_up(self) -> bool:
        """Whether the terms of a leaf's parts, apart from constants, add up to its terms."""
        graph, leaves = self.recording.graph, self.recording.leaves
        terms = self.terms(self.recording.outputs)
        return parts_add_up(graph, leaves, terms, with_constants=True)

    def runs_on_shards(self, whole_rows: bool) -> bool:
        """Whether shards may run it, the program of the whole leaf; `whole_rows` is whether they have whole rows."""
        graph, outputs = self.recording.graph, self.recording.outputs
        terms = self.terms(outputs)
        results = [node for node in outputs if node not in terms]
        for node in graph.nodes:
            if node.op == "call_function" and _torch.writes(node.target):
                results.extend(node.args)
        return runs_on_shards(graph, self.recording.leaves, terms, results, whole_rows)

    def function(self, device: torch.device, on_device: frozenset[int]) -> ListFunction:
        """Return the function for lists of leaves on a device; some scalars are 0-d tensors."""
        key = (device, on_device)
        if key not in self._functions:
            functions = _FUNCTIONS.of(self.text)
            if key not in functions:
                functions[key] = list_function(self.recording, *key, self._part)
            self._functions[key] = functions[key]
        return self._functions[key]


def record_phase(
    run: RunPhase, common: list[Tensor], leaves: list[Tensor]
) -> ListPhase:
    """Record one pass of a program on stand-ins of its arguments."""
    results: list[PhaseResult] = []

    def function(arguments: list[Tensor]) -> PhaseResult:
        results.append(run(arguments))
        return results[0]

    dtypes = [tensor.dtype for tensor in common]
    of_leaf = [(tensor.dtype, tensor.shape) for tensor in leaves]
    device = leaves[0].device if leaves else META
    recording = record(function, dtypes, of_leaf, device)
    return ListPhase(recording, results[0], dtypes)


def numbers_for(
    given: Sequence[Any],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    on_host: bool,
) -> tuple[list[Any], frozenset[int]]:
    """Return Python scalars, and 0-d tensors on the device for those that the host does not know, with their indices.

    Args:
        given: The scalars.
        dtypes: Their dtypes.
        device: The device.
        on_host: Whether the host may read tensors that are on the host.
    """
    if PYTHON_NUMBERS.issuperset(map(type, given)):  # a shortcut
        return list(given), frozenset()
    numbers: list[Any] = []
    on_device: set[int] = set()
    for i, (value, dtype) in enumerate(zip(given, dtypes, strict=True)):
        if is_on_accelerator(value) or (isinstance(value, Tensor) and not on_host):
            on_device.add(i)
            numbers.append(_placed(value, dtype, device))
        else:
            numbers.append(python_scalar(value))
    return numbers, frozenset(on_device)


class NamedLeaf(NamedTuple):
    """The attributes of a leaf that sums over leaves use."""

    name: str
    device: torch.device


class ProgramBundle(Task):
    """Leaves that one program processes together. The operations are the phases of the program.

    Args:
        name: The name of a leaf, which determines the bundle's position in sums.
        device: The device of the leaves.
    """

    def __init__(self, name: str, device: torch.device):
        self.name = name
        self.device = device
        self.operations = []
        self.run = None
        self._numbers: list[Any] = []
        self._on_host = True

    def begin(self, run: Any, numbers: list[Any], on_host: bool) -> None:
        """Receive the run and the scalars of the current call; `on_host` is whether the host may read the scalars."""
        self.run = run
        self._numbers = numbers
        self._on_host = on_host

    def release_tensors(self) -> None:
        """Release the tensors of a finished call."""
        self.run = None
        self._numbers = []

    def process(self, phase: Any) -> Any:
        """Run a phase; return the terms of its sums, or None if it is the last one."""
        raise NotImplementedError

    def share(self, name: StateKey, value: Tensor) -> None:
        """Hand over a new shared value, which is the same for all bundles."""
        path, key = name
        self.run.new_shared.setdefault(path, {}).setdefault(key, value)

    def receive(self, phase: Any, total: dict[str, Tensor]) -> None:
        """Add the totals of a sum to the arguments."""
        self._numbers = [*self._numbers, *(total[name] for name in phase.names)]


class ListBundle(ProgramBundle):
    """Leaves that one list program processes. Subclasses provide the tensors.

    Attributes:
        leaf_names: The names of the leaves in each item of `columns`.
    """

    leaf_names: list[list[str]]

    def columns(self) -> Iterable[list[list[Tensor]]]:
        """Return the lists of each call of the program; their size bounds temporary memory."""
        raise NotImplementedError

    def end(self, phase: ListPhase, results: list[list[Any]]) -> None:
        """Receive the results of the last phase, one list for each item of `columns`."""
        raise NotImplementedError

    def process(self, phase: ListPhase) -> Any:
        numbers, on_device = numbers_for(
            self._numbers, phase.common, self.device, self._on_host
        )
        function = phase.function(self.device, on_device)
        prepared = function.prepare(numbers)
        results = []
        for columns in self.columns():
            results.append(function.run(prepared, columns))
        if phase.operation is None:
            return self.end(phase, results)
        return self.terms(phase, results)

    def hand_over(
        self, phase: ListPhase, results: list[list[Any]], start: int = 0
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
            for place, term in terms.items():
                self.run.add_late(place, leaf.name, term)

    def terms(self, phase: ListPhase, results: list[list[Any]]) -> LeafTerms:
        """Return the terms of each leaf in sums over leaves; those of the parts of a leaf are added."""
        terms_of_leaf: dict[str, dict[Any, Tensor]] = {}
        for leaves, results_of_call in zip(self.leaf_names, results, strict=True):
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
        return _placed(value, dtype, self.device)


def chunks(sizes: Sequence[int], limit: int) -> Iterator[slice]:
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


def differ_by_leaf(values: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether a result is a list with one value per leaf; others, such as a count of entries, are shared by all."""
    return isinstance(values, list | tuple)


def is_on_accelerator(value: Any) -> bool:
    """Whether the host would have to synchronize to read a scalar."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _placed(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a scalar as a 0-d tensor: a copy from the host would wait for the device, `full` and addition do not."""
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)
    if value.device.type == device.type:
        return value.to(device, dtype)
    return torch.zeros((), dtype=dtype, device=device) + value
