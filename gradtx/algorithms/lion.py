"""Lion: the sign of an interpolated momentum, with decoupled weight decay."""

from __future__ import annotations

from gradtx.arguments import is_off
from gradtx.links.caution import scale_by_sign
from gradtx.links.decay import with_decay
from gradtx.maths.entries import running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear

__all__ = ["lion", "scale_by_lion"]


@per_tensor(elementwise=True, length="sets")
def scale_by_lion(betas=(0.9, 0.99)):
    r"""Replace every gradient by the sign of an interpolated momentum: Lion's direction.

    $u_t = \mathrm{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t)$, then $m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t$.

    Args:
        betas: $(\beta_1, \beta_2)$, weights of the old momentum in the direction and in the next momentum, each in
            [0, 1). If both are a literal 0.0, there is no slot.

    Returns:
        A transformation that keeps shapes and dtypes; every entry becomes -1, 0 or 1. State: `exp_avg`, shaped as the
        parameter.

    Example:
        >>> tx = gradtx.scale_by_lion()
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([2e-9, 0.0, -5.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"]
        tensor([ 1.,  0., -1.])

    Source: Chen et al. 2023, arXiv:2302.06675. Departures: none.
    """
    beta1, beta2 = betas
    if is_off(beta1) and is_off(beta2):
        return scale_by_sign()

    def update(g, state, p, ctx):
        m = state["exp_avg"]
        direction = running_mean(m, g, beta1).sign()
        return direction, {"exp_avg": running_mean(m, g, beta2)}

    return {"exp_avg": linear(decay=beta2)}, update


@alias
def lion(lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    r"""Lion: the sign of an interpolated momentum, with decoupled weight decay.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(\beta_1 m + (1-\beta_1) g)$, then
    $m \leftarrow \beta_2 m + (1-\beta_2) g$.

    When to use: large batches and little memory (half of AdamW's); use a learning rate 3 to 10 times smaller than
    AdamW's, and a decay larger by the same factor.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step; a third to a tenth of Adam's.
        betas: Weights of the old momentum in the direction and in the next momentum, each in [0, 1).
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`.

    Example:
        >>> tx = gradtx.lion(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([0.0, 2.0])}
        >>> tx.update({"w": torch.tensor([1e-9, -7.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000, -0.1000])

    Source: Chen et al. 2023, arXiv:2302.06675. Departures: none.
    """
    return with_decay(scale_by_lion(betas), weight_decay, True, lr)
