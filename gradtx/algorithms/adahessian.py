"""AdaHessian: Adam with the diagonal of the Hessian instead of the gradient in the denominator."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import Count, Fraction
from gradtx.links.decay import with_decay
from gradtx.maths.entries import average_over_space, running_mean, safe_pow
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema, square

__all__ = ["adahessian", "scale_by_hessian"]


@per_tensor(
    elementwise=lambda arguments: not arguments["spatial_average"],
    needs="hessian_diag",
)
def scale_by_hessian(
    betas=(0.9, 0.999),
    eps=1e-4,
    hessian_power: Fraction = 1.0,
    update_period: Count = 1,
    spatial_average=True,
):
    r"""Divide the mean gradient by the root mean square of the Hessian's diagonal: AdaHessian's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1-\beta_2) D_t^2$, direction
    $\hat m_t / (\hat v_t^{k/2} + \epsilon)$ with $\hat m_t = m_t/(1-\beta_1^t)$, $\hat v_t = v_t/(1-\beta_2^t)$. $D_t$
    is the extra `hessian_diag` where $(t-1) \bmod$ `update_period` $= 0$, otherwise the last one used.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the power.
        hessian_power: $k$ in [0, 1]; 0 divides by $1 + \epsilon$.
        update_period: Steps between two Hessians, >= 1. Pass `hessian_diag` at every call; None keeps the last, also of
            a leaf without a gradient in the call that ends a cycle of `accumulate`.
        spatial_average: Average $|D|$ over dimensions 2 and above of leaves that have them.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_hessian_diag_sq` and, with an
        `update_period` above 1, `hessian_diag` (the last $|D|$), shaped as the parameter.

    Raises:
        ValueError: If it is None although `update_period` is 1.

    Example:
        >>> tx = gradtx.scale_by_hessian(eps=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> diag = {"w": torch.tensor([2.0, -8.0])}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([4.0, 4.0])}, tx.init(params), hessian_diag=diag
        ... )
        >>> updates["w"]
        tensor([2.0000, 0.5000])

    Source: Yao et al. 2020, arXiv:2006.00719. Departures: 2-d weights are not averaged over rows, as in the authors'
    image code; $v$ is averaged at every step, even where $D$ is reused, to match its bias correction.
    """
    beta1, beta2 = betas

    size = average_over_space if spatial_average else torch.abs

    def update(g, state, p, ctx):
        D, v = ctx.hessian_diag, state["exp_hessian_diag_sq"]
        new_state = {}
        if update_period == 1:
            check_diagonal("scale_by_hessian", ctx)
        D = None if D is None else size(D)
        if update_period > 1:
            old, latest = state["hessian_diag"], D
            D = old
            if latest is not None:
                D = ctx.every(update_period, 1, lambda: latest, lambda: old)
            new_state["hessian_diag"] = D
        if D is not None:
            v = running_mean(v, D.square(), beta2)
        m = running_mean(state["exp_avg"], g, beta1)
        new_state |= {"exp_avg": m, "exp_hessian_diag_sq": v}
        root = safe_pow(v / ctx.bias_correction(beta2), hessian_power / 2)
        u = m / ctx.bias_correction(beta1) / (root + eps)
        if not ctx.has_gradient:
            # Where no curvature is known yet, eps alone would be the divisor.
            u = torch.where(v == 0, 0.0, u)
        return u, new_state

    slots = {
        "exp_avg": ema(beta1),
        "exp_hessian_diag_sq": square(),
        "hessian_diag": torch.zeros_like if update_period > 1 else None,
    }
    return slots, update


def check_diagonal(who: str, ctx) -> None:
    """Check that a leaf with a gradient has a new diagonal."""
    if ctx.hessian_diag is None and ctx.has_gradient:
        raise ValueError(
            f"{who}: hessian_diag is None, which keeps the last one, but update_period=1 requires a new one at "
            "every step; pass a tensor for each leaf with a gradient"
        )


@alias(class_name="AdaHessian")
def adahessian(
    lr=0.15,
    betas=(0.9, 0.999),
    eps=1e-4,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_hessian],
):
    r"""AdaHessian: Adam with the diagonal of the Hessian instead of the gradient in the denominator.

    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m_t / (\hat v_t^{k/2} + \epsilon)$ with the bias-corrected averages
    $\hat m$ of $g$ and $\hat v$ of $D^2$. $D$ is the extra `hessian_diag`, as computed by `hutchinson_hessian_diag`;
    the torch optimizer obtains it from `loss.backward(create_graph=True)` or from a closure.

    When to use: when curvature differs widely between weights, and a second backward pass at every step is affordable.

    Args:
        lr: $\eta$ in [0, inf): 1 is a Newton step, so rates are larger than Adam's.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the power, in units of the Hessian.
        weight_decay: $\lambda \ge 0$, decoupled.
        hessian_power: $k$ in [0, 1]; 0 is momentum SGD.
        update_period: Number of steps between Hessian estimates, >= 1.
        spatial_average: Average $|D|$ over dimensions 2 and up of leaves that have them.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_hessian_diag_sq`,
        [`hessian_diag`].

    Example:
        >>> tx = gradtx.adahessian(lr=1.0, eps=0.0)
        >>> # the loss 2 a^2 + 5 b^2, minimized in one step
        >>> params = {"w": torch.tensor([3.0, -1.0])}
        >>> grads = {"w": params["w"] * torch.tensor([4.0, 10.0])}
        >>> diag = {"w": torch.tensor([4.0, 10.0])}
        >>> updates, _ = tx.update(grads, tx.init(params), params, hessian_diag=diag)
        >>> gradtx.apply_updates(params, updates)["w"].abs().max() < 1e-6
        tensor(True)

    Source: Yao et al. 2020, arXiv:2006.00719. Departures: those of `scale_by_hessian`; the decay is decoupled, as in
    the authors' code.
    """
    direction = scale_by_hessian(betas, eps, **options)
    return with_decay(direction, weight_decay, True, lr)
