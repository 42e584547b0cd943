"""Muon for matrices beside Adam-atan2 for the rest, as adam-atan2-pytorch has it; also `polar_adam_atan2`."""

from __future__ import annotations

import functools
from typing import Annotated

from gradtx.algorithms.adam_atan2 import adam_atan2
from gradtx.algorithms.muon import by_matrix
from gradtx.arguments import Decay, FractionOffAtOne, NonNegative, Positive
from gradtx.links.caution import scale_by_caution
from gradtx.links.decay import add_decayed_weights
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import (
    normalize_neurons,
    orthogonalize,
    scale_by_shape,
)
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.polynomials import NEWTON_SCHULZ, POLAR_EXPRESS, Steps
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["muon_adam_atan2", "polar_adam_atan2"]


def _beside_adam_atan2(
    matrices, matrix_ndims, lr, matrix_lr, betas, a, b, wd, decoupled_wd, caution
):
    """Use a direction for leaves with these numbers of dimensions, and Adam-atan2 for the others."""
    rate = lr if matrix_lr is None else matrix_lr
    matrices = chain(
        matrices,
        scale_by_caution(caution),
        add_decayed_weights(wd, relative_to=rate if decoupled_wd else None),
        scale_by_learning_rate(rate),
    )
    rest = adam_atan2(
        lr, betas, wd, decoupled_wd=decoupled_wd, cautious_factor=caution, a=a, b=b
    )
    takes = functools.partial(_has_dimensions, matrix_ndims)  # a lambda has no pickle
    return by_matrix(matrices, rest, takes)


def _has_dimensions(numbers, name, leaf):
    return leaf.ndim in numbers


@alias
def muon_adam_atan2(
    lr=1e-4,
    betas=(0.9, 0.99),
    muon_lr: NonNegative | None = None,
    weight_decay=0.0,
    decoupled_wd=False,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    muon_beta1: Decay = 0.95,
    muon_beta2: Decay = 0.95,
    muon_steps: Steps = 5,
    muon_rms_factor: NonNegative = 0.2,
    use_normuon=False,
    normuon_eps: NonNegative = 1e-10,
    matrix_ndims: tuple[Annotated[int, "[2, inf)"], ...] = (2, 3),
):
    r"""Muon with Adam-atan2: Muon for matrices, Adam-atan2 for all other leaves.

    Matrices: $m \leftarrow \beta_1' m + (1-\beta_1') g$, $u$ = `orthogonalize`$(m)$, with `use_normuon`
    `normalize_neurons`$(u)$, $p \leftarrow p (1 - L \lambda) - L f \sqrt{\max(\mathrm{rows}, \mathrm{columns})}\, u$.

    When to use: Muon for a whole model, with a rule without eps for the other leaves.

    Args:
        lr: Learning rate of the other leaves, in [0, inf).
        betas: Decay rates of their two averages, each in [0, 1).
        muon_lr: $L$, the learning rate of matrices; None for `lr`.
        weight_decay: $\lambda \ge 0$, decoupled, for both.
        decoupled_wd: Divide $\lambda$ by the initial learning rate.
        cautious_factor: Factor in [0, 1] for entries whose update opposes the gradient; 1.0 disables it.
        a: Scale of Adam-atan2's update, > 0.
        b: Scale of its denominator, > 0.
        muon_beta1: $\beta_1'$ in [0, 1).
        muon_beta2: Decay rate of the rows' mean squares, in [0, 1).
        muon_steps: Number of iterations, in [0, 100).
        muon_rms_factor: $f \ge 0$, the root mean square of matrix updates.
        use_normuon: Normalize the rows of updates to equal size over time.
        normuon_eps: $\epsilon \ge 0$ of that normalization.
        matrix_ndims: Values of `ndim` for which a leaf is treated as a matrix, or as a batch of matrices in its last
            two dimensions.

    Returns:
        A transformation whose updates are added to the parameters. State, under `partition`: `momentum_buffer`, with
        `use_normuon` also `exp_avg_sq` (one entry per row), and Adam-atan2's; with `decoupled_wd`, `initial_lr`.

    Example:
        >>> tx = gradtx.muon_adam_atan2(lr=0.1, a=4 / torch.pi)
        >>> params = {"w": torch.zeros(2, 2), "b": torch.zeros(1)}
        >>> state = tx.init(params)["partition"]
        >>> [sorted(k for k in state[label] if k != "members") for label in ("matrix", "rest")]
        [['trace_ema'], ['scale_by_atan2']]

    Source: adam-atan2-pytorch 0.4.1, after Jordan et al. 2024 (Muon), Liu et al. 2025, arXiv:2502.16982, and Li et al.
    2025, arXiv:2510.05491. Departures: the iteration runs in the leaf's dtype; no regenerative regularization.
    """
    matrices = chain(
        trace_ema(muon_beta1),
        orthogonalize(NEWTON_SCHULZ, muon_steps, view="batch"),
        normalize_neurons(muon_beta2, normuon_eps) if use_normuon else chain(),
        scale_by_shape("match_rms_adamw", muon_rms_factor, "batch"),
    )
    return _beside_adam_atan2(
        matrices,
        matrix_ndims,
        lr,
        muon_lr,
        betas,
        a,
        b,
        weight_decay,
        decoupled_wd,
        cautious_factor,
    )


@alias
def polar_adam_atan2(
    lr=1e-4,
    betas=(0.9, 0.99),
    polar_lr: NonNegative | None = None,
    weight_decay=0.0,
    decoupled_wd=False,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    polar_beta1: Decay = 0.95,
    polar_steps: Steps = 5,
    polar_rms_factor: NonNegative = 0.2,
    matrix_ndims: tuple[Annotated[int, "[2, inf)"], ...] = (2, 3),
):
    r"""Polar Express with Adam-atan2: orthogonalized momentum for matrices, Adam-atan2 for all other leaves.

    Like `muon_adam_atan2`, with a different polynomial at every step of the iteration, which brings singular values to
    1 itself rather than close to it.

    When to use: like `muon_adam_atan2`, if the iteration should come closer to an orthogonal matrix with the same
    number of products.

    Args:
        lr: Learning rate of the other leaves, in [0, inf).
        betas: Decay rates of their two averages, each in [0, 1).
        polar_lr: Learning rate of matrices; None for `lr`.
        weight_decay: $\lambda \ge 0$, decoupled, for both.
        decoupled_wd: Divide $\lambda$ by the initial learning rate.
        cautious_factor: Factor in [0, 1] for entries whose update opposes the gradient; 1.0 disables it.
        a: Scale of Adam-atan2's update, > 0.
        b: Scale of its denominator, > 0.
        polar_beta1: Decay rate of the momentum of matrices, in [0, 1).
        polar_steps: Number of iterations, in [0, 100); after the seventh the polynomial stays the same.
        polar_rms_factor: Root mean square of matrix updates, >= 0.
        matrix_ndims: Values of `ndim` for which a leaf is treated as a matrix, or as a batch of matrices in its last
            two dimensions.

    Returns:
        A transformation whose updates are added to the parameters. State, under `partition`: `momentum_buffer`, and
        Adam-atan2's; with `decoupled_wd`, `initial_lr`.

    Example:
        >>> tx = gradtx.polar_adam_atan2(lr=0.1, polar_rms_factor=0.5**0.5, polar_steps=9)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[2.0, 0.0], [0.0, 1e-3]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[-0.1000, -0.0000],
                [-0.0000, -0.1000]])

    Source: adam-atan2-pytorch 0.4.1, after Amsel et al. 2025, arXiv:2505.16932. Departures: the iteration runs in the
    leaf's dtype; no regenerative regularization.
    """
    matrices = chain(
        trace_ema(polar_beta1),
        orthogonalize(POLAR_EXPRESS, polar_steps, view="batch"),
        scale_by_shape("match_rms_adamw", polar_rms_factor, "batch"),
    )
    return _beside_adam_atan2(
        matrices,
        matrix_ndims,
        lr,
        polar_lr,
        betas,
        a,
        b,
        weight_decay,
        decoupled_wd,
        cautious_factor,
    )
