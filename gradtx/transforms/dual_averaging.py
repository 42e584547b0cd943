"""MADGRAD: steps from the starting point along the sum of all gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base.exact import Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import plus_decay, quotient, safe_pow, zeros

__all__ = ["scale_by_madgrad"]


def dual_averaging(target: Tensor, momentum: Any, param: Tensor) -> Tensor:
    """Return the update of an averaged iterate, the fraction 1 - momentum of the way to the target."""
    return (1 - momentum) * (target - param)


@per_tensor(
    elementwise=True,
    needs=("params",),
    owns_lr=True,
    ranges={"momentum": "[0, 1)"},
    nonnegative=("grad_sum_sq",),
)
def scale_by_madgrad(
    lr: Scalar = 1e-2,
    momentum: Scalar = 0.9,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
):
    r"""Step from the starting point along the weighted sum of gradients, divided by a cube root: MADGRAD.

    With $\lambda_t = r \sqrt t$, $r = \eta + \epsilon$ (0 where $\eta = 0$): $s_t = s_{t-1} + \lambda_t g_t$,
    $\nu_t = \nu_{t-1} + \lambda_t g_t^2$, $z_t = x_0 - s_t / (\sqrt[3]{\nu_t} + \epsilon)$,
    $p \leftarrow \mu p + (1-\mu) z_t - r \lambda p$.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1). With a literal 0.0, $x_0$ is recomputed from the weights instead of stored.
        eps: $\epsilon \ge 0$; with 0, entries that have had only zero gradients do not move.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State:
        `grad_sum_sq`, `s` and, with momentum, `x0`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_madgrad(lr=0.125, momentum=0.0, eps=0.0)
        >>> params = {"w": torch.tensor([1.0, 1.0])}
        >>> # 0.125 * 8 / cbrt(8)
        >>> tx.update({"w": torch.tensor([8.0, 0.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.5000,  0.0000])

    Source: Defazio and Jelassi 2021, arXiv:2101.11075. Departures: none from the authors' code. With momentum, $x_0$
    never decays, so later steps undo the decoupled decay of a step; without momentum, the decay persists.
    """
    reconstructs = is_off(momentum)

    def init(param):
        sums = zeros("grad_sum_sq", "s")(param)
        return sums if reconstructs else sums | {"x0": param}

    def moved(sums):
        return quotient(
            sums["s"], safe_pow(sums["grad_sum_sq"], 1 / 3) + eps, floor=eps
        )

    def update(update, state, param, ctx):
        rate = exact(lr, update.device)
        rate = torch.where(rate == 0, 0.0, rate + eps)
        weight = rate * ctx.time.sqrt()
        start = param + moved(state) if reconstructs else state["x0"]
        new = {
            "grad_sum_sq": state["grad_sum_sq"] + weight * update.square(),
            "s": state["s"] + weight * update,
        }
        step = dual_averaging(start - moved(new), momentum, param)
        if not reconstructs:
            new["x0"] = start
        return plus_decay(step, weight_decay, param, -rate), new

    return init, update
