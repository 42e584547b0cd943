"""Low-rank methods: Dion and Dion2, GaLore, Fira, APOLLO."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import Count, Decay, Decays, NonNegative
from gradtx.base.exact import Scalar
from gradtx.combinators.low_rank import low_rank
from gradtx.optimizers.matrix import muon_like
from gradtx.rules import alias
from gradtx.transform import GradientTransformation, chain
from gradtx.transforms._polynomials import Coefficients
from gradtx.transforms.adam import scale_by_adam_hat
from gradtx.transforms.low_rank import (
    orthogonalize_slices,
    scale_by_apollo_low_rank,
    scale_by_dion,
    scale_by_fira,
)
from gradtx.transforms.projection import decay_after_step
from gradtx.transforms.scaling import scale_by_learning_rate

__all__ = ["apollo_low_rank", "dion", "dion2", "fira", "galore"]


@alias
def dion(
    lr: NonNegative = 0.01,
    mu: Decay = 0.95,
    rank: float | int = 1.0,
    weight_decay: NonNegative = 0.01,
    eps: NonNegative = 1e-8,
    adjust_lr_fn: str | None = "spectral",
    init: str = "random",
    seed: int = 0,
    fallback: GradientTransformation | None = None,
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
        scale_by_dion(mu, rank, eps, init, seed),
    )


@alias
def dion2(
    lr: NonNegative = 0.01,
    fraction: float | int = 0.25,
    ef_decay: Decay = 0.95,
    weight_decay: NonNegative = 0.01,
    select: str = "short",
    beta2: Decay | None = None,
    neuron_eps: NonNegative = 1e-8,
    ns_coefficients: Coefficients = "polar_express",
    ns_steps: int | None = None,
    adjust_lr_fn: str | None = "spectral",
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


def _decayed(direction: GradientTransformation, lr: Any, weight_decay: Any):
    """Chain a direction, its rate, and decay after the step."""
    return chain(
        direction, scale_by_learning_rate(lr), decay_after_step(lr, weight_decay)
    )


@alias(class_name="GaLore")
def galore(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: str = "short",
    projection: str = "svd",
    carry: str = "keep",
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
    return _decayed(direction, lr, weight_decay)


@alias
def fira(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: str = "short",
    projection: str = "svd",
    carry: str = "keep",
    limit: Annotated[Scalar, "[1, inf)"] = 1.01,
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
    direction = scale_by_fira(
        betas,
        eps,
        rank,
        update_proj_gap,
        scale,
        side=side,
        projection=projection,
        carry=carry,
        limit=limit,
    )
    return _decayed(direction, lr, weight_decay)


@alias(class_name="ApolloLowRank")
def apollo_low_rank(
    lr: NonNegative = 1e-2,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
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
    direction = scale_by_apollo_low_rank(
        betas,
        eps,
        rank,
        update_proj_gap,
        scale,
        side=side,
        projection=projection,
        scale_type=scale_type,
        scale_front=scale_front,
        limit=limit,
        seed=seed,
    )
    return _decayed(direction, lr, weight_decay)
