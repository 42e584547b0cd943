"""KATE: AdaGrad without the square root, with steps that do not depend on the scale of the data."""

from __future__ import annotations

from gradtx.arguments import NonNegative, is_off
from gradtx.links.decay import with_decay
from gradtx.maths.entries import quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import square

__all__ = ["kate", "scale_by_kate"]


@per_tensor(elementwise=True)
def scale_by_kate(delta: NonNegative = 0.0, eps=1e-8):
    r"""Divide by the sum of squared gradients, not by its root, and correct for the difference: KATE.

    $b_t^2 = b_{t-1}^2 + g_t^2 + \epsilon$, $m_t^2 = m_{t-1}^2 + \delta g_t^2 + g_t^2 / b_t^2$, direction
    $m_t g_t / b_t^2$. With $\delta = 0$, the steps of a linear model do not depend on the unit of the data.

    Args:
        delta: $\delta \ge 0$; values above 0 make the first steps larger.
        eps: $\epsilon \ge 0$, in the units of a squared gradient; it accumulates.

    Returns:
        A transformation that keeps shapes and dtypes. State: `b_sq`, `m_sq`, shaped as the parameter.

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

    def update(g, state, p, ctx):
        square = g.square()
        b = state["b_sq"] + square + eps
        m = state["m_sq"] + quotient(square, b, floor=eps)
        if not is_off(delta):
            m = m + delta * square
        return quotient(safe_sqrt(m) * g, b, floor=eps), {"b_sq": b, "m_sq": m}

    return {"b_sq": square(slow=True), "m_sq": square(slow=True)}, update


@alias
def kate(
    lr=1e-3,
    delta: NonNegative = 0.0,
    eps=1e-8,
    weight_decay=0.0,
):
    r"""KATE: AdaGrad without the square root, with steps that do not depend on the scale of the data.

    $p \leftarrow p - \eta (m_t g_t / b_t^2 + \lambda p)$, $b_t^2 = \sum (g^2 + \epsilon)$,
    $m_t^2 = \sum (\delta g_i^2 + g_i^2 / b_i^2)$; see `scale_by_kate`.

    When to use: as an alternative to AdaGrad, for features of very different scales (the paper's claim).

    Args:
        lr: $\eta$ in [0, inf).
        delta: $\delta \ge 0$; values above 0 enlarge the first steps.
        eps: $\epsilon \ge 0$, in units of the squared gradient.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `b_sq`, `m_sq`.

    Example:
        >>> tx = gradtx.kate(lr=1.0)
        >>> # -1 / g
        >>> tx.update({"w": torch.tensor([0.5, 4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-2.0000, -0.2500])

    Source: Choudhury et al. 2024, arXiv:2403.02648. Departures: see `scale_by_kate`.
    """
    return with_decay(scale_by_kate(delta, eps), weight_decay, True, lr)
