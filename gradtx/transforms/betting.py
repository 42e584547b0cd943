"""COCOB: step sizes from a betting strategy for each weight."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, filled_like, quotient, zeros

__all__ = ["scale_by_cocob"]


@per_tensor(
    elementwise=True,
    needs=("params",),
    owns_lr=True,
    ranges={"alpha": "[0, inf)"},
    nonnegative=("scale", "abs_sum", "reward"),
)
def scale_by_cocob(alpha: Scalar = 100.0, eps: Scalar = 1e-8):
    r"""Bet the accumulated reward of each weight on the sign of its next gradient: COCOB-Backprop.

    For each entry: $L \leftarrow \max(L, |g|)$ from $\epsilon$, $A \leftarrow A + |g|$,
    $R \leftarrow \max(R - g (p - p_0), 0)$, $\theta \leftarrow \theta - g$,
    $p \leftarrow p_0 + \theta \frac{L + R}{L \max(A + L, \alpha L)}$. There is no learning rate.

    Args:
        alpha: $\alpha \ge 0$: the first steps have size about $1 / \alpha$.
        eps: $\epsilon \ge 0$, initial value of the largest gradient of each weight.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State: `param_init`,
        `scale` ($L$), `abs_sum` ($A$), `reward` ($R$), `grad_sum` ($\theta$), shaped as the parameter.

    Raises:
        ValueError: If an argument is negative, if `params` is missing, or if a later link scales by a learning rate or
            decays.

    Example:
        >>> tx = gradtx.scale_by_cocob()
        >>> params = {"w": torch.tensor([5.0, 5.0])}
        >>> # regardless of their size
        >>> tx.update({"w": torch.tensor([1e-3, -70.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0100,  0.0100])

    Source: Orabona and Tommasi 2017, arXiv:1705.07795. Departures: none; $R$ uses the weights at which the gradient was
    computed.
    """

    def init(param):
        return {
            "param_init": param,
            "scale": filled_like(param, eps),
            **zeros("abs_sum", "reward", "grad_sum")(param),
        }

    def update(update, state, param, ctx):
        start = state["param_init"]
        size = torch.maximum(state["scale"], update.abs())
        path = state["abs_sum"] + update.abs()
        reward = at_least(state["reward"] - update * (param - start), 0.0)
        total = state["grad_sum"] - update
        bet = quotient(size + reward, size * torch.maximum(path + size, alpha * size))
        new = {
            "param_init": start,
            "scale": size,
            "abs_sum": path,
            "reward": reward,
            "grad_sum": total,
        }
        return start + bet * total - param, new

    return init, update
