"""PID: SGD as a PID controller, along the gradient, its sum with momentum, and its change."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.arguments import Scalar, is_off
from gradtx.links.decay import with_decay
from gradtx.links.momentum import accumulated
from gradtx.maths.entries import change_of, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear
from gradtx.transform import chain

__all__ = ["pid", "scale_by_pid"]


@per_tensor(elementwise=True)
def scale_by_pid(
    momentum,
    dampening: Scalar = 0.0,
    integral: Scalar = 5.0,
    derivative: Scalar = 10.0,
):
    r"""Combine the gradient, its sum and its change: a PID controller.

    $I_1 = g_1$, $D_1 = 0$; then $I_t = \mu I_{t-1} + (1-\tau) g_t$, $D_t = \mu D_{t-1} + (1-\mu)(g_t - g_{t-1})$;
    direction $g_t + K_I I_t + K_D D_t$.

    Args:
        momentum: $\mu$, in [0, inf), below 1 in practice. A literal 0.0 omits the link: plain gradient descent.
        dampening: $\tau$, usually in [0, 1); not applied at the first step.
        integral: $K_I$, weight of the sum, any number.
        derivative: $K_D$, weight of the change, any number.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer` ($I$), `d_buffer` ($D$),
        `previous_grad`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_pid(momentum=0.5, integral=0.0, derivative=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 4.0, 6.0):  # the change of 2 adds half of it
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([4.])
        tensor([4.])
        tensor([7.])

    Source: An et al. 2018, "A PID controller approach for stochastic optimization of deep networks", CVPR.
    Departures: none from the paper; the authors' code does not store $g_1$, so its $D_2$ contains $g_2 - 0$.
    """
    if is_off(momentum):
        return chain()

    def update(update, state, param, ctx):
        total = accumulated(state["momentum_buffer"], update, momentum, dampening, ctx)
        change = change_of(update, state, ctx)
        trend = running_mean(state["d_buffer"], change, momentum)
        new_state = {
            "momentum_buffer": total,
            "d_buffer": trend,
            "previous_grad": update,
        }
        return update + integral * total + derivative * trend, new_state

    return {
        "momentum_buffer": linear(),
        "d_buffer": linear(),
        "previous_grad": linear(),
    }, update


@alias(class_name="PID")
def pid(lr, momentum=0.0, *, weight_decay=0.0, **options: Annotated[Any, scale_by_pid]):
    r"""PID: SGD as a PID controller, along the gradient, its sum with momentum, and its change.

    $p \leftarrow p - \eta (g_t + K_I I_t + K_D D_t)$ with $I_t = \mu I_{t-1} + (1-\tau) g_t$,
    $D_t = \mu D_{t-1} + (1-\mu)(g_t - g_{t-1})$; $I_1 = g_1$, $D_1 = 0$.

    When to use: when momentum overshoots: the derivative term slows down where gradients change. It adds two gains to
    tune.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        momentum: $\mu$ in [0, inf), below 1 in practice. With a literal 0.0, this is plain SGD, without the other
            terms.
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        integral: $K_I$, the weight of the sum, any number.
        derivative: $K_D$, the weight of the change, any number.
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `d_buffer`,
        `previous_grad` (including the decay).

    Example:
        >>> tx = gradtx.pid(lr=0.1, momentum=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 0.0):  # 1 + 5, then 5 / 2 - 10 / 2
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.6000])
        tensor([0.2500])

    Source: An et al. 2018, "A PID controller approach for stochastic optimization of deep networks", CVPR. Departures:
    none from the paper; the authors' code starts $D$ from $g_2 - 0$. Their `nesterov` had no effect.
    """
    return with_decay(scale_by_pid(momentum, **options), weight_decay, False, lr)
