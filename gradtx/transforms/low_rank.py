"""Low rank: links that keep their state for a projection of the matrix."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import Count, Decay, Decays, NonNegative
from gradtx.base.exact import Scalar
from gradtx.base.messages import describe
from gradtx.rules import per_tensor
from gradtx.slots import linear, square
from gradtx.transforms._math import (
    at_least,
    check_choices,
    norm,
    running_mean,
    safe_sqrt,
)
from gradtx.transforms._matrix import newton_schulz, orthonormal
from gradtx.transforms._polynomials import Coefficients, polynomials
from gradtx.transforms._projection import CHOICES, LowRankView, Projection
from gradtx.transforms.adam import scale_by_adam_hat

__all__ = [
    "orthogonalize_slices",
    "scale_by_apollo_low_rank",
    "scale_by_dion",
    "scale_by_fira",
]


TINY = 1e-8  # added to norms in denominators, as in the authors' code of both methods


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments that the views of both methods read."""

    betas: Any
    limit: Any
    scale: Any
    by_channel: bool = True
    scales_first: bool = False


class LimitedView(LowRankView):
    """Project a matrix with Adam inside, and limit the growth of a full-rank direction."""

    def __init__(
        self,
        projection: Projection,
        update: Tensor,
        state: dict[str, Any],
        ctx: Any,
        options: Options,
    ):
        super().__init__(projection, update, state, ctx)
        self.options = options

    def correction(self) -> Tensor:
        """Return Adam's factor of both bias corrections, which the inner Adam's direction includes."""
        beta1, beta2 = self.options.betas
        return self.ctx.bias_correction(beta2).sqrt() / self.ctx.bias_correction(beta1)

    def factors(self, direction: Tensor) -> Tensor:
        """Return the norm of the low-rank direction over that of the low-rank gradient, per channel or overall."""
        low = self.inward(self.update)
        if not self.options.by_channel:
            return norm(direction) / (norm(low) + TINY)
        dim = 1 if self.right else 0
        top = safe_sqrt(direction.square().sum(dim=dim, keepdim=True))
        bottom = safe_sqrt(low.square().sum(dim=dim, keepdim=True))
        return top / (bottom + TINY)

    def limited(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Limit the growth of a direction to `limit` per step, except from 0, and return it with its norm."""
        length, last, limit = norm(x), self.state["last_norm"], self.options.limit
        growth = at_least(length / (last + TINY), limit) / limit
        growth = torch.where(last == 0, 1.0, growth)
        return x / growth, length / growth


class FiraView(LimitedView):
    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        scale, correction = self.options.scale, self.correction()
        rest = self.update - scale * self.outward(self.inward(self.update))
        residual, length = self.limited(rest * self.factors(update / correction))
        return scale * self.outward(update) + correction * residual, {
            "Q": self.basis,
            "last_norm": length,
        }


class ApolloView(LimitedView):
    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        correction, root = self.correction(), self.options.scale**0.5
        scales_first = self.options.scales_first
        scale_before, scale_after = (root, 1.0) if scales_first else (1.0, root)
        factors = self.factors(update / correction)
        limited, length = self.limited(scale_before * self.update * factors)
        return correction * scale_after * limited, {
            "Q": self.basis,
            "last_norm": length,
        }


def _last_norm(param: Tensor) -> dict[str, Tensor]:
    return {"last_norm": param.new_zeros(())}


@per_tensor(compiles=False)
def scale_by_fira(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: str = "short",
    projection: str = "svd",
    carry: str = "keep",
    limit: Annotated[Scalar, "[1, inf)"] = 1.01,
    seed: int = 0,
):
    r"""Combine Adam's low-rank direction with the rest of the gradient, scaled row by row as in Adam: Fira.

    With the basis $Q$ of `low_rank`, $\hat g = g Q$ and Adam's direction $d$ for it without the factor
    $c = \sqrt{1-\beta_2^t} / (1-\beta_1^t)$: $r = (g - a\, \hat g Q^\top)\, \phi$ with
    $\phi = \lVert d \rVert / (\lVert \hat g \rVert + 10^{-8})$ row by row (columns with a basis on the left),
    $r \leftarrow r / (\max(\lVert r \rVert / (n + 10^{-8}), l) / l)$ where the norm $n$ of the previous $r$ is
    not 0; direction $c\, (a\, d Q^\top + r)$. Leaves that are not matrices use `scale_by_adam_hat`.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Adam's eps, >= 0.
        rank: Number of columns of $Q$, >= 1, at most the smaller side.
        update_proj_gap: Steps between two refreshes of the basis, >= 1.
        scale: $a \ge 0$.
        side: As in `low_rank`.
        projection: As in `low_rank`.
        carry: As in `low_rank`.
        limit: $l \ge 1$: the largest growth factor of the norm of $r$ in one step.
        seed: Seed of random bases.

    Returns:
        A transformation that keeps shapes and dtypes. State: `Q`, `exp_avg`, `exp_avg_sq` at low rank, `last_norm`
        ($n$, 0-d).

    Raises:
        ValueError: If an argument is out of range, or if an option is unknown.

    Example:
        >>> tx = gradtx.scale_by_fira(rank=1, scale=1.0)
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])}
        >>> # the second row is orthogonal to the first singular vector
        >>> tx.update(grads, tx.init(grads))[0]["w"]
        tensor([[1.0000, 0.0000],
                [0.0000, 0.0000],
                [0.0000, 0.0000]])

    Source: Chen et al. 2024, arXiv:2410.01623. Departures: the sign rule of `low_rank`. As in the authors' code, the
    projection inside the residual is scaled as well. The growth from 0 is not limited, so that a leaf moves after a
    gradient of zeros.
    """
    check_choices(
        "scale_by_fira", CHOICES, projection=projection, side=side, carry=carry
    )

    space = Projection(rank, update_proj_gap, projection, side, carry, seed)
    view = functools.partial(FiraView, options=Options(betas, limit, scale))
    return space.space(scale_by_adam_hat(betas, eps), view, _last_norm, hidden=True)


@per_tensor(compiles=False)
def scale_by_apollo_low_rank(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 1.0,
    side: str = "short",
    projection: str = "random",
    scale_type: str = "channel",
    scale_front: bool = False,
    limit: Annotated[Scalar, "[1, inf)"] = 1.01,
    seed: int = 0,
):
    r"""Scale each row of the gradient as a low-rank Adam would: APOLLO.

    With the basis $Q$ of `low_rank`, $\hat g = g Q$ and Adam's direction $d$ for it without the factor
    $c = \sqrt{1-\beta_2^t} / (1-\beta_1^t)$: $u = g\, \phi$ with
    $\phi = \lVert d \rVert / (\lVert \hat g \rVert + 10^{-8})$, row by row (columns with a basis on the left) or over
    the whole leaf, $u \leftarrow u / (\max(\lVert u \rVert / (n + 10^{-8}), l) / l)$ where the norm $n$ of
    the previous $u$ is not 0; direction $c \sqrt a\, u$. Leaves that are not matrices use `scale_by_adam_hat`.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Adam's eps, >= 0.
        rank: Number of columns of $Q$, >= 1.
        update_proj_gap: Steps between two refreshes of the basis, >= 1.
        scale: $a \ge 0$.
        side: As in `low_rank`.
        projection: As in `low_rank`.
        scale_type: "channel" or "tensor".
        scale_front: Whether to multiply by $\sqrt a$ before limiting the growth.
        limit: $l \ge 1$: the largest growth factor of the norm of $u$ in one step.
        seed: Seed of random bases.

    Returns:
        A transformation that keeps shapes and dtypes. State: `Q`, `exp_avg`, `exp_avg_sq` at low rank, `last_norm`
        ($n$, 0-d); `seed` and `counter`.

    Raises:
        ValueError: If an argument is out of range, or if an option is unknown.

    Example:
        >>> tx = gradtx.scale_by_apollo_low_rank(rank=1, projection="svd")
        >>> grads = {"w": torch.tensor([[3.0, 4.0], [6.0, 8.0]])}
        >>> # Adam at rank 1 scales both rows to the same norm
        >>> tx.update(grads, tx.init(grads))[0]["w"].norm(dim=1)
        tensor([1.0000, 1.0000])

    Source: Zhu et al. 2024, arXiv:2412.05270. Departures: random bases come from the library's random stream; the
    channels of a projected leaf follow the side of its basis; growth from 0 is not limited, so that a leaf moves after
    a gradient of zeros.
    """
    check_choices("scale_by_apollo_low_rank", CHOICES, projection=projection, side=side)
    if scale_type not in ("channel", "tensor"):
        raise ValueError(
            f"scale_by_apollo_low_rank: scale_type must be 'channel' or 'tensor', got {scale_type!r}"
        )

    space = Projection(rank, update_proj_gap, projection, side, "keep", seed)
    options = Options(betas, limit, scale, scale_type == "channel", scale_front)
    view = functools.partial(ApolloView, options=options)
    return space.space(scale_by_adam_hat(betas, eps), view, _last_norm, hidden=True)


@per_tensor(whole=True, dims=(2, 2), random=True, compiles="lists")
def scale_by_dion(
    mu: Decay = 0.95,
    rank: float | int = 1.0,
    eps: NonNegative = 1e-8,
    init: str = "random",
    seed: int = 0,
):
    r"""Replace the momentum of a matrix by a low-rank orthogonal matrix, and keep the remainder: Dion.

    $M \leftarrow M + g$, $P = \mathrm{QR}(M Q).Q$, $R = M^\top P$, $M \leftarrow M - (1-\mu) P R^\top$,
    $Q \leftarrow R$ with each column divided by its norm $+ \epsilon$; the result is $P Q^\top$.

    Args:
        mu: $\mu$ in [0, 1): the fraction of the applied direction that remains in the momentum.
        rank: Number of columns of $Q$: an int, or a fraction of the smaller side, rounded up.
        eps: $\epsilon \ge 0$.
        init: Initialize $Q$ from a normal distribution, "random", or from the first columns of the identity, "eye".
        seed: Seed of the random initialization.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum`, shaped as the parameter, and `Q`, columns x
        rank; `seed` and `counter`.

    Raises:
        ValueError: If an argument is out of range, if `init` is unknown, or if a leaf is not a matrix.

    Example:
        >>> tx = gradtx.scale_by_dion(rank=1, init="eye")
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [4.0, 0.0]])}
        >>> tx.update(grads, tx.init(grads))[0]["w"].norm(dim=0)
        tensor([1., 0.])

    Source: Ahn et al. 2025, arXiv:2504.05295. Departures: none from dion_simple, which does not transpose wide
    matrices; where a column of $R$ is 0, that of $Q$ is unchanged and the result is 0.
    """
    _check_number("scale_by_dion", "rank", rank)
    if not (rank > 0 and (isinstance(rank, int) or rank <= 1)):
        raise ValueError(
            f"scale_by_dion: rank must be a positive int or a fraction in (0, 1], got {rank!r}"
        )
    if init not in ("random", "eye"):
        raise ValueError(f"scale_by_dion: init must be 'random' or 'eye', got {init!r}")

    def first(param, rng):
        rows, columns = param.shape
        count = rank if isinstance(rank, int) else math.ceil(rank * min(rows, columns))
        basis = param.new_zeros((columns, min(max(1, count), rows, columns)))
        basis = (
            rng.normal(basis)
            if init == "random"
            else torch.eye(*basis.shape, dtype=basis.dtype).to(basis)
        )
        return {"momentum": torch.zeros_like(param), "Q": basis}

    def update(update, state, param, ctx):
        momentum = state["momentum"] + update
        left = orthonormal(momentum @ state["Q"])
        right = momentum.mT @ left
        lengths = safe_sqrt(right.square().sum(dim=0, keepdim=True))
        # A zero column stays 0, even with eps 0.
        basis = right / (lengths + eps + (lengths == 0))
        new_basis = torch.where(lengths == 0, state["Q"], basis)
        return left @ basis.mT, {
            "momentum": momentum - (1 - mu) * (left @ right.mT),
            "Q": new_basis,
        }

    return first, update


@per_tensor(whole=True, dims=(2, 2), compiles="lists")
def orthogonalize_slices(
    fraction: float | int = 0.25,
    ef_decay: Decay = 0.95,
    select: str = "short",
    beta2: Decay | None = None,
    neuron_eps: NonNegative = 1e-8,
    coefs: Coefficients = "polar_express",
    steps: Annotated[int, "[0, 100)"] | None = None,
    dtype: torch.dtype | None = None,
):
    r"""Orthogonalize only the largest rows or columns of the momentum and decay them: Dion2's direction.

    $M \leftarrow M + g$. Of the $n$ slices, the $\lceil f n \rceil$ with the largest L1 norm (the first among equal
    ones) form a matrix. The result is `orthogonalize` of it in their positions and 0 elsewhere; these slices of $M$ are
    multiplied by the decay. With `beta2`, `normalize_neurons` follows, whose moments change for chosen rows (Dion3).

    Args:
        fraction: $f$ in (0, 1].
        ef_decay: Factor applied to the chosen slices of the momentum, in [0, 1).
        select: "rows", "columns", or "short" for whichever are fewer (rows for a square matrix).
        beta2: Decay of the rows' mean squares, in [0, 1); None disables normalization.
        neuron_eps: eps of the normalization, >= 0.
        coefs: As in `orthogonalize`.
        steps: Number of iterations, in [0, 100); None for the number designed for the coefficients.
        dtype: Dtype of the iteration; None for the leaf's own dtype.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum`, shaped as the parameter; with `beta2`
        `exp_avg_sq`, rows x 1.

    Raises:
        ValueError: If an argument is out of range, if `select` is unknown, or if a leaf is not a matrix.

    Example:
        >>> tx = gradtx.orthogonalize_slices(fraction=0.5, coefs=(2.0, -1.5, 0.5), steps=12)
        >>> grads = {"w": torch.tensor([[1.0, 0.0], [0.0, 5.0]])}
        >>> tx.update(grads, tx.init(grads))[0]["w"]
        tensor([[0., 0.],
                [0., 1.]])

    Source: Ahn et al. 2025, arXiv:2512.16928; with `beta2`: microsoft/dion. Departures: none on one device.
    """
    _check_number("orthogonalize_slices", "fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"orthogonalize_slices: fraction must be in (0, 1], got {fraction!r}"
        )
    if select not in ("rows", "columns", "short"):
        raise ValueError(
            f"orthogonalize_slices: select must be 'rows', 'columns' or 'short', got {select!r}"
        )
    iteration = polynomials("orthogonalize_slices", coefs, steps, dtype)

    def rows(param):
        return param.new_zeros((param.shape[0], 1))

    def update(update, state, param, ctx):
        momentum = state["momentum"] + update
        dim = _sliced_dim(update, select)
        chosen = _largest_slices(momentum, dim, fraction)
        part = momentum.index_select(dim, chosen)
        direction = newton_schulz(part, iteration, dtype=dtype)
        new = {}
        if beta2 is not None:
            direction, new["exp_avg_sq"] = _normalized(
                direction, state["exp_avg_sq"], chosen, dim, beta2
            )
        new["momentum"] = momentum.index_copy(dim, chosen, ef_decay * part)
        return torch.zeros_like(update).index_copy(dim, chosen, direction), new

    def _normalized(direction, squares, chosen, dim, beta2):
        """Equalize the rows' root mean square over time, and return the moments of all rows as well."""
        old = squares.index_select(0, chosen) if dim == 0 else squares
        means = direction.square().mean(dim=1, keepdim=True)
        square = running_mean(old, means, beta2)
        scaled = direction / (safe_sqrt(square) + neuron_eps)
        direction = scaled * (norm(direction) / at_least(norm(scaled), neuron_eps))
        return direction, squares.index_copy(0, chosen, square) if dim == 0 else square

    slots = {
        "momentum": linear(),
        "exp_avg_sq": square(rows) if beta2 is not None else None,
    }
    return slots, update


def _sliced_dim(x: Tensor, select: str) -> int:
    if select == "short":
        return 0 if x.shape[0] <= x.shape[1] else 1
    return 0 if select == "rows" else 1


def _check_number(owner: str, name: str, value: Any) -> None:
    # In Python a bool is an int, but `rank=True` is certainly a mistake.
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(
            f"{owner}: {name} must be a plain number, got {describe(value)}"
        )


def _largest_slices(x: Tensor, dim: int, fraction: float) -> Tensor:
    """Return the indices of the slices with the largest L1 norm, the first among equal ones."""
    count = math.ceil(fraction * x.shape[dim])
    sizes = x.detach().abs().sum(dim=1 - dim)
    return sizes.sort(descending=True, stable=True).indices[:count]
