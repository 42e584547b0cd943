"""The largest entries of each chunk of a tensor, which are all that a rank sends: `TopK`, an option of `outer`."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_number
from gradtx.base.dtensor import local
from gradtx.base.messages import describe
from gradtx.distributed.sparse import Sparse

__all__ = ["TopK"]


@dataclasses.dataclass(frozen=True)
class TopK:
    """Send the largest entries of each chunk, and keep the others for later: SparseLoCo's compression, for `outer`.

    A leaf is flattened and divided into chunks of consecutive entries, the last of which may be shorter; of a sharded
    leaf, each shard is. A chunk of no more than `k` entries is sent whole. Each entry takes the bytes of its value,
    4 in float32, and 2 for its index (4 if a chunk has more than 32,768 entries).

    Args:
        k: How many entries of each chunk to send, those with the largest magnitudes, in [1, chunk].
        chunk: The number of entries of a chunk, at least 1.
        decay: The factor of what was not sent, once per synchronization, in [0, 1]: with 1, all of it is sent in the
            end; with 0, it is lost.

    Raises:
        TypeError: If an argument is not a number, or `k` or `chunk` not an int.
        ValueError: If an argument is out of range.

    Example:
        >>> gradtx.TopK(k=32)
        TopK(k=32, chunk=4096, decay=0.95)

    Source: Sarfi et al. 2025, arXiv:2508.15706. For the departures, see `outer`.
    """

    k: int = 64
    chunk: int = 4096
    decay: float = 0.95

    def __post_init__(self) -> None:
        kinds = {
            "k": numbers.Integral,
            "chunk": numbers.Integral,
            "decay": numbers.Real,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not is_number(value, kind):
                expected = "an int" if kind is numbers.Integral else "a number"
                raise TypeError(
                    f"TopK: {name} must be {expected}, got {describe(value)}"
                )
        if self.chunk < 1:
            raise ValueError(f"TopK: chunk must be in [1, inf), got {self.chunk}")
        if not 1 <= self.k <= self.chunk:
            raise ValueError(
                f"TopK: k must be in [1, chunk] = [1, {self.chunk}], got {self.k}"
            )
        if not 0 <= self.decay <= 1:
            raise ValueError(f"TopK: decay must be in [0, 1], got {self.decay}")


def largest_entries(tensor: Any, top_k: TopK) -> Sparse:
    """Return the largest entries of each chunk of a tensor, or of its local shard."""
    vector = local(tensor).reshape(-1)
    size = len(vector)
    whole = size - size % top_k.chunk
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    if whole:
        parts.append(_of_rows(vector[:whole].view(-1, top_k.chunk), top_k, 0))
    if whole < size or not size:
        parts.append(_of_rows(vector[whole:].view(1, -1), top_k, whole))
    values, starts, offsets = map(torch.cat, zip(*parts, strict=True))
    return Sparse(values, starts, offsets, top_k.chunk, tensor)


def _of_rows(chunks: Tensor, top_k: TopK, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest entries of each row, the index where its chunk starts, and the index in its chunk.

    Args:
        chunks: One chunk in each row.
        top_k: How many of each.
        first: The index of the first entry of the first one.
    """
    k = min(top_k.k, chunks.shape[1])
    offsets = chunks.abs().topk(k, dim=1, sorted=False).indices
    rows = torch.arange(len(chunks), device=chunks.device)
    starts = (first + top_k.chunk * rows).repeat_interleave(k)
    values = chunks.gather(1, offsets)
    return values.reshape(-1), starts, offsets.reshape(-1)
