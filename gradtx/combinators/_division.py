"""Divide a leaf into blocks and reassemble it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.distributed.layouts import ranks_along_rows


class Division:
    """Divide a tensor into blocks. Blocks of one shape form one batch, stacked along a new first dimension."""

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise an error unless a leaf of this shape can be divided."""

    def groups(self, x: Tensor) -> list[list[int]]:
        """Return the indices of the blocks in each batch."""
        return [list(range(len(self.batch(0, x))))]

    def batch(self, i: int, x: Tensor) -> Tensor:
        """Return the blocks of the i-th batch."""
        raise NotImplementedError

    def whole(self, batches: list[Tensor], like: Tensor) -> Tensor:
        """Return the tensor with these batches of blocks, shaped like `like`."""
        return batches[0].reshape(like.shape)


@dataclasses.dataclass(frozen=True)
class EvenParts(Division):
    """Divide a dimension into equal consecutive parts."""

    heads: int
    dim: int
    size: int = -1  # of a part; -1 for the quotient, as is `heads` if the size is known

    def check(self, name: str, shape: Sequence[int]) -> None:
        size = _size(name, shape, self.dim)
        if size % self.heads:
            raise ValueError(
                f"blocks: leaf {name!r} has size {size} in dimension {self.dim}, "
                f"which is not divisible by heads={self.heads}"
            )

    def batch(self, i: int, x: Tensor) -> Tensor:
        parts = x.unflatten(self.dim, (self.heads, self.size))
        return parts.movedim(self.dim % x.ndim, 0)

    def whole(self, batches: list[Tensor], like: Tensor) -> Tensor:
        return batches[0].movedim(0, self.dim % like.ndim).reshape(like.shape)


@dataclasses.dataclass(frozen=True)
class LeadingIndices(Division):
    """Create one block for each index of the leading dimensions."""

    dims: int

    def check(self, name: str, shape: Sequence[int]) -> None:
        if len(shape) <= self.dims:
            raise ValueError(
                f"blocks: leaf {name!r} has shape {tuple(shape)}, but batch={self.dims} requires more than "
                f"{self.dims} dimensions"
            )

    def batch(self, i: int, x: Tensor) -> Tensor:
        return x.flatten(0, self.dims - 1)


@dataclasses.dataclass(frozen=True)
class ListedBlocks(Division):
    """Blocks that may differ in shape.

    Attributes:
        split: Function of a tensor that returns its blocks; a user's is checked by `SplitBlocks.check`.
        join: The reverse of `split`.
    """

    split: Callable[[Tensor], Any]
    join: Callable[[list[Tensor]], Any]

    def groups(self, x: Tensor) -> list[list[int]]:
        indices_of_shape: dict[torch.Size, list[int]] = {}
        for i, block in enumerate(self.split(x)):
            indices_of_shape.setdefault(block.shape, []).append(i)
        return list(indices_of_shape.values())

    def batch(self, i: int, x: Tensor) -> Tensor:
        blocks = self.split(x)
        return torch.stack([blocks[number] for number in self.groups(x)[i]])

    def whole(self, batches: list[Tensor], like: Tensor) -> Tensor:
        block_of_index: dict[int, Tensor] = {}
        for group, batch in zip(self.groups(like), batches, strict=True):
            block_of_index.update(zip(group, batch.unbind(), strict=True))
        return self.join([block_of_index[i] for i in range(len(block_of_index))])


@dataclasses.dataclass(frozen=True)
class Stretches(ListedBlocks):
    """Divide a dimension into stretches of these sizes, and each stretch into equal parts."""

    sizes: Sequence[int]
    heads: Sequence[int]
    dim: int

    def check(self, name: str, shape: Sequence[int]) -> None:
        size = _size(name, shape, self.dim)
        if sum(self.sizes) != size:
            raise ValueError(
                f"blocks: leaf {name!r} has size {size} in dimension {self.dim}, but sizes={self.sizes} "
                f"sum to {sum(self.sizes)}"
            )
        for i, (run, parts) in enumerate(zip(self.sizes, self.heads, strict=True)):
            if run % parts:
                raise ValueError(
                    f"blocks: leaf {name!r} has sizes[{i}]={run} in dimension {self.dim}, "
                    f"which is not divisible by heads={parts}"
                )


class SplitBlocks(ListedBlocks):
    """Divide and reassemble a tensor with two user functions."""

    def check(self, name: str, shape: Sequence[int]) -> None:
        indices = torch.arange(math.prod(shape), dtype=torch.float64)
        index = indices.reshape(tuple(shape))
        blocks = self.split(index)
        is_list = isinstance(blocks, tuple | list) and len(blocks) > 0
        if not is_list or not all(isinstance(block, Tensor) for block in blocks):
            raise ValueError(
                f"blocks: view: split must return a non-empty list of tensors for leaf {name!r}, "
                f"got {type(blocks).__name__}"
            )
        joined = self.join(list(blocks))
        entries = torch.cat([block.flatten() for block in blocks]).sort().values
        is_equal = isinstance(joined, Tensor) and torch.equal(joined, index)
        if not is_equal or not torch.equal(entries, indices):
            raise ValueError(
                f"blocks: view: join(split(x)) does not equal x for leaf {name!r} of shape {tuple(shape)}; "
                "split must assign every entry to exactly one block, and join must invert it"
            )


def _size(name: str, shape: Sequence[int], dim: int) -> int:
    """Return the size of a dimension."""
    if not -len(shape) <= dim < len(shape):
        raise ValueError(
            f"blocks: leaf {name!r} has shape {tuple(shape)} and no dimension {dim}"
        )
    return shape[dim]


# The division of the local shard of a leaf, and the number of blocks of the whole leaf.
LocalBlocks: TypeAlias = tuple[Division, int]


def local_blocks(division: Division, like) -> LocalBlocks | None:
    """Return the blocks of a sharded leaf if each is on a single rank; None if a block is split across ranks."""
    ranks = ranks_along_rows(like)
    if ranks is None:
        return None
    rows = like.shape[0]
    if isinstance(division, LeadingIndices) and division.dims == 1:
        return division, rows
    if not isinstance(division, EvenParts) or division.dim % like.ndim:
        return None
    rows_of_block = rows // division.heads
    rows_of_shard = -(-rows // ranks)  # rounded up
    if not rows_of_block or rows_of_shard % rows_of_block:
        return None
    return EvenParts(-1, 0, rows_of_block), division.heads


def division(heads, sizes, batch, view, dim: int) -> Division:
    """Return the division specified by the arguments of `blocks`.

    Raises:
        ValueError: If the arguments do not specify exactly one division, if a count is not a positive integer, or if
            `view` is not a pair of functions.
    """
    choices = {"heads": heads, "sizes": sizes, "batch": batch, "view": view}
    chosen = [name for name, value in choices.items() if value is not None]
    if len(chosen) != 1 and chosen != ["heads", "sizes"]:
        got = " and ".join(chosen) or "none"
        raise ValueError(
            f"blocks: pass exactly one of heads, sizes, batch and view, or heads with sizes; got {got}"
        )
    if batch is not None:
        _check_counts("batch", (batch,))
        return LeadingIndices(batch)
    if view is not None:
        is_pair = isinstance(view, tuple | list) and len(view) == 2
        if not is_pair or not all(map(callable, view)):
            raise ValueError(
                f"blocks: view must be two functions (split, join), got {view!r}"
            )
        return SplitBlocks(*view)
    if sizes is None:
        _check_counts("heads", (heads,))
        return EvenParts(heads, dim)
    _check_counts("sizes", sizes)
    if not isinstance(heads, tuple | list):
        heads = (1 if heads is None else heads,) * len(sizes)
    _check_counts("heads", heads)
    if len(heads) != len(sizes):
        raise ValueError(
            f"blocks: heads must have one entry per entry of sizes, got {len(heads)} and {len(sizes)}"
        )
    lengths: list[int] = []
    for run, parts in zip(sizes, heads, strict=True):
        lengths += parts * [run // parts]
    split = functools.partial(torch.split, split_size_or_sections=lengths, dim=dim)
    join = functools.partial(torch.cat, dim=dim)
    return Stretches(split, join, tuple(sizes), tuple(heads), dim)


def _check_counts(what: str, counts) -> None:
    """Raise an error unless `counts` is a non-empty sequence of positive integers."""
    is_list = isinstance(counts, tuple | list) and len(counts) > 0
    if not is_list or not all(type(count) is int and count > 0 for count in counts):
        raise ValueError(f"blocks: {what} must be positive integers, got {counts!r}")
