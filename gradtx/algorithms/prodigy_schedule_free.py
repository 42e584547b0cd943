"""Prodigy with Schedule-Free: AdamW with neither a learning rate nor a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import (
    Count,
    Decay,
    NonNegative,
    NonNegativeInt,
    OpenFraction,
    Positive,
)
from gradtx.combinators.slow_weights import average_of, decoupled, points, points_moved
from gradtx.maths.entries import (
    at_least,
    atan2,
    plus_decay,
    quotient,
    rms,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot, scalar, square, weights

__all__ = ["prodigy_schedule_free", "scale_by_prodigy_schedule_free"]

# 1 / arctan(1), in the authors' digits: an entry as large as its root mean square becomes 1.
ATAN2_SCALE = 1.2732395
DENSE = torch.contiguous_format
GROWTH = 2**0.25  # the largest growth factor of d in one step


def _reads_whole_leaf(arguments: dict[str, Any]) -> bool:
    return arguments["slice_p"] > 1 or (
        arguments["stable"] and arguments["eps"] is not None
    )


def _first_values(arguments: dict[str, Any]) -> dict[str, float]:
    counter = {"updates": 0.0} if arguments["prodigy_steps"] else {}
    return {"d": arguments["d0"], "d_numerator": 0.0, **counter}


def adam_direction(g: Tensor, v: Tensor, d: Tensor, eps, stable: bool) -> Tensor:
    """Return the direction of z: the gradient over its root mean square, both times d."""
    root = safe_sqrt(v)
    if eps is None:
        return ATAN2_SCALE * atan2(d * g, root)
    direction = d * g / (root + d * eps)
    if not stable:
        return direction
    return direction / at_least(rms(direction), 1.0).sqrt()


def frozen_from(
    step: int, state: Mapping[str, Tensor], statistics: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return statistics before a step, and the old ones from then on; a step of 0 stands for never."""
    if not step:
        return statistics
    # Not the count of a leaf, which may have come late.
    updates = state["updates"] + 1
    adapts = updates < step
    kept = {
        slot: torch.where(adapts, value, state[slot])
        for slot, value in statistics.items()
    }
    return {**kept, "updates": updates}


@per_tensor(
    elementwise=lambda arguments: not _reads_whole_leaf(arguments),
    needs="params",
    owns_lr=True,
    shared=_first_values,
    agree=("betas", "beta3", "d0", "d_coef", "d_limiter", "prodigy_steps"),
)
def scale_by_prodigy_schedule_free(
    lr=1.0,
    betas: tuple[OpenFraction, Decay] = (0.9, 0.99),
    beta3: Decay | None = None,
    weight_decay=0.0,
    d0: Positive = 1e-6,
    d_coef: Positive = 1.0,
    d_limiter=True,
    prodigy_steps: NonNegativeInt = 0,
    decoupling_c: NonNegative = 0.0,
    eps: Positive | None = 1e-8,
    stable=True,
    slice_p: Count = 11,
):
    r"""Step the sequences of Schedule-Free at the rate that Prodigy estimates.

    From $z = y = p_0$ and $d = d_0$, with $\rho = d \eta$ and the share $c = \rho^2 / \sum \rho^2$ of the new point in
    the average: $v \leftarrow \beta_2 v + (1-\beta_2) d^2 g^2$, $u = d g / (\sqrt v + d \epsilon)$, divided by
    $\sqrt{\max(1, \mathrm{rms}(u))}$ if `stable`; $z \leftarrow z - \rho (u + \lambda y)$,
    $x \leftarrow (1-c) x + c z$, $y \leftarrow (1-\beta_1) z + \beta_1 x$. The estimate is measured at the old $z$,
    with sums over all leaves: $s \leftarrow \beta_3 s + (d^2 / \sqrt{d_0}) g$,
    $N \leftarrow \beta_3 N + (d^2 / \sqrt{d_0}) \langle g, p_0 - z \rangle$, where a negative product does not count
    while $d = d_0$; then $d \leftarrow \max(d, k \min(N / \lVert s \rVert_1, 2^{1/4} d))$. The parameters are $y$,
    where gradients are computed; evaluate with `eval_params`, which returns the average $x$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1.
        betas: $\beta_1$ in (0, 1), the position of $y$ between $z$ and $x$; $\beta_2$ in [0, 1).
        beta3: $\beta_3$ in [0, 1); None for $\sqrt{\beta_2}$.
        weight_decay: $\lambda \ge 0$, at $y$, multiplied by the rate.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.
        d_coef: $k > 0$, a multiplier of the estimate.
        d_limiter: Whether $d$ grows at most by $2^{1/4}$ in one step, so that a single gradient cannot overestimate it.
        prodigy_steps: The step from which $d$ is fixed, >= 0; 0 for never.
        decoupling_c: $C \ge 0$, a multiplier of the new point's share in the average, $\min(1, c (1-\beta_1) C)$; 0 for
            $c$ (see `schedule_free`).
        eps: $\epsilon > 0$; None for $u = \frac{4}{\pi} \mathrm{atan2}(d g, \sqrt v)$, which is bounded without
            `stable`.
        stable: Whether to divide by the root of the root mean square of $u$ where that is above 1.
        slice_p: Use only every `slice_p`-th entry of a leaf for $N$ and $s$, which saves memory; >= 1.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State: `z`, `exp_avg_sq`
        ($v$), shaped as the parameter; `s`, `p0`, one-dimensional with `slice_p` above 1; `weight_sum`, 0-d; shared by
        all leaves, 0-d, `d`, `d_numerator` ($N$) and, with `prodigy_steps`, `updates`.

    Example:
        >>> tx = gradtx.scale_by_prodigy_schedule_free(d0=0.01)
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for i in range(41):  # the loss is |w - 7|; d grows until the distance stops growing
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     if i % 10 == 0:
        ...         print(f"{10 - params['w'].item():.1g}, d = {gradtx.get(state, 'd'):.1g}")
        0.03, d = 0.01
        0.5, d = 0.06
        3, d = 0.3
        3, d = 0.5
        3, d = 0.5

    Source: LoganBooker/prodigy-plus-schedule-free 2.0.1, after Mishchenko and Defazio 2023, arXiv:2306.06101, and
    Defazio et al. 2024, arXiv:2405.15682; `decoupling_c`: Song et al. 2025, arXiv:2507.09846. Departures: groups share
    one $d$ (theirs by `split_groups=False`); $v$ is never factored (theirs by `factored=False`); $p_0$ and $s$ have the
    dtype of the weights, not bfloat16. As there, `stable` divides by the root of the root mean square, where Adafactor
    and StableAdamW divide by it. Their other switches are links here.
    """
    beta1, beta2 = betas
    keep = beta2**0.5 if beta3 is None else beta3

    def part(x):
        return x if slice_p == 1 else x.flatten()[::slice_p]

    def packed(p):
        # Later values of a slot have no strides of a slice either.
        return p if slice_p == 1 else part(p).clone(memory_format=DENSE)

    def estimated(state, gain, size):
        """Return the next d, which never falls, and the sum from which it follows."""
        d = state["d"]
        # Early steps away from the start must not delay the growth of d.
        counts = (d > d0) | (gain > 0)
        numerator = keep * state["d_numerator"] + torch.where(counts, gain, 0.0)
        estimate = quotient(numerator, size)
        if d_limiter:
            estimate = torch.minimum(estimate, GROWTH * d)
        return {"d": torch.maximum(d, d_coef * estimate), "d_numerator": numerator}

    def update(g, state, y, ctx):
        d = state["d"]
        rate = d * lr
        v = beta2 * state["exp_avg_sq"] + ((1 - beta2) * d.square()) * g.square()
        weight_sum = state["weight_sum"] + rate.square()
        share = decoupled(quotient(rate.square(), weight_sum), beta1, decoupling_c)
        weight = d.square() / d0**0.5
        s = keep * state["s"] + weight * part(g)
        product = (part(g) * (state["p0"] - part(state["z"]))).sum()
        total = yield {"gain": weight * product, "size": s.abs().sum()}
        statistics = {"s": s, **estimated(state, total["gain"], total["size"])}
        direction = plus_decay(adam_direction(g, v, d, eps, stable), weight_decay, y)
        step, moved = points_moved(state, y, direction, rate, share, beta1)
        numbers = {"exp_avg_sq": v, "weight_sum": weight_sum}
        yield (
            step,
            {**moved, **numbers, **frozen_from(prodigy_steps, state, statistics)},
        )

    def evaluate(state, y):
        # Exactly the caller's parameters before the first step.
        x = average_of(state, y, beta1)
        return torch.where(state["weight_sum"] == 0, y, x)

    slots = {
        **points(beta1),
        "exp_avg_sq": square(),
        "weight_sum": scalar(),
        "s": Slot(lambda p: torch.zeros_like(packed(p)), slow=True),
        "p0": weights(packed),
    }
    return slots, update, evaluate


@alias
def prodigy_schedule_free(**options: Annotated[Any, scale_by_prodigy_schedule_free]):
    r"""Prodigy with Schedule-Free: AdamW with neither a learning rate nor a schedule.

    $\rho = d \eta$, $v \leftarrow \beta_2 v + (1-\beta_2) d^2 g^2$,
    $z \leftarrow z - \rho (d g / (\sqrt v + d \epsilon) + \lambda y)$, with $x$ the average of $z$ with weights
    $\rho^2$ and $y = (1-\beta_1) z + \beta_1 x$; $d$ grows with $\sum g (p_0 - z)$, see
    `scale_by_prodigy_schedule_free`. The parameters are $y$, where gradients are computed; evaluate with `eval_params`,
    which returns the average $x$, and recompute the statistics of batch norm there.

    When to use: AdamW when neither a rate nor the length of training is known, as in fine-tuning of image models; leave
    `lr` at 1.0, without a schedule. Prefer it to `schedule_free` around `prodigy`, which averages the first, tiny steps
    with equal weights.

    Args:
        lr: $\eta \ge 0$, a multiplier of the estimated rate; usually 1.
        betas: $\beta_1$ in (0, 1), the position of $y$ between $z$ and $x$; $\beta_2$ in [0, 1).
        beta3: $\beta_3$ in [0, 1); None for $\sqrt{\beta_2}$.
        weight_decay: $\lambda \ge 0$, at $y$, multiplied by the rate.
        d0: $d_0 > 0$, initial value of $d$: far below the distance from the initial weights to the solution.
        d_coef: $k > 0$, a multiplier of the estimate.
        d_limiter: Whether $d$ grows at most by $2^{1/4}$ in one step, so that a single gradient cannot overestimate it.
        prodigy_steps: The step from which $d$ is fixed, >= 0; 0 for never.
        decoupling_c: $C \ge 0$, a multiplier of the new point's share in the average, $\min(1, c (1-\beta_1) C)$; 0 for
            $c$ (see `schedule_free`).
        eps: $\epsilon > 0$; None for $u = \frac{4}{\pi} \mathrm{atan2}(d g, \sqrt v)$, which is bounded without
            `stable`.
        stable: Whether to divide by the root of the root mean square of $u$ where that is above 1.
        slice_p: Use only every `slice_p`-th entry of a leaf for $N$ and $s$, which saves memory; >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, `exp_avg_sq` ($v$), shaped as the
        parameter; `s`, `p0`, one-dimensional with `slice_p` above 1; `weight_sum`, 0-d; shared by all leaves, 0-d, `d`,
        `d_numerator` ($N$) and, with `prodigy_steps`, `updates`.

    Example:
        >>> tx = gradtx.prodigy_schedule_free(d0=0.01)
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(200):  # the loss is |w - 7|
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> average = tx.eval_params(state, params)["w"]
        >>> f"{average.item():.2f}, d = {gradtx.get(state, 'd'):.2f}"
        '6.98, d = 0.45'

    Source: LoganBooker/prodigy-plus-schedule-free 2.0.1. Departures: see `scale_by_prodigy_schedule_free`. Not
    `schedule_free(prodigy(betas=(0.0, 0.99)), lr=1.0, beta=0.9)`, which measures $d$ at $y$ and averages with equal
    weights from $d_0$ on.
    """
    return scale_by_prodigy_schedule_free(**options)
