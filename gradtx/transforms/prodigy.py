"""Prodigy: D-Adaptation with gradients weighted by distance."""

from __future__ import annotations

import math

import torch

from gradtx.base.exact import Betas, Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import plus_decay, quotient, safe_sqrt, zeros
from gradtx.transforms.dadapt import DADAPT_RANGES, corrected_rate, limited

__all__ = ["scale_by_prodigy"]

PRODIGY_RANGES = {
    **DADAPT_RANGES,
    "d_coef": "(0, inf)",
    "slice_p": "[1, inf)",
    "beta3": "[0, 1)",
    "eps": "(0, inf)",
}


@per_tensor(
    elementwise=lambda arguments: arguments["slice_p"] == 1,
    needs=("params",),
    before_owner=True,
    shared=lambda arguments: {
        "d": arguments["d0"],
        "d_max": arguments["d0"],
        "d_numerator": 0.0,
    },
    agree=("betas", "beta3", "d0", "d_coef", "growth_rate"),
    ranges=PRODIGY_RANGES,
    nonnegative=("exp_avg_sq",),
)
def scale_by_prodigy(
    lr: Scalar = 1.0,
    betas: Betas = (0.9, 0.999),
    beta3: Scalar | None = None,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: Scalar = 1e-6,
    d_coef: Scalar = 1.0,
    growth_rate: Scalar = math.inf,
    slice_p: int = 1,
):
    r"""Run Adam with an automatic rate from the distance that the weights have moved: Prodigy.

    $\delta = d \eta$, $N \leftarrow \beta_3 N + (d/d_0) \delta \sum g (p_0 - p)$,
    $m \leftarrow \beta_1 m + (1-\beta_1) d g$, $v \leftarrow \beta_2 v + (1-\beta_2) d^2 g^2$,
    $s \leftarrow \beta_3 s + (d/d_0) \delta g$, $\hat d = c N / \lVert s \rVert_1$,
    $p \leftarrow p (1 - \delta\lambda) - \delta m / (\sqrt v + d' \epsilon)$, sums over all leaves, with the next $d$:
    if $d = d_0$, $d \leftarrow \max(d, \hat d)$; $d_{max} \leftarrow \max(d_{max}, \hat d)$;
    $d' = \min(d_{max}, \kappa d)$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        beta3: $\beta_3$ in [0, 1); None for $\sqrt{\beta_2}$.
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$, decoupled.
        use_bias_correction: Multiply $\delta$ by $\sqrt{1-\beta_2^t} / (1-\beta_1^t)$.
        safeguard_warmup: Omit $\eta$ and the correction from $s$, so that a warm-up does not inflate $\hat d$.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.
        d_coef: $c > 0$, a multiplier of the estimate.
        growth_rate: $\kappa \ge 1$, the largest growth factor of $d$ in one step.
        slice_p: Use only every `slice_p`-th entry of a leaf for $N$ and $s$, which saves memory; >= 1.

    Returns:
        A transformation that keeps shapes and dtypes and returns a direction that includes the rate $\delta$: end the
        chain with `descend`, or leave lr at 1 and end it with `scale_by_learning_rate`. State: `exp_avg`,
        `exp_avg_sq`, `s`, `p0`, shaped as the parameter (the last two one-dimensional with `slice_p` above 1); shared
        by all leaves, `d`, `d_max`, `d_numerator`, 0-d.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if the link follows one that owns the
            learning rate.

    Example:
        >>> tx = gradtx.chain(gradtx.scale_by_prodigy(), gradtx.descend())
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for i in range(16):  # the loss is |w - 7|; d grows with the distance
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     if i % 5 == 0:
        ...         d = gradtx.get(state, "scale_by_prodigy.d")
        ...         print(f"{10 - params['w'].item():.1g}, d = {d:.1g}")
        3e-06, d = 1e-06
        0.0002, d = 8e-05
        0.02, d = 0.009
        3, d = 1

    Source: Mishchenko and Defazio 2023, arXiv:2306.06101. Departures from the authors' code: rates may differ between
    groups; with a first beta of 0 the direction includes the old $d$, as for every other beta.
    """
    beta1, beta2 = betas
    keep = beta2**0.5 if beta3 is None else beta3

    def part(x):
        return x if slice_p == 1 else x.flatten()[::slice_p]

    def init(param):
        start = part(param)
        moments = zeros("exp_avg", "exp_avg_sq")(param)
        return moments | {"s": torch.zeros_like(start), "p0": start}

    def update(update, state, param, ctx):
        d, start = state["d"], state["p0"]
        rate, growth = corrected_rate(d, lr, betas, use_bias_correction, ctx), d / d0
        # A group with lr 0 must not contribute, regardless of the weights in s.
        weight = (
            torch.where(exact(lr, update.device) == 0, 0.0, d)
            if safeguard_warmup
            else rate
        )
        product = growth * rate * (part(update) * (start - part(param))).sum()
        mean = beta1 * state["exp_avg"] + ((1 - beta1) * d) * update
        square = (
            beta2 * state["exp_avg_sq"] + ((1 - beta2) * d.square()) * update.square()
        )
        s = keep * state["s"] + (growth * weight) * part(update)
        total = yield {"product": product, "size": s.abs().sum()}
        no_gradient = total["size"] == 0
        numerator = torch.where(
            no_gradient,
            state["d_numerator"],
            keep * state["d_numerator"] + total["product"],
        )
        estimate = d_coef * quotient(numerator, total["size"])
        largest = torch.maximum(state["d_max"], estimate)
        base = torch.where(d == d0, torch.maximum(d, estimate), d)
        d = torch.where(no_gradient, d, limited(largest, base, growth_rate))
        direction = plus_decay(
            rate * mean / (safe_sqrt(square) + d * eps), weight_decay, param, rate
        )
        new = {"exp_avg": mean, "exp_avg_sq": square, "s": s, "p0": start}
        yield (
            torch.where(no_gradient, 0.0, direction),
            {**new, "d": d, "d_max": largest, "d_numerator": numerator},
        )

    return init, update
