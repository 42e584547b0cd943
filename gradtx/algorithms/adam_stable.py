"""Adam with steadier steps: StableAdamW, AdamS, Yogi, AdaNorm, SAdam; against spikes: SPAM, Stable-SPAM, AdaGC."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.algorithms.adam import scale_by_adam, scale_by_adam_hat
from gradtx.algorithms.clipping import (
    clip_to_history,
    clip_to_peak_history,
    normalize_by_norm_history,
)
from gradtx.algorithms.scaling import scale, scale_by_learning_rate
from gradtx.algorithms.weight_decay import with_decay
from gradtx.arguments import (
    Count,
    Decay,
    Decays,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Scalar,
    is_off,
)
from gradtx.base.exact import Schedule
from gradtx.combinators.clocks import restart
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    corrected_root,
    hat_rate,
    norm,
    peak,
    plus_decay,
    quotient,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.schedules.warmup import restart_warmup_schedule, warmup_cosine_schedule
from gradtx.slots import filled, linear, scalar, square
from gradtx.transform import chain

__all__ = [
    "adagc",
    "adams",
    "adanorm",
    "clip_spikes",
    "sadam",
    "scale_by_adam_stable_decay",
    "scale_by_adanorm",
    "scale_by_spam",
    "scale_by_stable_adam",
    "scale_by_yogi",
    "spam",
    "stable_adamw",
    "stable_spam",
    "yogi",
]


@per_tensor(
    needs=lambda arguments: () if is_off(arguments["weight_decay"]) else ("params",)
)
def scale_by_stable_adam(
    betas=(0.9, 0.99),
    eps=1e-8,
    weight_decay=0.0,
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


@alias(class_name="StableAdamW")
def stable_adamw(
    lr=1e-3,
    betas=(0.9, 0.99),
    eps=1e-8,
    weight_decay=1e-2,
):
    r"""StableAdamW: AdamW with shorter steps where its second moment lags behind the gradient.

    $p \leftarrow p - \frac{\eta}{\max(1, r)} (\hat m / (\sqrt{\hat v} + \epsilon) + \lambda p)$ with
    $r = \sqrt{\mathrm{mean}(g^2 / \max(\hat v, \epsilon^2))}$ of each leaf.

    When to use: AdamW whose loss spikes, without gradient clipping; the paper reports no spikes in CLIP training.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the shortened rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.stable_adamw(lr=0.1, betas=(0.0, 0.99), weight_decay=0.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, 100.0):  # Adam's last step would be -0.1723
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([-0.1000])

    Source: Wortsman et al. 2023, arXiv:2304.13013. Departures: none from torch-optimi, whose default eps is 1e-6.
    """
    return chain(
        scale_by_stable_adam(betas, eps, weight_decay), scale_by_learning_rate(lr)
    )


@per_tensor(elementwise=True)
def scale_by_yogi(
    betas=(0.9, 0.999),
    eps=1e-3,
    initial_accumulator_value: NonNegative = 1e-6,
):
    r"""Divide the mean gradient by a root mean square whose change is bounded by the new square: Yogi's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$,
    $v_t = v_{t-1} - (1-\beta_2) \mathrm{sign}(v_{t-1} - g_t^2) g_t^2$, and with $c_i = 1-\beta_i^t$ the direction
    $\frac{m_t}{c_1} \frac{\sqrt{c_2}}{\sqrt{v_t} + \epsilon}$. When gradients become small, $v$ decreases much more
    slowly than in Adam.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        initial_accumulator_value: $v_0 \ge 0$; $m_0$ is 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), or if `eps` or `initial_accumulator_value` is negative.

    Example:
        >>> tx = gradtx.scale_by_yogi(betas=(0.9, 0.5), initial_accumulator_value=1.0)
        >>> state = tx.init({"w": torch.zeros(4)})
        >>> _, state = tx.update({"w": torch.tensor([0.0, 0.1, 1.0, 2.0])}, state)
        >>> state["scale_by_yogi"]["exp_avg_sq"]["w"]  # Adam's would be 0.5, 0.505, 1.0, 2.5
        tensor([1.0000, 0.9950, 1.0000, 3.0000])

    Source: Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", NeurIPS. Departures: the correction and
    the initial $v$ follow the authors' code; torch_optimizer and pytorch_optimizer also initialize $m$ to 1e-6 and
    add eps after the correction.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        m = running_mean(state["exp_avg"], g, beta1)
        v, square = state["exp_avg_sq"], g.square()
        v = v - (1 - beta2) * (v - square).sign() * square
        new = {"exp_avg": m, "exp_avg_sq": v}
        return hat_rate(safe_sqrt(v) + eps, ctx, betas) * m, new

    return {
        "exp_avg": linear(),
        "exp_avg_sq": square(filled(initial_accumulator_value)),
    }, update


@alias
def yogi(
    lr=1e-2,
    *,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **direction: Annotated[Any, scale_by_yogi],
):
    r"""Yogi: Adam whose mean square changes by at most the new squared gradient.

    $v_t = v_{t-1} - (1-\beta_2) \mathrm{sign}(v_{t-1} - g_t^2) g_t^2$,
    $p \leftarrow p - \eta \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$.

    When to use: sparse gradients, or gradients that suddenly become small, after which Adam's rates jump up.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the mean and of the mean square, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        initial_accumulator_value: $v_0 \ge 0$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> for tx in (
        ...     gradtx.adam(lr=0.1, betas=(0.0, 0.99)),
        ...     gradtx.yogi(lr=0.1, betas=(0.0, 0.99)),
        ... ):
        ...     state = tx.init({"w": torch.zeros(1)})
        ...     # one large gradient, which Adam forgets by the end
        ...     for grad in [10.0, *200 * [0.1]]:
        ...         updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.0247])
        tensor([-0.0094])

    Source: Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", NeurIPS. Departures: bias correction as
    in the authors' code. torch_optimizer's and pytorch_optimizer's Yogi also start the mean at 1e-6 and add eps after
    the correction, which with this eps makes a difference of 1 %.
    """
    return with_decay(
        scale_by_yogi(**direction), weight_decay, decoupled_weight_decay, lr
    )


def stable_decay(weight_decay, total):
    """Return the decay over the root of a mean over all leaves, from its sums `square` and `count`, or 0 if it is 0."""
    return weight_decay * safe_sqrt(
        quotient(total["count"], total["square"], total["square"] > 0)
    )


@per_tensor(elementwise=True, needs="params")
def scale_by_adam_stable_decay(
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-4,
    amsgrad=False,
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


@alias(class_name="AdamS")
def adams(lr=1e-3, **options: Annotated[Any, scale_by_adam_stable_decay]):
    r"""AdamS: Adam with a decoupled decay scaled like its average adaptive rate (stable weight decay).

    $p \leftarrow p (1 - \eta \lambda / \sqrt{\bar v_t}) - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$, with
    $\bar v_t$ the mean of $\hat v_t$ over all entries of all leaves.

    When to use: Adam with weight decay, if one value of the decay should fit a range of learning rates and gradient
    sizes.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root; not part of the decay.
        weight_decay: $\lambda \ge 0$, as for SGD: in units of the gradient divided by the weight.
        amsgrad: Use the running maximum of $v$, in the decay as well.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.adams(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([4.0, 4.0])}
        >>> tx.update({"w": torch.tensor([0.0, 1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.5657, -0.6657])

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: no decay as long as all gradients are zero, where the
    authors' code divides by 0. pytorch_optimizer's AdamS adds eps to $\sqrt{\bar v_t}$.
    """
    return chain(scale_by_adam_stable_decay(**options), scale_by_learning_rate(lr))


@per_tensor(takes_complex=True)
def scale_by_adanorm(
    betas=(0.9, 0.999),
    eps=1e-8,
    r: Decay = 0.95,
    amsgrad=False,
    accumulate_eps=False,
):
    r"""Lengthen gradients that are shorter than usual to their usual norm before Adam averages them: AdaNorm.

    For each leaf, $e_t = r e_{t-1} + (1-r) \lVert g_t \rVert$ from 0 and without bias correction,
    $s_t = g_t \max(1, e_t / \lVert g_t \rVert)$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) s_t$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$ with the original gradient, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$. A zero gradient remains 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        r: Decay of the average norm, in [0, 1).
        amsgrad: Use the running maximum of $v$ instead of $v$.
        accumulate_eps: Also add $\epsilon$ to the stored $v$ at every step, as in the authors' code.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter; `exp_grad_norm`, 0-d float64 for each leaf.

    Raises:
        ValueError: If a beta or `r` is outside [0, 1), or if `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_adanorm(betas=(0.0, 0.5), r=0.5)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # e = 2, then 1.5: the second gradient is lengthened by half
        >>> for size in (4.0, 1.0):
        ...     _, state = tx.update({"w": torch.tensor([0.6, 0.8]) * size}, state)
        ...     print(state["scale_by_adanorm"]["exp_avg"]["w"])
        tensor([2.4000, 3.2000])
        tensor([0.9000, 1.2000])

    Source: Dubey et al. 2022, arXiv:2210.06364. Departures: none from the paper.
    """
    beta1, beta2 = betas
    moments, _ = adam_moments(betas, amsgrad)

    def update(g, state, p, ctx):
        length = norm(g)
        usual = running_mean(state["exp_grad_norm"], length, r)
        short = (length < usual) & (length > 0)
        lifted = quotient(usual, length, short, 1.0) * g
        m = running_mean(state["exp_avg"], lifted, beta1)
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        if accumulate_eps:
            v = v + eps
        new = {"exp_avg": m, "exp_avg_sq": v, "exp_grad_norm": usual}
        root = corrected_root(peak(new, state, "exp_avg_sq", amsgrad), ctx, beta2)
        return m / ctx.bias_correction(beta1) / (root + eps), new

    return {**moments, "exp_avg": linear(), "exp_grad_norm": scalar()}, update


@alias(class_name="AdaNorm")
def adanorm(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    r: Decay = 0.95,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    accumulate_eps=False,
    amsgrad=False,
):
    r"""AdamNorm: Adam that lengthens gradients shorter than usual before its first average.

    $p \leftarrow p - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$, where $m$ averages
    $g_t \max(1, e_t / \lVert g_t \rVert)$ with $e$ the average norm of the leaf's gradients, and $v$ averages $g_t^2$.

    When to use: convolutional networks whose gradients vanish for many steps in a row, so that Adam's average fades
    away.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        r: Decay rate of the average norm, in [0, 1).
        weight_decay: $\lambda \ge 0$, added to the gradient and therefore part of its norm.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        accumulate_eps: Also add $\epsilon$ to the stored $v$ at every step, as the authors' code does.
        amsgrad: Use the running maximum of $v$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`] and the 0-d `exp_grad_norm`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adanorm(lr=0.1, betas=(0.0, 0.0), r=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 1.0):  # the second is lengthened to (2 + 1) / 2
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1500])

    Source: Dubey et al. 2022, arXiv:2210.06364. Departures: none from the paper. pytorch_optimizer's class always
    accumulates eps, and also divides it by the bias correction of $v$.
    """
    return with_decay(
        scale_by_adanorm(betas, eps, r, amsgrad, accumulate_eps),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )


@alias
def sadam(
    lr=0.1,
    betas=(0.9, 0.999),
    beta_softplus: Positive = 50.0,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    amsgrad=False,
):
    r"""Sadam: Adam that divides by a softplus of the root mean square and needs no eps; with amsgrad, SAMSGrad.

    $p \leftarrow p - \eta \hat m_t \sqrt{1-\beta_2^t} / s(\sqrt{v_t})$, $s(x) = \log(1 + \exp(b x)) / b$.

    When to use: when the choice of eps decides whether Adam works; the softplus bounds small denominators smoothly.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the two averages, each in [0, 1).
        beta_softplus: $b > 0$. The divisor is at least $\log(2)/b$: a large $b$ approaches Adam, a small one SGD with
            momentum. Where $b x > 20$, $s(x) = x$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        amsgrad: Use the running maximum of $v$; the authors' class does so by default.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sadam(lr=0.1)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1e-3, -400.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> updates["w"]
        tensor([-0.0002,  0.1000])

    Source: Tong et al. 2019, arXiv:1908.00700. Departures: none from the authors' code.
    """
    direction = scale_by_adam_hat(betas, amsgrad=amsgrad, softplus=beta_softplus)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)


def _cut(g: Tensor, v: Tensor, ctx, threshold, clip_after: int, every: int):
    """Clip entries whose square exceeds the threshold times its average, except shortly after a restart."""
    due = (ctx.step >= clip_after) & (ctx.step % every >= clip_after)
    limit = threshold * v
    return torch.where(due & (g.square() > limit), g.sign() * safe_sqrt(limit), g)


@per_tensor(elementwise=True)
def clip_spikes(
    threshold: Positive = 5000.0,
    beta2: Decay = 0.999,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
):
    r"""Clip entries whose square is many times its average: SPAM's clipping.

    With $v$ the average of squares before this step, from 0 and without bias correction: where $g^2 > \theta v$, $g$
    becomes $\mathrm{sign}(g) \sqrt{\theta v}$, if $t \ge c$ and $t \bmod N \ge c$. Then
    $v \leftarrow \beta_2 v + (1-\beta_2) g^2$ with the clipped $g$. Use it inside `restart` with the same period, which
    resets $v$ to 0. Before Adam, use `scale_by_spam` instead, which shares one $v$.

    Args:
        threshold: $\theta > 0$.
        beta2: $\beta_2$ in [0, 1).
        clip_after: $c \ge 0$, number of steps after a restart without clipping. Use at least 2: where $v$ is still 0,
            the gradient is clipped to 0, as are all later ones.
        every: $N \ge 1$, the number of steps between restarts.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.clip_spikes(threshold=4.0, beta2=0.75, clip_after=2)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([2.0, 2.0], [1.0, -9.0]):  # v is 1, so entries are clipped to 2
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([2., 2.])
        tensor([ 1., -2.])

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: none.
    """

    def update(g, state, p, ctx):
        v = state["exp_avg_sq"]
        g = _cut(g, v, ctx, threshold, clip_after, every)
        return g, {"exp_avg_sq": running_mean(v, g.square(), beta2)}

    return {"exp_avg_sq": square()}, update


@per_tensor(elementwise=True)
def scale_by_spam(
    betas=(0.9, 0.999),
    eps=1e-6,
    threshold: Positive = 5000.0,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
):
    r"""Clip spikes using Adam's own average of squares: SPAM's direction.

    Equivalent to `clip_spikes` with the same $\beta_2$ before `scale_by_adam_hat`, with one $v$ for both.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root and before its bias correction, in the units of a gradient.
        threshold: $\theta > 0$: entries with $g^2 > \theta v$ are clipped.
        clip_after: $c \ge 0$, number of steps after a restart without clipping. Use at least 2: where $v$ is still 0,
            the gradient is clipped to 0, as are all later ones.
        every: $N \ge 1$, the number of steps between restarts.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_spam(betas=(0.0, 0.75), threshold=4.0, clip_after=2)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([2.0, 2.0], [1.0, -9.0]):  # -9 is clipped to -2
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([1.0000, 1.0000])
        tensor([ 0.6614, -1.0000])

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: none.
    """
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        g = _cut(g, state["exp_avg_sq"], ctx, threshold, clip_after, every)
        m, v, new = average(g, state)
        return hat_rate(safe_sqrt(v) + eps, ctx, betas) * m, new

    return {**moments, "exp_avg": linear()}, update


@alias(class_name="SPAM")
def spam(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
    threshold: Positive = 5000.0,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
    warmup_steps: NonNegativeInt = 150,
):
    r"""SPAM: AdamW that clips spikes of the gradient and resets its averages periodically.

    `scale_by_spam` in `restart`, whose clock keeps running, and after each restart a warm-up that does not affect the
    decay (`restart_warmup_schedule`).

    When to use: language models whose loss spikes; the paper reports lower losses than AdamW's, in low precision as
    well.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        threshold: $\theta > 0$: entries with $g^2 > \theta v$ are clipped.
        clip_after: Number of steps at the start, and after a restart, without clipping, >= 0; below 2, gradients are
            clipped to 0 indefinitely.
        every: Number of steps between restarts, >= 1.
        warmup_steps: Number of warm-up steps after a restart, >= 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.spam(lr=0.1, every=3, warmup_steps=2)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # at the third step the averages start again, at a hundredth of the rate
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1000])
        tensor([-0.0006])
        tensor([-0.0201])

    Source: Huang et al. 2025, arXiv:2501.06842. Departures: the decay is subtracted from the weights before the step;
    all entries are trained (no `density`). pytorch_optimizer's warm-up is one step ahead, and wrong from the second
    restart on.
    """
    direction = restart(
        scale_by_spam(betas, eps, threshold, clip_after, every), every, keep_clock=True
    )
    warmup = scale(restart_warmup_schedule(1.0, every, warmup_steps))
    return with_decay(chain(direction, warmup), weight_decay, True, lr)


@per_tensor
def stable_spam_direction(
    beta1: Decay,
    gamma1: Decay,
    beta2: Decay,
    gamma2: Scalar,
    eps,
    theta: Scalar,
    every: Count,
):
    """Chain Stable-SPAM's links, with `beta1` and `gamma1` of the step of the whole run, even inside the restart."""
    return chain(
        clip_to_peak_history(theta),
        normalize_by_norm_history((gamma1, gamma2), eps),
        restart(scale_by_adam((beta1, beta2), eps), every),
    )


@alias(class_name="StableSPAM")
def stable_spam(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    gammas: Decays = (0.7, 0.9),
    theta: Decay = 0.999,
    every: Count = 1000,
    total_steps: Count | None = None,
    eta_min: Fraction = 0.5,
):
    r"""Stable-SPAM: AdamW on gradients bounded by their history, restarted periodically.

    `clip_to_peak_history`, `normalize_by_norm_history`, then Adam in `restart`, with its own clock; the decay is
    decoupled.

    When to use: training in 4 or 8 bits, where single entries and whole norms of gradients spike; the paper reports the
    results of AdamW in 16 bits.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of Adam's two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, and in the normalization.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        gammas: Decay rates of the averages of norms and of their squares, each in [0, 1).
        theta: Decay rate of the average of the largest entry, in [0, 1).
        every: Number of steps between restarts of Adam, >= 1.
        total_steps: $T \ge 1$: $\beta_1$ and $\gamma_1$ fall as half a cosine, to `eta_min` times their values at
            $t = T + 1$. None keeps them constant.
        eta_min: Final fraction of these values, in [0, 1]; read only with `total_steps`.

    Returns:
        A transformation whose updates are added to the parameters. State: per leaf, `max_avg`, `norm_avg` and
        `norm_sq_avg`, 0-d; `exp_avg`, `exp_avg_sq` with their own `step` and `leaf_steps`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.stable_spam(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1000.0):  # Adam's second step would be -0.0745
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.0989])

    Source: Huang et al. 2025, arXiv:2502.17055. Departures: averages of norms keep the step count of the whole run, and
    at a restart Adam steps with new averages, as in pytorch_optimizer; the authors' code does neither. The cosine is
    that of the paper; pytorch_optimizer's is one step ahead.
    """
    (beta1, beta2), (gamma1, gamma2) = betas, gammas
    if total_steps is not None:
        share = warmup_cosine_schedule(total_steps + 1, 1.0, eta_min)
        beta1, gamma1 = _times(beta1, share), _times(gamma1, share)
    direction = stable_spam_direction(beta1, gamma1, beta2, gamma2, eps, theta, every)
    return with_decay(direction, weight_decay, True, lr)


def _times(number: Scalar, share: Schedule) -> Schedule:
    """Return `number` times a schedule that counts steps from 1."""
    return Schedule(lambda step: number * share(step + 1))


@alias(class_name="AdaGC")
def adagc(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    beta: Decay = 0.98,
    lambda_abs: Positive = 1.0,
    lambda_rel: Positive = 1.05,
    warmup_steps: NonNegativeInt = 100,
):
    r"""AdaGC: AdamW on gradients whose norms are bounded by their history, leaf by leaf.

    AdamW after `clip_to_history`.

    When to use: language models whose loss spikes although the global norm is clipped; the paper reports no spikes.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of AdamW's two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, and in the clipping.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        beta: Decay rate of the average norm, in [0, 1).
        lambda_abs: Bound of the norm over all leaves during the warm-up, > 0.
        lambda_rel: Bound of a leaf's norm relative to its average, > 0.
        warmup_steps: Before this step, >= 0, the bound is absolute.

    Returns:
        A transformation whose updates are added to the parameters. State: `gamma`, `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> # the first gradient is shortened to 1 over 1 + eps
        >>> tx = gradtx.adagc(lr=0.1, eps=1.0)
        >>> tx.update({"w": torch.tensor([1e6])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-0.0500])

    Source: Wang et al. 2025, arXiv:2502.11034. Departures: none from pytorch_optimizer, which takes the norm over all
    leaves in float32.
    """
    clipping = clip_to_history(lambda_rel, lambda_abs, beta, warmup_steps, eps)
    direction = scale_by_adam(betas, eps)
    return chain(clipping, with_decay(direction, weight_decay, True, lr))
