"""Decides which operations write into the memory of an operand that no later operation reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from gradtx._lists.contract import alike, is_list, is_number

aten = torch.ops.aten

# Operations that may write into their first operand; the first two into either one.
COMMUTES = (aten.mul.Tensor, aten.maximum.default, aten.minimum.default)


class MemoryPlan:
    """Where each operation of a graph writes.

    Args:
        graph: The graph, whose nodes have kinds.
        has_form_in_place: Whether an operation has a form that writes into the first operand.

    Attributes:
        operand: For each node that writes into the memory of an operand, that operand.
        superfluous: Copies into arguments whose source is already there.
        last_use: The number of the last node that reads the memory of a node.
    """

    def __init__(self, graph: Graph, has_form_in_place: Callable[[Node], bool]):
        self._nodes = list(graph.nodes)
        self._has_form_in_place = has_form_in_place
        self._at = {node: i for i, node in enumerate(self._nodes)}
        self._roots: dict[Node, set[Node]] = {}
        self.last_use: dict[Node, int] = {}
        self.operand: dict[Node, Node] = {}
        self.superfluous: set[Node] = set()
        for node in self._nodes:
            self._roots[node] = self._roots_of(node)
            for argument in node.all_input_nodes:
                for root in self._roots[argument]:
                    self.last_use[root] = self._at[node]
        for node in self._nodes:
            if node.target is aten.copy_.default:
                self._aim(node)
        for node in self._nodes:
            if node not in self.operand:
                self._reuse(node)

    def roots(self, node: Node) -> set[Node]:
        """The nodes whose memory a list may share, through operations that write into an operand as well."""
        roots: set[Node] = set()
        for root in self._roots[node]:
            while root in self.operand:
                root = self.operand[root]
            roots.add(root)
        return roots

    def dies_at(self, node: Node) -> list[Node]:
        """The nodes whose memory is read by `node` for the last time."""
        dying: list[Node] = []
        for argument in node.all_input_nodes:
            if all(self.last_use[root] == self._at[node] for root in self._roots[argument]):
                dying.append(argument)
        return dying

    def _roots_of(self, node: Node) -> set[Node]:
        """The nodes whose memory a node may share, itself if it has its own."""
        shared: set[Node] = set()
        if node.op == "call_function" and is_list(node) and _may_alias(node):
            for argument in node.all_input_nodes:
                if is_list(argument):
                    shared |= self._roots[argument]
        return shared or {node}

    def _aim(self, copy: Node) -> None:
        """Have the value that is copied into an argument computed there, if the old one is not read any more."""
        argument, source = copy.args[:2]
        path: list[tuple[Node, Node]] = []
        node: Any = source
        while True:
            if not self._is_apart(node) or not alike(node, argument) or node in self.operand:  # type: ignore[arg-type]
                return
            if self._reads_after(argument, node, copy):
                return
            operands = self._candidates(node)
            if argument in operands:
                path.append((node, argument))  # type: ignore[arg-type]
                break
            for operand in operands:
                if self._is_apart(operand) and self.last_use[operand] == self._at[node]:
                    path.append((node, operand))
                    node = operand
                    break
            else:
                return
        self.operand.update(path)
        self.superfluous.add(copy)
        self.last_use[argument] = max(self.last_use[argument], self.last_use[source])  # type: ignore[index]

    def _reuse(self, node: Node) -> None:
        """Write into a temporary that is read for the last time."""
        for operand in self._candidates(node):
            dies = self.last_use[operand] == self._at[node] if operand in self.last_use else False
            if self._is_apart(operand) and dies and operand.op == "call_function":
                self.operand[node] = operand
                return

    def _candidates(self, node: Node) -> list[Node]:
        """The operands that a node may write into."""
        if node.op != "call_function" or not is_list(node) or not self._has_form_in_place(node):
            return []
        count = 2 if node.target in COMMUTES or _adds_plainly(node) else 1
        candidates: list[Node] = []
        for operand in node.args[:count]:
            if is_list(operand) and alike(node, operand) and _have_one_layout(node, operand):  # type: ignore[arg-type]
                candidates.append(operand)  # type: ignore[arg-type]
        return candidates

    def _is_apart(self, node: Any) -> bool:
        """Whether a list has memory of its own."""
        return is_list(node) and self._roots[node] == {node}

    def _reads_after(self, argument: Any, node: Node, copy: Node) -> bool:
        """Whether the old value of an argument is read behind a node, except by the final copy."""
        return any(user is not copy and self._at[user] > self._at[node] for user in self._readers(argument))

    def _readers(self, root: Node) -> list[Node]:
        readers: list[Node] = []
        for node, roots in self._roots.items():
            if root in roots:
                readers.extend(node.users)
        return readers


def _adds_plainly(node: Node) -> bool:
    return node.target is aten.add.Tensor and not node.kwargs


def _have_one_layout(node: Node, operand: Node) -> bool:
    """Whether entries are in the same order in memory, in which sums of them would be added."""
    return node.meta["val"].stride() == operand.meta["val"].stride()


def _may_alias(node: Node) -> bool:
    """Whether a result may share memory with an operand."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True
    if node.target is aten._unsafe_view.default or any(result.alias_info is not None for result in schema.returns):
        return True
    return is_selection(node)


def is_selection(node: Node) -> bool:
    """Whether `where` with one condition for all leaves may give one of two lists as it is, without a copy.

    Not where the result is written into an argument while it may be another argument, which is written as well.
    """
    if node.target is not aten.where.self or not is_number(node.args[0]):
        return False
    _, x, y = node.args
    if not (is_list(x) and is_list(y) and alike(node, x, y)):  # type: ignore[arg-type]
        return False
    for user in node.users:
        if user.target is aten.copy_.default:
            argument = user.args[0]
            for operand in (x, y):
                if operand is not argument and not _is_computed(operand):
                    return False
    return True


def _is_computed(node: Any) -> bool:
    """Whether a node's memory belongs to no argument."""
    return node.op == "call_function" and not _may_alias(node)
