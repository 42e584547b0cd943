"""AdaSmooth: RMSprop with a short memory for weights that move straight, and a long one where they oscillate."""

from __future__ import annotations

import torch

from gradtx.arguments import Count
from gradtx.execution.traits import RESTARTS
from gradtx.links.decay import with_decay
from gradtx.maths.entries import quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square, start

__all__ = ["adasmooth", "scale_by_adasmooth"]


@per_tensor(
    elementwise=True,
    by_rows=lambda arguments: arguments["reset_every"] is None or RESTARTS,
    needs="params",
    length="sets",
)
def scale_by_adasmooth(
    betas=(0.5, 0.99),
    eps=1e-6,
    reset_every: Count | None = None,
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
        ValueError: If `betas` is not increasing.

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

    def update(g, state, p, ctx):
        moved = torch.where(ctx.seen, p - state["prev_param"], 0.0)
        total, path = state["sum"] + moved, state["abs_sum"] + moved.abs()
        if reset_every is not None:
            again = (ctx.step - 1) % reset_every == 0
            total, path = torch.where(again, 0.0, total), torch.where(again, 0.0, path)
        straightness = quotient(total.abs(), path)
        rate = ((slow - fast) * straightness + (1 - slow)).square()
        v = rate * g.square() + (1 - rate) * state["exp_avg_sq"]
        new_state = {"exp_avg_sq": v, "prev_param": p, "sum": total, "abs_sum": path}
        return g / safe_sqrt(v + eps), new_state

    return {
        "prev_param": start(),
        "exp_avg_sq": square(),
        "sum": linear(slow=True),
        "abs_sum": square(slow=True),
    }, update


@alias(class_name="AdaSmooth")
def adasmooth(
    lr=1e-3,
    betas=(0.5, 0.99),
    eps=1e-6,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    reset_every: Count | None = None,
):
    r"""AdaSmooth: RMSprop with a short memory for weights that move straight, and a long one where they oscillate.

    $p \leftarrow p - \eta g_t / \sqrt{v_t + \epsilon}$ with $v_t = c_t g_t^2 + (1 - c_t) v_{t-1}$ and $c_t$ from
    $(1-\rho_2)^2$ (oscillating) to $(1-\rho_1)^2$ (straight); see `scale_by_adasmooth`.

    When to use: when RMSprop's decay rate should follow the movement of each weight instead of being tuned.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step; in the first step, $\eta/(1-\rho_2)$.
        betas: $(\rho_1, \rho_2)$, the fast and the slow decay rate, $0 \le \rho_1 < \rho_2 < 1$.
        eps: $\epsilon \ge 0$, added inside the square root, in units of the squared gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$; it counts as movement.
        reset_every: Number of steps in a window of movement (one epoch in the paper); None for a window without end.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq`, `prev_param`, `sum`,
        `abs_sum`.

    Raises:
        ValueError: If `betas` is not increasing.

    Example:
        >>> tx = gradtx.adasmooth(lr=1e-3)
        >>> params = {"w": torch.tensor([0.0])}
        >>> # lr / (1 - 0.99)
        >>> tx.update({"w": torch.tensor([7.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000])

    Source: Lu 2022, arXiv:2204.00825. Departures: none from the paper. pytorch_optimizer's class adds eps to the length
    of the path, and counts the decoupled decay of the first step as earlier movement.
    """
    return with_decay(
        scale_by_adasmooth(betas, eps, reset_every),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )
