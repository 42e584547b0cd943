"""signSGD: every weight moves by the learning rate against its gradient. Also `signum` and `tiger`."""

from __future__ import annotations

from gradtx.algorithms.lion import scale_by_lion
from gradtx.arguments import Decay
from gradtx.links.caution import scale_by_sign
from gradtx.links.decay import with_decay
from gradtx.rules import alias

__all__ = ["signsgd", "signum", "tiger"]


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

    Example:
        >>> tx = gradtx.tiger(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([0.0, 2.0])}
        >>> tx.update({"w": torch.tensor([1e-9, -7.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000, -0.1000])

    Source: Su 2023, bojone/tiger. Departures: rates are neither scaled by the size of the weights nor halved for
    biases, as in pytorch_optimizer.
    """
    return with_decay(scale_by_lion((beta, beta)), weight_decay, True, lr)
