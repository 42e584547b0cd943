"""Numbers that follow from a leaf's shape, such as that of its entries, as arguments of kernels for all shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from gradtx.programs.record import META, Recording
from gradtx.programs.simplify import DIMENSIONS, SAME_ENTRIES

aten = torch.ops.aten

# The types of arguments that a 0-d tensor may replace.
NUMBERS = ("number", "Optional[number]", "Tensor")
# Operations whose numbers decide which operation it is, or are sizes.
OTHERS = (aten.linalg_vector_norm.default, aten.arange.default)


@dataclass(frozen=True)
class Numbers:
    """The numbers of a phase that are arguments.

    Attributes:
        positions: Their positions among all numbers of the phase.
        first: The index of the first one among the numbers of all phases.
        count: How many numbers of all phases are arguments.
    """

    positions: tuple[int, ...] = ()
    first: int = 0
    count: int = 0


LITERAL = Numbers()


def _takes_number(node: Node, i: int) -> bool:
    """Whether an argument of an operation is a number in whose place a tensor may be."""
    value, schema = node.args[i], getattr(node.target, "_schema", None)
    if schema is None or node.target in OTHERS or isinstance(value, bool):
        return False
    kind = str(schema.arguments[i].type)
    return isinstance(value, int | float) and kind in NUMBERS


def skeleton_of(recording: Recording) -> tuple[str, list[int | float]]:
    """Return a text of the operations without numbers, sizes and views, and the numbers."""
    lines: list[str] = []
    numbers: list[int | float] = []
    names: dict[Any, str] = {}
    for node in recording.graph.nodes:
        if node.target in SAME_ENTRIES:
            names[node] = names[node.args[0]]
            continue
        names[node] = str(len(lines))
        operands: list[Any] = []
        for i, value in enumerate(node.args):
            is_size = isinstance(value, list) and node.target not in DIMENSIONS
            if _takes_number(node, i):
                numbers.append(value)  # type: ignore[arg-type]
                operands.append("a number")
            elif is_size or node.target is aten.arange.default:
                operands.append("a size")
            elif isinstance(value, list):
                operands.append(_are_last(node, value) or value)
            else:
                operands.append(map_aggregate(value, _name_in(names)))
        dtype = getattr(node.meta.get("val"), "dtype", None)
        kwargs = map_aggregate(node.kwargs, _name_in(names))
        lines.append(f"{node.target} {operands} {kwargs} {dtype}")
    return "\n".join(lines), numbers


def _are_last(reduction: Node, dims: list[int]) -> str:
    """Return a text if a reduction is over the last dimensions, of which leaves have more or less."""
    operand: Any = reduction.args[0]
    ndim = operand.meta["val"].ndim
    reduced = sorted(dim % ndim for dim in dims) if ndim else []
    return "the last" if reduced == [*range(ndim)][-len(reduced) :] else ""


def _name_in(names: dict[Any, str]) -> Callable[[Any], Any]:
    return lambda value: names.get(value, value) if isinstance(value, Node) else value


def with_arguments(recording: Recording, numbers: Numbers) -> Recording:
    """Return a copy of a recording in which some numbers are 0-d arguments of the leaf, after its others."""
    recording = recording.copy()
    graph, arguments = recording.graph, []
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for i in range(numbers.count):
        with graph.inserting_before(first):
            argument = graph.placeholder(f"number{i}")
        argument.meta["val"] = torch.empty((), dtype=torch.float64, device=META)
        arguments.append(argument)
    recording.leaves.extend(arguments)
    known = dict(zip(numbers.positions, arguments[numbers.first :], strict=False))
    position = 0
    for node in graph.nodes:
        for i in range(len(node.args)):
            if _takes_number(node, i):
                if position in known:
                    node.update_arg(i, known[position])
                position += 1
    return recording
