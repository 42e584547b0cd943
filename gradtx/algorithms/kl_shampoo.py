"""KL-Shampoo: momentum, whitened by factors that minimize a Kullback-Leibler divergence. Also `kl_soap`."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.soap import adam_along_bases, decayed_from_second_step
from gradtx.arguments import Decay, NonNegative
from gradtx.combinators.coordinates import (
    Factors,
    Rotation,
    change_basis,
    is_empty,
    kl_scales,
    rotated,
    whitened,
)
from gradtx.maths.entries import adam_moments, at_least, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import init_of

__all__ = ["kl_shampoo", "kl_soap", "scale_by_kl_shampoo"]


@per_tensor(
    whole=True,
    compiles="lists",
    capturable="after first",
    amplifies=True,
    length="sets",
)
def scale_by_kl_shampoo(
    betas=(0.95, 0.95),
    eps=1e-8,
    adam_eps: NonNegative = 1e-8,
    **options: Annotated[Any, Factors],
):
    r"""Whiten the momentum with Kronecker factors that minimize a Kullback-Leibler divergence: KL-Shampoo.

    The first gradient that is not 0 initializes the factors; until then the result is 0. Then, with $s = t - 1$:
    $m \leftarrow \beta_1 m + (1-\beta_1) g$, direction
    $m \times_i Q_i\, \mathrm{diag}(\lambda_i^{-1/2})\, Q_i^\top / (1-\beta_1^s)$ with
    $\lambda_i = \max(\mathrm{diag}(Q_i^\top S_i Q_i), \epsilon)$. The factors $S_i$ and their bases are then updated as
    in `rotated` with "kl", $\beta$ = $\beta_2$ and "qr". Leaves without factors use `scale_by_adam_hat`.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, the least eigenvalue.
        adam_eps: eps of Adam, >= 0.
        precondition_frequency: Steps between two refreshes of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this, >= 1, have no factor.
        merge_dims: Merge neighboring dimensions, left to right, while their product is at most that limit.
        stagger: Refresh the bases of each leaf at its own step within the period, derived from its name, so that no
            step after the first refreshes all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, and `GG_i` ($S_i$)
        and `Q_i`, n x n, for each dimension with a factor; `exp_avg_sq` for a leaf without any. Time: n^3.

    Example:
        >>> tx = gradtx.scale_by_kl_shampoo(betas=(0.0, 0.0))
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update(
        ...         {"w": torch.tensor([[2.0, 0.0], [0.0, 50.0]])}, state
        ...     )
        >>> updates["w"]  # the factors' entries are half the squares of the singular values
        tensor([[1.0000, 0.0000],
                [0.0000, 0.0400]])

    Source: Lin et al. 2025, arXiv:2509.03378. Departures: $m$ is bias-corrected. As for `scale_by_soap`, results depend
    on rounding where statistics are rank-deficient.
    """
    beta1, beta2 = betas
    rotation = Rotation(beta=beta2, **options)
    moments, average = adam_moments(betas)

    def init(param):
        if not rotation.dims(param.shape):
            return init_of(moments)(param)
        return {"exp_avg": torch.zeros_like(param), **rotation.init(param)}

    def update(g, state, p, ctx):
        dims = rotation.dims(g.shape)
        count = at_least(ctx.time - 1, 1)  # the first step returns 0 in any case
        correction = ctx.bias_correction(beta1, count)
        if not dims:
            m, v, new_state = average(g, state)
            rate = ctx.bias_correction(beta2, count).sqrt() / correction
            u = rate * m / (safe_sqrt(v) + adam_eps)
            for slot, value in new_state.items():
                new_state[slot] = torch.where(ctx.seen, value, state[slot])
            return torch.where(ctx.seen, u, 0.0), new_state
        m, GG, Q = state["exp_avg"], state["GG"], state["Q"]
        first = is_empty(GG[0])
        m = torch.where(first, m, running_mean(m, g, beta1))
        scales = kl_scales(GG, Q, eps)
        white = whitened(rotation.inside(m), dims, Q, scales)
        u = change_basis(white, dims, Q, back=True).reshape(g.shape) / correction
        GG = rotation.kl_averages(rotation.inside(g), dims, GG, Q, scales, ctx)
        Q = rotation.next_bases(GG, Q, ctx)
        return torch.where(first, 0.0, u), {"exp_avg": m, "GG": GG, "Q": Q}

    return init, update


@alias(class_name="KLSOAP")
def kl_soap(
    lr=3e-3,
    betas=(0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps=1e-8,
    weight_decay=0.01,
    *,
    correct_bias=True,
    **options: Annotated[Any, Factors],
):
    r"""KL-SOAP: SOAP with factors that minimize a Kullback-Leibler divergence.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with Adam's direction $d$ in the bases of `rotated` with "kl"; the
    first step only initializes the bases.

    When to use: like `soap`, if its factors, which are sums over the other dimensions, are dominated by a few large
    directions.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$ of Adam's averages, each in [0, 1).
        shampoo_beta: Decay rate of the factors, in [0, 1); None for $\beta_2$.
        eps: Adam's eps, >= 0. The lower bound of eigenvalues in the whitening is 1e-8.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        precondition_frequency: Number of steps between updates of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this (>= 1) are not rotated.
        merge_dims: Merge adjacent dimensions as long as their product does not exceed `max_precondition_dim`.
        correct_bias: Whether to correct the bias of Adam's averages.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` (in the rotated
        basis), `GG_i` and `Q_i` for every rotated dimension.

    Example:
        >>> tx = gradtx.kl_soap(lr=0.1)
        >>> params = {"w": torch.ones(2, 3)}
        >>> _, state = tx.update({"w": torch.eye(2, 3)}, tx.init(params), params)
        >>> # from the first gradient, divided by the 3 columns, without bias
        >>> state["rotated"]["GG_0"]["w"]
        tensor([[0.3333, 0.0000],
                [0.0000, 0.3333]])

    Source: Lin et al. 2025, arXiv:2509.03378. Departures: the loop follows SOAP: the first step is skipped, and bases
    are updated after the step.
    """
    direction = rotated(
        adam_along_bases(betas, eps, correct_bias),
        statistics="kl",
        beta=betas[1] if shampoo_beta is None else shampoo_beta,
        **options,
    )
    return decayed_from_second_step(direction, lr, weight_decay)


@alias(class_name="KLShampoo")
def kl_shampoo(
    lr=3e-3,
    betas=(0.95, 0.95),
    eps=1e-8,
    adam_eps: NonNegative = 1e-8,
    weight_decay=0.01,
    **options: Annotated[Any, scale_by_kl_shampoo],
):
    r"""KL-Shampoo: momentum, whitened by factors that minimize a Kullback-Leibler divergence.

    $p \leftarrow (p - \eta\, d)(1 - \eta \lambda)$ with the direction $d$ of `scale_by_kl_shampoo`; the first step only
    initializes the factors.

    When to use: a Shampoo that needs no grafting to Adam, with the memory of SOAP minus Adam's second moments.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, the decay rates of the momentum and of the factors, each in [0, 1).
        eps: Lower bound of the eigenvalues, >= 0.
        adam_eps: Adam's eps, for leaves without factors, >= 0.
        weight_decay: $\lambda \ge 0$, applied to the weights after the step.
        precondition_frequency: Number of steps between updates of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this (>= 1) have no factor.
        merge_dims: Merge adjacent dimensions as long as their product does not exceed `max_precondition_dim`.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `GG_i` and `Q_i` for every
        dimension with a factor; `exp_avg_sq` for leaves without any.

    Example:
        >>> tx = gradtx.kl_shampoo()
        >>> state = tx.init({"w": torch.zeros(3, 2), "b": torch.zeros(2)})
        >>> slots = state["scale_by_kl_shampoo"]
        >>> {slot: sorted(leaves) for slot, leaves in slots.items()}
        {'exp_avg': ['b', 'w'], 'GG_0': ['w'], 'GG_1': ['w'], 'Q_0': ['w'], 'Q_1': ['w'], 'exp_avg_sq': ['b']}

    Source: Lin et al. 2025, arXiv:2509.03378. Departures: the loop follows SOAP, and the momentum is bias-corrected.
    """
    direction = scale_by_kl_shampoo(betas, eps, adam_eps, **options)
    return decayed_from_second_step(direction, lr, weight_decay)
