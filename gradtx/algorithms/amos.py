"""Amos: Adam-like steps in units of the weights, with rate and decay that adapt to the progress of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import Decay, NonNegative, Positive, Scalar, is_off
from gradtx.base.exact import exact, exact_dtype
from gradtx.distributed.redistribution import full_tensor
from gradtx.links.momentum import ema
from gradtx.maths.entries import at_least, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["amos", "scale_by_amos"]


@per_tensor(
    elementwise=lambda arguments: (
        arguments["slot"] == "full"
        and isinstance(arguments["eta"], float | int | Tensor)
    ),
    needs="params",
    owns_lr=True,
)
def scale_by_amos(
    lr=1e-3,
    beta: Decay = 0.999,
    extra_l2: NonNegative = 0.0,
    eta: Scalar | Callable[[torch.Size], float] | None = None,
    slot: Literal["scalar", "rows", "full"] = "scalar",
    c_coef: NonNegative = 0.25,
    d_coef: NonNegative = 0.25,
    eps: Positive = 2**-125,
):
    r"""Descend with a decay that adapts to the gradient, and a rate in the units of the weights: Amos.

    $v_t = \beta v_{t-1} + (1-\beta) s_t$ with $s_t$ the mean of $g_t^2$ over the entries that share a slot;
    $r_t = (1 - \beta^t) / \max(v_t, \epsilon)$; $\gamma_t = \xi^2 r_t s_t / \sqrt{1 + c \sqrt\xi\, b_{t-1}}$;
    $b_t = b_{t-1} + \gamma_t (1 + b_{t-1})$. With $d_t = 1 / (1 + d \sqrt{\xi \eta}\, b_{t-1})$ the update is
    $-d_t (\xi \eta \sqrt{r_t}\, g_t + (\gamma_t / 2 + l)\, p)$. It owns the learning rate: no decay or learning rate
    may follow.

    Args:
        lr: $\xi$ in [0, inf), relative to $\eta$; about 1 over the root of the number of batches in an epoch.
        beta: $\beta$, in [0, 1).
        extra_l2: $l \ge 0$, an additional decay.
        eta: $\eta > 0$, the expected size of an entry: a number or a function of the shape. None uses 0.5 for up to 1
            dimension, $\sqrt{2/n}$ for a matrix and $\sqrt{1/n}$ for more dimensions; n is the size of dimension 1.
        slot: The entries that share $v$ and $b$: "scalar" for the whole leaf, "rows" for each index of dimension 0
            (like "full" with fewer than two dimensions), "full" for none.
        c_coef: $c \ge 0$.
        d_coef: $d \ge 0$.
        eps: $\epsilon > 0$, in the units of a squared gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq` ($v$) and `decay` ($b$): 0-d
        float64 for each leaf, one entry per index of dimension 0, or shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_amos(lr=0.01, beta=0.0, eta=2.0)
        >>> params = {"w": torch.tensor([0.0, 100.0])}
        >>> # -lr * eta, and a decay
        >>> tx.update({"w": torch.tensor([5.0, 5.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0200, -0.0250])

    Source: Tian and Parikh 2022, arXiv:2210.11693. Departures: none from the authors' code, whose default for `slot`
    is "full".
    """
    if isinstance(eta, float | int) and not 0 < eta < math.inf:
        raise ValueError(f"scale_by_amos: eta must be in (0, inf), got {eta!r}")

    def mean(x):
        if slot == "scalar":
            # Use a plain tensor from here on: in torch 2.13, adding one to a pending sum raises an AttributeError.
            return full_tensor(x.sum(dtype=exact_dtype(x))) / max(x.numel(), 1)
        if slot == "full" or x.ndim < 2:
            return x
        return x.sum(dim=tuple(range(1, x.ndim)), keepdim=True) / max(
            math.prod(x.shape[1:]), 1
        )

    def first(p):
        return mean(torch.zeros_like(p))

    def update(g, state, p, ctx):
        rate = exact(lr, p.device)
        root, scale = safe_sqrt(rate), _expected_scale(eta, p.shape)
        mean_square, total = mean(g.square()), state["decay"]
        v = running_mean(state["exp_avg_sq"], mean_square, beta)
        inverse = ctx.bias_correction(beta) / at_least(v, eps)
        damp = (1 + c_coef * root * total).rsqrt()
        shrink = rate.square() * inverse * mean_square * damp
        damp = 1 / (1 + d_coef * root * scale**0.5 * total)
        step = (damp * rate * scale * inverse.sqrt()) * g
        step = step + (damp * (shrink / 2 + extra_l2)) * p
        return -step, {"exp_avg_sq": v, "decay": total + shrink * (1 + total)}

    return {"exp_avg_sq": first, "decay": first}, update


def _expected_scale(eta, shape: torch.Size) -> Any:
    if callable(eta):
        return eta(shape)
    if eta is not None:
        return eta
    if len(shape) < 2:
        return 0.5
    return math.sqrt((2 if len(shape) == 2 else 1) / max(shape[1], 1))


@alias
def amos(
    lr=1e-3,
    beta: Decay = 0.999,
    momentum: Decay = 0.0,
    **options: Annotated[Any, scale_by_amos],
):
    r"""Amos: Adam-like steps in units of the weights, with rate and decay that adapt to the progress of training.

    $p \leftarrow p - m$ with $m \leftarrow \mu m + (1-\mu) u$, $u$ the step of `scale_by_amos`.

    When to use: pre-training of transformers whose final weight scale is known in advance (`eta`), without a schedule
    to tune.

    Args:
        lr: $\xi$ in [0, inf), relative to $\eta$; about 1 over the square root of the number of batches per epoch. It
            needs no schedule.
        beta: Decay rate of the average of squares, in [0, 1).
        momentum: $\mu$ in [0, 1), for an average of steps. With a literal 0.0, none is kept.
        extra_l2: An additional decay, >= 0.
        eta: $\eta > 0$, the expected size of an entry: a number, a function of the shape, or None (see
            `scale_by_amos`).
        slot: Entries that share an average: "scalar", the whole leaf; "rows", each index of dimension 0; "full", none.
        c_coef: Speed at which the decay falls, >= 0.
        d_coef: Speed at which the rate falls, >= 0.
        eps: Lower bound of the average of squares, > 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq`, `decay` (of the size selected
        by `slot`); with momentum, also `exp_avg`.

    Raises:
        ValueError: If a decay or learning rate follows.

    Example:
        >>> tx = gradtx.amos(lr=0.01, eta=lambda shape: 2.0)
        >>> params = {"w": torch.zeros(2, 3)}
        >>> tx.update({"w": 7 * torch.ones(2, 3)}, tx.init(params), params)[0]["w"][0]
        tensor([-0.0200, -0.0200, -0.0200])

    Source: Tian and Parikh 2022, arXiv:2210.11693. Departures: the authors have no defaults for `lr` and `eta`, and
    their default for `slot` is "full". pytorch_optimizer's class subtracts `extra_l2`, and adds eps where gradtx takes
    the maximum.
    """
    return chain(
        scale_by_amos(lr, beta, **options),
        chain() if is_off(momentum) else ema(momentum),
    )
