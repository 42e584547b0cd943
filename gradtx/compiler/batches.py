"""Batch leaves: on accelerators, one operation on a batch replaces one per leaf."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base.torch_names import storage_id
from gradtx.compiler.graph import args_of, is_list
from gradtx.compiler.liveness import Case
from gradtx.compiler.simplify import DIMENSIONS, reduced_dimensions
from gradtx.compiler.terms import is_pointwise

aten = torch.ops.aten

OF_MATRICES = (
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.mv.default,
    aten.linalg_qr.default,
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
    aten.linalg_solve_triangular.default,
)


SMALL = 2**18  # entries: a launch takes as long as to read and write half a million


def batches_on(device: torch.device) -> bool:
    """Whether to batch leaves of one shape on this device.

    On a CPU, loops are faster, and results do not depend on the number of leaves.
    """
    return device.type not in ("cpu", "meta")


def batches_of(
    nodes: Sequence[Node],
    has_list_call: Callable[[Node], bool],
    case_of: Callable[[Node], Case | None],
) -> list[list[Node]]:
    """Return the operations of a lowered graph to run on batches; those of one batch are consecutive.

    A batch extends from the first to the last operation without a list call among consecutive operations of one case.
    Operations on 0-d values of leaves at its start and end are batches of their own, which leaves of all shapes share.

    Args:
        nodes: The graph.
        has_list_call: Whether one call runs an operation for a list of leaves.
        case_of: The case in which an operation runs; None if it cannot be part of a batch.
    """
    calls = [node for node in nodes if node.op == "call_function" and is_list(node)]
    batches = []
    for case, run in itertools.groupby(calls, case_of):
        batch = [] if case is None else _trimmed(list(run), has_list_call)
        batches += _divided(batch)
    return batches


def _divided(batch: list[Node]) -> list[list[Node]]:
    """Divide a batch into those of its first operations and of its last ones on 0-d values, and the rest."""
    others = [i for i, node in enumerate(batch) if not _is_on_0d(node)]
    first, last = (others[0], others[-1] + 1) if others else (len(batch), len(batch))
    batches = [batch[:first], batch[first:last], batch[last:]]
    return [batch for batch in batches if batch]


def _is_on_0d(node: Node) -> bool:
    """Whether all operands are 0-d values of leaves."""
    return _shapes([item for item in node.all_input_nodes if is_list(item)]) == {()}


def _shapes(nodes: Iterable[Node]) -> set[Any]:
    values = [node.meta["val"] for node in nodes]
    return {getattr(value, "shape", None) for value in values}


def _trimmed(nodes: list[Node], has_list_call: Callable[[Node], bool]) -> list[Node]:
    """Return the operations from the first to the last without a list call."""
    without_call = [i for i, node in enumerate(nodes) if not has_list_call(node)]
    if not without_call:
        return []
    return nodes[without_call[0] : without_call[-1] + 1]


ENTRIES, BLOCKS = "entries", "blocks"


def unit_of(batch: Sequence[Node], arguments: Collection[Node]) -> str:
    """Return the unit of a leaf that results depend on: its entries, blocks of vectors, or "" for the whole leaf."""
    shapes = _shapes([*batch, *arguments])
    if len(shapes) == 1 and () not in shapes and all(map(_is_by_entry, batch)):
        return ENTRIES
    if _dims(arguments) == {1} and all(map(_is_by_block, batch)):
        return BLOCKS
    return ""


def _is_by_entry(node: Node) -> bool:
    return is_pointwise(node.target) or node.target is aten._to_copy.default


def _is_by_block(node: Node) -> bool:
    """Whether each block of a result depends only on one of the operands: these are vectors or (1, blocks, entries)."""
    if node.target is aten.view.default:
        shape = args_of(node)[1]
        return shape == [-1] or shape[:-1] == [1, -1]
    values = [node, *filter(is_list, node.all_input_nodes)]
    dims = _dims(values)
    if node.target in DIMENSIONS:
        return dims == {3} and reduced_dimensions(node) == [-1]
    if dims not in ({1}, {3}) or not _is_by_entry(node):
        return False
    # Blocks may be repeated along their entries; a single one is not repeated for all others.
    return len({shape[:2] for shape in _shapes(values)}) == 1


def _dims(nodes: Iterable[Node]) -> set[Any]:
    """Return how many dimensions values have; those that are no tensors have none."""
    return {getattr(node.meta["val"], "ndim", None) for node in nodes}


def most_entries(batch: Sequence[Node], arguments: Collection[Node]) -> float:
    """Return the most entries of a leaf for which the launches that a batch saves take longer than copies of arguments.

    Products and factorizations of matrices are worth any copies.
    """
    if any(node.target in OF_MATRICES for node in batch):
        return math.inf
    return SMALL * max(len(batch) // len(arguments), 1)


def batched(
    limit: float,
    unit: str,
    function: Callable[..., tuple[Tensor, ...]],
    *columns: Sequence[Tensor],
) -> tuple[list[Tensor], ...]:
    """Call a function of one leaf for all leaves: once per group.

    Args:
        limit: The most entries of a tensor in a group; the copy of a larger one takes longer than its launches.
        unit: As `unit_of` returns it. Leaves of all shapes are one group if the function depends on entries, none of
            which it broadcasts, or on blocks of vectors whose lengths have the same ratios.
        function: Accepts one tensor from each column and returns a tuple of tensors.
        columns: Lists of tensors, one tensor per leaf.

    Returns:
        One list per result.
    """
    rows = list(zip(*columns, strict=True))
    groups: dict[Any, list[int]] = {}
    for leaf, tensors in enumerate(rows):
        key: Any = _group_of(unit, tuple([tensor.shape for tensor in tensors]))
        if max(map(Tensor.numel, tensors)) > limit:
            key = leaf
        groups.setdefault(key, []).append(leaf)
    results_of_leaf: dict[int, tuple[Tensor, ...]] = {}
    for key, leaves in groups.items():
        group = [rows[leaf] for leaf in leaves]
        if len(group) == 1:
            results = [function(*group[0])]
        elif key[0] == unit:
            results = _joined(function, group, unit)
        else:
            results = _stacked(function, group)
        results_of_leaf.update(zip(leaves, results, strict=True))
    results_by_leaf = [results_of_leaf[leaf] for leaf in range(len(rows))]
    return tuple(map(list, zip(*results_by_leaf, strict=True)))


def _group_of(unit: str, shapes: tuple[torch.Size, ...]) -> tuple[Any, ...]:
    """Return what the leaves of a group have in common; it starts with the unit if they are joined.

    The lengths of vectors of blocks have the same ratios, from which the lengths of results follow.
    """
    if unit == ENTRIES and len(set(shapes)) == 1:
        return (ENTRIES,)
    if unit == BLOCKS and {len(shape) for shape in shapes} == {1} and shapes[0][0]:
        return BLOCKS, *(shape[0] / shapes[0][0] for shape in shapes)
    return shapes


def _joined(
    function: Callable[..., tuple[Tensor, ...]],
    rows: list[tuple[Tensor, ...]],
    unit: str,
) -> list[tuple[Tensor, ...]]:
    """Return the results of each leaf from those of the entries or blocks of all."""
    shapes = [first.shape for first, *_ in rows]
    if unit == ENTRIES:
        rows = [tuple([tensor.reshape(-1) for tensor in row]) for row in rows]
    joined = [
        torch.cat(tensors, _axis(tensors[0])) for tensors in zip(*rows, strict=True)
    ]
    lengths = [first.size(_axis(first)) for first, *_ in rows]
    total = sum(lengths) or 1  # leaves may be empty
    results = []
    for result in function(*joined):
        axis = _axis(result)
        sizes = [length * result.size(axis) // total for length in lengths]
        pieces = result.split(sizes, axis)
        if unit == ENTRIES:
            pieces = tuple(map(Tensor.view, pieces, shapes))
        results.append(pieces)
    return list(zip(*results, strict=True))


def _axis(values: Tensor) -> int:
    """Return the dimension of the entries of a vector, or of the blocks of (1, blocks, entries)."""
    return values.ndim // 2


def _stacked(
    function: Callable[..., tuple[Tensor, ...]], rows: list[tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """Return the results of each leaf, for leaves of equal shapes."""
    stacked_columns = [torch.stack(tensors) for tensors in zip(*rows, strict=True)]
    stacked_results = torch.vmap(function)(*stacked_columns)
    results = [
        _in_order(stacked, stacked_columns).unbind() for stacked in stacked_results
    ]
    return list(zip(*results, strict=True))


def _in_order(result: Tensor, arguments: Sequence[Tensor]) -> Tensor:
    """Return a result with the strides of leaves, for the fast route of operations on lists, unless it is a view."""
    memory = map(storage_id, arguments)
    return result if storage_id(result) in memory else result.contiguous()
