"""Lower a recording: the passes that all back ends share, in one place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from gradtx.base import torch_names as _torch
from gradtx.compiler.fuse import fuse, merge_equal, remove_unused
from gradtx.compiler.graph import is_on_device, is_scalar
from gradtx.compiler.liveness import Liveness, decide_alternatives, split_copies
from gradtx.compiler.record import Recording
from gradtx.compiler.simplify import (
    select_sums,
    simplify,
    skip_inner_selections,
    use_norms,
)


@dataclass
class LoweredGraph:
    """What all passes leave of a recording, from which each back end writes its code.

    `meta["kind"]` of a node is "scalar" for a 0-d value that all leaves share, "tensor" for another value that they
    share, and "list" for one that each leaf has; `meta["val"]` is a stand-in with its shape and dtype;
    `meta["on_device"]` says that the host does not know a scalar. Scalars round to the dtype of the list that they
    meet, as in torch's operations on a tensor and a number.

    Attributes:
        graph: The operations, in order, and at the end the results.
        arguments: The scalars among the arguments, which all leaves share.
        leaves: The arguments of a leaf.
        needs: The case in which each value is read.
    """

    graph: Graph
    arguments: list[Node]
    leaves: list[Node]
    needs: Liveness

    @property
    def nodes(self) -> list[Node]:
        return list(self.graph.nodes)

    @property
    def results(self) -> Any:
        """The results: nodes, or Python scalars."""
        return self.nodes[-1].args[0]

    def scalars(self) -> list[Node]:
        """Return the scalars that the rest of the graph reads: its operations, cases and results."""
        scalars: list[Node] = []
        for node in self.graph.nodes:
            is_read = any(not is_scalar(user) for user in node.users)
            if is_scalar(node) and (is_read or node in self.needs.conditions):
                scalars.append(node)
        return scalars


def lower(
    recording: Recording,
    segment: int | None = None,
    *,
    on_device: Collection[int] = (),
    decides: bool,
    prefers_norms: bool = False,
    of_rows: bool = False,
) -> LoweredGraph:
    """Return the lowered graph of a recording.

    Args:
        recording: The operations of one leaf.
        segment: The index of the segment between operations that owners compute; None for a recording without any.
        on_device: The indices of the arguments that all leaves share and that the host does not know.
        decides: Whether what is written from it skips what is not due: it knows all conditions when it runs.
        prefers_norms: Whether sums of squares become squared norms, which lists compute in one pass.
        of_rows: Whether those of rows do so, too.
    """
    recording = recording.copy()  # the passes modify it
    graph = recording.graph
    graph.output(tuple(recording.outputs))
    _set_kinds(recording)
    simplify(graph)
    _set_kinds(recording)  # again: values computed from leaf flags are scalars now
    if on_device:
        mark_on_device(graph, [recording.scalars[i] for i in on_device])
    merge_equal(graph)
    skip_inner_selections(graph)
    select_sums(graph)
    if prefers_norms:
        use_norms(graph, of_rows)
    remove_unused(graph)
    fuse(graph)
    # After `fuse`: whether a term can be fused depends on its other users.
    if segment is not None:
        _reduce_to_segment(recording, segment)
        remove_unused(graph)
    if decides:
        decide_alternatives(graph)
        remove_unused(graph)
        split_copies(graph)
    return LoweredGraph(
        graph, recording.scalars, recording.leaves, Liveness(graph, decides)
    )


def mark_on_device(graph: Graph, scalars: Collection[Node]) -> None:
    """Mark the scalars that the host does not know: some arguments, and what is computed from these."""
    for node in graph.nodes:
        inputs = node.all_input_nodes
        unknown = node in scalars or any(map(is_on_device, inputs))
        node.meta["on_device"] = unknown and is_scalar(node)


def _reduce_to_segment(recording: Recording, segment: int) -> None:
    """Keep one segment: the results of earlier owners become arguments, the inputs of the next owner results."""
    graph = recording.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for i, node in enumerate(recording.owned[:segment]):
        with graph.inserting_before(first):
            argument = graph.placeholder(f"owned{i}")
        argument.meta.update(node.meta)
        node.replace_all_uses_with(argument)
        recording.leaves.append(argument)
    if segment < len(recording.owned):
        for node in reversed(graph.nodes):
            if _torch.writes(node.target):
                graph.erase_node(node)
        output = next(iter(reversed(graph.nodes)))
        output.args = (tuple(recording.owned[segment].args),)


def _set_kinds(recording: Recording) -> None:
    """Record for each node whether its value is a scalar, a tensor that all leaves share, or a list."""
    leaves = set(recording.leaves)
    for node in recording.graph.nodes:
        value = node.meta.get("val")
        inputs = {argument.meta["kind"] for argument in node.all_input_nodes}
        if node in leaves or "list" in inputs:
            node.meta["kind"] = "list"
        elif "tensor" in inputs or not isinstance(value, Tensor) or value.ndim:
            node.meta["kind"] = "tensor"
        else:
            node.meta["kind"] = "scalar"
