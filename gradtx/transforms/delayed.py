"""Divide only by the size of earlier gradients: AvaGrad, AdaShift."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    corrected_root,
    largest,
    safe_sqrt,
    scalar_zero,
)

__all__ = ["scale_by_adashift", "scale_by_avagrad"]


@per_tensor(
    elementwise=True,
    shared=lambda arguments: {"gamma": 0.0} if arguments["lagged_norm"] else {},
    agree=("lagged_norm",),
    nonnegative=("exp_avg_sq",),
)
def scale_by_avagrad(
    betas: Betas = (0.9, 0.999), eps: Scalar = 0.1, lagged_norm: bool = False
):
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

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

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
    init, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, _, new = average(update, state)
        # V and its correction are then 0: replace both by arbitrary values.
        first = (ctx.step == 1).to(ctx.time.dtype)
        earlier = state["exp_avg_sq"]
        correction = ctx.bias_correction(beta2, ctx.step - 1) + first
        eta = 1 / (safe_sqrt(earlier / correction) + (eps + first))
        late = 1 / (corrected_root(earlier, ctx, beta2) + eps) if lagged_norm else eta
        # A leaf has no size to contribute at its first step.
        left_out = 0.0 if lagged_norm else first
        total = yield {
            "square": (1 - left_out) * late.square().sum(),
            "count": (1 - left_out) * late.numel(),
        }
        gamma = ((total["count"] + left_out) / (total["square"] + left_out)).sqrt()
        if lagged_norm:
            gamma, new = state["gamma"], new | {"gamma": gamma}
        yield (1 - first) * gamma / ctx.bias_correction(beta1) * eta * mean, new

    return init, update


_REDUCTIONS = {
    "max": largest,
    "mean": lambda x: x.sum() / max(x.numel(), 1),
    "none": lambda x: x,
}


@per_tensor(
    elementwise=lambda arguments: arguments["reduce"] == "none",
    ranges={"keep_num": "[1, inf)"},
    nonnegative=("exp_avg_sq",),
)
def scale_by_adashift(
    betas: Betas = (0.9, 0.999),
    keep_num: int = 10,
    eps: Scalar = 1e-10,
    reduce: str = "max",
):
    r"""Divide the mean of the last $n$ gradients by the size of the gradients before them: AdaShift.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) \phi(g_{t-n}^2)$ from 0,
    $m_t = \sum_{i<n} \beta_1^i g_{t-i} / \sum_{i<n} \beta_1^i$, direction
    $m_t / (\sqrt{v_t/(1-\beta_2^{t-n})} + \epsilon)$: numerator and denominator share no gradient. The first $n$ steps
    return 0, as do entries whose $v$ is still 0.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        keep_num: $n \ge 1$, the number of gradients to keep.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        reduce: $\phi$: "max" or "mean" over the leaf for a single rate, or "none" for one rate per weight.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_0` ... `grad_{n-1}`, the last gradients, newest
        first, shaped as the parameter; `exp_avg_sq`, 0-d float64 for each leaf, or shaped as the parameter with "none".

    Raises:
        ValueError: If an argument is out of range, or if `reduce` is unknown.

    Example:
        >>> tx = gradtx.scale_by_adashift(betas=(0.0, 0.9), keep_num=1)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # the second is divided by the largest entry of the first
        >>> for grad in ([2.0, -4.0], [3.0, 1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([0., 0.])
        tensor([0.7500, 0.2500])

    Source: Zhou et al. 2018, arXiv:1810.00143. Departures: none from the paper; the PyTorch port in the authors'
    repository starts $m$ only after the first $n$ steps.
    """
    if reduce not in _REDUCTIONS:
        raise ValueError(
            f"scale_by_adashift: reduce must be 'max', 'mean' or 'none', got {reduce!r}"
        )
    (beta1, beta2), phi = betas, _REDUCTIONS[reduce]

    def init(param):
        whole = scalar_zero(param)
        square = torch.zeros_like(param) if reduce == "none" else whole
        return {
            "grad": [torch.zeros_like(param) for _ in range(keep_num)],
            "exp_avg_sq": square,
        }

    def update(update, state, param, ctx):
        *recent, oldest = state["grad"]
        window = [update, *recent]
        square = beta2 * state["exp_avg_sq"] + (1 - beta2) * phi(oldest.square())
        mean, weight = window[-1], 1.0
        for grad in reversed(window[:-1]):  # both sums over the window by Horner's rule
            mean, weight = grad + beta1 * mean, 1 + beta1 * weight
        is_zero = square == 0  # includes the first n steps
        correction = ctx.bias_correction(beta2, (ctx.step - keep_num).clamp(min=1))
        size = safe_sqrt(torch.where(is_zero, 1.0, square) / correction) + eps
        return torch.where(is_zero, 0.0, mean / (weight * size)), {
            "grad": window,
            "exp_avg_sq": square,
        }

    return init, update
