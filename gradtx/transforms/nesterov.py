"""Adan: Nesterov's lookahead, computed from the change of the gradient."""

from __future__ import annotations

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import change_of, corrected_root, running_mean, zeros

__all__ = ["scale_by_adan"]


@per_tensor(elementwise=True, nonnegative=("exp_avg_sq",))
def scale_by_adan(betas: Betas = (0.98, 0.92, 0.99), eps: Scalar = 1e-8):
    r"""Extrapolate the mean gradient by its mean change, and divide by their combined root mean square: Adan.

    With $\Delta_t = g_t - g_{t-1}$ (0 at $t = 1$): $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$,
    $d_t = \beta_2 d_{t-1} + (1-\beta_2) \Delta_t$, $n_t = \beta_3 n_{t-1} + (1-\beta_3) (g_t + \beta_2 \Delta_t)^2$;
    direction $(\hat m_t + \beta_2 \hat d_t) / (\sqrt{\hat n_t} + \epsilon)$, where $\hat x_t = x_t / (1 - \beta^t)$
    with the beta of x.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$, each in [0, 1): weights of the old averages. The paper's betas are one
            minus these.
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_diff`, `exp_avg_sq`,
        `previous_grad`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_adan(betas=(0.0, 0.5, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> _, state = tx.update({"w": torch.tensor([1.0])}, state)
        >>> # (4 + 0.5 * (1.5 / 0.75)) / (4 + 0.5 * 3)
        >>> tx.update({"w": torch.tensor([4.0])}, state)[0]["w"]
        tensor([0.9091])

    Source: Xie et al. 2022, arXiv:2208.06677. Departures: bias corrections, as in the authors' code.
    """
    beta1, beta2, beta3 = betas

    def update(update, state, param, ctx):
        change = change_of(update, state, ctx)
        mean = running_mean(state["exp_avg"], update, beta1)
        mean_change = running_mean(state["exp_avg_diff"], change, beta2)
        moved = update + beta2 * change
        square = running_mean(state["exp_avg_sq"], moved.square(), beta3)
        share = beta2 / ctx.bias_correction(beta2)
        ahead = mean / ctx.bias_correction(beta1) + share * mean_change
        root = corrected_root(square, ctx, beta3)
        new = {
            "exp_avg": mean,
            "exp_avg_diff": mean_change,
            "exp_avg_sq": square,
            "previous_grad": update,
        }
        return ahead / (root + eps), new

    return zeros("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad"), update
