"""COCOB-Backprop: a step size per weight from bets on its gradients, without a learning rate."""

from __future__ import annotations

import torch

from gradtx.arguments import NonNegative
from gradtx.links.decay import add_decayed_weights
from gradtx.maths.entries import at_least, quotient
from gradtx.rules import alias, per_tensor
from gradtx.slots import filled, linear, square, start
from gradtx.transform import chain

__all__ = ["cocob", "scale_by_cocob"]


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_cocob(alpha: NonNegative = 100.0, eps=1e-8):
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

    Example:
        >>> tx = gradtx.scale_by_cocob()
        >>> params = {"w": torch.tensor([5.0, 5.0])}
        >>> # regardless of their size
        >>> tx.update({"w": torch.tensor([1e-3, -70.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0100,  0.0100])

    Source: Orabona and Tommasi 2017, arXiv:1705.07795. Departures: none; $R$ uses the weights at which the gradient was
    computed.
    """

    def update(g, state, p, ctx):
        start = state["param_init"]
        size = torch.maximum(state["scale"], g.abs())
        path = state["abs_sum"] + g.abs()
        reward = at_least(state["reward"] - g * (p - start), 0.0)
        total = state["grad_sum"] - g
        bet = quotient(size + reward, size * torch.maximum(path + size, alpha * size))
        new_state = {
            "param_init": start,
            "scale": size,
            "abs_sum": path,
            "reward": reward,
            "grad_sum": total,
        }
        return start + bet * total - p, new_state

    return {
        "param_init": start(),
        "scale": square(filled(eps)),
        "abs_sum": square(slow=True),
        "reward": square(slow=True),
        "grad_sum": linear(slow=True),
    }, update


@alias(class_name="COCOB")
def cocob(alpha: NonNegative = 100.0, eps=1e-8, weight_decay=0.0):
    r"""COCOB-Backprop: a step size per weight from bets on its gradients, without a learning rate.

    $p \leftarrow p_0 + \theta (L + R) / (L \max(A + L, \alpha L))$, entry by entry, with the sum $-\theta$ of the
    gradients, the largest of their magnitudes $L$, the sum $A$ of their magnitudes and the reward $R$ won so far; see
    `scale_by_cocob`.

    When to use: when no rate is known and gradients are noisy; weights move away from their initial values only slowly.

    Args:
        alpha: $\alpha \ge 0$: the length of the first steps is about $1 / \alpha$.
        eps: $\epsilon \ge 0$, the initial value of the largest gradient of each weight.
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init`, `scale`, `abs_sum`, `reward`,
        `grad_sum`.

    Example:
        >>> tx = gradtx.cocob(alpha=10.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(4):  # a constant gradient: steps grow with the reward
        ...     updates, state = tx.update({"w": torch.tensor([1.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1200])
        tensor([-0.1760])
        tensor([-0.2904])

    Source: Orabona and Tommasi 2017, arXiv:1705.07795. Departures: none; optax puts a learning rate before it.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_cocob(alpha, eps))
