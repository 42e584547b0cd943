"""Programs of the compiled engine: the links of a chain, traced for a bundle of leaves and compiled to work in place.

Tracing runs the core itself on stand-ins with symbolic sizes; there is no second version of any rule. The graph of one
leaf is repeated for all leaves of a bundle. A sum over leaves ends a phase. The next phase starts again from the
beginning with the total as an argument, so that no intermediate values have to be stored. All phases but the last
compute only their sums.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from gradtx.execution.phases import RunPhase
from gradtx.execution.runs import LateTerm
from gradtx.optim.engine import torch_names
from gradtx.optim.engine.hoist import (
    REPLACED,
    StepNumbers,
    hoist,
    is_number,
    module_of,
    multiply,
    narrow,
)
from gradtx.optim.engine.views import resized
from gradtx.programs.bundle import Phase, phases_of
from gradtx.programs.contract import following
from gradtx.programs.function import LeafFunction, LeafResult
from gradtx.programs.record import check_traced
from gradtx.programs.terms import parts_add_up, reads_sizes


def replicated(
    module: GraphModule, leaves: Sequence[Sequence[Tensor]], of_leaves: Sequence[bool]
) -> GraphModule:
    """Return the graph of several leaves, given that of one leaf, whose arguments are the last ones.

    Nodes that depend on no leaf are not repeated. Copies have the sizes of the first leaf in their metadata.

    Args:
        module: The graph of one leaf. Its results are a list.
        leaves: The arguments of each leaf, with the same order and dtypes.
        of_leaves: Whether each result is one of each leaf; the others are those of the first leaf.

    Returns:
        A graph whose results are those of the first leaf, followed by those of each other leaf.
    """
    arguments = module.graph.find_nodes(op="placeholder")
    of_leaf = arguments[len(arguments) - len(leaves[0]) :]
    (output,) = module.graph.find_nodes(op="output")
    repeated = following(module.graph, of_leaf).difference(of_leaf)
    graph = Graph()
    copies: dict[Node, Node] = {}
    for argument in arguments[: -len(of_leaf)]:
        copies[argument] = graph.node_copy(argument)
    columns: list[list[Node]] = []
    for i, tensors in enumerate(leaves):
        columns.append(_arguments(graph, f"leaf{i}", of_leaf, tensors))
    results: list[Node] = []
    for column in columns:
        copies.update(zip(of_leaf, column, strict=True))
        for node in module.graph.nodes:
            if node is output:
                continue
            if node in repeated or node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        for result, is_of_leaf in zip(output.args[0], of_leaves, strict=True):
            if is_of_leaf or column is columns[0]:
                results.append(copies[result])
    graph.output(results)
    return GraphModule(module, graph)


def _arguments(
    graph: Graph, name: str, like: Sequence[Node], tensors: Sequence[Tensor]
) -> list[Node]:
    """Add placeholders for the arguments of a leaf."""
    arguments = []
    for node, tensor in zip(like, tensors, strict=True):
        argument = graph.placeholder(f"{name}_{node.name}")
        argument.meta = {**node.meta, "val": tensor}
        arguments.append(argument)
    return arguments


def is_by_leaf(name: Any) -> bool:
    """Whether each leaf has a result of this name."""
    return isinstance(name, LateTerm | LeafResult)


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
        reads_only_memory: Whether the shapes of a leaf's tensors after its parameter do not matter, only their memory.
        forms: The dtype and the number of dimensions of each result.
        runs_in_parts: Whether it may process a leaf in parts; see `gradtx.programs.terms`.
    """

    reads_only_memory = False
    forms: list[tuple[torch.dtype, int]]

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
        stand_ins = []
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
            self.forms = [(output.dtype, output.ndim) for output in result.outputs]
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
        terms = self.terms(outputs)
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
        are_by_leaf = list(map(is_by_leaf, self.names))
        self._graph = replicated(self._graph, self._leaves, are_by_leaf)
        pairs = list(zip(self.names, self.forms, strict=True))
        for i in range(1, len(self._leaves)):
            for name, form in pairs:
                if is_by_leaf(name):
                    self.names = (*self.names, name._replace(leaf=str(i)))
                    self.forms.append(form)

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
        number_slots = []
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
        names = set()
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
    replaced = []
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
