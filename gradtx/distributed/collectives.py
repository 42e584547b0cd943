"""The messages that ranks send each other: sums, exchanges of tensors, and gathered tensors.

`gradtx.optim.ranks` sends more: it compares the plans of ranks, and slots of owners. Whole tensors of DTensors are
gathered by torch (`gradtx.base.dtensor`, where the sums over all leaves are, too).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradtx.base.dtensor import (
    from_local_like,
    is_sharded,
    local,
    on_every_rank,
    without_pending_sums,
)
from gradtx.distributed.layouts import Team, is_split, pieces_at, team_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

BUCKET = 2**26  # bytes of whole tensors per exchange
# Entries at the start of each message that report whether the sender has failed.
FLAG = 1


def summed_over_ranks(
    sums: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Complete the sums of many leaves on every rank; sums with the same layout share one message.

    Args:
        sums: The sums of each leaf, by name; sharded tensors are passed as DTensors.
    """
    complete = {}
    messages: dict[Any, list[tuple[str, str]]] = defaultdict(list)
    for leaf in sorted(sums):
        complete[leaf] = dict(sums[leaf])
        for name, value in sums[leaf].items():
            if is_sharded(value):
                differs = tuple(
                    not placement.is_replicate() for placement in value.placements
                )
                messages[value.device_mesh, differs, value.dtype].append((leaf, name))
    for (mesh, differs, _), entries in messages.items():
        values = [sums[leaf][name] for leaf, name in entries]
        shards = list(map(_padded, values))
        for dim, has_differences in enumerate(differs):
            if has_differences:
                shards = _summed(shards, mesh.get_group(dim))
        everywhere = on_every_rank(mesh)
        for (leaf, name), value, shard in zip(entries, values, shards, strict=True):
            complete[leaf][name] = from_local_like(
                shard, value, value.shape, everywhere
            )
    return complete


def _summed(shards: list[Tensor], group: Any) -> list[Tensor]:
    """Return the sums over the ranks of a group of tensors with the same dtype and device, by one message."""
    if not any(map(Tensor.dim, shards)):  # a shortcut
        vector = torch.stack(shards)
        torch.distributed.all_reduce(vector, group=group)
        return list(vector.unbind())
    vector = torch.cat([shard.reshape(-1) for shard in shards])
    torch.distributed.all_reduce(vector, group=group)
    totals = torch.split(vector, list(map(torch.numel, shards)))
    return [
        total.view(shard.shape) for total, shard in zip(totals, shards, strict=True)
    ]


def mean_over_ranks(
    tensors: Mapping[str, Any], number: Any, team: Team
) -> tuple[dict[str, Any], Tensor]:
    """Return the mean of each tensor over ranks, and the number of each rank, by one message.

    Args:
        tensors: Tensors by name, in float32 at least; of sharded ones, all ranks have the same shards.
        number: A number, sent in the dtype of the message.
        team: The ranks.
    """
    names = sorted(tensors)
    shards = [local(tensors[name]) for name in names]
    numbers = shards[0].new_zeros(team.size)
    numbers[team.rank] = number
    wire = functools.reduce(torch.promote_types, [shard.dtype for shard in shards])
    message = [shard.to(team.device, wire) for shard in (*shards, numbers)]
    *totals, numbers = _summed(message, team.group)
    means = {}
    for name, shard, total in zip(names, shards, totals, strict=True):
        mean = (total / team.size).to(shard)
        means[name] = from_local_like(mean, tensors[name])
    return means, numbers


def _padded(value: DTensor) -> Tensor:
    """Return the local shard padded with zeros to the full shape; summed over the ranks, it is the full tensor."""
    shard = local(value)
    if not shard.ndim or (shard.shape == value.shape and not is_split(value)):
        return shard
    mesh = value.device_mesh
    as_if_summed = without_pending_sums(value.placements)
    piece = pieces_at(tuple(value.shape), mesh, as_if_summed)[team_of(mesh).rank]
    padded = shard.new_zeros(value.shape)
    padded[piece.window] = shard
    return padded


class Transfer:
    """An exchange of tensors in progress.

    Args:
        team: The ranks.
        rows: The tensors for each rank, or one row for all ranks.
        sizes: The number of entries of each tensor that this rank receives from each rank.
        dtype: The dtype of the entries.
        failed: Whether this rank has failed, which the message reports to all others.
    """

    _collective: Any  # what torch returns to wait for

    def __init__(
        self,
        team: Team,
        rows: list[list[Tensor]],
        sizes: list[list[int]],
        dtype: torch.dtype,
        failed: bool = False,
    ):
        flag = torch.full((FLAG,), float(failed), dtype=dtype, device=team.device)
        messages: list[Tensor] = []
        for row in rows:
            messages.append(torch.cat([flag, *(tensor.reshape(-1) for tensor in row)]))
        self._team = team
        self._sizes = sizes
        self._lengths = [FLAG + sum(of_rank) for of_rank in sizes]
        if len(rows) < team.size:  # all_gather needs messages of equal length
            self._lengths = [max(self._lengths)] * team.size
            messages.append(flag.new_zeros(self._lengths[0] - len(messages[0])))
        self._sent = torch.cat(messages)
        self._received = self._sent.new_empty(sum(self._lengths))
        if len(rows) < team.size:
            self._collective = torch.distributed.all_gather_into_tensor(
                self._received, self._sent, group=team.group, async_op=True
            )
        else:
            self._collective = torch.distributed.all_to_all_single(
                self._received,
                self._sent,
                self._lengths,
                list(map(len, messages)),
                group=team.group,
                async_op=True,
            )

    def wait(self) -> None:
        self._collective.wait()

    def received(self) -> list[list[Tensor]]:
        """Wait for the transfer, and return the tensors from each rank as vectors, views of its message.

        Raises:
            RuntimeError: If a rank has failed.
        """
        self.wait()
        messages = torch.split(self._received, self._lengths)
        flags = torch.stack([message[0] for message in messages])
        failed = flags.nonzero().flatten().tolist()
        if failed:
            raise RuntimeError(
                f"rank {self._team.ranks[failed[0]]} failed in this step; see the error raised on that rank"
            )
        received = []
        for message, sizes in zip(messages, self._sizes, strict=True):
            entries = message[FLAG : FLAG + sum(sizes)]
            received.append(list(torch.split(entries, sizes)))
        return received
