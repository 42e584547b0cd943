"""Exchanges of tensors between ranks, and what ranks hear of a failure on another one.

Sums are in `gradtx.distributed.sums`, whole tensors of DTensors in `gradtx.distributed.redistribution`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.distributed.layouts import Team

BUCKET = 2**26  # bytes of whole tensors per exchange
# Entries at the start of each message that report whether the sender has failed, or has heard of a failure.
FLAG = 1
FAILED, HEARD = 1.0, 2.0


class OtherRankError(RuntimeError):
    """Raised on a rank that has heard of a failure on another one."""


class Relay:
    """A failure in an exchange, which later exchanges of the step report to the ranks of other meshes.

    Attributes:
        error: The first failure that this rank knows of.
    """

    error: Exception | None = None

    def note(self, error: Exception) -> None:
        if self.error is None:
            self.error = error

    def report(self) -> float:
        """Return what messages report."""
        if self.error is None:
            return 0.0
        return HEARD if isinstance(self.error, OtherRankError) else FAILED

    def end(self) -> None:
        """Raise the failure."""
        if self.error is not None:
            raise self.error


class Transfer:
    """An exchange of tensors in progress.

    Args:
        team: The ranks.
        rows: The tensors for each rank, or one row for all ranks.
        sizes: The number of entries of each tensor that this rank receives from each rank.
        dtype: The dtype of the entries.
        report: Whether this rank has failed (`FAILED`), or has heard of a failure (`HEARD`), which all others learn.
    """

    _collective: Any  # what torch returns to wait for

    def __init__(
        self,
        team: Team,
        rows: list[list[Tensor]],
        sizes: list[list[int]],
        dtype: torch.dtype,
        report: float = 0.0,
    ):
        flag = torch.full((FLAG,), report, dtype=dtype, device=team.device)
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
            OtherRankError: If a rank has failed, or knows of one that has.
        """
        self.wait()
        messages = torch.split(self._received, self._lengths)
        reports = torch.stack([message[0] for message in messages]).tolist()
        if any(reports):
            first = reports.index(FAILED if FAILED in reports else HEARD)
            raise OtherRankError(
                f"rank {self._team.ranks[first]} failed in this step; see the error raised on that rank"
            )
        received = []
        for message, sizes in zip(messages, self._sizes, strict=True):
            entries = message[FLAG : FLAG + sum(sizes)]
            received.append(list(torch.split(entries, sizes)))
        return received
