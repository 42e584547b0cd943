"""Programs of the compiled engine: the links of a chain, traced for a bundle of leaves and compiled to work in place.

Tracing runs the core itself on stand-ins with symbolic sizes; there is no second version of any rule. A sum over leaves
ends a phase. The next phase starts again from the beginning with the total as an argument, so that no intermediate
values have to be stored. All phases but the last compute only their sums.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from gradtx.base.errors import Path
from gradtx.distributed.owners import regions_of
from gradtx.execution.context import Clock
from gradtx.execution.execute import Block, Leaf, Operation, execute
from gradtx.execution.phases import (
    AwaitedSumError,
    Names,
    Phase,
    PhaseResult,
    RunPhase,
    phases_of,
)
from gradtx.execution.runs import LateTerm, Run, memory_of
from gradtx.optim.device_counts import Scaling, unscaling
from gradtx.optim.engine import torch_names
from gradtx.optim.engine.hoist import (
    REPLACED,
    hoist,
    is_number,
    module_of,
    multiply,
    narrow,
)
from gradtx.optim.engine.numbers import StepNumbers
from gradtx.optim.engine.replicate import replicated
from gradtx.optim.engine.signature import Signature
from gradtx.optim.engine.views import resized
from gradtx.programs.record import (
    UnrecordableError,
    as_written,
    check_traced,
    owned,
    record_as_written,
)
from gradtx.programs.terms import parts_add_up, reads_sizes, terms_of
from gradtx.transform import GradientTransformation

# Creates a callable from a traced graph and example arguments; see `Backend`.
Compile: TypeAlias = Callable[[Any, Sequence[Any]], Callable[..., Any]]
MakeChain: TypeAlias = Callable[[list[Tensor]], GradientTransformation]


class EqualSlot(NamedTuple):
    """The name of a result that is the new value of a slot in all leaves."""

    key: str


class TracedRun(Run):
    """A run over the arguments of a program.

    Attributes:
        old: The old shared values, by stage.
        equal: The old values of the slots that are equal in all leaves.
        totals: The totals of earlier phases, in order.
        clock: The clock outside of all combinators.
        real: Whether each leaf is real, a 0-d bool; padding adds nothing to sums. Empty if there is no padding.
    """

    has_names = False

    def __init__(self, signature: Signature, device: torch.device):
        super().__init__()
        self.device = device
        self.known_extras = signature.known_extras
        self.leaf_extras = signature.by_leaf
        self.old: dict[Path, dict[str, Tensor]] = {}
        self.equal: dict[str, Tensor] = {}
        self.totals: list[dict[str, Tensor]] = []
        self.real: dict[str, Tensor] = {}
        self.clock: Clock | None = None
        self._choices = signature.choices

    def scalars(self, path: Path) -> dict[str, Tensor]:
        return self.old.get(path, {})

    def shared(
        self, path: Path, start: Mapping[str, Callable[[], Tensor]]
    ) -> dict[str, Tensor]:
        """Return shared values; a branch that these leaves do not take gets initial values, which nothing uses."""
        if path in self.old:
            return super().shared(path, dict(start))
        return {name: make() for name, make in start.items()}

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        keys = leaf.layout.slots.get(path, {})
        return {slot: leaf.state[key] for slot, key in keys.items()}

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        return self._choices[path]

    def copied(self, leaf: Leaf, value: Tensor) -> Tensor:
        """Return the same values in other memory; compilers remove a plain clone, and with it the order of writes."""
        if leaf.name not in self.real:
            return value.clone()
        return torch.where(self.real[leaf.name], value, value.new_zeros(()))

    def recorded_owner(
        self, operation: Any, leaf: Leaf, payload: Mapping[str, Tensor]
    ) -> Tensor | None:
        if operation.keeps_slots and self._is_decided(leaf):
            raise UnrecordableError(
                "a combinator decides whether slots stored by an owner change"
            )
        return owned(payload, operation)

    def as_written(self, operation: Any, leaf: Leaf) -> AbstractContextManager[None]:
        is_decided = operation.keeps_slots and self._is_decided(leaf)
        if is_decided or not operation.compiles:
            # No program runs a sharded leaf, which must not round differently before or after.
            record_as_written()
        return as_written()

    def _is_decided(self, leaf: Leaf) -> bool:
        """Whether a combinator decides if slots change, or when."""
        return (
            leaf.active is not None
            or leaf.restarts is not False
            or leaf.clock is not self.clock
        )

    def fusion_barrier(self, update: Tensor) -> Tensor:
        return torch.ops.aten.alias.default(update)

    def combined(self, operation: Operation, waiting: list[tuple[Leaf, Any]]) -> Any:
        if self.totals:
            return self.totals.pop(0)
        if self.real:
            waiting = [(leaf, self._real_terms(leaf, terms)) for leaf, terms in waiting]
        raise AwaitedSumError(operation, operation.combine(waiting))

    def _real_terms(self, leaf: Leaf, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms of a leaf, or zeros if it is padding."""
        real = self.real[leaf.name]
        return {name: torch.where(real, term, 0.0) for name, term in terms.items()}


class BundleFunction:
    """The step of leaves as a function of flat arguments, in the order of `Signature`, for any number of leaves.

    Args:
        signature: The arguments.
        make_chain: Builds the transformation from the hyperparameters.
    """

    def __init__(self, signature: Signature, make_chain: MakeChain):
        self.signature = signature
        self._make_chain = make_chain

    def __call__(self, arguments: list[Tensor], known: Names) -> PhaseResult:
        """Run up to the first sum whose total is not an argument; `known` contains the names of the totals that are."""
        arguments_left = deque(arguments)
        run = TracedRun(self.signature, arguments[-1].device)
        leaves = self._leaves(run, arguments_left, known)
        memory_of_arguments = self._memory_of(leaves)
        try:
            execute(leaves)
        except AwaitedSumError as awaited:
            return awaited.result()
        late_sums = run.late_sums
        run.late_sums = {}  # the step completes these sums
        run.end()
        outputs = self._outputs(run, leaves, late_sums)
        write = functools.partial(self._write, run, leaves, memory_of_arguments)
        return PhaseResult(list(outputs.values()), tuple(outputs), None, write)

    def _memory_of(self, leaves: list[Leaf]) -> set[Any]:
        """Return the memory of the leaves' arguments, which results must not share when they are written."""
        memory: set[Any] = set()
        for leaf in leaves:
            extras = [leaf.extras[name] for name in self.signature.by_leaf]
            for tensor in (*leaf.inputs, *leaf.state.values(), *extras):
                memory.add(memory_of(tensor))
        return memory

    def _leaves(
        self, run: TracedRun, arguments_left: deque[Tensor], known: Names
    ) -> list[Leaf]:
        """Create leaves from the arguments, with their programs."""
        signature, take = self.signature, arguments_left.popleft
        step, count = take(), take()
        unscale = None
        if signature.scaled:
            unscale = unscaling(run, Scaling(inverse=take(), proceed=take()))
        chain = self._make_chain([take() for _ in range(signature.numbers)])
        for path, name in signature.shared:
            run.old.setdefault(path, {})[name] = take()
        run.equal = {key: take() for key in signature.equal}
        scalars: dict[str, Any] = {name: take() for name in signature.scalars}
        scalars.update(dict.fromkeys(signature.absent))
        for names in known:
            run.totals.append({name: take() for name in names})
        block = Block.of(chain, run, count, unscale)
        run.clock = Clock(step)
        leaves: list[Leaf] = []
        while arguments_left:
            leaf = self._leaf(run, str(len(leaves)), scalars, take)
            leaf.program = block.for_leaf(leaf)
            if signature.has_owners:
                leaf.program = regions_of(leaf.program)
            leaves.append(leaf)
        return leaves

    def _leaf(
        self,
        run: TracedRun,
        name: str,
        scalars: dict[str, Any],
        take: Callable[[], Tensor],
    ) -> Leaf:
        """Create a leaf from its arguments, the next ones."""
        signature = self.signature
        assert run.clock is not None
        if signature.padded:
            run.real[name] = take()
        param = take()
        state = {key: take() for key in signature.slots_by_leaf}
        leaf = Leaf(run, name, take(), param, dict(scalars), run.clock)
        leaf.layout = signature.layout
        leaf.state = {**state, **run.equal}
        for extra in signature.by_leaf:
            leaf.extras[extra] = take().to(leaf.compute_dtype)
        if signature.placed:
            leaf.first_entry = take()
        return leaf

    def _outputs(
        self,
        run: TracedRun,
        leaves: list[Leaf],
        late_sums: dict[tuple[Path, str], LateTerm],
    ) -> dict[Any, Tensor]:
        """Return new shared values and slots that are equal in all leaves, and the leaves' terms of late sums."""
        outputs: dict[Any, Tensor] = {}
        for path, values in run.new_shared.items():
            for name, value in values.items():
                if (path, name) in self.signature.shared:
                    outputs[path, name] = value
        for key, value in _slots_by_key(leaves[0]):
            if key in self.signature.equal:
                outputs[EqualSlot(key)] = value
        for name, place in late_sums.items():
            for leaf, term in run.late_terms[name].items():
                outputs[place._replace(leaf=leaf)] = term
        # In memory that no argument shares.
        return {name: value.clone() for name, value in outputs.items()}

    def _write(self, run: TracedRun, leaves: list[Leaf], taken: set[Any]) -> None:
        """Write new slots and parameters in place, after all of them have been computed.

        Values in the memory of the arguments, `taken`, are copied first, or writing could change them.
        """

        def outside(leaf: Leaf, value: Tensor) -> Tensor:
            return run.copied(leaf, value) if memory_of(value) in taken else value

        new_slots: list[list[tuple[Tensor, Tensor]]] = []
        for leaf in leaves:
            pairs: list[tuple[Tensor, Tensor]] = []
            for key, value in _slots_by_key(leaf):
                if key not in self.signature.equal:
                    pairs.append((leaf.state[key], outside(leaf, value)))
            new_slots.append(pairs)
        updates = [outside(leaf, cast("Tensor", leaf.result())) for leaf in leaves]
        for leaf, pairs, update in zip(leaves, new_slots, updates, strict=True):
            for old, value in pairs:
                old.copy_(value)
            param = leaf.inputs[1]
            param.copy_(param + update)


def _slots_by_key(leaf: Leaf) -> Iterator[tuple[str, Tensor]]:
    """Yield the new slots of a leaf with their keys in its state."""
    for path, slots in leaf.new.items():
        keys = leaf.layout.slots[path]
        for slot, value in slots.items():
            yield keys[slot], value


class TracedPhase(Phase):
    """A phase of a program, which is traced once for all sizes and compiled by a back end.

    Args:
        run: The function to trace.
        common: Examples of the arguments that all leaves share.
        leaves: Examples of the arguments of leaves, which follow one another.
        width: The number of leaves.
        flat: Whether operations are elementwise, so that only the lengths of leaves differ: their first dimension.

    Attributes:
        reads_only_memory: Whether the shapes of a leaf's tensors after its parameter do not matter, only their memory.
        runs_in_parts: Whether it may process a leaf in parts; see `gradtx.programs.terms`.
    """

    reads_only_memory = False

    def __init__(
        self,
        run: RunPhase,
        common: list[Tensor],
        leaves: list[Tensor],
        width: int,
        flat: bool,
    ):
        self._tracer = torch_names.SymbolicTracer()
        self._flat = flat
        self._common: list[Tensor] = []
        for tensor in common:
            self._common.append(self._tracer.fixed(_distinct(tensor)))
        per_leaf = len(leaves) // width
        self._leaves: list[list[Tensor]] = []
        for start in range(0, len(leaves), per_leaf):
            self._leaves.append(self._stand_ins(leaves[start : start + per_leaf]))
        # The positions of 0-d arguments among the leaves' arguments.
        self._number_slots: list[int] = []
        self._of_bundle: Any = None
        self._kernel: Any = None
        # Whether sizes satisfy the compiler's assumptions; None before it has run.
        self._suits_kernel: Callable[[Sequence[Tensor]], bool] | None = None
        self._trace(run, self._leaves[0])
        # A program with sums also adds the terms of its leaves. Rules may depend on lengths, which may differ.
        adds_terms = self.operation is not None and width > 1
        if adds_terms or not self.fits(leaves):
            self._trace(run, _concatenated(self._leaves))

    def _stand_ins(self, leaf: list[Tensor]) -> list[Tensor]:
        """Create stand-ins; equally long tensors of a flat leaf share one size: compilation takes a quarter as long."""
        stand_ins: list[Tensor] = []
        by_length: dict[int, Tensor] = {}
        for i, tensor in enumerate(leaf):
            if not tensor.ndim:
                stand_in = self._tracer.fixed(_distinct(tensor))
            elif self._flat and len(tensor) in by_length:
                stand_in = self._tracer.sized_as(by_length[len(tensor)], tensor)
            else:
                resizable = self._tracer.resizable
                stand_in = resizable(tensor, f"leaf{i}", only_length=self._flat)
                by_length[len(tensor)] = stand_in
            stand_ins.append(stand_in)
        return stand_ins

    def _trace(self, run: RunPhase, leaves: list[Tensor]) -> None:
        """Trace the step of one leaf or of all, and note the assumptions about their sizes."""

        def traced(*arguments: Tensor) -> list[Tensor]:
            with torch_names.observing(check_traced):
                result = run(list(arguments))
            result.write()
            self.note(result)
            return result.outputs

        self._graph: Any = self._tracer.graph(
            traced, [*self._common, *leaves], REPLACED
        )
        self._traced = len(leaves)
        self.runs_in_parts = self._may_run_in_parts()
        self._suits_trace = self._tracer.assumptions(leaves)

    def _may_run_in_parts(self) -> bool:
        graph = self._graph.graph
        if reads_sizes(graph):
            return False
        arguments = graph.find_nodes(op="placeholder")[len(self._common) :]
        (outputs,) = graph.output_node().args
        terms = terms_of(self, outputs)
        return parts_add_up(graph, arguments, terms, with_constants=False)

    def fits(self, leaves: list[Tensor]) -> bool:
        """Whether the sizes of these tensors satisfy the assumptions made while tracing."""
        if self._flat:
            leaves = _with_two_entries_for_one(leaves)
        for start in range(0, len(leaves), self._traced):
            if not self._suits_trace(leaves[start : start + self._traced]):
                return False
        return self._suits_kernel is None or self._suits_kernel(leaves)

    def _repeat(self) -> None:
        """Repeat the graph for all leaves if it is that of one."""
        leaves = _concatenated(self._leaves)
        if self._traced == len(leaves):
            return
        are_by_leaf = [isinstance(name, LateTerm) for name in self.names]
        self._graph = replicated(self._graph, self._leaves, are_by_leaf)
        names = list(self.names)
        late_terms = [name for name in names if isinstance(name, LateTerm)]
        for i in range(1, len(self._leaves)):
            for name in late_terms:
                names.append(name._replace(leaf=str(i)))
        self.names = tuple(names)

    def compile(self, compile: Compile) -> None:
        """Compile the graph as three functions.

        The first computes the scalars that follow from those of the step, such as a bias correction, once per step and
        without a compiler. The second computes scalars that also depend on 0-d slots, such as a product over steps,
        once per bundle. The kernel computes all entries.
        """
        self._graph.graph.eliminate_dead_code()
        multiply(self._graph)
        narrow(self._graph)
        self._repeat()
        graph = self._graph.graph
        arguments = graph.find_nodes(op="placeholder")
        count = len(self._common)
        common = arguments[:count]
        leaves = arguments[count:]
        of_step, step_arguments = hoist(self._graph, common, leaves[0])
        # The kernel receives only those scalars of the step that it still uses.
        copy_of = dict(zip(common, of_step.numbers, strict=True))
        used = [node for node in common if node.users]
        copies = [copy_of[node] for node in used]
        self._numbers = StepNumbers(of_step, copies, self._graph)
        for node in set(common).difference(used):
            graph.erase_node(node)
        self._compile_kernel(compile, [*used, *step_arguments], leaves)
        del self._graph

    def _compile_kernel(
        self, compile: Compile, prepared: list[Any], leaves: list[Any]
    ) -> None:
        """Compile the functions that depend on leaves; `prepared` contains the nodes of the leading arguments."""
        number_slots: list[Any] = []
        for i, node in enumerate(leaves):
            if is_number(node):
                self._number_slots.append(i)
                number_slots.append(node)
        arguments = [*prepared, *number_slots]
        of_bundle, bundle_arguments = hoist(self._graph, arguments, leaves[0])
        leaves_of_all = _concatenated(self._leaves)
        with self._tracer.compiling():
            if bundle_arguments:
                module = module_of(of_bundle, self._graph)
                self._of_bundle = compile(module, _examples(arguments))
            examples = _examples([*prepared, *bundle_arguments])
            self._kernel = compile(self._graph, [*examples, *leaves_of_all])
        self._suits_kernel = self._tracer.assumptions(leaves_of_all)
        self.reads_only_memory = torch_names.reads_only_memory(
            self._kernel, self._names_of_params(leaves)
        )

    def _names_of_params(self, leaves: list[Any]) -> set[str]:
        """Return the names of the arguments from which kernels read sizes: the first vector of each leaf."""
        names: set[str] = set()
        per_leaf = len(leaves) // len(self._leaves)
        for start in range(0, len(leaves), per_leaf):
            of_leaf = leaves[start : start + per_leaf]
            vectors = [node.name for node in of_leaf if not is_number(node)]
            names.update(vectors[:1])
        return names

    def prepare(
        self, numbers: Sequence[Any], device: torch.device, on_host: bool
    ) -> list[Tensor]:
        """Compute `prepared` of `call` from the scalars of a step; `on_host` is whether the host may read them."""
        return self._numbers.compute(numbers, device, on_host)

    def call(self, prepared: list[Tensor], leaves: list[Tensor]) -> Sequence[Tensor]:
        """Run for a bundle; `prepared` is a result of `prepare`."""
        if self._of_bundle is None:
            return self._kernel(*prepared, *leaves)
        number_slots = [leaves[i] for i in self._number_slots]
        numbers_of_bundle = self._of_bundle(*prepared, *number_slots)
        return self._kernel(*prepared, *numbers_of_bundle, *leaves)


def _examples(nodes: list[Any]) -> list[Any]:
    """Return the stand-ins that nodes were traced with."""
    return [node.meta["val"] for node in nodes]


def _with_two_entries_for_one(leaves: list[Tensor]) -> list[Tensor]:
    """Replace tensors of length 1: every variable size of a flat leaf is a length, and its loop suits 1 as well."""
    replaced: list[Tensor] = []
    for tensor in leaves:
        replaced.append(resized(tensor, 2) if tensor.shape[:1] == (1,) else tensor)
    return replaced


def _concatenated(lists: list[list[Tensor]]) -> list[Tensor]:
    return list(itertools.chain.from_iterable(lists))


def _distinct(tensor: Tensor) -> Tensor:
    """Return a 0-d tensor in other memory: stand-ins of the same tensor would be traced as one argument."""
    return tensor.clone() if tensor.ndim == 0 else tensor


class BundleProgram:
    """The phases of one signature, for one pattern of sizes; traced at construction, compiled by `compile`.

    Args:
        function: The step of a bundle.
        common, leaves, flat: As in `TracedPhase`.
    """

    def __init__(
        self,
        function: BundleFunction,
        common: list[Tensor],
        leaves: list[Tensor],
        flat: bool,
    ):
        width = function.signature.width
        make_phase = functools.partial(TracedPhase, width=width, flat=flat)
        self.phases = phases_of(function, common, leaves, make_phase)
        self._known_to_fit: dict[tuple[torch.Size, ...], bool] = {}

    def fits(self, leaves: list[Tensor]) -> bool:
        """Whether the program accepts leaves of these sizes."""
        sizes = tuple(tensor.shape for tensor in leaves)
        if sizes not in self._known_to_fit:
            self._known_to_fit[sizes] = all(each.fits(leaves) for each in self.phases)
        return self._known_to_fit[sizes]

    @property
    def runs_in_parts(self) -> bool:
        """Whether the program may process a leaf in parts."""
        return all(each.runs_in_parts for each in self.phases)

    def compile(self, compile: Compile) -> None:
        for each in self.phases:
            each.compile(compile)
        self._known_to_fit.clear()  # the compiler may have assumed more
