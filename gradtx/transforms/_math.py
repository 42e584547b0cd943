"""Private maths that several transformations share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with derivative 0 (not inf) at 0, so that a gradient through training stays finite."""
    if not torch.is_grad_enabled():
        return x.sqrt()
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def at_least(x: Tensor, bound: Any) -> Tensor:
    """The larger of each entry and a number or 0-d tensor."""
    return x.clamp(min=bound)


def at_most(x: Tensor, bound: Any) -> Tensor:
    """The smaller of each entry and a number or 0-d tensor."""
    return x.clamp(max=bound)


def filled_like(x: Tensor, value: Any) -> Tensor:
    """A tensor like `x` with one number in all places, which may be a 0-d tensor (`full_like` would read it)."""
    return (torch.zeros_like(x) + value).to(x.dtype)


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


def caution(direction: Tensor, gradient: Tensor, factor: Any) -> Tensor:
    """Weights 1 where direction and gradient have the same sign, else `factor`, divided by their mean over the leaf."""
    agree = (direction.sign() * gradient.sign() > 0).to(direction.dtype)  # signs, since the product can underflow
    weights = agree + factor * (1 - agree)
    return weights / weights.mean().clamp(min=1e-5) if weights.numel() else weights


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """atan2 for x >= 0, as atan(y / x): torch.atan2 is scalar code in compiled CPU kernels, 20 times slower.

    At x = 0 the derivative is 0; at (0, 0) the value is 0.
    """
    if torch.is_grad_enabled():
        y = torch.where(x == 0, y.detach(), y)
    return (y / x.clamp(min=torch.finfo(x.dtype).tiny)).atan()
