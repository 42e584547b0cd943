"""Matrices of one shape as a batch: on accelerators, one product of all of them in place of one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gradtx import _torch
from gradtx._lists.contract import is_list

aten = torch.ops.aten

OF_MATRICES = (
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default),
    *(aten.linalg_qr.default, aten._linalg_eigh.default, aten._linalg_svd.default),
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
    lists = [node for node in nodes if node.op == "call_function" and is_list(node) and not _torch.writes(node.target)]
    without_form = [i for i, node in enumerate(lists) if not has_list_form(node)]
    if not any(node.target in OF_MATRICES for node in lists):
        return []
    return lists[without_form[0] : without_form[-1] + 1]


def batched(function: Callable[..., tuple[Tensor, ...]], *columns: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
    """Call a function of one leaf for all leaves: once for those of equal shapes.

    Args:
        function: Takes one tensor of each column and returns a tuple of tensors.
        columns: Tensors, one for each leaf.

    Returns:
        A list for each result.
    """
    alike: dict[Any, list[int]] = {}
    for i, tensors in enumerate(zip(*columns, strict=True)):
        alike.setdefault(tuple([tensor.shape for tensor in tensors]), []).append(i)
    results: list[Any] = [None] * len(columns[0])
    for leaves in alike.values():
        for i, of_leaf in zip(leaves, _of_equal_shapes(function, columns, leaves), strict=True):
            results[i] = of_leaf
    return tuple(map(list, zip(*results, strict=True)))


def _of_equal_shapes(
    function: Callable[..., tuple[Tensor, ...]], columns: Sequence[Sequence[Tensor]], leaves: list[int]
) -> list[tuple[Tensor, ...]]:
    """The results of each of these leaves."""
    given = [[column[i] for i in leaves] for column in columns]
    if len(leaves) == 1:
        return [function(*(tensors[0] for tensors in given))]
    outputs = torch.vmap(function)(*map(torch.stack, given))
    return list(zip(*(output.unbind() for output in outputs), strict=True))
