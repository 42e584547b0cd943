"""Adaptive gradient descent: a step size from the measured rate of change of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.base.exact import Scalar
from gradtx.base.torch_names import readable
from gradtx.rules import per_tensor
from gradtx.transforms._math import quotient, safe_sqrt

__all__ = ["scale_by_local_smoothness"]


def _first_step_size(arguments):
    lr = arguments["lr"]
    if not (isinstance(lr, Tensor) and not readable(lr)) and lr == 0:
        raise ValueError(
            "scale_by_local_smoothness: every step size derives from the first, lr, which is 0; use an initial lr "
            "above 0"
        )
    return lr


@per_tensor(
    elementwise=True,
    needs=("params",),
    extras={"prev_grad": "leaf?"},
    shared={
        "step_size": _first_step_size,
        "theta": lambda arguments: arguments["theta"],
    },
    agree=("lr", "amplifier", "damping", "theta", "eps"),
    owns_lr=True,
    ranges={"amplifier": "[0, inf)", "damping": "(0, inf)", "theta": "(0, inf]"},
)
def scale_by_local_smoothness(
    lr: Scalar = 0.2,
    amplifier: Scalar = 0.02,
    damping: Scalar = 1.0,
    theta: Scalar = 1.0,
    eps: Scalar = 1e-5,
    weight_decay: Scalar = 0.0,
):
    r"""Descend with a step size that follows the local smoothness of the loss, without a line search.

    With $D = \lVert p_t - p_{t-1} \rVert$ and $G = \lVert g_t - g_{t-1} \rVert$ over all leaves together:
    $\lambda_t = \min(\lambda_{t-1} \sqrt{1 + a \theta_{t-1}}, D / (b G)) + \epsilon$, or
    $\lambda_{t-1} \sqrt{1 + a \theta_{t-1}}$ where D or G is 0, as at $t = 1$;
    $\theta_t = \lambda_t / \lambda_{t-1}$; update $-\lambda_t (g_t + w p_t)$. It owns the learning rate: no decay or
    learning rate may follow.

    Args:
        lr: $\lambda_0 > 0$; only read by `init`. Must be the same for all groups, as must the next four.
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

    Raises:
        ValueError: If an argument is out of range, if `lr` is initially 0, if `params` is missing, or if a later link
            scales by a learning rate or decays.

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

    def init(param):
        return {"prev_param": param, "previous_grad": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        before = state["previous_grad"] if ctx.prev_grad is None else ctx.prev_grad
        first = ctx.step == 1
        total = yield {
            "moved": torch.where(
                first, 0.0, (param - state["prev_param"]).square().sum()
            ),
            "changed": torch.where(first, 0.0, (ctx.grad - before).square().sum()),
        }
        old, growth = state["step_size"], state["theta"]
        free = growth.isinf()
        grown = old * (1 + amplifier * torch.where(free, 0.0, growth)).sqrt()
        known = (total["moved"] > 0) & (total["changed"] > 0)
        measured = quotient(
            safe_sqrt(total["moved"]), damping * safe_sqrt(total["changed"]), known
        )
        limited = torch.where(free, measured, torch.minimum(grown, measured)) + eps
        size = torch.where(known, limited, grown)
        yield (
            -size * (update + weight_decay * param),
            {
                "prev_param": param,
                "previous_grad": ctx.grad,
                "step_size": size,
                "theta": torch.where(free & ~known, growth, size / old),
            },
        )

    return init, update
