"""Of which loss a closure computes gradients: a scaled one is not the one that it returns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SAME = 1e-2  # relative: losses are added and scaled in 16 bits
BACKWARD: tuple[Any, ...] = (Tensor.backward, torch.autograd.backward)


class BackwardCalls(TorchFunctionMode):
    """Adds up the losses whose gradients are computed inside of it.

    Args:
        params: The parameters whose gradients are compared.

    Attributes:
        total: The sum of the losses; None before the first.
    """

    def __init__(self, params: Sequence[Tensor]):
        super().__init__()
        self.total: float | None = None
        self._params = params
        self._norm = 0.0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in BACKWARD and args:
            losses = [args[0]] if isinstance(args[0], Tensor) else list(args[0])
            if all(loss.numel() == 1 for loss in losses):
                values = [loss.detach().item() for loss in losses]
                self.total = sum(values, self.total or 0.0)
                self._norm = self._norm_of_gradients()
        return result

    def scale_of(self, loss: float) -> float:
        """Return how many times the gradients are those of a returned loss; 1 if this is unknown."""
        if not self.total or not loss:
            return 1.0
        scale = abs(self.total / loss)
        # The closure has divided them again, and perhaps clipped them.
        is_unscaled = scale * self._norm_of_gradients() <= (1 + SAME) * self._norm
        return 1.0 if is_unscaled and scale > 1 + SAME else scale

    def _norm_of_gradients(self) -> float:
        norms = [param.grad.norm() for param in self._params if param.grad is not None]
        return sum(float(norm) ** 2 for norm in norms) ** 0.5


def is_of_scaler(scale: float) -> bool:
    """Whether a scale is that of a `GradScaler` in memory."""
    for item in gc.get_objects():
        if issubclass(type(item), torch.amp.GradScaler) and item.is_enabled():
            own = item.get_scale()
            if own > 1 and abs(scale - own) <= SAME * own:
                return True
    return False
