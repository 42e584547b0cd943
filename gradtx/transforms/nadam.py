"""NAdam: Adam with scheduled Nesterov momentum."""

from __future__ import annotations

from gradtx.base.exact import Betas, Scalar, exact_dtype
from gradtx.rules import per_tensor
from gradtx.transforms._math import adam_moments, corrected_root

__all__ = ["scale_by_nadam"]


@per_tensor(
    ranges={"momentum_decay": "[0, inf)"}, elementwise=True, nonnegative=("exp_avg_sq",)
)
def scale_by_nadam(
    betas: Betas = (0.9, 0.999), eps: Scalar = 1e-8, momentum_decay: Scalar = 4e-3
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

    Raises:
        ValueError: If a beta is outside [0, 1), or if another argument is negative.

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

    def init(param):
        return {
            "mu_product": param.new_ones((), dtype=exact_dtype(param)),
            **moments(param),
        }

    def update(update, state, param, ctx):
        mu = beta1 * (1 - 0.5 * 0.96 ** (ctx.time * momentum_decay))
        ahead = beta1 * (1 - 0.5 * 0.96 ** ((ctx.time + 1) * momentum_decay))
        product = state["mu_product"] * mu
        mean, square, new = average(update, state)
        of_update = (1 - mu) / (1 - product)
        of_mean = ahead / (1 - product * ahead)
        nesterov_mean = of_update * update + of_mean * mean
        root = corrected_root(square, ctx, beta2)
        return nesterov_mean / (root + eps), {"mu_product": product, **new}

    return init, update
