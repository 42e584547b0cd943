"""Apollo: division by a diagonal estimate of the curvature."""

from __future__ import annotations

from gradtx.arguments import is_off
from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, largest, safe_sqrt, zeros

__all__ = ["scale_by_apollo"]


@per_tensor(
    needs=("params",),
    ranges={"beta": "[0, 1)", "eps": "(0, inf)"},
    example={"rebound": "belief", "eps": 0.1},
)
def scale_by_apollo(
    beta: Scalar = 0.9,
    eps: Scalar = 1e-4,
    rebound: str = "constant",
    weight_decay: Scalar = 0.0,
    weight_decay_type: str = "decoupled",
):
    r"""Divide the mean gradient by a diagonal Hessian fitted to the change of gradients along the steps: Apollo.

    For each leaf, with $a = (1-\beta)/(1-\beta^t)$: $\Delta = g_t - m_{t-1}$, $m_t = m_{t-1} + a \Delta$;
    $n = \lVert d_{t-1} \rVert_4 + \epsilon'$, $q = d_{t-1}/n$,
    $B_t = B_{t-1} - (\frac{a}{n} \sum \Delta q + \sum B_{t-1} q^2) q^2$; direction
    $d_t = m_t / \max(|B_t|, \sigma)$, from $m_0 = B_0 = d_0 = 0$. $B$ is the curvature times the learning rate, because
    $d$ is the step before the learning rate is applied. There are two bounds: "constant" has
    $\sigma = 0.01$, $\epsilon' = \epsilon / 0.01$; "belief" has $\sigma = \max |\Delta|$, $\epsilon' = \epsilon$,
    and adds $\epsilon / a$ to the denominator.

    Args:
        beta: $\beta$ in [0, 1).
        eps: $\epsilon > 0$.
        rebound: Lower bound of the curvature: "constant" or "belief".
        weight_decay: $\lambda \ge 0$. The decay is part of $d$ and therefore of the next curvature.
        weight_decay_type: "decoupled" adds $\lambda p$ to $d$, "stable" adds $\lambda p$ over the mean denominator.
            (For L2 decay, place `add_decayed_weights` before this link.)

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_grad` ($m$), `approx_hessian` ($B$), `update`
        ($d$), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if an option is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_apollo(beta=0.0, eps=1e-8)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the loss is 2 w**2; after two steps its curvature of 4 is known
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": 4 * params["w"]}, state, params)
        ...     params = gradtx.apply_updates(params, {"w": -1e-3 * updates["w"]})
        >>> state["scale_by_apollo"]["approx_hessian"]["w"]
        tensor([0.0040])

    Source: Ma 2020, arXiv:2009.13586. Departures: none from the authors' 2021 code; torch_optimizer's Apollo is an
    earlier version with $\sigma = 1$. Not the low-rank APOLLO of arXiv:2412.05270.
    """
    if rebound not in ("constant", "belief"):
        raise ValueError(
            f"scale_by_apollo: rebound must be 'constant' or 'belief', got {rebound!r}"
        )
    if weight_decay_type not in ("decoupled", "stable"):
        raise ValueError(
            f"scale_by_apollo: weight_decay_type must be 'decoupled' or 'stable', got {weight_decay_type!r}; "
            "for 'L2', place add_decayed_weights before this link"
        )
    belief, stable = rebound == "belief", weight_decay_type == "stable"

    def update(update, state, param, ctx):
        share = (1 - beta) / ctx.bias_correction(beta)
        change = update - state["exp_avg_grad"]
        mean = state["exp_avg_grad"] + share * change
        last, curvature = state["update"], state["approx_hessian"]
        # The 4-norm as two roots, which are safe to differentiate at 0.
        length = safe_sqrt(safe_sqrt(last.square().square().sum())) + (
            eps if belief else eps / 0.01
        )
        along = last / length
        squares = along.square()
        misfit = share / length * (change * along).sum() + (curvature * squares).sum()
        curvature = curvature - misfit * squares
        bound = largest(change.abs()) if belief else 0.01
        size = at_least(curvature.abs(), bound)
        if belief:
            size = size + eps / share
        direction = mean / size
        if not is_off(weight_decay):
            decay = weight_decay / size.mean() if stable else weight_decay
            direction = direction + decay * param
        return direction, {
            "exp_avg_grad": mean,
            "approx_hessian": curvature,
            "update": direction,
        }

    return zeros("exp_avg_grad", "approx_hessian", "update"), update
