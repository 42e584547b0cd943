"""Move scalars out of traced programs, and reduce divisions and library calls, which take longer than loads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from gradtx.base import torch_names as _torch
from gradtx.base.plain import is_plain
from gradtx.programs.bundle import numbers_for
from gradtx.programs.contract import computes, merge_equal
from gradtx.programs.record import Recording, add_constant
from gradtx.programs.write_lists import ListFunction, list_function

# Minimax approximation of atan(t) / t by a polynomial in t^2 for t in [0, 1]: relative error 2e-8, rounding adds 1e-7.
ATAN = (
    *(0.999999985, -0.333330733, 0.199926194, -0.142036447, 0.106409344),
    *(-0.0750429475, 0.0426915161, -0.0160686242, 0.00284988782),
)


def _atan(x: Tensor) -> Any:
    """Return the float32 arc tangent in operations that a kernel can inline; torch's kernels call a library."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    size = x.abs()
    t = torch.where(size > 1, 1 / size, size)
    square = t * t
    value = torch.full_like(t, ATAN[-1])
    for coefficient in reversed(ATAN[:-1]):
        value = value * square + coefficient
    value = torch.where(size > 1, math.pi / 2 - t * value, t * value)
    return torch.where(x < 0, -value, value)


def _in_single(function: Any) -> Any:
    """Compute a bfloat16 product in float32, rounded once, where that is faster."""

    def product(*arguments: Any, **options: Any) -> Any:
        first: Tensor = arguments[0]
        if (
            first.dtype != torch.bfloat16
            or first.device.type != "cpu"
            or _torch.multiplies_in_bfloat16()
        ):
            return NotImplemented
        wide = [
            argument.float() if isinstance(argument, Tensor) else argument
            for argument in arguments
        ]
        return function(*wide, **options).to(torch.bfloat16)

    return product


def _in_two_steps(x: Tensor, dtype: torch.dtype) -> Any:
    """Convert float32 to an 8-bit integer by way of int32, in 2 instructions; torch's direct conversion takes 7."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    if dtype not in (torch.int8, torch.uint8):
        return NotImplemented
    return x.to(torch.int32).to(dtype)


def _isnan(x: Tensor) -> Any:
    """Find NaN by a comparison: torch's CPU kernels test each entry alone."""
    return x != x if x.device.type == "cpu" else NotImplemented


def _nan_to_num(
    x: Tensor,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Any:
    """Replace NaN in one operation if infinities remain."""
    if x.device.type != "cpu" or not x.is_floating_point():
        return NotImplemented
    keeps_infinities = posinf == math.inf and neginf == -math.inf
    if nan is None or not keeps_infinities:
        return NotImplemented
    return torch.where(x.isnan(), nan, x)


def _where(condition: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Select among 8-bit floats as float32, which represents them exactly: the compiler has no other form of it."""
    if x.dtype is not other.dtype or x.dtype not in EIGHT_BITS:
        return NotImplemented
    return torch.where(condition, x.float(), other.float()).to(x.dtype)


aten = torch.ops.aten
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
REPLACED = {
    aten.atan.default: _atan,
    aten.isnan.default: _isnan,
    aten.nan_to_num.default: _nan_to_num,
    aten.where.self: _where,
    torch.ops.prims.convert_element_type.default: _in_two_steps,
    **{product: _in_single(product) for product in PRODUCTS},
}


def is_number(node: Node) -> bool:
    """Whether a node's value is a 0-d tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim == 0


def multiply(module: GraphModule) -> None:
    """Replace divisions by scalars with products by reciprocals: a division takes longer than loading its operand."""
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.div.Tensor):
        divisor = node.args[1]
        if is_number(node) or not isinstance(divisor, Node) or not is_number(divisor):
            continue
        if not divisor.meta["val"].is_floating_point():
            continue
        with graph.inserting_after(divisor):
            inverse = graph.call_function(aten.reciprocal.default, (divisor,))
        inverse.meta = {"val": divisor.meta["val"]}
        node.target = aten.mul.Tensor
        node.args = (node.args[0], inverse)


def narrow(module: GraphModule) -> None:
    """Round scalars to float32 before operations that would do so: a kernel loop would round them for each vector."""
    graph = module.graph
    last_argument = graph.find_nodes(op="placeholder")[-1]
    for number in list(graph.nodes):
        if not is_number(number) or number.meta["val"].dtype != torch.float64:
            continue
        users = [user for user in number.users if _computes_in_single(user)]
        if not users:
            continue
        with graph.inserting_after(
            last_argument if number.op == "placeholder" else number
        ):
            rounded = graph.call_function(
                torch.ops.prims.convert_element_type.default, (number, torch.float32)
            )
        rounded.meta = {"val": number.meta["val"].to(torch.float32)}
        for user in users:
            user.replace_input_with(number, rounded)


def _computes_in_single(node: Node) -> bool:
    """Whether an operation converts its scalars to float32, since torch promotes them to the dtype of the tensors."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 0 and value.dtype == torch.float32


def hoist(
    module: GraphModule, sources: list[Node], before: Node
) -> tuple[Recording, list[Node]]:
    """Extract from a graph all scalars that can be computed from the arguments `sources`.

    Returns:
        The computation of the extracted scalars that the rest of the graph needs, and the arguments, inserted before
        the argument `before`, that receive their values.
    """
    graph = module.graph
    merge_equal(graph, _computes_number)
    computable = _numbers_from(graph, sources)
    needed: list[Node] = []
    for node, follows in computable.items():
        if (
            follows
            and node not in sources
            and not computable.keys() >= node.users.keys()
        ):
            needed.append(node)
    numbers = _recording_of(graph, computable, sources, needed)
    arguments = []
    for node in needed:
        with graph.inserting_before(before):
            argument = graph.placeholder(f"{node.name}_known")
        argument.meta = dict(node.meta)
        node.replace_all_uses_with(argument)
        arguments.append(argument)
    graph.eliminate_dead_code()
    module.recompile()
    return numbers, arguments


def _computes_number(node: Node) -> bool:
    """Whether a node computes a scalar or is a constant scalar, and writes nothing."""
    return is_number(node) and (node.op == "get_attr" or computes(node))


def _numbers_from(graph: Graph, sources: list[Node]) -> dict[Node, bool]:
    """Return the scalars that a graph can compute from `sources` alone, and whether each depends on them.

    Constants do not depend on them, and a constant alone is not worth an argument.
    """
    depends = dict.fromkeys(sources, True)
    for node in graph.nodes:
        if (
            node not in depends
            and _computes_number(node)
            and depends.keys() >= set(node.all_input_nodes)
        ):
            depends[node] = any(depends[argument] for argument in node.all_input_nodes)
    return depends


def _recording_of(
    graph: Graph,
    computable: dict[Node, bool],
    sources: list[Node],
    needed: list[Node],
) -> Recording:
    """Return the operations that compute the nodes `needed` from `sources`."""
    numbers = Graph()
    copies: dict[Node, Node] = {}
    for source in sources:
        copies[source] = numbers.placeholder(source.name)
        copies[source].meta = dict(source.meta)
    for node in graph.nodes:
        if node in computable and node not in copies:
            copies[node] = numbers.node_copy(node, copies.__getitem__)
    arguments = [copies[source] for source in sources]
    results = [copies[node] for node in needed]
    return Recording(numbers, arguments, [], results, [])


def module_of(recording: Recording, owner: GraphModule) -> GraphModule:
    """Return a recording of scalars as a function of its arguments; `owner` contains the constants."""
    recording.graph.output(tuple(recording.outputs))
    return GraphModule(owner, recording.graph)


class KnownScalar(NamedTuple):
    """A scalar of the previous step; a pair that is replaced as one, because threads share programs.

    Attributes:
        value: Its value.
        tensor: The same as a tensor; None before the first step.
    """

    value: Any = None
    tensor: Tensor | None = None


class StepNumbers:
    """Compute the scalar arguments of a kernel: in Python, or on the device if the host would have to synchronize.

    Args:
        of_step: The operations that compute them from the scalars of a step.
        kept: The nodes of the scalars of a step that the kernel also receives unchanged.
        owner: The module that contains the constants.
    """

    def __init__(self, of_step: Recording, kept: list[Node], owner: GraphModule):
        results = [*kept, *of_step.outputs]
        recording = dataclasses.replace(of_step, outputs=results)
        self._recording = recording
        self._argument_dtypes = _dtypes_of(recording.numbers)
        self._dtypes = _dtypes_of(recording.outputs)
        self._functions: dict[tuple[torch.device, frozenset[int]], ListFunction] = {}
        self._known: dict[torch.device, list[KnownScalar]] = {}
        _write_constants(recording.graph, owner)

    def compute(
        self, given: Sequence[Any], device: torch.device, on_host: bool
    ) -> list[Tensor]:
        """Return the kernel's scalars as 0-d tensors; `on_host` is whether the host may read the given ones."""
        dtypes = self._argument_dtypes
        numbers, on_device = numbers_for(given, dtypes, device, on_host)
        function = self._function(device, on_device)
        # `prepare` alone orders its values by the graph, and returns two equal results once.
        prepared = function.prepare(numbers)
        values = function.run(prepared, ())
        return self._tensors(values, device)

    def _tensors(self, values: Sequence[Any], device: torch.device) -> list[Tensor]:
        """Return 0-d tensors, those of the previous step where values are the same: creating them takes longer."""
        known = self._known.setdefault(device, [KnownScalar()] * len(values))
        tensors = []
        for i, (value, dtype) in enumerate(zip(values, self._dtypes, strict=True)):
            if isinstance(value, Tensor):
                tensors.append(value)
                continue
            tensor = known[i].tensor
            # The signs of equal zeros may differ.
            if tensor is None or value != known[i].value or value == 0:
                tensor = torch.full((), value, dtype=dtype, device=device)
                # Tensors of a trace may be fake.
                if is_plain(tensor):
                    known[i] = KnownScalar(value, tensor)
            tensors.append(tensor)
        return tensors

    def _function(
        self, device: torch.device, on_device: frozenset[int]
    ) -> ListFunction:
        """Return the function for a device and for some scalars that are tensors, created at the first call."""
        key = device, on_device
        if key not in self._functions:
            self._functions[key] = list_function(self._recording, device, on_device)
        return self._functions[key]


def _dtypes_of(nodes: Sequence[Node]) -> list[torch.dtype]:
    return [node.meta["val"].dtype for node in nodes]


def _write_constants(graph: Graph, owner: GraphModule) -> None:
    """Replace references to constants with their values."""
    for node in graph.find_nodes(op="get_attr"):
        tensor: Tensor = getattr(owner, node.target)
        with graph.inserting_before(node):
            constant = add_constant(graph, tensor)
        constant.meta["val"] = tensor
        node.replace_all_uses_with(constant)
        graph.erase_node(node)
