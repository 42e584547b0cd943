"""Divide a leaf into blocks and reassemble it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor

from gradtx.distributed.layouts import ranks_along_rows

# User functions; `View.check` checks what they return.
Split: TypeAlias = Callable[[Tensor], Any]
Join: TypeAlias = Callable[[Sequence[Tensor]], Any]


class Division:
    """Divide a tensor into blocks. Blocks of one shape form one batch, stacked along a new first dimension."""

    def check(self, owner: str, name: str, shape: Sequence[int]) -> None:
        """Raise an error unless a leaf of this shape can be divided."""

    def groups(self, x: Tensor) -> list[list[int]]:
        """Return the indices of the blocks in each batch."""
        raise NotImplementedError

    def batches(self, x: Tensor) -> list[Tensor]:
        """Return the blocks, one batch per shape."""
        raise NotImplementedError

    def whole(self, batches: list[Tensor], like: Tensor) -> Tensor:
        """Invert `batches`, for a tensor shaped like `like`."""
        raise NotImplementedError

    def first(self, x: Tensor) -> Tensor:
        """Return the first block; if there are no blocks, a block of zeros."""
        batch = self.batches(x)[0]
        return batch[0] if len(batch) else batch.new_zeros(batch.shape[1:])


@dataclasses.dataclass(frozen=True)
class EvenParts(Division):
    """Divide a dimension into equal consecutive parts."""

    heads: int
    dim: int

    def check(self, owner: str, name: str, shape: Sequence[int]) -> None:
        size = _size(owner, name, shape, self.dim)
        if size % self.heads:
            raise ValueError(
                f"{owner}: leaf {name!r} has size {size} in dimension {self.dim}, "
                f"which is not divisible by heads={self.heads}"
            )

    def groups(self, x: Tensor) -> list[list[int]]:
        return [list(range(self.heads))]

    def batches(self, x: Tensor) -> list[Tensor]:
        size_of_part = x.shape[self.dim] // self.heads
        shape = (self.heads, size_of_part)
        parts = cast("Tensor", x.unflatten(self.dim, shape))
        dim = self.dim % x.ndim
        return [parts.movedim(dim, 0)]

    def whole(self, batches: list[Tensor], like: Tensor) -> Tensor:
        dim = self.dim % like.ndim
        return batches[0].movedim(0, dim).reshape(like.shape)


class Reshaped(Division):
    """Equal blocks along the first dimension of a reshaped leaf."""

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the number of blocks and their shape."""
        raise NotImplementedError

    def groups(self, x: Tensor) -> list[list[int]]:
        count, *_ = self.shape(x)
        return [list(range(count))]

    def batches(self, x: Tensor) -> list[Tensor]:
        return [x.reshape(self.shape(x))]

    def whole(self, batches: list[Tensor], like: Tensor) -> Tensor:
        return batches[0].reshape(like.shape)


@dataclasses.dataclass(frozen=True)
class LeadingIndices(Reshaped):
    """Create one block for each index of the leading dimensions."""

    batch: int

    def check(self, owner: str, name: str, shape: Sequence[int]) -> None:
        if len(shape) <= self.batch:
            raise ValueError(
                f"{owner}: leaf {name!r} has shape {tuple(shape)}, but batch={self.batch} requires more than "
                f"{self.batch} dimensions"
            )

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return (math.prod(x.shape[: self.batch]), *x.shape[self.batch :])


@dataclasses.dataclass(frozen=True)
class EqualRuns(Reshaped):
    """Divide dimension 0 into as many consecutive runs of a given size as it contains."""

    size: int

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[0] // self.size, self.size, *x.shape[1:])


class ListedBlocks(Division):
    """Blocks that may differ in shape."""

    def split(self, x: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def groups(self, x: Tensor) -> list[list[int]]:
        indices_of_shape: dict[torch.Size, list[int]] = {}
        for i, block in enumerate(self.split(x)):
            indices_of_shape.setdefault(block.shape, []).append(i)
        return list(indices_of_shape.values())

    def batches(self, x: Tensor) -> list[Tensor]:
        blocks = self.split(x)
        batches: list[Tensor] = []
        for group in self.groups(x):
            blocks_of_group = [blocks[i] for i in group]
            batches.append(torch.stack(blocks_of_group))
        return batches

    def whole(self, batches: list[Tensor], like: Tensor) -> Tensor:
        block_of_index: dict[int, Tensor] = {}
        for group, batch in zip(self.groups(like), batches, strict=True):
            block_of_index.update(zip(group, batch.unbind(), strict=True))
        return self.join([block_of_index[i] for i in range(len(block_of_index))])


@dataclasses.dataclass(frozen=True)
class Runs(ListedBlocks):
    """Divide a dimension into runs of given sizes, and each run into equal parts."""

    sizes: tuple[int, ...]
    heads: tuple[int, ...]
    dim: int

    def check(self, owner: str, name: str, shape: Sequence[int]) -> None:
        size = _size(owner, name, shape, self.dim)
        if sum(self.sizes) != size:
            raise ValueError(
                f"{owner}: leaf {name!r} has size {size} in dimension {self.dim}, but sizes={self.sizes} "
                f"sum to {sum(self.sizes)}"
            )
        for i, (run, parts) in enumerate(zip(self.sizes, self.heads, strict=True)):
            if run % parts:
                raise ValueError(
                    f"{owner}: leaf {name!r} has sizes[{i}]={run} in dimension {self.dim}, "
                    f"which is not divisible by heads={parts}"
                )

    def split(self, x: Tensor) -> Sequence[Tensor]:
        lengths: list[int] = []
        for run, parts in zip(self.sizes, self.heads, strict=True):
            lengths += parts * [run // parts]
        return torch.split(x, lengths, dim=self.dim)

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(blocks), dim=self.dim)


@dataclasses.dataclass(frozen=True)
class View(ListedBlocks):
    """Divide and reassemble a tensor with two user functions."""

    split_function: Split
    join_function: Join

    def check(self, owner: str, name: str, shape: Sequence[int]) -> None:
        indices = torch.arange(math.prod(shape), dtype=torch.float64)
        index = indices.reshape(tuple(shape))
        blocks = self.split_function(index)
        if not _is_list_of_tensors(blocks):
            raise ValueError(
                f"{owner}: view: split must return a non-empty list of tensors for leaf {name!r}, "
                f"got {type(blocks).__name__}"
            )
        joined = self.join_function(blocks)
        entries = torch.cat([block.flatten() for block in blocks])
        covers_all_entries_once = torch.equal(entries.sort().values, indices)
        if not covers_all_entries_once or not _is_equal(joined, index):
            raise ValueError(
                f"{owner}: view: join(split(x)) does not equal x for leaf {name!r} of shape {tuple(shape)}; "
                "split must assign every entry to exactly one block, and join must invert it"
            )

    def split(self, x: Tensor) -> Sequence[Tensor]:
        return self.split_function(x)

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        return self.join_function(blocks)


def _is_list_of_tensors(blocks: Any) -> TypeGuard[Sequence[Tensor]]:
    """Whether `blocks` is a non-empty sequence of tensors."""
    if not isinstance(blocks, tuple | list) or not blocks:
        return False
    return all(isinstance(block, Tensor) for block in blocks)


def _is_equal(joined: Any, index: Tensor) -> bool:
    """Whether the result of a user's `join` has the shape and the entries of the divided tensor."""
    if not isinstance(joined, Tensor):
        return False
    return joined.shape == index.shape and torch.equal(joined, index)


def _size(owner: str, name: str, shape: Sequence[int], dim: int) -> int:
    """Return the size of a dimension."""
    if not -len(shape) <= dim < len(shape):
        raise ValueError(
            f"{owner}: leaf {name!r} has shape {tuple(shape)} and no dimension {dim}"
        )
    return shape[dim]


@dataclasses.dataclass(frozen=True)
class LocalBlocks:
    """Blocks of a sharded leaf, none of which is split across ranks.

    Attributes:
        division: The division of the local shard.
        count: The number of blocks of the whole leaf.
    """

    division: Division
    count: int


def local_blocks(division: Division, like: Any) -> LocalBlocks | None:
    """Return the blocks of a sharded leaf if each is on a single rank; None if a block is split across ranks."""
    ranks = ranks_along_rows(like)
    if ranks is None:
        return None
    rows = like.shape[0]
    if isinstance(division, LeadingIndices) and division.batch == 1:
        return LocalBlocks(division, rows)
    if not isinstance(division, EvenParts) or division.dim % like.ndim:
        return None
    rows_of_block = rows // division.heads
    rows_of_shard = -(-rows // ranks)  # rounded up
    if not rows_of_block or rows_of_shard % rows_of_block:
        return None
    return LocalBlocks(EqualRuns(rows_of_block), division.heads)


def division(
    owner: str, heads: Any, sizes: Any, batch: Any, view: Any, dim: int
) -> Division:
    """Return the division specified by the arguments of `blocks`.

    Raises:
        ValueError: If the arguments do not specify exactly one division, if a count is not a positive integer, or if
            `view` is not a pair of functions.
    """
    choices = {"heads": heads, "sizes": sizes, "batch": batch, "view": view}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1 and given != ["heads", "sizes"]:
        got = " and ".join(given) or "none"
        raise ValueError(
            f"{owner}: pass exactly one of heads, sizes, batch and view, or heads with sizes; got {got}"
        )
    if batch is not None:
        _check_counts(owner, "batch", (batch,))
        return LeadingIndices(batch)
    if view is not None:
        _check_view(owner, view)
        return View(*view)
    if sizes is None:
        _check_counts(owner, "heads", (heads,))
        return EvenParts(heads, dim)
    return _runs(owner, sizes, heads, dim)


def _runs(owner: str, sizes: Any, heads: Any, dim: int) -> Runs:
    """Return the division into runs of the given sizes, each with its number of heads."""
    _check_counts(owner, "sizes", sizes)
    if isinstance(heads, tuple | list):
        parts = tuple(heads)
    else:
        parts_per_run = 1 if heads is None else heads
        parts = (parts_per_run,) * len(sizes)
    _check_counts(owner, "heads", parts)
    if len(parts) != len(sizes):
        raise ValueError(
            f"{owner}: heads must have one entry per entry of sizes, got {len(parts)} and {len(sizes)}"
        )
    return Runs(tuple(sizes), parts, dim)


def _check_view(owner: str, view: Any) -> None:
    """Raise an error unless `view` is a pair of functions."""
    is_pair = isinstance(view, tuple | list) and len(view) == 2
    if not is_pair or not all(map(callable, view)):
        raise ValueError(
            f"{owner}: view must be two functions (split, join), got {view!r}"
        )


def _check_counts(owner: str, what: str, counts: Any) -> None:
    """Raise an error unless `counts` is a non-empty sequence of positive integers."""
    if (
        isinstance(counts, tuple | list)
        and counts
        and all(map(_is_positive_int, counts))
    ):
        return
    raise ValueError(f"{owner}: {what} must be positive integers, got {counts!r}")


def _is_positive_int(count: Any) -> bool:
    return type(count) is int and count > 0
