"""Views of parameters and slots as programs accept them: plain real tensors over the same memory, whole or in parts.

List programs process large leaves in parts, so that temporaries are small.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local
from gradtx.base.plain import holds_its_values, is_plain
from gradtx.base.torch_names import copy_each_
from gradtx.execution.execute import Operation
from gradtx.optim.run import Member
from gradtx.plans.bundle import entries_of_a_call
from gradtx.state.codes import KEY

# Equal parts may be this many times smaller than a call's lists.
SMALLEST_PARTS = 64


class RefusedError(Exception):
    """An engine does not run a leaf; the message gives the reason."""


class OddTensorError(RefusedError):
    """No program accepts this tensor, so its leaf steps eagerly."""

    def __init__(self) -> None:
        super().__init__("its size or layout is not supported")


def alias(tensor: Tensor, like: Tensor, flat: bool) -> Tensor:
    """Return a plain tensor over the same memory; if `flat`, a vector whose entries correspond to those of `like`.

    Raises:
        OddTensorError: If entries share memory; of a vector, also if they have another layout than those of `like`, or
            their memory has gaps.
    """
    tensor, like = plain(tensor), as_real(like)
    if not flat or (tensor.ndim == 0 and like.ndim > 0):
        if tensor.is_contiguous() or _are_apart(tensor):
            return tensor
        raise OddTensorError
    if tensor.is_contiguous() and like.is_contiguous():
        return tensor if tensor.ndim == 1 else tensor.view(-1)
    if tensor.stride() == local(like).stride() and _is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    raise OddTensorError


def in_order(tensor: Tensor) -> Tensor:
    """Return a plain tensor whose entries are in the order of their indices: a copy of a transposed one, ...

    Programs with values of rows, columns, ... run on such copies: torch adds up the entries of others in an order that
    depends on the number of threads.
    """
    return plain(tensor).contiguous()


def are_in_order(columns: Iterable[Iterable[Tensor]]) -> bool:
    """Whether no tensor of some columns has its entries in another order."""
    tensors = itertools.chain.from_iterable(columns)
    return all(local(tensor).is_contiguous() for tensor in tensors)


def put_back(
    columns: Iterable[Iterable[Tensor]], copies: Iterable[Iterable[Tensor]]
) -> None:
    """Write into the tensors of columns what programs have written into copies of them."""
    odd: list[Tensor] = []
    written: list[Tensor] = []
    for column, of_column in zip(columns, copies, strict=True):
        for tensor, copy in zip(column, of_column, strict=True):
            if not local(tensor).is_contiguous():
                odd.append(plain(tensor))
                written.append(copy)
    copy_each_(odd, written)


def view_or_copy(tensor: Tensor, like: Tensor, flat: bool) -> Tensor:
    """Return a read-only tensor, flat or not, as programs accept it: a view, or a copy with the layout of `like`."""
    view = functools.partial(alias, like=like, flat=True) if flat else plain
    try:
        return view(tensor)
    except OddTensorError:
        copy = torch.empty_like(like, dtype=tensor.dtype)
        copy.copy_(tensor)  # its result would have the class of a subclass
        return view(copy)


def entries_of(param: Tensor) -> int:
    """Return the number of entries in the alias of a parameter."""
    return as_real(local(param)).numel()


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor, its real view, or the local shard of a DTensor, detached.

    Raises:
        OddTensorError: If it belongs to another class, or its memory does not hold its values.
    """
    tensor = local(tensor)
    if not (is_plain(tensor) and holds_its_values(tensor)):
        raise OddTensorError
    is_parameter = tensor.requires_grad or isinstance(tensor, torch.nn.Parameter)
    return as_real(tensor.detach() if is_parameter else tensor)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries occupy one memory range without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _are_apart(tensor: Tensor) -> bool:
    """Whether no two entries certainly have the same memory, which may have gaps."""
    span = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < span:
            return False
        span += (size - 1) * stride
    return True


# Parts.


def can_be_split(
    member: Member, operations: list[Operation], equal: Collection[str]
) -> bool:
    """Whether a leaf whose operations are elementwise may be updated in parts, one at a time.

    A slot that is 0-d rules this out because each part would update it again, unless it is constant or one of the
    `equal` slots, which are written after the last part.
    """
    layout = member.layout
    constants = {
        f"{key}.{KEY}" for key, codec in layout.coded_keys.items() if codec.random
    }
    constants.update(equal)
    for operation in operations:
        keys = layout.slots.get(operation.path, {})
        constants.update(
            keys[slot] for slot in operation.traits.constants if slot in keys
        )
    return not any(
        member.state[key].ndim == 0 for key in layout.slot_keys if key not in constants
    )


def is_positional(operations: list[Operation]) -> bool:
    """Whether some operation depends on the positions of entries in the whole parameter."""
    return any(operation.traits.positional for operation in operations)


def cut(vector: Tensor, window: slice, size: int) -> Tensor:
    """Return a window of the flat alias of a tensor that belongs to a leaf of `size` entries.

    The tensor may be shorter than the leaf, since codes may share a byte and a block has one scale.
    """
    if vector.ndim == 0:
        return vector
    if vector.numel() == size:
        return vector[window]
    start = window.start * vector.numel() // size
    stop = window.stop * vector.numel() // size
    return vector[start:stop]


def part_of(member: Member, equal: bool = False) -> int | None:
    """Return the number of entries in each part of a large leaf for list programs; None for a leaf that is not divided.

    Parts of coded leaves contain whole blocks. `equal` is whether parts must be equal.
    """
    codecs = member.layout.coded_keys.values()
    size = entries_of(member.param)
    param = local(member.param)
    most = entries_of_a_call(param.device, bool(codecs), param.dtype)
    if size <= most:
        return None
    unit = max((codec.block or codec.packs for codec in codecs), default=1)
    units = size // unit
    if not equal:
        return max(most // unit, 1) * unit
    for count in range(-(-size // most), SMALLEST_PARTS * size // most):
        if units % count == 0:
            return size // count
    return None
