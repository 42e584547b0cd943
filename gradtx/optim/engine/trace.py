"""Programs of the compiled engine: the links of a chain, traced for a bundle of leaves and compiled to work in place.

Tracing runs the rules themselves on stand-ins with symbolic sizes; there is no second version of any rule. The graph of
one leaf is repeated for all leaves of a bundle. A sum over leaves ends a phase. The next phase starts again from the
beginning with the total as an argument, so that no intermediate values have to be stored. All phases but the last
compute only their sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule

from gradtx.optim.engine import torch_compiler
from gradtx.optim.engine.inductor import REPLACED
from gradtx.optim.engine.views import resized
from gradtx.programs.bundle import numbers_for
from gradtx.programs.function import LeafFunction
from gradtx.programs.lower import lower
from gradtx.programs.phases import Phase, RunPhase, phases_of
from gradtx.programs.record import Recording, add_constant, check_traced
from gradtx.programs.scalars import Scalars
from gradtx.programs.terms import parts_add_up, reads_sizes
from gradtx.programs.write_inductor import write_graph

# Creates a callable from a traced graph and example arguments; see `Backend`.
Compile: TypeAlias = Callable[[Any, Sequence[Any]], Callable[..., Any]]


class TracedPhase(Phase):
    """A phase of a program, which is traced once for all sizes and compiled by a back end.

    Args:
        run: The function to trace.
        common: Examples of the arguments that all leaves share.
        leaves: Examples of the arguments of leaves, which follow one another.
        width: The number of leaves.
        flat: Whether operations are elementwise, so that only the lengths of leaves differ: their first dimension.

    Attributes:
        runs_in_parts: Whether it may process a leaf in parts; see `gradtx.programs.terms`.
    """

    def __init__(
        self,
        run: RunPhase,
        common: list[Tensor],
        leaves: list[Tensor],
        width: int,
        flat: bool,
    ):
        self._tracer = torch_compiler.SymbolicTracer()
        self._flat = flat
        self._dtypes = [tensor.dtype for tensor in common]
        self._common: list[Tensor] = []
        for tensor in common:
            self._common.append(self._tracer.fixed(_distinct(tensor)))
        per_leaf = len(leaves) // width
        self._leaves: list[Tensor] = []
        for start in range(0, len(leaves), per_leaf):
            self._leaves += self._stand_ins(leaves[start : start + per_leaf])
        self._kernel: Any = None
        # Whether sizes satisfy the compiler's assumptions; None before it has run.
        self._suits_kernel: Callable[[Sequence[Tensor]], bool] | None = None
        self._trace(run, self._leaves[:per_leaf])
        if not self.fits(leaves):  # a rule depends on lengths, which may differ
            self._trace(run, self._leaves)

    def _stand_ins(self, leaf: list[Tensor]) -> list[Tensor]:
        """Create stand-ins; equally long tensors of a flat leaf share one size: compilation takes a quarter as long."""
        stand_ins = []
        by_length: dict[int, Tensor] = {}
        for tensor in leaf:
            if not tensor.ndim:
                stand_in = self._tracer.fixed(_distinct(tensor))
            elif self._flat and len(tensor) in by_length:
                stand_in = self._tracer.sized_as(by_length[len(tensor)], tensor)
            else:
                stand_in = self._tracer.resizable(tensor, only_length=self._flat)
                by_length[len(tensor)] = stand_in
            stand_ins.append(stand_in)
        return stand_ins

    def _trace(self, run: RunPhase, leaves: list[Tensor]) -> None:
        """Trace the step of one leaf or of all, and note the assumptions about their sizes."""

        def traced(*arguments: Tensor) -> list[Tensor]:
            with torch_compiler.observing(check_traced):
                result = run(list(arguments))
            result.write()
            self.note(result)
            return result.outputs

        self._owner = self._tracer.graph(traced, [*self._common, *leaves], REPLACED)
        self._recording = _recording_of(self._owner, len(self._common))
        self._traced = len(leaves)
        self.runs_in_parts = self._may_run_in_parts()
        self._suits_trace = self._tracer.assumptions(leaves)

    def _may_run_in_parts(self) -> bool:
        recording = self._recording
        if reads_sizes(recording.graph):
            return False
        terms = self.terms(recording.outputs)
        return parts_add_up(
            recording.graph, recording.leaves, terms, with_constants=False
        )

    def fits(self, leaves: list[Tensor]) -> bool:
        """Whether the sizes of these tensors satisfy the assumptions made while tracing."""
        if self._flat:
            leaves = _with_two_entries_for_one(leaves)
        for start in range(0, len(leaves), self._traced):
            if not self._suits_trace(leaves[start : start + self._traced]):
                return False
        return self._suits_kernel is None or self._suits_kernel(leaves)

    def compile(self, compile: Compile) -> None:
        """Compile the graph for all leaves. The scalars of a step are computed outside of it, once per step."""
        leaves = self._leaves
        program = lower(self._recording, on_device=None, decides=False)
        width = len(leaves) // len(program.leaves)
        adds_up = self.operation is not None
        written = write_graph(program, self.names, width, adds_up)
        self.names = written.names
        self._scalars = Scalars(program, leaves[-1].device, written.scalars)
        scalars: list[Tensor] = []
        for _, dtype in written.scalars:
            scalars.append(self._tracer.fixed(torch.zeros((), dtype=dtype)))
        module = GraphModule(self._owner, written.graph)
        self._kernel = compile(module, [*scalars, *leaves])
        self._suits_kernel = self._tracer.assumptions(leaves)
        del self._recording, self._owner

    def prepare(
        self, given: Sequence[Any], device: torch.device, on_host: bool
    ) -> list[Tensor]:
        """Compute the scalars of the kernel from those of a step; `on_host` is whether the host may read them."""
        numbers, on_device = numbers_for(given, self._dtypes, device, on_host)
        scalars = self._scalars.given(on_device)
        return list(scalars.function(numbers)[len(scalars.nodes) :])

    def call(self, scalars: list[Tensor], leaves: list[Tensor]) -> Sequence[Tensor]:
        """Run for a bundle; `scalars` is a result of `prepare`."""
        return self._kernel(*scalars, *leaves)


def _recording_of(module: GraphModule, common: int) -> Recording:
    """Return a trace as a recording; `common` is the number of arguments that all leaves share."""
    graph = module.graph
    for node in graph.find_nodes(op="get_attr"):
        value: Tensor = getattr(module, node.target)
        if not value.ndim:
            with graph.inserting_before(node):
                constant = add_constant(graph, value)
            constant.meta = node.meta
            node.replace_all_uses_with(constant)
            graph.erase_node(node)
    arguments = graph.find_nodes(op="placeholder")
    output = graph.output_node()
    outputs: Any = output.args[0]
    graph.erase_node(output)
    return Recording(graph, arguments[:common], arguments[common:], list(outputs), [])


def _with_two_entries_for_one(leaves: list[Tensor]) -> list[Tensor]:
    """Replace tensors of length 1: every variable size of a flat leaf is a length, and its loop suits 1 as well."""
    replaced = []
    for tensor in leaves:
        replaced.append(resized(tensor, 2) if tensor.shape[:1] == (1,) else tensor)
    return replaced


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
        function: LeafFunction,
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
