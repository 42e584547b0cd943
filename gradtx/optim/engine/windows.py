"""Windows: parts of a large coded leaf that go through a program one after another, so that temporaries are small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradtx._execution import Leaf
from gradtx._lists.bundle import entries_of_a_call
from gradtx._sharding import local
from gradtx.codes import KEY
from gradtx.optim._member import Member
from gradtx.optim.engine.alias import entries_of

SMALLEST_PARTS = 64  # how many times smaller the equal parts of a coded leaf may be than a call's lists

# Entries of a window on the CPU for each thread: compiled programs write decoded slots to memory, here to the cache.
# Measured for AdamW with "int8" on one thread: 2^16 takes 2 to 6% longer, 2^18 3 to 12%.
WINDOW = 2**17


def can_be_split(member: Member, leaf: Leaf, equal: Sequence[str] = ()) -> bool:
    """Whether parts of a leaf, whose operations are elementwise, may be updated one after another.

    Each part would update a 0-d slot again, unless the slot never changes or is one of the `equal` slots, which are
    written after the last part.
    """
    layout = member.layout
    assert layout is not None
    constants = {f"{key}.{KEY}" for key, codec in layout.coded_keys.items() if codec.random}
    constants.update(equal)
    for operation in leaf.program:
        keys = layout.slots.get(operation.path, {})
        constants.update(keys[slot] for slot in operation.constants if slot in keys)
    return not any(member.state[key].ndim == 0 for key in layout.slot_keys if key not in constants)


def is_positional(leaf: Leaf) -> bool:
    """Whether the places of entries in the whole parameter matter."""
    return any(operation.positional for operation in leaf.program)


def cut(vector: Tensor, window: slice, size: int) -> Tensor:
    """The part of a flat alias for some of `size` entries: codes may share a byte, a scale is that of a block."""
    if vector.ndim == 0:
        return vector
    if vector.numel() == size:
        return vector[window]
    return vector[window.start * vector.numel() // size : window.stop * vector.numel() // size]


def part_of(member: Member, equal: bool = False) -> int | None:
    """The entries of each part of a large leaf for programs over lists; None for a leaf that stays whole.

    Programs for codes are for one shape, so parts of coded leaves are equal, and hold whole blocks. `equal` is whether
    those of others are equal, too.
    """
    size, most = entries_of(member.param), entries_of_a_call(local(member.param).device)
    if size <= most:
        return None
    unit = _unit(member) or (1 if equal else None)
    if unit is None:
        return most
    units = size // unit
    for count in range(-(-size // most), SMALLEST_PARTS * size // most):
        if units % count == 0:
            return size // count
    return None


def window_of(member: Member) -> int | None:
    """The entries of each window of a coded leaf for compiled programs, the last one apart; None if it has no codes."""
    unit = _unit(member)
    if unit is None:
        return None
    device = local(member.param).device
    most = WINDOW * torch.get_num_threads() if device.type == "cpu" else entries_of_a_call(device)
    return max(most // unit, 1) * unit


def windows(arguments: list[Tensor], window: int, size: int) -> Iterator[list[Tensor]]:
    """The arguments of a leaf of `size` entries, flat, for one window after another; numbers are those of all."""
    count = -(-size // window)
    columns: list[Sequence[Tensor]] = []
    for tensor in arguments:
        parts = torch.split(tensor, window * tensor.numel() // size) if tensor.ndim else [tensor] * count
        columns.append(parts)
    return map(list, zip(*columns, strict=True))


def _unit(member: Member) -> int | None:
    """The fewest entries that hold whole blocks of all coded slots; None if there are none."""
    assert member.layout is not None
    blocks = [codec.block or codec.packs for codec in member.layout.coded_keys.values()]
    return max(blocks, default=None)
