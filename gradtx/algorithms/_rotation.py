"""Coordinates along the eigenvectors of Kronecker factors, for `rotated` and the rules re-expressed with it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from gradtx.algorithms._math import at_least, blended
from gradtx.algorithms._matrix import (
    eigenbasis,
    gram,
    left_basis,
    merged,
    multiplied,
    orthonormal,
    unfolded,
)
from gradtx.algorithms._spaces import Coordinates, View
from gradtx.arguments import Count, Decay, NonNegative, NonNegativeInt, Static


def change_basis(
    x: Tensor, dims: list[int], bases: list[Tensor], back: bool = False
) -> Tensor:
    """Transform a tensor into the coordinates of bases, or back."""
    for i, basis in zip(dims, bases, strict=True):
        x = multiplied(x, basis if back else basis.mT, i)
    return x


def whitened(
    x: Tensor,
    dims: list[int],
    bases: list[Tensor],
    scales: list[Tensor],
    skipped: int = -1,
) -> Tensor:
    """Transform a tensor into bases and divide by the root of the scales; one dimension may be skipped."""
    for i, basis, scale in zip(dims, bases, scales, strict=True):
        if i != skipped:
            whitening = scale.rsqrt()[:, None] * basis.mT
            x = multiplied(x, whitening, i)
    return x


def kl_scales(
    statistics: list[Tensor], bases: list[Tensor], floor: Any
) -> list[Tensor]:
    """Return the eigenvalues used for whitening, diag(Q^T S Q) before this step, or 1 before the first gradient."""
    scales: list[Tensor] = []
    for matrix, basis in zip(statistics, bases, strict=True):
        eigenvalues = at_least((basis * (matrix @ basis)).sum(dim=0), floor)
        scales.append(torch.where(is_empty(matrix), 1.0, eigenvalues))
    return scales


def is_empty(statistics: Tensor) -> Tensor:
    """Return whether no gradient has entered the statistics; the clock cannot tell, as leaves may share it."""
    return (statistics == 0).all()


def iterated(statistics: Tensor, basis: Tensor) -> Tensor:
    """Run one step of power iteration, with the column of the largest eigenvalue first.

    Then every column returns to its place, so that what is kept for each of them need not move.
    """
    product = statistics @ basis
    eigenvalues = (basis * product).sum(dim=0)  # diag(Q^T S Q)
    order = eigenvalues.argsort(descending=True)
    basis = orthonormal(product.index_select(1, order))
    return basis.index_select(1, order.argsort())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation(Coordinates):
    """The options of `rotated`, which documents them."""

    statistics: Literal["shampoo", "kl"] = "shampoo"
    sides: Literal["both", "left", "right", "short"] = "both"
    beta: Decay = 0.95
    precondition_frequency: Count = 10
    max_precondition_dim: Count = 10000
    merge_dims: bool = False
    precondition_1d: bool = False
    start: Literal["skip", "identity"] = "skip"
    refresh: Literal["qr", "eigh", "svd"] = "qr"
    offset: NonNegativeInt = 1
    of: Literal["update", "grad"] = "update"
    eps: NonNegative = 1e-8
    order: Literal["after", "before"] = "after"
    stagger: Static[bool] = False

    @property
    def delayed(self) -> bool:
        return self.start == "skip" and self.order == "after"

    def changes(self, shape: torch.Size) -> list[int]:
        return self.dims(shape)

    def stored(self, value: Tensor, like: Tensor) -> Tensor:
        # One value per entry; others, such as a single mean, are unchanged.
        return value.reshape(like.shape) if value.numel() == like.numel() else value

    def shape(self, of_leaf: torch.Size) -> tuple[int, ...]:
        """Return the shape of a leaf after the merge."""
        if self.merge_dims and len(of_leaf) > 1:
            return merged(of_leaf, self.max_precondition_dim)
        return tuple(of_leaf)

    def inside(self, x: Tensor) -> Tensor:
        """Return a tensor in that shape."""
        return x.reshape(self.shape(x.shape))

    def dims(self, of_leaf: torch.Size) -> list[int]:
        """Return the dimensions that have a factor."""
        if len(of_leaf) == 1 and not self.precondition_1d:
            return []
        shape = self.shape(of_leaf)
        return [
            i for i in self._candidates(shape) if shape[i] <= self.max_precondition_dim
        ]

    def _candidates(self, shape: tuple[int, ...]) -> list[int]:
        """Return the dimensions that `sides` selects, whatever their size."""
        if self.sides == "both":
            return list(range(len(shape)))
        if len(shape) != 2:
            return []
        if self.sides == "short":
            return [0] if shape[0] < shape[1] else [1]
        return [0] if self.sides == "left" else [1]

    def init(self, param: Tensor, *random: Any) -> dict[str, Any]:
        shape = self.shape(param.shape)
        sizes = [shape[i] for i in self.dims(param.shape)]
        # A leaf whose first gradient arrives later starts from the identity.
        bases = [torch.eye(n, dtype=param.dtype, device=param.device) for n in sizes]
        if self.refresh == "svd":
            return {"Q": bases}
        return {"GG": [torch.zeros_like(basis) for basis in bases], "Q": bases}

    def view(
        self, update: Tensor, state: dict[str, Any], param: Any, ctx: Any
    ) -> RotatedView:
        return RotatedView(self, update, state, ctx)

    def bases(self, x: Tensor, old: list[Tensor], ctx: Any) -> list[Tensor]:
        """Return the bases of this step, computed from the update itself."""

        def computed() -> list[Tensor]:
            merged_x = self.inside(x)
            return [left_basis(unfolded(merged_x, i)) for i in self.dims(x.shape)]

        return self._if_due(ctx, computed, computed, old)

    def averages(self, x: Tensor, dims: list[int], old: list[Tensor]) -> list[Tensor]:
        """Return the factors after this step."""
        return [
            blended(statistics, gram(x, i), 1 - self.beta)
            for i, statistics in zip(dims, old, strict=True)
        ]

    def kl_averages(
        self,
        x: Tensor,
        dims: list[int],
        old: list[Tensor],
        bases: list[Tensor],
        scales: list[Tensor],
        ctx: Any,
    ) -> list[Tensor]:
        """Return the same for "kl": Gram matrices are whitened along all other dimensions and divided by their size."""
        # Unbiased, because the scale of the factors matters. `blended` does not support such weights, which start at 1.
        weight = (1 - self.beta) / ctx.bias_correction(self.beta)
        averages: list[Tensor] = []
        for i, statistics in zip(dims, old, strict=True):
            size_of_others = max(x.numel(), 1) / max(x.shape[i], 1)
            white = whitened(x, dims, bases, scales, skipped=i)
            new = gram(white, i) / size_of_others
            averages.append((1 - weight) * statistics + weight * new)
        return averages

    def next_bases(
        self, new: list[Tensor], old: list[Tensor], ctx: Any
    ) -> list[Tensor]:
        """Return the bases after this step."""

        def initial() -> list[Tensor]:
            return [eigenbasis(statistics) for statistics in new]

        def iterate() -> list[Tensor]:
            return list(map(iterated, new, old))

        refreshed = initial if self.refresh == "eigh" else iterate
        return self._if_due(ctx, initial, refreshed, old)

    def _if_due(self, ctx: Any, first: Any, refreshed: Any, old: Any) -> Any:
        """Return `first()` in a leaf's first update, `refreshed()` at steps that refresh its bases, else `old`."""
        phase = (
            self.offset + ctx.turn(self.precondition_frequency)
            if self.stagger
            else self.offset
        )
        return ctx.first(
            first,
            lambda: ctx.every(
                self.precondition_frequency, phase, refreshed, lambda: old
            ),
        )


class RotatedView(View):
    """View a leaf along the eigenvectors of its factors for one call."""

    def __init__(
        self, rotation: Rotation, update: Tensor, state: dict[str, Any], ctx: Any
    ):
        self._rotation = rotation
        self._ctx = ctx
        self._state = state
        self._update = update
        self._shape = update.shape
        self._merged_shape = rotation.shape(update.shape)
        self._dims = rotation.dims(update.shape)
        self._bases: list[Tensor] = state["Q"] if self._dims else []
        if rotation.refresh == "svd":
            self._bases = rotation.bases(update, self._bases, ctx)
        elif self._dims and rotation.order == "before":
            self._statistics, self._bases = self._renewed()
        if rotation.delayed:
            is_first = ctx.is_first
            self.takes_part = not is_first if isinstance(is_first, bool) else ~is_first

    def average(self, value: Tensor, decay: Any) -> Tensor | None:
        return blended(value, self._update, 1 - decay) if self._dims else None

    def inward(self, x: Tensor) -> Tensor:
        return change_basis(x.reshape(self._merged_shape), self._dims, self._bases)

    def _outward(self, x: Tensor) -> Tensor:
        in_original_basis = change_basis(x, self._dims, self._bases, back=True)
        return in_original_basis.reshape(self._shape)

    def read(self, kind: str, value: Tensor) -> Tensor:
        if kind == "linear":
            return self.inward(value)
        is_of_leaf = value.shape == self._shape
        return value.reshape(self._merged_shape) if is_of_leaf else value

    def write(self, kind: str, value: Tensor) -> Tensor:
        if kind == "linear":
            return self._outward(value)
        is_of_leaf = value.shape == self._merged_shape
        return value.reshape(self._shape) if is_of_leaf else value

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        update = self._outward(update)
        if not self._dims:
            return update, {}
        if self._rotation.refresh == "svd":
            return update, {"Q": self._bases}
        if self._rotation.order == "after":
            self._statistics, self._bases = self._renewed()
        return update, {"GG": self._statistics, "Q": self._bases}

    def _renewed(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors and the bases after this step."""
        rotation, dims, ctx = self._rotation, self._dims, self._ctx
        old, bases = self._state["GG"], self._bases
        x = rotation.inside(ctx.grad if rotation.of == "grad" else self._update)
        if rotation.statistics == "kl":
            scales = kl_scales(old, bases, rotation.eps)
            statistics = rotation.kl_averages(x, dims, old, bases, scales, ctx)
        else:
            statistics = rotation.averages(x, dims, old)
        return statistics, rotation.next_bases(statistics, bases, ctx)
