"""LaProp: normalize gradients first, then average them."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, corrected_root, running_mean, zeros

__all__ = ["scale_by_laprop"]

# Steps; until then the mean in the authors' code is too noisy to be subtracted.
CENTERED_AFTER = 10


@per_tensor(elementwise=True, nonnegative=("exp_avg_sq", "max_exp_avg_sq"))
def scale_by_laprop(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-15,
    amsgrad: bool = False,
    centered: bool = False,
):
    r"""Average gradients that are divided by their root mean square: LaProp's direction.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$,
    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$, direction
    $m_t / (1-\beta_1^t)$. Adam averages first, which couples its $\beta_1$ and $\beta_2$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        centered: From t = 11 on, subtract the square of the mean gradient from $v$; amsgrad's maximum starts there.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, with `centered`
        `exp_mean_avg_beta2` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> # only the sign of each gradient counts
        >>> tx = gradtx.scale_by_laprop(betas=(0.5, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, -100.0):  # Adam: 1.0, then -0.6633
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([-0.3333])

    Source: Ziyin et al. 2020, arXiv:2002.04839. Departures: the learning rate is outside the average, as in the
    paper; the authors' code averages steps. $v$ less the squared mean is clamped so that it cannot round below 0.
    """
    beta1, beta2 = betas
    init = zeros(
        "exp_avg",
        "exp_avg_sq",
        exp_mean_avg_beta2=centered,
        max_exp_avg_sq=amsgrad,
    )

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        new = {"exp_avg_sq": square}
        # Without `centered`, the first phase, which collects no maximum, has no steps.
        late = ctx.step > (CENTERED_AFTER if centered else 0)
        if centered:
            mean = new["exp_mean_avg_beta2"] = running_mean(
                state["exp_mean_avg_beta2"], update, beta2
            )
            square = torch.where(late, at_least(square - mean.square(), 0.0), square)
        if amsgrad:
            largest = new["max_exp_avg_sq"] = torch.where(
                late, torch.maximum(state["max_exp_avg_sq"], square), 0.0
            )
            square = torch.where(late, largest, square)
        normalized = update / (corrected_root(square, ctx, beta2) + eps)
        average = new["exp_avg"] = running_mean(state["exp_avg"], normalized, beta1)
        return average / ctx.bias_correction(beta1), new

    return init, update
