"""Adadelta, equivalent to torch.optim.Adadelta: step sizes that follow those of earlier steps."""

from __future__ import annotations

from gradtx.arguments import Fraction
from gradtx.links.decay import with_decay
from gradtx.maths.entries import running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import square

__all__ = ["adadelta", "scale_by_adadelta"]


@per_tensor(elementwise=True, length="sets")
def scale_by_adadelta(rho: Fraction = 0.9, eps=1e-6):
    r"""Rescale gradients to the size of earlier steps: Adadelta's direction, in the units of a weight.

    $q_t = \rho q_{t-1} + (1-\rho) g_t^2$, direction $\delta_t = \sqrt{a_{t-1} + \epsilon} / \sqrt{q_t + \epsilon}
    \cdot g_t$, then $a_t = \rho a_{t-1} + (1-\rho) \delta_t^2$.

    Args:
        rho: Weight of the old averages, in [0, 1].
        eps: $\epsilon \ge 0$, inside both roots: the first steps have size about $\sqrt{\epsilon}$. With 0, all are 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `square_avg` ($q$), `acc_delta` ($a$), shaped as the
        parameter; $a$ averages directions before any learning rate is applied.

    Example:
        >>> # steps of 0.001 at first, then the same size again
        >>> tx = gradtx.scale_by_adadelta(rho=0.0, eps=1e-6)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (5.0, -300.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(f"{updates['w'].item():.6f}")
        0.001000
        -0.001414

    Source: Zeiler 2012, arXiv:1212.5701. Departures: none.
    """

    def update(g, state, p, ctx):
        v = running_mean(state["square_avg"], g.square(), rho)
        u = safe_sqrt((state["acc_delta"] + eps) / (v + eps)) * g
        return u, {
            "square_avg": v,
            "acc_delta": running_mean(state["acc_delta"], u.square(), rho),
        }

    return {"square_avg": square(decay=rho), "acc_delta": square(decay=rho)}, update


@alias
def adadelta(
    lr=1.0,
    rho: Fraction = 0.9,
    eps=1e-6,
    weight_decay=0.0,
    *,
    decoupled_weight_decay=False,
):
    r"""Adadelta, equivalent to torch.optim.Adadelta: step sizes that follow those of earlier steps.

    $\delta_t = \sqrt{a_{t-1} + \epsilon} / \sqrt{q_t + \epsilon} \cdot g_t$, $p \leftarrow p - \eta \delta_t$ with the
    averages $q$ of $g^2$ and $a$ of $\delta^2$.

    When to use: existing recipes that use it. Its rate needs tuning, which learning-rate-free methods avoid.

    Args:
        lr: $\eta$ in [0, inf); 1 is the paper's rule.
        rho: Decay rate of the averages, in [0, 1].
        eps: $\epsilon \ge 0$, added inside both square roots; the length of the first steps is about $\sqrt{\epsilon}$.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `square_avg`, `acc_delta`.

    Example:
        >>> tx = gradtx.adadelta(rho=0.0)
        >>> # sqrt(eps)
        >>> tx.update({"w": torch.tensor([1e3, -5.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0010,  0.0010])

    Source: Zeiler 2012, arXiv:1212.5701. Departures: none from torch.optim.Adadelta.
    """
    return with_decay(
        scale_by_adadelta(rho, eps), weight_decay, decoupled_weight_decay, lr
    )
