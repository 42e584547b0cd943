"""LARS: SGD with momentum and one rate per leaf, from the norms of its weights and its gradient."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import NonNegative, NonNegativeInt, Positive, Scalar
from gradtx.base.exact import exact
from gradtx.links.momentum import trace
from gradtx.links.scaling import norm_sums, scale_by_learning_rate
from gradtx.maths.entries import plus_decay, quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["lars", "scale_by_lars"]


@per_tensor(
    whole="sums",
    takes_complex=lambda arguments: arguments["min_ndim"] == 0,
    needs="params",
    length="sets",
)
def scale_by_lars(
    trust_coefficient: Positive = 0.001,
    weight_decay=0.0,
    eps=1e-8,
    trust_clip=False,
    min_ndim: NonNegativeInt = 0,
    lr: NonNegative | None = None,
):
    r"""Decay the weights and scale by one rate per leaf, from the norms of its weights and its gradient: LARS.

    $d = \gamma (g + \lambda p)$ with $\gamma = c \lVert p \rVert / (\lVert g \rVert + \lambda \lVert p \rVert +
    \epsilon)$, and $\gamma = 1$ where $\lVert p \rVert$ or $\lVert g \rVert$ is 0. An
    infinite norm of the gradient gives $\gamma = 0$, a NaN makes the whole leaf NaN.

    Args:
        trust_coefficient: $c > 0$, the change of a leaf relative to its size, per unit of the learning rate.
        weight_decay: $\lambda \ge 0$.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        trust_clip: Use $\gamma \leftarrow \min(\gamma / \eta, 1)$, so that no leaf moves further than under plain
            gradient descent (LARC).
        min_ndim: Leaves with fewer dimensions, >= 0, pass unchanged and without decay; 2 excludes biases and scales.
        lr: $\eta \ge 0$, for `trust_clip` only; a later link applies it.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `trust_clip` is set without `lr`.

    Example:
        >>> tx = gradtx.scale_by_lars(trust_coefficient=0.15, eps=0.0, min_ndim=1)
        >>> params = {"w": torch.tensor([6.0, 8.0]), "scale": torch.tensor(2.0)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.0, 1e-3]), "scale": torch.tensor(5.0)},
        ...     tx.init(params),
        ...     params,
        ... )
        >>> updates
        {'w': tensor([0.0000, 1.5000]), 'scale': tensor(5.)}

    Source: You et al. 2017, arXiv:1708.03888; trust_clip: NVIDIA's apex LARC. Departures: the paper has no eps.
    """
    if trust_clip and lr is None:
        raise ValueError(
            "scale_by_lars: trust_clip needs lr; pass the rate used by scale_by_learning_rate"
        )

    def update(u, state, p, ctx):
        if p.ndim < min_ndim:
            yield u, state
            return
        sums = yield norm_sums(p, u)
        weights, size = safe_sqrt(sums["weights"]), safe_sqrt(sums["size"])
        top, total = trust_coefficient * weights, size + weight_decay * weights + eps
        ratio = quotient(top, total, (weights > 0) & (size > 0), 1.0)
        if trust_clip:
            # min(ratio / lr, 1), valid at lr 0.
            ratio = ratio / torch.maximum(ratio, exact(lr, p.device))
        yield ratio * plus_decay(u, weight_decay, p), state

    return update


@alias(class_name="LARS")
def lars(
    lr=1.0,
    momentum=0.9,
    dampening: Scalar = 0.0,
    weight_decay=0.0,
    nesterov=False,
    **options: Annotated[Any, scale_by_lars],
):
    r"""LARS: SGD with momentum and one rate per leaf, from the norms of its weights and its gradient.

    $\gamma = c \lVert p \rVert / (\lVert g \rVert + \lambda \lVert p \rVert + \epsilon)$, 1 where $\lVert p \rVert$
    or $\lVert g \rVert$ is 0; then `sgd` without decay on $\gamma (g + \lambda p)$.

    When to use: batches of thousands of images, for convolutional networks.

    Args:
        lr: $\eta$ in [0, inf), a multiple of the rate of each leaf.
        momentum: $\mu$ in [0, inf). With a literal 0.0, no buffer is kept.
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        weight_decay: $\lambda \ge 0$; included in the momentum.
        nesterov: Use Nesterov momentum; requires a nonzero momentum and zero dampening.
        trust_coefficient: $c > 0$, the change of a leaf per step relative to its norm.
        eps: $\epsilon \ge 0$, in units of the gradient.
        trust_clip: Use $\min(\gamma / \eta, 1)$ instead of $\gamma$ (LARC).
        min_ndim: Leaves with fewer dimensions than this (>= 0) have $\gamma = 1$ and no decay.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If `nesterov` is used without momentum or with dampening.

    Example:
        >>> tx = gradtx.lars(trust_coefficient=0.1, min_ndim=1)
        >>> params = {"w": torch.tensor([6.0, 8.0]), "scale": torch.tensor(2.0)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([30.0, 40.0]), "scale": torch.tensor(5.0)},
        ...     tx.init(params),
        ...     params,
        ... )
        >>> updates
        {'w': tensor([-0.6000, -0.8000]), 'scale': tensor(-5.)}

    Source: You et al. 2017, arXiv:1708.03888. Departures: the paper has no eps, and multiplies by $\eta$ before the
    momentum, which is equivalent as long as $\eta$ is constant. pytorch_optimizer's class has `min_ndim=2` and `eps=0`,
    and also dampens the first step.
    """
    return chain(
        scale_by_lars(weight_decay=weight_decay, lr=lr, **options),
        trace(momentum, dampening, nesterov),
        scale_by_learning_rate(lr),
    )
