"""What the nodes of a recorded graph are: values of each leaf, scalars that all leaves share, operations, views."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from gradtx.base import torch_names as _torch

aten = torch.ops.aten


def args_of(node: Node) -> Any:
    """Return the arguments of a node, whose types depend on its operation."""
    return node.args


def is_list(node: Any) -> bool:
    """Whether each leaf has its own value of a node."""
    return isinstance(node, Node) and node.meta["kind"] == "list"


def is_scalar(node: Any) -> bool:
    """Whether a value is a 0-d value that all leaves share, or a constant."""
    return not isinstance(node, Node) or node.meta["kind"] == "scalar"


def is_on_device(scalar: Any) -> bool:
    """Whether a scalar is a 0-d tensor, because the host would have to wait for its value."""
    return isinstance(scalar, Node) and scalar.meta.get("on_device", False)


def is_on_host(value: Any) -> bool:
    """Whether a value is a constant or a scalar that the host computes: a Python scalar."""
    return is_scalar(value) and not is_on_device(value)


def operator_name(node: Any) -> str:
    """Return the name of a node's operator, without its overload."""
    name: str = node.target.__name__
    return name.partition(".")[0]


def dtype_of(node: Any) -> torch.dtype:
    """Return the dtype of a node's values."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def same_meta(*nodes: Any) -> bool:
    """Whether a leaf's values of these nodes have the same shape and dtype."""
    first, *others = [node.meta["val"] for node in nodes]
    if not isinstance(first, Tensor):  # a symbolic size
        return False
    kind = first.shape, first.dtype
    return all(
        isinstance(other, Tensor) and (other.shape, other.dtype) == kind
        for other in others
    )


def same_layout(x: Any, y: Any) -> bool:
    """Whether a leaf's values of two nodes also have the same order in memory."""
    return same_meta(x, y) and x.meta["val"].stride() == y.meta["val"].stride()


def argument_like(node: Node) -> Node | None:
    """Return an argument of a leaf with the shape, dtype and layout of a node, if there is one."""
    for argument in node.graph.nodes:
        is_argument = argument.op == "placeholder" and is_list(argument)
        if is_argument and same_layout(node, argument):
            return argument
    return None


def writers(argument: Any) -> list[Node]:
    """Return the operations that write into an argument."""
    return [
        user
        for user in argument.users
        if _torch.writes(user.target) and user.args[0] is argument
    ]


def following(graph: Graph, arguments: Iterable[Node]) -> set[Node]:
    """Return these arguments and all nodes that depend on any of them."""
    reached = set(arguments)
    for node in graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return reached


def is_view(node: Node) -> bool:
    """Whether the operation of a node may return a view of an operand."""
    if node.meta.get("opaque"):
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.target is aten._unsafe_view.default:
        return True
    return any(result.alias_info is not None for result in schema.returns)


def may_be_operand(node: Node) -> bool:
    """Whether a result may share memory with an operand, which `where` may select."""
    return node.target is aten.where.self or is_view(node)


def arguments_of(*lists: Any) -> Set[Node]:
    """Return the arguments with which lists may share memory."""
    arguments: set[Node] = set()
    for node in lists:
        if node.op != "call_function":
            arguments.add(node)
        elif may_be_operand(node):
            arguments |= arguments_of(*node.all_input_nodes)
    return arguments


def computes(node: Node) -> bool:
    """Whether a node is an operation that writes nothing."""
    return node.op == "call_function" and not _torch.writes(node.target)
