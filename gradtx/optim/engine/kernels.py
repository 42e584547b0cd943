"""The engine that compiles: it runs the phases of a program as kernels, each for all leaves at once.

Kernels are written in C++ for CPUs and in Triton for GPUs; see `gradtx.compiler.write_kernels`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local
from gradtx.base.messages import warn_user
from gradtx.base.plain import has_own_values, is_usual
from gradtx.base.torch_names import NEVER_CAPTURED, is_captured
from gradtx.compiler import cpp
from gradtx.compiler.constants import Constants, skeleton_of
from gradtx.compiler.kernels import (
    AS_RECORDED,
    Inputs,
    PhaseKernels,
    Variant,
    language_of,
    shape_of,
)
from gradtx.compiler.tables import ChunkLayout, Rows, Table
from gradtx.compiler.write_expressions import UnsuitableProgramError
from gradtx.compiler.write_kernels import Moved
from gradtx.execution.execute import Leaf, LeafTerms
from gradtx.optim.engine.base import Engine
from gradtx.optim.engine.family import MemberFamily
from gradtx.optim.engine.joint import tasks_of
from gradtx.optim.engine.lists import ListEngine, MemberBundle, Parts
from gradtx.optim.engine.views import (
    RefusedError,
    are_in_order,
    in_order,
    is_positional,
    put_back,
    view_or_copy,
)
from gradtx.optim.explain import Launch
from gradtx.optim.run import GRAD, Member
from gradtx.optim.step import Step
from gradtx.plans.bundle import ABSENT, NamedLeaf, Selection, scalars_for
from gradtx.plans.function import Signature
from gradtx.plans.kernel_function import list_by_leaf
from gradtx.plans.phases import RecordedPhase
from gradtx.plans.plan import LeafKind

# Where the arguments of captured steps are; graphs may replay these at any time.
CAPTURED: list[Any] = []


class KernelBundle(MemberBundle):
    """Parameters whose program runs as kernels."""

    def __init__(self, members: list[Member], *arguments: Any):
        super().__init__(members, *arguments)
        self._table: Table | None = None
        self._may_be_captured = self.device.type not in NEVER_CAPTURED
        self._params = [member.param for member in members]
        self._find_tensors()
        self._rows_of_step: Rows | None = None
        # The sizes of the groups of axes of each leaf, and the chunks and values of these, by phase.
        self._shapes: list[list[list[int]]] = []
        self._layouts: dict[int, ChunkLayout] = {}
        # What the kernels take as arguments, by phase, and the constants among these of each leaf.
        self._variants = [AS_RECORDED] * len(self.operations)
        self._constants: list[tuple[float, ...]] = [()] * len(members)
        # Whether the memory of a contiguous gradient has the order of its parameter's.
        self._are_usual = all(map(is_usual, self._params))
        # The rows that may have gradients of the planned layout which kernels do not read where they are.
        self._may_need_copies = set(range(len(members)))
        # Whether kernels run on copies, since some tensors are transposed, ...; and the copies that they write.
        self._needs_order = self.signature.ordered and not are_in_order(self._tensors)
        self._copies: list[list[Tensor]] = []

    def _find_tensors(self) -> None:
        """Note the tensors that kernels write: parameters, and the slots of each key."""
        self._tensors: list[list[Any]] = [self._params]
        for key in self.signature.slots_by_leaf:
            self._tensors.append([member.state[key] for member in self.members])

    def of_others(self, members: list[Member]) -> Self:
        bundle = super().of_others(members)
        bundle._params = [member.param for member in members]
        bundle._find_tensors()
        bundle._table = bundle._rows_of_step = None
        bundle._layouts, bundle._copies = {}, []  # kernels write there
        bundle._may_need_copies = set(range(len(members)))
        return bundle

    def resized(self, members: list[Member]) -> Self | None:
        if any(variant is not AS_RECORDED for variant in self._variants):
            return None
        bundle = self.of_others(members)
        bundle.check()
        return bundle

    def release_states(self) -> None:
        super().release_states()
        self._tensors = []

    def take_states(self) -> None:
        super().take_states()
        self._find_tensors()

    def _divided(
        self, members: list[Member], signature: Signature, splits: bool
    ) -> Parts:
        """Return no columns: kernels take addresses, and all leaves at once."""
        count = len(members)
        return Parts([], list(range(count)), [0] * count, 0)

    def check(self) -> None:
        """Check that there are kernels for these leaves, and note the sizes of groups of axes.

        Raises:
            UnsuitableProgramError: If there are none.
        """
        if self.signature.has_owners:
            raise UnsuitableProgramError("the owners of some leaves compute")
        groups = [kernels.text.groups for kernels in self.kernels]
        shapes = [as_real(local(param)).shape for param in self._params]
        self._shapes = [list(map(of_phase.sizes, shapes)) for of_phase in groups]

    def key(self) -> tuple[Any, ...]:
        """Return what identifies the kernels."""
        return tuple(kernel.key for kernel in self.kernels)

    @staticmethod
    def merged(bundles: list[KernelBundle]) -> KernelBundle:
        """Return one bundle for those with equal kernels."""
        first, *others = bundles
        if not others:
            return first
        members = [member for bundle in bundles for member in bundle.members]
        merged = type(first)(members, first.signature, first.operations, False)
        for of_phase in zip(*(bundle._shapes for bundle in bundles), strict=True):
            merged._shapes.append(list(itertools.chain.from_iterable(of_phase)))
        merged._variants = first._variants
        merged._constants = [row for bundle in bundles for row in bundle._constants]
        return merged

    @staticmethod
    def share_text(bundles: list[KernelBundle]) -> None:
        """Let the kernels of bundles whose programs differ in constants and lengths only take these as arguments."""
        constants_of = [bundle._all_constants() for bundle in bundles]
        variants: list[Variant] = []
        fixes_row = bool(bundles[0].signature.layout.codes)
        columns = [
            list(zip(*phase, strict=True)) for phase in zip(*constants_of, strict=True)
        ]
        differ = [
            [len(set(map(repr, column))) > 1 for column in phase] for phase in columns
        ]
        count, first = sum(map(sum, differ)), 0
        for of_phase in differ:
            positions = tuple(itertools.compress(range(len(of_phase)), of_phase))
            variants.append(Variant(Constants(positions, first, count), fixes_row))
            first += len(positions)
        for bundle, of_bundle in zip(bundles, constants_of, strict=True):
            of_leaf = itertools.chain.from_iterable(of_bundle)
            selectors = itertools.chain.from_iterable(differ)
            row = tuple(map(float, itertools.compress(of_leaf, selectors)))
            bundle._variants, bundle._constants = variants, [row] * len(bundle.members)

    def skeleton(self) -> tuple[str, ...]:
        """Return what is equal in programs that differ in constants and lengths only."""
        return tuple(skeleton_of(phase.recording)[0] for phase in self.operations)

    def _all_constants(self) -> list[list[int | float]]:
        """Return the constants in each phase."""
        return [skeleton_of(phase.recording)[1] for phase in self.operations]

    @functools.cached_property
    def kernels(self) -> list[PhaseKernels]:
        """The kernels of each phase, for rows with the same scalars.

        Raises:
            UnsuitableProgramError: If there are none.
        """
        return self._kernels(by_row=False)

    @functools.cached_property
    def kernels_by_row(self) -> list[PhaseKernels]:
        """The kernels of each phase, for rows of which each has scalars of its own, or is absent."""
        kernels = self._kernels(by_row=True)
        PhaseKernels.compile_all(kernels)
        return kernels

    @property
    def kernels_of_first_step(self) -> list[PhaseKernels]:
        """The kernels to compile before the first step: by row, if groups have numbers of their own."""
        return self._kernels(by_row=True) if self._groups else self.kernels

    def _kernels(self, by_row: bool) -> list[PhaseKernels]:
        kernels = []
        shared = len(self.operations[0].common)
        for phase, variant in zip(self.operations, self._variants, strict=True):
            variant = variant._replace(by_row=by_row)
            if phase is not self.operations[0]:
                variant = variant._replace(shared=shared)
            # The first argument is the parameter.
            kernels.append(PhaseKernels.of(phase, self.device, 0, variant))
        return kernels

    def process(self, phase: RecordedPhase) -> Any:
        inputs = self.inputs(phase)
        return self.processed(phase, inputs, inputs.kernels.run(inputs))

    def inputs(self, phase: RecordedPhase) -> Inputs:
        """Return what the kernels of a phase run with."""
        if self._set_of_row is not None:
            return self._inputs_by_row(phase, self._set_of_row)
        kernels = self.kernels[self.at]
        scalars, on_device = scalars_for(
            self._sets[0], phase.common, self.device, self._on_host
        )
        scalars = kernels.scalars.where_on_device(on_device).function(scalars)
        table, copies = self._located()
        return Inputs(kernels, scalars, table, self._layout(kernels), None, copies)

    def _inputs_by_row(self, phase: RecordedPhase, set_of_row: list[int]) -> Inputs:
        kernels = self.kernels_by_row[self.at]
        sets, on_device = self.sets_for(phase)
        scalars = kernels.scalars.where_on_device(on_device)
        sets = scalars.function_of_sets(self.varying)(sets)
        table, copies = self._located()
        rows = self._rows_of_step
        if rows is None:
            rows = self._rows_of_step = Rows(set_of_row, self.device)
        rows.update(set_of_row)
        return Inputs(kernels, sets, table, self._layout(kernels), rows, copies)

    def processed(self, phase: RecordedPhase, inputs: Inputs, by_leaf: Tensor) -> Any:
        """Return the terms of a phase whose kernels have run, given their results by leaf."""
        if self._may_be_captured and is_captured(self.device):
            CAPTURED.append((inputs.table, inputs.layout, inputs.rows))
            self._table = self._rows_of_step = None  # later steps do not change these
        if self._copies:
            if phase.operation is None:
                put_back(self._tensors, self._copies)
            self._copies = []
        self._calls, params = self._whole, self._params
        if self._set_of_row is not None:
            params = [member.param for member in self.stepping]
            self._calls = [Selection(list(self._present_rows()))]
        results: list[Any] = []
        if phase.names:
            results = inputs.kernels.results(inputs, by_leaf)
        if inputs.rows is not None and len(self.stepping) < len(self.members):
            results = [_of_present(result, inputs.rows) for result in results]
        if phase.operation is not None:
            return self._totals(phase, results)
        increment_version(params)
        if not phase.names:
            return self.end(phase, [])
        pairs = zip(results, phase.dtypes, strict=True)
        return self.end(phase, [[list_by_leaf(*pair) for pair in pairs]])

    # Arguments.

    def _layout(self, kernels: PhaseKernels) -> ChunkLayout:
        """Return the chunks of the present phase, and where its kernels keep values."""
        if self.at not in self._layouts:
            self._layouts[self.at] = kernels.layout(self._shapes[self.at], self.device)
        return self._layouts[self.at]

    def _located(self) -> tuple[Table, list[Tensor]]:
        """Return where the arguments are, and copies that were made of some."""
        copies: list[Tensor] = []
        if self._needs_order:
            self._copies = [list(map(in_order, column)) for column in self._tensors]
            self.locate()
        is_even = self._set_of_row is None and self.are_as_planned
        if is_even and not self._may_need_copies:  # a shortcut
            rows = [list(map(Tensor.data_ptr, map(GRAD, self._params)))]
        else:
            rows = [self._addresses_of_gradients(copies)]
        for name in self.signature.by_leaf:
            tree = self.run.leaf_extras[name]
            column = [tree[member.name] for member in self.members]
            rows.append(self._addresses(column, copies))
        table, written = self._table, len(self._tensors)
        if table is None:
            columns = self._rows() + rows
            table = self._table = Table(
                len(self._params), columns, self.device, self._constants
            )
        elif not table.has(rows, written):
            table.update(dict(enumerate(rows, written)))
        return table, copies

    def _addresses_of_gradients(self, copies: list[Tensor]) -> list[int]:
        """Return where gradients are, or copies of them, which are added to `copies`."""
        present = self._present_rows()
        if self.are_as_planned and self._may_need_copies.isdisjoint(present):
            addresses = [0] * len(self._params)  # kernels read nothing of absent rows
            for row in present:
                addresses[row] = GRAD(self._params[row]).data_ptr()
            return addresses
        pairs = zip(map(GRAD, self._params), self._params, strict=True)
        gradients = [param if x is None else x for x, param in pairs]
        addresses = self._addresses(gradients, copies)
        if self.are_as_planned and not copies:
            self._may_need_copies.difference_update(present)
        return addresses

    def _present_rows(self) -> Sequence[int]:
        if self._set_of_row is None:
            return range(len(self.members))
        pairs = enumerate(self._set_of_row)
        return [row for row, index in pairs if index != ABSENT]

    def _rows(self) -> list[list[int]]:
        """Return where parameters and slots are: the plan has checked layouts, and aliases begin where these do."""
        columns: list[list[Any]] = self._copies or self._tensors
        if self.signature.sharded:
            columns = [list(map(local, column)) for column in columns]
        return [list(map(Tensor.data_ptr, column)) for column in columns]

    def locate(self) -> None:
        if self._table is not None:
            self._table.update(dict(enumerate(self._rows())))

    def _addresses(self, column: list[Any], copies: list[Tensor]) -> list[int]:
        """Return where tensors are that programs only read, or copies of them in their parameters' layout."""
        pairs = zip(column, self._params, strict=True)
        if self._needs_order:
            ordered = [in_order(view_or_copy(x, like, False)) for x, like in pairs]
            copies += ordered
            return [tensor.data_ptr() for tensor in ordered]
        if self._are_usual and all(map(is_usual, column)):
            return [tensor.data_ptr() for tensor in column]
        if self._are_usual and all(map(has_own_values, column)):
            views = list(map(Tensor.contiguous, column))
        else:
            views = [view_or_copy(tensor, param, True) for tensor, param in pairs]
        copies += views
        return [view.data_ptr() for view in views]

    def launches(self) -> list[list[Launch]]:
        """Return the launches of each phase."""
        already_read: set[int] = set()  # arguments that an earlier kernel has read
        phases: list[list[Launch]] = []
        for at, kernels in enumerate(self.kernels):
            phases.append([])
            for kernel in kernels.text.kernels:
                read = {i: self._bytes(at, moved) for i, moved in kernel.reads.items()}
                written = sum(self._bytes(at, x) for x in kernel.writes.values())
                again = sum(read[i] for i in already_read & read.keys())
                already_read |= read.keys()
                sizes = sum(read.values()), written, again
                phases[-1].append(Launch(kernel.name, len(self.stepping), *sizes))
        return phases

    def _bytes(self, at: int, moved: Moved) -> int:
        """Return the bytes of an argument of all leaves in a phase; one value for each leaf counts as none."""
        extent, itemsize = moved
        if not extent:
            return 0
        sizes = self._shapes[at]
        if self._set_of_row is not None:
            are_present = [index != ABSENT for index in self._set_of_row]
            sizes = itertools.compress(sizes, are_present)
        return itemsize * sum(math.prod(x[i] for i in extent) for x in sizes)

    # Results.

    def _totals(self, phase: RecordedPhase, results: list[Any]) -> LeafTerms:
        """Return the sums over the leaves of the bundle, which take part in larger sums as one leaf.

        Sums for the next step have the terms of all leaves, so that their bits do not depend on bundles.
        """
        totals: dict[Any, Tensor] = {}
        for name, dtype, value in zip(phase.names, phase.dtypes, results, strict=True):
            if isinstance(value, Tensor) and value.ndim:
                totals[name] = value.sum().to(dtype)
            else:
                totals[name] = self.as_tensor(value, dtype) * len(self.stepping)
        return LeafTerms([(NamedLeaf(self.name, self.device), totals)])


def _of_present(result: Any, rows: Rows) -> Any:
    """Return the entries of a result by leaf that belong to leaves that take part."""
    if isinstance(result, Tensor) and result.ndim:
        return result[rows.with_these(rows.present)]
    return result


def _variant_of(
    phase: RecordedPhase, device: torch.device, on_device: frozenset[int]
) -> torch.Size | None:
    """Return the shape of the parameter, the first argument, if kernels may depend on it."""
    return shape_of(phase, 0)


def engine_for(compile: Any) -> Engine:
    """Return the engine that `compile=` asks for, which takes parameters before those of other engines.

    Raises:
        ValueError: If the engine belongs to another optimizer, whose programs it would mix with the new one's.
        TypeError: If `compile` is neither True nor an engine.
    """
    if compile is True:
        return KernelEngine()
    if not isinstance(compile, Engine):
        raise TypeError(
            f"compile must be True, False or an Engine, got {compile!r}; gradtx writes its own kernels, which take no "
            "modes or options of torch.compile"
        )
    if compile.is_taken:
        raise ValueError(
            f"compile: this {type(compile).__name__} belongs to another optimizer; create one for each"
        )
    return compile


class KernelEngine(ListEngine):
    """Run steps as kernels."""

    way = "kernels"
    skips_work = False
    shares_slots = False  # kernels compute with those of each leaf; reading all of them takes longer
    bundle_type = KernelBundle
    variant_of = staticmethod(_variant_of)
    consequence = "steps run over lists of tensors"
    _has_warned = False

    def runs_on(self, device: torch.device) -> bool:
        has_kernels = language_of(device) is not None
        if not has_kernels and device.type != "meta":
            self._warn(f"there are no kernels for {device.type}")
        return has_kernels

    def _check(self, leaf: Leaf, step: Step) -> None:
        language = language_of(local(leaf.key.param).device)
        missing = language.missing() if language is not None else ""
        if missing:
            self._warn(missing)
            raise RefusedError(missing)
        needs_order = leaf.layout.codes or is_positional(leaf.operations)
        if needs_order and not local(leaf.key.param).is_contiguous():
            raise RefusedError("a link needs the positions of its entries")
        super()._check(leaf, step)

    def leaf_kind(
        self, member: Member, leaf: Leaf, step: Step, shares: bool
    ) -> LeafKind:
        kind = super().leaf_kind(member, leaf, step, shares)
        if kind.strided:
            # Lists run on this memory; kernels would need copies, which take longer than several passes.
            raise RefusedError("its memory has gaps")
        return kind

    def tasks(self, bundles: list[Any]) -> list[Any]:
        return tasks_of(bundles)

    def launches(self, task: Any) -> list[Launch]:
        return list(itertools.chain.from_iterable(task.launches()))

    def check_shard(self, leaf: Leaf, flat: bool) -> None:
        # Terms of a bundle are added up here, but leaves may be in other bundles on other ranks.
        Engine.check_shard(self, leaf, flat)

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            warn_user(
                f"compile=True runs steps over lists of tensors: {reason}",
                RuntimeWarning,
            )
        self._has_warned = True

    def _bundles_of_signature(self, family: MemberFamily) -> list[MemberBundle]:
        return self._bundles(family, False)

    def _bundles(self, family: MemberFamily, splits: bool) -> list[MemberBundle]:
        """Return bundles of leaves with equal kernels, which those of several shapes often have."""
        bundles: list[Any] = super()._bundles(family, splits)
        of_skeleton: dict[Any, list[KernelBundle]] = {}
        for bundle in bundles if len(bundles) > 1 else []:
            of_skeleton.setdefault(bundle.skeleton(), []).append(bundle)
        for alike in of_skeleton.values():
            if len(alike) > 1:
                KernelBundle.share_text(alike)
        suitable: list[KernelBundle] = []
        for bundle in bundles:
            try:
                bundle.check()
                suitable.append(bundle)
            except UnsuitableProgramError as refusal:
                self._refuse(bundle.members, str(refusal))
        of_key: dict[Any, list[KernelBundle]] = {}
        for bundle in suitable:
            of_key.setdefault(bundle.key(), []).append(bundle)
        merged = list(map(KernelBundle.merged, of_key.values()))
        kernels = [bundle.kernels_of_first_step for bundle in merged]
        PhaseKernels.compile_all(itertools.chain.from_iterable(kernels))
        return [bundle for bundle in merged if self._has_compiled(bundle)]

    def _has_compiled(self, bundle: KernelBundle) -> bool:
        """Whether the kernels of a bundle can be compiled; if not, its leaves are refused."""
        try:
            for kernels in bundle.kernels_of_first_step:
                kernels.compile()
        except cpp.CompilerError as error:
            self._warn(str(error))
            first, *_ = str(error).splitlines()
            reason = f"its kernels cannot be compiled: {first}"
            self._refuse(bundle.members, reason)
            return False
        return True
