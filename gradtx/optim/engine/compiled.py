"""The engine that compiles: build bundles of leaves, and look up or compile their programs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import is_sharded, local
from gradtx.distributed.owners import has_regions
from gradtx.execution.context import UnknownInProgramError
from gradtx.execution.execute import Leaf
from gradtx.execution.phases import have_sums
from gradtx.optim._member import Member
from gradtx.optim._step_input import StepInput
from gradtx.optim.engine.alias import entries_of, resized
from gradtx.optim.engine.base import (
    READS_SHAPE,
    SUM_OVER_SHARDS,
    Engine,
    Pairs,
    UnsuitableError,
    shared_programs,
    slots_are_shaped_as,
    stand_ins,
)
from gradtx.optim.engine.bundle import Bundle, Prepared
from gradtx.optim.engine.compiler import Backend, Compiler
from gradtx.optim.engine.inductor import compile_with_inductor
from gradtx.optim.engine.plan import Plan
from gradtx.optim.engine.recording import reads_shape
from gradtx.optim.engine.signature import LeafKind, Signature
from gradtx.optim.engine.torch_names import missing_name
from gradtx.optim.engine.trace import BundleFunction, BundleProgram
from gradtx.optim.engine.windows import (
    can_be_split,
    is_positional,
    row_of,
    window_of,
)
from gradtx.programs.cache import SharedPrograms
from gradtx.programs.record import ImpureError, line_of_rule, reason_of

logger = logging.getLogger("gradtx")

# Flat leaves per call of a program: more of them cost more compile time than they save.
WIDTH = 8
# Entries of a bundle of several calls. A step frees gradients that it consumes bundle by bundle.
BUNDLED = 2**20
# Minimum entries of a flat leaf for more than one thread, as in torch's own kernels.
LARGE = 2**15
READS = 8  # tensors that a value of a coded leaf may depend on to be computed again where it is needed
PATIENCE = 3.0  # seconds of compile time after which a message is logged
COMPILING = threading.RLock()  # torch's tracer patches global names while it runs


class CompilationError(UnsuitableError):
    """A chain cannot be traced or compiled; `__cause__` is the reason."""


@dataclass
class Order:
    """A request to compile a program.

    Attributes:
        function: The step of a bundle.
        common: Stand-ins for the scalars that all leaves share.
        examples: Sets of leaf arguments. The program must accept the last one; tracing an earlier one may give a
            better program.
        flat: Whether leaves are passed as flat aliases.
        large: Whether a leaf is large enough for more than one thread.
        sharded: Whether leaves are shards.
        name: The name of a leaf, for messages.
    """

    function: BundleFunction
    common: list[Tensor]
    examples: list[list[Tensor]]
    flat: bool
    large: bool
    sharded: bool
    name: str


_SHARED = SharedPrograms()
_READERS = SharedPrograms()  # whether rules read the shape of their leaf


class CompiledEngine(Engine):
    """Run steps through compiled programs, shared by engines with the same options and similar chains.

    Args:
        options: Options of the back end.
        backend: The function that compiles graphs.
    """

    def __init__(
        self, options: Mapping[str, Any], backend: Backend = compile_with_inductor
    ):
        super().__init__()
        self._options = dict(options)
        self._backend = backend
        self._programs: dict[Any, list[BundleProgram]] | None = None
        self._readers: dict[Any, bool] | None = None
        # Why program lists remain empty, by their ids.
        self._unsuitable: dict[int, str] = {}
        self._prepared: Prepared = {}
        self._gradients_are_as_planned = False
        self._flags: dict[tuple[torch.device, bool], Tensor] = {}
        self._logged: set[str] = set()  # stages that have been logged

    def __reduce__(self) -> tuple[Any, ...]:
        # Programs are compiled again when they are needed.
        return type(self), (self._options, self._backend)

    @property
    def programs(self) -> list[BundleProgram]:
        """All compiled programs."""
        programs: list[BundleProgram] = []
        for similar in (self._programs or {}).values():
            programs.extend(similar)
        return programs

    # The arguments of a step.

    def _begin(self, plan: Plan, step_input: StepInput) -> None:
        self._prepared = {}
        self._gradients_are_as_planned = plan.gradients_are_as_planned
        super()._begin(plan, step_input)

    def _begin_bundle(
        self, bundle: Any, numbers: list[Any], step_input: StepInput
    ) -> None:
        bundle.begin(step_input.run, numbers, step_input.on_host)
        bundle.read_from(
            step_input.trees, self._prepared, self._gradients_are_as_planned
        )

    def _flag(self, device: torch.device, real: bool) -> Tensor:
        """Return the flag for real leaves or for padding, one tensor for all leaves."""
        if (device, real) not in self._flags:
            self._flags[device, real] = torch.tensor(real, device=device)
        return self._flags[device, real]

    # Planning.

    def _consequence(self) -> str:
        return "compile=True has no effect, steps run eagerly"

    def _bundled(
        self, kind: LeafKind, pairs: Pairs, step_input: StepInput
    ) -> list[Any]:
        # Compilers specialize on the first sizes they see.
        pairs.sort(key=_largest_first)
        signature = Signature.of(*pairs[0], kind, step_input)
        if kind.flat:
            pairs = self._independent_of_shape(kind, signature, pairs, step_input)
        bundles: list[Bundle] = []
        for start in range(0, len(pairs), kind.width):
            members = [member for member, _ in pairs[start : start + kind.width]]
            bundle = self._bundle(members, pairs[start][1], kind, signature, step_input)
            if isinstance(bundle, str):
                for member in members:
                    self.reasons[member.name] = bundle
            elif bundles and bundles[-1].may_absorb(bundle, BUNDLED):
                bundles[-1].absorb(bundle)
            else:
                bundles.append(bundle)
        return bundles

    def _independent_of_shape(
        self, kind: LeafKind, signature: Signature, pairs: Pairs, step_input: StepInput
    ) -> Pairs:
        """Refuse the leaves whose rules read their shape, and return the others."""
        if self._readers is None:
            self._readers = shared_programs(_READERS, step_input.views[0].tx)
        kept: Pairs = []
        for member, leaf in pairs:
            is_special = bool(signature.layout.codes) or is_sharded(member.param)
            shape = leaf.shape if is_special else len(leaf.shape)
            structure = step_input.structures[member.group]
            key = structure, kind, shape, *signature.key()
            if key not in self._readers:
                self._readers[key] = reads_shape(member, signature, step_input, leaf)
            if self._readers[key]:
                self._refuse(leaf, READS_SHAPE)
            else:
                kept.append((member, leaf))
        return kept

    def _width(self, member: Member, leaf: Leaf, flat: bool) -> int:
        row = row_of(member) if flat else None
        if row is not None and _window(member, leaf, row) is not None:
            return 1
        return WIDTH if flat or _can_be_padded(member, leaf) else 1

    def _traits_of_written(
        self, tensors: list[Tensor], flat: bool
    ) -> tuple[Any, ...] | None:
        if tensors[0].numel() < (1 if flat else 2):
            # Compilers specialize on sizes 0 and 1, unless all operations are elementwise.
            return None
        if flat:
            traits = [(tensor.dtype, tensor.device, tensor.ndim) for tensor in tensors]
            return tensors[0].numel() >= LARGE, *traits
        return False, *map(_traits_of, tensors)

    def _supports(self, leaf: Leaf, step_input: StepInput) -> bool:
        # A 0-d slot cannot be distinguished from one shaped like the leaf.
        if leaf.key.ndim == 0:
            self._refuse(leaf, "it has no dimensions")
            return False
        if is_positional(leaf) and not local(leaf.key).is_contiguous():
            self._refuse(
                leaf,
                "a link needs the positions of its entries, which a flat alias reorders",
            )
            return False
        if has_regions(leaf.program):
            self._refuse(
                leaf, "a link is computed by owners, which requires list programs"
            )
            return False
        stage = self._stage_without_program(leaf, step_input)
        if stage is not None and stage not in self._logged:
            self._logged.add(stage)
            logger.warning(
                "%s is not compiled: leaves that pass through it step eagerly", stage
            )
        return super()._supports(leaf, step_input)

    def _bundle(
        self,
        members: list[Member],
        leaf: Leaf,
        kind: LeafKind,
        signature: Signature,
        step_input: StepInput,
        splits: bool = True,
    ) -> Bundle | str:
        """Return a bundle with its program, or the reason why this engine does not run its leaves.

        `splits` is whether large coded leaves may be updated in windows.
        """
        first = members[0]
        row = row_of(first) if kind.flat else None
        window = _window(first, leaf, row) if row is not None and splits else None
        bundle = Bundle(members, signature, kind.flat, leaf.name, row, window)
        bundle.create_arguments(self._flag, step_input.trees)
        tensors, *others = bundle.arguments(step_input.trees)
        programs = self._programs_like(first, kind, signature, step_input)
        if id(programs) in self._unsuitable:
            return self._unsuitable[id(programs)]
        program = next((program for program in programs if program.fits(tensors)), None)
        if program is None:
            view = step_input.views[first.group]
            structure = step_input.structures[first.group]
            order = Order(
                function=BundleFunction(signature, view.chain_of(structure)),
                common=[tensor.to(bundle.device) for tensor in stand_ins(signature)],
                examples=[tensors]
                if programs
                else [_examples(tensors, kind, row), tensors],
                flat=kind.flat,
                large=entries_of(first.param) >= LARGE,
                sharded=is_sharded(first.param),
                name=leaf.name,
            )
            program = self._make_program(order, programs)
        if isinstance(program, str):
            return program
        if others and not self._runs_in_windows(program, bundle, step_input):
            return self._bundle(
                members, leaf, kind, signature, step_input, splits=False
            )
        bundle.compile_for(program)
        return bundle

    def _runs_in_windows(
        self, program: BundleProgram, bundle: Bundle, step_input: StepInput
    ) -> bool:
        """Whether a program may process the windows of a bundle, whatever their length."""
        whole = bundle.whole_arguments(step_input.trees)
        *_, last = bundle.arguments(step_input.trees)
        last = list(map(torch.empty_like, last))  # a storage offset never fits
        return program.runs_in_parts and program.fits(last) and program.fits(whole)

    def _programs_like(
        self,
        member: Member,
        kind: LeafKind,
        signature: Signature,
        step_input: StepInput,
    ) -> list[BundleProgram]:
        """Return the programs of this structure, one for each pattern of sizes."""
        if self._programs is None:
            options = repr(sorted(self._options.items()))
            self._programs = shared_programs(
                _SHARED, step_input.views[0].tx, self._backend, options
            )
        key = step_input.structures[member.group], kind, *signature.key()
        return self._programs.setdefault(key, [])

    def _make_program(
        self, order: Order, programs: list[BundleProgram]
    ) -> BundleProgram | str:
        """Compile a program and add it to the list of similar ones; or return the reason why there is none yet.

        Raises:
            CompilationError: If the chain cannot be traced or compiled.
        """
        with COMPILING:
            for program in programs:
                if program.fits(order.examples[-1]):
                    # Another thread has compiled it while this one waited.
                    return program
            program = self._compiled(order)
        if isinstance(program, str):
            self._unsuitable[id(programs)] = program
        else:
            programs.append(program)
        return program

    def _compiled(self, order: Order) -> BundleProgram | str:
        """Return a program for the last of the examples; or the reason why there is none for these leaves."""
        start = time.monotonic()
        missing = missing_name()
        if missing is not None:
            raise UnsuitableError(f"this version of torch lacks {missing}")
        compiler = Compiler(self._backend, {**_options_for(order), **self._options})
        program = _traced(order)
        if isinstance(program, str):
            return program
        if order.sharded and have_sums(program.phases):
            return SUM_OVER_SHARDS
        try:
            program.compile(compiler)
        except Exception as error:
            raise CompilationError(order.name) from error
        if time.monotonic() - start > PATIENCE:
            logger.info(
                "compiled a program for %s in %.1f s",
                order.name,
                time.monotonic() - start,
            )
        return program


def _traced(order: Order) -> BundleProgram | str:
    """Return a program traced with the first of the examples that leads to one that fits the last example.

    Return the reason if a rule cannot be traced.

    Raises:
        CompilationError: If torch cannot trace the rules of gradtx.
    """
    first, last = order.examples[0], order.examples[-1]
    try:
        program = BundleProgram(order.function, order.common, first, order.flat)
        if not program.fits(last):  # a rule reads the length
            program = BundleProgram(order.function, order.common, last, order.flat)
    except Exception as error:
        is_known = isinstance(error, ImpureError | UnknownInProgramError)
        if is_known or line_of_rule(error):
            return reason_of(error)
        raise CompilationError(order.name) from error
    return program


def _options_for(order: Order) -> dict[str, Any]:
    """Return the options that suit the leaves of an order."""
    options: dict[str, Any] = {}
    if not order.large:
        # This is an option because the key of the compiler's cache does not include the lengths of the examples.
        options["cpp.threads"] = 1
    if order.function.signature.layout.codes:
        # Decode slots again after the scales are known, rather than write their values to memory in between.
        options["realize_reads_threshold"] = READS
    return options


def _largest_first(pair: tuple[Member, Leaf]) -> int:
    return -entries_of(pair[0].param)


def _window(member: Member, leaf: Leaf, row: int) -> int | None:
    """Return the number of rows in each window of a coded leaf; None if one call processes the whole leaf.

    The last window is about as long as the others: programs may not fit one that is much shorter.
    """
    most = window_of(local(member.param).device, row)
    rows = entries_of(member.param) // row
    if rows <= most or is_positional(leaf) or not can_be_split(member, leaf):
        return None
    windows = -(-rows // most)
    return -(-rows // windows)


def _can_be_padded(member: Member, leaf: Leaf) -> bool:
    """Whether leaves that are not flat aliases can share a bundle: vectors whose slots have the same length."""
    is_coded = row_of(member) is not None
    return len(leaf.shape) <= 1 and not is_coded and slots_are_shaped_as(member)


def _traits_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return dtype, device and which sizes are 1; a program for one tensor accepts others with the same traits."""
    return tensor.dtype, tensor.device, tuple(size == 1 for size in tensor.shape)


def _examples(tensors: list[Tensor], kind: LeafKind, row: int | None) -> list[Tensor]:
    """Return arguments of leaves, with lengths that let the compiler decide whether threads are worthwhile.

    Args:
        tensors: The arguments of a bundle.
        kind: The kind of its leaves.
        row: For coded leaves, the number of entries per row.
    """
    if not kind.flat:
        return tensors
    per_leaf = len(tensors) // kind.width
    is_large, *_ = kind.written
    # As many entries, not rows: blocks may be long, and the examples of eight leaves occupy memory.
    length = max(4 * LARGE // (row or 1), 64) if is_large else 64
    examples: list[Tensor] = []
    for start in range(0, len(tensors), per_leaf):
        for tensor in tensors[start : start + per_leaf]:
            examples.append(resized(tensor, length + start // per_leaf))
    return examples
