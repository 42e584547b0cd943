"""AvaGrad: Adam with rates from earlier gradients, normalized to an overall scale that eps does not change."""

from __future__ import annotations

import torch

from gradtx.links.decay import with_decay
from gradtx.links.scaling import hold_until
from gradtx.maths.entries import adam_moments, corrected_root, quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["avagrad", "scale_by_avagrad"]


@per_tensor(
    elementwise=True,
    shared=lambda arguments: {"gamma": 0.0} if arguments["lagged_norm"] else {},
    agree="lagged_norm",
)
def scale_by_avagrad(betas=(0.9, 0.999), eps=0.1, lagged_norm=False):
    r"""Divide the mean gradient by the size of earlier gradients, rescaled to a fixed overall scale: AvaGrad.

    With Adam's $m_t$, $v_t$: $\eta_t = 1/(\sqrt{v_{t-1}/(1-\beta_2^{t-1})} + \epsilon)$ and
    $\gamma_t = 1/\sqrt{\overline{\eta_t^2}}$, the mean over all entries of all leaves; direction
    $\gamma_t \eta_t m_t / (1-\beta_1^t)$. The first step, without earlier gradients, updates the state and returns 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient; controls how adaptive the method is (large: SGD). With 0, an
            entry without earlier gradients becomes NaN.
        lagged_norm: Compute $\gamma$ as in the authors' code, one step earlier, from $v_{t-2}$ corrected by
            $1-\beta_2^{t-1}$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter; with
        `lagged_norm` also `gamma`, one 0-d float64 shared by all leaves.

    Example:
        >>> tx = gradtx.scale_by_avagrad(betas=(0.0, 0.999), eps=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for _ in range(2):  # 1/eta is (3, 4); gamma makes the mean square of gamma * eta 1
        ...     updates, state = tx.update({"w": torch.tensor([3.0, 4.0])}, state)
        ...     print(updates["w"])
        tensor([0., 0.])
        tensor([3.3941, 3.3941])

    Source: Savarese et al. 2019, arXiv:1912.01823. Departures: none from the paper; the authors' code corresponds to
    `lagged_norm=True`.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        m, _, new_state = average(g, state)
        earlier, seen = state["exp_avg_sq"], ctx.seen
        correction = torch.where(seen, ctx.bias_correction(beta2, ctx.step - 1), 1.0)
        eta = quotient(1.0, safe_sqrt(earlier / correction) + eps, seen)
        # A leaf has no size to contribute at its first step.
        late, count = eta, torch.where(seen, float(g.numel()), 0.0)
        if lagged_norm:
            late, count = 1 / (corrected_root(earlier, ctx, beta2) + eps), g.numel()
        total = yield {"square": late.square().sum(), "count": count}
        gamma = safe_sqrt(quotient(total["count"], total["square"]))
        if lagged_norm:
            gamma, new_state = state["gamma"], new_state | {"gamma": gamma}
        yield gamma / ctx.bias_correction(beta1) * eta * m, new_state

    return moments, update


@alias(class_name="AvaGrad")
def avagrad(
    lr=0.1,
    betas=(0.9, 0.999),
    eps=0.1,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    lagged_norm=False,
):
    r"""AvaGrad: Adam with rates from earlier gradients, normalized to an overall scale that eps does not change.

    $p \leftarrow p - \eta \gamma_t \eta_t m_t/(1-\beta_1^t)$; see `scale_by_avagrad`. The learning rate and eps can
    therefore be tuned separately. The first step moves nothing.

    When to use: when eps and the learning rate should be tuned independently, from SGD-like (large eps) to Adam-like
    (small eps).

    Args:
        lr: $\eta$ in [0, inf), on the scale of SGD's rates.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root: small values are adaptive, large ones approach SGD with
            momentum.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        lagged_norm: Use $\gamma$ of the previous step, as in the authors' code.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`; with `lagged_norm`,
        `gamma`, shared by all leaves.

    Example:
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> for eps in (1.0, 1e6):  # the largest eps is SGD
        ...     tx = gradtx.avagrad(lr=1.0, betas=(0.0, 0.5), eps=eps)
        ...     state = tx.init(params)
        ...     for _ in range(2):
        ...         updates, state = tx.update({"w": torch.tensor([1.0, 3.0])}, state)
        ...     print(updates["w"])
        tensor([-1.2649, -1.8974])
        tensor([-1.0000, -3.0000])

    Source: Savarese et al. 2019, arXiv:1912.01823. Departures: none from the paper; the authors' code and
    pytorch_optimizer's class correspond to `lagged_norm=True`.
    """
    return chain(
        with_decay(
            scale_by_avagrad(betas, eps, lagged_norm),
            weight_decay,
            decoupled_weight_decay,
            lr,
        ),
        hold_until(2),  # neither the update nor the decay acts in the first step
    )
