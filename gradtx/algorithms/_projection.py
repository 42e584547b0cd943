"""Low-rank projections of matrices, for `low_rank`, Fira and APOLLO."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.algorithms._matrix import left_basis, orthonormal
from gradtx.algorithms._spaces import Coordinates, View

Bases: TypeAlias = Literal["svd", "power", "random"]
Side: TypeAlias = Literal["short", "long", "left", "right"]
Carry: TypeAlias = Literal["keep", "reset", "rotate"]


@dataclasses.dataclass(frozen=True)
class Projection(Coordinates):
    """Options of `low_rank`, which documents them, and how its result follows from the low-rank one.

    Attributes:
        finish: `(view, update) -> (update, numbers)`: the result for a matrix, and the new values of `numbers`.
        numbers: The names of 0-d slots of a matrix, besides its basis.
    """

    finish: Callable[[LowRankView, Tensor], tuple[Tensor, dict[str, Any]]]
    rank: int
    every: int
    kind: Bases
    side: Side
    carry: Carry
    seed: int
    numbers: tuple[str, ...] = ()

    def init(self, param: Tensor, *random: Any) -> dict[str, Any]:
        if param.ndim != 2:
            return {}
        # A leaf whose first gradient arrives later starts from the first columns of the identity.
        basis = torch.eye(
            param.shape[1 if self.is_right(param) else 0],
            self.width(param),
            dtype=param.dtype,
            device=param.device,
        )
        return {"Q": basis, **{name: param.new_zeros(()) for name in self.numbers}}

    def view(self, update: Tensor, state: Any, param: Any, ctx: Any) -> View:
        if update.ndim != 2:
            return View()
        return LowRankView(self, update, state, ctx)

    def changes(self, shape: torch.Size) -> bool:
        return len(shape) == 2

    @property
    def needs_kinds(self) -> bool:
        return self.carry == "rotate"

    @property
    def draws(self) -> int | None:
        return self.seed if self.kind == "random" else None

    def is_right(self, x: Tensor) -> bool:
        """Whether the basis multiplies the matrix from the right."""
        rows, columns = x.shape
        if self.side in ("left", "right"):
            return self.side == "right"
        return (rows >= columns) == (self.side == "short")

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

    def basis(self, x: Tensor, old: Tensor, ctx: Any) -> Tensor:
        """Return the basis of this step."""
        return ctx.every(
            self.every, 1, lambda: self._computed(x, old, ctx), lambda: old
        )

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
        self._finish = projection.finish
        self._carry = projection.carry
        self._renews = ((ctx.step - 1) % projection.every == 0) & (ctx.step > 1)
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
        update, numbers = self._finish(self, update)
        return update, {"Q": self.basis, **numbers}
