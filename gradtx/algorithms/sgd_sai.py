"""SGD-SaI: SGD with momentum and one rate per leaf, the signal-to-noise ratio of its first gradient."""

from __future__ import annotations

import torch

from gradtx.arguments import Decay
from gradtx.links.decay import with_decay
from gradtx.links.momentum import trace_ema
from gradtx.maths.entries import norm, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar
from gradtx.transform import chain

__all__ = ["scale_by_gsnr", "sgd_sai"]


@per_tensor
def scale_by_gsnr(eps=1e-8):
    r"""Multiply each leaf by the fixed signal-to-noise ratio of its first gradient: SGD-SaI.

    $q = \lVert g_1 \rVert / (\sigma(g_1) + \epsilon)$ for leaves with two or more dimensions whose first dimension is
    not of size 1, with the standard deviation $\sigma$ over the leaf. Where $\sigma = 0$, and for all other leaves,
    $q = \lVert g_1 \rVert$. Direction $q u$; $g_1$ is the first gradient passed to the chain, before any link.

    Args:
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `gsnr` ($q$; -1 before the first gradient), 0-d float64
        for each leaf.

    Example:
        >>> tx = gradtx.scale_by_gsnr(eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2, 1)})
        >>> for grads in ([[1.0], [3.0]], [[9.0], [9.0]]):  # norm 3.1623, deviation 1.4142
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        ...     print(updates["w"].flatten())
        tensor([2.2361, 6.7082])
        tensor([20.1246, 20.1246])

    Source: Xu et al. 2024, arXiv:2412.11768. Departures: none from the authors' code.
    """

    def ratio(grad):
        size = norm(grad)
        if grad.ndim < 2 or grad.shape[0] == 1 or grad.numel() < 2:
            return size
        deviation = safe_sqrt((grad - grad.mean()).square().sum() / (grad.numel() - 1))
        even = deviation == 0
        return size / torch.where(even, 1.0, deviation + eps)

    def update(update, state, param, ctx):
        old = state["gsnr"]
        ratio_now = ctx.first(lambda: ratio(ctx.grad).to(old.dtype), lambda: old)
        return ratio_now * update, {"gsnr": ratio_now}

    return {"gsnr": scalar()}, update


@alias(class_name="SGDSaI")
def sgd_sai(
    lr=1e-2,
    momentum: Decay = 0.9,
    eps=1e-8,
    weight_decay=1e-2,
):
    r"""SGD-SaI: SGD with momentum and one rate per leaf, the signal-to-noise ratio of its first gradient.

    $p \leftarrow p - \eta (q m_t + \lambda p)$ with the average $m$ of the gradients and
    $q = \lVert g_1 \rVert / (\sigma(g_1) + \epsilon)$, fixed at the first step; see `scale_by_gsnr`.

    When to use: instead of AdamW, at half the memory, for transformers (the paper's claim). The first gradient should
    be typical.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and per leaf `gsnr`, 0-d
        float64.

    Example:
        >>> tx = gradtx.sgd_sai(lr=1.0, momentum=0.0, eps=0.0, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 1), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[4.0], [3.0]]), "b": torch.tensor([3.0])},
        ...     tx.init(params),
        ...     params,
        ... )
        >>> updates
        {'w': tensor([[-28.2843],
                [-21.2132]]), 'b': tensor([-9.])}

    Source: Xu et al. 2024, arXiv:2412.11768. Departures: none from the authors' code.
    """
    direction = chain(trace_ema(momentum), scale_by_gsnr(eps))
    return with_decay(direction, weight_decay, True, lr)
