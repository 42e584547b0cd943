"""Amos: decay and rate from the expected scale of a model's weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import full_tensor
from gradtx.base.exact import Scalar, exact, exact_dtype
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, running_mean, safe_sqrt

__all__ = ["scale_by_amos"]

AMOS_RANGES = {
    "beta": "[0, 1)",
    "extra_l2": "[0, inf)",
    "c_coef": "[0, inf)",
    "d_coef": "[0, inf)",
    "eps": "(0, inf)",
}


def _entrywise(arguments):
    return arguments["slot"] == "full" and isinstance(
        arguments["eta"], float | int | Tensor
    )


@per_tensor(
    elementwise=_entrywise,
    needs=("params",),
    owns_lr=True,
    ranges=AMOS_RANGES,
)
def scale_by_amos(
    lr: Scalar = 1e-3,
    beta: Scalar = 0.999,
    extra_l2: Scalar = 0.0,
    eta: Scalar | Callable[[torch.Size], float] | None = None,
    slot: str = "scalar",
    c_coef: Scalar = 0.25,
    d_coef: Scalar = 0.25,
    eps: Scalar = 2**-125,
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

    Raises:
        ValueError: If an argument is out of range, if `slot` is unknown, if `params` is missing, or if a later link
            scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_amos(lr=0.01, beta=0.0, eta=2.0)
        >>> params = {"w": torch.tensor([0.0, 100.0])}
        >>> # -lr * eta, and a decay
        >>> tx.update({"w": torch.tensor([5.0, 5.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0200, -0.0250])

    Source: Tian and Parikh 2022, arXiv:2210.11693. Departures: none from the authors' code, whose default for `slot`
    is "full".
    """
    if slot not in ("scalar", "rows", "full"):
        raise ValueError(
            f"scale_by_amos: slot must be 'scalar', 'rows' or 'full', got {slot!r}"
        )
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

    def init(param):
        zero = torch.zeros_like(param)
        return {"exp_avg_sq": mean(zero), "decay": mean(zero)}

    def update(update, state, param, ctx):
        rate = exact(lr, param.device)
        root, scale = safe_sqrt(rate), _expected_scale(eta, param.shape)
        mean_square, total = mean(update.square()), state["decay"]
        square = running_mean(state["exp_avg_sq"], mean_square, beta)
        inverse = ctx.bias_correction(beta) / at_least(square, eps)
        shrink = (
            rate.square() * inverse * mean_square * (1 + c_coef * root * total).rsqrt()
        )
        damp = 1 / (1 + d_coef * root * scale**0.5 * total)
        step = (damp * rate * scale * inverse.sqrt()) * update + (
            damp * (shrink / 2 + extra_l2)
        ) * param
        return -step, {"exp_avg_sq": square, "decay": total + shrink * (1 + total)}

    return init, update


def _expected_scale(eta: Any, shape: torch.Size) -> Any:
    if callable(eta):
        return eta(shape)
    if eta is not None:
        return eta
    return (
        0.5
        if len(shape) < 2
        else math.sqrt((2 if len(shape) == 2 else 1) / max(shape[1], 1))
    )
