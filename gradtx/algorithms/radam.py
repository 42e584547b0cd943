"""RAdam, equivalent to torch.optim.RAdam: plain momentum steps until Adam's step size is reliable."""

from __future__ import annotations

import torch

from gradtx.arguments import AtLeastFour
from gradtx.links.decay import with_decay
from gradtx.links.scaling import hold_until_rectified
from gradtx.maths.entries import adam_moments, rectification, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["radam", "scale_by_radam"]


def rectified_direction(
    mean, square, ctx, betas, eps, threshold, degenerated_to_sgd: bool
):
    """Return r (m/c1) sqrt(c2) / (sqrt(v) + eps) where rectified; before that, m/c1 or 0."""
    beta1, beta2 = betas
    factor, rectified = rectification(ctx, beta2, threshold)
    rate = torch.where(
        rectified, factor * ctx.bias_correction(beta2).sqrt(), float(degenerated_to_sgd)
    )
    # One quotient serves both phases; only the divisor changes.
    divisor = torch.where(rectified, safe_sqrt(square) + eps, 1.0)
    return rate / ctx.bias_correction(beta1) * mean / divisor


@per_tensor(elementwise=True, length="sets")
def scale_by_radam(
    betas=(0.9, 0.999),
    eps=1e-8,
    rho_threshold: AtLeastFour = 5.0,
    degenerated_to_sgd=True,
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
        ValueError: If `rho_threshold` is less than 4.

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
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        m, v, new_state = average(g, state)
        direction = rectified_direction(
            m, v, ctx, betas, eps, rho_threshold, degenerated_to_sgd
        )
        return direction, new_state

    return moments, update


@alias(class_name="RAdam")
def radam(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    *,
    rho_threshold: AtLeastFour = 5.0,
    degenerated_to_sgd=True,
):
    r"""RAdam, equivalent to torch.optim.RAdam: plain momentum steps until Adam's step size is reliable.

    $p \leftarrow p - \eta r_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$ with $r_t$ of `scale_by_radam`
    once $\rho_t$ exceeds the threshold; before that, $p \leftarrow p - \eta \hat m_t$.

    When to use: Adam or AdamW without a warm-up to tune.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step; the first steps are in units of the
            gradient.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        rho_threshold: Threshold of $\rho_t$, >= 4; the paper uses 4.
        degenerated_to_sgd: If False, neither the update nor the decay acts before the first rectified step.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.radam(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-1.0000e-04,  4.0000e-01])

    Source: Liu et al. 2019, arXiv:1908.03265. Departures: none from torch.optim.RAdam, which lacks the last two
    options. pytorch_optimizer's RAdam decouples the decay and has `degenerated_to_sgd=False` by default.
    """
    direction = scale_by_radam(betas, eps, rho_threshold, degenerated_to_sgd)
    radam = with_decay(direction, weight_decay, decoupled_weight_decay, lr)
    if degenerated_to_sgd:
        return radam
    return chain(radam, hold_until_rectified(betas[1], rho_threshold))
