"""NAdam, equivalent to torch.optim.NAdam: Adam with a Nesterov momentum that rises over time."""

from __future__ import annotations

from gradtx.arguments import NonNegative
from gradtx.links.decay import with_decay
from gradtx.maths.entries import adam_moments, corrected_root
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar

__all__ = ["nadam", "scale_by_nadam"]


@per_tensor(elementwise=True, length="sets")
def scale_by_nadam(
    betas=(0.9, 0.999),
    eps=1e-8,
    momentum_decay: NonNegative = 4e-3,
):
    r"""Divide a gradient extrapolated by one step of momentum by its root mean square: NAdam's direction.

    $\mu_t = \beta_1 (1 - \frac12 \cdot 0.96^{t \psi})$, $P_t = \prod_{i \le t} \mu_i$, $m$ and $\hat v$ as in Adam;
    direction $\left( \frac{1-\mu_t}{1-P_t} g_t + \frac{\mu_{t+1}}{1-P_t \mu_{t+1}} m_t \right) /
    (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root, in the units of a gradient.
        momentum_decay: $\psi \ge 0$: how fast $\mu$ increases from $\beta_1 / 2$ to $\beta_1$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter, and
        `mu_product` ($P$), 0-d float64 for each leaf.

    Example:
        >>> # mu is 1/4 throughout
        >>> tx = gradtx.scale_by_nadam(betas=(0.5, 0.999), momentum_decay=0.0)
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([2.0])}, tx.init({"w": torch.zeros(1)})
        ... )
        >>> # 1 + 1/4 / (1 - 1/16) * 1/2
        >>> updates["w"], state["scale_by_nadam"]["mu_product"]["w"]
        (tensor([1.1333]), tensor(0.2500, dtype=torch.float64))

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam". Departures: $m$ is averaged with $\beta_1$, not
    $\mu_t$, as in torch.optim.NAdam; $P$ is stored in float64 rather than torch's float32.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        mu = beta1 * (1 - 0.5 * 0.96 ** (ctx.time * momentum_decay))
        ahead = beta1 * (1 - 0.5 * 0.96 ** ((ctx.time + 1) * momentum_decay))
        product = state["mu_product"] * mu
        m, v, new_state = average(g, state)
        of_update, of_mean = (1 - mu) / (1 - product), ahead / (1 - product * ahead)
        root = corrected_root(v, ctx, beta2)
        new_state["mu_product"] = product
        return (of_update * g + of_mean * m) / (root + eps), new_state

    return {"mu_product": scalar(1.0), **moments}, update


@alias(class_name="NAdam")
def nadam(
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    momentum_decay: NonNegative = 4e-3,
    decoupled_weight_decay=False,
):
    r"""NAdam, equivalent to torch.optim.NAdam: Adam with a Nesterov momentum that rises over time.

    $p \leftarrow p - \eta \left( \frac{1-\mu_t}{1-P_t} g_t + \frac{\mu_{t+1}}{1-P_{t+1}} m_t \right) /
    (\sqrt{\hat v_t} + \epsilon)$ with $\mu_t = \beta_1 (1 - \frac12 \cdot 0.96^{t \psi})$ and their product $P$.

    When to use: when Adam reacts too slowly; often slightly faster than Adam at the same rate.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        momentum_decay: $\psi \ge 0$, the speed at which $\mu$ rises from $\beta_1 / 2$ to $\beta_1$.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `mu_product` (0-d float64), `exp_avg`,
        `exp_avg_sq`.

    Example:
        >>> # without momentum it is Adam without momentum
        >>> tx = gradtx.nadam(lr=0.1, betas=(0.0, 0.999))
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam". Departures: none from torch.optim.NAdam, except
    that the product is kept in float64 (float32 there, with a relative effect of 1e-9 on the weights).
    """
    return with_decay(
        scale_by_nadam(betas, eps, momentum_decay),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )
