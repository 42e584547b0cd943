"""Variance: links that reduce, weigh or add noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import Decay, NonNegative, NonNegativeInt, Positive
from gradtx.base.exact import exact
from gradtx.rules import per_tensor, whole_tree
from gradtx.slots import linear, square, start
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    norm,
    quotient,
    running_mean,
    safe_sqrt,
)

__all__ = ["add_noise", "correct_variance", "scale_by_a2grad", "scale_by_msvag"]


def _corrected(grad: Tensor, last: Tensor, gamma: Any, beta: Any) -> Tensor:
    """Return g + gamma beta / (1 - beta) (g - g_last), clipped to a norm of at most 1."""
    change = grad + gamma * beta / (1 - beta) * (grad - last)
    return change / at_least(norm(change), 1.0)


@whole_tree(needs=("params", "grad_fn"))
def correct_variance_exactly(gamma: NonNegative, beta: Decay, min_ndim: NonNegativeInt):
    """Apply `correct_variance` with the gradient of the current batch at the previous parameters."""

    def init(params):
        # All leaves are stored, because the gradient is computed at the complete previous parameters.
        return {"prev_param": params}

    def update(updates, state, params, ctx):
        last = ctx.grad_fn(state["prev_param"])
        corrected = {}
        for name, grad in updates.items():
            corrected[name] = (
                grad
                if grad.ndim < min_ndim
                else _corrected(grad, last[name], gamma, beta)
            )
        return corrected, {"prev_param": params}

    return init, update


@per_tensor
def correct_variance(
    gamma: NonNegative = 0.025,
    beta: Decay = 0.95,
    exact: bool = False,
    min_ndim: NonNegativeInt = 0,
):
    r"""Add a fraction of the gradient's last change to reduce its variance: MARS's correction.

    $c_t = g_t + \gamma \frac{\beta}{1-\beta} (g_t - g')$, then $c_t / \max(1, \lVert c_t \rVert)$, leaf by leaf, with
    $g' = g_{t-1}$ and $g_0 = 0$; or, if exact, $g'$ is the gradient of the current batch at the previous parameters
    (STORM), which costs a second gradient per step. First link of a chain.

    Args:
        gamma: $\gamma \ge 0$, strength of the correction.
        beta: $\beta$ in [0, 1), that of the momentum that follows.
        exact: Use the extra `grad_fn` to compute the gradient at the previous parameters.
        min_ndim: Leaves with fewer dimensions, >= 0, pass unchanged.

    Returns:
        A transformation that keeps shapes and dtypes. State: `last_grad`, shaped as the parameter, for the leaves that
        are corrected; if exact, `prev_param` for all leaves, under `correct_variance_exactly`.

    Raises:
        ValueError: If an argument is out of range, or if `exact` is set and `params` or `grad_fn` is missing.

    Example:
        >>> tx = gradtx.correct_variance(gamma=0.5, beta=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (0.2, 0.2, 0.4):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([0.3000])
        tensor([0.2000])
        tensor([0.5000])

    Source: Yuan et al. 2024, arXiv:2411.10438; exact: Cutkosky and Orabona 2019, arXiv:1905.10018. Departures: if
    exact, $g'$ is $g_1$ at the first step, as in the paper; the authors' code uses 0.
    """
    if exact:
        return correct_variance_exactly(gamma, beta, min_ndim)

    def first(param):
        return None if param.ndim < min_ndim else torch.zeros_like(param)

    def update(update, state, param, ctx):
        if update.ndim < min_ndim:
            return update, state
        return _corrected(update, state["last_grad"], gamma, beta), {
            "last_grad": update
        }

    return {"last_grad": linear(first)}, update


@per_tensor(elementwise=True)
def scale_by_msvag(beta: Decay = 0.9):
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
    moments, average = adam_moments((beta, beta))

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

    return moments, update


@per_tensor(elementwise=True, needs=("params",), owns_lr=True)
def scale_by_a2grad(
    variant: str = "uni",
    beta: NonNegative = 10.0,
    lips: Positive = 10.0,
    rho: Decay = 0.5,
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

    slots = {
        "x": start(),
        "avg_grad": linear(),
        "v": square(),
        "v_tilde": square() if variant == "exp" else None,
    }
    return slots, update


@per_tensor(random=True)
def add_noise(eta: NonNegative, gamma: NonNegative, seed: int):
    r"""Add Gaussian noise whose variance decreases with time: $u_t = g_t + N(0, \eta / t^\gamma)$.

    The noise depends only on the seed, the leaf's name and the step, not on torch's generator.

    Args:
        eta: $\eta \ge 0$, the variance at $t = 1$. 0 leaves updates unchanged.
        gamma: $\gamma \ge 0$, how fast the variance decreases; 0.55 in the paper.
        seed: Seed of the noise.

    Returns:
        A transformation that keeps shapes and dtypes. State: `seed` and `counter`, shared by the whole stage.

    Raises:
        ValueError: If an argument is negative.

    Example:
        >>> tx = gradtx.add_noise(eta=4.0, gamma=1.0, seed=0)
        >>> state = tx.init({"w": torch.zeros(10_000)})
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.zeros(10_000)}, state)
        ...     print(f"{updates['w'].std():.1f}")  # the root of 4 / t
        2.0
        1.4
        1.2
        1.0

    Source: Neelakantan et al. 2015, arXiv:1511.06807. Departures: the paper writes $(1 + t)^\gamma$ with $t$ from 0.
    """

    def update(update, state, param, ctx):
        variance = exact(eta, update.device) / ctx.time**gamma
        return update + safe_sqrt(variance) * ctx.rng.normal(update), state

    return update
