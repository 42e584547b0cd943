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
            if isinstance(tensor, Tensor):
                span = _span_of(local(tensor), id(member), of_kind)
                spans += [] if span is None else [span]
    return spans


def _span_of(tensor: Tensor, owner: int, of_kind: dict[Any, Any]) -> Span | None:
    """Return the memory of a tensor, if it has some."""
    kind = tensor.device, tensor.dtype, tensor.shape, tensor.stride()
    if kind not in of_kind:
        has_memory = tensor.numel() > 0 and tensor.device.type != "meta"
        bytes_of_kind = str(tensor.device), extent_of(tensor)
        of_kind[kind] = bytes_of_kind if has_memory else None
    device_and_size = of_kind[kind]
    if device_and_size is None:
        return None
    device, size = device_and_size
    start = tensor.data_ptr()
    return Span(device, start, start + size, owner)


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


def check_tables(who: str, members: Iterable[Member], tables: Iterable[Member]) -> None:
    """Check that parameters whose listed rows step share no entry with others that step.

    The rows are copies until all have stepped, so that the last to be written back would undo the others.

    Raises:
        RuntimeError: If one does.
    """
    ids = set(map(id, tables))
    of_kind: dict[Any, Any] = {}
    spans: list[tuple[Span, Member, Tensor]] = []
    for member in members:
        param = local(member.param)
        span = _span_of(param, id(member), of_kind)
        spans += [] if span is None else [(span, member, param)]
    spans.sort(key=lambda item: item[0])
    reaching: list[tuple[Span, Member, Tensor]] = []
    for span, member, param in spans:
        reaching = [
            other
            for other in reaching
            if other[0].device == span.device and other[0].end > span.start
        ]
        for _, other, its_param in reaching:
            is_listed = id(member) in ids or id(other) in ids
            if is_listed and _share_entries(its_param, param):
                table, other = (member, other) if id(member) in ids else (other, member)
                raise RuntimeError(
                    f"{who}: parameter {table.name!r} has a sparse gradient, and shares memory with parameter "
                    f"{other.name!r}, which steps, too; pass one tensor that contains both, or omit sparse=True"
                )
        reaching.append((span, member, param))


def _share_entries(tensor: Tensor, other: Tensor) -> bool:
    """Whether tensors with overlapping memory share entries, as columns of one table do not; True if unknown."""
    if not (tensor.ndim and other.ndim):
        return True
    pitch = tensor.stride(0) * tensor.itemsize
    if not pitch or pitch != other.stride(0) * other.itemsize:
        return True
    distance = (other.data_ptr() - tensor.data_ptr()) % pitch
    return distance < extent_of(tensor[0]) or distance + extent_of(other[0]) > pitch
