"""Adam with eps added before bias correction, and methods built on it: AdamD, Sadam, Padam, Yogi, diffGrad."""

from __future__ import annotations

import torch

from gradtx.arguments import Range, is_off
from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    hat_rate,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.transforms._math import softplus as smooth

__all__ = ["scale_by_adam_hat", "scale_by_diffgrad", "scale_by_yogi"]


@per_tensor(
    elementwise=True,
    ranges={"softplus": "(0, inf)", "partial": Range("[0, 0.5]", off=0.5)},
    nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
    averages=lambda arguments: {"exp_avg": arguments["betas"][0]},
)
def scale_by_adam_hat(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    amsgrad: bool = False,
    debias_first: bool = True,
    softplus: Scalar | None = None,
    partial: Scalar = 0.5,
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
    init, average = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        root = safe_sqrt(square)
        root = root + eps if softplus is None else smooth(root, softplus)
        if not is_off(partial, 0.5):
            root = safe_pow(root, 2 * partial)
        return hat_rate(root, ctx, corrected) * mean, new

    return init, update


@per_tensor(
    ranges={"initial_accumulator_value": "[0, inf)"},
    elementwise=True,
    # A value that every dtype represents exactly.
    example={"initial_accumulator_value": 2**-20},
    nonnegative=("exp_avg_sq",),
)
def scale_by_yogi(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-3,
    initial_accumulator_value: Scalar = 1e-6,
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

    def init(param):
        zeros = torch.zeros_like(param)
        return {"exp_avg": zeros, "exp_avg_sq": zeros + initial_accumulator_value}

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        square, update_square = state["exp_avg_sq"], update.square()
        square = square - (1 - beta2) * (square - update_square).sign() * update_square
        return hat_rate(safe_sqrt(square) + eps, ctx, betas) * mean, {
            "exp_avg": mean,
            "exp_avg_sq": square,
        }

    return init, update


@per_tensor(elementwise=True, nonnegative=("exp_avg_sq",))
def scale_by_diffgrad(betas: Betas = (0.9, 0.999), eps: Scalar = 1e-8):
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
    init, average = adam_moments(betas, False, "previous_grad")

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        friction = (state["previous_grad"] - update).abs().sigmoid()
        direction = hat_rate(safe_sqrt(square) + eps, ctx, betas) * mean
        return friction * direction, {**new, "previous_grad": update}

    return init, update
