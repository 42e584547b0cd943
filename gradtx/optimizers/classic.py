"""Classic adaptive methods of torch.optim: Adagrad, Adadelta, RMSprop, Rprop, AdaMax, NAdam."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Decays, Fraction, NonNegative
from gradtx.base.exact import Scalar
from gradtx.optimizers.adam import decayed, with_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adagrad import (
    scale_by_adadelta,
    scale_by_adamax,
    scale_by_rss,
)
from gradtx.transforms.adam import scale_by_nadam, scale_by_rms
from gradtx.transforms.momentum import trace
from gradtx.transforms.scaling import scale_by_inverse_time, scale_by_learning_rate
from gradtx.transforms.sign import scale_by_rprop

__all__ = ["adadelta", "adagrad", "adamax", "nadam", "rmsprop", "rprop"]


@alias
def adagrad(
    lr: NonNegative = 1e-2,
    lr_decay: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
    eps: NonNegative = 1e-10,
    *,
    decoupled_weight_decay: bool = False,
):
    r"""Adagrad, equivalent to torch.optim.Adagrad: the gradient over the root of the sum of all squares so far.

    $G_t = G_{t-1} + g_t^2$, $p \leftarrow p - \frac{\eta}{1 + (t-1) \kappa} \cdot g_t / (\sqrt{G_t} + \epsilon)$.

    When to use: sparse features and convex problems, such as linear models and embeddings; rates never rise.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight in the first step.
        lr_decay: $\kappa \ge 0$, an additional decay of the rate; the first step uses the full rate.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        initial_accumulator_value: $G_0 \ge 0$.
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, at the decayed rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `sum`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adagrad(lr=0.1, lr_decay=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        >>> updates["w"]  # 0.1 / 4 from the decay, and / 2 from the sum
        tensor([-0.0125])

    Source: Duchi, Hazan and Singer 2011, JMLR 12. Departures: none from torch.optim.Adagrad, except that a parameter
    group can have its own `initial_accumulator_value`.
    """
    return chain(
        decayed(
            scale_by_rss(eps, initial_accumulator_value),
            weight_decay,
            decoupled_weight_decay,
        ),
        scale_by_inverse_time(lr_decay),
        scale_by_learning_rate(lr),
    )


@alias
def adadelta(
    lr: NonNegative = 1.0,
    rho: Fraction = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    decoupled_weight_decay: bool = False,
):
    r"""Adadelta, equivalent to torch.optim.Adadelta: step sizes that follow those of earlier steps.

    $\delta_t = \sqrt{a_{t-1} + \epsilon} / \sqrt{q_t + \epsilon} \cdot g_t$, $p \leftarrow p - \eta \delta_t$ with the
    averages $q$ of $g^2$ and $a$ of $\delta^2$.

    When to use: existing recipes that use it; it needs almost no tuning of the learning rate, but learning-rate-free
    methods adapt better.

    Args:
        lr: $\eta$ in [0, inf); 1 is the paper's rule.
        rho: Decay rate of the averages, in [0, 1].
        eps: $\epsilon \ge 0$, added inside both square roots; the length of the first steps is about $\sqrt{\epsilon}$.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `square_avg`, `acc_delta`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adadelta(rho=0.0)
        >>> # sqrt(eps)
        >>> tx.update({"w": torch.tensor([1e3, -5.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0010,  0.0010])

    Source: Zeiler 2012, arXiv:1212.5701. Departures: none from torch.optim.Adadelta.
    """
    return with_decay(
        scale_by_adadelta(rho, eps), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="RMSprop")
def rmsprop(
    lr: NonNegative = 1e-2,
    alpha: NonNegative = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum: NonNegative = 0.0,
    centered: bool = False,
    *,
    eps_in_root: bool = False,
    initial_accumulator_value: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
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


@alias
def rprop(
    lr: NonNegative = 1e-2,
    etas: tuple[Annotated[Scalar, "(0, 1)"], Annotated[Scalar, "(1, inf)"]] = (
        0.5,
        1.2,
    ),
    step_sizes: tuple[NonNegative, NonNegative] = (1e-6, 50.0),
):
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
    return scale_by_rprop(lr, etas, step_sizes)


@alias
def adamax(
    lr: NonNegative = 2e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    decoupled_weight_decay: bool = False,
):
    r"""AdaMax, equivalent to torch.optim.Adamax: Adam with a decaying maximum instead of the root mean square.

    $u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon)$, $p \leftarrow p - \frac{\eta}{1-\beta_1^t} m_t / u_t$.

    When to use: embeddings and other sparse gradients, with spikes that should not be averaged into the denominator.

    Args:
        lr: $\eta$ in [0, inf), approximately the largest change of a weight per step.
        betas: Decay rates of the average and of the maximum, each in [0, 1).
        eps: $\epsilon \ge 0$, inside the maximum, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_inf`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamax(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Kingma and Ba 2014, arXiv:1412.6980, section 7.1. Departures: none from torch.optim.Adamax.
    """
    return with_decay(
        scale_by_adamax(betas, eps), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="NAdam")
def nadam(
    lr: NonNegative = 2e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum_decay: NonNegative = 4e-3,
    decoupled_weight_decay: bool = False,
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
