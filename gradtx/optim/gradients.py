"""Gradients as plans expect them, also of parameters that have none at present."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from gradtx.optim.run import Member

GRAD = operator.attrgetter("grad")


def likely_gradient(member: Member) -> Tensor:
    """Return the gradient of a parameter, or a tensor without values that is like the one it will have."""
    gradient = member.param.grad
    if gradient is not None:
        member.gradient_dtype = gradient.dtype
        return gradient
    dtype = member.gradient_dtype or member.param.dtype
    return stand_in(member.param, dtype, member.param.stride())


def stand_in(param: Tensor, dtype: torch.dtype, stride: tuple[int, ...]) -> Tensor:
    """Return a tensor like a gradient of a parameter, of which only the type and the layout matter."""
    like = param.detach()
    if like.dtype == dtype and like.stride() == stride:
        return like
    like = torch.empty_strided(param.shape, stride, dtype=dtype, device=param.device)
    like.untyped_storage().resize_(0)
    return like
