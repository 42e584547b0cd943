"""Ano: steps along the sign of the momentum, with the size of Adam's normalized gradient."""

from __future__ import annotations

from gradtx.links.decay import with_decay
from gradtx.maths.entries import at_least, corrected_root, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema, linear, square

__all__ = ["ano", "scale_by_ano"]


@per_tensor(elementwise=True, length="sets")
def scale_by_ano(betas=(0.92, 0.99), eps=1e-8, logarithmic=False):
    r"""Combine the sign of the momentum with the size of the gradient, divided by a root mean square: Ano's direction.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$, $v \leftarrow \beta_2 v + (1-\beta_2)\, \mathrm{sign}(g^2 - v)\, g^2$,
    direction $|g|\, \mathrm{sign}(m) / (\sqrt{v / (1-\beta_2^t)} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1). $v$ is at least 0, which only matters for $\beta_2 < 0.5$.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        logarithmic: Use $\beta_1 = 1 - 1 / \ln(\max(2, t))$ instead, which is negative for t <= 2.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` ($m$), `exp_avg_sq` ($v$).

    Example:
        >>> tx = gradtx.scale_by_ano(betas=(0.5, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grads in (4.0, -1.0):  # the momentum has the sign
        ...     updates, state = tx.update({"w": torch.tensor([grads])}, state)
        ...     print(updates["w"] > 0)
        tensor([True])
        tensor([True])

    Source: Ano, arXiv:2508.18258. Departures: $v$ is at least 0.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        decay = 1 - 1 / at_least(ctx.time, 2).log() if logarithmic else beta1
        m = running_mean(state["exp_avg"], g, decay)
        v, square_of_g = state["exp_avg_sq"], g.square()
        signed = (square_of_g - v).sign() * square_of_g
        v = at_least(running_mean(v, signed, beta2), 0)
        direction = g.abs() * m.sign() / (corrected_root(v, ctx, beta2) + eps)
        return direction, {"exp_avg": m, "exp_avg_sq": v}

    first = linear() if logarithmic else ema(beta1)
    return {"exp_avg": first, "exp_avg_sq": square(decay=beta2)}, update


@alias
def ano(lr=1e-4, betas=(0.92, 0.99), eps=1e-8, weight_decay=0.0, logarithmic=False):
    r"""Ano: steps along the sign of the momentum, with the size of Adam's normalized gradient.

    $p \leftarrow p - \eta (d + \lambda p)$ with the direction $d$ of `scale_by_ano`.

    When to use: noisy or changing objectives, such as reinforcement learning, where the size of the momentum lags.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        weight_decay: $\lambda \ge 0$, decoupled.
        logarithmic: Use $\beta_1 = 1 - 1 / \ln(\max(2, t))$ instead.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.ano(lr=0.1)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([3.0, -1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Ano, arXiv:2508.18258. Departures: as for `scale_by_ano`.
    """
    return with_decay(scale_by_ano(betas, eps, logarithmic), weight_decay, True, lr)
