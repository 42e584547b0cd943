"""Matrices of one shape as a batch: on accelerators, one product of all of them in place of one for each."""

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
    """Whether leaves of one shape are a batch there: on a processor, loops are faster, and results don't depend on how
    many leaves there are.
    """
    return device.type not in ("cpu", "meta")


def batch_of(nodes: Sequence[Node], has_list_form: Callable[[Node], bool]) -> list[Node]:
    """The operations of a program to run on batches.

    From the first to the last one that lists have no form of, if a product or a factorization of matrices is among
    them.
    """
    operations: list[Node] = []
    without_form: list[int] = []
    of_matrices = False
    for node in nodes:
        if node.op != "call_function" or not is_list(node) or _torch.writes(node.target):
            continue
        if not has_list_form(node):
            without_form.append(len(operations))
        of_matrices = of_matrices or node.target in OF_MATRICES
        operations.append(node)
    if not of_matrices:
        return []
    return operations[without_form[0] : without_form[-1] + 1]


def batched(function: Callable[..., tuple[Tensor, ...]], *columns: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
    """Call a function of one leaf for all leaves: once for those of equal shapes.

    Args:
        function: Takes one tensor of each column and returns a tuple of tensors.
        columns: Tensors, one for each leaf.

    Returns:
        A list for each result.
    """
    leaves_of_shapes: dict[tuple[torch.Size, ...], list[int]] = {}
    for leaf, tensors in enumerate(zip(*columns, strict=True)):
        shapes = tuple([tensor.shape for tensor in tensors])
        leaves_of_shapes.setdefault(shapes, []).append(leaf)
    results: dict[int, tuple[Tensor, ...]] = {}
    for leaves in leaves_of_shapes.values():
        given = [[column[leaf] for leaf in leaves] for column in columns]
        results.update(zip(leaves, _of_equal_shapes(function, given), strict=True))
    in_order = [results[leaf] for leaf in range(len(columns[0]))]
    return tuple(map(list, zip(*in_order, strict=True)))


def _of_equal_shapes(
    function: Callable[..., tuple[Tensor, ...]], columns: list[list[Tensor]]
) -> list[tuple[Tensor, ...]]:
    """The results of each leaf, where all have equal shapes."""
    if len(columns[0]) == 1:
        return [function(*[tensors[0] for tensors in columns])]
    batches = torch.vmap(function)(*map(torch.stack, columns))
    return list(zip(*[batch.unbind() for batch in batches], strict=True))
