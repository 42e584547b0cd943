"""Links of methods in eigenbases: KL-Shampoo, and links used by SOAP-Muon, Conda and SPlus."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    hat_rate,
    running_mean,
    safe_sqrt,
    zeros,
)
from gradtx.transforms._matrix import eigenbasis
from gradtx.transforms._rotation import (
    Factors,
    averaged,
    change_basis,
    is_empty,
    iterated,
    kl_scales,
    kl_statistics,
    whitened,
)

__all__ = [
    "scale_by_gradient_rms",
    "scale_by_kl_shampoo",
    "scale_by_late_rms",
    "scale_by_mean_side",
]


@per_tensor(
    whole=True,
    determined=lambda arguments: not arguments["merge_dims"],
    compiles=False,
    lists=lambda arguments, shape: True,
    static=("stagger",),
    ranges={
        "precondition_frequency": "[1, inf)",
        "max_precondition_dim": "[1, inf)",
        "adam_eps": "[0, inf)",
    },
    example={"precondition_frequency": 2, "eps": 0.1, "adam_eps": 0.1},
    nonnegative=("exp_avg_sq",),
)
def scale_by_kl_shampoo(
    betas: Betas = (0.95, 0.95),
    eps: Scalar = 1e-8,
    adam_eps: Scalar = 1e-8,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10000,
    merge_dims: bool = False,
    *,
    stagger: bool = False,
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

    Raises:
        ValueError: If an argument is out of range.

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
    factors = Factors("both", max_precondition_dim, merge_dims)
    init_adam, average = adam_moments(betas)

    def init(param):
        if not factors.dims(param.shape):
            return init_adam(param)
        return {
            "exp_avg": torch.zeros_like(param),
            "GG": factors.zeros(param),
            "Q": factors.identities(param),
        }

    def update(update, state, param, ctx):
        count = (ctx.time - 1).clamp(min=1)  # the first step returns 0 in any case
        dims, shape = factors.dims(update.shape), factors.shape(update.shape)
        if not dims:
            first = ctx.step == 1
            mean, square, new = average(update, state)
            new = {
                slot: torch.where(first, state[slot], value)
                for slot, value in new.items()
            }
            rate = ctx.bias_correction(beta2, count).sqrt() / ctx.bias_correction(
                beta1, count
            )
            return torch.where(
                first, 0.0, rate * mean / (safe_sqrt(square) + adam_eps)
            ), new
        first = is_empty(state["GG"][0])
        mean = torch.where(
            first, state["exp_avg"], running_mean(state["exp_avg"], update, beta1)
        )
        scales = kl_scales(state["GG"], state["Q"], eps)
        direction = change_basis(
            whitened(mean.reshape(shape), dims, state["Q"], scales),
            dims,
            state["Q"],
            back=True,
        )
        direction = direction.reshape(update.shape) / ctx.bias_correction(beta1, count)
        new_statistics = kl_statistics(update.reshape(shape), dims, state["Q"], scales)
        statistics = averaged(
            state["GG"], new_statistics, (1 - beta2) / ctx.bias_correction(beta2)
        )
        phase = 1 + ctx.turn(precondition_frequency) if stagger else 1
        bases = _next_bases(statistics, state["Q"], precondition_frequency, phase, ctx)
        return torch.where(first, 0.0, direction), {
            "exp_avg": mean,
            "GG": statistics,
            "Q": bases,
        }

    return init, update


def _next_bases(statistics, bases, frequency, phase, ctx):
    """Return the eigenvectors at the first step, and later one step of power iteration when it is due."""

    def iterate():
        return [
            iterated(x, basis)[0] for x, basis in zip(statistics, bases, strict=True)
        ]

    def later():
        return ctx.every(frequency, phase, iterate, lambda: bases)

    return ctx.first(lambda: [eigenbasis(x) for x in statistics], later)


@per_tensor(elementwise=True, ranges={"beta": "[0, 1)"}, nonnegative=("exp_avg_sq",))
def scale_by_late_rms(beta: Scalar = 0.9, eps: Scalar = 1e-8):
    r"""Divide updates by their root mean square from the second step on; the first update passes unchanged.

    From t = 2: $v \leftarrow \beta v + (1-\beta) u^2$ from 0, result $u / \sqrt{\max(v, \epsilon^2)}$; no bias
    correction. For use before links that normalize, such as `orthogonalize`.

    Args:
        beta: $\beta$ in [0, 1).
        eps: $\epsilon \ge 0$, the smallest root. Use a positive value if entries may be 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If `beta` is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_late_rms(beta=0.75)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        ...     print(updates["w"])
        tensor([3.])
        tensor([2.])

    Source: the preconditioner of SOAP-Muon, in the track 3 records of modded-nanogpt. Departures: none.
    """

    def update(update, state, param, ctx):
        first = ctx.step == 1
        old = state["exp_avg_sq"]
        square = torch.where(first, old, running_mean(old, update.square(), beta))
        root = safe_sqrt(at_least(square, eps**2))
        return torch.where(first, update, update / torch.where(first, 1.0, root)), {
            "exp_avg_sq": square
        }

    return zeros("exp_avg_sq"), update


@per_tensor(elementwise=True, nonnegative=("exp_avg_sq",))
def scale_by_gradient_rms(betas: Betas = (0.9, 0.999), eps: Scalar = 1e-8):
    r"""Divide a momentum by the root mean square of the gradient: the second half of Adam's direction.

    $v \leftarrow \beta_2 v + (1-\beta_2) g^2$ with the gradient $g$ (`ctx.grad`), result
    $\frac{u}{1-\beta_1^t} \frac{\sqrt{1-\beta_2^t}}{\sqrt v + \epsilon}$. After `trace_ema(beta1)` it equals
    `scale_by_adam_hat`; links between the two may transform the momentum.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1); $\beta_1$ is that of the preceding momentum.
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> halves = gradtx.chain(
        ...     gradtx.trace_ema(0.9), gradtx.scale_by_gradient_rms((0.9, 0.999))
        ... )
        >>> for tx in (halves, gradtx.scale_by_adam_hat((0.9, 0.999))):
        ...     state = tx.init({"w": torch.zeros(1)})
        ...     updates, _ = tx.update({"w": torch.tensor([3.0])}, state)
        ...     print(round(updates["w"].item(), 4))
        1.0
        1.0

    Source: Kingma and Ba 2014, arXiv:1412.6980. Departures: none.
    """
    _, beta2 = betas

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], ctx.grad.square(), beta2)
        return hat_rate(safe_sqrt(square) + eps, ctx, betas) * update, {
            "exp_avg_sq": square
        }

    return zeros("exp_avg_sq"), update


@per_tensor(ranges={"otherwise": "[0, inf)", "max_dim": "[0, inf)"})
def scale_by_mean_side(otherwise: Scalar = 1e-3, max_dim: int = 10000):
    r"""Divide the update of a matrix by the mean of its two sides: $2 u / (\mathrm{rows} + \mathrm{columns})$.

    Args:
        otherwise: Factor for all other leaves, >= 0.
        max_dim: Matrices with a larger side are treated as other leaves.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_mean_side()
        >>> tx.update({"w": torch.ones(1, 3)}, tx.init({}))[0]["w"]
        tensor([[0.5000, 0.5000, 0.5000]])

    Source: Frans et al. 2025, SPlus, arXiv:2506.07254. Departures: none.
    """

    def update(update, state, param, ctx):
        return mean_side_factor(update.shape, otherwise, max_dim) * update, state

    return update


def mean_side_factor(shape, otherwise, max_dim):
    """Return the factor for a leaf of this shape."""
    if len(shape) != 2 or max(shape) > max_dim:
        return otherwise
    return 2 / max(sum(shape), 1)
