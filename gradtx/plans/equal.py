"""Find 0-d slots that remain equal across leaves, so that a program can use one scalar for all of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base.plain import is_plain
from gradtx.compiler.graph import following, writers
from gradtx.compiler.record import Recording

EXACT = (
    torch.float64,
    torch.int64,
    torch.bool,
)  # the dtypes whose values Python scalars represent


def may_be_scalar(tensor: Tensor) -> bool:
    """Whether a slot is a scalar of such a dtype that the host can read without waiting for a device."""
    return (
        is_plain(tensor)
        and tensor.ndim == 0
        and tensor.dtype in EXACT
        and tensor.device.type == "cpu"
    )


def slots_from_scalars(recording: Recording) -> list[int]:
    """Return the positions of exact 0-d arguments whose new values depend only on scalars and on each other.

    Leaves with equal values of these arguments have equal values after every step.
    """
    candidates: set[Node] = set()
    for node in recording.leaves:
        value: Tensor = node.meta["val"]
        if value.ndim == 0 and value.dtype in EXACT:
            candidates.add(node)
    while True:
        others = [node for node in recording.leaves if node not in candidates]
        varying = following(recording.graph, others)
        remaining: set[Node] = set()
        for node in candidates:
            writes = writers(node)
            if writes and varying.isdisjoint(writes):
                remaining.add(node)
        if remaining == candidates:
            return [i for i, node in enumerate(recording.leaves) if node in candidates]
        candidates = remaining
