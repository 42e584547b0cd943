"""Low-rank Adam combined with the full gradient: Fira's residual, APOLLO's scaled gradient."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    at_least,
    check_choices,
    norm,
    safe_sqrt,
)
from gradtx.transforms._projection import CHOICES, LowRankView, Projection
from gradtx.transforms.adam_hat import scale_by_adam_hat

__all__ = ["scale_by_apollo_low_rank", "scale_by_fira"]

TINY = 1e-8  # added to norms in denominators, as in the authors' code of both methods
RANGES = {
    "rank": "[1, inf)",
    "update_proj_gap": "[1, inf)",
    "scale": "[0, inf)",
    "limit": "[1, inf)",
}
EXAMPLE = {"rank": 2, "update_proj_gap": 2, "eps": 0.1}


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


@per_tensor(compiles=False, ranges=RANGES, example=EXAMPLE)
def scale_by_fira(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-6,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 0.25,
    side: str = "short",
    projection: str = "svd",
    carry: str = "keep",
    limit: Scalar = 1.01,
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


@per_tensor(compiles=False, ranges=RANGES, example=EXAMPLE)
def scale_by_apollo_low_rank(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-6,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 1.0,
    side: str = "short",
    projection: str = "random",
    scale_type: str = "channel",
    scale_front: bool = False,
    limit: Scalar = 1.01,
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
