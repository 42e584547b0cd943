"""Plain tensors, whose memory programs read and write; leaves of another class, such as a subclass, run one at a time.

DTensors are plain where their local shards are; see `gradtx.base.dtensor`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Parameter

# The tests add the class of a pretended GPU's tensors.
TYPES: set[type] = {Tensor, Parameter}


def is_plain(value: Any) -> bool:
    return type(value) in TYPES
