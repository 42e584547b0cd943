"""Adam and ADOPT without eps: the arc tangent instead of a division."""

from __future__ import annotations

import torch

from gradtx.arguments import Range, is_off
from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transform import chain
from gradtx.transforms._math import (
    adam_moments,
    atan2,
    caution,
    corrected_root,
    norm,
    running_mean,
    safe_sqrt,
    zeros,
)

__all__ = [
    "orthogonalize_against_ema",
    "scale_by_adopt_atan2",
    "scale_by_atan2",
    "scale_by_caution",
]

ATAN2_RANGES = {
    "a": "(0, inf)",
    "b": "(0, inf)",
    "cautious_factor": Range("[0, 1]", off=1.0),
}


def _no_caution(arguments):
    return is_off(arguments["cautious_factor"], 1.0)


@per_tensor(ranges=ATAN2_RANGES, elementwise=_no_caution, nonnegative=("exp_avg_sq",))
def scale_by_atan2(
    betas: Betas = (0.9, 0.99),
    a: Scalar = 1.27,
    b: Scalar = 1.0,
    cautious_factor: Scalar = 1.0,
):
    r"""Combine Adam's two moments with the arc tangent, which needs no eps and is scale-invariant.

    $u_t = a \, \mathrm{atan2}(\hat m_t, b \sqrt{\hat v_t})$, with Adam's $\hat m_t$ and $\hat v_t$. With caution,
    entries whose sign differs from the gradient's are multiplied by $f$, then all are divided by the mean weight.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        a: Scale of the result, > 0. $|u| \le a \pi / 2$.
        b: Scale of the denominator, > 0.
        cautious_factor: $f$ in [0, 1]; a literal 1.0 disables caution.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `cautious_factor` is outside [0, 1], or if `a` or `b` is not above
            0.

    Example:
        >>> tx = gradtx.scale_by_atan2(a=4 / torch.pi)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1e-9, -5.0, 0.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"].round(decimals=4)
        tensor([ 1., -1.,  0.])

    Source: Everett et al. 2024, arXiv:2407.05872; caution: Liang et al. 2024, arXiv:2411.16085. Departures: none from
    adam-atan2-pytorch 0.4.1, which also provides the defaults of `a` and `b`; where $m$ and $v$ are infinite, compiled
    kernels return NaN instead of 45 degrees.
    """
    beta1, beta2 = betas
    init, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        root = corrected_root(square, ctx, beta2)
        # A common positive factor does not change the angle, so only one operand is rescaled.
        direction = atan2(mean, b * ctx.bias_correction(beta1) * root)
        if not is_off(cautious_factor, 1.0):
            direction = direction * caution(direction, update, cautious_factor)
        return a * direction, new

    return init, update


@per_tensor(ranges=ATAN2_RANGES, elementwise=_no_caution, nonnegative=("exp_avg_sq",))
def scale_by_adopt_atan2(
    betas: Betas = (0.9, 0.99),
    a: Scalar = 1.27,
    b: Scalar = 1.0,
    cautious_factor: Scalar = 1.0,
):
    r"""Replace the division and clamp of ADOPT's direction by the arc tangent.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) \mathrm{atan2}(g_t, b \sqrt{v_{t-1}})$, $u_t = a m_t$, then
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$. The first step only sets $v_1 = g_1^2$ and returns 0. Caution compares
    $g_t$ with the old $m_{t-1}$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        a: Scale of the result, > 0.
        b: Scale of the denominator, > 0.
        cautious_factor: As in `scale_by_atan2`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if `cautious_factor` is outside [0, 1], or if `a` or `b` is not above
            0.

    Example:
        >>> tx = gradtx.scale_by_adopt_atan2(betas=(0.0, 0.5), a=4 / torch.pi)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([-3.0])}, state)
        ...     print(updates["w"])
        tensor([0.])
        tensor([-1.])

    Source: adam-atan2-pytorch 0.4.1, after Taniguchi et al. 2024, arXiv:2411.02853. Departures: none from the former.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        old, square = state["exp_avg"], state["exp_avg_sq"]
        first = ctx.step == 1
        mean = torch.where(
            first, old, running_mean(old, atan2(update, b * safe_sqrt(square)), beta1)
        )
        direction = (
            mean
            if is_off(cautious_factor, 1.0)
            else mean * caution(old, update, cautious_factor)
        )
        update_square = update.square()
        square = torch.where(
            first, update_square, running_mean(square, update_square, beta2)
        )
        return a * direction, {"exp_avg": mean, "exp_avg_sq": square}

    return zeros("exp_avg", "exp_avg_sq"), update


@per_tensor(ranges={"factor": Range("[0, 1]", off=1.0)})
def scale_by_caution(factor: Scalar = 0.0):
    r"""Damp the entries of an update that point against the gradient.

    Entries with $u g \le 0$ are multiplied by $f$, then all entries are divided by the mean weight (at least 1e-5) of
    the leaf; $g$ is the gradient as passed to the clock.

    Args:
        factor: $f$ in [0, 1]. A literal 1.0 omits the link.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `factor` is outside [0, 1].

    Example:
        >>> tx = gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_caution())
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> _, state = tx.update({"w": torch.tensor([10.0, 1.0])}, state)
        >>> # momentum still moves the first entry uphill
        >>> tx.update({"w": torch.tensor([-1.0, 1.0])}, state)[0]["w"]
        tensor([0.0000, 3.8000])

    Source: Liang et al. 2024, arXiv:2411.16085. Departures: the factor and the lower bound of 1e-5 on the mean are from
    adam-atan2-pytorch 0.4.1.
    """
    if is_off(factor, 1.0):
        return chain()

    def update(update, state, param, ctx):
        return update * caution(update, ctx.grad, factor), state

    return update


@per_tensor(ranges={"beta": "[0, 1)"})
def orthogonalize_against_ema(beta: Scalar = 0.9):
    r"""Remove a gradient's component along the mean of earlier gradients.

    With $u = e_{t-1} / \max(\lVert e_{t-1} \rVert, 10^{-12})$, the result is $g_t - \langle g_t, u \rangle u$ over the
    whole leaf (in float64); then $e_t = \beta e_{t-1} + (1-\beta) g_t$ with the incoming gradient.

    Args:
        beta: $\beta$, in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_ema`, shaped as the parameter. A leaf with one
        entry becomes 0 from the second step on.

    Raises:
        ValueError: If `beta` is outside [0, 1).

    Example:
        >>> tx = gradtx.orthogonalize_against_ema()
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> _, state = tx.update({"w": torch.tensor([1.0, 0.0])}, state)
        >>> tx.update({"w": torch.tensor([1.0, 1.0])}, state)[0]["w"]
        tensor([0., 1.])

    Source: Han et al. 2025, arXiv:2504.01961, in the form of adam-atan2-pytorch 0.4.1. Departures: none from the
    latter, which fails for 0-d leaves.
    """

    def update(update, state, param, ctx):
        old, exact = state["grad_ema"], update.to(ctx.time.dtype)
        unit = old.to(exact.dtype)
        unit = unit / norm(unit).clamp(min=1e-12)
        return exact - (exact * unit).sum() * unit, {
            "grad_ema": running_mean(old, update, beta)
        }

    return zeros("grad_ema"), update
