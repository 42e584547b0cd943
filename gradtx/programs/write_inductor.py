"""Write a program as a graph of several leaves, which torch's inductor compiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from gradtx.execution.runs import LateTerm
from gradtx.programs.contract import following, is_number
from gradtx.programs.function import LeafResult
from gradtx.programs.lower import Program

aten = torch.ops.aten


def is_by_leaf(name: Any) -> bool:
    """Whether each leaf has a result of this name."""
    return isinstance(name, LateTerm | LeafResult)


def multiply(graph: Graph) -> None:
    """Replace divisions by scalars with products by reciprocals: a division takes longer than loading its operand."""
    for node in graph.find_nodes(op="call_function", target=aten.div.Tensor):
        divisor: Any = node.args[1]
        if is_number(node) or not isinstance(divisor, Node) or not is_number(divisor):
            continue
        if not divisor.meta["val"].is_floating_point():
            continue
        with graph.inserting_before(node):
            inverse = graph.call_function(aten.reciprocal.default, (divisor,))
        inverse.meta = dict(divisor.meta)
        node.target = aten.mul.Tensor
        node.args = (node.args[0], inverse)


def scalars_read(program: Program) -> list[tuple[Node, torch.dtype]]:
    """Return the scalars that operations on leaves read, each with the dtype in which they read it."""
    read: dict[tuple[Node, torch.dtype], None] = {}
    for node in program.nodes:
        if not is_number(node):
            for scalar in filter(is_number, node.all_input_nodes):
                read[scalar, _dtype_for(node, scalar)] = None
    return list(read)


def _dtype_for(user: Node, scalar: Node) -> torch.dtype:
    """Return float32 for an operation that would round a float64 scalar itself, once for each vector of entries."""
    dtype, result = scalar.meta["val"].dtype, user.meta.get("val")
    is_single = isinstance(result, Tensor) and result.dtype is torch.float32
    return torch.float32 if is_single and dtype is torch.float64 else dtype


def write_graph(
    program: Program, names: Sequence[Any], width: int, adds_up: bool
) -> tuple[Graph, list[Any]]:
    """Return the graph of several leaves, and the names of its results.

    Its arguments are the scalars, in the order of `scalars_read`, and those of each leaf. What depends on no leaf is
    computed once.

    Args:
        program: The program of one leaf.
        names: The names of its results.
        width: The number of leaves.
        adds_up: Whether the results of the leaves are added up; otherwise those of the first leaf are returned, and
            those that each leaf has.
    """
    graph = Graph()
    arguments: dict[Any, Node] = {}
    for i, read in enumerate(scalars_read(program)):
        arguments[read] = graph.placeholder(f"scalar{i}")
        arguments[read].meta["val"] = torch.empty((), dtype=read[1], device="meta")
    columns: list[dict[Node, Node]] = []
    for i in range(width):
        copies: dict[Node, Node] = {}
        for node in program.leaves:
            copies[node] = graph.placeholder(f"leaf{i}_{node.name}")
            copies[node].meta = dict(node.meta)
        columns.append(copies)

    def operand(user: Node, copies: dict[Node, Node], node: Node) -> Node:
        return (
            arguments[node, _dtype_for(user, node)] if is_number(node) else copies[node]
        )

    *operations, output = program.nodes
    of_leaf = following(program.graph, program.leaves)
    shared: dict[Node, Node] = {}
    results: list[list[Node]] = []
    for copies in columns:
        copies.update(shared)
        for node in operations:
            if is_number(node) or node in copies:
                continue
            copies[node] = graph.node_copy(node, partial(operand, node, copies))
            if node not in of_leaf:
                shared[node] = copies[node]
        results.append(list(map(partial(operand, output, copies), program.results)))
    all_names: list[Any] = []
    outputs: list[Node] = []
    for name, *of_leaves in zip(names, *results, strict=True):
        if is_by_leaf(name) and width > 1:
            all_names += [name._replace(leaf=str(i)) for i in range(width)]
            outputs += of_leaves
            continue
        result, *others = of_leaves
        for other in others if adds_up else ():
            total = graph.call_function(aten.add.Tensor, (result, other))
            total.meta, result = result.meta, total
        all_names.append(name)
        outputs.append(result)
    graph.output(outputs)
    return graph, all_names
