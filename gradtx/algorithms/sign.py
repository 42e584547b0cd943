"""Signs of gradients: SignSGD, Lion, Tiger, Rprop, FOCUS, Grams, Ano."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.weight_decay import with_decay
from gradtx.arguments import Decay, NonNegative, OpenFraction, Scalar, is_off
from gradtx.maths.entries import (
    at_least,
    at_most,
    corrected_root,
    plus_decay,
    running_mean,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema, filled, linear, square
from gradtx.transform import chain

__all__ = [
    "ano",
    "focus",
    "grams",
    "lion",
    "rprop",
    "scale_by_ano",
    "scale_by_focus",
    "scale_by_lion",
    "scale_by_rprop",
    "scale_by_sign",
    "signsgd",
    "signum",
    "take_signs_of_gradient",
    "tiger",
]


@per_tensor(elementwise=True)
def scale_by_lion(betas=(0.9, 0.99)):
    r"""Replace every gradient by the sign of an interpolated momentum: Lion's direction.

    $u_t = \mathrm{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t)$, then $m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t$.

    Args:
        betas: $(\beta_1, \beta_2)$, weights of the old momentum in the direction and in the next momentum, each in
            [0, 1). If both are a literal 0.0, there is no slot.

    Returns:
        A transformation that keeps shapes and dtypes; every entry becomes -1, 0 or 1. State: `exp_avg`, shaped as the
        parameter.

    Raises:
        ValueError: If a beta is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_lion()
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([2e-9, 0.0, -5.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"]
        tensor([ 1.,  0., -1.])

    Source: Chen et al. 2023, arXiv:2302.06675. Departures: none.
    """
    beta1, beta2 = betas
    if is_off(beta1) and is_off(beta2):
        return scale_by_sign()

    def update(g, state, p, ctx):
        m = state["exp_avg"]
        direction = running_mean(m, g, beta1).sign()
        return direction, {"exp_avg": running_mean(m, g, beta2)}

    return {"exp_avg": linear()}, update


@per_tensor(elementwise=True)
def scale_by_sign():
    r"""Replace every entry by its sign: $u \mapsto \mathrm{sign}(u)$.

    Returns:
        A transformation that keeps shapes and dtypes; every entry becomes -1, 0 or 1. No state.

    Example:
        >>> tx = gradtx.scale_by_sign()
        >>> tx.update({"w": torch.tensor([2e-9, 0.0, -5.0])}, tx.init({}))[0]["w"]
        tensor([ 1.,  0., -1.])

    Source: Bernstein et al. 2018, signSGD, arXiv:1802.04434. Departures: none.
    """
    return lambda update, state, param, ctx: (update.sign(), state)


@per_tensor(elementwise=True)
def take_signs_of_gradient():
    r"""Combine the magnitudes of a direction with the signs of the gradient: $u \mapsto \mathrm{sign}(g) |u|$.

    Place it after any direction. $g$ is the gradient that was passed to the chain. Every entry then points downhill on
    this batch, so a later `scale_by_caution` has no effect.

    Returns:
        A transformation that keeps shapes and dtypes; no state. Where the gradient is 0, so is the update.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(1.0), gradtx.take_signs_of_gradient())
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([3.0, 3.0], [-1.0, 0.0]):  # the momentum is then (2, 3)
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([3., 3.])
        tensor([-2.,  0.])

    Source: Cao et al. 2024, arXiv:2412.17107. Departures: none.
    """

    def update(update, state, param, ctx):
        return ctx.grad.sign() * update.abs(), state

    return update


@per_tensor(elementwise=True, needs="params")
def scale_by_focus(
    betas=(0.9, 0.999),
    gamma: NonNegative = 0.1,
    weight_decay=0.0,
):
    r"""Step along the sign of the momentum and back toward the average of the weights: FOCUS's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $\bar p_t = \beta_2 \bar p_{t-1} + (1-\beta_2) p$,
    $\hat p = \bar p / (1-\beta_2^t)$, direction
    $\mathrm{sign}(m_t) + \gamma\, \mathrm{sign}(p - \hat p) + \lambda \hat p$. At $t = 1$, where $\hat p = p$, the
    middle term is 0.

    Args:
        betas: $(\beta_1, \beta_2)$, for the momentum and for the average of the weights, each in [0, 1).
        gamma: $\gamma \ge 0$, strength of the attraction; above 1 it dominates the momentum.
        weight_decay: $\lambda \ge 0$, a pull of the average toward 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `pbar`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_focus(gamma=0.25)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # the gradient is positive; the weight is above, then below its average
        >>> for at in (0.0, 1.0, -1.0):
        ...     updates, state = tx.update(
        ...         {"w": torch.ones(1)}, state, {"w": torch.tensor([at])}
        ...     )
        ...     print(updates["w"])
        tensor([1.])
        tensor([1.2500])
        tensor([0.7500])

    Source: Liu, Liu and Gore 2025, arXiv:2501.12243. Departures: in the authors' code, the sign at $t = 1$ is that of a
    rounding error.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        place = running_mean(state["pbar"], param, beta2)
        usual = place / ctx.bias_correction(beta2)
        pull = torch.where(ctx.seen, (param - usual).sign(), 0.0)
        direction = plus_decay(mean.sign() + gamma * pull, weight_decay, usual)
        return direction, {"exp_avg": mean, "pbar": place}

    return {"exp_avg": linear(), "pbar": linear()}, update


@per_tensor(elementwise=True, owns_lr=True)
def scale_by_rprop(
    lr,
    etas: tuple[OpenFraction, Annotated[Scalar, "(1, inf)"]] = (
        0.5,
        1.2,
    ),
    step_sizes: tuple[NonNegative, NonNegative] = (1e-6, 50.0),
):
    r"""Use a step size per weight that grows while the gradient keeps its sign and shrinks when it flips: Rprop.

    With $a = \mathrm{sign}(g_t g_{t-1})$: $\Delta_t = \Delta_{t-1} \cdot (\eta^+, 1, \eta^-)$ for $a = 1, 0, -1$,
    clipped to $[\Delta_{\min}, \Delta_{\max}]$; then $p \leftarrow p - \mathrm{sign}(g_t) \Delta_t$. Where $a = -1$,
    the weight is not changed, and the next step is treated as a first step ($g_t = 0$ is stored).

    Args:
        lr: $\Delta_0 \ge 0$, the size of the first step; later values are ignored.
        etas: $(\eta^-, \eta^+)$, the first in (0, 1), the second above 1.
        step_sizes: $(\Delta_{\min}, \Delta_{\max})$, each in [0, inf).

    Returns:
        A transformation that owns the learning rate: its updates are added to the parameters. State: `prev` (the
        stored gradient), `step_size`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx, params = gradtx.scale_by_rprop(0.1), {"w": torch.zeros(1)}
        >>> state = tx.init(params)
        >>> for grad in (3.0, 0.2, -5.0, -5.0):  # steps of 0.1 and 0.12, no step, 0.06 back
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(f"{params['w'].item():.2f}")
        -0.10
        -0.22
        -0.22
        -0.16

    Source: Riedmiller and Braun 1993; Igel and Huesken 2000 (iRprop-). Departures: none from torch.optim.Rprop, except
    that signs are compared, because a product of small gradients can underflow. The rule of 1993 also undoes the step
    before a sign change.
    """
    first = filled(lr)
    shrink, grow = etas
    smallest, largest = step_sizes

    def update(g, state, p, ctx):
        # As in torch, the initial size is the rate at the first step, which a scheduler may have written after `init`.
        old = state["step_size"]
        size = torch.where(ctx.seen, old, first(old))
        agreement = g.sign() * state["prev"].sign()
        turned = agreement < 0
        size = torch.where(
            agreement > 0, grow * size, torch.where(turned, shrink * size, size)
        )
        size = at_most(at_least(size, smallest), largest)
        masked = torch.where(turned, 0.0, g)
        return -masked.sign() * size, {"prev": masked, "step_size": size}

    return {"prev": linear(), "step_size": square(first)}, update


@alias
def lion(lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    r"""Lion: the sign of an interpolated momentum, with decoupled weight decay.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(\beta_1 m + (1-\beta_1) g)$, then
    $m \leftarrow \beta_2 m + (1-\beta_2) g$.

    When to use: large batches and little memory (half of AdamW's); use a learning rate 3 to 10 times smaller than
    AdamW's, and a decay larger by the same factor.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step; a third to a tenth of Adam's.
        betas: Weights of the old momentum in the direction and in the next momentum, each in [0, 1).
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.lion(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([0.0, 2.0])}
        >>> tx.update({"w": torch.tensor([1e-9, -7.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000, -0.1000])

    Source: Chen et al. 2023, arXiv:2302.06675. Departures: none.
    """
    return with_decay(scale_by_lion(betas), weight_decay, True, lr)


@alias(class_name="SignSGD")
def signsgd(
    lr=1e-3,
    weight_decay=0.0,
    decoupled_weight_decay=True,
):
    r"""signSGD: every weight moves by the learning rate against its gradient.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(g)$.

    When to use: as a baseline, and where workers send one bit per weight; `signum` and `lion` average first.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        decoupled_weight_decay: If False, the decay is added to the gradient, whose sign it can change.

    Returns:
        A transformation whose updates are added to the parameters. State: none.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.signsgd(lr=0.1)
        >>> tx.update({"w": torch.tensor([2.0, -0.5])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Bernstein et al. 2018, arXiv:1802.04434. Departures: none.
    """
    return with_decay(scale_by_sign(), weight_decay, decoupled_weight_decay, lr)


@alias
def signum(
    lr=1e-3,
    momentum: Decay = 0.9,
    weight_decay=0.0,
    decoupled_weight_decay=True,
):
    r"""Signum: every weight moves by the learning rate against its momentum.

    $m \leftarrow \mu m + (1-\mu) g$, $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(m)$.

    When to use: half of AdamW's memory, like `lion`, which gives the newest gradient more weight.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step.
        momentum: $\mu$ in [0, 1). With a literal 0.0, no state is kept.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        decoupled_weight_decay: If False, the decay is added to the gradient, and is thus included in the momentum.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.signum(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (2.0, -0.5):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([-0.1000])

    Source: Bernstein et al. 2018, arXiv:1802.04434. Departures: a factor of $1-\mu$ before $g$, which does not change
    the signs.
    """
    return with_decay(
        scale_by_lion((momentum, momentum)), weight_decay, decoupled_weight_decay, lr
    )


@alias
def tiger(lr=1e-3, beta: Decay = 0.965, weight_decay=0.01):
    r"""Tiger: `signum` with a longer memory and decoupled weight decay.

    $m \leftarrow \beta m + (1-\beta) g$, $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(m)$.

    When to use: like `signum`; its author designed it for language models with little memory.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step.
        beta: $\beta$ in [0, 1).
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.tiger(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([0.0, 2.0])}
        >>> tx.update({"w": torch.tensor([1e-9, -7.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000, -0.1000])

    Source: Su 2023, bojone/tiger. Departures: rates are neither scaled by the size of the weights nor halved for
    biases, as in pytorch_optimizer.
    """
    return with_decay(scale_by_lion((beta, beta)), weight_decay, True, lr)


@alias
def rprop(lr=1e-2, **options: Annotated[Any, scale_by_rprop]):
    r"""Rprop, equivalent to torch.optim.Rprop: steps from the signs of full gradients, not for mini-batches.

    $\Delta \leftarrow \Delta \cdot (\eta^+, 1, \eta^-)$ where the gradient and its predecessor have the same sign, one
    of them is zero, or their signs differ, then clipped; $p \leftarrow p - \mathrm{sign}(g) \Delta$, except where the
    signs differ: there the weight does not change, and the gradient counts as 0.

    When to use: full batches only, with gradients free of noise: small problems, fits of physical models.

    Args:
        lr: $\Delta \ge 0$ in the first step; later values are ignored.
        etas: $(\eta^-, \eta^+)$, the first in (0, 1), the second above 1.
        step_sizes: Bounds of $\Delta$, each in [0, inf).

    Returns:
        A transformation whose updates are added to the parameters. State: `prev`, `step_size`.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Example:
        >>> tx = gradtx.rprop(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Riedmiller and Braun 1993; Igel and Huesken 2000 (iRprop-). Departures: none from torch.optim.Rprop.
    """
    return scale_by_rprop(lr, **options)


@alias(class_name="FOCUS")
def focus(lr=1e-2, **direction: Annotated[Any, scale_by_focus]):
    r"""FOCUS: the sign of a momentum, plus an attraction to the average of the weights.

    $p \leftarrow p - \eta (\mathrm{sign}(m_t) + \gamma\, \mathrm{sign}(p - \hat p) + \lambda \hat p)$ with the average
    $\hat p$ of the weights; see `scale_by_focus`.

    When to use: like Signum or Lion, if gradients are noisy: it finds the bottom of a narrow valley (the paper's
    claim).

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step.
        betas: $(\beta_1, \beta_2)$, the decay rates of the momentum and of the average of the weights, each in [0, 1).
        gamma: $\gamma \ge 0$, the strength of the attraction.
        weight_decay: $\lambda \ge 0$, applied to the average of the weights.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `pbar`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.focus(lr=0.1, gamma=0.5)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # one weight is now above its average, the other below
        >>> for at in ([0.0, 0.0], [1.0, -1.0]):
        ...     updates, state = tx.update({"w": torch.ones(2)}, state, {"w": torch.tensor(at)})
        >>> updates["w"]
        tensor([-0.1500, -0.0500])

    Source: Liu, Liu and Gore 2025, arXiv:2501.12243. Departures: see `scale_by_focus`. (pytorch_optimizer's class
    applies the decay before it takes the sign.)
    """
    return chain(scale_by_focus(**direction), scale_by_learning_rate(lr))


@alias
def grams(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
):
    r"""Grams: steps as long as Adam's, in the direction of the gradient's signs.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(g) |\hat m| \sqrt{1-\beta_2^t} / (\sqrt v + \epsilon)$.

    When to use: instead of AdamW with caution (`scale_by_caution`), which it takes one step further; the paper reports
    faster convergence for language models. Use large batches, because the sign is that of a single batch.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.grams(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, -0.1):  # Adam would still move by -0.0593
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([0.0593])

    Source: Cao et al. 2024, arXiv:2412.17107. Departures: none from the authors' code. pytorch_optimizer adds eps after
    the correction.
    """
    direction = chain(scale_by_adam_hat(betas, eps), take_signs_of_gradient())
    return with_decay(direction, weight_decay, True, lr)


@per_tensor(elementwise=True)
def scale_by_ano(betas=(0.92, 0.99), eps=1e-8, logarithmic=False):
    r"""Combine the sign of the momentum with the size of the gradient, divided by a root mean square: Ano's direction.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$, $v \leftarrow \beta_2 v + (1-\beta_2)\, \mathrm{sign}(g^2 - v)\, g^2$,
    direction $|g|\, \mathrm{sign}(m) / (\sqrt{v / (1-\beta_2^t)} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1). $v$ is at least 0, which only matters for $\beta_2 < 0.5$.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        logarithmic: Use $\beta_1 = 1 - 1 / \ln(\max(2, t))$ instead, which is negative for t <= 2.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` ($m$), `exp_avg_sq` ($v$).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_ano(betas=(0.5, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grads in (4.0, -1.0):  # the momentum has the sign
        ...     updates, state = tx.update({"w": torch.tensor([grads])}, state)
        ...     print(updates["w"] > 0)
        tensor([True])
        tensor([True])

    Source: Ano, arXiv:2508.18258. Departures: $v$ is at least 0.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        decay = 1 - 1 / at_least(ctx.time, 2).log() if logarithmic else beta1
        m = running_mean(state["exp_avg"], g, decay)
        v, square_of_g = state["exp_avg_sq"], g.square()
        signed = (square_of_g - v).sign() * square_of_g
        v = at_least(running_mean(v, signed, beta2), 0)
        direction = g.abs() * m.sign() / (corrected_root(v, ctx, beta2) + eps)
        return direction, {"exp_avg": m, "exp_avg_sq": v}

    first = linear() if logarithmic else ema(beta1)
    return {"exp_avg": first, "exp_avg_sq": square()}, update


@alias
def ano(lr=1e-4, betas=(0.92, 0.99), eps=1e-8, weight_decay=0.0, logarithmic=False):
    r"""Ano: steps along the sign of the momentum, with the size of Adam's normalized gradient.

    $p \leftarrow p - \eta (d + \lambda p)$ with the direction $d$ of `scale_by_ano`.

    When to use: noisy or changing objectives, such as reinforcement learning, where the size of the momentum lags.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        weight_decay: $\lambda \ge 0$, decoupled.
        logarithmic: Use $\beta_1 = 1 - 1 / \ln(\max(2, t))$ instead.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.ano(lr=0.1)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([3.0, -1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Ano, arXiv:2508.18258. Departures: as for `scale_by_ano`.
    """
    return with_decay(scale_by_ano(betas, eps, logarithmic), weight_decay, True, lr)
