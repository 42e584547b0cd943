"""SWATS: switch from Adam to SGD at a rate estimated from Adam's steps."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import adam_moments, hat_rate, running_mean, safe_sqrt

__all__ = ["scale_by_swats"]


@per_tensor(
    elementwise=True,
    owns_lr=True,
    shared={"count": 0.0, "rate_avg": 0.0, "sgd_rate": 0.0, "switched": 0.0},
    agree=("betas", "eps", "switch_tol"),
    ranges={"switch_tol": "[0, inf)"},
    nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
)
def scale_by_swats(
    lr: Scalar = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-9,
    amsgrad: bool = False,
    switch_tol: Scalar | None = None,
):
    r"""Step as Adam until the equivalent SGD rate has settled, then as SGD with momentum at that rate: SWATS.

    Adam's phase: $s_t = -\eta_t \frac{\sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)} m_t$, and with all leaves as one vector
    $\gamma_t = \langle s, s \rangle / -\langle s, g \rangle$,
    $\lambda_t = \beta_2 \lambda_{t-1} + (1-\beta_2) \gamma_t$, $\Lambda_t = \lambda_t / c_2$. Where $t > 1$,
    $\Lambda_t > 0$ and $|\Lambda_t - \gamma_t| <$ `switch_tol`, all following steps are SGD steps, and $\Lambda$ and
    Adam's averages are frozen: $b \leftarrow \beta_1 b + g$ from 0, $u = -(1-\beta_1) \Lambda b$. Where
    $\langle s, g \rangle = 0$, $\lambda$ is unchanged and there is no switch.

    Args:
        lr: $\eta$ in [0, inf), used in Adam's phase only.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.
        switch_tol: Tolerance >= 0, in the units of a learning rate; None for `eps`, as in the paper.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`], `momentum_buffer`, shaped as the parameter; shared by all leaves, 0-d float64: `count`
        ($t$), `rate_avg` ($\lambda$), `sgd_rate` ($\Lambda$) and `switched` (1.0 in SGD's phase).

    Raises:
        ValueError: If an argument is out of range, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_swats(lr=0.1, betas=(0.5, 0.5), switch_tol=1e-3)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # Adam's steps of 0.1 match SGD's at 0.05 twice: then it switches to SGD
        >>> for grad in (2.0, 2.0, 4.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1000])
        tensor([-0.1000])

    Source: Keskar and Socher 2017, arXiv:1712.07628. Departures: none from the paper. Published implementations,
    including torch_optimizer's and pytorch_optimizer's, compute $\gamma$ leaf by leaf with a relative tolerance.
    """
    beta1, beta2 = betas
    init, average = adam_moments(betas, amsgrad, "momentum_buffer")
    tolerance = eps if switch_tol is None else switch_tol

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        step = -lr * hat_rate(safe_sqrt(square) + eps, ctx, betas) * mean
        total = yield {"square": step.square().sum(), "slope": (step * update).sum()}

        # The step count shared by all leaves, because a leaf may have had its first gradient later.
        count, sgd, slope = state["count"] + 1, state["switched"] > 0, total["slope"]
        # This step has an estimate, and the estimate is still needed.
        seen = (slope != 0) & ~sgd
        estimate = total["square"] / -torch.where(seen, slope, -1.0)
        rate_avg = torch.where(
            seen, running_mean(state["rate_avg"], estimate, beta2), state["rate_avg"]
        )
        sgd_rate = torch.where(
            seen, rate_avg / ctx.bias_correction(beta2, count), state["sgd_rate"]
        )
        has_settled = (
            seen
            & (count > 1)
            & (sgd_rate > 0)
            & ((sgd_rate - estimate).abs() < tolerance)
        )

        buffer = torch.where(sgd, beta1 * state["momentum_buffer"] + update, 0.0)
        new = {
            slot: torch.where(sgd, state[slot], value) for slot, value in new.items()
        }
        new |= {
            "momentum_buffer": buffer,
            "count": count,
            "rate_avg": rate_avg,
            "sgd_rate": sgd_rate,
        }
        new["switched"] = (sgd | has_settled).to(rate_avg.dtype)
        yield torch.where(sgd, -(1 - beta1) * state["sgd_rate"] * buffer, step), new

    return init, update
