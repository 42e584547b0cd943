"""Gradient descent: with momentum (SGD, SGDW, SGDS), averaged (ASGD), with an adaptive step size (adaptive GD)."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Decay, Fraction, NonNegative, Positive, is_off
from gradtx.base.exact import Scalar
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.averaging import scale_by_asgd
from gradtx.transforms.momentum import trace
from gradtx.transforms.parameter_free import scale_by_local_smoothness
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["adaptive_gd", "asgd", "sgd", "sgds", "sgdw"]


@alias(class_name="SGD")
def sgd(
    lr: NonNegative = 1e-3,
    momentum: NonNegative = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
):
    r"""SGD, equivalent to torch.optim.SGD: stochastic gradient descent with optional momentum.

    $g \leftarrow g + \lambda p$, $b_t = \mu b_{t-1} + (1-\tau) g$ ($b_1 = g$), $p \leftarrow p - \eta b_t$, or
    $p - \eta (g + \mu b_t)$ with `nesterov`.

    When to use: convolutional networks with a tuned schedule, tight memory, or a well-known baseline.

    Args:
        lr: $\eta$ in [0, inf), the change of a weight per unit of gradient.
        momentum: $\mu$ in [0, inf). With a literal 0.0, no buffer is kept.
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        weight_decay: $\lambda \ge 0$, coupled: included in the momentum.
        nesterov: Use Nesterov momentum; requires a nonzero momentum and zero dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `nesterov` is used without momentum or with dampening, or if
            `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sgd(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.3000])

    Source: Robbins and Monro 1951; Sutskever et al. 2013. Departures: none from torch.optim.SGD.
    """
    return chain(
        add_decayed_weights(weight_decay),
        trace(momentum, dampening, nesterov),
        scale_by_learning_rate(lr),
    )


@alias(class_name="SGDW")
def sgdw(
    lr: NonNegative = 1e-3,
    momentum: NonNegative = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
):
    r"""SGDW: SGD with decoupled weight decay.

    $p \leftarrow p (1 - \eta \lambda)$, then `sgd` without decay on the same gradient.

    When to use: SGD with independently tuned learning rate and decay.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, inf).
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate; never included in the momentum.
        nesterov: Use Nesterov momentum; requires a nonzero momentum and zero dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `nesterov` is used without momentum or with dampening, or if
            `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sgdw(lr=0.1, momentum=0.9, weight_decay=1.0)
        >>> params = {"w": torch.tensor([2.0])}
        >>> _, state = tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)
        >>> state["trace"]["momentum_buffer"]["w"]  # the decay is not in it
        tensor([1.])

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101. Departures: the paper's schedule multiplier is `lr` itself.
    """
    return chain(
        trace(momentum, dampening, nesterov),
        # After the momentum, before the rate: lr * weight_decay.
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )


@alias(class_name="SGDS")
def sgds(
    lr: NonNegative = 1e-3,
    momentum: Decay = 0.0,
    dampening: Fraction = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
):
    r"""SGDS: SGD whose decoupled decay grows with the momentum, as its steps do (stable weight decay).

    $p \leftarrow p (1 - \eta \lambda (1-\tau)/(1-\mu))$, then `sgd` without decay on the same gradient.

    When to use: SGD with momentum and a varying learning rate, if the strength of the decay should not depend on the
    momentum.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        dampening: $\tau$ in [0, 1]; not applied to the first step, and without momentum applied only to the decay.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        nesterov: Use Nesterov momentum; requires a nonzero momentum and zero dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `nesterov` is used without momentum or with dampening, or if
            `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> params = {"w": torch.tensor([2.0])}
        >>> for momentum in (0.0, 0.5):
        ...     tx = gradtx.sgds(lr=0.1, momentum=momentum, weight_decay=1.0)
        ...     print(tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]["w"])
        tensor([-0.3000])
        tensor([-0.5000])

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: a default for `lr`, which the authors require.
    """
    decay = (
        0.0 if is_off(weight_decay) else weight_decay * (1 - dampening) / (1 - momentum)
    )
    return chain(
        trace(momentum, dampening, nesterov),
        add_decayed_weights(decay),
        scale_by_learning_rate(lr),
    )


@alias(class_name="ASGD")
def asgd(
    lr: NonNegative = 1e-2,
    lambd: NonNegative = 1e-4,
    alpha: NonNegative = 0.75,
    t0: NonNegative = 1e6,
    weight_decay: NonNegative = 0.0,
):
    r"""ASGD, equivalent to torch.optim.ASGD: SGD with a decaying rate that also averages its weights.

    $p \leftarrow p (1 - \lambda \eta_t) - \eta_t (g + w p)$ with $\eta_t = \eta / (1 + \lambda \eta (t - 1))^\alpha$,
    and the mean of $p$ since step $t_0$.

    When to use: when you need the average of plain SGD's weights on a convex or nearly convex problem.

    Args:
        lr: $\eta$ in [0, inf), the change of a weight per unit of gradient; a change of $\eta$ takes effect one step
            later.
        lambd: $\lambda \ge 0$, the decay of the weights and of the rate.
        alpha: $\alpha \ge 0$, the exponent of the decay of the rate.
        t0: $t_0 \ge 0$, the step at which the average begins.
        weight_decay: $w \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `ax`, the average, which `eval_params`
        returns; per leaf, `eta` and `mu`, 0-d.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.asgd(lr=1.0, lambd=0.0, t0=0.0)
        >>> params = {"w": torch.tensor([0.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.tensor([-2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([6.]), tensor([5.]))

    Source: Polyak and Juditsky 1992. Departures: none from torch.optim.ASGD, except that `eta` and `mu` are float64.
    pytorch_optimizer's ASGD is a different method: see `adaptive_gd`.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_asgd(lr, lambd, alpha, t0))


@alias(class_name="AdaptiveGD")
def adaptive_gd(
    lr: NonNegative = 0.2,
    amplifier: NonNegative = 0.02,
    damping: Positive = 1.0,
    theta: Annotated[Scalar, "(0, inf]"] = 1.0,
    eps: NonNegative = 1e-5,
    weight_decay: NonNegative = 0.0,
):
    r"""Adaptive gradient descent without descent: the step size follows the local smoothness of the loss.

    $\lambda_t = \min(\lambda_{t-1} \sqrt{1 + a \theta}, \lVert \Delta p \rVert / (b \lVert \Delta g \rVert)) +
    \epsilon$, $\theta = \lambda_t / \lambda_{t-1}$, $p \leftarrow p - \lambda_t (g + w p)$, one $\lambda$ for all
    weights.

    When to use: full or large batches, if the loss is smooth and no step size should have to be chosen; with noisy
    small batches, its estimate of the smoothness is noisy as well.

    Args:
        lr: $\lambda_0 > 0$, the initial step size; later values are ignored.
        amplifier: $a \ge 0$, how fast the step size may grow. The paper uses 1.
        damping: $b > 0$. The paper uses 2.
        theta: Initial $\theta > 0$. The paper uses inf.
        eps: $\epsilon \ge 0$, in units of a step size. The paper uses 0.
        weight_decay: $w \ge 0$, coupled, but excluded from the measurement.

    Returns:
        A transformation whose updates are added to the parameters; it accepts the extra `prev_grad` (see
        `scale_by_local_smoothness`; with `maximize`, pass it negated). State: `prev_param`, `previous_grad`; shared by
        all leaves, 0-d: `step_size`, `theta`.

    Raises:
        ValueError: If a hyperparameter is out of range, if the initial rate is 0, or if `params` is missing.

    Example:
        >>> tx = gradtx.adaptive_gd(
        ...     lr=0.001, amplifier=1.0, damping=2.0, theta=torch.inf, eps=0.0
        ... )
        >>> params = {"w": torch.tensor([1.0, -3.0])}
        >>> state = tx.init(params)
        >>> for _ in range(30):  # the loss is 5 / 2 |w|^2
        ...     updates, state = tx.update({"w": 5 * params["w"]}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool(params["w"].norm() < 1e-6)
        True

    Source: Malitsky and Mishchenko 2019, arXiv:1910.09529; the defaults are those of the authors' `Adsgd`. Departures:
    without the extra, noisy gradients shrink the step size, because their noise counts as curvature.
    pytorch_optimizer's ASGD uses the difference of norms instead of the norm of the difference.
    """
    return scale_by_local_smoothness(lr, amplifier, damping, theta, eps, weight_decay)
