"""Sparse tensors of ranks: the entries that each rank has chosen, and the mean of all ranks' tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import from_local_like, local
from gradtx.distributed.layouts import Team


@dataclass(frozen=True)
class Sparse:
    """Some entries of a tensor, flattened and divided into chunks; the others are 0.

    The chunk of each entry is the same on all ranks, its offset in the chunk is not.

    Attributes:
        values: The entries.
        starts: The index of the first entry of the chunk of each.
        offsets: The index of each in its chunk.
        chunk: The number of entries of a chunk.
        like: A tensor of the same shape and dtype; of a DTensor, the entries are those of the local shard.
    """

    values: Tensor
    starts: Tensor
    offsets: Tensor
    chunk: int
    like: Any

    def dense(self) -> Any:
        """Return the tensor with all its entries."""
        zeros = torch.zeros_like(local(self.like)).reshape(-1)
        entries = zeros.scatter(0, self.starts + self.offsets, self.values)
        return self._shaped(entries)

    def mean(self, values: list[Tensor], offsets: list[Tensor]) -> Any:
        """Return the mean over ranks, with all its entries, given those of each rank."""
        total = torch.zeros_like(local(self.like)).reshape(-1)
        # One rank after another: sums in another order would give ranks other weights.
        for of_rank, offset in zip(values, offsets, strict=True):
            places = self.starts + offset.to(self.starts)
            total = total.scatter_add(0, places, of_rank.to(total))
        return self._shaped(total / len(values))

    def _shaped(self, entries: Tensor) -> Any:
        shard = entries.view(local(self.like).shape)
        return from_local_like(shard, self.like)


def mean_of_sparse_over_ranks(
    tensors: Mapping[str, Sparse], number: Any, team: Team
) -> tuple[dict[str, Any], Tensor]:
    """Return the mean of each tensor over ranks, and the number of each rank, by one message.

    Args:
        tensors: Tensors by name, in float32 at least; all ranks send as many entries of the same chunks.
        number: A number, sent in the dtype of the entries.
        team: The ranks.
    """
    in_order = [tensors[name] for name in sorted(tensors)]
    wire = functools.reduce(
        torch.promote_types, [sparse.values.dtype for sparse in in_order]
    )
    sizes = [len(sparse.values) for sparse in in_order]
    values = [sparse.values.to(team.device, wire) for sparse in in_order]
    values.append(number.to(team.device, wire).reshape(1))
    narrow = _narrowest(max(sparse.chunk for sparse in in_order))
    offsets = [sparse.offsets.to(team.device, narrow) for sparse in in_order]
    parts = [torch.cat(values), torch.cat(offsets)]

    values_of_ranks: list[tuple[Tensor, ...]] = []
    offsets_of_ranks: list[tuple[Tensor, ...]] = []
    for entries, indices in _gathered(parts, team):
        values_of_ranks.append(torch.split(entries, [*sizes, 1]))
        offsets_of_ranks.append(torch.split(indices, sizes))
    means = {}
    for i, name in enumerate(sorted(tensors)):
        values_of_leaf = [values[i] for values in values_of_ranks]
        means[name] = tensors[name].mean(
            values_of_leaf, [at[i] for at in offsets_of_ranks]
        )
    return means, torch.cat([values[-1] for values in values_of_ranks])


def _narrowest(chunk: int) -> torch.dtype:
    """Return the dtype of the fewest bytes for indices in a chunk."""
    for dtype in (torch.int16, torch.int32):
        if chunk - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def _gathered(parts: list[Tensor], team: Team) -> list[list[Tensor]]:
    """Return the vectors that each rank has passed, which have equal sizes on all ranks, by one message of bytes."""
    message = torch.cat([part.view(torch.uint8) for part in parts])
    rows = [torch.empty_like(message) for _ in range(team.size)]
    torch.distributed.all_gather(rows, message, group=team.group)
    vectors_of_ranks: list[list[Tensor]] = []
    for row in rows:
        vectors: list[Tensor] = []
        sizes = [part.nbytes for part in parts]
        for vector, part in zip(torch.split(row, sizes), parts, strict=True):
            # A copy: a view in a larger type needs an address that it divides.
            vectors.append(vector.clone().view(part.dtype))
        vectors_of_ranks.append(vectors)
    return vectors_of_ranks
