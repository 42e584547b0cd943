"""The engine for accelerators: it runs the phases of a program as Triton kernels, each in one launch for all leaves."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import linecache
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.fx import Node

from gradtx.base.dtensor import local
from gradtx.base.messages import warn_user
from gradtx.base.plain import TYPES
from gradtx.base.torch_names import is_captured
from gradtx.execution.execute import Leaf, LeafTerms
from gradtx.optim.engine.base import GRADIENT, Engine, Plan
from gradtx.optim.engine.family import Family
from gradtx.optim.engine.lists import ListEngine, MemberBundle
from gradtx.optim.engine.views import (
    RefusedError,
    alias,
    entries_of,
    is_positional,
    is_usual,
    view_or_copy,
)
from gradtx.optim.explain import Launch
from gradtx.optim.run import Member
from gradtx.optim.step import Step
from gradtx.programs.bundle import NamedLeaf, list_function_of, numbers_for
from gradtx.programs.cache import SharedPrograms
from gradtx.programs.lower import lower
from gradtx.programs.phases import RecordedPhase
from gradtx.programs.scalars import Scalars
from gradtx.programs.write_triton import (
    KernelText,
    UnsuitableProgramError,
    write_kernels,
)

BLOCK = 1024  # entries of a chunk, which one instance of a kernel processes
WARPS = 8  # 16 bytes per thread and argument in float32
WIDTH = 256  # partial sums that are added at a time
ALIGNMENT = 16  # bytes
# Where the arguments of captured steps are; graphs may replay these at any time.
CAPTURED: list[Table] = []


@functools.cache
def triton_or_none() -> Any:
    """Return Triton if it is installed; torch's builds for GPUs bring it along."""
    try:
        import triton
        import triton.language
    except ImportError:
        return None
    return triton


def runs_kernels(device: torch.device) -> bool:
    """Whether Triton writes kernels for a device; those of ROCm are "cuda" as well."""
    return device.type in ("cuda", "xpu")


@functools.cache
def compiled(source: str) -> dict[str, Any]:
    """Return the functions of a kernel's text by name; equal texts share them."""
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    file = f"<gradtx kernel {hash(source):x}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[file] = (len(source), None, lines, file)  # Triton reads the text
    namespace = {"triton": triton, "tl": tl, "libdevice": libdevice}
    exec(compile(source, file, "exec"), namespace)
    return namespace


def launch(
    kernel: Any, instances: int, arguments: Sequence[Any], **constants: Any
) -> None:
    kernel[(instances,)](*arguments, **constants)


@dataclass
class PhaseKernels:
    """The kernels of a phase.

    Attributes:
        text: Their text.
        indices: The index of each scalar of the kernels among all scalars.
        dtypes: Its dtype.
        shared: For each result that is no value by leaf, its index among all scalars, or itself.
        key: What identifies them: programs of leaves of several shapes may differ in constants only.
        scalars: All scalars of the program.
    """

    text: KernelText
    indices: list[int]
    dtypes: list[torch.dtype]
    shared: list[Any]
    key: str
    scalars: Scalars

    def run(self, scalars: Sequence[Any], table: Table) -> Tensor:
        """Launch the kernels; return the results by leaf, a row for each."""
        text = self.text
        of_kernels = [scalars[i] for i in self.indices]
        words = _words(of_kernels, self.dtypes, table.pointers)
        functions = compiled(text.source)
        fixed = (table.pointers, table.sizes, table.chunk_leaf, table.chunk_start)
        constants = {"BLOCK": BLOCK, "ALIGNED": table.is_aligned, "num_warps": WARPS}
        n_leaves, n_chunks = table.leaves, table.chunks
        sums = [table.numbers(len(kinds), n_leaves) for kinds in text.reductions]
        common = (*words, *fixed, n_leaves, *sums)
        for depth, kinds in enumerate(text.reductions):
            partials = table.numbers(len(kinds), n_chunks)
            stage = (*common, partials, n_chunks)
            launch(functions[f"stage{depth}"], n_chunks, stage, **constants)
            reduce = (partials, sums[depth], table.leaf_chunks, n_leaves, n_chunks)
            launch(functions[f"reduce{depth}"], n_leaves, reduce, WIDTH=WIDTH)
        names = [kernel.name for kernel in text.kernels]
        if "last_stage" in names:
            launch(functions["last_stage"], n_chunks, common, **constants)
        rows = sum(place is not None for place in text.outputs)
        results = table.numbers(rows, n_leaves)
        if "finish" in names:
            launch(functions["finish"], n_leaves, (*common, results))
        return results

    def results(self, scalars: Sequence[Any], by_leaf: Tensor) -> list[Any]:
        """Return the results of the phase: a vector of one entry per leaf, or a scalar."""
        results = []
        for row, shared in zip(self.text.outputs, self.shared, strict=True):
            if row is not None:
                results.append(by_leaf[row])
            elif isinstance(shared, ScalarIndex):
                results.append(scalars[shared.at])
            else:
                results.append(shared)
        return results

    @classmethod
    def of(cls, phase: RecordedPhase, device: torch.device, leaf: int) -> PhaseKernels:
        """Return the kernels of a phase, the same for equal phases.

        Args:
            phase: The phase.
            device: The device of the leaves.
            leaf: As in `write_kernels`.

        Raises:
            UnsuitableProgramError: If kernels cannot run it.
        """
        known = _KERNELS.of(phase.text)
        key = device, leaf, columns_of(phase)
        if key not in known:
            known[key] = cls._written(phase, *key)
        return known[key]

    @classmethod
    def _written(
        cls, phase: RecordedPhase, device: torch.device, leaf: int, columns: int
    ) -> PhaseKernels:
        program = lower(phase.recording, decides=False)
        text = write_kernels(program, leaf, columns)
        order = {node: i for i, node in enumerate(program.scalars())}
        indices = [order[node] for node in text.scalars]
        dtypes = [node.meta["val"].dtype for node in text.scalars]
        shared = [
            ScalarIndex(order[result])
            if isinstance(result, Node) and result in order
            else result
            for result in program.results
        ]
        scalars = Scalars(program, device)
        key = "\n".join([text.source, scalars.given(frozenset()).text, repr(shared)])
        return cls(text, indices, dtypes, shared, key, scalars)


def columns_of(phase: RecordedPhase) -> int:
    """Return the number of results of a leaf, which a program that writes nothing returns first."""
    return sum(isinstance(name, int) for name in phase.names)


class ScalarIndex(NamedTuple):
    """The index of a scalar among those of a program."""

    at: int


def _words(
    scalars: list[Any], dtypes: list[torch.dtype], unused: Tensor
) -> tuple[Any, ...]:
    """Return scalars as arguments of kernels: bits, words on the device (`unused` if there are none), and words.

    A word has 64 bits. If a scalar's bit is set, its word is the index of its value among those on the device.
    """
    on_device = 0
    stored: list[Tensor] = []
    kinds = ["d" if dtype.is_floating_point else "q" for dtype in dtypes]
    for i, scalar in enumerate(scalars):
        if isinstance(scalar, Tensor):
            wide = torch.float64 if kinds[i] == "d" else torch.int64
            on_device |= 1 << i
            scalars[i], kinds[i] = len(stored), "q"
            stored.append(scalar.to(wide).view(torch.int64))
    packed = struct.pack(f"={''.join(kinds)}", *scalars)
    words = struct.unpack(f"={len(kinds)}q", packed)
    return on_device, torch.stack(stored) if stored else unused, *words


# By the text of a recording, as list functions are.
_KERNELS = SharedPrograms()


class Table:
    """Where the arguments of a bundle's leaves are, on the device.

    Args:
        sizes: The number of entries of each leaf.
        pointers: The addresses of each argument's tensors, one per leaf.
        device: The device.

    Attributes:
        chunks: The number of chunks of all leaves.
    """

    def __init__(
        self, sizes: list[int], pointers: list[list[int]], device: torch.device
    ):
        self.device = device
        self.leaves = len(sizes)
        chunk_leaf: list[int] = []
        chunk_start: list[int] = []
        leaf_chunks = [0]
        for leaf, size in enumerate(sizes):
            starts = range(0, size, BLOCK)
            chunk_start += starts
            chunk_leaf += [leaf] * len(starts)
            leaf_chunks.append(len(chunk_leaf))
        self.chunks = len(chunk_leaf)
        self.chunk_leaf = sent(chunk_leaf, device)
        self.chunk_start = sent(chunk_start, device)
        self.leaf_chunks = sent(leaf_chunks, device)
        self.sizes = sent(sizes, device)
        self.place(pointers)

    def place(self, pointers: list[list[int]]) -> None:
        """Send the addresses of all arguments."""
        self._rows = pointers
        self._are_aligned = list(map(_are_aligned, pointers))
        flat = list(itertools.chain.from_iterable(pointers))
        self._buffer = on_host(flat, self.device)
        self.pointers = self._buffer.to(self.device, non_blocking=True)

    @property
    def is_aligned(self) -> bool:
        return all(self._are_aligned)

    def numbers(self, rows: int, columns: int) -> Tensor:
        """Return memory for float64 numbers."""
        return torch.empty((rows, columns), dtype=torch.float64, device=self.device)

    def update(self, rows: dict[int, list[int]]) -> None:
        """Send the addresses of arguments that have moved since the last step."""
        for i, row in rows.items():
            if row == self._rows[i]:
                continue
            self._rows[i] = row
            self._are_aligned[i] = _are_aligned(row)
            window = slice(i * self.leaves, (i + 1) * self.leaves)
            source = on_host(row, self.device)
            if is_captured(self.device):  # replays copy from memory that stays
                source = self._buffer[window].copy_(source)
            self.pointers[window].copy_(source, non_blocking=True)


def _are_aligned(pointers: list[int]) -> bool:
    return not any(pointer % ALIGNMENT for pointer in pointers)


def on_host(numbers: list[int], device: torch.device) -> Tensor:
    """Return 64-bit integers in memory from which a copy to the device does not wait."""
    is_pinned = device.type == "cuda"
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=is_pinned)


def sent(numbers: list[int], device: torch.device) -> Tensor:
    """Send 64-bit integers to a device."""
    return on_host(numbers, device).to(device, non_blocking=True)


class KernelBundle(MemberBundle):
    """Parameters whose program runs as kernels."""

    def __init__(self, members: list[Member], *arguments: Any):
        super().__init__(members, *arguments)
        self._table: Table | None = None
        self._params = [member.param for member in members]
        # Whether the memory of a contiguous gradient has the order of its parameter's.
        self._are_usual = all(map(is_usual, self._params))
        # Whether the gradients are like those of the plan, and whether kernels read those where they are.
        self.are_as_planned = False
        self._are_read_in_place = False

    @functools.cached_property
    def kernels(self) -> list[PhaseKernels]:
        """The kernels of each phase.

        Raises:
            UnsuitableProgramError: If there are none.
        """
        # The first argument is the parameter.
        return [PhaseKernels.of(phase, self.device, 0) for phase in self.operations]

    def process(self, phase: RecordedPhase) -> Any:
        kernels = self.kernels[self.at]
        numbers, on_device = numbers_for(
            self._numbers, phase.common, self.device, self._on_host
        )
        scalars = kernels.scalars.given(on_device).function(numbers)
        table, alive = self._placed()
        by_leaf = kernels.run(scalars, table)
        if is_captured(self.device):
            CAPTURED.append(table)
            self._table = None  # later steps do not change this one
        del alive  # copies of gradients, which the kernels read
        results = [kernels.results(scalars, by_leaf)]
        if phase.operation is not None:
            return self.terms(phase, results)
        increment_version(self._params)
        return self.end(phase, results)

    # Arguments.

    def _placed(self) -> tuple[Table, list[Tensor]]:
        """Return where the arguments are, and copies that were made of some."""
        copies: list[Tensor] = []
        gradients = list(map(GRADIENT, self._params))
        if self.are_as_planned and self._are_read_in_place:
            rows = [list(map(Tensor.data_ptr, gradients))]
        else:
            rows = [self._addresses(gradients, copies)]
            self._are_read_in_place = (
                not copies
                and self.are_as_planned
                and TYPES.issuperset(map(type, gradients))
            )
        for name in self.signature.by_leaf:
            column = [self.trees[name][member.name] for member in self.members]
            rows.append(self._addresses(column, copies))
        keys = self.signature.slots_by_leaf
        if self._table is not None:
            self._table.update(dict(enumerate(rows, 1 + len(keys))))
            return self._table, copies
        fixed = [self._params]
        fixed += [[member.state[key] for member in self.members] for key in keys]
        for i, column in enumerate(fixed):
            pairs = zip(column, self._params, strict=True)
            aliases = [alias(tensor, param, True) for tensor, param in pairs]
            rows.insert(i, [each.data_ptr() for each in aliases])
        sizes = [entries_of(param) for param in self._params]
        self._table = Table(sizes, rows, self.device)
        return self._table, copies

    def _addresses(self, column: list[Any], copies: list[Tensor]) -> list[int]:
        """Return where tensors are that programs only read, or copies of them in their parameters' layout."""
        if (
            self._are_usual
            and TYPES.issuperset(map(type, column))
            and all(map(Tensor.is_contiguous, column))
            and not any(map(Tensor.is_neg, column))
        ):
            return [tensor.data_ptr() for tensor in column]
        pairs = zip(column, self._params, strict=True)
        views = [view_or_copy(alias, each, param, param, True) for each, param in pairs]
        copies += views
        return [view.data_ptr() for view in views]

    # Results.

    def terms(self, phase: RecordedPhase, results: list[list[Any]]) -> LeafTerms:
        """Return the sums over the leaves of the bundle, which take part in larger sums as one leaf."""
        totals: dict[Any, Tensor] = {}
        pairs = zip(phase.names, phase.dtypes, results[0], strict=True)
        for name, dtype, value in pairs:
            if phase.is_term(name):
                totals[name] = self._total(value, dtype)
        return LeafTerms([(NamedLeaf(self.name, self.device), totals)])

    def _total(self, value: Any, dtype: torch.dtype) -> Tensor:
        if isinstance(value, Tensor) and value.ndim:
            return value.sum().to(dtype)
        return self.as_tensor(value, dtype) * len(self.members)

    def as_tensor(self, value: Any, dtype: torch.dtype) -> Tensor:
        is_by_leaf = isinstance(value, Tensor) and value.ndim
        return super().as_tensor(value[0] if is_by_leaf else value, dtype)


class KernelFunction:
    """A phase as kernels that write to new memory, with the attributes of its list function, which runs other leaves.

    Args:
        phase, device, on_device: As in `list_function_of`.

    Raises:
        UnsuitableProgramError: If there are no kernels.
    """

    def __init__(
        self, phase: RecordedPhase, device: torch.device, on_device: frozenset[int]
    ):
        self._kernels = PhaseKernels.of(phase, device, -1)  # the last is the gradient
        self._scalars = self._kernels.scalars.given(on_device).function
        self._given = phase, device, on_device
        self._dtypes = phase.dtypes
        self._columns = columns_of(phase)
        self._tables: dict[tuple[int, ...], Table] = {}

    def prepare(self, numbers: Sequence[Any]) -> Sequence[Any]:
        return numbers

    def run(self, numbers: Sequence[Any], columns: Sequence[list[Tensor]]) -> list[Any]:
        tensors = list(itertools.chain.from_iterable(columns))
        if is_captured(tensors[0].device) or not all(map(is_usual, tensors)):
            lists = list_function_of(*self._given)
            return lists.run(lists.prepare(numbers), columns)
        gradients = columns[-1]
        # New slots, the last results, are like the columns before the gradients.
        like = [gradients, *columns[-self._columns : -1]]
        new: list[list[Tensor]] = []
        for column, dtype in zip(like[: self._columns], self._dtypes, strict=False):
            new.append([torch.empty_like(each, dtype=dtype) for each in column])
        addresses = [list(map(Tensor.data_ptr, each)) for each in (*columns, *new)]
        scalars = self._scalars(numbers)
        by_leaf = self._kernels.run(scalars, self._table(gradients, addresses))
        results = self._kernels.results(scalars, by_leaf)
        for i, (value, dtype) in enumerate(zip(results, self._dtypes, strict=True)):
            if isinstance(value, Node):
                results[i] = new[i]
            elif isinstance(value, Tensor) and value.ndim:
                results[i] = list(value.to(dtype).unbind())
        return results

    def _table(self, leaves: list[Tensor], addresses: list[list[int]]) -> Table:
        sizes = tuple(map(Tensor.numel, leaves))
        known = self._tables.get(sizes)
        if known is None:
            table = self._tables[sizes] = Table(
                list(sizes), addresses, leaves[0].device
            )
        else:
            table = copy.copy(known)  # another thread may run
            table.place(addresses)
        return table


def kernel_function_of(
    phase: RecordedPhase, device: torch.device, on_device: frozenset[int]
) -> Any:
    """Return the function of a phase as kernels if there are any, else as operations on lists."""
    if runs_kernels(device) and triton_or_none() is not None:
        with contextlib.suppress(UnsuitableProgramError):
            return KernelFunction(phase, device, on_device)
    return list_function_of(phase, device, on_device)


class KernelEngine(ListEngine):
    """Run steps as Triton kernels."""

    way = "kernels"
    skips_work = False
    bundle_type = KernelBundle
    consequence = "steps run over lists of tensors"
    _has_warned = False

    def runs_on(self, device: torch.device) -> bool:
        return runs_kernels(device)

    def _check(self, leaf: Leaf, step: Step) -> None:
        if triton_or_none() is None:
            self._warn_of_triton()
            raise RefusedError("Triton cannot be imported")
        needs_order = leaf.layout.codes or is_positional(leaf)
        if needs_order and not local(leaf.key).is_contiguous():
            raise RefusedError("a link needs the positions of its entries")
        super()._check(leaf, step)

    def launches(self, bundle: KernelBundle) -> list[Launch]:
        entries = sum(entries_of(member.param) for member in bundle.members)
        known: set[int] = set()  # arguments that an earlier kernel has read
        launches = []
        for kernel in [each for phase in bundle.kernels for each in phase.text.kernels]:
            again = sum(kernel.reads[i] for i in known & kernel.reads.keys())
            known |= kernel.reads.keys()
            sizes = sum(kernel.reads.values()), sum(kernel.writes.values()), again
            moved = [round(entries * size) for size in sizes]
            launches.append(Launch(kernel.name, len(bundle.members), *moved))
        return launches

    def _begin(self, plan: Plan, step: Step) -> None:
        super()._begin(plan, step)
        for bundle in plan.bundles:
            bundle.are_as_planned = plan.gradients_are_as_planned

    def _check_shard(self, leaf: Leaf, flat: bool) -> None:
        # Terms of a bundle are added up here, but leaves may be in other bundles on other ranks.
        Engine._check_shard(self, leaf, flat)

    def _warn_of_triton(self) -> None:
        if not self._has_warned:
            warn_user(
                "compile=True runs steps over lists of tensors on this GPU, because Triton cannot be imported; install "
                "the version of Triton that belongs to this torch, to run each step as a few kernels",
                RuntimeWarning,
            )
        self._has_warned = True

    def _bundles_of_signature(self, family: Family) -> list[MemberBundle]:
        return self._bundles(family, False)

    def _bundles(self, family: Family, splits: bool) -> list[MemberBundle]:
        """Return bundles of leaves with equal kernels, which those of several shapes often have."""
        members_of: dict[Any, list[Member]] = {}
        programs: dict[Any, list[RecordedPhase]] = {}
        pair_of = {id(member): (member, leaf) for member, leaf in family.pairs}
        of_shapes: list[Any] = super()._bundles(family, splits)
        for bundle in of_shapes:
            pairs = [pair_of[id(member)] for member in bundle.members]
            try:
                key = self._key(bundle)
            except (UnsuitableProgramError, RefusedError) as refusal:
                self._refuse(pairs, str(refusal))
                continue
            programs.setdefault(key, bundle.operations)
            members_of.setdefault(key, []).extend(bundle.members)
        bundles: list[MemberBundle] = []
        for key, members in members_of.items():
            phases = programs[key]
            bundles.append(KernelBundle(members, family.signature, phases, False))
        return bundles

    def _key(self, bundle: KernelBundle) -> tuple[str, ...]:
        """Return what identifies a bundle's kernels.

        Raises:
            UnsuitableProgramError: If there are none.
            OddTensorError: If the memory of a slot has another order than that of its parameter.
        """
        for member in bundle.members:
            for key in bundle.signature.slots_by_leaf:
                alias(member.state[key], member.param, True)
        if bundle.signature.has_owners:
            raise UnsuitableProgramError("the owners of some leaves compute")
        return tuple(each.key for each in bundle.kernels)
