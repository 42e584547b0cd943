"""TAM: SGD whose momentum gives less weight to gradients that point away from it."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import Decay
from gradtx.links.decay import with_decay
from gradtx.maths.entries import at_least, norms
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear

__all__ = ["scale_by_tam", "tam"]


def _directed(x: Tensor) -> Tensor:
    """Divide by the norms along dimension 0, or by the absolute value of a 0-d tensor."""
    return x / at_least(norms(x, 0), 1e-12)


def torque_aware(
    momentum: Tensor, update: Tensor, smooth: Tensor, beta, decay_rate, eps
) -> tuple[Tensor, Tensor]:
    """Return the next momentum, to which the gradient adds as much as both agree, and the average of that agreement."""
    along = (1 - decay_rate) * _directed(momentum) * _directed(update)
    smooth = decay_rate * smooth + along
    damped = ((1 + smooth) / 2 + eps) * update
    return beta * momentum + damped, smooth


@per_tensor
def scale_by_tam(momentum: Decay = 0.9, decay_rate: Decay = 0.9, eps=1e-8):
    r"""Add gradients to a momentum, damping those that turn away from it: torque-aware momentum.

    $n(x) = x / \lVert x \rVert$ with norms along dimension 0,
    $s_t = \gamma s_{t-1} + (1-\gamma)\, n(m_{t-1})\, n(g_t)$ entry by entry,
    $m_t = \mu m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$, direction $m_t$.

    Args:
        momentum: $\mu$ in [0, 1).
        decay_rate: $\gamma$ in [0, 1), decay of the average agreement.
        eps: $\epsilon \ge 0$, which gives an opposite gradient some weight.

    Returns:
        A transformation that keeps shapes and dtypes. State: `s`, `momentum_buffer` ($m$), shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_tam(momentum=0.5, decay_rate=0.0, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(())})
        >>> # half of the gradient at first, then all of it, then nothing
        >>> for grad in (2.0, 2.0, -8.0):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor(1.)
        tensor(2.5000)
        tensor(1.2500)

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: as in the public code, norms are along dimension 0 (the
    paper's cosine is over the whole leaf). pytorch_optimizer starts $m$ at $g_1$.
    """

    def update(update, state, param, ctx):
        buffer, smooth = torque_aware(
            state["momentum_buffer"], update, state["s"], momentum, decay_rate, eps
        )
        return buffer, {"s": smooth, "momentum_buffer": buffer}

    return {"s": torch.zeros_like, "momentum_buffer": linear()}, update


@alias(class_name="TAM")
def tam(lr=1e-3, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_tam]):
    r"""TAM: SGD whose momentum gives less weight to gradients that point away from it.

    $p \leftarrow p - \eta (m_t + \lambda p)$, $m_t = \mu m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$ with the average
    agreement $s$ of $m$ and $g$; see `scale_by_tam`.

    When to use: instead of SGD with momentum if gradients are misaligned, at about twice the rate.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        decay_rate: $\gamma$ in [0, 1), the decay rate of the average agreement.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `s`, `momentum_buffer`.

    Example:
        >>> tx = gradtx.tam(lr=1.0, momentum=0.0, decay_rate=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # no momentum yet, then a right angle: half of each
        >>> for grads in ([1.0, 0.0], [0.0, 1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        ...     print(updates["w"])
        tensor([-0.5000, -0.0000])
        tensor([-0.0000, -0.5000])

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: see `scale_by_tam`.
    """
    return with_decay(scale_by_tam(**direction), weight_decay, True, lr)
