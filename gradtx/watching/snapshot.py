"""A snapshot of all that training changes outside of an optimizer: weights, gradients, buffers and random streams."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import local
from gradtx.base.random_streams import RandomStreams
from gradtx.watching.modules import modules_with


class Snapshot:
    """The weights of an optimizer, their gradients, the buffers of modules that have them, and random streams.

    Args:
        params: The parameters.
    """

    def __init__(self, params: Iterable[Tensor]):
        self._params = [param for param in params if not is_lazy(param)]
        self._gradients = [param.grad for param in self._params]
        self._tensors = [local(param.detach()) for param in self._params]
        self._tensors += [
            grad for grad in map(_local_gradient, self._params) if grad is not None
        ]
        self._tensors += _buffers_beside(self._params)
        self._values = [tensor.clone() for tensor in self._tensors]
        self._streams = RandomStreams()

    @torch.no_grad()
    def restore(self) -> None:
        """Write all values back, into the tensors that had them."""
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)
        for param, gradient in zip(self._params, self._gradients, strict=True):
            param.grad = gradient
        self._streams.restore()


def _local_gradient(param: Tensor) -> Tensor | None:
    return None if param.grad is None else local(param.grad.detach())


def _buffers_beside(params: Iterable[Tensor]) -> list[Tensor]:
    """Return the buffers of all modules that have some of the parameters, such as averages of BatchNorm."""
    buffers = {
        id(buffer): buffer
        for module in modules_with(params)
        for buffer in module.buffers()
    }
    return list(buffers.values())
