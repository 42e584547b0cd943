"""What torch knows about a tensor beyond its public interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]  # no public name


def readable(tensor: Tensor) -> bool:
    """Whether the host may read the tensor's value: it belongs to no transform (vmap, grad, compile) and has data."""
    return not (torch.compiler.is_compiling() or functorch.is_functorch_wrapped_tensor(tensor) or tensor.is_meta)
