"""Decide which operations write into the memory of an operand that no later operation reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

from gradtx.base import torch_names as _torch
from gradtx.compiler.graph import (
    args_of,
    arguments_of,
    dtype_of,
    is_list,
    same_layout,
    same_meta,
    writers,
)
from gradtx.compiler.liveness import (
    ALWAYS,
    Case,
    Liveness,
    contradict,
    is_selection,
    may_alias,
)
from gradtx.compiler.terms import is_pointwise

aten = torch.ops.aten

# Operations that raise an exception if the values are not finite.
FAILING = (aten._linalg_eigh.default, aten._linalg_svd.default)

# Operations that may write into either operand; others write only into the first one.
COMMUTES = (aten.mul.Tensor, aten.maximum.default, aten.minimum.default)


def compute_late(graph: Graph) -> None:
    """Move what is only copied into an argument behind other operations that read the argument.

    It can then be computed there, in place.
    """
    for copy in graph.find_nodes(op="call_function", target=aten.copy_.default):
        argument, source, *_ = args_of(copy)
        if not is_list(source) or source.op != "call_function" or may_alias(source):
            continue
        if list(source.users) != [copy] or source.meta.get("opaque"):
            continue
        is_read = any(source < user < copy for user in argument.users)
        read = arguments_of(*filter(is_list, source.all_input_nodes))
        is_changed = any(
            source < writer < copy for item in read for writer in writers(item)
        )
        if is_read and not is_changed and source.target not in FAILING:
            copy.prepend(source)


def convert_late(conversions: Iterable[Node], needs: Liveness) -> None:
    """Convert arguments where the result is read first, and read it wherever torch would convert them again.

    So fewer temporaries are alive. Operations on lists are slow if they have to convert an operand.
    """
    for conversion in conversions:
        argument: Any = args_of(conversion)[0]
        if argument.op != "placeholder":
            continue
        writes = writers(argument)
        for user in sorted(argument.users):
            is_old = conversion < user and not any(writer < user for writer in writes)
            if is_old and _converts_alike(user, conversion, needs):
                user.replace_input_with(argument, conversion)
        first = min(conversion.users)
        if not any(writer < first for writer in writes):
            first.prepend(conversion)


def copy_early(graph: Graph) -> None:
    """Copy what an argument holds in another dtype there as soon as it is computed.

    Operations that read the value later may then write into its memory.
    """
    barrier: list[Node] = []  # whose exceptions must leave arguments unchanged
    for copy in list(graph.nodes):
        if copy.target in FAILING or copy.meta.get("opaque"):
            barrier = [copy]
        if copy.target is not aten.copy_.default:
            continue
        argument, source, *_ = args_of(copy)
        if not is_list(source) or source.op != "call_function" or may_alias(source):
            continue
        others = [user for user in argument.users if user is not copy]
        if dtype_of(source) == dtype_of(argument) or any(map(may_alias, others)):
            continue
        earlier = [user for user in others if user < copy]
        max([source, *earlier, *barrier]).append(copy)


def _converts_alike(user: Node, conversion: Node, needs: Liveness) -> bool:
    """Whether an operation on entries converts an operand as another operation does that has run in the same cases."""
    if not is_pointwise(user.target) or _torch.writes(user.target):
        return False
    others = [x for x in user.all_input_nodes if is_list(x)]
    dtype = dtype_of(conversion)
    is_promoted = dtype_of(user) == dtype and dtype in map(dtype_of, others)
    both_run = user in needs and conversion in needs
    return is_promoted and both_run and needs.of(user) == needs.of(conversion)


class MemoryPlan:
    """The memory into which each operation of a graph writes.

    Args:
        graph: The graph. `meta["kind"]` of its nodes must be set.
        can_write_in_place: Whether an operation can write into its first operand.
        needs: The cases in which each value is read.

    Attributes:
        operand: For each node that writes into the memory of an operand, that operand.
        elided_copies: Copies into arguments that already contain the source.
        last_use: The index of the last node that reads the memory of a node.
    """

    def __init__(
        self, graph: Graph, can_write_in_place: Callable[[Node], bool], needs: Liveness
    ):
        self._nodes = list(graph.nodes)
        self._can_write_in_place = can_write_in_place
        self._needs = needs
        self._at = {node: i for i, node in enumerate(self._nodes)}
        # Nodes before this one write no argument, so that nothing has changed if they raise an exception.
        self._first_write = 0
        for node in self._nodes:
            if node.target in FAILING or node.meta.get("opaque", False):
                self._first_write = self._at[node]
        self._roots: dict[Node, dict[Node, Case]] = {}
        self._sharing: dict[Node, list[Node]] = {node: [] for node in self._nodes}
        self.last_use: dict[Node, int] = {}
        self.operand: dict[Node, Node] = {}
        self.elided_copies: set[Node] = set()
        for node in self._nodes:
            self._roots[node] = self._roots_of(node)
            for root in self._roots[node]:
                self._sharing[root].append(node)
            for argument in node.all_input_nodes:
                for root in self._roots[argument]:
                    self.last_use[root] = self._at[node]
        for node in self._nodes:
            if node.target is aten.copy_.default:
                self._elide_copy(node)
        for node in self._nodes:
            if node not in self.operand:
                self._reuse(node)

    def roots(self, node: Node) -> dict[Node, Case]:
        """Return the nodes whose memory a list may share, also through in-place operations, and in which case."""
        roots = {}
        for root, case in self._roots[node].items():
            while root in self.operand:
                root = self.operand[root]
            roots[root] = roots.get(root, case) & case
        return roots

    def freed_after(self, node: Node) -> list[Node]:
        """Return the nodes whose memory `node` is the last to read: its arguments, and those whose views these are."""
        freed: dict[Node, None] = {}
        for argument in node.all_input_nodes:
            for root in self._roots[argument]:
                for item in self._sharing[root]:
                    uses = map(self.last_use.__getitem__, self._roots[item])
                    if max(uses) == self._at[node]:
                        freed[item] = None
        return list(freed)

    def places(self, nodes: Iterable[Node], results: Iterable[Any]) -> dict[Node, int]:
        """Return a place for the memory of each of these nodes, in order, which others take once nothing reads it.

        Args:
            nodes: Nodes with memory of their own.
            results: What the graph returns, whose memory has no place.
        """
        returned = {
            root for item in filter(is_list, results) for root in self.roots(item)
        }
        last_use = dict.fromkeys(nodes, 0)
        for node in self._nodes:
            for root in self.roots(node).keys() & last_use.keys():
                last_use[root] = max(last_use[root], self.last_use.get(node, 0))
        places: dict[Node, int] = {}
        holders: list[Node] = []  # the latest node of each place
        for node in last_use:
            if node in returned:
                continue
            free = (
                place
                for place, holder in enumerate(holders)
                if last_use[holder] < self._at[node] and same_meta(holder, node)
            )
            place = places[node] = next(free, len(holders))
            holders[place : place + 1] = [node]
        return places

    def _roots_of(self, node: Node) -> dict[Node, Case]:
        """Return the nodes whose memory a node may share, each with its case; itself if it has its own memory."""
        shared: dict[Node, Case] = {}
        if node.op != "call_function" or not is_list(node) or not may_alias(node):
            return {node: ALWAYS}
        lists = [argument for argument in node.all_input_nodes if is_list(argument)]
        for argument in lists:
            for root, case in self._roots[argument].items():
                reading = case | self._needs.reading(node, argument)
                shared[root] = shared.get(root, reading) & reading
        if is_selection(node) and not all(map(is_list, node.args[1:])):
            shared[node] = ALWAYS  # it may be filled with a scalar
        return shared or {node: ALWAYS}

    def _elide_copy(self, copy: Node) -> None:
        """Compute the source of a copy directly in the target argument, if nothing reads the old value later."""
        path = self._path_to_target(copy)
        if path is None:
            return
        argument, source, *_ = args_of(copy)
        self.operand.update(path)
        self.elided_copies.add(copy)
        last_use = max(self.last_use[argument], self.last_use[source])
        self.last_use[argument] = last_use
        # The target keeps this value: what reads it later, such as the sum of weights and update, may not write there.
        self.last_use[source] = len(self._nodes)

    def _path_to_target(self, copy: Node) -> list[tuple[Node, Node]] | None:
        """Return the operations, last first, that can compute the source of a copy in the target's memory.

        Each comes with the operand into whose memory it writes: the result of the next one, or at the end the target.
        None if there are no such operations.
        """
        argument, node, *_ = args_of(copy)
        path: list[tuple[Node, Node]] = []
        while self._may_be_computed_in_target(node, copy):
            candidates = self._candidates(node)
            if argument in candidates:
                path.append((node, argument))
                return path if self._at[node] >= self._first_write else None
            operand = self._last_read_by(node, candidates)
            if operand is None:
                return None
            path.append((node, operand))
            node = operand
        return None

    def _last_read_by(self, node: Node, operands: list[Node]) -> Node | None:
        """Return the first of these operands with memory of its own that nothing reads after `node`."""
        for operand in operands:
            if self._owns_memory(operand) and self.last_use[operand] == self._at[node]:
                return operand
        return None

    def _may_be_computed_in_target(self, node: Node, copy: Node) -> bool:
        """Whether the result of a node could be in the memory of a copy's target."""
        argument = args_of(copy)[0]
        if not self._owns_memory(node) or node in self.operand:
            return False
        if not same_meta(node, argument) or not self._may_write_to_target(node, copy):
            return False
        return not self._reads_after(argument, node, copy)

    def _may_write_to_target(self, node: Node, copy: Node) -> bool:
        """Whether a node may write to a copy's target: it runs in no other case, or all cases overwrite the target."""
        if self._needs.of(copy) <= self._needs.of(node):
            return True
        return copy.meta["covers"] and not self._is_read_after_copies(node, copy)

    def _is_read_after_copies(self, node: Node, copy: Node) -> bool:
        """Whether a node is read, other than by `copy`, after the argument may have been written in another case."""
        argument = args_of(copy)[0]
        first = min(
            self._at[user] for user in argument.users if _only_writes(user, argument)
        )
        return any(
            user is not copy and self._at[user] > first
            for user, _ in self._readings(node)
        )

    def _reuse(self, node: Node) -> None:
        """Write into a temporary if this operation is the last to read it."""
        candidates = self._candidates(node)
        temporaries = [item for item in candidates if item.op == "call_function"]
        operand = self._last_read_by(node, temporaries)
        if operand is not None:
            self.operand[node] = operand

    def _candidates(self, node: Node) -> list[Node]:
        """Return the operands that a node may write into."""
        if (
            node.op != "call_function"
            or not is_list(node)
            or not self._can_write_in_place(node)
        ):
            return []
        adds_plainly = node.target is aten.add.Tensor and not node.kwargs
        count = 2 if node.target in COMMUTES or adds_plainly else 1
        candidates = []
        for operand in node.args[:count]:
            # The order of entries in memory determines the order of summation.
            if is_list(operand) and same_layout(node, operand):
                candidates.append(operand)
        return candidates

    def _owns_memory(self, node: Any) -> bool:
        """Whether a list has its own memory."""
        return is_list(node) and self._roots[node].keys() == {node}

    def _reads_after(self, argument: Any, node: Node, copy: Node) -> bool:
        """Whether the old value of an argument is read after a node has run, other than by the final copy."""
        case = self._needs.of(node)
        for user, reading in self._readings(argument):
            if (
                user is not copy
                and self._at[user] > self._at[node]
                and not contradict(reading, case)
            ):
                return True
        return False

    def _readings(self, root: Node) -> Iterator[tuple[Node, Case]]:
        """Yield the nodes that read the memory of a node, and the case in which they do."""
        for node in self._sharing[root]:
            shared = self._roots[node][root]
            for user in node.users:
                if user in self._needs and not _only_writes(user, node):
                    reading = self._needs.reading(user, node)
                    yield user, shared | self._needs.of(user) | reading


def _only_writes(node: Node, argument: Node) -> bool:
    """Whether a node writes an argument without reading it."""
    return (
        node.target is aten.copy_.default
        and node.args[0] is argument
        and node.args[1] is not argument
    )
