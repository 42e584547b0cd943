"""Write a program as a graph of several leaves, which torch's inductor compiles."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from gradtx.execution.runs import LateTerm
from gradtx.programs.contract import following, is_number
from gradtx.programs.lower import Program
from gradtx.programs.terms import is_pointwise

aten = torch.ops.aten


class InductorGraph(NamedTuple):
    """A graph of several leaves.

    Attributes:
        graph: The operations. Its arguments are the scalars, and those of each leaf.
        names: The names of its results.
        scalars: The scalars that it reads, each with its dtype.
    """

    graph: Graph
    names: tuple[Any, ...]
    scalars: list[tuple[Node, torch.dtype]]


def write_graph(
    program: Program, names: Sequence[Any], width: int, adds_up: bool
) -> InductorGraph:
    """Return the graph of several leaves, in which what depends on no leaf is computed once.

    Args:
        program: The program of one leaf, which this function modifies.
        names: The names of its results.
        width: The number of leaves.
        adds_up: Whether the results of the leaves are added up; otherwise those of the first leaf are returned, and
            the late terms of each.
    """
    _keep_in_memory(program.graph)
    graph = Graph()
    arguments: dict[tuple[Node, torch.dtype], Node] = {}
    for i, scalar in enumerate(_scalars_read(program)):
        arguments[scalar] = graph.placeholder(f"scalar{i}")
    columns: list[dict[Node, Node]] = []
    for i in range(width):
        copies: dict[Node, Node] = {}
        for node in program.leaves:
            copies[node] = graph.placeholder(f"leaf{i}_{node.name}")
        columns.append(copies)

    def operand(user: Node, copies: dict[Node, Node], node: Node) -> Node:
        if is_number(node):
            return arguments[node, _dtype_for(user, node)]
        return copies[node]

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
    outputs = _by_name(graph, names, results, adds_up)
    graph.output(list(outputs.values()))
    return InductorGraph(graph, tuple(outputs), list(arguments))


def _by_name(
    graph: Graph, names: Sequence[Any], results: list[list[Node]], adds_up: bool
) -> dict[Any, Node]:
    """Return the results of a graph by name, given those of each leaf."""
    by_name: dict[Any, Node] = {}
    for name, *of_leaves in zip(names, *results, strict=True):
        if isinstance(name, LateTerm) and len(of_leaves) > 1:
            for i, result in enumerate(of_leaves):
                by_name[name._replace(leaf=str(i))] = result
        elif adds_up:
            by_name[name] = functools.reduce(partial(_add, graph), of_leaves)
        else:
            by_name[name] = of_leaves[0]
    return by_name


def _add(graph: Graph, x: Node, y: Node) -> Node:
    return graph.call_function(aten.add.Tensor, (x, y))


def _scalars_read(program: Program) -> list[tuple[Node, torch.dtype]]:
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


def _keep_in_memory(graph: Graph) -> None:
    """Make inductor write some values to memory that it would otherwise compute again wherever they are read.

    A value per row, such as 1 / scale, is computed once rather than for each vector of the row's entries. Codes are
    written to memory before two of them are packed into a byte and after they are unpacked: the loop that does this is
    not vectorized, and neither would be any computation fused into it.
    """
    for node in list(graph.nodes):
        readers = _readers_of_kept(node)
        if readers:
            with graph.inserting_after(node):
                kept = graph.call_function(_in_memory, (node,))
            kept.meta = dict(node.meta)
            for user in readers:
                user.replace_input_with(node, kept)


def _in_memory(x: Tensor) -> Tensor:
    return x.as_strided(x.shape, x.stride())  # inductor makes views of memory only


def _readers_of_kept(node: Node) -> list[Node]:
    """Return the users of a node that must read it from memory."""
    users = list(node.users)
    if is_pointwise(node.target) and _is_per_row(node):
        return [
            user
            for user in users
            if is_pointwise(user.target) and not _is_per_row(user)
        ]
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype not in (torch.int8, torch.uint8):
        return []
    if node.target is aten.cat.default:
        return users
    return [user for user in users if user.target is aten.select.int]


def _is_per_row(node: Node) -> bool:
    """Whether a node has one entry per row."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 1 and value.shape[-1] == 1
