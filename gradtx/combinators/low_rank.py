"""Run any chain on matrices projected to a low rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.algorithms._matrix import left_basis, orthonormal
from gradtx.arguments import Count, NonNegative
from gradtx.combinators._spaces import Coordinates, Space, View
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = [
    "low_rank",
]


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

    def init(self, param: Tensor, *random) -> dict[str, Any]:
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

    def view(self, update: Tensor, state, param, ctx) -> View:
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

    def basis(self, x: Tensor, old: Tensor, ctx) -> Tensor:
        """Return the basis of this step."""
        return ctx.every(
            self.every, 1, lambda: self._computed(x, old, ctx), lambda: old
        )

    def _computed(self, x: Tensor, old: Tensor, ctx) -> Tensor:
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
        self, projection: Projection, update: Tensor, state: dict[str, Any], ctx
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


@combinator
def low_rank(
    tx: GradientTransformation,
    rank: Count,
    every: Count = 200,
    projection: Bases = "svd",
    side: Side = "short",
    scale: NonNegative = 1.0,
    carry: Carry = "keep",
    seed: int = 0,
):
    r"""Run a chain on matrices projected to a low rank, so that its state is correspondingly small.

    At steps t with (t - 1) mod `every` = 0 a basis $Q$ with `rank` columns is computed from the update $G$. The chain
    receives $G Q$, or $Q^\top G$ if the basis is on the left; its update $u$ is mapped back to $a\, u\, Q^\top$, or
    $a\, Q u$. Other leaves pass through the chain without projection. The entry of largest magnitude in each basis
    vector is positive: without a sign convention, moments from before and after a new basis would not match.

    Args:
        tx: The chain that runs at low rank, such as `scale_by_adam_hat()`; `ctx.grad` and `params` are projected too.
        rank: Number of basis vectors, >= 1, at most the smaller side unless they are random.
        every: Steps between updates of the basis, >= 1.
        projection: "svd" for the first singular vectors, "power" for $\mathrm{QR}(G^\top G Q)$ (initially from the
            identity), "random" for normal random numbers divided by $\sqrt{\mathrm{rank}}$, not orthogonal.
        side: "short" projects the smaller dimension (the last of a square), "long" the other one; "left", "right".
        scale: $a \ge 0$.
        carry: The treatment of inner slots when the basis changes: "keep", "reset" to their initial values, or
            "rotate": "linear" slots (see `rotated`) are multiplied by $Q^\top Q_{old}$, others are kept.
        seed: Seed of random bases.

    Returns:
        A transformation that preserves shapes and dtypes. State: `Q`, side x rank, for matrices, and the entries of
        `tx`, at low rank; with random bases also `seed` and `counter`.

    Raises:
        TypeError: If `tx` is not a transformation, works on whole trees or averages weights, or if, with "rotate", it
            has a slot without a declared kind.
        ValueError: If an argument is out of range, or if an option is unknown.

    Example:
        >>> tx = gradtx.low_rank(gradtx.scale_by_adam(), rank=1)
        >>> state = tx.init({"w": torch.zeros(512, 64)})
        >>> state["low_rank"]["scale_by_adam"]["exp_avg"]["w"].shape
        torch.Size([512, 1])

    Source: Zhao et al. 2024, GaLore, arXiv:2403.03507. Departures: any chain; the sign convention, since the
    signs of LAPACK are arbitrary; "power", "reset" and "rotate" are added.
    """

    def finish(view, update):
        return scale * view.outward(update), {}

    return Space(tx, Projection(finish, rank, every, projection, side, carry, seed))
