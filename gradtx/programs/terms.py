"""Find out whether a program may process a leaf in parts.

The terms of the parts add up to the term of the leaf only if it is itself a sum over entries; a mean or a norm is not.
A program that reads the number of entries would read that of a part.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from gradtx.programs.contract import following, is_view

aten = torch.ops.aten

SUMS = (aten.sum.default, aten.dot.default)
COPIES = (
    aten._to_copy.default,
    torch.ops.prims.convert_element_type.default,
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
)
JOINS = (aten.stack.default, aten.cat.default)
# Operations that torch does not tag as pointwise, although an entry of the result depends on one entry only.
BY_ENTRY = (
    *COPIES,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.view.default,
    aten.view.dtype,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    *JOINS,
)
SCALARS = (bool, int, float, complex)
# The positions of the values of constants.
POSITIONS: dict[Any, int] = {aten.full.default: 1, aten.scalar_tensor.default: 0}


def parts_add_up(
    graph: Graph,
    arguments: Collection[Node],
    terms: Sequence[Node],
    with_constants: bool,
) -> bool:
    """Whether terms are certainly sums over entries.

    Args:
        graph: The operations.
        arguments: The arguments that belong to a leaf.
        terms: The results of these operations that are terms of sums.
        with_constants: Whether terms may also be independent of the leaf.
    """
    entries = [node for node in arguments if node.meta["val"].ndim]
    varying = following(graph, entries)
    others = set(terms) - varying
    if others and not with_constants:
        return False
    if not others.isdisjoint(following(graph, arguments)):
        return False
    return all(_sums_entries(term, varying) for term in varying.intersection(terms))


def reads_sizes(graph: Graph) -> bool:
    """Whether an operation on tensors uses a symbolic size as a number."""
    return any(
        isinstance(node.meta.get("val"), Tensor) and any(map(_is_symbolic, node.args))
        for node in graph.nodes
    )


def _is_symbolic(argument: Any) -> bool:
    value = argument.meta.get("val") if isinstance(argument, Node) else None
    return isinstance(value, torch.SymInt | torch.SymFloat)


def numbers_in(graph: Graph) -> list[Any]:
    """Return the operations of a recording with their Python scalars, but without views and sizes."""
    numbers = []
    for node in graph.nodes:
        # `is_view` is also true of arguments; positions follow from the size.
        if is_view(node) or node.target is aten.arange.default:
            continue
        scalars = [argument for argument in node.args if isinstance(argument, SCALARS)]
        numbers.append((node.target, str(scalars)))  # NaN does not equal itself
    return numbers


def _sums_entries(node: Node, varying: set[Node]) -> bool:
    """Whether a node is a sum over entries; `varying` contains the nodes that depend on entries."""
    operands = _operands(node, varying)
    if node.target in SUMS:
        return _depend_on_one_entry(operands, varying)
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
    return is_sum and all(_sums_entries(operand, varying) for operand in operands)


def _is_in(nodes: set[Node], argument: Any) -> bool:
    return isinstance(argument, Node) and argument in nodes


def _is_zero(node: Any) -> bool:
    """Whether a node is the constant 0."""
    if node.target is aten._to_copy.default:
        return _is_zero(node.args[0])
    position = POSITIONS.get(node.target)
    return position is not None and node.args[position] == 0


def _depend_on_one_entry(nodes: Sequence[Any], varying: set[Node]) -> bool:
    """Whether each entry of these nodes depends on one entry of the arguments."""
    reached: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in reached or node.op == "placeholder":
            continue
        if not _is_by_entry(node.target):
            return False
        reached.add(node)
        waiting.extend(_operands(node, varying))
    return True


def _operands(node: Node, varying: set[Node]) -> list[Any]:
    """Return the operands that depend on entries; a size is one only as a number, not in a list of sizes."""
    arguments: Any = node.args[0] if node.target in JOINS else node.args
    return [argument for argument in arguments if _is_in(varying, argument)]


@functools.cache
def _is_by_entry(operator: Any) -> bool:
    return operator in BY_ENTRY or torch.Tag.pointwise in getattr(operator, "tags", ())
