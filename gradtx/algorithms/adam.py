"""Adam, equivalent to torch.optim.Adam: the mean gradient over its root mean square. Also `adamw` and `adamd`."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import NonNegative, Positive, Scalar, Static, is_off
from gradtx.links.decay import with_decay
from gradtx.maths.entries import (
    adam_moments,
    corrected_root,
    hat_rate,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.maths.entries import softplus as smooth
from gradtx.rules import alias, per_tensor

__all__ = [
    "adam",
    "adamd",
    "adamw",
    "scale_by_adam",
    "scale_by_adam_hat",
]


@per_tensor(elementwise=True, length="sets")
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
        mean, square, new_state = average(update, state)
        ahead = running_mean(mean, update, beta1) if nesterov else mean
        if not correct_bias:
            return ahead / (safe_sqrt(square) + eps), new_state
        root = corrected_root(square, ctx, beta2)
        return ahead / ctx.bias_correction(beta1) / (root + eps), new_state

    return moments, update


@per_tensor(elementwise=True, length="sets")
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
        mean, square, new_state = average(update, state)
        root = safe_sqrt(square)
        root = root + eps if softplus is None else smooth(root, softplus)
        if not is_off(partial, 0.5):
            root = safe_pow(root, 2 * partial)
        return hat_rate(root, ctx, corrected) * mean, new_state

    return moments, update


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

    Example:
        >>> tx = gradtx.adamw(lr=0.1, weight_decay=0.5)
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([0.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000])

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101. Departures: none from torch.optim.AdamW.
    """
    direction = scale_by_adam(betas, eps, amsgrad, correct_bias=correct_bias)
    return with_decay(direction, weight_decay, True, lr)


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
