"""Divide gradients and weights by the diagonal of the empirical Fisher information: FAdam."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, quotient, rms, safe_pow, zeros

__all__ = ["scale_by_fadam"]


@per_tensor(
    needs=("params",),
    ranges={"clip": "(0, inf]", "p": "[0, inf)", "eps2": "[0, inf)"},
    example={"weight_decay": 0.1},
    nonnegative=("fim",),
)
def scale_by_fadam(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.1,
    clip: Scalar = 1.0,
    p: Scalar = 0.5,
    eps2: Scalar = 0.01,
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

    Raises:
        ValueError: If an argument is out of range, or if `params` is missing.

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
        floor = torch.minimum(exact(eps, update.device), eps2 * size)
        floor = torch.where(size == 0, exact(eps, update.device), floor)
        base = safe_pow(fisher, p) + safe_pow(floor, 2 * p)
        mean = beta1 * state["momentum"] + (1 - beta1) * clipped(quotient(update, base))
        return mean + weight_decay * clipped(quotient(param, base)), {
            "momentum": mean,
            "fim": fisher,
        }

    return zeros("momentum", "fim"), update
