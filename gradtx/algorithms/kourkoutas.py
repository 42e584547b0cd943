"""Kourkoutas-beta: Adam that forgets squares sooner after a spike of the gradient, as `kourkoutas_adamw`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from gradtx.arguments import Decay, NonNegative, NonNegativeInt
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.links.decay import with_decay
from gradtx.maths.entries import quotient, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema, scalar, square

__all__ = ["kourkoutas_adamw", "scale_by_kourkoutas"]


@per_tensor(whole="sums", takes_complex=True, length="sets", by_rows=True)
def scale_by_kourkoutas(
    betas=(0.9, 0.999),
    beta2_min: Decay = 0.9,
    spike_beta: Decay = 0.9,
    tiny_spike: NonNegative = 1e-8,
    warmup_steps: NonNegativeInt = 0,
    correct_bias: Literal[True, False, "exact"] = True,
    eps=1e-8,
):
    r"""Divide the mean gradient by a root mean square that adapts faster after a spike of the leaf's gradient.

    With the norm $n = \lVert g \rVert$ of a leaf: $e \leftarrow \alpha e + (1-\alpha) n$, $q = n / (e + \tau)$,
    $b = \beta_2 - (\beta_2 - \beta_{min}) q / (1 + q)$, $m \leftarrow \beta_1 m + (1-\beta_1) g$,
    $v \leftarrow b v + (1-b) g^2$, direction $\hat m / (\sqrt{\hat v} + \epsilon)$. A steady norm ($q = 1$) gives the
    mean of $\beta_2$ and $\beta_{min}$, as in the first `warmup_steps` steps.

    Args:
        betas: $\beta_1$ and the largest $b$, $\beta_2$, each in [0, 1).
        beta2_min: $\beta_{min}$ in [0, 1), the limit of $b$ for endless spikes; at most $\beta_2$.
        spike_beta: $\alpha$ in [0, 1), the decay of the average norm.
        tiny_spike: $\tau \ge 0$, in the units of a norm.
        warmup_steps: Number of first steps with the mean of both, >= 0.
        correct_bias: True for $\hat v = v / (1-\beta_2^t)$, "exact" for $v / (1 - \prod b)$, each with
            $\hat m = m / (1-\beta_1^t)$; False for $v$ and $m$ themselves.
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter;
        `norm_avg` ($e$) and, with "exact", `beta2_product`, 0-d float64 for each leaf.

    Example:
        >>> tx = gradtx.scale_by_kourkoutas(betas=(0.0, 0.96), beta2_min=0.0, spike_beta=0.0)
        >>> # a steady norm: b is 0.48
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> _, state = tx.update({"w": torch.tensor([10.0])}, state)
        >>> state["scale_by_kourkoutas"]["exp_avg_sq"]["w"]
        tensor([52.])

    Source: Kassinos 2025, arXiv:2508.12996. Departures from the authors' code: each leaf is a layer of its own; the
    bias is corrected by default (theirs by `bias_correction="beta2max"`). OneTrainer's switch reads the norm of the
    step before and pools leaves of one shape.
    """
    beta1, beta2_max = betas
    _check_order(beta2_min, beta2_max)

    def decay_of(size, state, ctx):
        """Return b, and the average norm from which it follows."""
        average = running_mean(state["norm_avg"], size, spike_beta)
        ratio = quotient(size, average + tiny_spike, floor=tiny_spike)
        spike = ratio / (1 + ratio)
        if warmup_steps:
            # As of a steady norm.
            spike = torch.where(ctx.time <= warmup_steps, 0.5, spike)
        return beta2_max - (beta2_max - beta2_min) * spike, average

    def update(g, state, p, ctx):
        sums = yield OfLeaf(square=g.square().sum())
        beta2, average = decay_of(safe_sqrt(sums["square"]), state, ctx)
        m = running_mean(state["exp_avg"], g, beta1)
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        new_state = {"exp_avg": m, "exp_avg_sq": v, "norm_avg": average}
        root = safe_sqrt(v)
        if correct_bias == "exact":
            product = new_state["beta2_product"] = state["beta2_product"] * beta2
            root = root / (1 - product).sqrt()
        elif correct_bias:
            root = root / ctx.bias_correction(beta2_max).sqrt()
        if correct_bias:
            m = m / ctx.bias_correction(beta1)
        yield m / (root + eps), new_state

    slots = {
        "exp_avg": ema(beta1),
        "exp_avg_sq": square(),
        "norm_avg": scalar(),
        "beta2_product": scalar(1.0) if correct_bias == "exact" else None,
    }
    return slots, update


def _check_order(beta2_min: Any, beta2_max: Any) -> None:
    """Raise an error if plain numbers are in the wrong order; tensors are not read."""
    are_numbers = isinstance(beta2_min, float) and isinstance(beta2_max, float)
    if are_numbers and beta2_min > beta2_max:
        raise ValueError(
            f"scale_by_kourkoutas: beta2_min must be at most betas[1], {beta2_max!r}, got {beta2_min!r}"
        )


@alias(class_name="KourkoutasAdamW")
def kourkoutas_adamw(
    lr=1e-3, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_kourkoutas]
):
    r"""Kourkoutas-beta: AdamW that forgets squares sooner after a spike of a leaf's gradient.

    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m / (\sqrt{\hat v} + \epsilon)$, where $v$ averages $g^2$ with a
    decay between `beta2_min` and `betas[1]` that falls with the norm of the leaf's gradient over its average; see
    `scale_by_kourkoutas`.

    When to use: losses whose gradients spike, as in physics-informed networks and models of differential equations,
    where AdamW needs a small second beta in some phases and a large one in others.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay of the mean gradient, and the largest decay of the squares, each in [0, 1).
        beta2_min: The smallest decay of the squares, in [0, 1), at most `betas[1]`.
        spike_beta: Decay of the average norm, in [0, 1).
        tiny_spike: Added to the average norm, >= 0.
        warmup_steps: Number of first steps with the mean of both decays, >= 0.
        correct_bias: True to correct the bias of the squares as for `betas[1]`, "exact" as for the decays used, False
            for no correction of either average.
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`; `norm_avg` and, with
        "exact", `beta2_product`, 0-d.

    Example:
        >>> params = {"w": torch.zeros(1)}
        >>> # after a gradient 100 times as long, steps recover sooner than AdamW's
        >>> for tx in (gradtx.kourkoutas_adamw(lr=1.0), gradtx.adamw(lr=1.0)):
        ...     state = tx.init(params)
        ...     for grad in (1.0, 100.0, *[1.0] * 200):
        ...         updates, state = tx.update({"w": torch.tensor([grad])}, state, params)
        ...     print(f"{updates['w'].item():.2f}")
        -0.41
        -0.15

    Source: Kassinos 2025, arXiv:2508.12996. Departures: see `scale_by_kourkoutas`.
    """
    return with_decay(scale_by_kourkoutas(**direction), weight_decay, True, lr)
