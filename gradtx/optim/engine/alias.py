"""Create the plain real tensors, sharing memory with parameters and slots, that programs accept."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local

PLAIN = (Tensor, torch.nn.Parameter)


class OddTensorError(Exception):
    """No program accepts this tensor, so its leaf steps eagerly."""


def alias(tensor: Tensor, like: Tensor, flat: bool) -> Tensor:
    """Return a plain tensor over the same memory; if `flat`, a vector whose entries correspond to those of `like`.

    Raises:
        OddTensorError: If the entries have another layout than those of `like`, or are not contiguous.
    """
    tensor, like = plain(tensor), as_real(like)
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
    """Return the alias of a read-only tensor, or of a copy of it if its layout differs from that of `like`."""
    try:
        return alias(tensor, like, flat)
    except OddTensorError:
        return alias(_copy(tensor, like), like, flat)


def plain_or_copy(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a read-only tensor as `plain` does, or a copy of it if no program accepts it."""
    try:
        return plain(tensor)
    except OddTensorError:
        return plain(_copy(tensor, like))


def _copy(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the same values with the layout of `like`."""
    copy = torch.empty_like(like, dtype=tensor.dtype)
    copy.copy_(tensor)  # its result would have the class of a subclass
    return copy


def holds_its_values(tensor: Tensor) -> bool:
    """Whether a tensor's memory holds its values, rather than negated or conjugate ones, as for `z.conj().imag`."""
    return not (tensor.is_neg() or tensor.is_conj())


def entries_of(param: Tensor) -> int:
    """Return the number of entries in the alias of a parameter."""
    param = local(param)
    return 2 * param.numel() if param.is_complex() else param.numel()


def in_rows(vector: Tensor, rows: int) -> Tensor:
    """Return a flat alias as a matrix with this number of rows; a 0-d tensor as it is."""
    return vector.view(rows, -1) if vector.ndim else vector


def resized(tensor: Tensor, length: int) -> Tensor:
    """Return an uninitialized tensor like another, but of this length; 0-d like a 0-d one."""
    shape = (length, *tensor.shape[1:]) if tensor.ndim else ()
    return tensor.new_empty(shape)


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor, its real view, or the local shard of a DTensor, detached.

    Raises:
        OddTensorError: If it belongs to another class, or its memory holds negated or conjugate values.
    """
    if type(tensor) is not Tensor:
        tensor = local(tensor).detach()
        if type(tensor) is not Tensor:
            raise OddTensorError
    if not holds_its_values(tensor):
        raise OddTensorError
    return as_real(tensor.detach() if tensor.requires_grad else tensor)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries occupy one memory range without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
