"""Plain real tensors that share the memory of parameters and slots, as programs take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradtx._complex import as_real
from gradtx._sharding import local

PLAIN = (Tensor, torch.nn.Parameter)


class OddTensorError(Exception):
    """No program takes this tensor: its leaf steps eagerly."""


def alias(tensor: Tensor, like: Tensor, flat: bool) -> Tensor:
    """The same memory as a plain tensor; if `flat`, as a vector whose entries go with those of `like` one by one.

    Raises:
        OddTensorError: the entries are laid out otherwise than those of `like`, or not next to one another.
    """
    tensor, like = _plain(tensor), as_real(like)
    if not flat or (tensor.ndim == 0 and like.ndim > 0):
        if tensor.is_contiguous():
            return tensor
        raise OddTensorError
    if tensor.is_contiguous() and like.is_contiguous():
        return tensor if tensor.ndim == 1 else tensor.view(-1)
    if tensor.stride() == local(like).stride() and _is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    raise OddTensorError


def alias_or_copy(tensor: Tensor, like: Tensor, flat: bool) -> Tensor:
    """The alias of a tensor that is only read; if its entries are laid out otherwise, of a copy."""
    try:
        return alias(tensor, like, flat)
    except OddTensorError:
        copy = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
        return alias(copy, like, flat)


def entries_of(param: Tensor) -> int:
    """How many entries the alias of a parameter has."""
    param = local(param)
    return 2 * param.numel() if param.is_complex() else param.numel()


def lengths_like(tensors: Sequence[Tensor], param: Tensor, length: int) -> list[int]:
    """The lengths of flat tensors of another leaf, whose parameter has about `length` entries.

    Tensors are as long as the parameter, apart from those of coded slots: codes may share a byte, a scale is that of a
    block. Then the parameter has so many times the entries of the longest block.
    """
    vectors = [tensor for tensor in tensors if tensor.ndim]
    shortest = min(vectors, key=torch.numel)
    if shortest.numel() == param.numel():
        return [length] * len(tensors)
    entries = length * (param.numel() // shortest.numel())
    return [entries * tensor.numel() // param.numel() for tensor in tensors]


def _plain(tensor: Tensor) -> Tensor:
    """The tensor itself, its real view, or the local shard of a DTensor, detached."""
    if type(tensor) is not Tensor:
        tensor = local(tensor).detach()
        if type(tensor) is not Tensor:
            raise OddTensorError
    return as_real(tensor.detach() if tensor.requires_grad else tensor)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries fill their memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
