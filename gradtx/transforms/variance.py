"""M-SVAG, A2Grad: shorten steps where gradients vary from step to step."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    quotient,
    running_mean,
    safe_sqrt,
    zeros,
)

__all__ = ["scale_by_a2grad", "scale_by_msvag"]


@per_tensor(ranges={"beta": "[0, 1)"}, elementwise=True, nonnegative=("exp_avg_sq",))
def scale_by_msvag(beta: Scalar = 0.9):
    r"""Shorten each entry of the mean gradient by the share of variance in its square: M-SVAG's direction.

    $m_t$, $v_t$ are averages of $g$ and $g^2$ with the same $\beta$; $\hat m$ and $\hat v$ are divided by $1-\beta^t$;
    $\rho_t = \min(0.9999, \frac{(1-\beta)^2 (1-\beta^{2t})}{(1-\beta^t)^2 (1-\beta^2)})$,
    $s_t = (\hat v_t - \hat m_t^2)/(1-\rho_t)$, direction
    $\hat m_t \, \mathrm{clip}(\hat m_t^2 / (\hat m_t^2 + \rho_t s_t), 0, 1)$, and 0 where this is 0/0.

    Args:
        beta: $\beta$ in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If `beta` is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_msvag(beta=0.5)
        >>> state = tx.init({"w": torch.zeros(2, dtype=torch.float64)})
        >>> for grads in ([4.0, 1.0], [4.0, 7.0]):  # a steady gradient, and one with variance
        ...     updates, state = tx.update(
        ...         {"w": torch.tensor(grads, dtype=torch.float64)}, state
        ...     )
        >>> updates["w"]
        tensor([4.0000, 3.5714], dtype=torch.float64)

    Source: Balles and Hennig 2018, arXiv:1705.07774. Departures: none from the authors' code. At the first step, where
    $\hat v = \hat m^2$ up to rounding, $1 - \rho_t$ is 1e-4, which amplifies rounding errors 10,000 times.
    """
    init, average = adam_moments((beta, beta))

    def update(update, state, param, ctx):
        exp_avg, exp_avg_sq, new = average(update, state)
        correction = ctx.bias_correction(beta)
        # The paper's quotient with common factors canceled: 1 - b**2 = (1 - b) * (1 + b) for b = beta and b = beta**t.
        rho = ((1 - beta) * (2 - correction) / ((1 + beta) * correction)).clamp(
            max=0.9999
        )
        mean, square = exp_avg / correction, (exp_avg / correction).square()
        size = square + rho / (1 - rho) * (exp_avg_sq / correction - square)
        return quotient(square, size).clamp(0, 1) * mean, new

    return init, update


@per_tensor(
    elementwise=True,
    needs=("params",),
    owns_lr=True,
    ranges={"beta": "[0, inf)", "lips": "(0, inf)", "rho": "[0, 1)"},
    nonnegative=("v",),
)
def scale_by_a2grad(
    variant: str = "uni", beta: Scalar = 10.0, lips: Scalar = 10.0, rho: Scalar = 0.5
):
    r"""Damp accelerated gradient descent by the deviation of gradients from their mean: A2Grad.

    With $k = t - 1$ and $\bar g_k$ the mean of all gradients so far, $\delta_k = g_k - \bar g_k$,
    $\gamma_k = 2L/(k+1)$, $\alpha_k = 2/(k+2)$, $c_k = 1/(\gamma_k + \beta h_k)$, entry by entry:
    $x_{k+1} = x_k - c_k g_k$, $p_{k+1} = (1-\alpha_{k+1}) (p_k - \alpha_k c_k g_k) + \alpha_{k+1} x_{k+1}$. The
    damping, starting from 0, is:

    - uni: $v_k = v_{k-1} + \delta_k^2$, $h_k = \sqrt{v_k}$;
    - inc: $v_k = (\frac{k}{k+1})^2 v_{k-1} + \delta_k^2$, $h_k = \sqrt{v_k}$;
    - exp: $\tilde v_k = \rho \tilde v_{k-1} + (1-\rho) \delta_k^2$, $v_k = \max(v_{k-1}, \tilde v_k)$,
      $h_k = \sqrt{(k+1) v_k}$.

    Args:
        variant: "uni", "inc" or "exp": how quickly earlier deviations are forgotten.
        beta: $\beta \ge 0$, the weight of the damping.
        lips: $L > 0$, the Lipschitz constant of the gradient: step sizes are of the order 1/L.
        rho: $\rho$ in [0, 1); only used by "exp".

    Returns:
        A transformation whose updates are added to the parameters; it has no learning rate. State: `x` (initially the
        parameter), `avg_grad`, `v` and, for "exp", `v_tilde`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `variant` is unknown, if `params` is missing, or if a later link
            scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_a2grad(lips=2.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> # no deviation yet: 4 / (2 L)
        >>> tx.update({"w": torch.tensor([4.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.])

    Source: Deng et al. 2018, arXiv:1810.00553, algorithms 4 to 7. Departures: none from the paper. Published
    implementations, including torch_optimizer's and pytorch_optimizer's, use one $\lVert\delta\rVert^2$ per leaf
    instead of a vector.
    """
    if variant not in ("uni", "inc", "exp"):
        raise ValueError(
            f"scale_by_a2grad: variant must be 'uni', 'inc' or 'exp', got {variant!r}"
        )

    def init(param):
        slots = zeros("avg_grad", "v", v_tilde=variant == "exp")
        return {"x": param, **slots(param)}

    def update(update, state, param, ctx):
        t = ctx.time  # k + 1
        mean = state["avg_grad"] + (update - state["avg_grad"]) / t
        stray = (update - mean).square()
        new = {"avg_grad": mean}
        if variant == "exp":
            new["v_tilde"] = running_mean(state["v_tilde"], stray, rho)
            new["v"] = torch.maximum(state["v"], new["v_tilde"])
        else:
            keep = ((t - 1) / t).square() if variant == "inc" else 1.0
            new["v"] = keep * state["v"] + stray
        damping = safe_sqrt(t * new["v"] if variant == "exp" else new["v"])
        step = update / (2 * lips / t + beta * damping)
        new["x"] = state["x"] - step
        alpha, following = 2 / (t + 1), 2 / (t + 2)
        return following * (new["x"] - param) - (1 - following) * alpha * step, new

    return init, update
