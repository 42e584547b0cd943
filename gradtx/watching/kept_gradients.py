"""Whether gradients still hold those of the step before, because nothing has reset them."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import is_sharded
from gradtx.optim.listed import ListedMember
from gradtx.optim.step import Step
from gradtx.watching.observer import samples_of


class StepGradients:
    """The gradients of a step, as far as they tell whether those of an earlier step were reset in between.

    A backward pass adds to a gradient that is there by one write; to reset it is another, or makes another tensor.
    Sparse gradients, whose rows are copies, are left out.

    Args:
        step: The step.
        call: Its number among the calls of `step`.

    Attributes:
        call: As above.
    """

    def __init__(self, step: Step, call: int):
        self.call = call
        members = [m for m in step.members if not isinstance(m, ListedMember)]
        self._count = len(members)
        self._of: dict[str, tuple[weakref.ref[Tensor], int, Tensor]] = {}
        grads: dict[str, Tensor] = {}
        for member in members:
            grad = member.param.grad
            if grad is not None and not is_sharded(grad):
                grads[member.name] = grad
        samples = samples_of(list(grads.values()))
        for (name, grad), sample in zip(grads.items(), samples, strict=True):
            self._of[name] = weakref.ref(grad), _torch.version_of(grad), sample

    def products_with(self, earlier: StepGradients) -> Tensor | None:
        """Return the products with the gradients of an earlier step, and the squares of each; None if any was reset."""
        if len(self._of) < self._count:
            return None
        writes = self.call - earlier.call
        samples: dict[torch.device, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, (grad, version, sample) in self._of.items():
            if name not in earlier._of:
                return None
            grad_before, version_before, before = earlier._of[name]
            if grad_before() is not grad() or version != version_before + writes:
                return None
            samples[sample.device].append((sample, before))
        products: Any = None
        for pairs in samples.values():
            now, then = (torch.cat(vectors) for vectors in zip(*pairs, strict=True))
            row = torch.stack((now @ then, now @ now, then @ then))
            products = row if products is None else products + row.to(products.device)
        return products

    def squares(self) -> tuple[list[str], Tensor] | None:
        """Return the names of the leaves, and the squares of samples of their gradients; None without any."""
        samples = [sample for _, _, sample in self._of.values()]
        if not samples:
            return None
        device = samples[0].device
        squares = [(sample @ sample).to(device) for sample in samples]
        return list(self._of), torch.stack(squares)


def cosine_of(products: Tensor | None) -> float:
    """Return the cosine of the gradients of two steps; NaN if they were reset."""
    if products is None:
        return math.nan
    product, square, other = products.tolist()
    return product / math.sqrt(square * other) if square * other > 0 else math.nan
