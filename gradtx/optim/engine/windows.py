"""Windows: parts of a large coded leaf that a program processes one at a time, so that temporaries are small."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from gradtx.base.dtensor import local
from gradtx.execution.execute import Leaf
from gradtx.optim._member import Member
from gradtx.optim.engine.alias import entries_of
from gradtx.programs.bundle import entries_of_a_call
from gradtx.state.codes import KEY

# Equal parts of a coded leaf may be this many times smaller than a call's lists.
SMALLEST_PARTS = 64

# Entries of a window per CPU thread, so that the temporaries of compiled programs are small.
WINDOW = 2**18


def can_be_split(member: Member, leaf: Leaf, equal: Collection[str] = ()) -> bool:
    """Whether a leaf whose operations are elementwise may be updated in parts, one at a time.

    A slot that is 0-d rules this out because each part would update it again, unless it is constant or one of the
    `equal` slots, which are written after the last part.
    """
    layout = member.layout
    assert layout is not None
    constants = {
        f"{key}.{KEY}" for key, codec in layout.coded_keys.items() if codec.random
    }
    constants.update(equal)
    for operation in leaf.program:
        keys = layout.slots.get(operation.path, {})
        constants.update(keys[slot] for slot in operation.constants if slot in keys)
    return not any(
        member.state[key].ndim == 0 for key in layout.slot_keys if key not in constants
    )


def is_positional(leaf: Leaf) -> bool:
    """Whether some operation depends on the positions of entries in the whole parameter."""
    return any(operation.positional for operation in leaf.program)


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

    List programs for codes are specialized to one shape, so parts of coded leaves are equal and contain whole blocks.
    `equal` is whether parts of other leaves must be equal as well.
    """
    size, most = entries_of(member.param), entries_of_a_call(local(member.param).device)
    if size <= most:
        return None
    unit = row_of(member) or (1 if equal else None)
    if unit is None:
        return most
    units = size // unit
    for count in range(-(-size // most), SMALLEST_PARTS * size // most):
        if units % count == 0:
            return size // count
    return None


def window_of(device: torch.device, row: int) -> int:
    """Return the most rows per window of a coded leaf with `row` entries per row (compiled programs)."""
    most = (
        WINDOW * torch.get_num_threads()
        if device.type == "cpu"
        else entries_of_a_call(device)
    )
    return max(most // row, 1)


def windows(arguments: list[Tensor], window: int) -> Iterator[list[Tensor]]:
    """Yield the arguments of a leaf for each window of rows in turn; 0-d ones belong to all windows."""
    rows = next(len(tensor) for tensor in arguments if tensor.ndim)
    count = -(-rows // window)
    columns: list[Sequence[Tensor]] = []
    for tensor in arguments:
        parts = torch.split(tensor, window) if tensor.ndim else [tensor] * count
        columns.append(parts)
    return map(list, zip(*columns, strict=True))


def row_of(member: Member) -> int | None:
    """Return the fewest entries that contain whole blocks of all coded slots; None if there are no coded slots."""
    assert member.layout is not None
    blocks = [codec.block or codec.packs for codec in member.layout.coded_keys.values()]
    return max(blocks, default=None)
