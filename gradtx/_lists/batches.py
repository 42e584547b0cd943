"""Batch matrices of one shape: on accelerators, one batched product replaces one product per matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from gradtx._lists.contract import is_list
from gradtx._lists.needs import Case

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

    If a program includes a product or a factorization of matrices, a batch extends from the first to the last operation
    without a list form among consecutive operations of one case.

    Args:
        nodes: The program.
        has_list_form: Whether one call runs an operation for a list of leaves.
        case_of: The case in which an operation runs; None if it cannot be part of a batch.
    """
    batches: list[list[Node]] = []
    case: Case | None = None
    for node in nodes:
        if node.op != "call_function" or not is_list(node):
            continue
        last_case, case = case, case_of(node)
        if case is None:
            continue
        if case != last_case:
            batches.append([])
        batches[-1].append(node)
    if not any(node.target in OF_MATRICES for batch in batches for node in batch):
        return []
    trimmed = [_trimmed(batch, has_list_form) for batch in batches]
    return [batch for batch in trimmed if batch]


def _trimmed(nodes: list[Node], has_list_form: Callable[[Node], bool]) -> list[Node]:
    """Return the operations from the first to the last without a list form."""
    without_form = [i for i, node in enumerate(nodes) if not has_list_form(node)]
    if not without_form:
        return []
    return nodes[without_form[0] : without_form[-1] + 1]


def batched(
    function: Callable[..., tuple[Tensor, ...]], *columns: Sequence[Tensor]
) -> tuple[list[Tensor], ...]:
    """Call a function of one leaf for all leaves: once per group of equal shapes.

    Args:
        function: Accepts one tensor from each column and returns a tuple of tensors.
        columns: Lists of tensors, one tensor per leaf.

    Returns:
        One list per result.
    """
    leaves_of_shapes: dict[tuple[torch.Size, ...], list[int]] = {}
    for leaf, tensors in enumerate(zip(*columns, strict=True)):
        shapes = tuple([tensor.shape for tensor in tensors])
        leaves_of_shapes.setdefault(shapes, []).append(leaf)
    results: dict[int, tuple[Tensor, ...]] = {}
    for leaves in leaves_of_shapes.values():
        columns_of_shape = [[column[leaf] for leaf in leaves] for column in columns]
        results.update(
            zip(leaves, _of_equal_shapes(function, columns_of_shape), strict=True)
        )
    in_order = [results[leaf] for leaf in range(len(columns[0]))]
    return tuple(map(list, zip(*in_order, strict=True)))


def _of_equal_shapes(
    function: Callable[..., tuple[Tensor, ...]], columns: list[list[Tensor]]
) -> list[tuple[Tensor, ...]]:
    """Return the results of each leaf, for leaves of equal shapes."""
    if len(columns[0]) == 1:
        return [function(*[tensors[0] for tensors in columns])]
    batches = torch.vmap(function)(*map(torch.stack, columns))
    return list(zip(*[batch.unbind() for batch in batches], strict=True))
