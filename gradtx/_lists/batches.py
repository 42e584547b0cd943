"""Batch matrices of one shape: on accelerators, one batched product replaces one product per matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from gradtx import _torch
from gradtx._lists.contract import is_list

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


def batch_of(
    nodes: Sequence[Node], has_list_form: Callable[[Node], bool]
) -> list[Node]:
    """Return the operations of a program to run on batches.

    These are all operations from the first to the last without a list form, if they include a product or a
    factorization of matrices.
    """
    operations: list[Node] = []
    without_form: list[int] = []
    of_matrices = False
    for node in nodes:
        if (
            node.op != "call_function"
            or not is_list(node)
            or _torch.writes(node.target)
        ):
            continue
        if not has_list_form(node):
            without_form.append(len(operations))
        of_matrices = of_matrices or node.target in OF_MATRICES
        operations.append(node)
    if not of_matrices:
        return []
    return operations[without_form[0] : without_form[-1] + 1]


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
