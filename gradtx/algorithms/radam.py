"""Rectified Adam: RAdam, AdaBelief; Ranger, which adds lookahead, and Ranger21."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.adam_stable import stable_decay
from gradtx.algorithms.averaging import lookahead
from gradtx.algorithms.clipping import clip_adaptive
from gradtx.algorithms.momentum import positive_negative
from gradtx.algorithms.projection import centralize, normalize_by_std
from gradtx.algorithms.weight_decay import with_decay
from gradtx.arguments import (
    AtLeastFour,
    Count,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
)
from gradtx.maths.entries import (
    adam_moments,
    corrected_root,
    peak,
    quotient,
    rectification,
    running_mean,
    safe_sqrt,
    softplus,
    unit_norm,
)
from gradtx.rules import alias, per_tensor
from gradtx.schedules import ranger21_schedule
from gradtx.slots import square
from gradtx.transform import chain

__all__ = [
    "adabelief",
    "hold_until_rectified",
    "radam",
    "ranger",
    "ranger21",
    "scale_by_belief",
    "scale_by_radam",
    "scale_by_ranger21",
    "scale_by_rectified_rms",
]


@per_tensor(needs="params", owns_lr=True)
def scale_by_ranger21(
    lr,
    beta0: Fraction = 0.9,
    betas=(0.9, 0.999),
    eps=1e-8,
    use_softplus=True,
    beta_softplus: Positive = 50.0,
    weight_decay=1e-4,
    norm_loss_factor: NonNegative = 1e-4,
    amsgrad=True,
):
    r"""Step along positive-negative momentum over a smoothed denominator, after two decays: Ranger21's update.

    With $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$ and $c_i = 1 - \beta_i^t$: first stable decay,
    $q = p (1 - \eta \lambda / \ell)$, where $\ell^2$ is the mean of $v_t / c_2$ over all entries of all leaves (no
    decay while it is 0); then the norm loss, $r = q (1 - 2 \eta \kappa (1 - 1 / (\lVert q_i \rVert + \epsilon)))$ for
    each output unit; then $p \leftarrow r - \frac{\eta}{c_1} n_t / D_t$. $n_t$ is the direction of `scale_by_pnm` for
    $(\beta_1, \beta_0)$; $D_t$ is $\sqrt{v_t / c_2} + \epsilon$ or its softplus.

    Args:
        lr: $\eta$ in [0, inf). The stage owns it: its update is the full step.
        beta0: $\beta_0$ in [0, 1], the weight of the negative momentum.
        betas: $(\beta_1, \beta_2)$, each in [0, 1): decay of the momenta per step, and of $v$.
        eps: $\epsilon \ge 0$; use a positive value.
        use_softplus: Whether to keep the denominator away from 0 smoothly.
        beta_softplus: $b > 0$: the denominator is $\log(1 + \exp(b D)) / b$.
        weight_decay: $\lambda \ge 0$, in the units of a gradient over a weight.
        norm_loss_factor: $\kappa \ge 0$.
        amsgrad: Use the running maximum of $v$ in $D_t$.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_ma`, which the next step updates, and
        `neg_grad_ma`, swapped at every step, `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_ranger21(
        ...     lr=0.1, beta0=0.0, use_softplus=False, weight_decay=1.0, norm_loss_factor=0.5
        ... )
        >>> params = {"w": torch.tensor([2.0, 0.0])}
        >>> state = tx.init(params)
        >>> # a tenth of the way from norm 2 to 1
        >>> tx.update({"w": torch.zeros(2)}, state, params)[0]["w"] + params["w"]
        tensor([1.9000, 0.0000])

    Source: Wright and Demeure 2021, arXiv:2106.13731. Departures from the authors' code: the decay uses all leaves,
    the mean of $v$ starts at 0, the maximum is stored, and `beta0` is the weight of the noise (theirs is 1).
    """
    beta1, beta2 = betas
    momenta, average = positive_negative("grad_ma", "neg_grad_ma", beta1, beta0)

    def update(g, state, p, ctx):
        correction = ctx.bias_correction(beta2)
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        total = yield {"square": v.sum() / correction, "count": v.numel()}
        # p becomes p (1 - a) (1 - b); computed as a sum, because 1 - a would round to 1 in half precision.
        stable = stable_decay(lr * weight_decay, total)
        size = unit_norm((1 - stable) * p)
        pull = 2 * lr * norm_loss_factor * (1 - 1 / (size + eps))
        decay = stable + pull - stable * pull
        direction, new = average(g, state)
        new["exp_avg_sq"] = v
        root = safe_sqrt(peak(new, state, "exp_avg_sq", amsgrad) / correction) + eps
        if use_softplus:
            root = softplus(root, beta_softplus)
        yield -(lr / ctx.bias_correction(beta1)) * direction / root - decay * p, new

    slots = {
        **momenta,
        "exp_avg_sq": square(),
        "max_exp_avg_sq": square() if amsgrad else None,
    }
    return slots, update


@alias
def ranger(
    lr=1e-3,
    betas=(0.95, 0.999),
    eps=1e-5,
    weight_decay=0.0,
    alpha: Fraction = 0.5,
    k: Count = 6,
    n_sma_threshold: AtLeastFour = 5.0,
    use_gc=True,
    gc_conv_only=False,
):
    r"""Ranger: RAdam on centralized gradients, with lookahead.

    $p \leftarrow p (1 - \eta \lambda) - \eta d_t$ with $d_t$ the direction of `scale_by_radam` ($\hat m_t$ in the first
    steps), and at every k-th step the weights are reset to $s \leftarrow s + \alpha (p - s)$.

    When to use: vision models with little time for tuning: no warm-up, and steadier steps through lookahead.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added to the square root before its bias correction.
        weight_decay: $\lambda \ge 0$, decoupled.
        alpha: $\alpha$ in [0, 1], how far the slow weights follow.
        k: Number of steps between synchronizations, >= 1.
        n_sma_threshold: Threshold of $\rho_t$ for a rectified step, >= 4.
        use_gc: Centralize gradients.
        gc_conv_only: Centralize only leaves with at least 4 dimensions.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `slow`;
        `eval_params` returns `slow`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.ranger(lr=1.0, k=2)
        >>> params = {"w": torch.zeros(1)}
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([-1.])
        tensor([-1.])

    Source: Wright's Ranger 20.4.11, after Liu et al. 2019, arXiv:1908.03265, Zhang et al. 2019, arXiv:1907.08610 and
    Yong et al. 2020, arXiv:2004.01461. Departures from that code: `use_gc=False` is respected.
    """
    return chain(
        centralize(gc_conv_only) if use_gc else chain(),
        with_decay(scale_by_radam(betas, eps, n_sma_threshold), weight_decay, True, lr),
        lookahead(k, alpha),
    )


@alias
def ranger21(
    num_iterations: Count,
    lr=1e-3,
    beta0: Fraction = 0.9,
    betas=(0.9, 0.999),
    eps=1e-8,
    use_softplus=True,
    beta_softplus: Positive = 50.0,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-5,
    agc_clipping_value: Positive = 1e-2,
    agc_eps: NonNegative = 1e-3,
    centralize_gradients=True,
    normalize_gradients=True,
    lookahead_merge_time: Count = 5,
    lookahead_blending_alpha: Fraction = 0.5,
    *,
    chebyshev_epochs: Annotated[int, "[3, inf)"] | None = None,
    **options: Annotated[Any, scale_by_ranger21],
):
    r"""Ranger21: eight ideas in one chain, from adaptive clipping to lookahead, with its own learning rate schedule.

    Gradients are clipped by `clip_adaptive`, centralized, and normalized by `normalize_by_std`; `scale_by_ranger21`
    computes the step at the rate of `ranger21_schedule`; `lookahead` averages.

    When to use: vision models with the length of training known in advance: warm-up and cool-down are built in.

    Args:
        num_iterations: Total number of updates, >= 1; the rate depends on it.
        lr: Peak rate, in [0, inf).
        beta0: Weight of the negative momentum, in [0, 1]; the authors' code uses 1.
        betas: Decay rates of the momenta and of the squares, each in [0, 1).
        eps: $\epsilon \ge 0$; should be above 0.
        use_softplus: Smooth the denominator with a softplus.
        beta_softplus: Sharpness of the softplus, > 0.
        num_warm_up_iterations: Number of updates of the linear rise, >= 0; None: about $2/(1-\beta_2)$, or 22 % of all.
        num_warm_down_iterations: Number of updates of the linear fall at the end, >= 0; None: 28 % of all.
        warm_down_min_lr: Final rate of the fall, >= 0.
        agc_clipping_value: Largest norm of a unit's gradient, relative to its weights, > 0.
        agc_eps: Lower bound of the norm of the weights in that comparison, >= 0.
        centralize_gradients: Subtract the mean of every output unit's gradient.
        normalize_gradients: Divide every leaf's gradient by its standard deviation.
        lookahead_merge_time: Number of steps between synchronizations of lookahead, >= 1.
        lookahead_blending_alpha: How far the slow weights follow, in [0, 1].
        weight_decay: Stable decay, >= 0.
        norm_loss_factor: Strength of the pull of every unit's norm toward 1, >= 0.
        amsgrad: Use the running maximum of the average of squares.
        chebyshev_epochs: Number of epochs, >= 3, for Chebyshev factors between the rise and the fall; None for a
            constant rate there.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_ma`, `neg_grad_ma`, `exp_avg_sq`,
        [`max_exp_avg_sq`], `slow`; `eval_params` returns `slow`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.ranger21(
        ...     num_iterations=100, lr=1.0, num_warm_up_iterations=10, weight_decay=0.0
        ... )
        >>> params = {"w": torch.ones(1)}
        >>> state, grads = tx.init(params), {"w": torch.ones(1)}
        >>> for _ in range(2):  # 0.1 and 0.2 of the rate
        ...     updates, state = tx.update(grads, state, params)
        ...     print(round(updates["w"].item(), 3))
        -0.088
        -0.049

    Source: Wright and Demeure 2021, arXiv:2106.13731. Departures: those of `scale_by_ranger21`; gradients are
    centralized and normalized once (the authors' code does it twice).
    """
    rate = ranger21_schedule(
        lr,
        num_iterations,
        betas[1],
        num_warm_up_iterations=num_warm_up_iterations,
        num_warm_down_iterations=num_warm_down_iterations,
        warm_down_min_lr=warm_down_min_lr,
        chebyshev_epochs=chebyshev_epochs,
    )
    return chain(
        clip_adaptive(agc_clipping_value, agc_eps),
        centralize() if centralize_gradients else chain(),
        normalize_by_std() if normalize_gradients else chain(),
        scale_by_ranger21(
            rate,
            beta0,
            betas,
            eps,
            use_softplus=use_softplus,
            beta_softplus=beta_softplus,
            **options,
        ),
        lookahead(lookahead_merge_time, lookahead_blending_alpha),
    )


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

    def update(g, state, p, ctx):
        m, v, new = average(g, state)
        direction = _rectified(m, v, ctx, betas, eps, rho_threshold, degenerated_to_sgd)
        return direction, new

    return moments, update


@per_tensor(elementwise=True)
def scale_by_belief(
    betas=(0.9, 0.999),
    eps=1e-16,
    amsgrad=False,
    rectify=True,
    degenerated_to_sgd=True,
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
    moments, average = adam_moments(betas, amsgrad, belief_eps=eps)

    def update(g, state, p, ctx):
        m, v, new = average(g, state)
        if rectify:
            return _rectified(m, v, ctx, betas, eps, 5.0, degenerated_to_sgd), new
        root = corrected_root(v, ctx, beta2)
        return m / ctx.bias_correction(beta1) / (root + eps), new

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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

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


@alias(class_name="AdaBelief")
def adabelief(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-16,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    fixed_decay=False,
    rectify=True,
    degenerated_to_sgd=True,
    amsgrad=False,
):
    r"""AdaBelief: Adam that divides by the deviation of gradients from their mean.

    $p \leftarrow p - \eta r_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{s_t} + \epsilon)$, with $s$ and $r_t$ of
    `scale_by_belief`.

    When to use: networks on which Adam is fast but SGD generalizes better, and training of GANs; eps matters more than
    in Adam.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step, more where gradients agree.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added to $s$, where it accumulates, and to its square root.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$; if False, add it to the
            gradient.
        fixed_decay: Use $p (1 - \lambda)$, without the learning rate; read only if decoupled.
        rectify: Rectify the variance of the first steps where $\rho_t > 5$, as `radam` does.
        degenerated_to_sgd: Move by $\eta \hat m_t$ before that; if False, only the decay acts.
        amsgrad: Use the running maximum of $s$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_var`,
        [`max_exp_avg_var`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adabelief(lr=0.1, rectify=False)  # in the first step, g - m is 0.9 g
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1111,  0.1111])

    Source: Zhuang et al. 2020, arXiv:2010.07468. Departures: amsgrad also acts when rectifying; adabelief-pytorch 0.2
    ignores it there. pytorch_optimizer's AdaBelief does not rectify by default.
    """
    direction = scale_by_belief(betas, eps, amsgrad, rectify, degenerated_to_sgd)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr, fixed_decay)


@per_tensor(elementwise=True)
def scale_by_rectified_rms(beta2: Decay = 0.999, eps=1e-8):
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

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        _, rectified = rectification(ctx, beta2, 4.0)
        root = torch.where(rectified, corrected_root(v, ctx, beta2) + eps, 1.0)
        return quotient(g, root, floor=eps), {"exp_avg_sq": v}

    return {"exp_avg_sq": square()}, update


@per_tensor(elementwise=True)
def hold_until_rectified(beta2: Decay = 0.999, rho_threshold: AtLeastFour = 5.0):
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
