"""All entries of some tensors as one vector, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class JointVector:
    """Vectors with all entries of some tensors, in at least a dtype, on the device of the first."""

    def __init__(
        self, like: Sequence[Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        self.like = like
        self.sizes = [leaf.numel() for leaf in like]
        self.dtype = dtype
        for leaf in like:
            self.dtype = torch.promote_types(self.dtype, leaf.dtype)
        self.device = like[0].device if like else None

    def joined(self, leaves: Sequence[Tensor]) -> Tensor:
        """Return the vector of tensors with these shapes."""
        flat = [leaf.reshape(-1).to(self.device, self.dtype) for leaf in leaves]
        return torch.cat(flat) if flat else torch.zeros(0)

    def parts(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of a vector, each with its own shape, dtype and device."""
        pieces = vector.split(self.sizes) if self.sizes else ()
        return tuple(
            piece.reshape(leaf.shape).to(leaf.device, leaf.dtype)
            for piece, leaf in zip(pieces, self.like, strict=True)
        )
