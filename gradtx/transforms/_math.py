"""Private maths that several transformations share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx import _torch
from gradtx._exact import exact
from gradtx._sharding import undivided


def differentiable() -> bool:
    """Whether derivatives may be asked for: backward, or forward, which `no_grad` leaves on."""
    return torch.is_grad_enabled() or _torch.forward_mode_active()


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with derivative 0 (not inf) at 0, so that a gradient through training stays finite."""
    if not differentiable():
        return x.sqrt()
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def safe_pow(x: Tensor, exponent: Any) -> Tensor:
    """A power >= 0 of x >= 0, with derivative 0 at 0, as `safe_sqrt`."""
    if not differentiable():
        return x**exponent
    zero = x == 0
    return torch.where(zero, 1.0 * (exponent == 0), torch.where(zero, 1.0, x) ** exponent)


def at_least(x: Tensor, bound: Any) -> Tensor:
    """The larger of each entry and a number or 0-d tensor."""
    return x.clamp(min=bound)


def largest(x: Tensor) -> Tensor:
    """The largest entry of a whole leaf, 0-d; 0 for an empty one."""
    x = undivided(x)  # a maximum fails on a process that has no entries
    return x.amax() if x.numel() else x.sum()


def at_most(x: Tensor, bound: Any) -> Tensor:
    """The smaller of each entry and a number or 0-d tensor."""
    return x.clamp(max=bound)


def filled_like(x: Tensor, value: Any) -> Tensor:
    """A tensor like `x` with one number in all places, which may be a 0-d tensor (`full_like` would read it)."""
    return (torch.zeros_like(x) + value).to(x.dtype)


def quotient(top: Any, bottom: Tensor, known: Tensor | None = None, otherwise: float = 0.0) -> Tensor:
    """Top / bottom where `known` (that bottom is not 0), elsewhere another number; safe at 0, also for gradients."""
    if known is None:
        known = bottom != 0
    return torch.where(known, top / torch.where(known, bottom, 1.0), otherwise)


def norm(x: Tensor) -> Tensor:
    """The 2-norm of a whole leaf, 0-d."""
    return safe_sqrt(x.square().sum())


def rms(x: Tensor) -> Tensor:
    """The root mean square of a whole leaf, 0-d; 0 for an empty one."""
    return safe_sqrt(x.square().sum() / max(x.numel(), 1))


def mean(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The mean over one dimension; 0 where that is empty."""
    return x.sum(dim=dim, keepdim=keepdim) / max(x.shape[dim], 1)


def grafted(direction: Tensor, magnitude: Tensor, eps: Any) -> Tensor:
    """A direction with the norm of another tensor, each over the whole leaf."""
    return direction * (norm(magnitude) / (norm(direction) + eps))


def unit_norm(x: Tensor) -> Tensor:
    """One norm an output unit: over all dimensions but the first (kept as size 1); of a whole leaf of 0 or 1."""
    if x.ndim <= 1:
        return norm(x)
    return safe_sqrt(x.square().sum(dim=tuple(range(1, x.ndim)), keepdim=True))


def unit_centered(x: Tensor) -> Tensor:
    """A leaf of 2 or more dimensions less the mean of each output unit, which is over all dimensions but the first."""
    return x - x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def blended(old: Tensor, new: Tensor, weight: Any) -> Tensor:
    """(1 - weight) old + weight new in one pass over memory; the weight may be a 0-d tensor.

    The weight of the new value is rounded to the dtype of the tensors, which is exact enough where it is small. Its
    complement is not: pass 1 - beta, never a beta near 1.
    """
    return torch.lerp(old, new, weight.to(old.dtype) if isinstance(weight, Tensor) else weight)


def adam_moments(betas: Any, amsgrad: bool = False) -> tuple[Any, Any]:
    """Adam's averages: `init(param)`, and `average(update, state) -> (m, v, new state)`, v the maximum with amsgrad."""
    beta1, beta2 = betas
    rest1, rest2 = 1 - beta1, 1 - beta2

    def init(param):
        slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if amsgrad else ("exp_avg", "exp_avg_sq")
        return {slot: torch.zeros_like(param) for slot in slots}

    def average(update, state):
        mean = beta1 * state["exp_avg"] + rest1 * update
        square = beta2 * state["exp_avg_sq"] + rest2 * update.square()
        new = {"exp_avg": mean, "exp_avg_sq": square}
        if amsgrad:
            square = new["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], square)
        return mean, square, new

    return init, average


def corrected_root(square: Tensor, ctx: Any, beta: Any) -> Tensor:
    r"""The root of a corrected average, $\sqrt{v / c}$, as $\sqrt v / \sqrt c$: codes of $v$ need $\sqrt v$, too."""
    return safe_sqrt(square) / ctx.bias_correction(beta).sqrt()


def hat_rate(root: Tensor, ctx: Any, betas: Any) -> Tensor:
    r"""$\sqrt{c_2} / (c_1 \, root)$, Adam's rate where eps is in the root already, before its correction."""
    beta1, beta2 = betas
    return ctx.bias_correction(beta2).sqrt() / ctx.bias_correction(beta1) / root


def rectification(ctx: Any, beta2: Any, threshold: Any) -> tuple[Tensor, Tensor]:
    r"""RAdam's factor $r_t$ and whether it holds yet, $\rho_t >$ threshold (at least 4); 0-d. $r_t$ is 1 before."""
    return rectification_at(ctx.time, ctx.bias_correction(beta2), beta2, threshold)


def rectification_at(time: Tensor, correction: Tensor, beta2: Any, threshold: Any) -> tuple[Tensor, Tensor]:
    r"""The same at a time, with the bias correction $1 - \beta_2^t$ there."""
    limit = exact(2 / (1 - beta2) - 1, correction.device)
    rho = limit - 2 * time * (1 - correction) / correction
    rectified = rho > threshold
    # Before that the root may be of a negative number, and at beta2 = 0.6 of 0/0: any number will do.
    rho, limit = (torch.where(rectified, x, 5.0) for x in (rho, limit))
    return ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)).sqrt(), rectified


def softplus(x: Tensor, beta: Any) -> Tensor:
    """log(1 + exp(beta x)) / beta, and x itself where beta x > 20, as torch has it; beta may be a tensor."""
    scaled = beta * x
    return torch.where(scaled > 20, x, scaled.clamp(max=20).exp().log1p() / beta)


def caution(direction: Tensor, gradient: Tensor, factor: Any) -> Tensor:
    """Weights 1 where direction and gradient have the same sign, else `factor`, divided by their mean over the leaf."""
    agree = (direction.sign() * gradient.sign() > 0).to(direction.dtype)  # signs, since the product can underflow
    weights = agree + factor * (1 - agree)
    return weights / weights.mean().clamp(min=1e-5) if weights.numel() else weights


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """atan2 for x >= 0, as atan(y / x): torch.atan2 is scalar code in compiled CPU kernels, 20 times slower.

    At x = 0 the derivative is 0; at (0, 0) the value is 0.
    """
    if differentiable():
        y = torch.where(x == 0, y.detach(), y)
    return (y / x.clamp(min=torch.finfo(x.dtype).tiny)).atan()
