"""AdEMAMix and its simplified form: Adam with a second, slower average of the gradients."""

from __future__ import annotations

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    corrected_root,
    running_mean,
    safe_sqrt,
    scalar_zero,
    zeros,
)

__all__ = ["scale_by_ademamix", "scale_by_simplified_ademamix"]


@per_tensor(elementwise=True, ranges={"alpha": "[0, inf)"}, nonnegative=("exp_avg_sq",))
def scale_by_ademamix(
    betas: Betas = (0.9, 0.999, 0.9999), alpha: Scalar = 2.0, eps: Scalar = 1e-8
):
    r"""Add a slow average of gradients to Adam's mean: AdEMAMix's direction.

    Adam's $m_t$, $v_t$ and $l_t = \beta_3 l_{t-1} + (1-\beta_3) g_t$, which is not bias-corrected; direction
    $(\hat m_t + \alpha l_t) / (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1). To warm up $\beta_3$, pass `half_life_schedule`.
        alpha: $\alpha \ge 0$, weight of the slow average; to warm it up, pass `ademamix_alpha_schedule`.
        eps: $\epsilon \ge 0$, outside the root.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_slow`, `exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), or if another argument is negative.

    Example:
        >>> tx = gradtx.scale_by_ademamix(betas=(0.0, 0.0, 0.5), alpha=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # the slow average remembers the earlier direction
        >>> for grad in (1.0, 1.0, 1.0, -1.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.5000])
        tensor([1.7500])
        tensor([1.8750])
        tensor([-1.0625])

    Source: Pagliardini et al. 2024, arXiv:2409.03137. Departures: none.
    """
    beta1, beta2, beta3 = betas
    init, average = adam_moments((beta1, beta2), False, "exp_avg_slow")

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        slow = running_mean(state["exp_avg_slow"], update, beta3)
        root = corrected_root(square, ctx, beta2) + eps
        return (mean / ctx.bias_correction(beta1) + alpha * slow) / root, {
            **new,
            "exp_avg_slow": slow,
        }

    return init, update


@per_tensor(elementwise=True, ranges={"alpha": "[0, inf)"}, nonnegative=("exp_avg_sq",))
def scale_by_simplified_ademamix(
    betas: Betas = (0.99, 0.95),
    alpha: Scalar = 0.0,
    eps: Scalar = 1e-8,
    bias_correction1: bool = False,
    bias_correction2: bool = True,
):
    r"""Divide a sum of gradients, with extra weight on the newest, by their root mean square: simplified AdEMAMix.

    $m_t = \beta_1 m_{t-1} + g_t$, $n_t = \beta_1 n_{t-1} + 1$, $v_t$ as in Adam; direction
    $(\alpha g_t + m_t) / (\sqrt{\hat v_t} + \epsilon)$, divided by $n_t$ with `bias_correction1`. Otherwise it grows to
    $1/(1-\beta_1)$ times Adam's.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1). To warm up $\beta_1$, pass `half_life_schedule`.
        alpha: $\alpha \ge 0$, additional weight of the newest gradient.
        eps: $\epsilon \ge 0$, outside the root.
        bias_correction1: Divide by $n_t$, the sum of the weights in $m_t$; this includes the term with $\alpha$.
        bias_correction2: False divides the direction by $\sqrt{1-\beta_2^t}$, which cancels the correction of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter, and
        `num_sum` ($n$), 0-d float64 for each leaf.

    Raises:
        ValueError: If a beta is outside [0, 1), or if another argument is negative.

    Example:
        >>> tx = gradtx.scale_by_simplified_ademamix(betas=(0.5, 0.9), alpha=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 1.0, -1.0):  # m is 1, 1.5, -0.25
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([2.])
        tensor([2.5000])
        tensor([-1.2500])

    Source: Morwani et al. 2025, arXiv:2502.02431. Departures: none. pytorch_optimizer 4.1.0 has a different rule, with
    $1-\beta_1$ as a factor of $g_t$ and $v$ corrected twice.
    """
    beta1, beta2 = betas

    def init(param):
        return zeros("exp_avg", "exp_avg_sq")(param) | {"num_sum": scalar_zero(param)}

    def update(update, state, param, ctx):
        total = beta1 * state["exp_avg"] + update
        weight = beta1 * state["num_sum"] + 1
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        root = ctx.bias_correction(beta2).sqrt()
        direction = (alpha * update + total) / (safe_sqrt(square) / root + eps)
        if bias_correction1:
            direction = direction / weight
        if not bias_correction2:
            direction = direction / root
        return direction, {"exp_avg": total, "exp_avg_sq": square, "num_sum": weight}

    return init, update
