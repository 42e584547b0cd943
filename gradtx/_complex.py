"""Complex leaves: rules see a complex tensor as its real view, which has the two parts in a last dimension.

A leaf takes its tensors in by `as_real` and gives them back by `as_complex`, so that no rule knows of complex numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx._sharding import is_sharded

REMEDY = "keep torch.view_as_real(tensor) as the parameter, and apply torch.view_as_complex in the model"
PARTS = (torch.float32, torch.float64)  # the dtypes of the parts of complex tensors that torch computes with


def as_real(tensor: Tensor) -> Tensor:
    """The real view of a complex tensor; a real one as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_views(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, with real views in place of complex tensors."""
    return {name: as_real(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def as_complex(tensor: Tensor) -> Tensor:
    """The complex tensor of which this is the real view."""
    try:
        return torch.view_as_complex(tensor)
    except RuntimeError:  # the parts are not next to each other
        return torch.complex(tensor[..., 0], tensor[..., 1])


def check_complex(name: str, leaf: Tensor, what: str) -> None:
    """Raise an error for a complex leaf that has no real view to compute with.

    Raises:
        TypeError: it is in half precision, or divided among ranks.
    """
    if leaf.dtype == torch.complex32:
        raise TypeError(f"{what}: leaf {name!r} has dtype {leaf.dtype}, needs torch.complex64 or torch.complex128")
    if is_sharded(leaf):
        raise TypeError(f"{what}: leaf {name!r} is a complex DTensor, which has no real view; {REMEDY}")


def check_real(name: str, leaf: Tensor | None, what: str) -> None:
    """Raise an error for a complex tensor.

    Raises:
        TypeError: it is complex.
    """
    if leaf is not None and leaf.is_complex():
        raise TypeError(f"{what}: leaf {name!r} has dtype {leaf.dtype}, needs real entries; {REMEDY}")
