"""Preconditioned stochastic gradient descent: PSGD Kron and PSGD-PRO."""

from __future__ import annotations

from gradtx.arguments import Count, Decay, NonNegative, NonNegativeInt, Positive, is_off
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain
from gradtx.transforms.psgd import (
    scale_by_psgd_kron,
    scale_by_psgd_pro,
)
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["psgd_kron", "psgd_pro"]


@per_tensor(needs=("params",), rate="before")
def add_decayed_matrices(weight_decay: NonNegative):
    """Add weight decay to leaves with two or more dimensions."""
    if is_off(weight_decay):
        return chain()

    def update(update, state, param, ctx):
        return update + weight_decay * param if param.ndim >= 2 else update, state

    return update


@alias(class_name="PSGDKron")
def psgd_kron(
    lr: NonNegative = 3e-4,
    b1: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    precondition_frequency: int | str = "annealed",
    balance_every: Count = 100,
    probes: str = "expected",
    seed: int = 0,
    momentum_into_precond_update: bool = True,
    max_size_triangular: NonNegativeInt = 8192,
    min_ndim_triangular: NonNegativeInt = 2,
    memory_save_mode: str | None = None,
    merge_dims: bool = True,
    clip_rms: Positive = 1.1,
):
    r"""PSGD Kron: momentum whitened by triangular factors that are fitted by gradient descent.

    $p \leftarrow p - \eta\, (u + \lambda p)$ with $u$ of `scale_by_psgd_kron`; only leaves with two or more dimensions
    decay.

    When to use: noisy or badly scaled problems, instead of `shampoo` and `soap`, without eigenvectors and roots. Start
    with a third of Adam's rate.

    Args:
        lr: $\eta$ in [0, inf).
        b1: Decay rate of the momentum, in [0, 1).
        weight_decay: $\lambda \ge 0$.
        precond_lr: Learning rate of the factors, >= 0.
        precond_init_scale: Initial value of the product of the factors, > 0.
        precondition_frequency: Number of steps between updates of the factors, or "annealed".
        balance_every: Number of factor updates between two balancings, >= 1.
        probes: Kind of probes: "expected" or "random".
        seed: Seed of random probes.
        momentum_into_precond_update: If False, fit the factors to the gradient itself instead of the momentum.
        max_size_triangular: Dimensions larger than this (>= 0) have a diagonal factor.
        min_ndim_triangular: Leaves with fewer dimensions than this, after merging, have only diagonal factors.
        memory_save_mode: "one_diag", "smart_one_diag" or "all_diag"; see `scale_by_psgd_kron`.
        merge_dims: Treat leaves with more than two dimensions as matrices.
        clip_rms: Upper bound of the root mean square of $u$, > 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `Q_i` for every dimension;
        if annealed, also `since_update` and `updates`.

    Raises:
        ValueError: If a hyperparameter is out of range, if an option is unknown, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.psgd_kron(lr=1.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update({"w": torch.full((2, 2), 1000.0)}, tx.init(params), params)
        >>> updates["w"].square().mean().sqrt()  # at most clip_rms
        tensor(1.1000)

    Source: Li 2015, arXiv:1512.04202; Pooladzandi and Li 2024, arXiv:2402.11858; kron-torch 0.3.3. Departures: see
    `scale_by_psgd_kron`.
    """
    direction = scale_by_psgd_kron(
        b1,
        precond_lr,
        precond_init_scale,
        precondition_frequency=precondition_frequency,
        balance_every=balance_every,
        probes=probes,
        seed=seed,
        momentum_into_precond_update=momentum_into_precond_update,
        max_size_triangular=max_size_triangular,
        min_ndim_triangular=min_ndim_triangular,
        memory_save_mode=memory_save_mode,
        merge_dims=merge_dims,
        clip_rms=clip_rms,
    )
    return chain(
        direction, add_decayed_matrices(weight_decay), scale_by_learning_rate(lr)
    )


@alias(class_name="PSGDPro")
def psgd_pro(
    lr: NonNegative = 3e-3,
    momentum: Decay = 0.9,
    weight_decay: NonNegative = 0.01,
    beta_lip: Decay = 0.9,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    damping_noise_scale: NonNegative = 0.1,
    min_precond_lr: NonNegative = 0.01,
    warmup_steps: Positive = 10000.0,
    max_update_rms: NonNegative = 0.0,
    max_precondition_dim: NonNegativeInt = 10000,
):
    r"""PSGD-PRO: momentum whitened by symmetric factors that are fitted without inverses.

    $p \leftarrow p (1 - \eta \lambda) - \eta\, u$ with $u$ of `scale_by_psgd_pro`.

    When to use: like `psgd_kron`, in low precision and on accelerators: it needs only products, no triangular solve.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay rate of the momentum, in [0, 1).
        weight_decay: $\lambda \ge 0$, decoupled.
        beta_lip: Decay rate of the bounds of the factors' statistics, in [0, 1).
        precond_lr: Initial learning rate of the factors, >= 0.
        precond_init_scale: Initial value of every factor, > 0, as a multiple of the identity.
        damping_noise_scale: Size of the noise that damps the factors, >= 0.
        min_precond_lr: Lower bound of the learning rate of the factors, >= 0.
        warmup_steps: Number of steps until the learning rate of the factors is divided by the square root of 2, > 0.
        max_update_rms: Upper bound of the root mean square of $u$, >= 0; a literal 0.0 disables it.
        max_precondition_dim: Dimensions larger than this (>= 0) have a diagonal factor.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, and `Q_i` and `lipschitz_i` for
        every dimension.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.psgd_pro(lr=1.0, max_update_rms=0.5)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update({"w": torch.full((2, 2), 1000.0)}, tx.init(params), params)
        >>> updates["w"]
        tensor([[-0.5000, -0.5000],
                [-0.5000, -0.5000]])

    Source: NVIDIA Emerging-Optimizers 2026-08; lixilinx/psgd_torch. Departures: see `scale_by_psgd_pro`.
    """
    direction = scale_by_psgd_pro(
        momentum,
        beta_lip,
        precond_lr,
        precond_init_scale,
        damping_noise_scale=damping_noise_scale,
        min_precond_lr=min_precond_lr,
        warmup_steps=warmup_steps,
        max_update_rms=max_update_rms,
        max_precondition_dim=max_precondition_dim,
    )
    return chain(
        direction, add_decayed_weights(weight_decay), scale_by_learning_rate(lr)
    )
