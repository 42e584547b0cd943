"""Complex leaves: rules see a complex tensor as its real view, with the real and imaginary parts in the last dimension.

A leaf converts its inputs with `as_real` and its outputs with `as_complex`, so that no rule handles complex numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import is_sharded

REMEDY = "keep torch.view_as_real(tensor) as the parameter, and apply torch.view_as_complex in the model"
# Dtypes of the parts of the complex tensors that torch can compute with.
PARTS = (torch.float32, torch.float64)


def as_real(tensor: Tensor) -> Tensor:
    """Return the real view of a complex tensor, or a real tensor unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_views(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by name, with complex tensors replaced by their real views."""
    return {
        name: as_real(value) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def as_complex(tensor: Tensor) -> Tensor:
    """Return the complex tensor with this real view."""
    try:
        return torch.view_as_complex(tensor)
    except RuntimeError:  # the two parts are not adjacent in memory
        return torch.complex(tensor[..., 0], tensor[..., 1])


def check_complex(name: str, leaf: Tensor, what: str) -> None:
    """Raise an error for a complex leaf without a usable real view.

    Raises:
        TypeError: If the leaf is in half precision, or is sharded.
    """
    if leaf.dtype == torch.complex32:
        raise TypeError(
            f"{what}: leaf {name!r} has dtype {leaf.dtype}, needs torch.complex64 or torch.complex128"
        )
    if is_sharded(leaf):
        raise TypeError(
            f"{what}: leaf {name!r} is a complex DTensor, which has no real view; {REMEDY}"
        )


def check_real(name: str, leaf: Tensor | None, what: str) -> None:
    """Raise an error for a complex tensor.

    Raises:
        TypeError: If the tensor is complex.
    """
    if leaf is not None and leaf.is_complex():
        raise TypeError(
            f"{what}: leaf {name!r} has dtype {leaf.dtype}, needs real entries; {REMEDY}"
        )
