"""FAdam: Adam as natural gradient descent, with gradients and decay divided by the root of the Fisher information."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import NonNegative, PositiveOrInf
from gradtx.base.exact import exact
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import at_least, quotient, rms, running_mean, safe_pow
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square
from gradtx.transform import chain

__all__ = ["fadam", "scale_by_fadam"]


@per_tensor(needs="params", length="sets")
def scale_by_fadam(
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.1,
    clip: PositiveOrInf = 1.0,
    p: NonNegative = 0.5,
    eps2: NonNegative = 0.01,
):
    r"""Average gradients divided by the root of the Fisher information, and decay weights likewise: FAdam.

    $f_t$ is the bias-corrected average of $g^2$ with $\beta_2$;
    $B = f^k + \min(\epsilon, \epsilon_2\, \mathrm{rms}(g))^{2k}$, $u = g / B$ and $w = p / B$, each divided by
    $\max(1, \mathrm{rms} / c)$; $m_t = \beta_1 m_{t-1} + (1-\beta_1) u$, direction $m_t + \lambda w$. Root mean squares
    are over the leaf.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        weight_decay: $\lambda \ge 0$.
        clip: $c > 0$, the largest root mean square of $u$ and of $w$.
        p: $k \ge 0$, exponent of the Fisher information; 0.5 is the root.
        eps2: $\epsilon_2 \ge 0$, relative to the gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum` ($m$), `fim` ($f$), shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_fadam(betas=(0.0, 0.9), eps=0.0, weight_decay=0.5)
        >>> # the decay is divided as well: by 1 and by 30
        >>> params = {"w": torch.tensor([1.0, 3.0])}
        >>> tx.update({"w": torch.tensor([1.0, 30.0])}, tx.init(params), params)[0]["w"]
        tensor([1.5000, 1.0500])

    Source: Hwang 2024, arXiv:2405.12807. Departures: none from the public code (lessw2020/FAdam_PyTorch).
    """
    beta1, beta2 = betas

    def clipped(x):
        return x / at_least(rms(x) / clip, 1.0)

    def update(update, state, param, ctx):
        # 1 at t = 1: the stored average is unbiased.
        share = (1 - beta2) / ctx.bias_correction(beta2)
        fisher = (1 - share) * state["fim"] + share * update.square()
        size = rms(update)
        least = exact(eps, update.device)
        floor = torch.where(size == 0, least, torch.minimum(least, eps2 * size))
        base = safe_pow(fisher, p) + safe_pow(floor, 2 * p)
        mean = running_mean(state["momentum"], clipped(quotient(update, base)), beta1)
        return mean + weight_decay * clipped(quotient(param, base)), {
            "momentum": mean,
            "fim": fisher,
        }

    return {"momentum": linear(), "fim": square()}, update


@alias(class_name="FAdam")
def fadam(lr=1e-3, **direction: Annotated[Any, scale_by_fadam]):
    r"""FAdam: Adam as natural gradient descent, with gradients and decay divided by the root of the Fisher information.

    $p \leftarrow p - \eta (m_t + \lambda w)$, with the average $m$ of $u = g / B$ and $w = p / B$, each clipped to a
    root mean square of $c$; $B$ is the root of the average of $g^2$, enlarged where that is small. See
    `scale_by_fadam`.

    When to use: instead of AdamW, if the decay should be weaker on weights with a large effect on the loss.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$.
        clip: $c > 0$, the largest root mean square of $u$ and of $w$.
        p: $k \ge 0$, the power of the Fisher information; 0.5 is the root.
        eps2: $\epsilon_2 \ge 0$, relative to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum`, `fim`.

    Example:
        >>> tx = gradtx.fadam(lr=0.1, betas=(0.0, 0.9), weight_decay=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Hwang 2024, arXiv:2405.12807. Departures: see `scale_by_fadam`. (pytorch_optimizer spells `eps2` as
    `eps_2`.)
    """
    return chain(scale_by_fadam(**direction), scale_by_learning_rate(lr))
