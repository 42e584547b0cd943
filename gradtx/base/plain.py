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


LAYOUT, _IS_NESTED = operator.attrgetter("layout"), operator.attrgetter("is_nested")
STRIDED = frozenset((torch.strided,))


def are_strided(tensors: Iterable[Any]) -> bool:
    """Whether no tensor is sparse; it calls no function of Python for each."""
    return STRIDED.issuperset(map(LAYOUT, tensors))


def are_dense(tensors: list[Tensor]) -> bool:
    """Whether no tensor is sparse or nested."""
    return are_strided(tensors) and not any(map(_IS_NESTED, tensors))


def is_plain(value: Any) -> bool:
    return type(value) in TYPES
