"""Bundles of leaves that one list program processes, and the passes of such a program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from gradtx.base.exact import python_scalar
from gradtx.execution.execute import LeafTerms, Operation
from gradtx.execution.phases import Names, PassResult, RunPass
from gradtx.programs.cache import SharedPrograms
from gradtx.programs.code import ListFunction, list_function
from gradtx.programs.record import META, Recording, UnrecordableError, record
from gradtx.programs.terms import parts_add_up, terms_of

# Entries in the lists of one call. On the CPU, temporaries then remain in the cache. Accelerators need long lists;
# their limit bounds temporary memory.
CHUNK = 2**18
CHUNK_OF_ACCELERATOR = 2**25
PYTHON_NUMBERS = frozenset((float, int, bool))

# By the text of a recording: optimizers with other settings often repeat programs.
_FUNCTIONS = SharedPrograms()


def entries_of_a_call(device: torch.device) -> int:
    """Return the maximum number of entries in the lists of one call."""
    return CHUNK if device.type == "cpu" else CHUNK_OF_ACCELERATOR


class ListPass:
    """One pass of a program, which ends at a sum over leaves or at the end of the program.

    Attributes:
        common: The dtype of each scalar that all leaves share.
        names: The name of each result.
        operation: The operation that waits for the sums; None for the last pass.
        sums: Stand-ins of the sums; empty for the last pass.
        is_for_owners: Whether the pass ends where owners compute; its results then go to the owner of each leaf.
        dtypes: The dtype of each result.
        text: A text that identifies the program, so that leaves with equal programs can share one.
    """

    is_for_owners = False

    def __init__(
        self,
        run: Callable[[list[Tensor]], PassResult],
        common: list[Tensor],
        leaves: list[Tensor],
    ):
        self._run = run
        self.common = [tensor.dtype for tensor in common]
        self._leaves = [(tensor.dtype, tensor.shape) for tensor in leaves]
        self._device = leaves[0].device if leaves else META
        self._functions: dict[Any, ListFunction] = {}
        self.names: tuple[Any, ...] = ()
        self.operation: Operation | None = None
        self.sums: list[Tensor] = []
        self.dtypes: list[torch.dtype] = []
        self._recording: Recording | None = self._record()
        self.text = self._recording.text()

    @property
    def recording(self) -> Recording:
        """The operations, as they were recorded."""
        if self._recording is None:
            self._recording = self._record()
        return self._recording

    def _record(self) -> Recording:
        def function(arguments: list[Tensor]) -> PassResult:
            result = self._run(arguments)
            self.names = result.names
            self.operation = result.operation
            self.sums = [] if result.operation is None else result.outputs
            self.dtypes = [output.dtype for output in result.outputs]
            return result

        return record(function, self.common, self._leaves, self._device)

    def parts_add_up(self) -> bool:
        """Whether the terms of a leaf's parts, apart from constants, add up to its terms."""
        recording = self.recording
        terms = terms_of(self.names, recording.outputs, self.operation is not None)
        return parts_add_up(recording.graph, recording.leaves, terms, True)

    def function(self, device: torch.device, on_host: bool) -> ListFunction:
        """Return the function for lists of leaves on a device, with Python scalars or with 0-d tensors."""
        key = (device, on_host)
        if key not in self._functions:
            functions = _FUNCTIONS.of(self.text)
            if key not in functions:
                functions[key] = self._written(self.recording, device, on_host)
            self._recording = None  # code generation modifies it
            self._functions[key] = functions[key]
        return self._functions[key]

    def _written(
        self, recording: Recording, device: torch.device, on_host: bool
    ) -> ListFunction:
        return list_function(recording, device, on_host)


class PassOfShards(ListPass):
    """One part of a program for shards, which ends where the owner of a leaf computes or at the end of the program.

    All parts are cut out of one recording after its operations were fused, so that shards go through the same
    arithmetic as whole leaves.
    """

    def __init__(
        self, run: RunPass, common: list[Tensor], leaves: list[Tensor], part: int
    ):
        self._part = part
        self.parts = 1
        super().__init__(run, common, leaves)
        self.text = f"{self.text}\npart {part} of {self.parts}"

    def _record(self) -> Recording:
        recording = super()._record()
        if self.operation is not None:
            raise UnrecordableError("a sum over leaves must include all shards")
        self.parts = len(recording.owned) + 1
        self.is_for_owners = self._part < len(recording.owned)
        if self.is_for_owners:
            node = recording.owned[self._part]
            self.operation = node.meta["operation"]
            dtype_of: dict[str, torch.dtype] = node.meta["payload"]
            self.names = tuple(dtype_of)
            self.dtypes = list(dtype_of.values())
        return recording

    def _written(
        self, recording: Recording, device: torch.device, on_host: bool
    ) -> ListFunction:
        return list_function(recording, device, on_host, self._part)


def passes_of_shards(
    function: Callable[[list[Tensor], Names], PassResult],
    common: list[Tensor],
    leaves: list[Tensor],
) -> list[ListPass]:
    """Return the parts of a program for shards."""

    def run(arguments: list[Tensor]) -> PassResult:
        return function(arguments, ())

    first = PassOfShards(run, common, leaves, 0)
    passes: list[ListPass] = [first]
    for part in range(1, first.parts):
        passes.append(PassOfShards(run, common, leaves, part))
    return passes


def numbers_for(
    given: Sequence[Any],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    on_host: bool,
) -> tuple[list[Any], bool]:
    """Return Python scalars if the host may read the given ones without synchronizing; otherwise 0-d tensors."""
    if on_host and PYTHON_NUMBERS.issuperset(map(type, given)):  # a shortcut
        return list(given), True
    if on_host and not any(map(is_on_accelerator, given)):
        return list(map(python_scalar, given)), True
    placed: list[Any] = []
    for value, dtype in zip(given, dtypes, strict=True):
        placed.append(_placed(value, dtype, device))
    return placed, False


class NamedLeaf(NamedTuple):
    """The attributes of a leaf that sums over leaves use."""

    name: str
    device: torch.device


class ListBundle:
    """Leaves that one program processes; the bundle stands in for them in `execute`. Subclasses provide the tensors.

    Args:
        name: The name of a leaf, which determines the bundle's position in sums.
        device: The device of the leaves.
        passes: The program.

    Attributes:
        run: The run of the current call; leaves have the same attribute.
    """

    update = True  # `execute` runs all operations only on leaves with an update
    at = -1
    run: Any

    def __init__(self, name: str, device: torch.device, passes: list[ListPass]):
        self.name = name
        self.device = device
        self.program: list[Any] = [ListPassOperation(each) for each in passes]
        self._numbers: list[Any] = []
        self._on_host = True

    def begin(self, run: Any, numbers: list[Any], on_host: bool) -> None:
        """Receive the run and the scalars of the current call; `on_host` is whether the host may read the scalars."""
        self.at = -1
        self.run = run
        self._numbers = numbers
        self._on_host = on_host

    def release_tensors(self) -> None:
        """Release the tensors of a finished call."""
        self.run = None
        self._numbers = []

    def columns(self) -> Iterable[list[list[Tensor]]]:
        """Return the lists of each call of the program; their size bounds temporary memory."""
        raise NotImplementedError

    def leaf_names(self) -> Iterable[list[str]]:
        """Return the names of the leaves in each item of `columns`."""
        raise NotImplementedError

    def end(self, compiled: ListPass, results: list[list[Any]]) -> None:
        """Receive the results of the last pass, one list for each item of `columns`."""
        raise NotImplementedError

    def call(self, compiled: ListPass) -> list[list[Any]]:
        """Run a pass."""
        numbers, on_host = numbers_for(
            self._numbers, compiled.common, self.device, self._on_host
        )
        function = compiled.function(self.device, on_host)
        prepared = function.prepare(numbers)
        return [function.run(prepared, columns) for columns in self.columns()]

    def terms(self, compiled: ListPass, results: list[list[Any]]) -> LeafTerms:
        """Return the terms of each leaf in a sum over leaves; those of the parts of a leaf are added."""
        terms_of_leaf: dict[str, dict[str, Tensor]] = {}
        for leaves, results_of_call in zip(self.leaf_names(), results, strict=True):
            outputs = zip(compiled.names, compiled.dtypes, results_of_call, strict=True)
            for key, dtype, values in outputs:
                terms_of_call = self.by_leaf(values, dtype, len(leaves))
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

    def payloads(self, compiled: ListPass, results: list[list[Any]]) -> LeafTerms:
        """Return the values to send to the owner of each leaf."""
        raise NotImplementedError

    def add_results(self, results: dict[str, Any]) -> None:
        """Add the local shards of the owners' results as another argument of each leaf."""
        raise NotImplementedError

    def by_leaf(self, values: Any, dtype: torch.dtype, leaves: int) -> Sequence[Tensor]:
        """Return a result of a call for each of its leaves."""
        if differ_by_leaf(values):
            return values
        return [self.as_tensor(values, dtype)] * leaves

    def as_tensor(self, value: Any, dtype: torch.dtype) -> Tensor:
        """Return a result that all leaves share, as a 0-d tensor."""
        if differ_by_leaf(value):
            value = value[0]
        return _placed(value, dtype, self.device)

    def add_totals(self, totals: list[Tensor]) -> None:
        """Add the totals of a sum to the arguments."""
        self._numbers = [*self._numbers, *totals]


class ListPassOperation(Operation):
    """One pass of a bundle as an operation."""

    def __init__(self, compiled: ListPass):
        self._compiled = compiled
        self._awaited = compiled.operation
        self.of_leaf = compiled.is_for_owners
        if self._awaited is not None:
            self.path = self._awaited.path

    def start(self, leaf: Any) -> Any:
        bundle: ListBundle = leaf
        results = bundle.call(self._compiled)
        if self._awaited is None:
            return bundle.end(self._compiled, results)
        if self._compiled.is_for_owners:
            return bundle.payloads(self._compiled, results)
        return bundle.terms(self._compiled, results)

    def combine(self, waiting: list[tuple[Any, Any]]) -> Any:
        assert self._awaited is not None
        return self._awaited.combine(waiting)

    def resume(self, leaf: Any, total: dict[str, Tensor]) -> None:
        if self._compiled.is_for_owners:
            leaf.add_results(total)
            return
        leaf.add_totals([total[name] for name in self._compiled.names])


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
