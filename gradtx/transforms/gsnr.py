"""SGD-SaI: one rate per leaf, fixed by its first gradient."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar, exact_dtype
from gradtx.rules import per_tensor
from gradtx.transforms._math import norm, safe_sqrt

__all__ = ["scale_by_gsnr"]


@per_tensor
def scale_by_gsnr(eps: Scalar = 1e-8):
    r"""Multiply each leaf by the fixed signal-to-noise ratio of its first gradient: SGD-SaI.

    $q = \lVert g_1 \rVert / (\sigma(g_1) + \epsilon)$ for leaves with two or more dimensions whose first dimension is
    not of size 1, with the standard deviation $\sigma$ over the leaf. Where $\sigma = 0$, and for all other leaves,
    $q = \lVert g_1 \rVert$. Direction $q u$; $g_1$ is the first gradient passed to the chain, before any link.

    Args:
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `gsnr` ($q$; -1 before the first gradient), 0-d float64
        for each leaf.

    Raises:
        ValueError: If `eps` is negative.

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
        return torch.where(even, size, size / torch.where(even, 1.0, deviation + eps))

    def init(param):
        return {"gsnr": param.new_full((), -1.0, dtype=exact_dtype(param))}

    def update(update, state, param, ctx):
        old = state["gsnr"]
        ratio_now = ctx.first(
            lambda: ratio(ctx.grad).to(old.dtype), lambda: old, unseen=old < 0
        )
        return ratio_now * update, {"gsnr": ratio_now}

    return init, update
