"""Batch leaves: on accelerators, one operation on a batch replaces one per leaf."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base.torch_names import storage_id
from gradtx.programs.contract import is_list
from gradtx.programs.needs import Case
from gradtx.programs.terms import is_pointwise

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
    has_list_form: Callable[[Node], bool],
    case_of: Callable[[Node], Case | None],
) -> list[list[Node]]:
    """Return the operations of a program to run on batches; those of one batch are consecutive.

    A batch extends from the first to the last operation without a list form among consecutive operations of one case.
    Operations on numbers of leaves at its start and end are batches of their own, which leaves of all shapes share.

    Args:
        nodes: The program.
        has_list_form: Whether one call runs an operation for a list of leaves.
        case_of: The case in which an operation runs; None if it cannot be part of a batch.
    """
    calls = [node for node in nodes if node.op == "call_function" and is_list(node)]
    batches = []
    for case, run in itertools.groupby(calls, case_of):
        batch = [] if case is None else _trimmed(list(run), has_list_form)
        batches += _divided(batch)
    return batches


def _divided(batch: list[Node]) -> list[list[Node]]:
    """Divide a batch into those of its first operations and of its last ones on numbers, and the rest."""
    others = [i for i, node in enumerate(batch) if not _is_on_numbers(node)]
    first, last = (others[0], others[-1] + 1) if others else (len(batch), len(batch))
    batches = [batch[:first], batch[first:last], batch[last:]]
    return [each for each in batches if each]


def _is_on_numbers(node: Node) -> bool:
    """Whether all operands are numbers of leaves, which have no dimensions."""
    return _shapes([item for item in node.all_input_nodes if is_list(item)]) == {()}


def _shapes(nodes: Sequence[Node]) -> set[Any]:
    values = [node.meta["val"] for node in nodes]
    return {getattr(value, "shape", None) for value in values}


def _trimmed(nodes: list[Node], has_list_form: Callable[[Node], bool]) -> list[Node]:
    """Return the operations from the first to the last without a list form."""
    without_form = [i for i, node in enumerate(nodes) if not has_list_form(node)]
    if not without_form:
        return []
    return nodes[without_form[0] : without_form[-1] + 1]


def is_by_entry(batch: Sequence[Node]) -> bool:
    """Whether each entry of the results depends only on the same entry of the operands."""
    for node in batch:
        shapes = _shapes([node, *filter(is_list, node.all_input_nodes)])
        if not is_pointwise(node.target) or len(shapes) > 1 or () in shapes:
            return False
    return True


def has_matrices(batch: Sequence[Node]) -> bool:
    """Whether a batch includes a product or a factorization of matrices, which pays for leaves of any size."""
    return any(node.target in OF_MATRICES for node in batch)


def batched(
    limit: float,
    by_entry: bool,
    function: Callable[..., tuple[Tensor, ...]],
    *columns: Sequence[Tensor],
) -> tuple[list[Tensor], ...]:
    """Call a function of one leaf for all leaves: once per group.

    Args:
        limit: The most entries of a tensor in a group; the copy of a larger one takes longer than its launches.
        by_entry: Whether the function works entry by entry, so that leaves of all shapes are one group. Arguments that
            are to be broadcast prevent that.
        function: Accepts one tensor from each column and returns a tuple of tensors.
        columns: Lists of tensors, one tensor per leaf.

    Returns:
        One list per result.
    """
    rows = list(zip(*columns, strict=True))
    groups: dict[Any, list[int]] = {}
    for leaf, tensors in enumerate(rows):
        key: Any = tuple([tensor.shape for tensor in tensors])
        if max(map(Tensor.numel, tensors)) > limit:
            key = leaf
        elif by_entry and len(set(key)) == 1:
            key = "entries"
        groups.setdefault(key, []).append(leaf)
    results_of_leaf: dict[int, tuple[Tensor, ...]] = {}
    for key, leaves in groups.items():
        group = [rows[leaf] for leaf in leaves]
        if len(group) == 1:
            results = [function(*group[0])]
        elif key == "entries":
            results = _joined(function, group)
        else:
            results = _stacked(function, group)
        results_of_leaf.update(zip(leaves, results, strict=True))
    results_by_leaf = [results_of_leaf[leaf] for leaf in range(len(rows))]
    return tuple(map(list, zip(*results_by_leaf, strict=True)))


def _joined(
    function: Callable[..., tuple[Tensor, ...]], rows: list[tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """Return the results of each leaf from those of one vector with the entries of all."""
    shapes = [first.shape for first, *_ in rows]
    vectors = []
    for tensors in zip(*rows, strict=True):
        vectors.append(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    sizes = list(map(torch.Size.numel, shapes))
    results = [
        list(map(Tensor.view, each.split(sizes), shapes)) for each in function(*vectors)
    ]
    return list(zip(*results, strict=True))


def _stacked(
    function: Callable[..., tuple[Tensor, ...]], rows: list[tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """Return the results of each leaf, for leaves of equal shapes."""
    stacked_columns = [torch.stack(tensors) for tensors in zip(*rows, strict=True)]
    stacked_results = torch.vmap(function)(*stacked_columns)
    results = [_in_order(each, stacked_columns).unbind() for each in stacked_results]
    return list(zip(*results, strict=True))


def _in_order(result: Tensor, arguments: Sequence[Tensor]) -> Tensor:
    """Return a result with the strides of leaves, for the fast route of operations on lists, unless it is a view."""
    memory = map(storage_id, arguments)
    return result if storage_id(result) in memory else result.contiguous()
