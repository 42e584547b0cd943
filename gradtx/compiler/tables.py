"""Where kernels find what they read and write: addresses, chunks and values of a bundle's leaves, on the device."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradtx.base.torch_names import is_captured
from gradtx.compiler.axes import Groups, padded_sizes
from gradtx.compiler.write_kernels import KernelText

CHUNK = 8192  # entries of a chunk in C++, and of one with values of columns in both languages
LEAST_ROWS = 32  # of a chunk with values of columns
CHUNKS = 256  # the most chunks of a leaf of this kind, unless it has few rows
ALIGNMENT = 16  # bytes


class Table:
    """Where the arguments of a bundle's leaves are, on the device.

    Args:
        leaves: The number of leaves.
        pointers: The addresses of each argument's tensors, one per leaf.
        device: The device.
        constants: The constants of each leaf that follow from its shape.

    Attributes:
        address: Where the table is.
    """

    def __init__(
        self,
        leaves: int,
        pointers: list[list[int]],
        device: torch.device,
        constants: Sequence[Sequence[float]] = (),
    ):
        self.leaves = leaves
        self.device = device
        by_row = itertools.chain.from_iterable(zip(*constants, strict=True))
        self._constants = sent(list(by_row), device, torch.float64)
        self.point_to(pointers)

    def point_to(self, pointers: list[list[int]]) -> None:
        """Send the addresses of all arguments."""
        self._rows = pointers
        self._are_aligned = list(map(_are_aligned, pointers))
        flat = list(itertools.chain.from_iterable(pointers))
        start, stop = self._constants.data_ptr(), self._constants.nbytes
        flat += range(start, start + stop, self._constants.itemsize)
        self._buffer = on_host(flat, self.device)
        self.pointers = self._buffer.to(self.device, non_blocking=True)
        self.address = self.pointers.data_ptr()
        # The memory of the buffer, which is that of `pointers` on the CPU.
        words = ctypes.c_int64 * self._buffer.numel()
        self._words = words.from_address(self._buffer.data_ptr())

    @property
    def is_aligned(self) -> bool:
        return all(self._are_aligned)

    def memory(self, rows: int, columns: int) -> Tensor:
        """Return memory for float64 values."""
        return torch.empty((rows, columns), dtype=torch.float64, device=self.device)

    def has(self, rows: list[list[int]], start: int) -> bool:
        """Whether these are the addresses of the arguments from `start` on."""
        return self._rows[start:] == rows

    def update(self, rows: dict[int, list[int]]) -> None:
        """Send the addresses of arguments that have moved since the last step."""
        for i, row in rows.items():
            if row == self._rows[i]:
                continue
            self._rows[i] = row
            window = slice(i * self.leaves, (i + 1) * self.leaves)
            if self.device.type == "cpu":
                self._words[window] = row
                continue
            self._are_aligned[i] = _are_aligned(row)
            source = on_host(row, self.device)
            if is_captured(self.device):  # replays copy from memory that stays
                source = self._buffer[window].copy_(source)
            self.pointers[window].copy_(source, non_blocking=True)


class Rows:
    """Which leaves of a bundle take part in a call, and with which set of scalars, on the device.

    Captured steps copy from memory of the object when they are replayed: it has to stay, and later steps need another.

    Args:
        which: The index of each leaf's set; -1 if the leaf is absent.
        device: The device.

    Attributes:
        which: As above.
        sets: These numbers on the device.
        address: Where they are.
        captured: Other memory on the host from which captured steps copy.
    """

    def __init__(self, which: Sequence[int], device: torch.device):
        self.device = device
        self.which = list(which)
        self.captured: list[Tensor] = []
        self._present: list[int] | None = None
        self._buffer = on_host(self.which, device)
        self.sets = self._buffer.to(device, non_blocking=True)
        self.address = self.sets.data_ptr()
        # The memory of the buffer, which is that of `sets` on the CPU.
        words = ctypes.c_int64 * len(self.which)
        self._words = words.from_address(self._buffer.data_ptr())

    @property
    def present(self) -> list[int]:
        """The indices of the leaves that take part."""
        if self._present is None:
            self._present = [i for i, at in enumerate(self.which) if at >= 0]
        return self._present

    def update(self, which: Sequence[int]) -> None:
        """Send the sets of all leaves, unless they are those of the last step."""
        which = list(which)
        if which == self.which:
            return
        self.which, self._present = which, None
        if self.device.type == "cpu":
            self._words[:] = which
            return
        source = on_host(which, self.device)
        if is_captured(self.device):  # replays copy from memory that stays
            source = self._buffer.copy_(source)
        self.sets.copy_(source, non_blocking=True)

    def with_these(self, words: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
        """Send numbers that belong to these, such as the scalars of all sets."""
        source = on_host(words, self.device, dtype)
        if is_captured(self.device):
            self.captured.append(source)
        return source.to(self.device, non_blocking=True)


def _are_aligned(numbers: list[int]) -> bool:
    return not any(number % ALIGNMENT for number in numbers)


def on_host(
    words: list[Any], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Return numbers in memory from which a copy to the device does not wait."""
    is_pinned = device.type == "cuda"
    options: Any = {"device": "cpu", "pin_memory": is_pinned}
    return torch.tensor(words, dtype=dtype, **options)


def sent(
    words: list[Any], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Send numbers of 64 bits to a device."""
    return on_host(words, device, dtype).to(device, non_blocking=True)


class ChunkLayout:
    """Chunks of leaves, and where the values that kernels keep and partial ones are, on the device.

    A chunk consists of whole rows, those of some indices of the first group of axes, or a part of those of one; or of
    entries, if these are the only group.

    Args:
        text: The kernels.
        sizes: The number of indices of each group of axes, by leaf.
        device: The device.
        chunk: The most entries of a chunk of entries or rows, unless a row has more.

    Attributes:
        entries, chunks: The number of entries and of chunks of all leaves.
        blocks: The form of each leaf: the sizes of its groups, the most indices of the first one in a chunk, and how
            many chunks have one of them; then the offset of each value that is kept, and of partial ones.
        total: How many values are kept for all leaves.
        has_aligned_rows: Whether rows begin at multiples of 16 entries.
        addresses: Where these parts are.
    """

    def __init__(
        self,
        text: KernelText,
        sizes: list[list[int]],
        device: torch.device,
        chunk: int,
    ):
        chunk_leaf: list[int] = []
        chunk_start: list[int] = []
        leaf_chunks = [0]
        columns: list[list[int]] = []
        self.total = 0
        for leaf, of_leaf in enumerate(sizes):
            per, parts, starts = _chunks_of(text.groups, of_leaf, chunk)
            chunk_start += starts
            chunk_leaf += [leaf] * len(starts)
            leaf_chunks.append(len(chunk_leaf))
            of_chunk = [per, *of_leaf[1:]]
            counts = [math.prod(of_leaf[i] for i in extent) for extent in text.kept]
            for extent in text.partial:
                counts.append(len(starts) * math.prod(of_chunk[i] for i in extent))
            offsets = itertools.accumulate(counts, initial=self.total)
            *of_values, self.total = offsets
            columns.append([*of_leaf, per, parts, *of_values])
        by_row = itertools.chain.from_iterable(zip(*columns, strict=True))
        counts = list(map(math.prod, sizes))
        rows = [length for _, *lengths in sizes for length in lengths]
        self.has_aligned_rows = _are_aligned(rows)
        self.entries = sum(counts)
        self.sizes = sent(counts, device)
        self.blocks = sent(list(by_row), device)
        self.chunks = len(chunk_leaf)
        self.chunk_leaf = sent(chunk_leaf, device)
        self.chunk_start = sent(chunk_start, device)
        self.leaf_chunks = sent(leaf_chunks, device)
        memory = (self.sizes, self.blocks, self.chunk_leaf, self.chunk_start)
        self.addresses = [x.data_ptr() for x in (*memory, self.leaf_chunks)]


def _chunks_of(
    groups: Groups, sizes: list[int], chunk: int
) -> tuple[int, int, list[int]]:
    """Return the indices of the first group in a chunk, the chunks of one index, and the start of each chunk."""
    count, *row = sizes
    if groups.are_batches:
        row = padded_sizes(sizes)
    elif groups.axes is not None:
        last = len(sizes) - 1 if groups.tile is None else groups.tile.lane + 1
        return _chunks_of_rows([*sizes[:last], math.prod(sizes[last:])])
    per = max(chunk // math.prod(row), 1)
    return per, 1, list(range(0, count, per))


def _chunks_of_rows(sizes: list[int]) -> tuple[int, int, list[int]]:
    """Return the indices of the first group in a chunk, the chunks of one index, and the first row of each chunk."""
    outer, *middle, length = sizes
    inner = math.prod(middle)
    rows = outer * inner
    # With so many rows, partial values of columns are few, and with so few chunks they are added up quickly.
    most = max(CHUNK // max(length, 1), LEAST_ROWS, rows // CHUNKS)
    if not rows:
        return 1, 1, [0]
    if inner <= most:
        per = most // inner
        return per, 1, list(range(0, rows, per * inner))
    of_part = math.ceil(inner / math.ceil(inner / most))
    starts = range(0, inner, of_part)
    return 1, len(starts), [i * inner + j for i in range(outer) for j in starts]
