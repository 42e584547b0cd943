"""Find 0-d slots that remain equal across leaves, so that a program can use one scalar for all of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.programs.contract import following, writers
from gradtx.programs.record import Recording

EXACT = (torch.float64, torch.int64)  # the dtypes whose values Python scalars represent


def may_be_number(tensor: Tensor) -> bool:
    """Whether a slot is a scalar of such a dtype that the host can read without waiting for a device."""
    return (
        type(tensor) is Tensor
        and tensor.ndim == 0
        and tensor.dtype in EXACT
        and tensor.device.type == "cpu"
    )


def slots_from_numbers(recording: Recording) -> list[int]:
    """Return the positions of exact 0-d arguments whose new values depend only on scalars and on each other.

    Leaves with equal values of these arguments have equal values after every step.
    """
    candidates = set(filter(_may_be_number, recording.leaves))
    while True:
        varying = _varying(recording, candidates)
        remaining = {node for node in candidates if _is_written_without(node, varying)}
        if remaining == candidates:
            return [i for i, node in enumerate(recording.leaves) if node in candidates]
        candidates = remaining


def _may_be_number(argument: Node) -> bool:
    value: Tensor = argument.meta["val"]
    return value.ndim == 0 and value.dtype in EXACT


def _varying(recording: Recording, candidates: set[Node]) -> set[Node]:
    """Return the nodes whose values may differ between leaves with equal candidates."""
    others = [node for node in recording.leaves if node not in candidates]
    return following(recording.graph, others)


def _is_written_without(argument: Node, varying: set[Node]) -> bool:
    """Whether an argument is written, and its new value is equal for all leaves."""
    writes = writers(argument)
    return bool(writes) and varying.isdisjoint(writes)
