"""What is measured of a leaf at a link: sums over entries, which add up over leaves, and the figures that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import is_sharded, local
from gradtx.base.exact import exact_dtype
from gradtx.distributed.redistribution import distributed_like
from gradtx.distributed.sums import PartialSum

# The sums over the entries of a leaf, at one link.
SUMS: tuple[str, ...] = (
    "before",  # squares of the update before the link
    "after",  # and after it
    "gradient",  # squares of the leaf's gradient
    "weight",  # squares of its weights
    "along_gradient",  # products of the update after the link and the gradient
    "free",  # entries that a bound or eps may decide; 0 if the link has neither
    "decided",  # entries that it decides
    "coded",  # entries of coded slots where the link received something
    "crushed",  # those of them whose code is the smallest, or 0
    "moving",  # entries with an update, after the last link
    "lost",  # those of them whose weight rounds to what it was
    "along_last",  # products of the update and that of the step before, in a sample of entries
    "sampled",  # squares of the update in the sample
    "sampled_last",  # squares of the update of the step before
    "micro",  # squares of the gradients that `accumulate` has averaged, of all its calls together
)
# The row of a whole chain, beside those of its links.
STEP = "step"
# What was measured at a link: a leaf, or several together.
Measured: TypeAlias = str | tuple[str, ...]
# What is measured there, by the names of `SUMS`; vectors of several leaves.
Row: TypeAlias = dict[str, Any]
# So many float32 terms are added in float32 before their sums are converted: to convert every term takes longer.
BLOCK = 256


def names_of(leaves: Measured) -> tuple[str, ...]:
    """Return the names of leaves."""
    return (leaves,) if isinstance(leaves, str) else leaves


def _ratio(value: Tensor, to: Tensor) -> Tensor:
    return torch.where(to > 0, value / to, math.nan)


def _cosine(product: Tensor, square: Tensor, other: Tensor) -> Tensor:
    return _ratio(product, square.sqrt() * other.sqrt())


# Figure -> function of the sums; NaN if there is nothing to measure.
FIGURES: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "norm_before": lambda s: s["before"].sqrt(),
    "norm_after": lambda s: s["after"].sqrt(),
    "change": lambda s: _ratio(s["after"], s["before"]).sqrt(),
    "update_to_weight": lambda s: _ratio(s["after"], s["weight"]).sqrt(),
    "cos_grad": lambda s: _cosine(s["along_gradient"], s["after"], s["gradient"]),
    "cos_last": lambda s: _cosine(s["along_last"], s["sampled"], s["sampled_last"]),
    "decided": lambda s: _ratio(s["decided"], s["free"]),
    "crushed": lambda s: _ratio(s["crushed"], s["coded"]),
    "lost": lambda s: _ratio(s["lost"], s["moving"]),
}


def holds(comparison: Callable[..., Tensor], value: Tensor, other: Any) -> Tensor:
    """Return 1 where a comparison holds and 0 elsewhere, in the dtype of the value.

    On a CPU, torch compares several times faster into this dtype than into bools.
    """
    value = value.detach()
    if isinstance(other, Tensor):
        other = other.detach()
    if _torch.inside_transform():  # vmap has no rule for memory of one's own
        return comparison(value, other).to(value.dtype)
    return comparison(value, other, out=torch.empty_like(value))


class LeafSums:
    """Sums over the entries of one leaf, on each rank over those that it has.

    Args:
        like: The parameter, or the gradient of a leaf without one.
        count: The number of leaves of which this one has the entries, one after another; sums are vectors if above 1.

    Attributes:
        like: The tensor whose layout the entries have.
    """

    def __init__(self, like: Tensor, count: int = 1):
        self.like = like
        self._count = count
        # The layout of a sum that is pending over the ranks.
        self._of_sum: Any = like.sum() if is_sharded(like) else None

    def here(self, tensor: Tensor) -> Tensor:
        """Return the entries that this process has."""
        return local(distributed_like(tensor, self.like))

    def sum(self, entries: Tensor) -> Any:
        """Return the sum of entries that `here` has returned, or of what was computed from them."""
        rows, are_blocks = self._rows(entries)
        if are_blocks:
            rows = rows.sum(-1)
        return self._placed(rows.sum(-1, dtype=exact_dtype(entries)))

    def square(self, tensor: Tensor) -> Any:
        return self.sum_of_squares(self.here(tensor))

    def sum_of_squares(self, entries: Tensor) -> Any:
        """Like `sum`, of the squares of entries."""
        rows, are_blocks = self._rows(entries)
        if are_blocks:  # needs no memory for the squares
            rows = torch.linalg.vector_norm(rows, dim=-1).to(exact_dtype(entries))
        return self._placed(rows.square().sum(-1, dtype=exact_dtype(entries)))

    def product(self, tensor: Tensor, other: Tensor) -> Any:
        return self.sum(self.here(tensor) * self.here(other))

    def _rows(self, entries: Tensor) -> tuple[Tensor, bool]:
        """Return the entries of each leaf, in blocks or not; of one leaf without the dimension of leaves."""
        entries = entries.reshape((self._count, -1) if self._count > 1 else -1)
        converts = entries.dtype is torch.float32 and entries.device.type == "cpu"
        if converts and entries.shape[-1] % BLOCK == 0:
            return entries.unflatten(-1, (-1, BLOCK)), True
        return entries, False

    def _placed(self, total: Tensor) -> Any:
        """Return the sum over this rank's shard as one that is pending, if there are others."""
        if self._of_sum is None:
            return total
        return PartialSum(total, self._of_sum.device_mesh, self._of_sum.placements)
