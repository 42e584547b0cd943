"""AggMo: SGD with the average of several momenta."""

from __future__ import annotations

from gradtx.arguments import AnyLength, Decays
from gradtx.links.decay import with_decay
from gradtx.rules import alias, per_tensor
from gradtx.slots import window

__all__ = ["aggmo", "scale_by_aggmo"]


@per_tensor(elementwise=True)
def scale_by_aggmo(betas: AnyLength[Decays] = (0.0, 0.9, 0.99)):
    r"""Average momenta with different decay rates: aggregated momentum.

    $b^{(i)}_t = \beta_i b^{(i)}_{t-1} + g_t$, direction $\frac1K \sum_i b^{(i)}_t$.

    Args:
        betas: $(\beta_1, \ldots, \beta_K)$, one or more, each in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer_0`, `momentum_buffer_1`, ..., one per
        beta in the given order, shaped as the parameter.

    Raises:
        ValueError: If there is no beta, or if one is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_aggmo((0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> # the other one is 4
        >>> state["scale_by_aggmo"]["momentum_buffer_1"]["w"], updates["w"]
        (tensor([6.]), tensor([5.]))

    Source: Lucas et al. 2018, arXiv:1804.00325. Departures: buffers belong to positions, so equal betas have separate
    buffers (in the authors' code they share one, which is updated twice).
    """

    def update(g, state, p, ctx):
        pairs = zip(betas, state["momentum_buffer"], strict=True)
        buffers = [beta * old + g for beta, old in pairs]
        return sum(buffers[1:], buffers[0]) / len(buffers), {"momentum_buffer": buffers}

    return {"momentum_buffer": window(len(betas))}, update


@alias(class_name="AggMo")
def aggmo(
    lr,
    betas: AnyLength[Decays] = (0.0, 0.9, 0.99),
    weight_decay=0.0,
):
    r"""AggMo: SGD with the average of several momenta.

    $b^{(i)} \leftarrow \beta_i b^{(i)} + g$, $p \leftarrow p - \frac{\eta}{K} \sum_i b^{(i)}$.

    When to use: when momentum as large as 0.99 pays off but makes the loss oscillate: the faster buffers damp the
    slower ones.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        betas: $(\beta_1, \ldots, \beta_K)$, one or more, each in [0, 1). The paper uses $1 - 0.1^i$, i = 0, 1, ...
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer_0`,
        `momentum_buffer_1`, ..., in the order of `betas`.

    Example:
        >>> tx = gradtx.aggmo(lr=0.1, betas=(0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> updates["w"]  # buffers of 4 and 6
        tensor([-0.5000])

    Source: Lucas et al. 2018, arXiv:1804.00325. Departures: equal betas each have their own buffer.
    """
    return with_decay(scale_by_aggmo(betas), weight_decay, False, lr)
