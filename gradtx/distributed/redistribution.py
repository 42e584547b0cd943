"""Other placements of a tensor, which torch sends to the ranks: whole tensors, and tensors divided like another one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import (
    dtensor_of,
    from_local_like,
    is_sharded,
    local,
    on_every_rank,
    without_pending_sums,
)


def full_tensor(tensor: Any) -> Tensor:
    """Return the full tensor as a plain tensor."""
    if not is_sharded(tensor):
        return tensor
    dtype = tensor.dtype
    if not (dtype.is_floating_point and dtype.itemsize == 1):
        return tensor.full_tensor()
    # As bytes, because some back ends cannot send eight-bit floats.
    as_bytes = from_local_like(local(tensor).view(torch.uint8), tensor)
    return as_bytes.full_tensor().view(dtype)


def gathered(tensor: Any, like: Any) -> Any:
    """Return the tensor replicated on every rank of the mesh of `like`."""
    if is_sharded(tensor):
        return tensor.redistribute(placements=on_every_rank(tensor.device_mesh))
    if not is_sharded(like):
        return tensor
    return dtensor_of(tensor, like.device_mesh, on_every_rank(like.device_mesh))


def distributed_like(tensor: Any, like: Any) -> Any:
    """Redistribute a tensor like `like`. Operations may return other placements, including partial sums."""
    if not is_sharded(like):
        return full_tensor(tensor)
    sharded = tensor if is_sharded(tensor) else gathered(tensor, like)
    if sharded.placements == like.placements:
        return sharded
    return sharded.redistribute(placements=like.placements)


def gradient_like(gradient: Any, param: Any) -> Any:
    """Return a gradient with the placements of its parameter.

    Autograd leaves pending sums, such as those of a norm's weight under sequence parallelism, and other placements.
    """
    if not (is_sharded(gradient) and is_sharded(param)):
        return gradient
    return distributed_like(gradient, param)


def completed(tensor: Any) -> Any:
    """Return a tensor without pending sums over ranks."""
    if not is_sharded(tensor):
        return tensor
    placements = without_pending_sums(tensor.placements)
    if placements == tensor.placements:
        return tensor
    return tensor.redistribute(placements=placements)
