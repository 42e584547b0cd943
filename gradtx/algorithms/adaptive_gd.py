"""Adaptive gradient descent without descent: the step size follows the local smoothness of the loss."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import NonNegative, Positive, PositiveOrInf
from gradtx.base.exact import exact
from gradtx.maths.entries import quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, start

__all__ = ["adaptive_gd", "scale_by_local_smoothness"]


@per_tensor(
    elementwise=True,
    needs="params",
    extras={"prev_grad": "leaf?"},
    shared={
        "step_size": lambda arguments: arguments["lr"],
        "theta": lambda arguments: arguments["theta"],
    },
    agree=("lr", "amplifier", "damping", "theta", "eps"),
    owns_lr=True,
)
def scale_by_local_smoothness(
    lr=0.2,
    amplifier: NonNegative = 0.02,
    damping: Positive = 1.0,
    theta: PositiveOrInf = 1.0,
    eps=1e-5,
    weight_decay=0.0,
):
    r"""Descend with a step size that follows the local smoothness of the loss, without a line search.

    With $D = \lVert p_t - p_{t-1} \rVert$ and $G = \lVert g_t - g_{t-1} \rVert$ over all leaves together:
    $\lambda_t = \min(\lambda_{t-1} \sqrt{1 + a \theta_{t-1}}, D / (b G)) + \epsilon$, or
    $\lambda_{t-1} \sqrt{1 + a \theta_{t-1}}$ where D or G is 0, as at $t = 1$;
    $\theta_t = \lambda_t / \lambda_{t-1}$; update $-\lambda_t (g_t + w p_t)$. It owns the learning rate: no decay or
    learning rate may follow.

    Args:
        lr: $\lambda_0$, the first value above 0. Of later values, only 0 has an effect: all step sizes derive from the
            previous one, so a step with a rate of 0 leaves weights and state as they are. Must be the same for all
            groups, as must the next four.
        amplifier: $a \ge 0$, how fast the step size may grow.
        damping: $b > 0$; the step size stays below 1 / b of the inverse smoothness.
        theta: $\theta_0 > 0$. With inf, the first measured step size has no upper limit.
        eps: $\epsilon \ge 0$, in the units of a step size.
        weight_decay: $w \ge 0$, coupled, but not included in G.

    Returns:
        A transformation whose updates are added to the parameters. It accepts the extra `prev_grad`, the gradients at
        the previous parameters on the current batch. If given, G is computed from them, as the authors do for noisy
        gradients. State: `prev_param`, `previous_grad`, shaped as the parameter; `step_size`, `theta`, 0-d float64
        shared by all leaves.

    Example:
        >>> tx = gradtx.scale_by_local_smoothness(
        ...     lr=1e-6, amplifier=1.0, damping=2.0, theta=torch.inf, eps=0.0
        ... )
        >>> params = {"w": torch.tensor([1.0, -3.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):  # the loss is 5 / 2 |w|^2, whose smoothness is 5
        ...     updates, state = tx.update({"w": 5 * params["w"]}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> f"{state['scale_by_local_smoothness']['step_size']:.3f}"  # 1 / (2 * 5)
        '0.100'

    Source: Malitsky and Mishchenko 2019, arXiv:1910.09529; the form with amplifier and eps is the authors' code.
    Departures: while nothing can be measured, an infinite theta remains infinite and the step size does not grow.
    """

    def update(g, state, p, ctx):
        rate = exact(lr, g.device)
        before = state["previous_grad"] if ctx.prev_grad is None else ctx.prev_grad
        moved = (p - state["prev_param"]).square().sum()
        changed = (ctx.grad - before).square().sum()
        total = yield {
            "moved": torch.where(ctx.seen, moved, 0.0),
            "changed": torch.where(ctx.seen, changed, 0.0),
        }
        old, growth = state["step_size"], state["theta"]
        old = torch.where(old == 0, rate, old)  # the first rate above 0
        free = growth.isinf()
        grown = old * (1 + amplifier * torch.where(free, 0.0, growth)).sqrt()
        # Of a NaN, too, so that it does not switch off the bound.
        has_moved = ~((total["moved"] <= 0) | (total["changed"] <= 0))
        measured = quotient(
            safe_sqrt(total["moved"]), damping * safe_sqrt(total["changed"]), has_moved
        )
        limited = torch.where(free, measured, torch.minimum(grown, measured)) + eps
        size = torch.where(has_moved, limited, grown)
        new_state = {
            "prev_param": p,
            "previous_grad": ctx.grad,
            "step_size": size,
            "theta": torch.where(free & ~has_moved, growth, quotient(size, old)),
        }
        moves = (
            rate != 0
        )  # otherwise the next measurement would be of a step of length 0
        new_state = {
            name: torch.where(moves, new_state[name], state[name]) for name in new_state
        }
        yield torch.where(moves, -size * (g + weight_decay * p), 0.0), new_state

    return {"prev_param": start(), "previous_grad": linear()}, update


@alias(class_name="AdaptiveGD")
def adaptive_gd(**arguments: Annotated[Any, scale_by_local_smoothness]):
    r"""Adaptive gradient descent without descent: the step size follows the local smoothness of the loss.

    $\lambda_t = \min(\lambda_{t-1} \sqrt{1 + a \theta}, \lVert \Delta p \rVert / (b \lVert \Delta g \rVert)) +
    \epsilon$, $\theta = \lambda_t / \lambda_{t-1}$, $p \leftarrow p - \lambda_t (g + w p)$, one $\lambda$ for all
    weights.

    When to use: full or large batches, if the loss is smooth and no step size should have to be chosen; with noisy
    small batches, its estimate of the smoothness is noisy as well.

    Args:
        lr: $\lambda_0$, the initial step size: the first value above 0. Of later values, only 0 has an effect: such a
            step leaves weights and state as they are.
        amplifier: $a \ge 0$, how fast the step size may grow. The paper uses 1.
        damping: $b > 0$. The paper uses 2.
        theta: Initial $\theta > 0$. The paper uses inf.
        eps: $\epsilon \ge 0$, in units of a step size. The paper uses 0.
        weight_decay: $w \ge 0$, coupled, but excluded from the measurement.

    Returns:
        A transformation whose updates are added to the parameters; it accepts the extra `prev_grad` (see
        `scale_by_local_smoothness`). State: `prev_param`, `previous_grad`; shared by all leaves, 0-d: `step_size`,
        `theta`.

    Example:
        >>> tx = gradtx.adaptive_gd(
        ...     lr=0.001, amplifier=1.0, damping=2.0, theta=torch.inf, eps=0.0
        ... )
        >>> params = {"w": torch.tensor([1.0, -3.0])}
        >>> state = tx.init(params)
        >>> for _ in range(30):  # the loss is 5 / 2 |w|^2
        ...     updates, state = tx.update({"w": 5 * params["w"]}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool(params["w"].norm() < 1e-6)
        True

    Source: Malitsky and Mishchenko 2019, arXiv:1910.09529; the defaults are those of the authors' `Adsgd`. Departures:
    without the extra, noisy gradients shrink the step size, because their noise counts as curvature.
    pytorch_optimizer's ASGD uses the difference of norms instead of the norm of the difference.
    """
    return scale_by_local_smoothness(**arguments)
