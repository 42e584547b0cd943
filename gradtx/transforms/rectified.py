"""RAdam, AdaBelief, Schedule-Free RAdam: rectify the variance of the first adaptive steps."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    corrected_root,
    peak,
    quotient,
    rectification,
    running_mean,
    safe_sqrt,
    zeros,
)

__all__ = [
    "hold_until_rectified",
    "scale_by_belief",
    "scale_by_radam",
    "scale_by_rectified_rms",
]


def _rectified(mean, square, ctx, betas, eps, threshold, degenerated_to_sgd: bool):
    """Return r (m/c1) sqrt(c2) / (sqrt(v) + eps) where rectified; before that, m/c1 or 0."""
    beta1, beta2 = betas
    factor, rectified = rectification(ctx, beta2, threshold)
    rate = torch.where(
        rectified, factor * ctx.bias_correction(beta2).sqrt(), float(degenerated_to_sgd)
    )
    # One quotient serves both phases; only the divisor changes.
    divisor = torch.where(rectified, safe_sqrt(square) + eps, 1.0)
    return rate / ctx.bias_correction(beta1) * mean / divisor


@per_tensor(
    ranges={"rho_threshold": "[4, inf)"}, elementwise=True, nonnegative=("exp_avg_sq",)
)
def scale_by_radam(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    rho_threshold: Scalar = 5.0,
    degenerated_to_sgd: bool = True,
):
    r"""Weight Adam's direction by a factor that limits the variance of its step size: RAdam's direction.

    $m_t$ and $v_t$ as in `scale_by_adam`, $c_i = 1-\beta_i^t$, $\rho_\infty = 2/(1-\beta_2) - 1$,
    $\rho_t = \rho_\infty - 2 t \beta_2^t / c_2$. Where $\rho_t$ is above the threshold, the direction is
    $r_t \frac{m_t}{c_1} \frac{\sqrt{c_2}}{\sqrt{v_t} + \epsilon}$ with
    $r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}$; until then, it is
    $m_t / c_1$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1). Rectified steps start at t = 6 with $\beta_2 = 0.999$, and never
            with $\beta_2 \le 2/3$.
        eps: $\epsilon \ge 0$, added to the root before bias correction, in the units of a gradient.
        rho_threshold: Threshold of $\rho_t$, >= 4: 4 in the paper, 5 in torch.optim.
        degenerated_to_sgd: If False, return 0 before the first rectified step; `hold_until_rectified` then also holds
            back a decay.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `eps` is negative, or if `rho_threshold` is less than 4.

    Example:
        >>> tx = gradtx.scale_by_radam()
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(7):
        ...     updates, state = tx.update({"w": torch.tensor([100.0])}, state)
        ...     print(round(updates["w"].item(), 4))
        100.0
        100.0
        100.0
        100.0
        100.0
        0.0258
        0.0327

    Source: Liu et al. 2019, arXiv:1908.03265. Departures: torch.optim.RAdam's threshold of 5.
    """
    init, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        return _rectified(
            mean, square, ctx, betas, eps, rho_threshold, degenerated_to_sgd
        ), new

    return init, update


@per_tensor(elementwise=True, nonnegative=("exp_avg_var", "max_exp_avg_var"))
def scale_by_belief(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-16,
    amsgrad: bool = False,
    rectify: bool = True,
    degenerated_to_sgd: bool = True,
):
    r"""Divide the mean gradient by the deviation of gradients from it: AdaBelief's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $s_t = \beta_2 s_{t-1} + (1-\beta_2) (g_t - m_t)^2 + \epsilon$,
    $c_i = 1-\beta_i^t$; direction $\frac{m_t}{c_1} / (\sqrt{s_t / c_2} + \epsilon)$. With `rectify`, it is
    $r_t \frac{m_t}{c_1} \frac{\sqrt{c_2}}{\sqrt{s_t} + \epsilon}$ where $\rho_t > 5$ (see `scale_by_radam`), and
    $m_t / c_1$ before that.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$. Added twice: to $s$, where it accumulates, and to its root.
        amsgrad: Use the running maximum of $s$ instead of $s$.
        rectify: Rectify the variance of the first steps, as in RAdam.
        degenerated_to_sgd: If False, return 0 before the first rectified step; a decay in another link still applies.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_var` and, with `amsgrad`,
        `max_exp_avg_var`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_belief(betas=(0.5, 0.5), eps=0.0, rectify=False)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # a steady gradient, and one that changes sign
        >>> for grads in ([1.0, 1.0], [1.0, -1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        >>> updates["w"]
        tensor([ 2.8284, -0.4924])

    Source: Zhuang et al. 2020, arXiv:2010.07468. Departures: the defaults are those of adabelief-pytorch 0.2; unlike
    there, amsgrad also applies to rectified steps.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        variance = running_mean(state["exp_avg_var"], (update - mean).square(), beta2)
        new = {"exp_avg": mean, "exp_avg_var": variance + eps}
        variance = peak(new, state, "exp_avg_var", amsgrad)
        if rectify:
            return _rectified(
                mean, variance, ctx, betas, eps, 5.0, degenerated_to_sgd
            ), new
        root = corrected_root(variance, ctx, beta2)
        return mean / ctx.bias_correction(beta1) / (root + eps), new

    return zeros("exp_avg", "exp_avg_var", max_exp_avg_var=amsgrad), update


@per_tensor(ranges={"beta2": "[0, 1)"}, elementwise=True, nonnegative=("exp_avg_sq",))
def scale_by_rectified_rms(beta2: Scalar = 0.999, eps: Scalar = 1e-8):
    r"""Divide by the root mean square of all gradients once there are enough of them: Schedule-Free RAdam.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$; where $\rho_t > 4$ (see `scale_by_radam`), the direction is
    $g_t / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$; before that, it is $g_t$. The factor $r_t$ is part of the rate:
    see `rectification_schedule`.

    Args:
        beta2: $\beta_2$ in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_rectified_rms(0.999)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(5):
        ...     updates, state = tx.update({"w": torch.tensor([100.0])}, state)
        ...     print(round(updates["w"].item(), 4))
        100.0
        100.0
        100.0
        100.0
        1.0

    Source: Defazio et al. 2024, arXiv:2405.15682, RAdamScheduleFree; Liu et al. 2019, arXiv:1908.03265. Departures:
    none.
    """

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        _, rectified = rectification(ctx, beta2, 4.0)
        root = corrected_root(square, ctx, beta2) + eps
        return quotient(update, torch.where(rectified, root, 1.0), floor=eps), {
            "exp_avg_sq": square
        }

    return zeros("exp_avg_sq"), update


@per_tensor(ranges={"beta2": "[0, 1)", "rho_threshold": "[4, inf)"}, elementwise=True)
def hold_until_rectified(beta2: Scalar = 0.999, rho_threshold: Scalar = 5.0):
    r"""Return zero updates before RAdam's first rectified step, while earlier links update their state.

    Last link of a chain; zero where $\rho_t$ of `scale_by_radam` is not above the threshold.

    Args:
        beta2: $\beta_2$ in [0, 1).
        rho_threshold: Threshold of $\rho_t$, >= 4.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(1.0), gradtx.hold_until_rectified(0.999))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(6):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"].item())
        0.0
        0.0
        0.0
        0.0
        0.0
        6.0

    Source: Liu et al. 2019, arXiv:1908.03265. Departures: none from the authors' package with
    `degenerated_to_sgd=False`.
    """

    def update(update, state, param, ctx):
        _, rectified = rectification(ctx, beta2, rho_threshold)
        return torch.where(rectified, update, 0.0), state

    return update
