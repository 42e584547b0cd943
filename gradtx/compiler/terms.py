"""Find out whether a program may process a leaf in parts, or a shard of it.

The terms of the parts add up to the term of the leaf only if it is itself a sum over entries; a mean or a norm is not.
A program that reads the number of entries would read that of a part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node

from gradtx.compiler.graph import following, is_view
from gradtx.compiler.liveness import FILLING
from gradtx.compiler.simplify import (
    DIMENSIONS,
    SAME,
    SAME_ENTRIES,
    reduced_dimensions,
)

aten = torch.ops.aten

SUMS = (aten.sum.default, aten.dot.default)
COPIES = (*SAME, aten._to_copy.default, aten.clone.default)
JOINS = (aten.stack.default, aten.cat.default)
# Operations that torch does not tag as pointwise, although an entry of the result depends on one entry only.
BY_ENTRY = (*COPIES, *FILLING, *SAME_ENTRIES, aten.view.dtype, *JOINS)
SCALARS = (bool, int, float, complex)
# Whether a value of shards, one of these nodes, needs only one entry, or one row, of its operands.
IsLocal: TypeAlias = Callable[[Node, set[Node]], bool]
# The positions of the values of constants.
POSITIONS: dict[Any, int] = {aten.full.default: 1, aten.scalar_tensor.default: 0}


def _is_by_entry(node: Node, varying: set[Node]) -> bool:
    return node.target in BY_ENTRY or is_pointwise(node.target)


def parts_add_up(
    graph: Graph,
    arguments: Collection[Node],
    terms: Sequence[Node],
    is_local: IsLocal = _is_by_entry,
) -> bool:
    """Whether terms are certainly sums over entries, or independent of the leaf.

    Args:
        graph: The operations.
        arguments: The arguments that belong to a leaf.
        terms: The results of these operations that are terms of sums.
        is_local: Whether parts may compute a value.
    """
    varying = _varying(graph, arguments)
    others = set(terms) - varying
    if not others.isdisjoint(following(graph, arguments)):
        return False
    return all(
        _sums_entries(term, varying, is_local) for term in varying.intersection(terms)
    )


def runs_on_shards(
    graph: Graph,
    arguments: Collection[Node],
    terms: Sequence[Node],
    results: Sequence[Node],
    whole_rows: bool,
) -> bool:
    """Whether a program of a whole leaf certainly gives a shard its terms, and its part of the other results.

    Args:
        graph: The operations.
        arguments: The arguments that belong to a leaf.
        terms: The results of these operations that are terms of sums.
        results: The other results.
        whole_rows: Whether shards consist of whole rows, which are indices of dimension 0.
    """
    is_local = _is_by_row if whole_rows else _is_by_entry_of_shard
    varying = _varying(graph, arguments)
    others = [node for node in results if node in varying]
    return parts_add_up(graph, arguments, terms, is_local=is_local) and _are_local(
        others, varying, is_local
    )


def _varying(graph: Graph, arguments: Collection[Node]) -> set[Node]:
    """Return the nodes that depend on entries of a leaf."""
    return following(graph, [node for node in arguments if node.meta["val"].ndim])


def _is_by_entry_of_shard(node: Node, varying: set[Node]) -> bool:
    """Whether a value has the entries of its operands, and no size of the whole leaf."""
    if node.target not in (*COPIES, *FILLING) and not is_pointwise(node.target):
        return False
    dims = node.meta["val"].ndim
    return all(
        operand.meta["val"].ndim == (dims if operand in varying else 0)
        for operand in node.all_input_nodes
    )


def _is_by_row(node: Node, varying: set[Node]) -> bool:
    """Whether a value has the rows of its operands."""
    if node.target not in DIMENSIONS:
        return _is_by_entry_of_shard(node, varying)
    dims = reduced_dimensions(node)
    (operand,) = node.all_input_nodes
    ndim = operand.meta["val"].ndim
    return bool(dims) and all(dim % ndim for dim in dims)


def constants_in(graph: Graph) -> list[Any]:
    """Return the operations of a recording with their Python scalars, but without views and sizes."""
    operations: list[Any] = []
    for node in graph.nodes:
        # `is_view` is also true of arguments; positions follow from the size.
        if is_view(node) or node.target is aten.arange.default:
            continue
        constants = [
            argument for argument in node.args if isinstance(argument, SCALARS)
        ]
        operations.append((node.target, str(constants)))  # NaN does not equal itself
    return operations


def _sums_entries(node: Node, varying: set[Node], is_local: IsLocal) -> bool:
    """Whether a node is a sum over entries; `varying` contains the nodes that depend on entries."""
    operands = _operands(node, varying)
    if node.target in SUMS:
        return _are_local(operands, varying, is_local)
    if node.target in (*COPIES, aten.neg.default):
        is_sum = True
    elif node.target in (aten.add.Tensor, aten.sub.Tensor):
        is_sum = len(operands) == 2
    elif node.target is aten.mul.Tensor:
        is_sum = len(operands) == 1
    elif node.target is aten.div.Tensor:
        is_sum = operands == [node.args[0]]
    elif node.target is aten.where.self:
        others = [value for value in node.args[1:] if not _is_in(varying, value)]
        is_sum = node.args[0] not in varying and all(map(_is_zero, others))
    else:
        is_sum = False
    return is_sum and all(
        _sums_entries(operand, varying, is_local) for operand in operands
    )


def _is_in(nodes: set[Node], argument: Any) -> bool:
    return isinstance(argument, Node) and argument in nodes


def _is_zero(node: Any) -> bool:
    """Whether a node is the constant 0."""
    if node.target is aten._to_copy.default:
        return _is_zero(node.args[0])
    position = POSITIONS.get(node.target)
    return position is not None and node.args[position] == 0


def _are_local(nodes: Sequence[Any], varying: set[Node], is_local: IsLocal) -> bool:
    """Whether parts of the arguments determine the same parts of these nodes."""
    reached: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in reached or node.op == "placeholder":
            continue
        if not is_local(node, varying):
            return False
        reached.add(node)
        waiting.extend(_operands(node, varying))
    return True


def _operands(node: Node, varying: set[Node]) -> list[Any]:
    """Return the operands that depend on entries; a size is one only as a number, not in a list of sizes."""
    arguments: Any = node.args[0] if node.target in JOINS else node.args
    return [argument for argument in arguments if _is_in(varying, argument)]


@functools.cache
def is_pointwise(operator: Any) -> bool:
    return torch.Tag.pointwise in getattr(operator, "tags", ())
