"""Adam and close variants: AdamW, AdamP and SGDP, Adam-atan2, ADOPT."""

from __future__ import annotations

import functools
from typing import Annotated

from gradtx.arguments import Decay, Decays, Fraction, NonNegative, Positive, is_off
from gradtx.base.exact import Scalar
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adam import (
    orthogonalize_against_ema,
    scale_by_adam,
    scale_by_adopt,
    scale_by_adopt_atan2,
    scale_by_atan2,
)
from gradtx.transforms.clipping import soft_row_clip
from gradtx.transforms.momentum import trace
from gradtx.transforms.projection import map_after_step, project_scale_invariant
from gradtx.transforms.scaling import hold_until, scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights, regenerate_towards_init

__all__ = ["adam", "adam_atan2", "adamp", "adamw", "adopt", "adopt_atan2", "sgdp"]


def decayed(direction, weight_decay, decoupled: bool):
    """Chain a direction with weight decay before it (coupled) or after it (decoupled)."""
    decay = add_decayed_weights(weight_decay)
    return chain(direction, decay) if decoupled else chain(decay, direction)


def split_decay(weight_decay, decoupled: bool) -> tuple:
    """Return the coupled and the decoupled weight decay, one of which is 0."""
    return (0.0, weight_decay) if decoupled else (weight_decay, 0.0)


def with_decay(direction, weight_decay, decoupled: bool, lr, fixed: bool = False):
    """Chain a direction, its weight decay before it (coupled) or after it (decoupled), and the learning rate.

    A `fixed` decay is not multiplied by the learning rate, so it comes last; `fixed` is read only if decoupled.
    """
    rate = scale_by_learning_rate(lr)
    if fixed and decoupled:
        return chain(direction, rate, add_decayed_weights(weight_decay, fixed=True))
    return chain(decayed(direction, weight_decay, decoupled), rate)


@alias
def adam(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
    *,
    decoupled_weight_decay: bool = False,
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
    return with_decay(
        scale_by_adam(betas, eps, amsgrad), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="AdamW")
def adamw(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
    amsgrad: bool = False,
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
    return with_decay(scale_by_adam(betas, eps, amsgrad), weight_decay, True, lr)


@alias(class_name="AdamP")
def adamp(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    nesterov: bool = False,
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
    lr: NonNegative,
    momentum: Decay = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    eps: NonNegative = 1e-8,
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


@alias
def adam_atan2(
    lr: NonNegative = 1e-4,
    betas: Decays = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    regen_reg_rate: NonNegative = 0.0,
    decoupled_wd: bool = False,
    cautious_wd: bool = False,
    cautious_factor: Fraction = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    *,
    wasserstein_reg: bool = False,
    orthog_grad: bool = False,
    orig_grad_ema_beta: Decay = 0.9,
    clip_to_grok: bool = False,
    clip_to_grok_max_norm: Annotated[Scalar, "(1, inf)"] = 2.0,
):
    r"""Adam-atan2: Adam without eps, invariant to the scale of the loss, with options that preserve plasticity.

    $p \leftarrow p (1 - \eta \lambda) - \eta a \, \mathrm{atan2}(\hat m, b \sqrt{\hat v})$.

    When to use: gradients whose scale varies widely or drifts (mixed losses, reinforcement learning, long runs), so
    that no single eps fits.

    Args:
        lr: $\eta$ in [0, inf); a weight moves by at most $\eta a \pi / 2$.
        betas: Decay rates of the two averages, each in [0, 1).
        weight_decay: $\lambda \ge 0$.
        regen_reg_rate: Strength of the pull toward the initial weights, >= 0, which replaces the decay toward 0.
        decoupled_wd: Divide both rates by the initial learning rate.
        cautious_wd: Decay only where update and weight have the same sign.
        cautious_factor: Factor in [0, 1] for entries whose update opposes the gradient; 1.0 disables it.
        a: Scale of the update, > 0.
        b: Scale of the denominator, > 0.
        wasserstein_reg: Pull the distribution of a leaf's weights toward its initial distribution.
        orthog_grad: Remove the component of the gradient along the mean of earlier gradients.
        orig_grad_ema_beta: Decay rate of that mean, in [0, 1).
        clip_to_grok: Divide rows of weights by their softly clamped norm after each step.
        clip_to_grok_max_norm: Upper bound of the clamp, > 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` and, depending on the
        options, `grad_ema`, `param_init`, `initial_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, if both rates are above 0, or if an option needs `params` and
            it is missing.

    Example:
        >>> tx = gradtx.adam_atan2(lr=0.1, a=4 / torch.pi)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1e-20, -3.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> updates["w"]
        tensor([-0.1000,  0.1000])

    Source: Everett et al. 2024, arXiv:2407.05872; options: arXiv 2308.11958, 2406.06811, 2411.16085, 2504.01961,
    2510.12402. The form is that of adam-atan2-pytorch 0.4.1. Departures: `decoupled_wd` is an option of that package
    and differs from `decoupled_weight_decay` (the decay is decoupled in both cases).
    """
    return chain(
        orthogonalize_against_ema(orig_grad_ema_beta) if orthog_grad else chain(),
        scale_by_atan2(betas, a, b, cautious_factor),
        _decay_or_regenerate(
            weight_decay, regen_reg_rate, lr, decoupled_wd, cautious_wd, wasserstein_reg
        ),
        scale_by_learning_rate(lr),
        map_after_step(functools.partial(soft_row_clip, max_norm=clip_to_grok_max_norm))
        if clip_to_grok
        else chain(),
    )


def _decay_or_regenerate(
    weight_decay,
    rate,
    lr,
    relative: bool,
    cautious: bool = False,
    wasserstein: bool = False,
):
    if not (is_off(weight_decay) or is_off(rate)):
        raise ValueError(
            "weight_decay and regen_reg_rate are mutually exclusive; set one of them to 0.0"
        )
    relative_to = lr if relative else None
    if is_off(rate):
        return add_decayed_weights(
            weight_decay, cautious=cautious, relative_to=relative_to
        )
    return regenerate_towards_init(rate, wasserstein, relative_to=relative_to)


@alias(class_name="ADOPT")
def adopt(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.9999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    clip_exponent: NonNegative | None = 0.25,
):
    r"""ADOPT: Adam that divides by the size of earlier gradients only, and therefore converges with any $\beta_2$.

    $n_t = g_t / \max(\sqrt{v_{t-1}}, \epsilon)$ clamped to $\pm (t-1)^c$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) n_t$,
    $p \leftarrow p - \eta m_t$; the first step only sets $v_1 = g_1^2$.

    When to use: when Adam diverges, or needs a beta2 tuned for each problem; in that case a drop-in replacement for
    `adam`.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: Lower bound of the denominator, >= 0.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.
        clip_exponent: $c \ge 0$; None disables clamping.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adopt(lr=0.1, betas=(0.0, 0.99))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([5.0])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-0.1000])

    Source: Taniguchi et al. 2024, arXiv:2411.02853. Departures: none from the authors' code, except that their function
    `clip_lambda` is replaced by its exponent.
    """
    return chain(
        with_decay(
            scale_by_adopt(betas, eps, clip_exponent),
            weight_decay,
            decoupled_weight_decay,
            lr,
        ),
        hold_until(2),  # neither the update nor the decay acts in the first step
    )


@alias
def adopt_atan2(
    lr: NonNegative = 1e-4,
    betas: Decays = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    regen_reg_rate: NonNegative = 0.0,
    decoupled_wd: bool = True,
    cautious_factor: Fraction = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
):
    r"""ADOPT-atan2: ADOPT with the arc tangent instead of its division and clamp.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) \mathrm{atan2}(g_t, b \sqrt{v_{t-1}})$,
    $p \leftarrow p (1 - \eta \lambda) - \eta a m_t$; the first step only decays and sets $v_1 = g_1^2$.

    When to use: like `adopt`, if gradients also vary widely in scale, so that neither eps nor the clamp should need
    tuning.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the two averages, each in [0, 1).
        weight_decay: $\lambda \ge 0$.
        regen_reg_rate: Strength of the pull toward the initial weights, >= 0, which replaces the decay toward 0.
        decoupled_wd: Divide both rates by the initial learning rate.
        cautious_factor: Factor in [0, 1] for entries whose old momentum opposes the gradient; 1.0 disables it.
        a: Scale of the update, > 0.
        b: Scale of the denominator, > 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq` and, depending on the
        options, `param_init`, `initial_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, if both rates are above 0, or if an option needs `params` and
            it is missing.

    Example:
        >>> tx = gradtx.adopt_atan2(lr=0.1, betas=(0.0, 0.99), a=4 / torch.pi)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([1e-12])}, state)
        ...     print(updates["w"])
        tensor([-0.])
        tensor([-0.1000])

    Source: adam-atan2-pytorch 0.4.1, after Taniguchi et al. 2024, arXiv:2411.02853. Departures: `decoupled_wd` also
    applies to the pull toward the initial weights, which that package always divides by the initial rate.
    """
    return chain(
        scale_by_adopt_atan2(betas, a, b, cautious_factor),
        _decay_or_regenerate(weight_decay, regen_reg_rate, lr, decoupled_wd),
        scale_by_learning_rate(lr),
    )
