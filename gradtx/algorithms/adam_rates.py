"""Adam with rates that are bounded, averaged, smoothed or normalized: AdaBound, AdaMod, SWATS, diffGrad."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.weight_decay import (
    add_decayed_weights,
    initial_lr,
    reference_lr,
    split_decay,
    with_decay,
)
from gradtx.arguments import Decay, NonNegative, Positive, PositiveOrInf, Scalar, is_off
from gradtx.base.exact import exact
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    hat_rate,
    plus_decay,
    quotient,
    rms,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square
from gradtx.transform import chain

__all__ = [
    "adabound",
    "adamod",
    "diffgrad",
    "fadam",
    "padam",
    "scale_by_adabound",
    "scale_by_adamod",
    "scale_by_diffgrad",
    "scale_by_fadam",
    "scale_by_swats",
    "swats",
]


@per_tensor(elementwise=True)
def scale_by_adabound(
    lr,
    final_lr: NonNegative = 0.1,
    betas=(0.9, 0.999),
    eps=1e-8,
    gamma: Positive = 1e-3,
    amsgrad=False,
):
    r"""Clip Adam's rates to a band that narrows to a single rate: from Adam to SGD with momentum.

    With Adam's $m_t$, $v_t$ and $c_i = 1-\beta_i^t$, the direction is $r_t m_t$, where
    $r_t = \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)}$ is clipped to
    $[f (1 - \frac{1}{\gamma t + 1}), f (1 + \frac{1}{\gamma t})]$. $f$ is `final_lr` over the initial learning rate, so
    that after `scale_by_learning_rate` the band surrounds `final_lr` and follows a schedule.

    Args:
        lr: The rate of the `scale_by_learning_rate` that follows. Only its first value is used, or
            if that is 0 the largest so far.
        final_lr: The limit of each weight's rate, >= 0.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        gamma: Speed at which the band narrows, > 0: its width is halved after about $1/\gamma$ steps.
        amsgrad: Use the running maximum of $v$ instead of $v$ (AMSBound).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter; `initial_lr`, 0-d float64 for each leaf.

    Raises:
        ValueError: If an argument is out of range.

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

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        reference, slot = reference_lr(state, lr)
        final, narrowing = quotient(final_lr, reference), gamma * ctx.time
        lowest, highest = final * (1 - 1 / (narrowing + 1)), final * (1 + 1 / narrowing)
        rates = hat_rate(safe_sqrt(square) + eps, ctx, betas).clamp(lowest, highest)
        return rates * mean, {**new, **slot}

    return {**moments, "initial_lr": initial_lr(lr)}, update


@per_tensor(
    elementwise=True,
    needs=lambda arguments: () if is_off(arguments["weight_decay"]) else ("params",),
    owns_lr=True,
)
def scale_by_adamod(
    lr=1e-3,
    betas=(0.9, 0.999),
    beta3: Decay = 0.999,
    eps=1e-8,
    weight_decay=0.0,
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

    def update(g, state, p, ctx):
        m, v, new = average(g, state)
        rates = lr * hat_rate(safe_sqrt(v) + eps, ctx, betas)
        usual = new["exp_avg_lr"] = running_mean(state["exp_avg_lr"], rates, beta3)
        step = -torch.minimum(rates, usual) * m
        return plus_decay(step, weight_decay, p, -lr), new

    return {**moments, "exp_avg_lr": square()}, update


@per_tensor(
    elementwise=True,
    owns_lr=True,
    shared={"count": 0.0, "rate_avg": 0.0, "sgd_rate": 0.0, "switched": 0.0},
    agree=("betas", "eps", "switch_tol"),
)
def scale_by_swats(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-9,
    amsgrad=False,
    switch_tol: NonNegative | None = None,
):
    r"""Step as Adam until the equivalent SGD rate has settled, then as SGD with momentum at that rate: SWATS.

    Adam's phase: $s_t = -\eta_t \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)} m_t$, and with all leaves as one vector
    $\gamma_t = \langle s, s \rangle / -\langle s, g \rangle$,
    $\lambda_t = \beta_2 \lambda_{t-1} + (1-\beta_2) \gamma_t$, $\Lambda_t = \lambda_t / c_2$. Where $t > 1$,
    $\Lambda_t > 0$ and $|\Lambda_t - \gamma_t| <$ `switch_tol`, all following steps are SGD steps, and $\Lambda$ and
    Adam's averages are frozen: $b \leftarrow \beta_1 b + g$ from 0, $u = -(1-\beta_1) \Lambda b$. Where
    $\langle s, g \rangle = 0$, $\lambda$ is unchanged and there is no switch.

    Args:
        lr: $\eta$ in [0, inf), used in Adam's phase only.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        switch_tol: Tolerance >= 0, in the units of a learning rate; None for `eps`, as in the paper.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`], `momentum_buffer`, shaped as the parameter; shared by all leaves, 0-d float64: `count`
        ($t$), `rate_avg` ($\lambda$), `sgd_rate` ($\Lambda$) and `switched` (1.0 in SGD's phase).

    Raises:
        ValueError: If an argument is out of range, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_swats(lr=0.1, betas=(0.5, 0.5), switch_tol=1e-3)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # Adam's steps of 0.1 match SGD's at 0.05 twice: then it switches to SGD
        >>> for grad in (2.0, 2.0, 4.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1000])
        tensor([-0.1000])

    Source: Keskar and Socher 2017, arXiv:1712.07628. Departures: none from the paper. Published implementations,
    including torch_optimizer's and pytorch_optimizer's, compute $\gamma$ leaf by leaf with a relative tolerance.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas, amsgrad)
    tolerance = eps if switch_tol is None else switch_tol

    def update(g, state, p, ctx):
        m, v, new = average(g, state)
        step = -lr * hat_rate(safe_sqrt(v) + eps, ctx, betas) * m
        total = yield {"square": step.square().sum(), "slope": (step * g).sum()}
        # The step count shared by all leaves, because a leaf may have had its first gradient later.
        count, sgd, slope = state["count"] + 1, state["switched"] > 0, total["slope"]
        buffer = beta1 * state["momentum_buffer"] + g
        sgd_phase = {**state, "momentum_buffer": buffer}
        known = slope != 0  # this step has an estimate
        estimate = total["square"] / -torch.where(known, slope, -1.0)
        rate_avg = running_mean(state["rate_avg"], estimate, beta2)
        rate_avg = torch.where(known, rate_avg, state["rate_avg"])
        sgd_rate = rate_avg / ctx.bias_correction(beta2, count)
        sgd_rate = torch.where(known, sgd_rate, state["sgd_rate"])
        has_settled = (sgd_rate - estimate).abs() < tolerance
        adam_phase = {
            **new,
            "momentum_buffer": 0.0,
            "rate_avg": rate_avg,
            "sgd_rate": sgd_rate,
            "switched": known & (count > 1) & (sgd_rate > 0) & has_settled,
        }
        for slot, value in adam_phase.items():
            new[slot] = torch.where(sgd, sgd_phase[slot], value)
        step = torch.where(sgd, -(1 - beta1) * state["sgd_rate"] * buffer, step)
        yield step, {**new, "count": count}

    return {**moments, "momentum_buffer": linear()}, update


@per_tensor(elementwise=True)
def scale_by_diffgrad(betas=(0.9, 0.999), eps=1e-8):
    r"""Damp Adam's direction where the gradient barely changes: diffGrad's direction.

    $\xi_t = 1 / (1 + \exp(-|g_{t-1} - g_t|))$ with $g_0 = 0$, between 0.5 and 1, times the direction of
    `scale_by_adam_hat`, $\frac{m_t}{c_1} \frac{\sqrt{c_2}}{\sqrt{v_t} + \epsilon}$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, added to the root before bias correction, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, `previous_grad`, shaped as the
        parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_diffgrad()
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # a constant gradient: xi is 0.5 at the second step
        >>> for grads in ([1.0, 9.0], [1.0, 9.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        ...     print(updates["w"])
        tensor([0.7311, 0.9999])
        tensor([0.5000, 0.5000])

    Source: Dubey et al. 2019, arXiv:1909.11015. Departures: none.
    """
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        friction = (state["previous_grad"] - update).abs().sigmoid()
        direction = hat_rate(safe_sqrt(square) + eps, ctx, betas) * mean
        return friction * direction, {**new, "previous_grad": update}

    return {**moments, "previous_grad": linear()}, update


@per_tensor(needs="params")
def scale_by_fadam(
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.1,
    clip: PositiveOrInf = 1.0,
    p: NonNegative = 0.5,
    eps2: NonNegative = 0.01,
):
    r"""Average gradients divided by the root of the Fisher information, and decay weights likewise: FAdam.

    $f_t$ is the bias-corrected average of $g^2$ with $\beta_2$;
    $B = f^k + \min(\epsilon, \epsilon_2\, \mathrm{rms}(g))^{2k}$, $u = g / B$ and $w = p / B$, each divided by
    $\max(1, \mathrm{rms} / c)$; $m_t = \beta_1 m_{t-1} + (1-\beta_1) u$, direction $m_t + \lambda w$. Root mean squares
    are over the leaf.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        weight_decay: $\lambda \ge 0$.
        clip: $c > 0$, the largest root mean square of $u$ and of $w$.
        p: $k \ge 0$, exponent of the Fisher information; 0.5 is the root.
        eps2: $\epsilon_2 \ge 0$, relative to the gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum` ($m$), `fim` ($f$), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_fadam(betas=(0.0, 0.9), eps=0.0, weight_decay=0.5)
        >>> # the decay is divided as well: by 1 and by 30
        >>> params = {"w": torch.tensor([1.0, 3.0])}
        >>> tx.update({"w": torch.tensor([1.0, 30.0])}, tx.init(params), params)[0]["w"]
        tensor([1.5000, 1.0500])

    Source: Hwang 2024, arXiv:2405.12807. Departures: none from the public code (lessw2020/FAdam_PyTorch).
    """
    beta1, beta2 = betas

    def clipped(x):
        return x / at_least(rms(x) / clip, 1.0)

    def update(update, state, param, ctx):
        # 1 at t = 1: the stored average is unbiased.
        share = (1 - beta2) / ctx.bias_correction(beta2)
        fisher = (1 - share) * state["fim"] + share * update.square()
        size = rms(update)
        least = exact(eps, update.device)
        floor = torch.where(size == 0, least, torch.minimum(least, eps2 * size))
        base = safe_pow(fisher, p) + safe_pow(floor, 2 * p)
        mean = running_mean(state["momentum"], clipped(quotient(update, base)), beta1)
        return mean + weight_decay * clipped(quotient(param, base)), {
            "momentum": mean,
            "fim": fisher,
        }

    return {"momentum": linear(), "fim": square()}, update


@alias(class_name="AdaBound")
def adabound(
    lr=1e-3,
    betas=(0.9, 0.999),
    final_lr: NonNegative = 0.1,
    gamma: Positive = 1e-3,
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    fixed_decay=False,
    amsgrad=False,
):
    r"""AdaBound, with amsgrad AMSBound: Adam whose rates are clipped ever more tightly to one SGD rate.

    $p \leftarrow p - \mathrm{clip}(\frac{\eta_t \sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)},
    f_t (1 - \frac{1}{\gamma t + 1}), f_t (1 + \frac{1}{\gamma t})) \, m_t$ with Adam's averages, $c_i = 1-\beta_i^t$
    and $f_t$ = `final_lr` times $\eta_t/\eta_1$.

    When to use: Adam's fast start and SGD's final phase in one run, if the final SGD rate is roughly known.

    Args:
        lr: $\eta$, initially in (0, inf): approximately the change of each weight per step at the beginning.
        betas: Decay rates of the two averages, each in [0, 1).
        final_lr: Final SGD rate, >= 0.
        gamma: Speed at which the bounds converge, > 0: they are within a factor of 2 after $1/\gamma$ steps.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        fixed_decay: Use $p (1 - \lambda)$ instead of that; read only if decoupled.
        amsgrad: Use the running maximum of $v$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`] and the 0-d `initial_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adabound(lr=1e-3, final_lr=0.1, gamma=1e6)  # SGD from the start
        >>> # 0.1 (1 - beta1) g
        >>> tx.update({"w": torch.tensor([1.0, -2.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0100,  0.0200])

    Source: Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate" (ICLR). Departures: none.
    The authors' AdaBoundW is decoupled with a fixed decay; pytorch_optimizer's AdaBound is decoupled by default.
    """
    direction = scale_by_adabound(lr, final_lr, betas, eps, gamma, amsgrad)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr, fixed_decay)


@alias(class_name="AdaMod")
def adamod(
    *,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    **options: Annotated[Any, scale_by_adamod],
):
    r"""AdaMod: Adam whose rate for each weight is at most the average of its past values.

    $p \leftarrow p (1 - \eta_t \lambda) - \min(r_t, n_t) m_t$, where $r_t$ is Adam's rate, including $\eta_t$, and
    $n_t$ is its average, started at 0; see `scale_by_adamod`.

    When to use: deep networks in which Adam takes a few extreme steps early on; replaces a warm-up.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step once warmed up.
        betas: Decay rates of the two averages, each in [0, 1).
        beta3: Decay rate of the average rate, in [0, 1); acts as a warm-up of about $1/(1-\beta_3)$ steps.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, applied to the weights.
        decoupled_weight_decay: If False, the decay is added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `exp_avg_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamod(lr=0.1, beta3=0.9)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):  # a constant gradient: the rate warms up
        ...     updates, state = tx.update({"w": torch.tensor([5.0])}, state)
        ...     print(updates["w"])
        tensor([-0.0100])
        tensor([-0.0271])
        tensor([-0.0448])

    Source: Ding et al. 2019, arXiv:1910.12249. Departures: none; pytorch_optimizer's takes $\beta_3$ as a third beta,
    0.9999 by default.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled), scale_by_adamod(weight_decay=decoupled, **options)
    )


@alias(class_name="SWATS")
def swats(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-9,
    weight_decay=0.0,
    amsgrad=False,
    switch_tol: NonNegative | None = None,
):
    r"""SWATS: Adam that switches to SGD with momentum once the equivalent SGD rate has settled.

    See `scale_by_swats`. Adam's phase uses `lr`; the SGD phase estimates its own rate, one for all parameters.

    When to use: to combine Adam's fast start with SGD's generalization, without choosing the time of the switch or
    SGD's rate.

    Args:
        lr: $\eta$ in [0, inf), for Adam's phase; the SGD phase ignores it, including a schedule.
        betas: Decay rates of the two averages, each in [0, 1); the first is also SGD's momentum.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, added to the gradient in both phases.
        amsgrad: Use the running maximum of $v$.
        switch_tol: Tolerance of the test, >= 0, in units of a learning rate; None for `eps`, as in the paper.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, [`max_exp_avg_sq`],
        `momentum_buffer`; shared by all leaves: `count`, `rate_avg`, `sgd_rate`, `switched`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.swats(lr=0.1, switch_tol=1e-3)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # a constant gradient: Adam's steps of 0.1 equal SGD's at a rate of 0.025
        >>> for _ in range(2):
        ...     _, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> state["scale_by_swats"]["sgd_rate"], state["scale_by_swats"]["switched"]
        (tensor(0.0250, dtype=torch.float64), tensor(1., dtype=torch.float64))

    Source: Keskar and Socher 2017, arXiv:1712.07628. Departures: none from the paper, which treats all parameters as
    one vector and has an absolute tolerance; torch_optimizer's and pytorch_optimizer's classes do neither.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_swats(lr, betas, eps, amsgrad, switch_tol),
    )


@alias(class_name="DiffGrad")
def diffgrad(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
):
    r"""diffGrad: Adam that shortens its steps, down to half, where the gradient barely changes.

    $p \leftarrow p - \eta \xi_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$ with
    $\xi_t = 1 / (1 + \exp(-|g_{t-1} - g_t|))$, $g_0 = 0$.

    When to use: when Adam overshoots near the end, where gradients barely change; needs one more float per weight.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient and therefore part of the comparison.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `previous_grad`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.diffgrad(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0500,  0.0982])

    Source: Dubey et al. 2019, arXiv:1909.11015. Departures: none from the authors' code.
    """
    return with_decay(
        scale_by_diffgrad(betas, eps), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="FAdam")
def fadam(lr=1e-3, **direction: Annotated[Any, scale_by_fadam]):
    r"""FAdam: Adam as natural gradient descent, with gradients and decay divided by the root of the Fisher information.

    $p \leftarrow p - \eta (m_t + \lambda w)$, with the average $m$ of $u = g / B$ and $w = p / B$, each clipped to a
    root mean square of $c$; $B$ is the root of the average of $g^2$, enlarged where that is small. See
    `scale_by_fadam`.

    When to use: instead of AdamW, if the decay should be weaker on weights with a large effect on the loss.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$.
        clip: $c > 0$, the largest root mean square of $u$ and of $w$.
        p: $k \ge 0$, the power of the Fisher information; 0.5 is the root.
        eps2: $\epsilon_2 \ge 0$, relative to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum`, `fim`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.fadam(lr=0.1, betas=(0.0, 0.9), weight_decay=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Hwang 2024, arXiv:2405.12807. Departures: see `scale_by_fadam`. (pytorch_optimizer spells `eps2` as
    `eps_2`.)
    """
    return chain(scale_by_fadam(**direction), scale_by_learning_rate(lr))


@alias(class_name="PAdam")
def padam(
    lr=0.1,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    partial: Annotated[Scalar, "[0, 0.5]; off at 0.5"] = 0.25,
    amsgrad=True,
    decoupled_weight_decay=False,
):
    r"""Padam: Adam that divides by a power of the root mean square, between Adam and SGD with momentum.

    $p \leftarrow p - \eta \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)^{2q}$, where $v$ is its running
    maximum.

    When to use: image classifiers that Adam trains quickly and SGD trains well; the paper reports SGD's accuracy at
    most of Adam's speed. Choose a learning rate as for SGD.

    Args:
        lr: $\eta$ in [0, inf), larger than Adam's; the smaller `partial`, the larger.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        partial: $q$ in [0, 0.5]: 0.5 is Adam, 0 is SGD with momentum.
        amsgrad: Use the running maximum of $v$.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.padam(lr=1.0, betas=(0.0, 0.0))  # g / sqrt(|g|)
        >>> tx.update({"w": torch.tensor([0.25, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.5000,  2.0000])

    Source: Chen et al. 2018, arXiv:1806.06763. Departures: none from the authors' code. pytorch_optimizer's PAdam has
    no amsgrad.
    """
    direction = scale_by_adam_hat(betas, eps, amsgrad, partial=partial)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)
