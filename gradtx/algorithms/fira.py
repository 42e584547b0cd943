"""Fira: GaLore plus the rest of the gradient, scaled row by row as Adam scales the projection."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.soap import decayed
from gradtx.arguments import AtLeastOne, Count, NonNegative
from gradtx.combinators._spaces import Space
from gradtx.combinators.coordinates import (
    Bases,
    Carry,
    LeafProjection,
    Projection,
    Side,
)
from gradtx.maths.entries import at_least, hat_rate, norm, norms
from gradtx.rules import alias, per_tensor

__all__ = ["fira", "scale_by_fira"]


TINY = 1e-8  # added to norms in denominators, as in the authors' code of both methods


def norm_ratios(
    leaf: LeafProjection, direction: Tensor, by_channel: bool = True
) -> Tensor:
    """Return the norm of a low-rank direction over that of the low-rank gradient, per channel or overall."""
    channels = 1 if leaf.right else 0
    dim = channels if by_channel else (0, 1)
    return norms(direction, dim) / (norms(leaf.inside, dim) + TINY)


def limit_growth(
    leaf: LeafProjection, x: Tensor, limit
) -> tuple[Tensor, dict[str, Any]]:
    """Limit the growth of a direction to `limit` per step, except from 0, and return it with its norm."""
    length, last = norm(x), leaf.state["last_norm"]
    growth = at_least(length / (last + TINY), limit) / limit
    growth = torch.where(last == 0, 1.0, growth)
    return x / growth, {"last_norm": length / growth}


@per_tensor(amplifies=True, length="sets")
def scale_by_fira(
    betas=(0.9, 0.999),
    eps=1e-6,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: Side = "short",
    projection: Bases = "svd",
    carry: Carry = "keep",
    limit: AtLeastOne = 1.01,
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
    adam = scale_by_adam_hat(betas, eps)

    def finish(leaf, u):
        correction = hat_rate(1.0, leaf.ctx, betas)  # of the inner Adam
        rest = leaf.update - scale * leaf.outward(leaf.inside)
        rest, new_state = limit_growth(
            leaf, rest * norm_ratios(leaf, u / correction), limit
        )
        return scale * leaf.outward(u) + correction * rest, new_state

    options = rank, update_proj_gap, projection, side, carry, seed
    return Space(adam, Projection(finish, *options, ("last_norm",)))


@alias
def fira(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_fira],
):
    r"""Fira: GaLore plus the rest of the gradient, scaled row by row as Adam scales the projection.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with the direction $d$ of `scale_by_fira`.

    When to use: instead of `galore`, with the same memory: updates have full rank.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Adam's eps, >= 0.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        rank: Number of columns of $Q$, >= 1, at most the smaller side.
        update_proj_gap: Number of steps between updates of the basis, >= 1.
        scale: Factor of the projected part, >= 0.
        side: "short", "long", "left" or "right"; see `low_rank`.
        projection: "svd", "power" or "random"; see `low_rank`.
        carry: "keep", "reset" or "rotate"; see `low_rank`.
        limit: Largest factor by which the norm of the rest may grow in one step, >= 1.
        seed: Seed of random bases.

    Returns:
        A transformation whose updates are added to the parameters. State: `Q`, `last_norm`, and `exp_avg` and
        `exp_avg_sq` at low rank; for other leaves, `exp_avg` and `exp_avg_sq` in full size.

    Example:
        >>> state = gradtx.fira(rank=2).init({"w": torch.zeros(8, 3)})["scale_by_fira"]
        >>> state["Q"]["w"].shape, state["scale_by_adam_hat"]["exp_avg"]["w"].shape
        (torch.Size([3, 2]), torch.Size([8, 2]))

    Source: Chen et al. 2024, arXiv:2410.01623. Departures: see `scale_by_fira`.
    """
    direction = scale_by_fira(betas, eps, **options)
    return decayed(direction, lr, weight_decay)
