"""Low-cost orthogonal directions with error feedback: Dion, Dion2, Dion3."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradtx.base.exact import Scalar
from gradtx.base.messages import describe
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    at_least,
    norm,
    running_mean,
    safe_sqrt,
)
from gradtx.transforms._matrix import newton_schulz, orthonormal
from gradtx.transforms._polynomials import Coefficients, polynomials

__all__ = ["orthogonalize_slices", "scale_by_dion"]


@per_tensor(
    whole=True,
    dims=(2, 2),
    random=True,
    lists=lambda arguments, shape: True,  # only `init` draws
    ranges={"mu": "[0, 1)"},
    example={"rank": 2},
)
def scale_by_dion(
    mu: Scalar = 0.95,
    rank: float | int = 1.0,
    eps: Scalar = 1e-8,
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


@per_tensor(
    whole=True,
    dims=(2, 2),
    ranges={
        "ef_decay": "[0, 1)",
        "beta2": "[0, 1)",
        "neuron_eps": "[0, inf)",
        "steps": "[0, 100)",
    },
    nonnegative=("exp_avg_sq",),
    compiles=False,
    lists=lambda arguments, shape: True,
)
def orthogonalize_slices(
    fraction: float | int = 0.25,
    ef_decay: Scalar = 0.95,
    select: str = "short",
    beta2: Scalar | None = None,
    neuron_eps: Scalar = 1e-8,
    coefs: Coefficients = "polar_express",
    steps: int | None = None,
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

    def init(param):
        slots = {"momentum": torch.zeros_like(param)}
        if beta2 is not None:
            slots["exp_avg_sq"] = param.new_zeros((param.shape[0], 1))
        return slots

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

    return init, update


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
