"""Finds slots that stay equal across leaves, so that one number stands for them in all leaves of a program."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from gradtx import _torch
from gradtx._lists.record import Recording

aten = torch.ops.aten


def may_be_number(tensor: Tensor) -> bool:
    """Whether a slot has the form of a number that the host can read without waiting for a device."""
    return type(tensor) is Tensor and tensor.ndim == 0 and tensor.dtype == torch.float64 and tensor.device.type == "cpu"


def slots_from_numbers(recording: Recording) -> list[int]:
    """The positions of float64 0-d arguments of a leaf whose new values follow from numbers and from one another.

    Leaves that start with equal values of these then keep equal values.
    """
    candidates = {
        node for node in recording.leaves if node.meta["val"].ndim == 0 and node.meta["val"].dtype == torch.float64
    }
    while True:
        varying = _varying(recording, candidates)
        remaining = {node for node in candidates if _is_written_without(node, varying)}
        if remaining == candidates:
            return [i for i, node in enumerate(recording.leaves) if node in candidates]
        candidates = remaining


def _varying(recording: Recording, candidates: set[Node]) -> set[Node]:
    """The nodes whose values may differ between leaves, if those of the candidates do not."""
    varying: set[Node] = set()
    for node in recording.graph.nodes:
        is_argument = node in recording.leaves and node not in candidates
        if is_argument or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    return varying


def _is_written_without(argument: Node, varying: set[Node]) -> bool:
    """Whether an argument gets a new value, and that is the same for all leaves."""
    writes = [user for user in argument.users if _torch.writes(user.target) and user.args[0] is argument]
    return bool(writes) and varying.isdisjoint(writes)
