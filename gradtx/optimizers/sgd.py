"""Gradient descent with momentum: SGD, SGDW, SGDS."""

from __future__ import annotations

from gradtx._arguments import Scalar
from gradtx.core import chain
from gradtx.factories import alias
from gradtx.transforms.decay import add_decayed_weights
from gradtx.transforms.momentum import trace
from gradtx.transforms.scaling import scale_by_learning_rate


@alias
def sgd(
    lr: Scalar = 1e-3,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    nesterov: bool = False,
):
    r"""Stochastic gradient descent, as torch.optim.SGD.

    $g \leftarrow g + \lambda p$, $b_t = \mu b_{t-1} + (1-\tau) g$ ($b_1 = g$), $p \leftarrow p - \eta b_t$, or
    $p - \eta (g + \mu b_t)$ with `nesterov`.

    Args:
        lr: $\eta$ in [0, inf), change of a weight per unit of gradient.
        momentum: $\mu$ in [0, inf). A literal 0.0 keeps no buffer.
        dampening: $\tau$; not applied to the first step.
        weight_decay: $\lambda \ge 0$, coupled: it enters the momentum.
        nesterov: Needs a momentum and no dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: numbers out of range, `nesterov` without momentum or with dampening.

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


@alias
def sgdw(
    lr: Scalar = 1e-3,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    nesterov: bool = False,
):
    r"""SGD with decoupled weight decay.

    $p \leftarrow p (1 - \eta \lambda)$, then `sgd` without decay on the same gradient.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, inf).
        dampening: $\tau$; not applied to the first step.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate; never enters the momentum.
        nesterov: Needs a momentum and no dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: numbers out of range, `nesterov` without momentum or with dampening.

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
        add_decayed_weights(weight_decay),  # after the momentum, before the rate: lr * weight_decay
        scale_by_learning_rate(lr),
    )


@alias(ranges={"momentum": "[0, 1)", "dampening": "[0, 1]"})
def sgds(
    lr: Scalar = 1e-3,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    nesterov: bool = False,
):
    r"""SGDS: SGD whose decoupled decay grows with the momentum as its step does (stable weight decay).

    $p \leftarrow p (1 - \eta \lambda (1-\tau)/(1-\mu))$, then `sgd` without decay on the same gradient.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        dampening: $\tau$ in [0, 1]; not applied to the first step, and without momentum only to the decay.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        nesterov: Needs a momentum and no dampening.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: numbers out of range, `nesterov` without momentum or with dampening, missing `params` unless
            `weight_decay` is 0.0.

    Example:
        >>> params = {"w": torch.tensor([2.0])}
        >>> for momentum in (0.0, 0.5):
        ...     tx = gradtx.sgds(lr=0.1, momentum=momentum, weight_decay=1.0)
        ...     print(tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]["w"])
        tensor([-0.3000])
        tensor([-0.5000])

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: a default for `lr`, which the authors ask for.
    """
    decay = weight_decay * (1 - dampening) / (1 - momentum)
    return chain(
        trace(momentum, dampening, nesterov),
        add_decayed_weights(decay),
        scale_by_learning_rate(lr),
    )
