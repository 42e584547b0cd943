"""KATE: a rate per weight that does not depend on the unit of its gradient."""

from __future__ import annotations

from gradtx.arguments import is_off
from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import quotient, safe_sqrt, zeros

__all__ = ["scale_by_kate"]


@per_tensor(
    elementwise=True, ranges={"delta": "[0, inf)"}, nonnegative=("b_sq", "m_sq")
)
def scale_by_kate(delta: Scalar = 0.0, eps: Scalar = 1e-8):
    r"""Divide by the sum of squared gradients, not by its root, and correct for the difference: KATE.

    $b_t^2 = b_{t-1}^2 + g_t^2 + \epsilon$, $m_t^2 = m_{t-1}^2 + \delta g_t^2 + g_t^2 / b_t^2$, direction
    $m_t g_t / b_t^2$. With $\delta = 0$, the steps of a linear model do not depend on the unit of the data.

    Args:
        delta: $\delta \ge 0$; values above 0 make the first steps larger.
        eps: $\epsilon \ge 0$, in the units of a squared gradient; it accumulates.

    Returns:
        A transformation that keeps shapes and dtypes. State: `b_sq`, `m_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> tx = gradtx.scale_by_kate(eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for _ in range(2):  # a larger gradient results in a smaller step
        ...     updates, state = tx.update({"w": torch.tensor([1.0, 10.0])}, state)
        ...     print(updates["w"])
        tensor([1.0000, 0.1000])
        tensor([0.6124, 0.0612])

    Source: Choudhury et al. 2024, arXiv:2403.02648. Departures: none; eps as in pytorch_optimizer's class.
    """

    def update(update, state, param, ctx):
        update_square = update.square()
        total = state["b_sq"] + update_square + eps
        scale = state["m_sq"] + quotient(update_square, total, floor=eps)
        if not is_off(delta):
            scale = scale + delta * update_square
        return quotient(safe_sqrt(scale) * update, total, floor=eps), {
            "b_sq": total,
            "m_sq": scale,
        }

    return zeros("b_sq", "m_sq"), update
