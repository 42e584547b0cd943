"""Methods without a learning rate to choose: from the loss (ALI-G) or the distance traveled (D-Adaptation, Prodigy)."""

from __future__ import annotations

import math
from typing import Annotated

from gradtx.arguments import Count, Decay, Decays, NonNegative, Positive, is_off
from gradtx.base.exact import Scalar
from gradtx.optimizers.adam import split_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.d_adaptation import (
    scale_by_dadapt_adagrad,
    scale_by_dadapt_adam,
    scale_by_dadapt_adan,
    scale_by_dadapt_lion,
    scale_by_dadapt_sgd,
    scale_by_prodigy,
)
from gradtx.transforms.momentum import trace
from gradtx.transforms.parameter_free import project_l2_ball, scale_by_polyak
from gradtx.transforms.scaling import descend
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = [
    "alig",
    "dadapt_adagrad",
    "dadapt_adam",
    "dadapt_adan",
    "dadapt_lion",
    "dadapt_sgd",
    "prodigy",
]


@alias(class_name="AliG")
def alig(
    max_lr: Annotated[Scalar, "[0, inf]"] | None = None,
    momentum: Decay = 0.0,
    adjusted_momentum: bool = False,
    eps: NonNegative = 1e-5,
    max_norm: Annotated[Scalar, "(0, inf]"] | None = None,
):
    r"""ALI-G: SGD whose rate is computed from the loss, for models that can reach a loss of 0.

    $\gamma = \min(f / (\lVert g \rVert^2 + \epsilon), \eta)$ with the loss $f$ at the parameters and batch of $g$, and
    the norm over the whole tree; $b \leftarrow \mu b - \gamma g$, $p \leftarrow p - \gamma g + \mu b$, then
    $p \leftarrow p \min(1, r / \lVert p \rVert)$.

    When to use: models that can fit their training data (loss 0), with one hyperparameter to tune, the largest rate.

    Args:
        max_lr: $\eta \ge 0$, the largest rate; None for no bound. A parameter group shows it as `lr`.
        momentum: $\mu$ in [0, 1). With a literal 0.0, no buffer is kept.
        adjusted_momentum: Use $b \leftarrow \mu b - g$, $p \leftarrow p + \gamma (-g + \mu b)$: the rate of the step
            then multiplies the whole momentum.
        eps: $\epsilon \ge 0$, in units of the squared gradient.
        max_norm: $r > 0$, instead of weight decay; None for no bound.

    Returns:
        A transformation whose updates are added to the parameters. State: [`momentum_buffer`].

    Raises:
        ValueError: If a hyperparameter is out of range, if `value` is missing, or if `max_norm` is set and `params` is
            missing.

    Example:
        >>> tx = gradtx.alig(eps=0.0)
        >>> # loss: half the square, which falls to a quarter in a step
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": params["w"]}, tx.init(params), value=12.5)
        >>> updates["w"]
        tensor([-1.5000, -2.0000])

    Source: Berrada et al. 2019, arXiv:1906.05661. Departures: the initial weights are not projected (the authors' code
    does). pytorch_optimizer's class has a fixed eps of 1e-6.
    """
    step = scale_by_polyak(max_lr, eps)
    average = trace(momentum, nesterov=not is_off(momentum))
    links = (average, step) if adjusted_momentum else (step, average)
    return chain(*links, chain() if max_norm is None else project_l2_ball(max_norm))


@alias(class_name="DAdaptAdaGrad")
def dadapt_adagrad(
    lr: NonNegative = 1.0,
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-6,
    d0: Positive = 1e-6,
    growth_rate: Annotated[Scalar, "[1, inf]"] = math.inf,
):
    r"""D-Adapt AdaGrad: AdaGrad with an automatic learning rate.

    $\delta = d \eta$, $A \leftarrow A + g^2$, $s \leftarrow s + \delta g$,
    $p \leftarrow \mu p + (1-\mu)(x_0 - s/(\sqrt A + \epsilon))$; $d$ is a lower bound of the distance to the solution
    that increases during training; see `scale_by_dadapt_adagrad`.

    When to use: sparse problems suited to `adagrad`, when no rate is known.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        momentum: $\mu$ in [0, 1).
        weight_decay: $\lambda \ge 0$, added to the gradient.
        eps: $\epsilon \ge 0$.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `alphak`, `sk`, `x0`; shared by all leaves,
        0-d: `d`, `gsq_weighted`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.dadapt_adagrad()
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(200):  # the loss is |w - 7|, for which no rate was chosen
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> # 3 from the start
        >>> f"{params['w'].item():.0f}, d = {state['scale_by_dadapt_adagrad']['d']:.1f}"
        '7, d = 3.1'

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures: see `scale_by_dadapt_adagrad`.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_dadapt_adagrad(lr, momentum, eps, d0, growth_rate),
        descend(),
    )


@alias(class_name="DAdaptAdam")
def dadapt_adam(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    use_bias_correction: bool = False,
    d0: Positive = 1e-6,
    growth_rate: Annotated[Scalar, "[1, inf]"] = math.inf,
):
    r"""D-Adapt Adam: Adam with an automatic learning rate.

    $\delta = d \eta$, $m \leftarrow \beta_1 m + (1-\beta_1) \delta g$, $p \leftarrow p - m / (\sqrt v + \epsilon)$, $v$
    the average of $g^2$; $d$ is a lower bound of the distance to the solution that increases during training; see
    `scale_by_dadapt_adam`.

    When to use: Adam when no rate is known; leave `lr` at 1.0 and schedule it as usual. `prodigy` often finds its rate
    sooner.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Subtract $\delta \lambda p$ from the weights instead.
        use_bias_correction: Multiply $\delta$ by $\sqrt{1-\beta_2^t} / (1-\beta_1^t)$.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `s`; shared by all
        leaves, 0-d: `d`, `numerator_weighted`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> # a first step of d0 / sqrt(1 - beta2)
        >>> tx = gradtx.dadapt_adam(d0=0.1, betas=(0.0, 0.99))
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> tx.update({"w": torch.tensor([0.3, -7.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.0000,  1.0000])

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures: see `scale_by_dadapt_adam`.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled),
        scale_by_dadapt_adam(
            lr, betas, eps, decoupled, use_bias_correction, d0, growth_rate
        ),
        descend(),
    )


@alias(class_name="DAdaptSGD")
def dadapt_sgd(
    lr: NonNegative = 1.0,
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-6,
    growth_rate: Annotated[Scalar, "[1, inf]"] = math.inf,
):
    r"""D-Adapt SGD: SGD with an automatic learning rate.

    $\delta = d \eta / \lVert g_1 \rVert$, $s \leftarrow s + \delta g$, $p \leftarrow \mu p + (1-\mu)(x_0 - s)$; $d$ is
    a lower bound of the distance to the solution that increases during training; see `scale_by_dadapt_sgd`.

    When to use: SGD when no rate is known, mainly for convolutional networks.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        momentum: $\mu$ in [0, 1).
        weight_decay: $\lambda \ge 0$, added to the gradient, but not to $g_1$ in $\lVert g_1 \rVert$.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `s`, `x0`; shared by all leaves, 0-d: `d`,
        `numerator_weighted`, `g0_norm`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.dadapt_sgd(d0=1e-3, growth_rate=2.0)
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(5):  # d first moves at the second step, then it doubles
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(f"{10 - params['w'].item():.3f}")
        0.001
        0.002
        0.003
        0.005
        0.009

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733. Departures: see `scale_by_dadapt_sgd`.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_dadapt_sgd(lr, momentum, d0, growth_rate),
        descend(),
    )


@alias(class_name="DAdaptAdan")
def dadapt_adan(
    lr: NonNegative = 1.0,
    betas: Decays = (0.98, 0.92, 0.99),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.02,
    no_prox: bool = False,
    d0: Positive = 1e-6,
    growth_rate: Annotated[Scalar, "[1, inf]"] = math.inf,
):
    r"""D-Adapt Adan: Adan with an automatic learning rate.

    $\delta = d \eta$, $\Delta = g_t - g_{t-1}$, $m \leftarrow \beta_1 m + (1-\beta_1) \delta g$,
    $f \leftarrow \beta_2 f + (1-\beta_2) \delta \Delta$, $p \leftarrow (p - (m + \beta_2 f)/D) / (1 + \delta\lambda)$,
    $D$ from the average of $(g + \beta_2 \Delta)^2$; $d$ is a lower bound of the distance to the solution that
    increases during training; see `scale_by_dadapt_adan`.

    When to use: Adan when no rate is known.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1): weights of the old averages (the Adan paper writes
            $1 - \beta$).
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$.
        no_prox: Use $p \leftarrow (1 - \delta\lambda) p - (m + \beta_2 f)/D$ instead of the division.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_diff`, `exp_avg_sq`, `s`,
        `previous_grad`; shared by all leaves, 0-d: `d`, `gsq_weighted`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.dadapt_adan(
        ...     d0=0.1, betas=(0.0, 0.0, 0.0), weight_decay=1.0, no_prox=True
        ... )
        >>> params = {"w": torch.tensor([10.0])}
        >>> # -d0 (sign + p)
        >>> tx.update({"w": torch.tensor([4.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.1000])

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, with Xie et al. 2022, arXiv:2208.06677. Departures: see
    `scale_by_dadapt_adan`. (pytorch_optimizer's class of that name is a different method.)
    """
    return chain(
        scale_by_dadapt_adan(lr, betas, eps, weight_decay, no_prox, d0, growth_rate),
        descend(),
    )


@alias(class_name="DAdaptLion")
def dadapt_lion(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-6,
):
    r"""D-Adapt Lion: Lion with an automatic learning rate.

    $\delta = d \eta$, $y = \mathrm{sign}(\beta_1 m + (1-\beta_1) g)$, $p \leftarrow (1 - \delta\lambda) p - \delta y$,
    $m \leftarrow \beta_2 m + (1-\beta_2) \delta g$; $d$ is a lower bound of the distance to the solution that increases
    during training; see `scale_by_dadapt_lion`.

    When to use: Lion when no rate is known.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: Weights of the old momentum in the direction and in the next momentum, each in [0, 1).
        weight_decay: $\lambda \ge 0$, decoupled.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `s`; shared by all leaves, 0-d:
        `d`, `numerator_weighted`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.dadapt_lion(lr=0.5, d0=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([2.0, 2.0])}
        >>> # -0.05 (sign + p)
        >>> tx.update({"w": torch.tensor([9.0, -1e-5])}, tx.init(params), params)[0]["w"]
        tensor([-0.1500, -0.0500])

    Source: Defazio and Mishchenko 2023, arXiv:2301.07733, with Chen et al. 2023, arXiv:2302.06675. Departures: see
    `scale_by_dadapt_lion`.
    """
    return chain(scale_by_dadapt_lion(lr, betas, weight_decay, d0), descend())


@alias
def prodigy(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.999),
    beta3: Decay | None = None,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: Positive = 1e-6,
    d_coef: Positive = 1.0,
    growth_rate: Annotated[Scalar, "[1, inf]"] = math.inf,
    slice_p: Count = 1,
):
    r"""Prodigy: Adam with an automatic learning rate, found faster than by D-Adaptation.

    $\delta = d \eta$, $p \leftarrow p - \delta m / (\sqrt v + d \epsilon)$ with the averages $m$ of $d g$ and $v$ of
    $(d g)^2$; $d$ grows with $\sum g (p_0 - p)$, see `scale_by_prodigy`.

    When to use: Adam when no rate is known; leave `lr` at 1.0 and use cosine decay. The first choice among methods
    without a learning rate.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        beta3: Decay rate of the sums in the estimate, in [0, 1); None for $\sqrt{\beta_2}$.
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Subtract $\delta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.
        use_bias_correction: Multiply $\delta$ by $\sqrt{1-\beta_2^t} / (1-\beta_1^t)$.
        safeguard_warmup: Exclude $\eta$ from the denominator of the estimate, for long warm-ups.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        d_coef: Multiplier of the estimate, > 0; use it to obtain a larger or smaller rate.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.
        slice_p: Estimate only from every `slice_p`-th entry of a leaf, which saves memory; >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `s`, `p0`; shared by
        all leaves, 0-d: `d`, `d_max`, `d_numerator`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.prodigy()
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(20):  # the loss is |w - 7|, for which no rate was chosen
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> f"d = {state['scale_by_prodigy']['d']:.1f}"  # the solution is 3 from the start
        'd = 2.5'

    Source: Mishchenko and Defazio 2023, arXiv:2306.06101. Departures: see `scale_by_prodigy`. (pytorch_optimizer's
    class has no `slice_p`, and its coupled decay differs.)
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled),
        scale_by_prodigy(
            lr,
            betas,
            beta3,
            eps,
            decoupled,
            use_bias_correction=use_bias_correction,
            safeguard_warmup=safeguard_warmup,
            d0=d0,
            d_coef=d_coef,
            growth_rate=growth_rate,
            slice_p=slice_p,
        ),
        descend(),
    )
