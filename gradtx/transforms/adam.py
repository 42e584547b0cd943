"""Adam: Adam, AdamW, NAdam and relatives with the same two moments."""

from __future__ import annotations

from typing import Annotated

import torch

from gradtx.arguments import (
    Decay,
    Decays,
    Fraction,
    NonNegative,
    Positive,
    is_off,
)
from gradtx.base.exact import Scalar, exact
from gradtx.rules import per_tensor
from gradtx.slots import linear, scalar, square
from gradtx.transform import chain
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    atan2,
    caution,
    corrected_root,
    filled_like,
    hat_rate,
    norm,
    quotient,
    rms,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.transforms._math import softplus as smooth

__all__ = [
    "orthogonalize_against_ema",
    "scale_by_adam",
    "scale_by_adam_hat",
    "scale_by_adopt",
    "scale_by_adopt_atan2",
    "scale_by_atan2",
    "scale_by_caution",
    "scale_by_diffgrad",
    "scale_by_fadam",
    "scale_by_nadam",
    "scale_by_rms",
    "scale_by_yogi",
]


@per_tensor(elementwise=True)
def scale_by_adam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    amsgrad: bool = False,
    nesterov: bool = False,
):
    r"""Divide the mean gradient by its root mean square: Adam's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$ with $\hat m_t = m_t/(1-\beta_1^t)$, $\hat v_t = v_t/(1-\beta_2^t)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        nesterov: Use $\beta_1 m_t + (1-\beta_1) g_t$ instead of $m_t$, with the same bias correction (as in AdamP).

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
        root = corrected_root(square, ctx, beta2)
        return ahead / ctx.bias_correction(beta1) / (root + eps), new

    return moments, update


@per_tensor(elementwise=True)
def scale_by_rms(
    alpha: NonNegative = 0.99,
    eps: NonNegative = 1e-8,
    eps_in_root: bool = False,
    centered: bool = False,
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

    def update(update, state, param, ctx):
        square = running_mean(state["square_avg"], update.square(), alpha)
        new, variance = {"square_avg": square}, square
        if centered:
            mean = new["grad_avg"] = running_mean(state["grad_avg"], update, alpha)
            # Rounding can make the difference negative.
            variance = (square - mean.square()).clamp(min=0)
        root = safe_sqrt(variance + eps) if eps_in_root else safe_sqrt(variance) + eps
        return update / root, new

    return {
        "square_avg": square(lambda p: filled_like(p, initial_accumulator_value)),
        **({"grad_avg": linear()} if centered else {}),
    }, update


@per_tensor(elementwise=True)
def scale_by_adopt(
    betas: Decays = (0.9, 0.9999),
    eps: NonNegative = 1e-6,
    clip_exponent: NonNegative | None = 0.25,
):
    r"""Average gradients that are divided by the size of earlier gradients: ADOPT's direction.

    $n_t = g_t / \max(\sqrt{v_{t-1}}, \epsilon)$ clamped to $\pm (t-1)^{c}$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) n_t$,
    then $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$. The first step only sets $v_1 = g_1^2$ and returns 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: Lower bound of the denominator, >= 0.
        clip_exponent: $c \ge 0$; None disables clamping.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), or if `eps` or `clip_exponent` is negative.

    Example:
        >>> tx = gradtx.scale_by_adopt()
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([2.0])}, tx.init({"w": torch.zeros(1)})
        ... )
        >>> updates["w"], state["scale_by_adopt"]["exp_avg_sq"]["w"]
        (tensor([0.]), tensor([4.]))

    Source: Taniguchi et al. 2024, arXiv:2411.02853. Departures: none (the clamp counts earlier calls, as in the paper).
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        seen = ctx.seen
        normal = update / at_least(torch.where(seen, safe_sqrt(square), 1.0), eps)
        if clip_exponent is not None:
            bound = (ctx.time - 1) ** clip_exponent
            normal = normal.clamp(-bound, bound)
        mean = torch.where(seen, running_mean(mean, normal, beta1), mean)
        now = update.square()
        square = torch.where(seen, running_mean(square, now, beta2), now)
        return mean, {"exp_avg": mean, "exp_avg_sq": square}

    return {"exp_avg": linear(), "exp_avg_sq": square()}, update


@per_tensor(elementwise=True)
def scale_by_adam_hat(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    amsgrad: bool = False,
    debias_first: bool = True,
    softplus: Positive | None = None,
    partial: Annotated[Scalar, "[0, 0.5]"] = 0.5,
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
def scale_by_yogi(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-3,
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

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        square, update_square = state["exp_avg_sq"], update.square()
        square = square - (1 - beta2) * (square - update_square).sign() * update_square
        return hat_rate(safe_sqrt(square) + eps, ctx, betas) * mean, {
            "exp_avg": mean,
            "exp_avg_sq": square,
        }

    return {
        "exp_avg": linear(),
        "exp_avg_sq": square(lambda p: filled_like(p, initial_accumulator_value)),
    }, update


@per_tensor(elementwise=True)
def scale_by_diffgrad(betas: Decays = (0.9, 0.999), eps: NonNegative = 1e-8):
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


@per_tensor(elementwise=True)
def scale_by_nadam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
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

    def update(update, state, param, ctx):
        mu = beta1 * (1 - 0.5 * 0.96 ** (ctx.time * momentum_decay))
        ahead = beta1 * (1 - 0.5 * 0.96 ** ((ctx.time + 1) * momentum_decay))
        product = state["mu_product"] * mu
        mean, square, new = average(update, state)
        of_update = (1 - mu) / (1 - product)
        of_mean = ahead / (1 - product * ahead)
        nesterov_mean = of_update * update + of_mean * mean
        root = corrected_root(square, ctx, beta2)
        return nesterov_mean / (root + eps), {"mu_product": product, **new}

    return {"mu_product": scalar(1.0), **moments}, update


def _no_caution(arguments):
    return is_off(arguments["cautious_factor"], 1.0)


@per_tensor(elementwise=_no_caution)
def scale_by_atan2(
    betas: Decays = (0.9, 0.99),
    a: Positive = 1.27,
    b: Positive = 1.0,
    cautious_factor: Fraction = 1.0,
):
    r"""Combine Adam's two moments with the arc tangent, which needs no eps and is scale-invariant.

    $u_t = a \, \mathrm{atan2}(\hat m_t, b \sqrt{\hat v_t})$, with Adam's $\hat m_t$ and $\hat v_t$. With caution,
    entries whose sign differs from the gradient's are multiplied by $f$, then all are divided by the mean weight.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        a: Scale of the result, > 0. $|u| \le a \pi / 2$.
        b: Scale of the denominator, > 0.
        cautious_factor: $f$ in [0, 1]; a literal 1.0 disables caution.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `cautious_factor` is outside [0, 1], or if `a` or `b` is not above
            0.

    Example:
        >>> tx = gradtx.scale_by_atan2(a=4 / torch.pi)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1e-9, -5.0, 0.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"].round(decimals=4)
        tensor([ 1., -1.,  0.])

    Source: Everett et al. 2024, arXiv:2407.05872; caution: Liang et al. 2024, arXiv:2411.16085. Departures: none from
    adam-atan2-pytorch 0.4.1, which also provides the defaults of `a` and `b`; where $m$ and $v$ are infinite, compiled
    kernels return NaN instead of 45 degrees.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        root = corrected_root(square, ctx, beta2)
        # A common positive factor does not change the angle, so only one operand is rescaled.
        direction = atan2(mean, b * ctx.bias_correction(beta1) * root)
        if not is_off(cautious_factor, 1.0):
            direction = direction * caution(direction, update, cautious_factor)
        return a * direction, new

    return moments, update


@per_tensor(elementwise=_no_caution)
def scale_by_adopt_atan2(
    betas: Decays = (0.9, 0.99),
    a: Positive = 1.27,
    b: Positive = 1.0,
    cautious_factor: Fraction = 1.0,
):
    r"""Replace the division and clamp of ADOPT's direction by the arc tangent.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) \mathrm{atan2}(g_t, b \sqrt{v_{t-1}})$, $u_t = a m_t$, then
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$. The first step only sets $v_1 = g_1^2$ and returns 0. Caution compares
    $g_t$ with the old $m_{t-1}$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        a: Scale of the result, > 0.
        b: Scale of the denominator, > 0.
        cautious_factor: As in `scale_by_atan2`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `cautious_factor` is outside [0, 1], or if `a` or `b` is not above
            0.

    Example:
        >>> tx = gradtx.scale_by_adopt_atan2(betas=(0.0, 0.5), a=4 / torch.pi)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([-3.0])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-1.])

    Source: adam-atan2-pytorch 0.4.1, after Taniguchi et al. 2024, arXiv:2411.02853. Departures: none from the former.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        old, square = state["exp_avg"], state["exp_avg_sq"]
        seen = ctx.seen
        angle = atan2(update, b * safe_sqrt(square))
        mean = torch.where(seen, running_mean(old, angle, beta1), old)
        direction = (
            mean
            if is_off(cautious_factor, 1.0)
            else mean * caution(old, update, cautious_factor)
        )
        now = update.square()
        square = torch.where(seen, running_mean(square, now, beta2), now)
        return a * direction, {"exp_avg": mean, "exp_avg_sq": square}

    return {"exp_avg": linear(), "exp_avg_sq": square()}, update


@per_tensor
def scale_by_caution(factor: Fraction = 0.0):
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
        unit = unit / norm(unit).clamp(min=1e-12)
        return exact - (exact * unit).sum() * unit, {
            "grad_ema": running_mean(old, update, beta)
        }

    return {"grad_ema": linear()}, update


@per_tensor(needs=("params",))
def scale_by_fadam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.1,
    clip: Annotated[Scalar, "(0, inf]"] = 1.0,
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
        floor = torch.minimum(exact(eps, update.device), eps2 * size)
        floor = torch.where(size == 0, exact(eps, update.device), floor)
        base = safe_pow(fisher, p) + safe_pow(floor, 2 * p)
        mean = beta1 * state["momentum"] + (1 - beta1) * clipped(quotient(update, base))
        return mean + weight_decay * clipped(quotient(param, base)), {
            "momentum": mean,
            "fim": fisher,
        }

    return {"momentum": linear(), "fim": square()}, update
