"""Whether gradients still hold those of the step before, because nothing has reset them."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import is_sharded
from gradtx.optim.step import Step
from gradtx.watching.observer import sample_of


class LastGradients:
    """The gradients of a step, as far as a later one needs them to tell whether they were reset.

    A backward pass adds to a gradient that is there by one write; to reset it is another, or makes another tensor.

    Args:
        step: The step.
        call: Its number among the calls of `step`.
    """

    def __init__(self, step: Step, call: int):
        self._call = call
        self._of: dict[str, tuple[weakref.ref[Tensor], int, Tensor]] = {}
        for member in step.members:
            grad = member.param.grad
            if grad is not None and not is_sharded(grad):
                version = _torch.version_of(grad)
                self._of[member.name] = weakref.ref(grad), version, sample_of(grad)

    def products_if_kept(self, step: Step, call: int) -> Tensor | None:
        """Return the products of the gradients of both steps, and the squares of each; None if any was reset."""
        products: Any = None
        writes = call - self._call
        for member in step.members:
            grad = member.param.grad
            last, version, sample = self._of.get(member.name, (None, 0, None))
            if grad is None or last is None or last() is not grad or sample is None:
                return None
            if _torch.version_of(grad) != version + writes:
                return None
            now = sample_of(grad)
            row = torch.stack((now @ sample, now @ now, sample @ sample))
            products = row if products is None else products + row.to(products.device)
        return products


def cosine_of(products: Tensor | None) -> float:
    """Return the cosine of the gradients of two steps; NaN if they were reset."""
    if products is None:
        return math.nan
    product, square, other = products.tolist()
    return product / math.sqrt(square * other) if square * other > 0 else math.nan
