"""Projections of matrices to a low rank, for `low_rank`, Fira and APOLLO."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from gradtx._spaces import Space, View
from gradtx.core import GradientTransformation
from gradtx.transforms._matrix import left_basis, orthonormal

# Option -> what it may be.
CHOICES = {
    "projection": ("svd", "power", "random"),
    "side": ("short", "long", "left", "right"),
    "carry": ("keep", "reset", "rotate"),
}


def check_choices(owner: str, **chosen: str) -> None:
    for option, value in chosen.items():
        if value not in CHOICES[option]:
            choices = ", ".join(map(repr, CHOICES[option]))
            raise ValueError(f"{owner}: {option} must be one of {choices}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Projection:
    """The options of `low_rank`, see there."""

    rank: int
    every: int
    kind: str
    side: str
    carry: str
    seed: int

    def space(self, inner: GradientTransformation, view: Any, slots: Any = None, hidden: bool = False) -> Space:
        """The body of a combinator; `view` makes the view of a matrix, `slots` its further slots."""

        def init(param: Tensor, *random: Any) -> dict[str, Any]:  # which only later bases are drawn from
            if param.ndim != 2:
                return {}
            basis = param.new_zeros((self.dimension(param), self.width(param)))
            return {"Q": basis, **(slots(param) if slots else {})}

        def viewed(update: Tensor, state: dict[str, Any], param: Any, ctx: Any) -> View:
            return view(self, update, state, ctx) if update.ndim == 2 else WholeView()

        return Space(
            inner,
            init=init,
            view=viewed,
            inside=self.inside,
            kinded=self.carry == "rotate",
            seed=self.seed if self.kind == "random" else None,
            hidden=hidden,
        )

    def is_right(self, x: Tensor) -> bool:
        """Whether the basis multiplies a matrix from the right."""
        rows, columns = x.shape
        if self.side in ("left", "right"):
            return self.side == "right"
        return (rows >= columns) == (self.side == "short")

    def dimension(self, x: Tensor) -> int:
        return x.shape[1] if self.is_right(x) else x.shape[0]

    def width(self, x: Tensor) -> int:
        return self.rank if self.kind == "random" else min(self.rank, *x.shape)

    def inside(self, x: Tensor) -> Tensor:
        """A matrix as the inner transformation sees it before the first step."""
        if x.ndim != 2:
            return x
        rows, columns = x.shape
        shape = (rows, self.width(x)) if self.is_right(x) else (self.width(x), columns)
        return x.new_zeros(shape)

    def is_due(self, ctx: Any) -> Any:
        return (ctx.step - 1) % self.every == 0

    def basis(self, x: Tensor, old: Tensor, ctx: Any) -> Tensor:
        """The basis of this step."""
        return ctx.every(self.every, 1, lambda: self._computed(x, old, ctx), lambda: old)

    def _computed(self, x: Tensor, old: Tensor, ctx: Any) -> Tensor:
        if self.kind == "random":
            return ctx.rng.normal(old) / self.rank**0.5
        rows = x.mT if self.is_right(x) else x
        if self.kind == "svd":
            return signed(left_basis(rows)[:, : old.shape[1]])
        start = torch.eye(*old.shape, dtype=old.dtype, device=old.device)
        old = torch.where(ctx.step == 1, start, old)
        return signed(orthonormal(rows @ (rows.mT @ old)))


def signed(basis: Tensor) -> Tensor:
    """Columns whose entry of largest size is positive: moments stay when the basis is renewed."""
    if not basis.numel():
        return basis
    largest = basis.detach().abs().argmax(dim=0, keepdim=True)
    signs = basis.detach().take_along_dim(largest, dim=0).sign()
    return basis * torch.where(signs == 0, 1.0, signs)


class WholeView(View):
    """A leaf that is not projected."""

    def inward(self, x: Tensor) -> Tensor:
        return x

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return update, {}


class LowRankView(View):
    """A matrix in one call, projected to a low rank."""

    def __init__(self, projection: Projection, update: Tensor, state: dict[str, Any], ctx: Any):
        self.ctx = ctx
        self.right = projection.is_right(update)
        self.update = update
        self.state = state
        self.basis = projection.basis(update, state["Q"], ctx)
        self._carry = projection.carry
        self._renews = projection.is_due(ctx) & (ctx.step > 1)
        self._kept = self.basis is state["Q"]  # the host knows that no basis is due

    def inward(self, x: Tensor) -> Tensor:
        return x @ self.basis if self.right else self.basis.mT @ x

    def outward(self, x: Tensor) -> Tensor:
        return x @ self.basis.mT if self.right else self.basis @ x

    def read(self, kind: str, value: Tensor) -> Tensor:
        if self._kept or self._carry == "keep":
            return value
        if self._carry == "reset":
            return torch.where(self._renews, torch.zeros_like(value), value)
        if kind != "linear":
            return value
        turn = self.basis.mT @ self.state["Q"]
        return torch.where(self._renews, value @ turn.mT if self.right else turn @ value, value)

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.outward(update), {"Q": self.basis}


class ScaledView(LowRankView):
    """One whose updates are multiplied by a number on their way back."""

    def __init__(self, projection: Projection, update: Tensor, state: dict[str, Any], ctx: Any, scale: Any):
        super().__init__(projection, update, state, ctx)
        self._scale = scale

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        update, state = super().leave(update)
        return self._scale * update, state
