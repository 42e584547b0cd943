"""Yogi: Adam whose mean square changes by at most the new squared gradient."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.arguments import NonNegative
from gradtx.links.decay import with_decay
from gradtx.maths.entries import hat_rate, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import filled, linear, square

__all__ = ["scale_by_yogi", "yogi"]


@per_tensor(elementwise=True, length="sets")
def scale_by_yogi(
    betas=(0.9, 0.999),
    eps=1e-3,
    initial_accumulator_value: NonNegative = 1e-6,
):
    r"""Divide the mean gradient by a root mean square whose change is bounded by the new square: Yogi's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$,
    $v_t = v_{t-1} - (1-\beta_2) \mathrm{sign}(v_{t-1} - g_t^2) g_t^2$, and with $c_i = 1-\beta_i^t$ the direction
    $\frac{m_t}{c_1} \frac{\sqrt{c_2}}{\sqrt{v_t} + \epsilon}$. When gradients become small, $v$ decreases much more
    slowly than in Adam.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        initial_accumulator_value: $v_0 \ge 0$; $m_0$ is 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_yogi(betas=(0.9, 0.5), initial_accumulator_value=1.0)
        >>> state = tx.init({"w": torch.zeros(4)})
        >>> _, state = tx.update({"w": torch.tensor([0.0, 0.1, 1.0, 2.0])}, state)
        >>> state["scale_by_yogi"]["exp_avg_sq"]["w"]  # Adam's would be 0.5, 0.505, 1.0, 2.5
        tensor([1.0000, 0.9950, 1.0000, 3.0000])

    Source: Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", NeurIPS. Departures: the correction and
    the initial $v$ follow the authors' code; torch_optimizer and pytorch_optimizer also initialize $m$ to 1e-6 and
    add eps after the correction.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        m = running_mean(state["exp_avg"], g, beta1)
        v, square = state["exp_avg_sq"], g.square()
        v = v - (1 - beta2) * (v - square).sign() * square
        new_state = {"exp_avg": m, "exp_avg_sq": v}
        return hat_rate(safe_sqrt(v) + eps, ctx, betas) * m, new_state

    return {
        "exp_avg": linear(decay=beta1),
        "exp_avg_sq": square(filled(initial_accumulator_value), decay=1.0),
    }, update


@alias
def yogi(
    lr=1e-2,
    *,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **direction: Annotated[Any, scale_by_yogi],
):
    r"""Yogi: Adam whose mean square changes by at most the new squared gradient.

    $v_t = v_{t-1} - (1-\beta_2) \mathrm{sign}(v_{t-1} - g_t^2) g_t^2$,
    $p \leftarrow p - \eta \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$.

    When to use: sparse gradients, or gradients that suddenly become small, after which Adam's rates jump up.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the mean and of the mean square, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        initial_accumulator_value: $v_0 \ge 0$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> for tx in (
        ...     gradtx.adam(lr=0.1, betas=(0.0, 0.99)),
        ...     gradtx.yogi(lr=0.1, betas=(0.0, 0.99)),
        ... ):
        ...     state = tx.init({"w": torch.zeros(1)})
        ...     # one large gradient, which Adam forgets by the end
        ...     for grad in [10.0, *200 * [0.1]]:
        ...         updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.0247])
        tensor([-0.0094])

    Source: Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", NeurIPS. Departures: bias correction as
    in the authors' code. torch_optimizer's and pytorch_optimizer's Yogi also start the mean at 1e-6 and add eps after
    the correction, which with this eps makes a difference of 1 %.
    """
    return with_decay(
        scale_by_yogi(**direction), weight_decay, decoupled_weight_decay, lr
    )
