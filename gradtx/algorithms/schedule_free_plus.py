"""ScheduleFree+: Schedule-Free AdamW whose rate follows from the loss, as in Polyak's step size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import Decay, NonNegative, NonNegativeInt, OpenFraction
from gradtx.base.exact import exact
from gradtx.combinators.slow_weights import average_of, points, points_moved
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    at_most,
    corrected_root,
    plus_decay,
    quotient,
    running_mean,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar

__all__ = ["scale_by_schedule_free_plus", "schedule_free_plus"]

# A Gaussian vector's 2-norm, times the root of its length, over its 1-norm.
NORM_RATIO = math.sqrt(math.pi / 2)


def product_ahead(g: Tensor, state: Mapping[str, Tensor], y: Tensor) -> Tensor:
    r"""Return a leaf's term of $\langle g, z - x \rangle$, with which the loss at y predicts that at z."""
    z = state["z"]
    if "x" in state:
        return (g * (z - state["x"])).sum()
    # From y = b x + (1 - b) z, without computing x.
    return (g * (z - y)).sum() / state["beta"]


@per_tensor(
    elementwise=True,
    needs=("params", "value"),
    owns_lr=True,
    shared={"grad_norm": 0.0, "grad_norm_weight": 0.0},
    agree="polyak_beta",
    by_rows=True,
)
def scale_by_schedule_free_plus(
    lr=1.0,
    betas=(0.9, 0.95),
    sf_beta1: OpenFraction = 0.9,
    eps=1e-8,
    weight_decay=0.0,
    r: NonNegative = 0.0,
    polyak_beta: Decay = 0.0,
    c_warmup: NonNegativeInt = 0,
    sf_beta1_anneal_steps: NonNegativeInt = 0,
    sf_beta1_max: OpenFraction = 0.965,
    weight_lr_power: NonNegative = 2.0,
):
    r"""Step the sequences of Schedule-Free along Adam's direction, at a rate that follows from the loss.

    With the loss $f$ at $y$, and sums over all leaves: $f' = f + b \langle g, z - x \rangle$, $S$ the average of
    $\sqrt{\pi/2} \lVert g \rVert_1$ with decay $\beta_p$, without its bias, and
    $\rho = \max(\eta, \epsilon) \max(0, f') / S$. With Adam's direction $u = \hat m / (\sqrt{\hat v} + \epsilon)$:
    $z \leftarrow z - \rho^2 \lambda y - \rho u$, $x \leftarrow (1-c) x + c z$, $y \leftarrow b x + (1-b) z$, where
    $c = w_t / \sum_{i \le t} w_i$, $w_t = t^r L^{power}$, and $L$ is the largest $\rho$ so far, at least $\epsilon$; in
    the first `c_warmup` steps, $c = 1$ and $w_t = 0$. The parameters are $y$, where gradients are computed; evaluate
    with `eval_params`, which returns the average $x$.

    Args:
        lr: $\eta \ge 0$, a multiplier of the rate; usually 1, after a warm-up from 0.
        betas: $(\beta_1, \beta_2)$ of Adam's moments, each in [0, 1).
        sf_beta1: $b$ in (0, 1), the position of $y$ between $z$ and $x$.
        eps: $\epsilon \ge 0$, added to the root, and the least multiplier.
        weight_decay: $\lambda \ge 0$, multiplied by the square of the rate: 20 to 50 where AdamW has 0.1.
        r: Exponent of the step in the weights of the average, >= 0; 2 may be better for long runs.
        polyak_beta: $\beta_p$ in [0, 1); 0 for the norm of the present gradient.
        c_warmup: Number of steps, >= 0, whose points the average forgets; once or twice the length of the warm-up.
        sf_beta1_anneal_steps: Number of steps, >= 0, over which $1 - b$ moves to `1 - sf_beta1_max`, geometrically; 0
            for a constant $b$.
        sf_beta1_max: $b$ after these steps, in (0, 1).
        weight_lr_power: Exponent of the largest rate so far in the weights of the average, >= 0.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State: `z`, `exp_avg`,
        `exp_avg_sq`, shaped as the parameter; `beta` ($b$ of the last step), `lr_max` ($L$), `weight_sum`, 0-d; shared
        by all leaves, 0-d, `grad_norm` ($S$ with its bias) and `grad_norm_weight`. $x$ is computed from $y$ and $z$;
        for 16-bit weights, which round $y$, it is stored as `x`.

    Example:
        >>> tx = gradtx.scale_by_schedule_free_plus()
        >>> params = {"w": torch.tensor([10.0])}
        >>> # the loss is |w - 7|: the step would reach the solution if 1-norms were 2-norms
        >>> updates, _ = tx.update({"w": torch.ones(1)}, tx.init(params), params, value=3.0)
        >>> updates["w"], torch.tensor([-3.0]) / (torch.pi / 2) ** 0.5
        (tensor([-2.3937]), tensor([-2.3937]))

    Source: Defazio 2026, arXiv:2605.19095. Departures: the average of the 1-norm stays biased in the state, as
    documented; the authors' code stores it without its bias, and corrects it again in the next step, unless
    `polyak_beta` is 0. The rate is 0 where all gradients are.
    """
    adam_slots, moments = adam_moments(betas)

    def position(ctx):
        """Return b, the position of y between z and x after this step."""
        if not sf_beta1_anneal_steps:
            return exact(sf_beta1, ctx.time.device)
        share = at_most((ctx.time - 1) / sf_beta1_anneal_steps, 1)
        return 1 - (1 - sf_beta1) ** (1 - share) * (1 - sf_beta1_max) ** share

    def share_of(rate, state, ctx):
        """Return the share of the new point in the average, and the slots that determine the next share."""
        largest = torch.maximum(at_least(state["lr_max"], eps), rate)
        weight = ctx.time**r * largest**weight_lr_power
        warms_up = ctx.time <= c_warmup
        weight_sum = state["weight_sum"] + torch.where(warms_up, 0.0, weight)
        share = torch.where(warms_up, 1.0, quotient(weight, weight_sum))
        return share, {"lr_max": largest, "weight_sum": weight_sum}

    def rate_of(total, state, ctx):
        """Return the rate of Polyak's step, and the average of norms from which it follows."""
        size = NORM_RATIO * total["size"]
        norm = running_mean(state["grad_norm"], size, polyak_beta)
        # What the weights of the average add up to: a leaf may have come late, so its count does not say it.
        weight = polyak_beta * state["grad_norm_weight"] + (1 - polyak_beta)
        gap = at_least(exact(ctx.value, norm.device) + total["inner"], 0.0)
        rate = at_least(exact(lr, norm.device), eps) * quotient(gap * weight, norm)
        return rate, {"grad_norm": norm, "grad_norm_weight": weight}

    def update(g, state, y, ctx):
        beta = position(ctx)
        inner = beta * product_ahead(g, state, y)
        total = yield {"inner": inner, "size": g.abs().sum()}
        rate, shared = rate_of(total, state, ctx)
        share, numbers = share_of(rate, state, ctx)
        m, v, averages = moments(g, state)
        root = corrected_root(v, ctx, betas[1]) + eps
        direction = m / ctx.bias_correction(betas[0]) / root
        # AdamC's decay, multiplied by the square of the rate
        direction = plus_decay(direction, weight_decay, y, rate)
        step, moved = points_moved(
            state, y, direction, rate, share, beta, state["beta"]
        )
        yield step, {**moved, **averages, **numbers, **shared, "beta": beta}

    def evaluate(state, y):
        x = average_of(state, y, state["beta"])
        # Exactly the caller's parameters before the first step.
        return torch.where(state["lr_max"] == 0, y, x)

    slots = {
        **points(None),
        **adam_slots,
        "beta": scalar(sf_beta1),
        "lr_max": scalar(),
        "weight_sum": scalar(),
    }
    return slots, update, evaluate


@alias
def schedule_free_plus(**options: Annotated[Any, scale_by_schedule_free_plus]):
    r"""ScheduleFree+: Schedule-Free AdamW whose rate follows from the loss, as in Polyak's step size.

    $\rho = \eta \max(0, f + b \langle g, z - x \rangle) / (\sqrt{\pi/2} \lVert g \rVert_1)$ with the loss $f$ at $y$
    and sums over all leaves, then Schedule-Free along Adam's direction $u$:
    $z \leftarrow z - \rho^2 \lambda y - \rho u$, with $x$ the average of $z$ with weights $L^2$ of the largest rate so
    far, and $y = b x + (1-b) z$; see `scale_by_schedule_free_plus`. The parameters are $y$, where gradients are
    computed; evaluate with `eval_params`, which returns the average $x$, and recompute the statistics of batch norm
    there.

    When to use: large language models, and other models that reach a loss near 0, when neither a rate nor the length of
    training is known; each update needs the extra `value`, which an optimizer takes from the closure. Over several
    processes, pass the mean of their losses.

    Args:
        lr: $\eta \ge 0$, a multiplier of the rate; usually 1, after a warm-up from 0.
        betas: $(\beta_1, \beta_2)$ of Adam's moments, each in [0, 1).
        sf_beta1: $b$ in (0, 1), the position of $y$ between $z$ and $x$.
        eps: $\epsilon \ge 0$, added to the root, and the least multiplier.
        weight_decay: $\lambda \ge 0$, multiplied by the square of the rate: 20 to 50 where AdamW has 0.1.
        r: Exponent of the step in the weights of the average, >= 0; 2 may be better for long runs.
        polyak_beta: $\beta_p$ in [0, 1); 0 for the norm of the present gradient.
        c_warmup: Number of steps, >= 0, whose points the average forgets; once or twice the length of the warm-up.
        sf_beta1_anneal_steps: Number of steps, >= 0, over which $1 - b$ moves to `1 - sf_beta1_max`, geometrically; 0
            for a constant $b$.
        sf_beta1_max: $b$ after these steps, in (0, 1).
        weight_lr_power: Exponent of the largest rate so far in the weights of the average, >= 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, `exp_avg`,
        `exp_avg_sq`, shaped as the parameter; `beta` ($b$ of the last step), `lr_max` ($L$), `weight_sum`, 0-d; shared
        by all leaves, 0-d, `grad_norm` ($S$ with its bias) and `grad_norm_weight`. $x$ is computed from $y$ and $z$;
        for 16-bit weights, which round $y$, it is stored as `x`.

    Example:
        >>> tx = gradtx.schedule_free_plus()
        >>> params = {"w": torch.tensor([10.0])}
        >>> state = tx.init(params)
        >>> for _ in range(50):  # the loss is |w - 7|
        ...     distance = params["w"] - 7
        ...     grads, value = {"w": distance.sign()}, distance.abs().sum()
        ...     updates, state = tx.update(grads, state, params, value=value)
        ...     params = gradtx.apply_updates(params, updates)
        >>> tx.eval_params(state, params)["w"]
        tensor([7.0152])

    Source: Defazio 2026, arXiv:2605.19095. Departures: see `scale_by_schedule_free_plus`.
    """
    return scale_by_schedule_free_plus(**options)
