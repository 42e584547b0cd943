"""Plain tensors, whose memory programs read and write; leaves of another class, such as a subclass, run one at a time.

DTensors are plain where their local shards are; see `gradtx.base.dtensor`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

# The tests add the class of a pretended GPU's tensors.
TYPES: set[type] = {Tensor, Parameter}


# Of tensors, without a call of Python for each.
SHAPE, DTYPE, DEVICE, LAYOUT, _IS_NESTED = map(
    operator.attrgetter, ("shape", "dtype", "device", "layout", "is_nested")
)
STRIDED = frozenset((torch.strided,))


def are_strided(tensors: Iterable[Any]) -> bool:
    """Whether no tensor is sparse; it calls no function of Python for each."""
    return STRIDED.issuperset(map(LAYOUT, tensors))


def are_dense(tensors: list[Tensor]) -> bool:
    """Whether no tensor is sparse or nested."""
    return are_strided(tensors) and not any(map(_IS_NESTED, tensors))


def is_plain(value: Any) -> bool:
    return type(value) in TYPES


def holds_its_values(tensor: Tensor) -> bool:
    """Whether a tensor's memory holds its values.

    It holds negated or conjugate ones for `z.conj().imag`, and there is none for the zeros of forward mode.
    """
    has_memory = tensor.data_ptr() or tensor.is_meta or not tensor.numel()
    return bool(has_memory) and not (tensor.is_neg() or tensor.is_conj())


def has_own_values(tensor: Tensor) -> bool:
    """Whether a tensor is plain, and its memory holds its values."""
    return is_plain(tensor) and holds_its_values(tensor)


def is_usual(tensor: Any) -> bool:
    """Whether the memory of a tensor is its flat alias: it is plain, real and contiguous, and holds its values."""
    return (
        is_plain(tensor)
        and tensor.is_contiguous()
        and not tensor.is_complex()
        and holds_its_values(tensor)
    )
