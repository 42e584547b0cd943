"""Repeat the operations of a function of many tensors as it was recorded: no pass changes how a result is rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from gradtx.compiler.fuse import remove_unused
from gradtx.compiler.graph import computes, is_view
from gradtx.compiler.record import CPU, PhaseResult, record
from gradtx.compiler.text import Text, Unquoted, function_text, tuple_of

aten = torch.ops.aten


# Operators that functions of torch with the same arguments call in less time.
UNARY = "abs clone exp expm1 log neg reciprocal rsqrt sign sqrt tanh"
BINARY = "add div eq ge gt le lt mul ne sub"
AS_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name).default: getattr(torch, name) for name in UNARY.split()},
    **{getattr(aten, name).Tensor: getattr(torch, name) for name in BINARY.split()},
    aten.eq.Scalar: torch.eq,
    aten.ne.Scalar: torch.ne,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.where.self: torch.where,
}


# Those whose second operand may be a number, of which torch makes a tensor in each call.
WITH_NUMBERS = (
    aten.add.Tensor,
    aten.div.Tensor,
    aten.eq.Scalar,
    aten.mul.Tensor,
    aten.ne.Scalar,
    aten.sub.Tensor,
)
WIDE = (torch.float32, torch.float64)


class Repeated:
    """A function of tensors, which repeats the operations that it runs on stand-ins without values.

    Args:
        function: The function; its results share no memory with each other or with the arguments.
        tensors: Tensors with the dtypes and shapes of its arguments, which are contiguous on one device. Where autograd
            records, it records operations that are repeated as those of the function.

    Attributes:
        size: How many operations it has.

    Raises:
        Exception: If the function does something that cannot be repeated, as `record` says.
    """

    def __init__(
        self,
        function: Callable[[list[Tensor]], list[Tensor]],
        tensors: Sequence[Tensor],
    ):
        def outputs(arguments: list[Tensor]) -> PhaseResult:
            return PhaseResult(function(arguments), (), None)

        device = tensors[0].device
        kinds = [(tensor.dtype, tensor.shape) for tensor in tensors]
        records = torch.is_grad_enabled()
        flags = [tensor.requires_grad for tensor in tensors] if records else []
        recording = record(outputs, (), kinds, device, flags)
        graph = recording.graph
        graph.output(tuple(recording.outputs))
        for node in graph.nodes:
            node.meta["kind"] = "list"
        _merge_equal(graph, recording.outputs)
        remove_unused(graph)
        self.size = len(graph.nodes)
        self._run = _compiled(graph, recording.leaves, recording.outputs, device)

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return self._run(tensors)


def _merge_equal(graph: Graph, outputs: Iterable[Node]) -> None:
    """Run equal operations once, such as the corrections of each leaf; results keep memory of their own."""
    kept = set(outputs)
    for node in reversed(graph.nodes):
        if any(user in kept and is_view(user) for user in node.users):
            kept.add(node)
    earlier: dict[str, Node] = {}
    for node in list(graph.nodes):
        if not computes(node) or node in kept or node.target is aten.clone.default:
            continue
        if getattr(node.meta["val"], "requires_grad", True):
            continue  # derivatives would be added in another order
        equal = earlier.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
        if equal is not node:
            node.replace_all_uses_with(equal)
            graph.erase_node(node)


def _with_constants(graph: Graph, text: Text) -> None:
    """Make numbers beside tensors 0-d tensors of the same dtype, which are rounded alike and made once."""
    names: dict[Any, str] = {}
    for node in graph.nodes:
        if node.target not in WITH_NUMBERS or text.device.type != "cpu":
            continue
        x, number, *others = node.args
        value = x.meta["val"] if isinstance(x, Node) else None
        if value is None or not value.ndim or value.dtype not in WIDE:
            continue
        is_float = type(number) in (float, int)
        if is_float and abs(number) <= torch.finfo(value.dtype).max:
            constant = torch.tensor(number, dtype=value.dtype, device=CPU)
            # As text, because -0.0 equals 0.0.
            name = names.setdefault(repr((number, value.dtype)), f"number_{node.name}")
            text.namespace.setdefault(name, constant)
            node.args = (x, Unquoted(name), *others)


# Autograd saves no inference tensors.
@torch.inference_mode(False)
def _compiled(
    graph: Graph,
    arguments: Sequence[Node],
    outputs: Sequence[Node],
    device: torch.device,
) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    """Return a graph as a function, in which each value is freed after its last use."""
    text = Text(device)
    _with_constants(graph, text)
    last_user: dict[Node, Node] = {}
    for node in graph.nodes:
        for value in node.all_input_nodes:
            last_user[value] = node
    lines = [f"{tuple_of([node.name for node in arguments])} = tensors"]
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        line = f"{node.name} = {text.shared(node)}"
        if node.target in AS_FUNCTIONS:
            text.namespace[f"f_{node.name}"] = AS_FUNCTIONS[node.target]
        freed = [
            value.name for value in node.all_input_nodes if last_user[value] is node
        ]
        lines.append("; ".join([line, *(f"del {name}" for name in freed)]))
    lines.append(f"return {tuple_of([node.name for node in outputs])}")
    source = function_text("run(tensors)", lines)
    exec(compile(source, "<gradtx repeated operations>", "exec"), text.namespace)
    return text.namespace["run"]
