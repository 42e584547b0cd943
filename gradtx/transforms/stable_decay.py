"""Stable weight decay: decay in proportion to the mean rate of the adaptive step."""

from __future__ import annotations

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import adam_moments, quotient, safe_sqrt

__all__ = ["scale_by_adam_stable_decay"]


def stable_decay(weight_decay, total):
    """Return the decay over the root of a mean over all leaves, from its sums `square` and `count`, or 0 if it is 0."""
    return weight_decay * safe_sqrt(
        quotient(total["count"], total["square"], total["square"] > 0)
    )


@per_tensor(
    elementwise=True, needs=("params",), nonnegative=("exp_avg_sq", "max_exp_avg_sq")
)
def scale_by_adam_stable_decay(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 1e-4,
    amsgrad: bool = False,
):
    r"""Add to Adam's direction a decay in proportion to the average adaptive rate: AdamS's direction.

    $\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \frac{\lambda}{\sqrt{\bar v_t}} p$ with $\hat m$ and $\hat v$ from
    `scale_by_adam` and $\bar v_t$ the mean of $\hat v_t$ over all entries of all leaves. No decay while $\bar v_t = 0$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient; not used in the decay.
        weight_decay: $\lambda \ge 0$, in the units of a gradient over a weight.
        amsgrad: Use the running maximum of $v$ instead of $v$, in the decay as well.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `eps` or `weight_decay` is negative, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0)
        >>> params = {"a": torch.tensor([2.0]), "b": torch.tensor([2.0])}
        >>> grads = {"a": torch.tensor([0.0]), "b": torch.tensor([10.0])}
        >>> # 2 / sqrt((0 + 100) / 2) each, and Adam's 1
        >>> tx.update(grads, tx.init(params), params)[0]
        {'a': tensor([0.2828]), 'b': tensor([1.2828])}

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: none.
    """
    beta1, beta2 = betas
    init, average = adam_moments(betas, amsgrad)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        square = square / ctx.bias_correction(beta2)
        total = yield {"square": square.sum(), "count": square.numel()}
        direction = mean / ctx.bias_correction(beta1) / (safe_sqrt(square) + eps)
        yield direction + stable_decay(weight_decay, total) * param, new

    return init, update
