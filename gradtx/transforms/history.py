"""Adam on gradients lengthened to their usual norm (AdaNorm); RMSprop whose memory follows the path (AdaSmooth)."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    corrected_root,
    norm,
    peak,
    quotient,
    running_mean,
    safe_sqrt,
    scalar_zero,
    zeros,
)

__all__ = ["scale_by_adanorm", "scale_by_adasmooth"]


@per_tensor(
    takes_complex=True,
    ranges={"r": "[0, 1)"},
    nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
)
def scale_by_adanorm(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    r: Scalar = 0.95,
    amsgrad: bool = False,
    accumulate_eps: bool = False,
):
    r"""Lengthen gradients that are shorter than usual to their usual norm before Adam averages them: AdaNorm.

    For each leaf, $e_t = r e_{t-1} + (1-r) \lVert g_t \rVert$ from 0 and without bias correction,
    $s_t = g_t \max(1, e_t / \lVert g_t \rVert)$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) s_t$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$ with the original gradient, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$. A zero gradient remains 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        r: Decay of the average norm, in [0, 1).
        amsgrad: Use the running maximum of $v$ instead of $v$.
        accumulate_eps: Also add $\epsilon$ to the stored $v$ at every step, as in the authors' code.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter; `exp_grad_norm`, 0-d float64 for each leaf.

    Raises:
        ValueError: If a beta or `r` is outside [0, 1), or if `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_adanorm(betas=(0.0, 0.5), r=0.5)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # e = 2, then 1.5: the second gradient is lengthened by half
        >>> for size in (4.0, 1.0):
        ...     _, state = tx.update({"w": torch.tensor([0.6, 0.8]) * size}, state)
        ...     print(state["scale_by_adanorm"]["exp_avg"]["w"])
        tensor([2.4000, 3.2000])
        tensor([0.9000, 1.2000])

    Source: Dubey et al. 2022, arXiv:2210.06364. Departures: none from the paper.
    """
    beta1, beta2 = betas
    moments = zeros("exp_avg", "exp_avg_sq", max_exp_avg_sq=amsgrad)

    def init(param):
        return moments(param) | {"exp_grad_norm": scalar_zero(param)}

    def update(update, state, param, ctx):
        length = norm(update)
        usual = running_mean(state["exp_grad_norm"], length, r)
        short = (length < usual) & (length > 0)
        lifted = quotient(usual, length, short, 1.0) * update
        mean = running_mean(state["exp_avg"], lifted, beta1)
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        if accumulate_eps:
            square = square + eps
        new = {"exp_avg": mean, "exp_avg_sq": square, "exp_grad_norm": usual}
        square = peak(new, state, "exp_avg_sq", amsgrad)
        root = corrected_root(square, ctx, beta2)
        return mean / ctx.bias_correction(beta1) / (root + eps), new

    return init, update


@per_tensor(
    elementwise=True,
    needs=("params",),
    ranges={"reset_every": "[1, inf)"},
    nonnegative=("abs_sum", "exp_avg_sq"),
)
def scale_by_adasmooth(
    betas: Betas = (0.5, 0.99), eps: Scalar = 1e-6, reset_every: int | None = None
):
    r"""Divide by a root mean square with a short memory for straight paths and a long one for oscillation: AdaSmooth.

    With $\Delta_t = p_t - p_{t-1}$, the change of the weight since the previous call (0 at the first):
    $S \leftarrow S + \Delta$, $N \leftarrow N + |\Delta|$, $e_t = |S|/N$ (0 where N = 0),
    $c_t = ((\rho_2 - \rho_1) e_t + 1 - \rho_2)^2$, $v_t = c_t g_t^2 + (1 - c_t) v_{t-1}$, direction
    $g_t / \sqrt{v_t + \epsilon}$; no bias correction.

    Args:
        betas: $(\rho_1, \rho_2)$, the fast and the slow decay, $0 \le \rho_1 < \rho_2 < 1$.
        eps: $\epsilon \ge 0$ inside the root, in the units of a squared gradient.
        reset_every: Steps after which $S$ and $N$ restart from 0 (the paper's window: an epoch); None for never.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, `prev_param`, `sum` ($S$) and `abs_sum`
        ($N$), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `betas` is not increasing, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_adasmooth()
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> state = tx.init(params)
        >>> # one weight moves straight, the other moves back
        >>> for moved in ([0.0, 0.0], [1.0, 1.0], [2.0, 0.0]):
        ...     updates, state = tx.update(
        ...         {"w": torch.ones(2)}, state, {"w": torch.tensor(moved)}
        ...     )
        >>> updates["w"]
        tensor([1.5118, 1.9994])

    Source: Lu 2022, arXiv:2204.00825. Departures: none from the paper.
    """
    fast, slow = betas
    if isinstance(fast, float) and isinstance(slow, float) and fast >= slow:
        raise ValueError(
            f"scale_by_adasmooth: betas must be increasing (fast decay first), got ({fast!r}, {slow!r})"
        )

    def init(param):
        return {"prev_param": param, **zeros("exp_avg_sq", "sum", "abs_sum")(param)}

    def update(update, state, param, ctx):
        moved = torch.where(ctx.step == 1, 0.0, param - state["prev_param"])
        total, path = state["sum"] + moved, state["abs_sum"] + moved.abs()
        if reset_every is not None:
            again = (ctx.step - 1) % reset_every == 0
            total, path = torch.where(again, 0.0, total), torch.where(again, 0.0, path)
        straightness = quotient(total.abs(), path)
        squared_rate = ((slow - fast) * straightness + (1 - slow)).square()
        square = (
            squared_rate * update.square() + (1 - squared_rate) * state["exp_avg_sq"]
        )
        new = {"exp_avg_sq": square, "prev_param": param, "sum": total, "abs_sum": path}
        return update / safe_sqrt(square + eps), new

    return init, update
