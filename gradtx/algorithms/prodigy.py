"""Prodigy: Adam with an automatic learning rate, found faster than by D-Adaptation."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch

from gradtx.algorithms.dadapt import corrected_rate, limited, resting
from gradtx.arguments import AtLeastOneOrInf, Count, Decay, Positive
from gradtx.base.exact import exact
from gradtx.links.decay import add_decayed_weights, split_decay
from gradtx.links.scaling import descend
from gradtx.maths.entries import MOMENTS, plus_decay, quotient, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot, weights
from gradtx.transform import chain

__all__ = ["prodigy", "scale_by_prodigy"]


@per_tensor(
    elementwise=lambda arguments: arguments["slice_p"] == 1,
    needs="params",
    rate="before",
    shared=lambda arguments: {
        "d": arguments["d0"],
        "d_max": arguments["d0"],
        "d_numerator": 0.0,
    },
    agree=("betas", "beta3", "d0", "d_coef", "growth_rate"),
)
def scale_by_prodigy(
    lr=1.0,
    betas=(0.9, 0.999),
    beta3: Decay | None = None,
    eps: Positive = 1e-8,
    weight_decay=0.0,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0: Positive = 1e-6,
    d_coef: Positive = 1.0,
    growth_rate: AtLeastOneOrInf = math.inf,
    slice_p: Count = 1,
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

    def update(g, state, p, ctx):
        d = state["d"]
        rate, growth = corrected_rate(d, lr, betas, use_bias_correction, ctx), d / d0
        weight = rate
        if safeguard_warmup:
            # A group with lr 0 must not contribute, regardless of the weights in s.
            weight = torch.where(exact(lr, g.device) == 0, 0.0, d)
        product = growth * rate * (part(g) * (state["p0"] - part(p))).sum()
        m = beta1 * state["exp_avg"] + ((1 - beta1) * d) * g
        v = beta2 * state["exp_avg_sq"] + ((1 - beta2) * d.square()) * g.square()
        s = keep * state["s"] + (growth * weight) * part(g)
        total = yield {"product": product, "size": s.abs().sum()}
        r = keep * state["d_numerator"] + total["product"]
        estimate = d_coef * quotient(r, total["size"])
        largest = torch.maximum(state["d_max"], estimate)
        base = torch.where(d == d0, torch.maximum(d, estimate), d)
        d = limited(largest, base, growth_rate)
        direction = rate * m / (safe_sqrt(v) + d * eps)
        direction = plus_decay(direction, weight_decay, p, rate)
        new_state = {"exp_avg": m, "exp_avg_sq": v, "s": s}
        shared = {"d": d, "d_max": largest, "d_numerator": r}
        yield resting(total["size"], state, direction, new_state, shared)

    slots = {
        **MOMENTS,
        "s": Slot(lambda p: torch.zeros_like(part(p)), slow=True),
        "p0": weights(part),
    }
    return slots, update


@alias
def prodigy(
    lr=1.0,
    betas=(0.9, 0.999),
    beta3: Decay | None = None,
    eps: Positive = 1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    **options: Annotated[Any, scale_by_prodigy],
):
    r"""Prodigy: Adam with an automatic learning rate, found faster than by D-Adaptation.

    $\delta = d \eta$, $p \leftarrow p - \delta m / (\sqrt v + d \epsilon)$ with the averages $m$ of $d g$ and $v$ of
    $(d g)^2$; $d$ grows with $\sum g (p_0 - p)$, see `scale_by_prodigy`.

    When to use: Adam when no rate is known; leave `lr` at 1.0 and use cosine decay. The first choice among methods
    without a learning rate.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1, or a schedule below 1.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        beta3: Decay rate of the sums in the estimate, in [0, 1); None for $\sqrt{\beta_2}$.
        eps: $\epsilon > 0$.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Subtract $\delta \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.
        use_bias_correction: Multiply $\delta$ by $\sqrt{1-\beta_2^t} / (1-\beta_1^t)$.
        safeguard_warmup: Exclude $\eta$ from the denominator of the estimate, for long warm-ups.
        d0: Initial value of $d$, > 0; it should be far below the distance from the initial weights to the solution.
        d_coef: Multiplier of the estimate, > 0; use it to obtain a larger or smaller rate.
        growth_rate: Largest factor by which $d$ may grow in one step, >= 1.
        slice_p: Estimate only from every `slice_p`-th entry of a leaf, which saves memory; >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `s`, `p0`; shared by
        all leaves, 0-d: `d`, `d_max`, `d_numerator`.

    Example:
        >>> tx = gradtx.prodigy()
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(20):  # the loss is |w - 7|, for which no rate was chosen
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> f"d = {state['scale_by_prodigy']['d']:.1f}"  # the solution is 3 from the start
        'd = 2.5'

    Source: Mishchenko and Defazio 2023, arXiv:2306.06101. Departures: see `scale_by_prodigy`. (pytorch_optimizer's
    class has no `slice_p`, and its coupled decay differs.)
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled),
        scale_by_prodigy(lr, betas, beta3, eps, decoupled, **options),
        descend(),
    )
