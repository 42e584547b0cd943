"""What makes traced programs cheaper: a core is kept busy by numbers, divisions and libraries' functions longer than it
takes to fetch the entries.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

# atan(t) / t as a polynomial of t^2 for t in [0, 1], of least relative error: 2e-8, rounding adds 1e-7.
ATAN = (
    *(0.999999985, -0.333330733, 0.199926194, -0.142036447, 0.106409344),
    *(-0.0750429475, 0.0426915161, -0.0160686242, 0.00284988782),
)


def _atan(x: Tensor) -> Any:
    """The arc tangent in single precision, in operations that a kernel inlines; torch's kernels call a library."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    size = x.abs()
    t = torch.where(size > 1, 1 / size, size)
    square, value = t * t, torch.full_like(t, ATAN[-1])
    for coefficient in reversed(ATAN[:-1]):
        value = value * square + coefficient
    value = torch.where(size > 1, math.pi / 2 - t * value, t * value)
    return torch.where(x < 0, -value, value)


REPLACED = {torch.ops.aten.atan.default: _atan}


def is_number(node: Node) -> bool:
    """Whether a node's value is a 0-d tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim == 0


def multiply(module: GraphModule) -> None:
    """Divide by numbers through their reciprocals: a division takes a core longer than fetching what is divided."""
    aten, graph = torch.ops.aten, module.graph
    for node in graph.find_nodes(op="call_function", target=aten.div.Tensor):
        by = node.args[1]
        if isinstance(by, Node) and is_number(by) and by.meta["val"].is_floating_point() and not is_number(node):
            with graph.inserting_after(by):
                inverse = graph.call_function(aten.reciprocal.default, (by,))
            inverse.meta = {"val": by.meta["val"]}
            node.target, node.args = aten.mul.Tensor, (node.args[0], inverse)


def hoist(module: GraphModule, sources: list[Node], after: Node) -> tuple[GraphModule | None, list[Node]]:
    """Take out of a graph all numbers that follow from the arguments `sources`.

    Returns a function of these arguments that computes the numbers which the rest needs (None if it needs none), and
    the rest's new arguments for them, which stand behind the argument `after`.
    """
    graph = module.graph
    found, depends = set(sources), set(sources)  # constants are numbers, too, but on their own not worth an argument
    same: dict[str, Node] = {}
    for node in graph.nodes:
        inner = node.op == "get_attr" or (node.op == "call_function" and not _writes(node))
        if inner and is_number(node) and found.issuperset(node.all_input_nodes):
            first = same.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
            if first is not node:  # what each leaf of a bundle has computed for itself
                node.replace_all_uses_with(first)
                graph.erase_node(node)
                continue
            found.add(node)
            if not depends.isdisjoint(node.all_input_nodes):
                depends.add(node)
    wanted = [
        node for node in graph.nodes if node in depends and node not in sources and not found.issuperset(node.users)
    ]
    if not wanted:
        return None, []
    numbers, copies = Graph(), {}
    for source in sources:
        copies[source] = numbers.placeholder(source.name)
    for node in graph.nodes:
        if node in found and node not in copies:
            copies[node] = numbers.node_copy(node, copies.__getitem__)
    numbers.output(tuple(copies[node] for node in wanted))
    numbers.eliminate_dead_code()
    arguments = []
    for node in reversed(wanted):
        with graph.inserting_after(after):
            argument = graph.placeholder(f"{node.name}_known")
        argument.meta = dict(node.meta)
        node.replace_all_uses_with(argument)
        arguments.insert(0, argument)
    graph.eliminate_dead_code()
    module.recompile()
    return GraphModule(module, numbers), arguments


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
