"""BCOS: division by an estimate of the mean square of the direction itself."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import quotient, running_mean, safe_sqrt, zeros

__all__ = ["scale_by_bcos"]

MODES = ("c", "m", "g")


@per_tensor(
    elementwise=True,
    ranges={"beta": "[0, 1)", "beta2": "[0, 1)"},
    nonnegative=("exp_avg_sq",),
)
def scale_by_bcos(
    beta: Scalar = 0.9,
    beta2: Scalar | None = None,
    eps: Scalar = 1e-6,
    mode: str = "c",
    simple_cond: bool = False,
):
    r"""Divide a momentum by the root of its mean square without an additional slot: BCOS.

    $m_t = \beta m_{t-1} + (1-\beta) g_t$ from $m_0 = g_1$. Mode "c": direction $m_t / (\sqrt{v_t} + \epsilon)$ with the
    conditional mean square
    $v_t = (3\beta^2 - 2\beta^3) m_{t-1}^2 + (1-\beta)^2 g_t^2 + 2\beta (1-\beta)^2 m_{t-1} g_t$. Modes "m" and "g":
    direction $d_t / (\sqrt{v_t} + \epsilon)$ with $d = m$ or $d = g$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) d_t^2$ from $v_0 = g_1^2$.

    Args:
        beta: $\beta$ in [0, 1).
        beta2: $\beta_2$ in [0, 1). None: $\beta$, or $1 - (1-\beta)^2$ with `simple_cond`.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        mode: "c", "m" or "g".
        simple_cond: In mode "c", use $v_t = \beta_2 m_{t-1}^2 + (1-\beta_2) g_t^2$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` (modes "c" and "m") and `exp_avg_sq` (modes
        "m" and "g"), shaped as the parameter and initialized from the first gradient passed to the chain.

    Raises:
        ValueError: If an argument is out of range, or if `mode` is unknown.

    Example:
        >>> tx = gradtx.scale_by_bcos(beta=0.5, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # a steady gradient, and one that changes sign
        >>> for grads in ([1.0, 1.0], [1.0, -1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        >>> updates["w"]
        tensor([1., 0.])

    Source: Jiang et al. 2025, arXiv:2507.08963. Departures: none from the authors' code. (pytorch_optimizer's class
    uses $m_t$ instead of $m_{t-1}$ in mode "c".)
    """
    if mode not in MODES:
        raise ValueError(
            f"scale_by_bcos: mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}"
        )
    rest = 1 - beta
    keep = (1 - rest * rest if mode == "c" else beta) if beta2 is None else beta2
    by_mode = {"c": ("exp_avg",), "m": ("exp_avg", "exp_avg_sq"), "g": ("exp_avg_sq",)}

    def conditional(mean, update):
        if simple_cond:
            return running_mean(mean.square(), update.square(), keep)
        # The docstring's three terms as two squares: rounded, their sum could be negative.
        return (
            beta**2 * (2 - beta**2) * mean.square()
            + rest**2 * (update + beta * mean).square()
        )

    def update(update, state, param, ctx):
        new, old, direction, first = {}, update, update, ctx.step == 1
        if mode != "g":
            old = torch.where(first, ctx.grad, state["exp_avg"])
            direction = new["exp_avg"] = running_mean(old, update, beta)
        if mode == "c":
            square = conditional(old, update)
        else:
            before = torch.where(first, ctx.grad.square(), state["exp_avg_sq"])
            square = new["exp_avg_sq"] = running_mean(before, direction.square(), keep)
        return quotient(direction, safe_sqrt(square) + eps, floor=eps), new

    return zeros(*by_mode[mode]), update
