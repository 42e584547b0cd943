"""Leaves of no dimension as the entries of vectors: an operation on all of them costs what it costs for one leaf."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.compiler.graph import args_of, is_list, is_on_host, writers
from gradtx.compiler.lower import LoweredGraph
from gradtx.compiler.simplify import is_conversion

aten = torch.ops.aten

# Operations whose results are those of exact arithmetic, rounded once: they have the same bits for an entry of a
# vector, which torch computes with other instructions.
ROUNDED_ONCE = {
    *(aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor),
    *(aten.maximum.default, aten.minimum.default),
    *(aten.abs.default, aten.neg.default, aten.sign.default, aten.sqrt.default),
    aten.copy_.default,
}

# The least tensors that a vector has.
FEW = 4


def can_be_stacked(lowered: LoweredGraph) -> bool:
    """Whether all values of leaves have no dimension, vectors of them have the same bits, and none is returned.

    Results that are entries of vectors would share memory.
    """
    if not lowered.leaves or any(map(is_list, lowered.results)):
        return False
    return all(_can_be_entry(node) for node in lowered.nodes if is_list(node))


def _can_be_entry(node: Node) -> bool:
    value = node.meta["val"]
    if not isinstance(value, Tensor) or value.ndim:
        return False
    if node.op == "placeholder":
        return True
    is_sum_of_multiple = node.target is not aten.copy_.default and bool(node.kwargs)
    is_exact = node.target in ROUNDED_ONCE and not is_sum_of_multiple
    if not (is_exact or is_conversion(node)):
        return False
    return all(is_list(item) or is_on_host(item) for item in args_of(node))


def written(leaves: Iterable[Node]) -> list[Node]:
    """Return the arguments of a leaf that a program writes."""
    return [leaf for leaf in leaves if writers(leaf)]


def stacked(tensors: list[Tensor]) -> list[Tensor]:
    """Return a list of one vector with these entries; few tensors stay as they are, since that takes less time."""
    return [torch.stack(tensors)] if len(tensors) >= FEW else tensors


def unstacked(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors whose vector this is."""
    return list(tensors[0].unbind()) if tensors[0].ndim else tensors


def promoted(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Convert a vector to the dtype that its entries have as tensors beside a scalar of this dtype."""
    return [tensors[0].to(dtype)] if tensors[0].ndim else tensors


def write_back(targets: list[Tensor], tensors: list[Tensor]) -> None:
    """Write the entries of a vector into the tensors that it is of."""
    if tensors[0].ndim:
        _torch.copy_each_(targets, unstacked(tensors))
