"""Adagrad, equivalent to torch.optim.Adagrad: the gradient over the root of the sum of all squares so far."""

from __future__ import annotations

from gradtx.arguments import NonNegative
from gradtx.links.decay import decayed
from gradtx.links.scaling import scale_by_inverse_time, scale_by_learning_rate
from gradtx.maths.entries import safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import filled, square
from gradtx.transform import chain

__all__ = ["adagrad", "scale_by_rss"]


@per_tensor(elementwise=True, length="sets")
def scale_by_rss(eps=1e-10, initial_accumulator_value: NonNegative = 0.0):
    r"""Divide by the root of the sum of all squared gradients so far: Adagrad's direction.

    $G_t = G_{t-1} + g_t^2$, direction $g_t / (\sqrt{G_t} + \epsilon)$.

    Args:
        eps: $\epsilon \ge 0$, outside the root, in the units of a gradient.
        initial_accumulator_value: $G_0 \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `sum`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_rss()
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        >>> updates["w"]  # 1 / sqrt(t)
        tensor([0.5000])

    Source: Duchi, Hazan and Singer 2011, JMLR 12. Departures: none from torch.optim.Adagrad; optax starts from 0.1
    and adds eps inside the root.
    """

    def update(update, state, param, ctx):
        total = state["sum"] + update.square()
        return update / (safe_sqrt(total) + eps), {"sum": total}

    return {
        "sum": square(filled(initial_accumulator_value), slow=True, decay=1.0)
    }, update


@alias
def adagrad(
    lr=1e-2,
    lr_decay: NonNegative = 0.0,
    weight_decay=0.0,
    initial_accumulator_value: NonNegative = 0.0,
    eps=1e-10,
    *,
    decoupled_weight_decay=False,
):
    r"""Adagrad, equivalent to torch.optim.Adagrad: the gradient over the root of the sum of all squares so far.

    $G_t = G_{t-1} + g_t^2$, $p \leftarrow p - \frac{\eta}{1 + (t-1) \kappa} \cdot g_t / (\sqrt{G_t} + \epsilon)$.

    When to use: sparse features and convex problems, such as linear models and embeddings; rates never rise.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight in the first step.
        lr_decay: $\kappa \ge 0$, an additional decay of the rate; the first step uses the full rate.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        initial_accumulator_value: $G_0 \ge 0$.
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, at the decayed rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `sum`.

    Example:
        >>> tx = gradtx.adagrad(lr=0.1, lr_decay=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        >>> updates["w"]  # 0.1 / 4 from the decay, and / 2 from the sum
        tensor([-0.0125])

    Source: Duchi, Hazan and Singer 2011, JMLR 12. Departures: none from torch.optim.Adagrad, except that a parameter
    group can have its own `initial_accumulator_value`.
    """
    return chain(
        decayed(
            scale_by_rss(eps, initial_accumulator_value),
            weight_decay,
            decoupled_weight_decay,
        ),
        scale_by_inverse_time(lr_decay),
        scale_by_learning_rate(lr),
    )
