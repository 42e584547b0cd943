"""Tensors of an optimizer that share memory, whose writes must be visible to one another."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from gradtx.base.dtensor import local
from gradtx.optim.run import Member


class Span(NamedTuple):
    """The memory of a tensor: device, address of the first byte, address after the last byte, id of its member."""

    device: str
    start: int
    end: int
    owner: int


def overlapping(members: Iterable[Member]) -> set[int]:
    """Return the ids of members with overlapping tensors, whose writes must be visible to one another."""
    shared = set()
    reach: Span | None = None  # the span with the highest end so far
    for span in sorted(_spans(members)):
        if reach is not None and span.device == reach.device and span.start < reach.end:
            shared.update((reach.owner, span.owner))
        if reach is None or span.device != reach.device or span.end > reach.end:
            reach = span
    return shared


def tensors_of(member: Member) -> list[Any]:
    """Return a parameter and its slots, which programs write; a user may have put something else there, or nothing."""
    return [member.param, *map(member.state.get, member.layout.slot_keys)]


def _spans(members: Iterable[Member]) -> list[Span]:
    spans = []
    # Device and bytes from the first entry to the last; None without memory.
    of_kind: dict[Any, tuple[str, int] | None] = {}
    for member in members:
        for tensor in tensors_of(member):
            if not isinstance(tensor, Tensor):
                continue
            tensor = local(tensor)
            kind = tensor.device, tensor.dtype, tensor.shape, tensor.stride()
            if kind not in of_kind:
                has_memory = tensor.numel() > 0 and tensor.device.type != "meta"
                bytes_of_kind = str(tensor.device), extent_of(tensor)
                of_kind[kind] = bytes_of_kind if has_memory else None
            device_and_size = of_kind[kind]
            if device_and_size is not None:
                device, size = device_and_size
                start = tensor.data_ptr()
                spans.append(Span(device, start, start + size, id(member)))
    return spans


def extent_of(tensor: Tensor) -> int:
    """Return the bytes from the first to the last entry of a tensor."""
    if not tensor.numel():
        return 0
    last = 0
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        last += (size - 1) * stride
    return (last + 1) * tensor.element_size()


def have_overlap(addresses: list[int], extents: list[int]) -> bool:
    """Whether spans of memory overlap, given their first addresses, if all were on one device."""
    starts, ends = [], []
    for start, extent in sorted(zip(addresses, extents, strict=True)):
        starts.append(start)
        ends.append(start + extent)
    return any(map(operator.gt, ends, starts[1:]))
