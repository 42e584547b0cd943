"""Closures that a step calls: for the loss, and again at other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import total


def check_closure(params: Iterable[Tensor]) -> None:
    """Check that a closure that links call again has computed gradients.

    Raises:
        RuntimeError: If no parameter has a gradient.
    """
    if all(param.grad is None for param in params):
        raise RuntimeError(
            "the closure computed no gradients; it must call zero_grad() and backward(), and return the loss"
        )


class Weights:
    """The weights of some parameters at one time."""

    def __init__(self, params: Sequence[Tensor]):
        self._params = [param for param in params if not is_lazy(param)]
        self._values = [param.detach().clone() for param in self._params]

    def are_present(self) -> bool:
        """Whether the parameters have these weights."""
        differences = {
            str(place): param.detach() != value
            for place, (param, value) in enumerate(
                zip(self._params, self._values, strict=True)
            )
        }
        return not total(differences)  # over all shards, so that all ranks decide alike


class KnownClosure:
    """A closure that is not called again at the weights of the lowest loss, where line searches end."""

    def __init__(self, closure: Callable[[], Any], params: Sequence[Tensor]):
        self._closure = closure
        self._params = params
        self._weights: Weights | None = None
        self._loss: Any = None
        self._gradients: list[Tensor | None] = []

    def __call__(self) -> Any:
        if self._weights is not None and self._weights.are_present():
            for param, gradient in zip(self._params, self._gradients, strict=True):
                param.grad = gradient
            return self._loss
        weights = Weights(self._params)
        loss = self._closure()
        if self._weights is None or loss < self._loss:
            self._weights, self._loss = weights, loss
            self._gradients = [param.grad for param in self._params]
        return loss
