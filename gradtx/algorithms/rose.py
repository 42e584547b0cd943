"""Rose: gradient descent where each row of a gradient is divided by its range."""

from __future__ import annotations

import torch

from gradtx.links.decay import with_decay
from gradtx.maths.entries import quotient, safe_sqrt, unit_centered
from gradtx.rules import alias, per_tensor

__all__ = ["rose", "scale_by_range"]


@per_tensor(whole=True, length="sets")
def scale_by_range(centralize=True, stabilize=True):
    r"""Divide each index of the first dimension by the range of its entries: Rose's direction.

    For each index, with two or more dimensions: $u \leftarrow u - \mathrm{mean}(u)$ (`centralize`),
    $D = |\max u| - \min u$, and with the mean M and the standard deviation S of D over the leaf,
    $D \leftarrow M + (D - M) \frac{M}{S + M}$ (`stabilize`); direction $u / D$, with D = 1 in place of 0. A vector has
    one range; a number becomes its sign.

    Args:
        centralize: Subtract the means.
        stabilize: Move the ranges towards their mean, the more the more they differ.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_range(stabilize=False)
        >>> tx.update({"w": torch.tensor([[1.0, 3.0], [0.0, 20.0]])}, tx.init({}))[0]["w"]
        tensor([[-0.5000,  0.5000],
                [-0.5000,  0.5000]])

    Source: MatthewK78/Rose. Departures: none; the range of negative entries only, where nothing is centered, is
    $|\max u| + |\min u|$, as there.
    """

    def update(u, state, p, ctx):
        if u.ndim == 0:
            return u.sign(), state
        if not u.numel():
            return u, state
        dims = tuple(range(1, u.ndim)) or (0,)
        if centralize and u.ndim > 1:
            u = unit_centered(u)
        D = u.amax(dims, keepdim=True).abs() - u.amin(dims, keepdim=True)
        if stabilize and u.ndim > 1:
            M = D.mean()
            S = safe_sqrt((D - M).square().mean())
            D = M + (D - M) * quotient(M, S + M)
        return u / torch.where(D == 0, 1.0, D), state

    return update


@alias(class_name="ROSE")
def rose(lr=1e-3, weight_decay=1e-4, centralize=True, stabilize=True):
    r"""Rose: gradient descent where each row of a gradient is divided by its range.

    $p \leftarrow p - \eta\, d(g + \lambda p)$ with the direction $d$ of `scale_by_range`.

    When to use: if there is no memory for any state, and the sizes of gradients differ between rows and layers.

    Args:
        lr: $\eta$ in [0, inf).
        weight_decay: $\lambda \ge 0$, coupled: added to the gradient.
        centralize: Subtract the mean of each row.
        stabilize: Move the ranges of rows towards their mean.

    Returns:
        A transformation whose updates are added to the parameters; no state.

    Example:
        >>> tx = gradtx.rose(lr=0.1, weight_decay=0.0)
        >>> params = {"w": torch.zeros(3)}
        >>> tx.update({"w": torch.tensor([30.0, 10.0, -20.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0600, -0.0200,  0.0400])

    Source: MatthewK78/Rose. Departures: computes in the dtype of the state, at least float32, rather than in float64.
    """
    return with_decay(scale_by_range(centralize, stabilize), weight_decay, False, lr)
