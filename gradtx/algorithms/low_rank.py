"""Low rank: GaLore, Fira, APOLLO, Dion; Conda, Adam along the singular vectors of the momentum."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.momentum import trace_ema
from gradtx.algorithms.muon import Adjustment, by_matrix, equalized, muon_like
from gradtx.algorithms.scaling import scale as scaled  # `conda` has an argument `scale`
from gradtx.algorithms.soap import decayed, scale_by_gradient_rms
from gradtx.arguments import AtLeastOne, Count, Decay, NonNegative, Static
from gradtx.combinators._spaces import Space
from gradtx.combinators.coordinates import (
    Bases,
    Carry,
    LeafProjection,
    Projection,
    Side,
    low_rank,
    rotated,
)
from gradtx.maths.entries import (
    at_least,
    hat_rate,
    norm,
    norms,
)
from gradtx.maths.matrices import orthonormal
from gradtx.maths.polynomials import Coefficients, Steps, orthogonalizer
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square
from gradtx.transform import GradientTransformation, chain

__all__ = [
    "apollo_low_rank",
    "conda",
    "dion",
    "dion2",
    "fira",
    "galore",
    "orthogonalize_slices",
    "scale_by_apollo_low_rank",
    "scale_by_dion",
    "scale_by_fira",
]


TINY = 1e-8  # added to norms in denominators, as in the authors' code of both methods


def _ratios(leaf: LeafProjection, direction: Tensor, by_channel: bool = True) -> Tensor:
    """Return the norm of a low-rank direction over that of the low-rank gradient, per channel or overall."""
    channels = 1 if leaf.right else 0
    dim = channels if by_channel else (0, 1)
    return norms(direction, dim) / (norms(leaf.inside, dim) + TINY)


def _limited(leaf: LeafProjection, x: Tensor, limit) -> tuple[Tensor, dict[str, Any]]:
    """Limit the growth of a direction to `limit` per step, except from 0, and return it with its norm."""
    length, last = norm(x), leaf.state["last_norm"]
    growth = at_least(length / (last + TINY), limit) / limit
    growth = torch.where(last == 0, 1.0, growth)
    return x / growth, {"last_norm": length / growth}


@per_tensor
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
    adam = scale_by_adam_hat(betas, eps)

    def finish(leaf, u):
        correction = hat_rate(1.0, leaf.ctx, betas)  # of the inner Adam
        rest = leaf.update - scale * leaf.outward(leaf.inside)
        rest, new = _limited(leaf, rest * _ratios(leaf, u / correction), limit)
        return scale * leaf.outward(u) + correction * rest, new

    options = rank, update_proj_gap, projection, side, carry, seed
    return Space(adam, Projection(finish, *options, ("last_norm",)))


@per_tensor
def scale_by_apollo_low_rank(
    betas=(0.9, 0.999),
    eps=1e-6,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 1.0,
    side: Side = "short",
    projection: Bases = "random",
    scale_type: Literal["channel", "tensor"] = "channel",
    scale_front=False,
    limit: AtLeastOne = 1.01,
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
    adam = scale_by_adam_hat(betas, eps)
    by_channel = scale_type == "channel"
    before, after = (scale**0.5, 1.0) if scale_front else (1.0, scale**0.5)

    def finish(leaf, u):
        correction = hat_rate(1.0, leaf.ctx, betas)  # of the inner Adam
        ratios = _ratios(leaf, u / correction, by_channel)
        u, new = _limited(leaf, before * leaf.update * ratios, limit)
        return correction * after * u, new

    options = rank, update_proj_gap, projection, side, "keep", seed
    return Space(adam, Projection(finish, *options, ("last_norm",)))


@per_tensor(whole=True, dims=(2, 2), random=True, compiles="lists")
def scale_by_dion(
    mu: Decay = 0.95,
    rank: Annotated[float | int, "(0, inf)"] = 1.0,
    eps=1e-8,
    init: Literal["random", "eye"] = "random",
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
    if isinstance(rank, float) and rank > 1:
        raise ValueError(
            f"scale_by_dion: rank must be a positive int or a fraction in (0, 1], got {rank!r}"
        )

    def first(param, rng):
        rows, columns = param.shape
        count = rank if isinstance(rank, int) else math.ceil(rank * min(rows, columns))
        basis = param.new_zeros((columns, min(max(1, count), rows, columns)))
        eye = torch.eye(*basis.shape).to(basis)
        basis = rng.normal(basis) if init == "random" else eye
        return {"momentum": torch.zeros_like(param), "Q": basis}

    def update(g, state, p, ctx):
        momentum, old = state["momentum"] + g, state["Q"]
        left = orthonormal(momentum @ old)
        right = momentum.mT @ left
        lengths = norms(right, 0)
        # A zero column stays 0, even with eps 0.
        basis = right / (lengths + eps + (lengths == 0))
        return left @ basis.mT, {
            "momentum": momentum - (1 - mu) * (left @ right.mT),
            "Q": torch.where(lengths == 0, old, basis),
        }

    return first, update


@per_tensor(whole=True, dims=(2, 2), compiles="lists")
def orthogonalize_slices(
    fraction: Annotated[float | int, "(0, 1]"] = 0.25,
    ef_decay: Decay = 0.95,
    select: Literal["rows", "columns", "short"] = "short",
    beta2: Decay | None = None,
    neuron_eps: NonNegative = 1e-8,
    coefs: Coefficients = "polar_express",
    steps: Steps | None = None,
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
    iterate = orthogonalizer("orthogonalize_slices", coefs, steps, dtype)

    def rows(param):
        return param.new_zeros((param.shape[0], 1))

    def update(g, state, p, ctx):
        momentum = state["momentum"] + g
        is_wide = g.shape[0] <= g.shape[1]
        dim = 0 if select == "rows" or (select == "short" and is_wide) else 1
        chosen = _largest_slices(momentum, dim, fraction)
        part = momentum.index_select(dim, chosen)
        u, new = iterate(part), {}
        if beta2 is not None:
            v = state["exp_avg_sq"]
            v_of_part = v.index_select(0, chosen) if dim == 0 else v
            u, v_of_part = equalized(u, v_of_part, beta2, neuron_eps)
            v = v.index_copy(0, chosen, v_of_part) if dim == 0 else v_of_part
            new["exp_avg_sq"] = v
        new["momentum"] = momentum.index_copy(dim, chosen, ef_decay * part)
        return torch.zeros_like(g).index_copy(dim, chosen, u), new

    slots = {
        "momentum": linear(),
        "exp_avg_sq": square(rows) if beta2 is not None else None,
    }
    return slots, update


def _largest_slices(x: Tensor, dim: int, fraction: float) -> Tensor:
    """Return the indices of the slices with the largest L1 norm, the first among equal ones."""
    count = math.ceil(fraction * x.shape[dim])
    sizes = x.detach().abs().sum(dim=1 - dim)
    return sizes.sort(descending=True, stable=True).indices[:count]


@alias(class_name="GaLore")
def galore(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: Side = "short",
    projection: Bases = "svd",
    carry: Carry = "keep",
):
    r"""GaLore: Adam on gradients projected to a low rank.

    $p \leftarrow (p - \eta\, a\, d\, Q^\top)(1 - \eta \lambda)$ with Adam's direction $d$ of $g Q$; see `low_rank`.

    When to use: training with the memory of a low rank; Adam's state of a matrix shrinks to that rank.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Adam's eps, >= 0.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        rank: Number of columns of $Q$, >= 1, at most the smaller side.
        update_proj_gap: Number of steps between updates of the basis, >= 1.
        scale: $a \ge 0$.
        side: "short", "long", "left" or "right"; see `low_rank`.
        projection: "svd", "power" or "random"; see `low_rank`.
        carry: "keep", "reset" or "rotate"; see `low_rank`.

    Returns:
        A transformation whose updates are added to the parameters. State: `Q`, and `exp_avg` and `exp_avg_sq` at low
        rank; for other leaves, `exp_avg` and `exp_avg_sq` in full size.

    Raises:
        ValueError: If a hyperparameter is out of range, if an option is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.galore(lr=1.0, rank=1)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[-0.2500,  0.0000],
                [ 0.0000,  0.0000]])

    Source: Zhao et al. 2024, arXiv:2403.03507. Departures: the sign convention of `low_rank`.
    """
    direction = low_rank(
        scale_by_adam_hat(betas, eps),
        rank,
        update_proj_gap,
        projection=projection,
        side=side,
        scale=scale,
        carry=carry,
    )
    return decayed(direction, lr, weight_decay)


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

    Raises:
        ValueError: If a hyperparameter is out of range, if an option is unknown, or if `params` is missing.

    Example:
        >>> state = gradtx.fira(rank=2).init({"w": torch.zeros(8, 3)})["scale_by_fira"]
        >>> state["Q"]["w"].shape, state["scale_by_adam_hat"]["exp_avg"]["w"].shape
        (torch.Size([3, 2]), torch.Size([8, 2]))

    Source: Chen et al. 2024, arXiv:2410.01623. Departures: see `scale_by_fira`.
    """
    direction = scale_by_fira(betas, eps, **options)
    return decayed(direction, lr, weight_decay)


@alias(class_name="ApolloLowRank")
def apollo_low_rank(
    lr=1e-2,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_apollo_low_rank],
):
    r"""APOLLO: the gradient itself, with one rate per row computed by a projected Adam.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with the direction $d$ of `scale_by_apollo_low_rank`.

    When to use: training with little more memory than SGD. APOLLO-Mini is `rank=1`, `scale=128.0`,
    `scale_type="tensor"`.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Adam's eps, >= 0.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        rank: Number of columns of $Q$, >= 1.
        update_proj_gap: Number of steps between updates of the basis, >= 1.
        scale: The direction is multiplied by the square root of this, >= 0.
        side: "short", "long", "left" or "right"; see `low_rank`.
        projection: "svd", "power" or "random"; see `low_rank`.
        scale_type: "channel" for one rate per row (per column if the basis is on the left), "tensor" for a single rate.
        scale_front: Whether to multiply by the square root of `scale` before the growth is limited.
        limit: Largest factor by which the norm of the direction may grow in one step, >= 1.
        seed: Seed of random bases.

    Returns:
        A transformation whose updates are added to the parameters. State: `Q`, `last_norm`, and `exp_avg` and
        `exp_avg_sq` at low rank; for other leaves, `exp_avg` and `exp_avg_sq` in full size; `seed` and `counter`.

    Raises:
        ValueError: If a hyperparameter is out of range, if an option is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.apollo_low_rank(lr=1.0, rank=1, scale_type="tensor")
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.0], [0.0, 3.0]])}, tx.init(params), params
        ... )
        >>> # the direction of the gradient
        >>> updates["w"][0, 0] == updates["w"][1, 1], updates["w"][0, 1]
        (tensor(True), tensor(0.))

    Source: Zhu et al. 2024, arXiv:2412.05270. Departures: random bases come from gradtx's own random stream. `apollo`
    is a different method, ApolloDQN.
    """
    direction = scale_by_apollo_low_rank(betas, eps, **options)
    return decayed(direction, lr, weight_decay)


@alias
def dion(
    lr=0.01,
    mu: Decay = 0.95,
    rank: Annotated[float | int, "(0, inf)"] = 1.0,
    weight_decay=0.01,
    eps=1e-8,
    adjust_lr_fn: Adjustment | None = "spectral",
    *,
    fallback: GradientTransformation | None = None,
    **options: Annotated[Any, scale_by_dion],
):
    r"""Dion: orthogonal directions of low rank from one step of power iteration, with error feedback.

    $p \leftarrow p (1 - \eta \lambda) - \eta\, r\, P Q^\top$ with `scale_by_dion` and $r$ of `scale_by_shape`.

    When to use: like `muon`, if its iteration on whole matrices is too expensive: for large or sharded matrices.

    Args:
        lr: $\eta$ in [0, inf).
        mu: $\mu$ in [0, 1).
        rank: Rank as an int, or as a fraction of the smaller side, rounded up.
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$ but not by $r$.
        eps: Added to the norms of columns, >= 0.
        adjust_lr_fn: Name of the factor $r$: "spectral" is $\sqrt{\mathrm{rows}/\mathrm{columns}}$; for others, see
            `scale_by_shape`.
        init: Initial value of $Q$, "random" or "eye".
        seed: Seed of the random initial value.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum`, `Q`; with a fallback, these and
        the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if a leaf is not a matrix and there
            is no `fallback`.

    Example:
        >>> tx = gradtx.dion(rank=0.25)
        >>> tx.init({"w": torch.zeros(16, 8)})["scale_by_dion"]["Q"]["w"].shape
        torch.Size([8, 2])

    Source: Ahn et al. 2025, arXiv:2504.05295. Departures: see `scale_by_dion`.
    """
    return muon_like(
        "dion",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        scale_by_dion(mu, rank, eps, **options),
    )


@alias
def dion2(
    lr=0.01,
    fraction: Annotated[float | int, "(0, 1]"] = 0.25,
    ef_decay: Decay = 0.95,
    weight_decay=0.01,
    select: Literal["rows", "columns", "short"] = "short",
    beta2: Decay | None = None,
    neuron_eps: NonNegative = 1e-8,
    ns_coefficients: Coefficients = "polar_express",
    ns_steps: int | None = None,
    adjust_lr_fn: Adjustment | None = "spectral",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""Dion2: Muon on the largest rows or columns of the momentum, the only ones to decay.

    $p \leftarrow p (1 - \eta \lambda) - \eta\, r\, u$ with $u$ of `orthogonalize_slices` and $r$ of `scale_by_shape`
    for the whole leaf. With `beta2`, this is Dion3.

    When to use: like `muon`, at a fraction of the cost of its iteration, and of its communication if slices are shards.

    Args:
        lr: $\eta$ in [0, inf).
        fraction: Fraction of slices, in (0, 1].
        ef_decay: Decay factor of the chosen slices of the momentum, in [0, 1).
        weight_decay: $\lambda \ge 0$, decoupled, for all entries; multiplied by $\eta$ but not by $r$.
        select: Slices: "rows", "columns", or "short" for whichever there are fewer of.
        beta2: Decay rate of the rows' mean squares, in [0, 1); None disables normalization.
        neuron_eps: eps of the normalization, >= 0.
        ns_coefficients: Coefficients of the iteration, as `coefs` of `orthogonalize`.
        ns_steps: Number of iterations; None for the number that belongs to the coefficients.
        adjust_lr_fn: Name of the factor $r$: "spectral" is $\sqrt{\mathrm{rows}/\mathrm{columns}}$; for others, see
            `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum`; with `beta2`, also `exp_avg_sq`
        (one entry per row); with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        TypeError: If `fallback` is not a transformation.
        ValueError: If a hyperparameter is out of range, if `params` is missing, or if a leaf is not a matrix and there
            is no `fallback`.

    Example:
        >>> tx = gradtx.dion2(lr=1.0, weight_decay=0.0, ns_coefficients="newton_schulz")
        >>> params = {"w": torch.zeros(4, 4)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.diag(torch.arange(4.0))}, tx.init(params), params
        ... )
        >>> updates["w"].diagonal()  # the largest of four rows
        tensor([-0., -0., -0., -1.])

    Source: Ahn et al. 2025, arXiv:2512.16928. Departures: none from the version for one device.
    """
    return muon_like(
        "dion2",
        adjust_lr_fn,
        lr,
        weight_decay,
        fallback,
        orthogonalize_slices(
            fraction,
            ef_decay,
            select,
            beta2,
            neuron_eps,
            ns_coefficients,
            ns_steps,
            ns_dtype,
        ),
    )


@alias
def conda(
    lr=1e-3,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    eps=1e-8,
    update_proj_gap: Count = 2000,
    scale: NonNegative = 1.0,
    *,
    stagger: Static[bool] = False,
):
    r"""Conda: Adam along the singular vectors of the momentum, on the shorter side of a matrix.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$; $Q$: the singular vectors of $m$;
    $v \leftarrow \beta_2 v + (1-\beta_2) (g Q)^2$; $p \leftarrow (p - \eta\, c\, \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}
    \frac{m Q}{\sqrt v + \epsilon} Q^\top) (1-\eta\lambda)$; a matrix with fewer rows than columns is projected from the
    other side. Other leaves use Adam.

    When to use: transformers, with Adam's state plus one rarely computed basis per matrix.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        eps: $\epsilon \ge 0$.
        update_proj_gap: $Q$ is computed at the first step and at every step that is a multiple of this, >= 1.
        scale: $c \ge 0$, for matrices.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State of matrices: `momentum_buffer`, `exp_avg_sq`
        (in the basis), `Q_0`; of other leaves: `exp_avg`, `exp_avg_sq`; all under `partition`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.conda(lr=0.1)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [4.0, 0.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"]  # m Q has one nonzero column
        tensor([[-0.1000,  0.0000],
                [-0.1000,  0.0000]])

    Source: Wang et al. 2025, arXiv:2509.24218. Departures: none.
    """
    along = rotated(
        scale_by_gradient_rms(betas, eps),
        sides="short",
        max_precondition_dim=2**62,  # larger than any dimension
        start="identity",
        refresh="svd",
        precondition_frequency=update_proj_gap,
        offset=0,
        stagger=stagger,
    )
    matrices = chain(trace_ema(betas[0]), along, scaled(scale))
    direction = by_matrix(matrices, scale_by_adam_hat(betas, eps))
    return decayed(direction, lr, weight_decay)
