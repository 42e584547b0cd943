"""Determine when each value of a graph is needed, as far as scalars on the host decide it.

A value that only one branch of `where` reads is needed only if the condition selects that branch. The operations of the
other branch are then skipped, and a branch may write its result directly into the argument that stores it.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch.fx import Graph, Node

from gradtx.base import torch_names as _torch
from gradtx.compiler.graph import (
    argument_like,
    arguments_of,
    is_list,
    is_scalar,
    is_view,
    may_be_operand,
    same_meta,
    writers,
)

aten = torch.ops.aten

# Operations that fill a tensor like another one.
FILLING = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)
# Conditions with the values that they all have in this case.
Case = frozenset[tuple[Node, bool]]
ALWAYS: Case = frozenset()


def contradict(a: Case, b: Case) -> bool:
    """Whether two cases exclude each other."""
    return any((condition, not truth) in b for condition, truth in a)


class Liveness:
    """The cases in which each value of a graph is read.

    Args:
        graph: The graph. `meta["kind"]` of its nodes must be set.
        decides: Whether the host knows the conditions when the program runs.

    Attributes:
        conditions: The scalars that occur in cases.
    """

    def __init__(self, graph: Graph, decides: bool):
        self._decides = decides
        self._cases: dict[Node, Case] = {}
        for node in reversed(graph.nodes):
            self._note(node)
        self.conditions = {
            condition for case in self._cases.values() for condition, _ in case
        }

    def select(self, node: Node) -> bool:
        """Whether the program computes only the operand that a selection returns."""
        return self._decides and is_selection(node)

    def _note(self, node: Node) -> None:
        if node.op == "output" or _torch.writes(node.target):
            self._cases[node] = node.meta.get("case", ALWAYS)
            return
        for user in node.users:
            if user in self._cases:
                case = self.of(user) | self.reading(user, node)
                self._cases[node] = self._cases.get(node, case) & case

    def __contains__(self, node: Node) -> bool:
        """Whether an operation has a reader."""
        return node in self._cases

    def of(self, node: Node) -> Case:
        """Return the conditions that are met whenever the value is read."""
        return self._cases[node]

    def reading(self, user: Node, operand: Node) -> Case:
        """Return the conditions under which a node reads an operand, apart from those under which it is read itself."""
        if not self.select(user):
            return ALWAYS
        condition, x, y = user.args
        if x is y or operand is condition:
            return ALWAYS
        return frozenset([(condition, operand is x)])  # type: ignore[list-item]


# Selections.


def is_selection(node: Node) -> bool:
    """Whether `where` with one condition for all leaves may return one of its operands without a copy.

    One operand may be a scalar if a leaf's argument has the shape to fill. If the result is written into an argument,
    no operand may be another argument that is also written, since it may have been overwritten; nor may an operand be
    written before the result is read.
    """
    if node.target is not aten.where.self or not is_scalar(node.args[0]):
        return False
    operands = node.args[1:]
    lists = [operand for operand in operands if is_list(operand)]
    if not lists or not same_meta(node, *lists):
        return False
    # One may be a scalar, with which a list is filled that has the shape of an argument.
    can_fill = any(map(is_scalar, operands)) and argument_like(node) is not None
    if len(lists) < len(operands) and not can_fill:
        return False
    for user in node.users:
        is_copy = user.target is aten.copy_.default
        if is_copy and not all(
            _is_unchanged(operand, user.args[0]) for operand in operands
        ):
            return False
    return not is_read_after_writing(node, arguments_of(*lists))


def is_read_after_writing(node: Node, arguments: Set[Node]) -> bool:
    """Whether a result, or a list that may share its memory, is read after one of these arguments was written."""
    if not arguments:
        return False
    writings: list[Node] = []
    for argument in arguments:
        writings += [writing for writing in writers(argument) if node < writing]
    if not writings:
        return False
    readers = list(node.users)
    for reader in readers:  # which grows
        case: Case = reader.meta.get("case", ALWAYS)
        for writing in writings:
            other: Case = writing.meta.get("case", ALWAYS)
            if writing < reader and not contradict(case, other):
                return True
        if may_be_operand(reader):
            readers += [user for user in reader.users if user not in readers]
    return False


def _is_unchanged(operand: Any, argument: Any) -> bool:
    """Whether an operand of a selection is still unchanged when the result is written into an argument."""
    if operand is argument or is_scalar(operand):
        return True
    if operand.op == "placeholder":  # such as a gradient
        return not writers(operand)
    if is_selection(operand):
        return all(_is_unchanged(branch, argument) for branch in operand.args[1:])
    # A view of the argument may have its entries in another order.
    return not is_view(operand) or all(
        _is_unchanged(read, None) for read in operand.all_input_nodes
    )


def may_alias(node: Node) -> bool:
    """Whether a result may share memory with an operand."""
    return is_view(node) or is_selection(node)


def decide_alternatives(graph: Graph) -> None:
    """Let scalars decide selections whose condition is "an entry's, or that of all leaves", without looking at entries.

    So a quotient is not checked for zeros where its floor is positive.
    """
    for node in list(graph.nodes):
        if node.target is not aten.where.self or not is_list(node):
            continue
        condition, x, y = node.args
        alternatives = _alternatives(condition)
        if alternatives is None or not (is_list(x) and same_meta(node, x)):
            continue
        of_all, of_entries = alternatives
        with graph.inserting_before(node):
            checked = graph.call_function(aten.where.self, (of_entries, x, y))
            selection = graph.call_function(aten.where.self, (of_all, x, checked))
        checked.meta, selection.meta = dict(node.meta), dict(node.meta)
        node.replace_all_uses_with(selection)
        graph.erase_node(node)


def _alternatives(condition: Any) -> tuple[Node, Node] | None:
    """Return the operands of "or": the flag of all leaves, and those of entries; None if it is another condition."""
    if (
        not isinstance(condition, Node)
        or condition.target is not aten.bitwise_or.Tensor
    ):
        return None
    if condition.meta["val"].dtype != torch.bool:
        return None
    x, y = condition.args
    if isinstance(x, Node) and isinstance(y, Node) and is_scalar(x) != is_scalar(y):
        return (x, y) if is_scalar(x) else (y, x)
    return None


# Writing.


def split_copies(graph: Graph) -> None:
    """Replace each copy of a selection by one copy per branch; a branch that is the target itself needs none.

    `meta["case"]` of a copy is its case, and `meta["covers"]` whether the argument is written in all cases.
    """
    for node in list(graph.nodes):
        if node.target not in FILLING:
            continue
        # A separate list for each reader, so that it is filled only in the cases of that reader.
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                other = graph.node_copy(node)
            user.replace_input_with(node, other)
    for node in list(graph.nodes):
        if node.target is aten.copy_.default:
            node.meta["covers"] = not _may_be_argument(node.args[1], node.args[0])
            _split(node)
    for node in reversed(graph.nodes):
        # A scalar may be a condition.
        if node.target is aten.where.self and is_list(node) and not node.users:
            graph.erase_node(node)


def _may_be_argument(source: Any, argument: Any) -> bool:
    """Whether a value may be the argument itself."""
    if source is argument:
        return True
    return (
        isinstance(source, Node)
        and is_selection(source)
        and any(_may_be_argument(operand, argument) for operand in source.args[1:])
    )


def _split(copy: Node) -> None:
    argument, source = copy.args
    if (
        not isinstance(source, Node)
        or not is_list(source)
        or not same_meta(argument, source)
    ):
        return
    if not is_selection(source):
        return
    condition, *branches = source.args
    case: Case = copy.meta.get("case", ALWAYS)
    for branch, truth in zip(branches, (True, False), strict=True):
        if branch is not argument:
            with copy.graph.inserting_before(copy):
                of_branch = copy.graph.call_function(copy.target, (argument, branch))  # type: ignore[arg-type]
            of_branch.meta = {**copy.meta, "case": case | {(condition, truth)}}
            _split(of_branch)
    copy.graph.erase_node(copy)


def text_of(case: Case) -> str:
    """Return a case as a Python expression."""
    texts = [
        condition.name if truth else f"not {condition.name}"
        for condition, truth in case
    ]
    return " and ".join(sorted(texts))
