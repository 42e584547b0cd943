"""Dion: orthogonal directions of low rank from one step of power iteration, with error feedback. Also `dion2`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.algorithms.muon import muon_like
from gradtx.arguments import Decay, NonNegative
from gradtx.links.orthogonal import Adjustment, equalized
from gradtx.maths.entries import is_rounding, norm, norms
from gradtx.maths.matrices import orthonormal
from gradtx.maths.polynomials import Coefficients, Steps, orthogonalizer
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square
from gradtx.transform import GradientTransformation

__all__ = [
    "dion",
    "dion2",
    "orthogonalize_slices",
    "scale_by_dion",
]


@per_tensor(
    whole=True,
    dims=(2, 2),
    random=True,
    compiles="lists",
    because="no kernel computes its QR decomposition",
    amplifies=True,
    length="sets",
)
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
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.scale_by_dion(rank=1, init="eye")
        >>> grads = {"w": torch.tensor([[3.0, 0.0], [4.0, 0.0]])}
        >>> tx.update(grads, tx.init(grads))[0]["w"].abs()
        tensor([[0.6000, 0.0000],
                [0.8000, 0.0000]])

    Source: Ahn et al. 2025, arXiv:2504.05295. Departures: none from dion_simple, which does not transpose wide
    matrices; where a column of $R$ is 0, perhaps but for rounding errors, that of $Q$ is unchanged and the result is 0.
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
        is_zero = is_rounding(lengths, norm(right))
        # A zero column stays 0, even with eps 0.
        basis = torch.where(is_zero, 0.0, right / (lengths + eps + is_zero))
        return left @ basis.mT, {
            "momentum": momentum - (1 - mu) * (left @ right.mT),
            "Q": torch.where(is_zero, old, basis),
        }

    return first, update


@per_tensor(whole=True, dims=(2, 2), compiles="lists", amplifies=True, length="sets")
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
        ValueError: If a leaf is not a matrix.

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
        u, new_state = iterate(part), {}
        if beta2 is not None:
            v = state["exp_avg_sq"]
            v_of_part = v.index_select(0, chosen) if dim == 0 else v
            u, v_of_part = equalized(u, v_of_part, beta2, neuron_eps)
            v = v.index_copy(0, chosen, v_of_part) if dim == 0 else v_of_part
            new_state["exp_avg_sq"] = v
        new_state["momentum"] = momentum.index_copy(dim, chosen, ef_decay * part)
        return torch.zeros_like(g).index_copy(dim, chosen, u), new_state

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
        ValueError: If a leaf is not a matrix and there is no `fallback`.

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
        ValueError: If a leaf is not a matrix and there is no `fallback`.

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
