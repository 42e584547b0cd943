"""Adam and its closest relatives: AdamW, NAdam, RMSprop, AdamP, AdamC."""

from __future__ import annotations

from typing import Annotated

from gradtx.algorithms.momentum import trace
from gradtx.algorithms.projection import project_scale_invariant
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.weight_decay import add_decayed_weights, with_decay
from gradtx.arguments import (
    Decay,
    FractionOffAtOne,
    NonNegative,
    Positive,
    Scalar,
    Static,
    is_off,
)
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    caution,
    corrected_root,
    hat_rate,
    norm,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.maths.entries import softplus as smooth
from gradtx.rules import alias, per_tensor
from gradtx.slots import filled, linear, scalar, square
from gradtx.transform import chain

__all__ = [
    "adam",
    "adamc",
    "adamd",
    "adamp",
    "adamw",
    "nadam",
    "orthogonalize_against_ema",
    "rmsprop",
    "scale_by_adam",
    "scale_by_adam_hat",
    "scale_by_caution",
    "scale_by_nadam",
    "scale_by_rms",
    "sgdp",
]


@per_tensor(elementwise=True)
def scale_by_adam(
    betas=(0.9, 0.999),
    eps=1e-8,
    amsgrad=False,
    nesterov=False,
    *,
    correct_bias=True,
):
    r"""Divide the mean gradient by its root mean square: Adam's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$ with $\hat m_t = m_t/(1-\beta_1^t)$, $\hat v_t = v_t/(1-\beta_2^t)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        nesterov: Use $\beta_1 m_t + (1-\beta_1) g_t$ instead of $m_t$, with the same bias correction (as in AdamP).
        correct_bias: If False, use $m$ and $v$ themselves: the first steps are $(1-\beta_1)/\sqrt{1-\beta_2}$ times
            as long, about 3 by default.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_adam()
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 1.0000, -1.0000])

    Source: Kingma and Ba 2014, arXiv:1412.6980; amsgrad: Reddi et al. 2018, arXiv:1904.09237. Departures: the
    maximum is taken before bias correction, as in torch.optim.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        ahead = running_mean(mean, update, beta1) if nesterov else mean
        if not correct_bias:
            return ahead / (safe_sqrt(square) + eps), new
        root = corrected_root(square, ctx, beta2)
        return ahead / ctx.bias_correction(beta1) / (root + eps), new

    return moments, update


@per_tensor(elementwise=True)
def scale_by_rms(
    alpha: NonNegative = 0.99,
    eps=1e-8,
    eps_in_root=False,
    centered=False,
    initial_accumulator_value: NonNegative = 0.0,
):
    r"""Divide by the root mean square of the gradient: RMSprop's direction.

    $q_t = \alpha q_{t-1} + (1-\alpha) g_t^2$, direction $g_t / (\sqrt{q_t} + \epsilon)$; no bias correction.

    Args:
        alpha: Weight of the old average, in [0, inf), below 1 in practice.
        eps: $\epsilon \ge 0$: in the units of a gradient outside the root, of a squared gradient inside.
        eps_in_root: Use $g_t / \sqrt{q_t + \epsilon}$, as TensorFlow does.
        centered: Subtract the square of the mean gradient from $q_t$ (clamped at 0).
        initial_accumulator_value: $q_0 \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `square_avg` and, if centered, `grad_avg`, shaped as
        the parameter.

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> tx = gradtx.scale_by_rms(alpha=0.75)
        >>> # 1 / sqrt(1 - alpha)
        >>> tx.update({"w": torch.tensor([3.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([2.])

    Source: Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv:1308.0850. Departures: none from
    torch.optim.RMSprop, except that the centered average cannot round to a negative value (NaN there).
    """

    def update(g, state, p, ctx):
        v = running_mean(state["square_avg"], g.square(), alpha)
        new = {"square_avg": v}
        if centered:
            m = new["grad_avg"] = running_mean(state["grad_avg"], g, alpha)
            # Rounding can make the difference negative.
            v = at_least(v - m.square(), 0)
        return g / (safe_sqrt(v + eps) if eps_in_root else safe_sqrt(v) + eps), new

    return {
        "square_avg": square(filled(initial_accumulator_value)),
        "grad_avg": linear() if centered else None,
    }, update


@per_tensor(elementwise=True)
def scale_by_adam_hat(
    betas=(0.9, 0.999),
    eps: NonNegative = 1e-8,
    amsgrad=False,
    debias_first=True,
    softplus: Positive | None = None,
    partial: Annotated[Scalar, "[0, 0.5]; off at 0.5"] = 0.5,
):
    r"""Divide the mean gradient by its root mean square, adding eps before the root is bias-corrected.

    $m_t$ and $v_t$ as in `scale_by_adam`, $c_i = 1-\beta_i^t$, direction
    $\frac{m_t}{c_1} \frac{\sqrt{c_2}}{\sqrt{v_t} + \epsilon}$. This is `scale_by_adam` with $\epsilon / \sqrt{c_2}$
    instead of $\epsilon$, which is about 30 times larger at first.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient. Not used with `softplus`.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        debias_first: False omits $1/c_1$ (AdamD).
        softplus: $b > 0$: use $\log(1 + \exp(b \sqrt{v_t})) / b$ instead of $\sqrt{v_t} + \epsilon$ (Sadam), or
            $\sqrt{v_t}$ itself where $b \sqrt{v_t} > 20$.
        partial: $q$ in [0, 0.5]: raise the divisor, including its eps, to the power $2 q$ (Padam). A literal 0.5 omits
            this; 0 divides by 1.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `eps` is negative, if `softplus` is not above 0, or if `partial` is
            outside [0, 0.5].

    Example:
        >>> for tx in (gradtx.scale_by_adam(eps=1.0), gradtx.scale_by_adam_hat(eps=1.0)):
        ...     print(tx.update({"w": torch.ones(1)}, tx.init({"w": torch.zeros(1)}))[0]["w"])
        tensor([0.5000])
        tensor([0.0307])

    Source: Kingma and Ba 2014, arXiv:1412.6980, the form at the end of section 2; without the first correction:
    St John 2021, arXiv:2110.10828; softplus: Tong et al. 2019, arXiv:1908.00700; partial: Chen et al. 2018,
    arXiv:1806.06763. Departures: none.
    """
    _, beta2 = betas
    corrected = betas if debias_first else (0.0, beta2)  # 1 - 0**t is 1
    moments, average = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        root = safe_sqrt(square)
        root = root + eps if softplus is None else smooth(root, softplus)
        if not is_off(partial, 0.5):
            root = safe_pow(root, 2 * partial)
        return hat_rate(root, ctx, corrected) * mean, new

    return moments, update


@per_tensor(elementwise=True)
def scale_by_nadam(
    betas=(0.9, 0.999),
    eps=1e-8,
    momentum_decay: NonNegative = 4e-3,
):
    r"""Divide a gradient extrapolated by one step of momentum by its root mean square: NAdam's direction.

    $\mu_t = \beta_1 (1 - \frac12 \cdot 0.96^{t \psi})$, $P_t = \prod_{i \le t} \mu_i$, $m$ and $\hat v$ as in Adam;
    direction $\left( \frac{1-\mu_t}{1-P_t} g_t + \frac{\mu_{t+1}}{1-P_t \mu_{t+1}} m_t \right) /
    (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root, in the units of a gradient.
        momentum_decay: $\psi \ge 0$: how fast $\mu$ increases from $\beta_1 / 2$ to $\beta_1$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter, and
        `mu_product` ($P$), 0-d float64 for each leaf.

    Raises:
        ValueError: If a beta is outside [0, 1), or if another argument is negative.

    Example:
        >>> # mu is 1/4 throughout
        >>> tx = gradtx.scale_by_nadam(betas=(0.5, 0.999), momentum_decay=0.0)
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([2.0])}, tx.init({"w": torch.zeros(1)})
        ... )
        >>> # 1 + 1/4 / (1 - 1/16) * 1/2
        >>> updates["w"], state["scale_by_nadam"]["mu_product"]["w"]
        (tensor([1.1333]), tensor(0.2500, dtype=torch.float64))

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam". Departures: $m$ is averaged with $\beta_1$, not
    $\mu_t$, as in torch.optim.NAdam; $P$ is stored in float64 rather than torch's float32.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        mu = beta1 * (1 - 0.5 * 0.96 ** (ctx.time * momentum_decay))
        ahead = beta1 * (1 - 0.5 * 0.96 ** ((ctx.time + 1) * momentum_decay))
        product = state["mu_product"] * mu
        m, v, new = average(g, state)
        of_update, of_mean = (1 - mu) / (1 - product), ahead / (1 - product * ahead)
        root = corrected_root(v, ctx, beta2)
        new["mu_product"] = product
        return (of_update * g + of_mean * m) / (root + eps), new

    return {"mu_product": scalar(1.0), **moments}, update


@per_tensor
def scale_by_caution(factor: FractionOffAtOne = 0.0):
    r"""Damp the entries of an update that point against the gradient.

    Entries with $u g \le 0$ are multiplied by $f$, then all entries are divided by the mean weight (at least 1e-5) of
    the leaf; $g$ is the gradient as passed to the clock.

    Args:
        factor: $f$ in [0, 1]. A literal 1.0 omits the link.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `factor` is outside [0, 1].

    Example:
        >>> tx = gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_caution())
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> _, state = tx.update({"w": torch.tensor([10.0, 1.0])}, state)
        >>> # momentum still moves the first entry uphill
        >>> tx.update({"w": torch.tensor([-1.0, 1.0])}, state)[0]["w"]
        tensor([0.0000, 3.8000])

    Source: Liang et al. 2024, arXiv:2411.16085. Departures: the factor and the lower bound of 1e-5 on the mean are from
    adam-atan2-pytorch 0.4.1.
    """
    if is_off(factor, 1.0):
        return chain()

    def update(update, state, param, ctx):
        return update * caution(update, ctx.grad, factor), state

    return update


@per_tensor
def orthogonalize_against_ema(beta: Decay = 0.9):
    r"""Remove a gradient's component along the mean of earlier gradients.

    With $u = e_{t-1} / \max(\lVert e_{t-1} \rVert, 10^{-12})$, the result is $g_t - \langle g_t, u \rangle u$ over the
    whole leaf (in float64); then $e_t = \beta e_{t-1} + (1-\beta) g_t$ with the incoming gradient.

    Args:
        beta: $\beta$, in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_ema`, shaped as the parameter. A leaf with one
        entry becomes 0 from the second step on.

    Raises:
        ValueError: If `beta` is outside [0, 1).

    Example:
        >>> tx = gradtx.orthogonalize_against_ema()
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> _, state = tx.update({"w": torch.tensor([1.0, 0.0])}, state)
        >>> tx.update({"w": torch.tensor([1.0, 1.0])}, state)[0]["w"]
        tensor([0., 1.])

    Source: Han et al. 2025, arXiv:2504.01961, in the form of adam-atan2-pytorch 0.4.1. Departures: none from the
    latter, which fails for 0-d leaves.
    """

    def update(update, state, param, ctx):
        old, exact = state["grad_ema"], update.to(ctx.time.dtype)
        unit = old.to(exact.dtype)
        unit = unit / at_least(norm(unit), 1e-12)
        return exact - (exact * unit).sum() * unit, {
            "grad_ema": running_mean(old, update, beta)
        }

    return {"grad_ema": linear()}, update


@alias
def adam(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    amsgrad=False,
    *,
    decoupled_weight_decay=False,
    correct_bias: Static[bool] = True,
):
    r"""Adam, equivalent to torch.optim.Adam: the mean gradient over its root mean square.

    $p \leftarrow p - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$ with the bias-corrected averages $\hat m$ of $g$ and
    $\hat v$ of $g^2$.

    When to use: a first try on almost any problem without weight decay; with weight decay, use `adamw`.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        amsgrad: Use the running maximum of $v$.
        decoupled_weight_decay: Apply the decay to the weights, as `adamw` does.
        correct_bias: If False, use $m$ and $v$ without bias correction.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adam(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Kingma and Ba 2014, arXiv:1412.6980. Departures: none from torch.optim.Adam.
    """
    direction = scale_by_adam(betas, eps, amsgrad, correct_bias=correct_bias)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)


@alias(class_name="AdamW")
def adamw(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    amsgrad=False,
    *,
    correct_bias: Static[bool] = True,
):
    r"""AdamW, equivalent to torch.optim.AdamW: Adam with decoupled weight decay.

    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m / (\sqrt{\hat v} + \epsilon)$.

    When to use: the default for transformers, and a good default elsewhere.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        amsgrad: Use the running maximum of $v$.
        correct_bias: If False, use $m$ and $v$ without bias correction, as BertAdam does.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamw(lr=0.1, weight_decay=0.5)
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([0.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000])

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101. Departures: none from torch.optim.AdamW.
    """
    direction = scale_by_adam(betas, eps, amsgrad, correct_bias=correct_bias)
    return with_decay(direction, weight_decay, True, lr)


@alias(class_name="NAdam")
def nadam(
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    momentum_decay: NonNegative = 4e-3,
    decoupled_weight_decay=False,
):
    r"""NAdam, equivalent to torch.optim.NAdam: Adam with a Nesterov momentum that rises over time.

    $p \leftarrow p - \eta \left( \frac{1-\mu_t}{1-P_t} g_t + \frac{\mu_{t+1}}{1-P_{t+1}} m_t \right) /
    (\sqrt{\hat v_t} + \epsilon)$ with $\mu_t = \beta_1 (1 - \frac12 \cdot 0.96^{t \psi})$ and their product $P$.

    When to use: when Adam reacts too slowly; often slightly faster than Adam at the same rate.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        momentum_decay: $\psi \ge 0$, the speed at which $\mu$ rises from $\beta_1 / 2$ to $\beta_1$.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `mu_product` (0-d float64), `exp_avg`,
        `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> # without momentum it is Adam without momentum
        >>> tx = gradtx.nadam(lr=0.1, betas=(0.0, 0.999))
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam". Departures: none from torch.optim.NAdam, except
    that the product is kept in float64 (float32 there, with a relative effect of 1e-9 on the weights).
    """
    return with_decay(
        scale_by_nadam(betas, eps, momentum_decay),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )


@alias(class_name="AdamD")
def adamd(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=False,
):
    r"""AdamD: Adam without bias correction of its first moment, which acts as a built-in warm-up.

    $p \leftarrow p - \eta m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$. The size of the first step is
    $(1-\beta_1) \eta$; after about $1/(1-\beta_1)$ steps the rule equals Adam.

    When to use: Adam with a large learning rate and no warm-up, where the first steps are too long.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamd(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0100,  0.0100])

    Source: St John 2021, arXiv:2110.10828. Departures: eps is added before the correction.
    """
    return with_decay(
        scale_by_adam_hat(betas, eps, debias_first=False),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )


@alias(class_name="AdamP")
def adamp(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    nesterov=False,
):
    r"""AdamP: Adam without the radial part of its direction where weights appear scale-invariant.

    $(s, r) = \Pi(p, g, \hat m/(\sqrt{\hat v} + \epsilon))$, $p \leftarrow p (1 - \eta \lambda r) - \eta s$; $\Pi$ is
    `project_scale_invariant`.

    When to use: networks with normalization layers, whose weights grow under momentum and thereby slow down their own
    training.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, in Adam's denominator and in the projection.
        weight_decay: $\lambda \ge 0$, decoupled.
        delta: Threshold of the scale-invariance test, >= 0.
        wd_ratio: $r \ge 0$, the fraction of the decay applied to scale-invariant weights.
        nesterov: Use $\beta_1 m + (1-\beta_1) g$ instead of $m$, with the same bias correction.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> params = {"w": torch.tensor([[3.0, 4.0]])}
        >>> tx = gradtx.adamp(lr=0.1)
        >>> updates, _ = tx.update({"w": torch.tensor([[-0.4, 0.3]])}, tx.init(params), params)
        >>> (updates["w"] * params["w"]).sum().abs() < 1e-6  # nothing along w
        tensor(True)

    Source: Heo et al. 2021, arXiv:2006.08217. Departures: none from the authors' adamp 0.3.0.
    """
    return chain(
        scale_by_adam(betas, eps, nesterov=nesterov),
        # Applies the decay, too: only it knows r.
        project_scale_invariant(delta, wd_ratio, eps, weight_decay),
        scale_by_learning_rate(lr),
    )


@alias(class_name="SGDP")
def sgdp(
    lr,
    momentum: Decay = 0.0,
    dampening: Scalar = 0.0,
    weight_decay=0.0,
    nesterov=False,
    eps=1e-8,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
):
    r"""SGDP: SGD with momentum, without the radial part of its direction where weights appear scale-invariant.

    $b \leftarrow \mu b + (1-\tau) g$ from 0, $s = b$ or $g + \mu b$ with `nesterov`, $(s, r) = \Pi(p, g, s)$,
    $p \leftarrow p (1 - \eta \lambda r / (1-\mu)) - \eta s$; $\Pi$ is `project_scale_invariant`.

    When to use: convolutional networks with batch normalization that are trained with momentum SGD.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        momentum: $\mu$ in [0, 1).
        dampening: $\tau$, usually in [0, 1); applied to the first step too, unlike in `sgd`.
        weight_decay: $\lambda \ge 0$, decoupled and divided by $1-\mu$.
        nesterov: Use Nesterov momentum; requires a nonzero momentum.
        eps: $\epsilon \ge 0$, in the projection.
        delta: Threshold of the scale-invariance test, >= 0.
        wd_ratio: $r \ge 0$, the fraction of the decay applied to scale-invariant weights.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, which is never projected.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> params = {"w": torch.tensor([[3.0, 4.0]])}
        >>> tx = gradtx.sgdp(lr=0.1, weight_decay=1.0)
        >>> # a tenth of the decay
        >>> tx.update({"w": torch.tensor([[-0.4, 0.3]])}, tx.init(params), params)[0]["w"]
        tensor([[ 0.0100, -0.0700]])

    Source: Heo et al. 2021, arXiv:2006.08217. Departures: the momentum is not projected, as in the paper (without
    nesterov, the authors' code projects its buffer in place); with a literal momentum of 0.0, no buffer is kept.
    """
    return chain(
        trace(momentum, dampening, nesterov, dampen_first=True),
        project_scale_invariant(delta, wd_ratio, eps, weight_decay / (1 - momentum)),
        scale_by_learning_rate(lr),
    )


@alias(class_name="AdamC")
def adamc(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    amsgrad=False,
    max_lr: Positive | None = None,
):
    r"""AdamC: AdamW whose weight decay falls with the square of the learning rate.

    $p \leftarrow p (1 - \eta_t^2 \lambda / \eta_{max}) - \eta_t \hat m / (\sqrt{\hat v} + \epsilon)$. At a constant
    rate, it is AdamW.

    When to use: long runs with a decaying learning rate, in which the gradients of normalized layers grow toward the
    end; the paper corrects only the decay of these layers (`partition`).

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate and by its ratio to the largest rate.
        amsgrad: Use the running maximum of $v$.
        max_lr: $\eta_{max} > 0$, the peak of the schedule. None for the largest rate so far, which is the current one
            during a warm-up.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, [`max_exp_avg_sq`];
        without `max_lr`, also `lr_max`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamc(
        ...     lr=gradtx.Schedule(lambda step: 0.1 * 0.5**step), weight_decay=1.0
        ... )
        >>> params = {"w": torch.ones(1)}
        >>> state = tx.init(params)
        >>> for _ in range(3):  # AdamW: 0.1, 0.05, 0.025
        ...     updates, state = tx.update({"w": torch.zeros(1)}, state, params)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.0250])
        tensor([-0.0063])

    Source: Defazio 2025, arXiv:2506.02285. Departures: without `max_lr`, the largest rate so far stands in for the
    peak. pytorch_optimizer uses the rate passed to the constructor, and corrects only groups that are marked
    `normalized`.
    """
    return chain(
        scale_by_adam(betas, eps, amsgrad),
        add_decayed_weights(weight_decay, corrected_by=lr, max_lr=max_lr),
        scale_by_learning_rate(lr),
    )


@alias(class_name="RMSprop")
def rmsprop(
    lr=1e-2,
    alpha: NonNegative = 0.99,
    eps=1e-8,
    weight_decay=0.0,
    momentum=0.0,
    centered=False,
    *,
    eps_in_root=False,
    initial_accumulator_value: NonNegative = 0.0,
    decoupled_weight_decay=False,
):
    r"""RMSprop, equivalent to torch.optim.RMSprop: the gradient over its root mean square, optionally with momentum.

    $q_t = \alpha q_{t-1} + (1-\alpha) g_t^2$, $b_t = \mu b_{t-1} + g_t / (\sqrt{q_t} + \epsilon)$,
    $p \leftarrow p - \eta b_t$.

    When to use: recurrent networks, reinforcement learning, and existing recipes tuned for it.

    Args:
        lr: $\eta$ in [0, inf); the length of the first step is $\eta / \sqrt{1-\alpha}$, by default ten times $\eta$.
        alpha: $\alpha$ in [0, inf), below 1 in practice.
        eps: $\epsilon \ge 0$: in units of the gradient outside the square root, of the squared gradient inside.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        momentum: $\mu$ in [0, inf). With a literal 0.0, no buffer is kept.
        centered: Subtract the square of the mean gradient from $q_t$.
        eps_in_root: Use $\sqrt{q_t + \epsilon}$. With `initial_accumulator_value=1.0`, `alpha=0.9` and `eps=1e-10`,
            this is TensorFlow's RMSprop at a constant rate.
        initial_accumulator_value: $q_0 \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `square_avg`, [`grad_avg`],
        [`momentum_buffer`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.rmsprop(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.9990,  1.0000])

    Source: Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv:1308.0850. Departures: none from
    torch.optim.RMSprop, except that the centered average cannot round to a negative value (NaN there).
    """
    direction = chain(
        scale_by_rms(alpha, eps, eps_in_root, centered, initial_accumulator_value),
        trace(momentum),
    )
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)
