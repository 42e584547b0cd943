"""Functions of the entries of tensors, and moments, that several transformations share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_off
from gradtx.base import torch_names as _torch
from gradtx.base.exact import exact
from gradtx.distributed.redistribution import full_tensor
from gradtx.schedules.warmup import rectification_at
from gradtx.slots import ema, linear, square


def differentiable() -> bool:
    """Whether a derivative may be requested: backward, or forward mode, which works even under `no_grad`."""
    return torch.is_grad_enabled() or _torch.forward_mode_active()


def safe_sqrt(x: Tensor) -> Tensor:
    """Return the square root, with derivative 0 (not inf) at 0 so that gradients through training stay finite."""
    if not differentiable():
        return x.sqrt()
    zero = x == 0
    root = torch.where(zero, 1.0, x).sqrt()
    return torch.where(zero, 0.0, root)


def safe_pow(x: Tensor, exponent) -> Tensor:
    """Return `x**exponent` for x >= 0 and exponent >= 0, with derivative 0 at 0 as in `safe_sqrt`."""
    if not differentiable():
        return x**exponent
    zero = x == 0
    power_of_zero = 1.0 * (exponent == 0)
    power = torch.where(zero, 1.0, x) ** exponent
    return torch.where(zero, power_of_zero, power)


def at_least(x: Tensor, bound) -> Tensor:
    """Clamp each entry from below by a number or 0-d tensor."""
    return _as_vector(x.clamp(min=bound), x)


def largest(x: Tensor) -> Tensor:
    """Return the largest entry of a whole leaf as a 0-d tensor, or 0 if the leaf is empty."""
    x = full_tensor(x)  # a maximum fails on a rank without entries
    return x.amax() if x.numel() else x.sum()


def at_most(x: Tensor, bound) -> Tensor:
    """Clamp each entry from above by a number or 0-d tensor."""
    return _as_vector(x.clamp(max=bound), x)


def _as_vector(result: Tensor, x: Tensor) -> Tensor:
    """Return a result in the dtype of a vector, which vmap widens to that of a number that it has batched."""
    return result.to(x.dtype) if x.ndim else result


def quotient(
    top,
    bottom: Tensor,
    defined: Tensor | None = None,
    otherwise: float = 0.0,
    *,
    floor: Any = 0.0,
) -> Tensor:
    """Return top / bottom where `defined` (default: bottom != 0), and `otherwise` elsewhere, with safe gradients.

    The quotient by NaN is NaN, or a norm that is not a number would switch off the clipping of all other leaves.
    `floor` is a lower bound of the bottom, such as an eps that it includes. If it is positive, no entry is checked.
    """
    tiny = torch.finfo(bottom.dtype).tiny
    if isinstance(floor, float) and floor > tiny:
        return top / bottom
    defined = bottom != 0 if defined is None else defined | bottom.isnan()
    if not is_off(floor):
        # Whether the floor is positive is known on the device only.
        defined = defined | (exact(floor, bottom.device) > tiny)
    result = top / torch.where(defined, bottom, 1.0)
    return torch.where(defined, result, otherwise)


def plus_decay(
    direction: Tensor,
    weight_decay,
    param: Tensor,
    rate=None,
    cautious: bool | str = False,
) -> Tensor:
    """Return direction + rate * weight_decay * param, or the direction itself if the decay is the plain number 0.

    If `cautious`, the decay acts only where a step against the direction shrinks the weight (see `may_decay`).
    """
    if is_off(weight_decay):
        return direction
    strength = weight_decay if rate is None else rate * weight_decay
    decay = strength * param
    if cautious:
        decay = torch.where(may_decay(direction, param, cautious), decay, 0.0)
    return direction + decay


def norm(x: Tensor) -> Tensor:
    """Return the 2-norm of a whole leaf as a 0-d tensor."""
    return safe_sqrt(x.square().sum())


def norms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return 2-norms over some dimensions, which are kept as size 1."""
    return safe_sqrt(x.square().sum(dim=dim, keepdim=True))


def identity(size: int, like: Tensor) -> Tensor:
    """Return an identity matrix with the dtype and on the device of a tensor."""
    return torch.eye(size, dtype=like.dtype, device=like.device)


# Rounding errors of a difference or a product, in units of the last place of its largest term.
ROUNDING = 16


def is_rounding(length: Tensor, whole: Tensor | float) -> Tensor:
    """Return where a norm is at most that of rounding errors of terms with the norm `whole`.

    What is left of a subtraction, or a coordinate in a basis, may be 0 but for such errors. A rule that divides it by
    its norm would turn them into a step of full length, a different one on each processor.
    """
    return length <= ROUNDING * torch.finfo(length.dtype).eps * whole


def remainder(x: Tensor, part: Tensor, dim: int | None = None) -> Tensor:
    """Return x - part, or 0 where only rounding errors are left: of the whole leaf, or of each vector along `dim`."""
    rest = x - part
    if dim is None:
        left, whole = norm(rest), norm(x)
    else:
        left, whole = norms(rest, dim), norms(x, dim)
    return torch.where(is_rounding(left, whole), 0.0, rest)


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of a whole leaf as a 0-d tensor, or 0 if the leaf is empty."""
    return safe_sqrt(x.square().sum() / max(x.numel(), 1))


def mean(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Return the mean over one dimension, or 0 if that dimension is empty."""
    return x.sum(dim=dim, keepdim=keepdim) / max(x.shape[dim], 1)


def grafted(direction: Tensor, magnitude: Tensor, eps) -> Tensor:
    """Rescale a direction to the norm of another tensor, both norms taken over the whole leaf."""
    return direction * (norm(magnitude) / (norm(direction) + eps))


def sum_of_squares(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Return the sums of squares over some dimensions, which are kept as size 1."""
    if differentiable():
        return x.square().sum(dim=dim, keepdim=True)
    # One pass over memory, but the norm has no second derivative at 0.
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True).square()


def unit_norm(x: Tensor) -> Tensor:
    """Return one norm per output unit, over all dimensions but the first (kept as size 1); one norm if ndim <= 1."""
    if x.ndim <= 1:
        return norm(x)
    return norms(x, tuple(range(1, x.ndim)))


def unit_centered(x: Tensor) -> Tensor:
    """Subtract from a leaf with ndim >= 2 the mean of each output unit, over all dimensions but the first."""
    return x - x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def blended(old: Tensor, new: Tensor, weight) -> Tensor:
    """Return (1 - weight) old + weight new in one pass over memory; the weight may be a 0-d tensor.

    The weight is rounded to the dtype of the tensors. That is accurate enough for a small weight but not for one near
    1: pass 1 - beta, never a beta near 1.
    """
    if isinstance(weight, Tensor):
        weight = weight.to(old.dtype)
    return torch.lerp(old, new, weight)


def synchronized(now: Tensor, slow: Tensor, fast: Tensor, alpha) -> Tensor:
    """Move slow weights part of the way to the fast ones where `now` is true."""
    return torch.where(now, slow + alpha * (fast - slow), slow)


def running_mean(old: Tensor, new: Tensor, beta) -> Tensor:
    r"""Return $\beta x_{t-1} + (1-\beta) x_t$."""
    return beta * old + (1 - beta) * new


def peak(
    new_state: dict[str, Tensor], state: Mapping[str, Tensor], slot: str, amsgrad: bool
) -> Tensor:
    """Return the new value of a slot or, with AMSGrad, its running maximum, which is added to `new_state`."""
    if not amsgrad:
        return new_state[slot]
    largest_slot = f"max_{slot}"
    new_state[largest_slot] = torch.maximum(state[largest_slot], new_state[slot])
    return new_state[largest_slot]


def change_of(update: Tensor, state: Mapping[str, Tensor], ctx) -> Tensor:
    """Return $g_t - g_{t-1}$ with the slot `previous_grad`, and 0 in a leaf's first update."""
    return torch.where(ctx.seen, update - state["previous_grad"], 0.0)


# Slots of Adam's moments for rules whose first moment is no average of updates with a constant decay.
MOMENTS = {"exp_avg": linear(), "exp_avg_sq": square()}


def fading_moments(betas) -> dict[str, Any]:
    """Return these slots for rules in which a gradient of 0 multiplies them by the decays."""
    beta1, beta2 = betas
    return {"exp_avg": linear(decay=beta1), "exp_avg_sq": square(decay=beta2)}


def adam_moments(
    betas, amsgrad: bool = False, belief_eps=None
) -> tuple[dict[str, Any], Any]:
    """Return Adam's slots and `average(update, state) -> (m, v, new state)`; v is the maximum with amsgrad.

    With `belief_eps`, v is AdaBelief's: the variance around m, to which each step adds this number.
    """
    beta1, beta2 = betas
    slot = "exp_avg_sq" if belief_eps is None else "exp_avg_var"

    def average(update, state):
        m = running_mean(state["exp_avg"], update, beta1)
        if belief_eps is None:
            v = running_mean(state[slot], update.square(), beta2)
        else:
            v = running_mean(state[slot], (update - m).square(), beta2) + belief_eps
        new_state = {"exp_avg": m, slot: v}
        return m, peak(new_state, state, slot, amsgrad), new_state

    decay, of_peak = (beta2, 1.0) if belief_eps is None else (None, None)
    slots = {"exp_avg": ema(beta1), slot: square(decay=decay)}
    if amsgrad:
        slots[f"max_{slot}"] = square(decay=of_peak)
    return slots, average


def corrected_root(square: Tensor, ctx, beta) -> Tensor:
    r"""Return $\sqrt{v / c}$ as $\sqrt v / \sqrt c$, because quantized state also needs $\sqrt v$."""
    return safe_sqrt(square) / ctx.bias_correction(beta).sqrt()


def hat_rate(root: float | Tensor, ctx, betas) -> Tensor:
    r"""Return $\sqrt{c_2} / (c_1 \, root)$, Adam's rate when eps was added to the root before bias correction."""
    beta1, beta2 = betas
    return ctx.bias_correction(beta2).sqrt() / ctx.bias_correction(beta1) / root


def rectification(ctx, beta2, threshold) -> tuple[Tensor, Tensor]:
    r"""Return RAdam's factor $r_t$ (1 until it applies) and whether $\rho_t >$ threshold (at least 4), both 0-d."""
    return rectification_at(ctx.time, ctx.bias_correction(beta2), beta2, threshold)


def softplus(x: Tensor, beta) -> Tensor:
    """Return log(1 + exp(beta x)) / beta, or x where beta x > 20, as torch does; beta may be a tensor."""
    scaled = beta * x
    is_linear = scaled > 20
    logarithm = scaled.clamp(max=20).exp().log1p()
    return torch.where(is_linear, x, logarithm / beta)


def caution(direction: Tensor, gradient: Tensor, factor) -> Tensor:
    """Return weights, 1 where direction and gradient have equal signs and `factor` elsewhere, over their leaf mean."""
    # Signs, because the product can underflow.
    agree = (direction.sign() * gradient.sign() > 0).to(direction.dtype)
    weights = agree + factor * (1 - agree)
    return weights / weights.mean().clamp(min=1e-5)


def may_decay(direction: Tensor, param: Tensor, cautious: bool | str) -> Tensor:
    """Return where a step against `direction` shrinks a weight too; with "inclusive", or leaves it where it is."""
    agreement = direction.sign() * param.sign()
    return agreement >= 0 if cautious == "inclusive" else agreement > 0


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """Compute atan2 for x >= 0, with derivative 0 at x = 0.

    Inside `torch.compile`, where `torch.atan2` is scalar code, this is the arc tangent of the quotient.
    """
    if torch.compiler.is_compiling():
        return _atan_of_quotient(y, x)
    if not differentiable():
        return torch.atan2(y, x)
    # Only for its derivative: that of torch.atan2 is not finite where x^2 + y^2 underflows.
    angle = _atan_of_quotient(y, x)
    return torch.atan2(y.detach(), x.detach()) + (angle - angle.detach())


def _atan_of_quotient(y: Tensor, x: Tensor) -> Tensor:
    if differentiable():
        y = torch.where(x == 0, y.detach(), y)
    return (y / x.clamp(min=torch.finfo(x.dtype).tiny)).atan()


def average_over_space(diag: Tensor) -> Tensor:
    """Return the absolute diagonal of a Hessian, with each entry replaced by its mean over dimensions 2 and above."""
    size = diag.abs()
    if diag.ndim <= 2:
        return size
    return size.mean(dim=tuple(range(2, diag.ndim)), keepdim=True).expand_as(size)
