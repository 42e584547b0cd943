"""SGD, equivalent to torch.optim.SGD: stochastic gradient descent with optional momentum. Also `sgdw` and `sgds`."""

from __future__ import annotations

from gradtx.arguments import Decay, Fraction, Scalar, is_off
from gradtx.links.decay import with_decay
from gradtx.links.momentum import trace
from gradtx.rules import alias

__all__ = ["sgd", "sgds", "sgdw"]


@alias(class_name="SGD")
def sgd(
    lr=1e-3,
    momentum=0.0,
    dampening: Scalar = 0.0,
    weight_decay=0.0,
    nesterov=False,
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
        ValueError: If `nesterov` is used without momentum or with dampening.

    Example:
        >>> tx = gradtx.sgd(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([2.0])}
        >>> tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.3000])

    Source: Robbins and Monro 1951; Sutskever et al. 2013. Departures: none from torch.optim.SGD.
    """
    return with_decay(trace(momentum, dampening, nesterov), weight_decay, False, lr)


@alias(class_name="SGDW")
def sgdw(
    lr=1e-3,
    momentum=0.0,
    dampening: Scalar = 0.0,
    weight_decay=0.0,
    nesterov=False,
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
        ValueError: If `nesterov` is used without momentum or with dampening.

    Example:
        >>> tx = gradtx.sgdw(lr=0.1, momentum=0.9, weight_decay=1.0)
        >>> params = {"w": torch.tensor([2.0])}
        >>> _, state = tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)
        >>> state["trace"]["momentum_buffer"]["w"]  # the decay is not in it
        tensor([1.])

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101. Departures: the paper's schedule multiplier is `lr` itself.
    """
    # After the momentum, before the rate: lr * weight_decay.
    return with_decay(trace(momentum, dampening, nesterov), weight_decay, True, lr)


@alias(class_name="SGDS")
def sgds(
    lr=1e-3,
    momentum: Decay = 0.0,
    dampening: Fraction = 0.0,
    weight_decay=0.0,
    nesterov=False,
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
        ValueError: If `nesterov` is used without momentum or with dampening.

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
    return with_decay(trace(momentum, dampening, nesterov), decay, True, lr)
