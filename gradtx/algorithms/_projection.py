"""Low-rank projections of matrices, for `low_rank`, Fira and APOLLO."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from gradtx.algorithms._matrix import left_basis, orthonormal
from gradtx.algorithms._spaces import Space, View
from gradtx.transform import GradientTransformation

# Option -> permitted values.
CHOICES = {
    "projection": ("svd", "power", "random"),
    "side": ("short", "long", "left", "right"),
    "carry": ("keep", "reset", "rotate"),
}


@dataclasses.dataclass(frozen=True)
class Projection:
    """Options of `low_rank`, which documents them."""

    rank: int
    every: int
    kind: str
    side: str
    carry: str
    seed: int

    def space(
        self,
        inner: GradientTransformation,
        view: Any,
        slots: Any = None,
        hidden: bool = False,
    ) -> Space:
        """Return the body of a combinator; `view` creates the view of a matrix, `slots` its additional slots."""

        # `random` serves only the later bases.
        def init(param: Tensor, *random: Any) -> dict[str, Any]:
            if param.ndim != 2:
                return {}
            # A leaf whose first gradient arrives later starts from the first columns of the identity.
            basis = torch.eye(
                self.dimension(param),
                self.width(param),
                dtype=param.dtype,
                device=param.device,
            )
            state = {"Q": basis}
            if slots is not None:
                state.update(slots(param))
            return state

        def viewed(update: Tensor, state: dict[str, Any], param: Any, ctx: Any) -> View:
            if update.ndim != 2:
                return WholeView()
            return view(self, update, state, ctx)

        return Space(
            inner,
            init=init,
            view=viewed,
            inside=self.inside,
            needs_kinds=self.carry == "rotate",
            seed=self.seed if self.kind == "random" else None,
            changes=lambda shape: len(shape) == 2,
            hidden=hidden,
        )

    def is_right(self, x: Tensor) -> bool:
        """Whether the basis multiplies the matrix from the right."""
        rows, columns = x.shape
        if self.side in ("left", "right"):
            return self.side == "right"
        right_is_short = rows >= columns
        return right_is_short == (self.side == "short")

    def dimension(self, x: Tensor) -> int:
        """Return the size of the dimension of a matrix that the basis projects."""
        return x.shape[1] if self.is_right(x) else x.shape[0]

    def width(self, x: Tensor) -> int:
        """Return the number of columns of the basis."""
        return self.rank if self.kind == "random" else min(self.rank, *x.shape)

    def inside(self, x: Tensor) -> Tensor:
        """Return a matrix in the shape that the inner transformation receives, for `init`."""
        if x.ndim != 2:
            return x
        rows, columns = x.shape
        width = self.width(x)
        shape = (rows, width) if self.is_right(x) else (width, columns)
        return x.new_zeros(shape)

    def is_due(self, ctx: Any) -> Any:
        """Return whether this step computes a new basis."""
        return (ctx.step - 1) % self.every == 0

    def basis(self, x: Tensor, old: Tensor, ctx: Any) -> Tensor:
        """Return the basis of this step."""

        def compute() -> Tensor:
            return self._computed(x, old, ctx)

        def keep() -> Tensor:
            return old

        return ctx.every(self.every, 1, compute, keep)

    def _computed(self, x: Tensor, old: Tensor, ctx: Any) -> Tensor:
        """Compute a basis: at random, from the singular vectors of `x`, or by one step of power iteration."""
        if self.kind == "random":
            return ctx.rng.normal(old) / self.rank**0.5
        matrix = x.mT if self.is_right(x) else x
        if self.kind == "svd":
            width = old.shape[1]
            return signed(left_basis(matrix)[:, :width])
        return signed(orthonormal(matrix @ (matrix.mT @ old)))


def signed(basis: Tensor) -> Tensor:
    """Make the entry of largest magnitude in each column positive, so that moments stay valid across refreshes."""
    if not basis.numel():
        return basis
    row_of_largest = basis.detach().abs().argmax(dim=0, keepdim=True)
    largest = basis.detach().take_along_dim(row_of_largest, dim=0)
    signs = largest.sign()
    return basis * torch.where(signs == 0, 1.0, signs)


class WholeView(View):
    """Pass a leaf through without projection."""

    def inward(self, x: Tensor) -> Tensor:
        return x

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return update, {}


class LowRankView(View):
    """Project a matrix to a low rank for one call."""

    def __init__(
        self, projection: Projection, update: Tensor, state: dict[str, Any], ctx: Any
    ):
        self.ctx = ctx
        self.right = projection.is_right(update)
        self.update = update
        self.state = state
        self.basis = projection.basis(update, state["Q"], ctx)
        self._carry = projection.carry
        self._renews = projection.is_due(ctx) & (ctx.step > 1)
        # The host already knows that no refresh is due.
        self._kept = self.basis is state["Q"]
        if self._carry == "reset" and not self._kept:
            self.restarts = self._renews

    def inward(self, x: Tensor) -> Tensor:
        return x @ self.basis if self.right else self.basis.mT @ x

    def outward(self, x: Tensor) -> Tensor:
        return x @ self.basis.mT if self.right else self.basis @ x

    def read(self, kind: str, value: Tensor) -> Tensor:
        if self._kept or self._carry != "rotate" or kind != "linear":
            return value
        rotation = self.basis.mT @ self.state["Q"]
        rotated = value @ rotation.mT if self.right else rotation @ value
        return torch.where(self._renews, rotated, value)

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.outward(update), {"Q": self.basis}


class ScaledView(LowRankView):
    """Multiply updates by a factor after projecting them back."""

    def __init__(
        self,
        projection: Projection,
        update: Tensor,
        state: dict[str, Any],
        ctx: Any,
        scale: Any,
    ):
        super().__init__(projection, update, state, ctx)
        self._scale = scale

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        update, state = super().leave(update)
        return self._scale * update, state
