"""Repeat the graph of one leaf for all leaves of a bundle: tracing takes longer than copying nodes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from gradtx.programs.contract import following


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
    arguments: list[Node] = []
    for node, tensor in zip(like, tensors, strict=True):
        argument = graph.placeholder(f"{name}_{node.name}")
        argument.meta = {**node.meta, "val": tensor}
        arguments.append(argument)
    return arguments
