"""SWATS: Adam that switches to SGD with momentum once the equivalent SGD rate has settled."""

from __future__ import annotations

import torch

from gradtx.arguments import NonNegative
from gradtx.links.decay import add_decayed_weights
from gradtx.maths.entries import adam_moments, hat_rate, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear
from gradtx.transform import chain

__all__ = ["scale_by_swats", "swats"]


@per_tensor(
    elementwise=True,
    owns_lr=True,
    shared={"count": 0.0, "rate_avg": 0.0, "sgd_rate": 0.0, "switched": 0.0},
    agree=("betas", "eps", "switch_tol"),
)
def scale_by_swats(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-9,
    amsgrad=False,
    switch_tol: NonNegative | None = None,
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
    moments, average = adam_moments(betas, amsgrad)
    tolerance = eps if switch_tol is None else switch_tol

    def update(g, state, p, ctx):
        m, v, new_state = average(g, state)
        step = -lr * hat_rate(safe_sqrt(v) + eps, ctx, betas) * m
        total = yield {"square": step.square().sum(), "slope": (step * g).sum()}
        # The step count shared by all leaves, because a leaf may have had its first gradient later.
        count, sgd, slope = state["count"] + 1, state["switched"] > 0, total["slope"]
        buffer = beta1 * state["momentum_buffer"] + g
        sgd_phase = {**state, "momentum_buffer": buffer}
        has_estimate = slope != 0
        estimate = total["square"] / -torch.where(has_estimate, slope, -1.0)
        rate_avg = running_mean(state["rate_avg"], estimate, beta2)
        rate_avg = torch.where(has_estimate, rate_avg, state["rate_avg"])
        sgd_rate = rate_avg / ctx.bias_correction(beta2, count)
        sgd_rate = torch.where(has_estimate, sgd_rate, state["sgd_rate"])
        has_settled = (sgd_rate - estimate).abs() < tolerance
        adam_phase = {
            **new_state,
            "momentum_buffer": 0.0,
            "rate_avg": rate_avg,
            "sgd_rate": sgd_rate,
            "switched": has_estimate & (count > 1) & (sgd_rate > 0) & has_settled,
        }
        for slot, value in adam_phase.items():
            new_state[slot] = torch.where(sgd, sgd_phase[slot], value)
        step = torch.where(sgd, -(1 - beta1) * state["sgd_rate"] * buffer, step)
        yield step, {**new_state, "count": count}

    return {**moments, "momentum_buffer": linear()}, update


@alias(class_name="SWATS")
def swats(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-9,
    weight_decay=0.0,
    amsgrad=False,
    switch_tol: NonNegative | None = None,
):
    r"""SWATS: Adam that switches to SGD with momentum once the equivalent SGD rate has settled.

    See `scale_by_swats`. Adam's phase uses `lr`; the SGD phase estimates its own rate, one for all parameters.

    When to use: to combine Adam's fast start with SGD's generalization, without choosing the time of the switch or
    SGD's rate.

    Args:
        lr: $\eta$ in [0, inf), for Adam's phase; the SGD phase ignores it, including a schedule.
        betas: Decay rates of the two averages, each in [0, 1); the first is also SGD's momentum.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, added to the gradient in both phases.
        amsgrad: Use the running maximum of $v$.
        switch_tol: Tolerance of the test, >= 0, in units of a learning rate; None for `eps`, as in the paper.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, [`max_exp_avg_sq`],
        `momentum_buffer`; shared by all leaves: `count`, `rate_avg`, `sgd_rate`, `switched`.

    Example:
        >>> tx = gradtx.swats(lr=0.1, switch_tol=1e-3)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # a constant gradient: Adam's steps of 0.1 equal SGD's at a rate of 0.025
        >>> for _ in range(2):
        ...     _, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> state["scale_by_swats"]["sgd_rate"], state["scale_by_swats"]["switched"]
        (tensor(0.0250, dtype=torch.float64), tensor(1., dtype=torch.float64))

    Source: Keskar and Socher 2017, arXiv:1712.07628. Departures: none from the paper, which treats all parameters as
    one vector and has an absolute tolerance; torch_optimizer's and pytorch_optimizer's classes do neither.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_swats(lr, betas, eps, amsgrad, switch_tol),
    )
