"""Variants of Adam: rectified, bounded, normalized and mixed moments."""

from __future__ import annotations

from typing import Annotated

import torch

from gradtx.arguments import Decay, Decays, NonNegative, Positive, is_off
from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.slots import ema, linear, scalar, square
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    corrected_root,
    hat_rate,
    peak,
    plus_decay,
    quotient,
    rectification,
    running_mean,
    safe_sqrt,
)
from gradtx.transforms.weight_decay import initial_lr

__all__ = [
    "hold_until_rectified",
    "scale_by_adabound",
    "scale_by_adam_stable_decay",
    "scale_by_adamod",
    "scale_by_ademamix",
    "scale_by_belief",
    "scale_by_laprop",
    "scale_by_radam",
    "scale_by_rectified_rms",
    "scale_by_simplified_ademamix",
    "scale_by_stable_adam",
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


@per_tensor(elementwise=True)
def scale_by_radam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    rho_threshold: Annotated[Scalar, "[4, inf)"] = 5.0,
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
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        return _rectified(
            mean, square, ctx, betas, eps, rho_threshold, degenerated_to_sgd
        ), new

    return moments, update


@per_tensor(elementwise=True)
def scale_by_belief(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-16,
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

    return {
        "exp_avg": ema(beta1),
        "exp_avg_var": square(),
        **({"max_exp_avg_var": square()} if amsgrad else {}),
    }, update


@per_tensor(elementwise=True)
def scale_by_rectified_rms(beta2: Decay = 0.999, eps: NonNegative = 1e-8):
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

    return {"exp_avg_sq": square()}, update


@per_tensor(elementwise=True)
def hold_until_rectified(
    beta2: Decay = 0.999, rho_threshold: Annotated[Scalar, "[4, inf)"] = 5.0
):
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


@per_tensor(elementwise=True)
def scale_by_adabound(
    lr: NonNegative,
    final_lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    gamma: Positive = 1e-3,
    amsgrad: bool = False,
):
    r"""Clip Adam's rates to a band that narrows to a single rate: from Adam to SGD with momentum.

    With Adam's $m_t$, $v_t$ and $c_i = 1-\beta_i^t$, the direction is $r_t m_t$, where
    $r_t = \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)}$ is clipped to
    $[f (1 - \frac{1}{\gamma t + 1}), f (1 + \frac{1}{\gamma t})]$. $f$ is `final_lr` over the initial learning rate, so
    that after `scale_by_learning_rate` the band surrounds `final_lr` and follows a schedule.

    Args:
        lr: The rate of the `scale_by_learning_rate` that follows, initially above 0. Only its first value is read.
        final_lr: The limit of each weight's rate, >= 0.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        gamma: Speed at which the band narrows, > 0: its width is halved after about $1/\gamma$ steps.
        amsgrad: Use the running maximum of $v$ instead of $v$ (AMSBound).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter; `initial_lr`, 0-d float64 for each leaf.

    Raises:
        ValueError: If an argument is out of range, or if `lr` is initially 0.

    Example:
        >>> # a narrow band from the start
        >>> tx = gradtx.scale_by_adabound(lr=0.01, final_lr=0.1, gamma=1e6)
        >>> # 10 m
        >>> tx.update({"w": torch.tensor([0.5, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 0.5000, -4.0000])

    Source: Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate" (ICLR). Departures: none
    from the authors' code, which clips after the learning rate.
    """
    moments, average = adam_moments(betas, amsgrad)

    first_lr = initial_lr(
        "scale_by_adabound", lr, "final_lr", "use an initial value above 0"
    )

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        final, narrowing = final_lr / state["initial_lr"], gamma * ctx.time
        lowest, highest = final * (1 - 1 / (narrowing + 1)), final * (1 + 1 / narrowing)
        rates = hat_rate(safe_sqrt(square) + eps, ctx, betas).clamp(lowest, highest)
        return rates * mean, new | {"initial_lr": state["initial_lr"]}

    return {**moments, "initial_lr": first_lr}, update


@per_tensor(
    elementwise=True,
    needs=lambda arguments: () if is_off(arguments["weight_decay"]) else ("params",),
    owns_lr=True,
)
def scale_by_adamod(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    beta3: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
):
    r"""Bound Adam's rate of each weight by the average of its past values.

    With Adam's $m_t$, $v_t$ and $c_i = 1-\beta_i^t$: $r_t = \eta_t \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)}$,
    $n_t = \beta_3 n_{t-1} + (1-\beta_3) r_t$ from 0 and without bias correction, update
    $-\min(r_t, n_t) m_t - \eta_t \lambda p$. It owns the learning rate, because $n$ averages rates that include it.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        beta3: $\beta_3$ in [0, 1); roughly the first $1/(1-\beta_3)$ steps are a warm-up.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `exp_avg_lr`,
        shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing and `weight_decay` is not 0.0, or if a later
            link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_adamod(lr=0.1, beta3=0.75)
        >>> # a quarter of Adam's step
        >>> tx.update({"w": torch.tensor([4.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-0.0250])

    Source: Ding et al. 2019, arXiv:1910.12249. Departures: none from the authors' code.
    """
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        rates = lr * hat_rate(safe_sqrt(square) + eps, ctx, betas)
        usual = beta3 * state["exp_avg_lr"] + (1 - beta3) * rates
        step = -torch.minimum(rates, usual) * mean
        step = plus_decay(step, weight_decay, param, -lr)
        return step, new | {"exp_avg_lr": usual}

    return {**moments, "exp_avg_lr": square()}, update


# Steps; until then the mean in the authors' code is too noisy to be subtracted.
CENTERED_AFTER = 10


@per_tensor(elementwise=True)
def scale_by_laprop(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-15,
    amsgrad: bool = False,
    centered: bool = False,
):
    r"""Average gradients that are divided by their root mean square: LaProp's direction.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$,
    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$, direction
    $m_t / (1-\beta_1^t)$. Adam averages first, which couples its $\beta_1$ and $\beta_2$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        centered: From t = 11 on, subtract the square of the mean gradient from $v$; amsgrad's maximum starts there.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, with `centered`
        `exp_mean_avg_beta2` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> # only the sign of each gradient counts
        >>> tx = gradtx.scale_by_laprop(betas=(0.5, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, -100.0):  # Adam: 1.0, then -0.6633
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([-0.3333])

    Source: Ziyin et al. 2020, arXiv:2002.04839. Departures: the learning rate is outside the average, as in the
    paper; the authors' code averages steps. $v$ less the squared mean is clamped so that it cannot round below 0.
    """
    beta1, beta2 = betas
    slots = {
        "exp_avg": linear(),
        "exp_avg_sq": square(),
        "exp_mean_avg_beta2": linear() if centered else None,
        "max_exp_avg_sq": square() if amsgrad else None,
    }

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        new = {"exp_avg_sq": square}
        # Without `centered`, the first phase, which collects no maximum, has no steps.
        late = ctx.step > (CENTERED_AFTER if centered else 0)
        if centered:
            mean = new["exp_mean_avg_beta2"] = running_mean(
                state["exp_mean_avg_beta2"], update, beta2
            )
            square = torch.where(late, at_least(square - mean.square(), 0.0), square)
        if amsgrad:
            largest = new["max_exp_avg_sq"] = torch.where(
                late, torch.maximum(state["max_exp_avg_sq"], square), 0.0
            )
            square = torch.where(late, largest, square)
        normalized = update / (corrected_root(square, ctx, beta2) + eps)
        average = new["exp_avg"] = running_mean(state["exp_avg"], normalized, beta1)
        return average / ctx.bias_correction(beta1), new

    return slots, update


@per_tensor(elementwise=True)
def scale_by_ademamix(
    betas: Decays = (0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    eps: NonNegative = 1e-8,
):
    r"""Add a slow average of gradients to Adam's mean: AdEMAMix's direction.

    Adam's $m_t$, $v_t$ and $l_t = \beta_3 l_{t-1} + (1-\beta_3) g_t$, which is not bias-corrected; direction
    $(\hat m_t + \alpha l_t) / (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1). To warm up $\beta_3$, pass `half_life_schedule`.
        alpha: $\alpha \ge 0$, weight of the slow average; to warm it up, pass `ademamix_alpha_schedule`.
        eps: $\epsilon \ge 0$, outside the root.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_slow`, `exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), or if another argument is negative.

    Example:
        >>> tx = gradtx.scale_by_ademamix(betas=(0.0, 0.0, 0.5), alpha=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # the slow average remembers the earlier direction
        >>> for grad in (1.0, 1.0, 1.0, -1.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.5000])
        tensor([1.7500])
        tensor([1.8750])
        tensor([-1.0625])

    Source: Pagliardini et al. 2024, arXiv:2409.03137. Departures: none.
    """
    beta1, beta2, beta3 = betas
    moments, average = adam_moments((beta1, beta2))

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        slow = running_mean(state["exp_avg_slow"], update, beta3)
        root = corrected_root(square, ctx, beta2) + eps
        return (mean / ctx.bias_correction(beta1) + alpha * slow) / root, {
            **new,
            "exp_avg_slow": slow,
        }

    return {**moments, "exp_avg_slow": linear()}, update


@per_tensor(elementwise=True)
def scale_by_simplified_ademamix(
    betas: Decays = (0.99, 0.95),
    alpha: NonNegative = 0.0,
    eps: NonNegative = 1e-8,
    bias_correction1: bool = False,
    bias_correction2: bool = True,
):
    r"""Divide a sum of gradients, with extra weight on the newest, by their root mean square: simplified AdEMAMix.

    $m_t = \beta_1 m_{t-1} + g_t$, $n_t = \beta_1 n_{t-1} + 1$, $v_t$ as in Adam; direction
    $(\alpha g_t + m_t) / (\sqrt{\hat v_t} + \epsilon)$, divided by $n_t$ with `bias_correction1`. Otherwise it grows to
    $1/(1-\beta_1)$ times Adam's.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1). To warm up $\beta_1$, pass `half_life_schedule`.
        alpha: $\alpha \ge 0$, additional weight of the newest gradient.
        eps: $\epsilon \ge 0$, outside the root.
        bias_correction1: Divide by $n_t$, the sum of the weights in $m_t$; this includes the term with $\alpha$.
        bias_correction2: False divides the direction by $\sqrt{1-\beta_2^t}$, which cancels the correction of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter, and
        `num_sum` ($n$), 0-d float64 for each leaf.

    Raises:
        ValueError: If a beta is outside [0, 1), or if another argument is negative.

    Example:
        >>> tx = gradtx.scale_by_simplified_ademamix(betas=(0.5, 0.9), alpha=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, -1.0):  # m is 1, 1.5, -0.25
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([2.])
        tensor([2.5000])
        tensor([-1.2500])

    Source: Morwani et al. 2025, arXiv:2502.02431. Departures: none. pytorch_optimizer 4.1.0 has a different rule, with
    $1-\beta_1$ as a factor of $g_t$ and $v$ corrected twice.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        total = beta1 * state["exp_avg"] + update
        weight = beta1 * state["num_sum"] + 1
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        root = ctx.bias_correction(beta2).sqrt()
        direction = (alpha * update + total) / (safe_sqrt(square) / root + eps)
        if bias_correction1:
            direction = direction / weight
        if not bias_correction2:
            direction = direction / root
        return direction, {"exp_avg": total, "exp_avg_sq": square, "num_sum": weight}

    return {"exp_avg": linear(), "exp_avg_sq": square(), "num_sum": scalar()}, update


@per_tensor(
    needs=lambda arguments: () if is_off(arguments["weight_decay"]) else ("params",)
)
def scale_by_stable_adam(
    betas: Decays = (0.9, 0.99),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
):
    r"""Shorten Adam's direction, including its decay, where gradients outgrow $v$: StableAdamW's direction.

    With Adam's $\hat m_t$, $\hat v_t$ and $r_t = \sqrt{\mathrm{mean}(g_t^2 / \max(\hat v_t, \epsilon^2))}$ over the
    leaf: $(\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda p) / \max(1, r_t)$. This is Adafactor's clipping with
    Adam's squares.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        weight_decay: $\lambda \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if another argument is negative, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.scale_by_stable_adam(betas=(0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, 10.0):  # Adam's last direction is 1.3179
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([1.])
        tensor([1.])

    Source: Wortsman et al. 2023, arXiv:2304.13013. Departures: none from torch-optimi.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        square = square / ctx.bias_correction(beta2)
        direction = mean / ctx.bias_correction(beta1) / (safe_sqrt(square) + eps)
        direction = plus_decay(direction, weight_decay, param)
        ratio = quotient(update.square(), at_least(square, eps * eps), floor=eps * eps)
        excess = safe_sqrt(ratio.sum() / max(update.numel(), 1))
        return direction / at_least(excess, 1.0), new

    return moments, update


def stable_decay(weight_decay, total):
    """Return the decay over the root of a mean over all leaves, from its sums `square` and `count`, or 0 if it is 0."""
    return weight_decay * safe_sqrt(
        quotient(total["count"], total["square"], total["square"] > 0)
    )


@per_tensor(elementwise=True, needs=("params",))
def scale_by_adam_stable_decay(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-4,
    amsgrad: bool = False,
):
    r"""Add to Adam's direction a decay in proportion to the average adaptive rate: AdamS's direction.

    $\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \frac{\lambda}{\sqrt{\bar v_t}} p$ with $\hat m$ and $\hat v$ from
    `scale_by_adam` and $\bar v_t$ the mean of $\hat v_t$ over all entries of all leaves. No decay while $\bar v_t = 0$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient; not used in the decay.
        weight_decay: $\lambda \ge 0$, in the units of a gradient over a weight.
        amsgrad: Use the running maximum of $v$ instead of $v$, in the decay as well.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `eps` or `weight_decay` is negative, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0)
        >>> params = {"a": torch.tensor([2.0]), "b": torch.tensor([2.0])}
        >>> grads = {"a": torch.tensor([0.0]), "b": torch.tensor([10.0])}
        >>> # 2 / sqrt((0 + 100) / 2) each, and Adam's 1
        >>> tx.update(grads, tx.init(params), params)[0]
        {'a': tensor([0.2828]), 'b': tensor([1.2828])}

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: none.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        square = square / ctx.bias_correction(beta2)
        total = yield {"square": square.sum(), "count": square.numel()}
        direction = mean / ctx.bias_correction(beta1) / (safe_sqrt(square) + eps)
        yield direction + stable_decay(weight_decay, total) * param, new

    return moments, update
