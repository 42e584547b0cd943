"""Rows of a matrix that are divided among ranks: residuals of each rank's own data, and their Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradtx.base.jacobian import Jacobian, Vectorizer
from gradtx.distributed.collectives import FAILED, Transfer
from gradtx.distributed.layouts import Team


class RowsOfRanks:
    """The rows that each rank has, and what those of this one are multiplied with.

    Args:
        team: The ranks.
        sizes: Their numbers of rows.
        factors: A factor for each row of this rank.
    """

    def __init__(self, team: Team, sizes: Sequence[int], factors: Tensor):
        self._team, self._sizes, self._factors = team, list(sizes), factors
        begin = sum(self._sizes[: team.rank])
        self._own = slice(begin, begin + self._sizes[team.rank])

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, in their order, given those of this rank."""
        factors = self._factors.to(rows).view(-1, *[1] * (rows.ndim - 1))
        width = rows[:1].numel()
        sizes = [[size * width] for size in self._sizes]
        everything = torch.cat(self._exchanged(rows * factors, sizes))
        return everything.view(-1, *rows.shape[1:]).to(rows.device)

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, which has the same bits on all of them."""
        terms = self._exchanged(tensor, [[tensor.numel()]] * self._team.size)
        return torch.stack(terms).sum(0).view(tensor.shape).to(tensor.device)

    def own(self, rows: Tensor) -> Tensor:
        """Return the rows of this rank, with their factors, given those of all."""
        return rows[self._own] * self._factors.to(rows)

    def _exchanged(self, tensor: Tensor, sizes: list[list[int]]) -> list[Tensor]:
        sent = tensor.detach().to(self._team.device)
        transfer = Transfer(self._team, [[sent]], sizes, tensor.dtype)
        return [of_rank for (of_rank,) in transfer.received()]


def assembled(
    team: Team, vectorizer: Vectorizer, function: Callable[[], object]
) -> tuple[list[Tensor], RowsOfRanks]:
    """Return the parts of this rank's vector, and how the rows of all ranks make one.

    Args:
        team: The ranks, each of which calls this.
        vectorizer: Makes the vector of what `function` returns.
        function: Computes the residuals of this rank's data.

    Raises:
        OtherRankError: If the function of another rank has failed: no rank waits for one that has.
    """
    try:
        parts = vectorizer.parts(function())
    except Exception:
        _counts(team, [0, 0], FAILED)
        raise
    own = list(map(len, parts))
    counts = _counts(team, [sum(own), len(own)])
    sizes = [rows for rows, _ in counts]
    factors = parts[0].detach().new_ones(sum(own))
    if vectorizer.takes_means:
        terms = [terms for _, terms in counts]
        if len(set(terms)) != 1:
            raise ValueError(
                f"{vectorizer.who}: ranks have {terms} terms of residuals; all need the same, in one order"
            )
        of_ranks = torch.tensor(_counts(team, own), dtype=torch.float64)
        # A term is divided by the root of its size on this rank, and is to be by that of all.
        shares = (of_ranks[team.rank] / of_ranks.sum(0)).sqrt()
        factors = torch.repeat_interleave(shares, torch.tensor(own)).to(factors)
    return parts, RowsOfRanks(team, sizes, factors)


def _counts(team: Team, counts: list[int], report: float = 0.0) -> list[list[int]]:
    """Return the counts of each rank; a rank that has failed raises its own error, and others that it has failed."""
    sent = torch.tensor(counts, dtype=torch.float64, device=team.device)
    sizes = [[len(counts)]] * team.size
    transfer = Transfer(team, [[sent]], sizes, torch.float64, report)
    if report:
        transfer.wait()
        return []
    return [of_rank.to(torch.int64).tolist() for (of_rank,) in transfer.received()]


class GatheredJacobian(Jacobian):
    """The Jacobian of the residuals of all ranks, each of which computes that of its own.

    Args:
        own: The Jacobian of this rank's residuals.
        division: The rows of the ranks.
    """

    def __init__(self, own: Jacobian, division: RowsOfRanks):
        self._of_rank, self._division = own, division
        self.joint, self.value = own.joint, division.gathered(own.value)

    def times(self, vector: Tensor) -> Tensor:
        return self._division.gathered(self._of_rank.times(vector))

    def transposed(self, vector: Tensor) -> Tensor:
        own = self._of_rank.transposed(self._division.own(vector))
        return self._division.summed(own)

    def second(self, vector: Tensor) -> Tensor:
        self._bends = True
        return self._division.gathered(self._of_rank.second(vector))

    def _rows(self) -> Tensor:
        return self._division.gathered(self._of_rank.rows)

    def _columns(self) -> Tensor:
        return self._rows().mT
