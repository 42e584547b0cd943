"""AdamP: Adam without the radial part of its direction where weights appear scale-invariant. Also `sgdp`."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam
from gradtx.arguments import Decay, NonNegative, Scalar
from gradtx.links.momentum import trace
from gradtx.links.projection import project_scale_invariant
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["adamp", "sgdp"]


@alias(class_name="AdamP")
def adamp(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    nesterov=False,
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
    lr,
    momentum: Decay = 0.0,
    dampening: Scalar = 0.0,
    weight_decay=0.0,
    nesterov=False,
    eps=1e-8,
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
