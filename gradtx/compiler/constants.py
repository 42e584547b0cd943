"""Constants that follow from a leaf's shape, such as that of its entries, as arguments of kernels for all shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from gradtx.compiler.graph import following
from gradtx.compiler.record import META, Recording
from gradtx.compiler.simplify import DIMENSIONS, SAME_ENTRIES

aten = torch.ops.aten

# The types of arguments that a 0-d tensor may replace.
OPERANDS = ("number", "Optional[number]", "Tensor")
# Operations whose constants decide which operation it is, are sizes, or are the value itself.
OTHERS = (
    aten.linalg_vector_norm.default,
    aten.arange.default,
    aten.scalar_tensor.default,
)


@dataclass(frozen=True)
class Constants:
    """The constants of a phase that are arguments.

    Attributes:
        positions: Their positions among all constants of the phase.
        first: The index of the first one among the constants of all phases.
        count: How many constants of all phases are arguments.
    """

    positions: tuple[int, ...] = ()
    first: int = 0
    count: int = 0


LITERAL = Constants()


def _takes_constant(node: Node, i: int) -> bool:
    """Whether an argument of an operation is a constant in whose place a tensor may be."""
    value, schema = node.args[i], getattr(node.target, "_schema", None)
    if schema is None or node.target in OTHERS or isinstance(value, bool):
        return False
    kind = str(schema.arguments[i].type)
    return isinstance(value, int | float) and kind in OPERANDS


def skeleton_of(recording: Recording) -> tuple[str, list[int | float]]:
    """Return a text of the operations without constants, sizes and views, and the constants."""
    lines: list[str] = []
    constants: list[int | float] = []
    names: dict[Any, str] = {}
    for node in recording.graph.nodes:
        if node.target in SAME_ENTRIES:
            names[node] = names[node.args[0]]
            continue
        names[node] = str(len(lines))
        operands: list[Any] = []
        for i, value in enumerate(node.args):
            is_size = isinstance(value, list) and node.target not in DIMENSIONS
            if _takes_constant(node, i):
                constants.append(value)  # type: ignore[arg-type]
                operands.append("a constant")
            elif is_size or node.target is aten.arange.default:
                operands.append("a size")
            elif isinstance(value, list):
                operands.append(_are_last(node, value) or value)
            else:
                operands.append(map_aggregate(value, _name_in(names)))
        dtype = getattr(node.meta.get("val"), "dtype", None)
        kwargs = map_aggregate(node.kwargs, _name_in(names))
        lines.append(f"{node.target} {operands} {kwargs} {dtype}")
    return "\n".join(lines), constants


def _are_last(reduction: Node, dims: list[int]) -> str:
    """Return a text if a reduction is over the last dimensions, of which leaves have more or less."""
    operand: Any = reduction.args[0]
    ndim = operand.meta["val"].ndim
    reduced = sorted(dim % ndim for dim in dims) if ndim else []
    return "the last" if reduced == [*range(ndim)][-len(reduced) :] else ""


def _name_in(names: dict[Any, str]) -> Callable[[Any], Any]:
    return lambda value: names.get(value, value) if isinstance(value, Node) else value


def with_arguments(recording: Recording, constants: Constants) -> Recording:
    """Return a copy of a recording in which some constants are 0-d arguments of the leaf, after its others."""
    recording = recording.copy()
    graph, arguments = recording.graph, []
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for i in range(constants.count):
        with graph.inserting_before(first):
            argument = graph.placeholder(f"constant{i}")
        argument.meta["val"] = torch.empty((), dtype=torch.float64, device=META)
        arguments.append(argument)
    recording.leaves.extend(arguments)
    argument_of = dict(
        zip(constants.positions, arguments[constants.first :], strict=False)
    )
    position = 0
    for node in graph.nodes:
        for i in range(len(node.args)):
            if _takes_constant(node, i):
                if position in argument_of:
                    node.update_arg(i, argument_of[position])
                position += 1
    return recording


def with_totals_of_leaves(recording: Recording, first: int) -> Recording:
    """Return a copy of a recording in which each leaf computes what follows from totals, if no result does.

    On a GPU, the host does not know totals of earlier phases, which are the scalars from `first` on: each operation on
    them would be a launch.
    """
    copy = recording.copy()
    totals = copy.scalars[first:]
    if not totals or not following(copy.graph, totals).isdisjoint(copy.outputs):
        return recording
    graph = copy.graph
    operation = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(operation):
        like = graph.placeholder("like")  # nothing reads it
    like.meta["val"] = torch.empty((), dtype=torch.float64, device=META)
    copy.leaves.append(like)
    for total in totals:
        users = list(total.users)
        with graph.inserting_before(operation):
            of_leaf = graph.call_function(aten.full_like.default, (like, total))
        of_leaf.meta["val"] = total.meta["val"]
        for user in users:
            user.replace_input_with(total, of_leaf)
    return copy
