"""The engine that compiles: it makes bundles of a fixed number of leaves, and finds or compiles their programs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._exact import exact
from gradtx._execution import Leaf
from gradtx._owners import has_regions
from gradtx._sharding import is_sharded
from gradtx.optim._member import Member
from gradtx.optim._request import StepRequest
from gradtx.optim._scaling import Count, next_number, on_device
from gradtx.optim.engine.alias import lengths_like
from gradtx.optim.engine.base import Engine, Pairs, UnsuitableError, slots_are_shaped_as
from gradtx.optim.engine.bundle import Bundle, Prepared
from gradtx.optim.engine.compiler import Backend, Compiler
from gradtx.optim.engine.inductor import compile_with_inductor
from gradtx.optim.engine.plan import Plan
from gradtx.optim.engine.signature import LeafKind, Signature
from gradtx.optim.engine.trace import BundleFunction, BundleProgram

logger = logging.getLogger("gradtx")

WIDTH = 8  # leaves in a bundle of flat ones: more of them compile longer than they save
LARGE = 2**15  # entries from which a flat leaf is worth more than one thread, as for torch's own kernels
PATIENCE = 3.0  # seconds of compiling after which a line is logged
COMPILING = threading.RLock()  # torch's tracer patches global names while it works


class CompilationError(UnsuitableError):
    """A chain can't be traced or compiled; the cause says why."""


class CompiledEngine(Engine):
    """Runs steps through compiled programs, which it keeps.

    Args:
        options: Options of the backend.
        backend: The way of running programs.
    """

    def __init__(self, options: Mapping[str, Any], backend: Backend = compile_with_inductor):
        super().__init__()
        self._options = dict(options)
        self._backend = backend
        self._programs: dict[Any, list[BundleProgram]] = {}
        self._shared_functions: dict[str, Any] = {}
        self._numbers: dict[tuple[int, torch.device], tuple[list[Any], list[Tensor]]] = {}
        self._flags: dict[tuple[torch.device, bool], Tensor] = {}
        self._reported: set[str] = set()  # the stages of which was said that they are not compiled

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledEngine, (self._options, self._backend)  # programs are compiled again where they are needed

    @property
    def programs(self) -> list[BundleProgram]:
        """All compiled programs."""
        programs: list[BundleProgram] = []
        for alike in self._programs.values():
            programs.extend(alike)
        return programs

    # The arguments of a step.

    def _begin(self, plan: Plan, request: StepRequest) -> None:
        """Give each bundle its arguments for this step."""
        first: dict[Any, list[Tensor]] = {}
        prepared: Prepared = {}
        for bundle in plan.bundles:
            member = bundle.members[0]
            key = member.count, bundle.device
            if key not in first:
                first[key] = _step_arguments(member.count, bundle.device, request)
            common = [*first[key], *self._group_arguments(member.group, bundle.signature, bundle.device, request)]
            bundle.begin(request.run, common, request.trees, prepared)

    def _group_arguments(
        self,
        group: int,
        signature: Signature,
        device: torch.device,
        request: StepRequest,
    ) -> list[Tensor]:
        """A group's numbers, shared values and extras as 0-d tensors."""
        arguments = [*self._number_arguments(group, device, request)]
        for (path, name), dtype in signature.shared.items():
            arguments.append(request.run.scalars(path)[name].to(device, dtype))
        for name in signature.scalars:
            arguments.append(request.scalars[name].to(device))
        return arguments

    def _number_arguments(
        self,
        group: int,
        device: torch.device,
        request: StepRequest,
    ) -> list[Tensor]:
        """A group's numbers as tensors, the same ones as long as no number changes."""
        numbers = request.numbers[group]
        has_tensors = any(isinstance(value, Tensor) for value in numbers)
        if not has_tensors and (group, device) in self._numbers:
            before, tensors = self._numbers[group, device]
            if before == numbers:
                return tensors
        tensors = [exact(value, device) for value in numbers]
        self._numbers[group, device] = list(numbers), tensors
        return tensors

    def _flag(self, device: torch.device, real: bool) -> Tensor:
        """Whether a leaf is real, the same tensor for all leaves."""
        if (device, real) not in self._flags:
            self._flags[device, real] = torch.tensor(real, device=device)
        return self._flags[device, real]

    # Planning.

    def _consequence(self) -> str:
        return "compile=True has no effect, steps run eagerly"

    def _bundled(self, kind: LeafKind, pairs: Pairs, request: StepRequest) -> list[Any]:
        pairs.sort(key=_largest_first)  # compilers look at the first sizes they see
        bundles: list[Bundle] = []
        for start in range(0, len(pairs), kind.width):
            members = [member for member, _ in pairs[start : start + kind.width]]
            bundle = self._bundle(members, pairs[start][1], kind, request)
            if bundle is not None:
                bundles.append(bundle)
        return bundles

    def _width(self, member: Member, flat: bool) -> int:
        return WIDTH if flat or _can_be_padded(member) else 1

    def _held(self, tensors: list[Tensor], flat: bool) -> tuple[Any, ...] | None:
        if tensors[0].numel() <= 1:
            return None  # for sizes 0 and 1 compilers make other programs
        is_large = flat and tensors[0].numel() >= LARGE
        return is_large, *map(_traits_of_held, tensors)

    def _takes(self, leaf: Leaf) -> bool:
        if has_regions(leaf.program):
            return bool(self._refuse(leaf, "owners compute a link, between two programs over lists"))
        for operation in leaf.program:
            if not operation.compiles:
                stage = ".".join(operation.path)
                if stage not in self._reported:
                    self._reported.add(stage)
                    logger.warning("%s is not compiled: leaves that pass it step eagerly", stage)
                return False
        return True

    def _bundle(
        self,
        members: list[Member],
        leaf: Leaf,
        kind: LeafKind,
        request: StepRequest,
    ) -> Bundle | None:
        """A bundle with its program; None if its leaves must step eagerly."""
        first = members[0]
        absent = tuple(name for name, value in leaf.extras.items() if value is None)
        signature = Signature.of(first, absent, kind, request)
        bundle = Bundle(members, signature, kind.flat, leaf.name)
        bundle.create_arguments(self._flag, request.trees)
        tensors = bundle.arguments(request.trees)
        structure = request.structures[first.group]
        programs = self._programs.setdefault((structure, kind, *signature.key()), [])
        for program in programs:
            if program.fits(tensors):
                bundle.compile_for(program)
                return bundle
        common = _step_arguments(first.count, bundle.device, request)
        common += self._group_arguments(first.group, signature, bundle.device, request)
        function = BundleFunction(signature, request.views[first.group].chain_of(structure))
        examples = [tensors] if programs else [_examples(tensors, kind), tensors]
        program = self._compiled(function, common, examples, first.param, leaf.name)
        if program is None:
            return None
        programs.append(program)
        bundle.compile_for(program)
        return bundle

    def _compiled(
        self,
        function: BundleFunction,
        common: list[Tensor],
        examples: list[list[Tensor]],
        param: Tensor,
        name: str,
    ) -> BundleProgram | None:
        """A new program, traced with the first of the examples whose sizes lead to one that takes the last.

        None if it has sums over a sharded leaf: a sum over this process's shard is not the sum over all.

        Raises:
            CompilationError: the chain can't be traced or compiled.
        """
        start = time.monotonic()
        # An option, since the compiler's cache does not tell programs apart by the lengths of examples.
        threads = {} if param.numel() >= LARGE else {"cpp.threads": 1}
        compiler = Compiler(self._backend, {**threads, **self._options}, self._shared_functions)
        try:
            with COMPILING:
                program = BundleProgram(function, common, examples[0])
                if not program.fits(examples[-1]):  # a rule asks for the length
                    program = BundleProgram(function, common, examples[-1])
                if len(program.passes) > 1 and is_sharded(param):
                    return None
                program.compile(compiler)
        except Exception as error:  # anything may happen in a user's rule and in torch's compiler
            raise CompilationError(name) from error
        if time.monotonic() - start > PATIENCE:
            logger.info("compiled a program for %s in %.1f s", name, time.monotonic() - start)
        return program


def _largest_first(pair: tuple[Member, Leaf]) -> int:
    return -pair[0].param.numel()


def _can_be_padded(member: Member) -> bool:
    """Whether leaves that are no flat aliases fit into one bundle: vectors, with slots of their length."""
    return member.param.ndim <= 1 and slots_are_shaped_as(member)


def _traits_of_held(tensor: Tensor) -> tuple[Any, ...]:
    """Dtype, device and which sizes are 1: a program for one tensor takes others that agree."""
    return tensor.dtype, tensor.device, tuple(size == 1 for size in tensor.shape)


def _examples(tensors: list[Tensor], kind: LeafKind) -> list[Tensor]:
    """Arguments of leaves, with lengths that tell the compiler whether threads are worth it."""
    if not kind.flat:
        return tensors
    per_leaf = len(tensors) // kind.width
    is_large, *_ = kind.held
    length = 4 * LARGE if is_large else 64
    examples: list[Tensor] = []
    for start in range(0, len(tensors), per_leaf):
        of_leaf = tensors[start : start + per_leaf]
        lengths = lengths_like(of_leaf, of_leaf[1], length + start // per_leaf)
        for tensor, entries in zip(of_leaf, lengths, strict=True):
            examples.append(tensor if tensor.ndim == 0 else tensor.new_empty(entries))
    return examples


def _step_arguments(count: int | Count, device: torch.device, request: StepRequest) -> list[Tensor]:
    """The number of this step for leaves with this count, the schedules' count, the numbers of a scaler."""
    arguments = [next_number(count, device), on_device(request.count, device)]
    if request.scaling is not None:
        arguments.extend(request.scaling.on(device))
    return arguments
