"""The engine that compiles: build bundles of leaves, and look up or compile their programs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import local
from gradtx.base.messages import line_of_user
from gradtx.execution.context import UnknownInProgramError
from gradtx.execution.execute import Leaf
from gradtx.execution.owners import has_regions
from gradtx.optim.engine import kernels
from gradtx.optim.engine.base import (
    READS_SHAPE,
    Engine,
    Plan,
    UnsuitableError,
    slots_are_shaped_as,
)
from gradtx.optim.engine.compiled_bundle import Bundle, Prepared
from gradtx.optim.engine.family import Family, LeafKind, Pairs
from gradtx.optim.engine.inductor import (
    Backend,
    compile_with_inductor,
    compiler_options,
)
from gradtx.optim.engine.torch_compiler import missing_name
from gradtx.optim.engine.trace import BundleProgram
from gradtx.optim.engine.views import (
    OddTensorError,
    RefusedError,
    can_be_split,
    entries_of,
    is_positional,
    resized,
    row_of,
    window_of,
)
from gradtx.optim.run import Member, Trees
from gradtx.optim.step import Step
from gradtx.programs.cache import SharedPrograms
from gradtx.programs.record import UnrecordableError, reason_of

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


def engines_for(compile: Any) -> list[Engine]:
    """Return the engines that `compile=` asks for, in the order in which they take parameters.

    They are one of the user's own; inductor with the user's options; or kernels on GPUs and inductor elsewhere.

    Raises:
        ValueError: If the engine belongs to another optimizer, whose programs it would mix with the new one's.
        TypeError, ValueError: As in `compiler_options`.
    """
    if isinstance(compile, Engine):
        if compile.is_taken:
            raise ValueError(
                f"compile: this {type(compile).__name__} belongs to another optimizer; create one for each"
            )
        return [compile]
    engines: list[Engine] = [CompiledEngine(compiler_options(compile))]
    if compile is True:
        engines.append(kernels.KernelEngine())
    return engines


_SHARED = SharedPrograms()


@dataclass
class Similar:
    """The programs of one structure, one for each pattern of sizes.

    Attributes:
        compiled: The programs.
        reason: Why there are none, if a rule cannot be traced.
        reads_shape: Whether rules read the shape of their leaf, for each shape of a leaf and its local part.
    """

    compiled: list[BundleProgram] = field(default_factory=list[BundleProgram])
    reason: str | None = None
    reads_shape: dict[Any, bool] = field(default_factory=dict[Any, bool])

    def get(self, leaves: list[Tensor]) -> BundleProgram | str | None:
        """Return the program that accepts leaves of these sizes, if there is one."""
        for program in self.compiled:
            if program.fits(leaves):
                return program
        return self.reason


class CompiledEngine(Engine):
    """Run steps through compiled programs, shared by engines with the same options and similar chains.

    Args:
        options: Options of the back end.
        backend: The function that compiles graphs.
    """

    way = "compiled"
    may_be_intercepted = True
    consequence = "compile=True has no effect, steps run eagerly"

    def __init__(
        self, options: Mapping[str, Any], backend: Backend = compile_with_inductor
    ):
        super().__init__()
        self._options = dict(options)
        self._backend = backend
        self._programs: dict[Any, Similar] | None = None
        self._logged: set[str] = set()  # stages that have been logged

    def __reduce__(self) -> tuple[Any, ...]:
        # Programs are compiled again when they are needed.
        return type(self), (self._options, self._backend)

    @property
    def programs(self) -> list[BundleProgram]:
        """All compiled programs."""
        programs = []
        for similar in (self._programs or {}).values():
            programs.extend(similar.compiled)
        return programs

    # The arguments of a step.

    def _begin(self, plan: Plan, step: Step) -> None:
        super()._begin(plan, step)
        prepared: Prepared = {}
        for bundle in plan.bundles:
            bundle.read_from(step.trees, prepared, plan.gradients_are_as_planned)

    # Planning.

    def _bundled(self, family: Family) -> list[Any]:
        # Compilers specialize on the first sizes they see.
        pairs = sorted(family.pairs, key=lambda pair: -entries_of(pair[0].param))
        if family.kind.flat:
            pairs = self._independent_of_shape(family.some(pairs))
        bundles: list[Bundle] = []
        for start in range(0, len(pairs), family.kind.width):
            row = family.some(pairs[start : start + family.kind.width])
            bundle = self._bundle(row)
            if isinstance(bundle, str):
                self._refuse(row.pairs, bundle)
            elif bundles and bundles[-1].may_absorb(bundle, BUNDLED):
                bundles[-1].absorb(bundle)
            else:
                bundles.append(bundle)
        return bundles

    def _independent_of_shape(self, family: Family) -> Pairs:
        """Refuse the leaves whose rules read their shape, and return the others."""
        reads_shape = self._programs_of(family).reads_shape
        kept = []
        for member, leaf in family.pairs:
            shapes = leaf.shape, local(member.param).shape
            if shapes not in reads_shape:
                reads_shape[shapes] = family.reads_shape(member, leaf)
            if reads_shape[shapes]:
                self._refuse([(member, leaf)], READS_SHAPE)
            else:
                kept.append((member, leaf))
        return kept

    def _width(self, member: Member, leaf: Leaf, flat: bool) -> int:
        row = row_of(member) if flat else None
        if row is not None and _window(member, leaf, row) is not None:
            return 1
        return WIDTH if flat or _can_be_padded(member, leaf) else 1

    def _form_of_written(self, tensors: list[Tensor], flat: bool) -> tuple[Any, ...]:
        if tensors[0].numel() < (1 if flat else 2):
            # Compilers specialize on sizes 0 and 1, unless all operations are elementwise.
            raise OddTensorError
        if flat:
            forms = [(tensor.dtype, tensor.device, tensor.ndim) for tensor in tensors]
            return tensors[0].numel() >= LARGE, *forms
        return False, *map(_form_of, tensors)

    def runs_on(self, device: torch.device) -> bool:
        # Where kernels run, lists need fewer launches than inductor, which makes one per leaf.
        return bool(self._options) or not kernels.runs_kernels(device)

    def _check(self, leaf: Leaf, step: Step) -> None:
        # A 0-d slot cannot be distinguished from one shaped like the leaf.
        if leaf.key.ndim == 0:
            raise RefusedError("it has no dimensions")
        if is_positional(leaf) and not local(leaf.key).is_contiguous():
            raise RefusedError(
                "a link needs the positions of its entries, which a flat alias reorders"
            )
        if has_regions(leaf.operations):
            raise RefusedError(
                "a link is computed by owners, which requires list programs"
            )
        super()._check(leaf, step)

    def _report(self, stage: str) -> None:
        if stage not in self._logged:
            self._logged.add(stage)
            logger.warning(
                "%s is not compiled: leaves that pass through it step eagerly", stage
            )

    def _bundle(self, family: Family, splits: bool = True) -> Bundle | str:
        """Return a bundle with its program, or the reason why this engine does not run its leaves.

        `splits` is whether large coded leaves may be updated in windows.
        """
        trees = family.step.trees
        first, leaf = family.pairs[0]
        row = row_of(first) if family.kind.flat else None
        window = _window(first, leaf, row) if row is not None and splits else None
        bundle = Bundle(family, row, window)
        bundle.create_arguments(trees)
        tensors, *others = bundle.arguments(trees)
        programs = self._programs_of(family)
        program = programs.get(tensors)
        if program is None:
            with COMPILING:
                # Another thread may have compiled it while this one waited.
                program = programs.get(tensors)
                if program is None:
                    program = self._compiled(family, tensors, row, programs)
        if isinstance(program, str):
            return program
        if others and not self._runs_in_windows(program, bundle, trees):
            return self._bundle(family, splits=False)
        bundle.operations = program.phases
        return bundle

    def _runs_in_windows(
        self, program: BundleProgram, bundle: Bundle, trees: Trees
    ) -> bool:
        """Whether a program may process the windows of a bundle, whatever their length."""
        whole = bundle.whole_arguments(trees)
        *_, last = bundle.arguments(trees)
        last = list(map(torch.empty_like, last))  # a storage offset never fits
        return program.runs_in_parts and program.fits(last) and program.fits(whole)

    def _programs_of(self, family: Family) -> Similar:
        """Return the programs of this structure."""
        if self._programs is None:
            options = repr(sorted(self._options.items()))
            tx = family.step.groups[0].tx
            self._programs = _SHARED.of_chain(tx, self._backend, options)
        return self._programs.setdefault(family.key, Similar())

    def _compiled(
        self,
        family: Family,
        tensors: list[Tensor],
        row: int | None,
        programs: Similar,
    ) -> BundleProgram | str:
        """Compile a program for these arguments; or return the reason why there is none.

        Raises:
            UnsuitableError: If the chain cannot be traced or compiled; `__cause__` is the reason.
        """
        start = time.monotonic()
        missing = missing_name()
        if missing is not None:
            raise UnsuitableError(f"this version of torch lacks {missing}")
        name = family.pairs[0][1].name
        # Tracing with other lengths first may give a better program.
        examples = [] if programs.compiled else [_examples(tensors, family.kind, row)]
        try:
            program = _traced(family, [*examples, tensors])
        except Exception as error:
            is_known = isinstance(error, UnrecordableError | UnknownInProgramError)
            if not is_known and not line_of_user(error):
                raise UnsuitableError(name) from error
            programs.reason = reason_of(error)
            return programs.reason
        options = self._options_for(family)
        try:
            program.compile(
                lambda graph, examples: self._backend(graph, examples, options)
            )
        except Exception as error:
            raise UnsuitableError(name) from error
        programs.compiled.append(program)
        duration = time.monotonic() - start
        if duration > PATIENCE:
            logger.info("compiled a program for %s in %.1f s", name, duration)
        return program

    def _options_for(self, family: Family) -> dict[str, Any]:
        """Return the user's options, and those that suit the leaves."""
        options = {}
        if entries_of(family.pairs[0][0].param) < LARGE:
            # This is an option because the key of the compiler's cache does not include the lengths of the examples.
            options["cpp.threads"] = 1
        if family.signature.layout.codes:
            # Decode slots again after the scales are known, rather than write their values to memory in between.
            options["realize_reads_threshold"] = READS
        return {**options, **self._options}


def _traced(family: Family, examples: list[list[Tensor]]) -> BundleProgram:
    """Return a program traced with the first of the examples that leads to one that fits the last example."""
    device = local(family.pairs[0][0].param).device
    scalars = [tensor.to(device) for tensor in family.signature.shared_arguments()]
    *_, last = examples
    for leaves in examples:
        program = BundleProgram(family.function(), scalars, leaves, family.kind.flat)
        if leaves is last or program.fits(last):  # else a rule reads the length
            return program
    raise AssertionError("there are no examples")


def _window(member: Member, leaf: Leaf, row: int) -> int | None:
    """Return the number of rows in each window of a coded leaf; None if one call processes the whole leaf.

    The last window is about as long as the others: programs may not fit one that is much shorter.
    """
    most = window_of(local(member.param).device, row)
    rows = entries_of(member.param) // row
    if rows <= most or is_positional(leaf) or not can_be_split(leaf):
        return None
    windows = -(-rows // most)
    return -(-rows // windows)


def _can_be_padded(member: Member, leaf: Leaf) -> bool:
    """Whether leaves that are not flat aliases can share a bundle: vectors whose slots have the same length."""
    is_coded = row_of(member) is not None
    return len(leaf.shape) <= 1 and not is_coded and slots_are_shaped_as(leaf)


def _form_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return dtype, device and which sizes are 1; a program for one tensor accepts others of the same form."""
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
    examples = []
    for start in range(0, len(tensors), per_leaf):
        for tensor in tensors[start : start + per_leaf]:
            examples.append(resized(tensor, length + start // per_leaf))
    return examples
