"""A slot as rank-one factors of its magnitudes and a bit per sign: the functions of the code "factored"."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch

__all__ = [
    "decode_magnitudes",
    "decode_signed",
    "encode_magnitudes",
    "encode_signed",
    "shapes_of_magnitudes",
    "shapes_of_signed",
]

Shape = tuple[int, ...]
BYTE = 8  # signs


def encode_signed(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the signs, eight in a byte, and the factors of the magnitudes."""
    row, column = _factors(values.abs())
    return _bytes_of(values > 0), row, column


def decode_signed(signs: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the outer product of the factors, with the signs."""
    sizes = torch.outer(row, column)
    return torch.where(_bits_of(signs, sizes.shape), sizes, -sizes)


def encode_magnitudes(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return no signs, and the factors."""
    signs = torch.empty(0, dtype=torch.uint8, device=values.device)
    return signs, *_factors(values)


def decode_magnitudes(signs: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the outer product of the factors."""
    return torch.outer(row, column)


def shapes_of_signed(shape: Shape) -> tuple[Shape, ...]:
    """Return the shapes of the signs and of the factors."""
    rows, columns = _sides(math.prod(shape))
    return (-(-rows * columns // BYTE),), (rows,), (columns,)


def shapes_of_magnitudes(shape: Shape) -> tuple[Shape, ...]:
    """Return the shapes of no signs and of the factors."""
    rows, columns = _sides(math.prod(shape))
    return (0,), (rows,), (columns,)


def _factors(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the rows and the shares of the columns, of which the outer product has the same sums.

    Both are computed from means, which are no larger than the largest entry: sums may overflow where entries do not, as
    of squares of gradients of 1e18 in float32, and a second moment would then be read as 0. Where a sum of a row does,
    the factors are the means of the rows, and shares of as many times the size.
    """
    matrix = sizes.reshape(_sides(sizes.numel()))
    rows, columns = matrix.shape
    means = (matrix / max(columns, 1)).sum(1)
    # What each column adds to the mean.
    parts = (matrix / max(rows, 1)).sum(0) / max(columns, 1)
    mean = parts.sum()
    shares = parts / torch.where(mean == 0, 1, mean)
    overflows = (means * columns).isinf().any()
    return (
        means * torch.where(overflows, 1, columns),
        shares * torch.where(overflows, columns, 1),
    )


@_torch.assume_constant
def _sides(entries: int) -> tuple[int, int]:
    """Return rows >= columns of the matrix nearest to a square with this number of entries."""
    return _nearest_to_square(int(entries))


@functools.lru_cache(maxsize=4096)
def _nearest_to_square(entries: int) -> tuple[int, int]:
    for columns in range(math.isqrt(entries), 1, -1):
        if entries % columns == 0:
            return entries // columns, columns
    return entries, 1


def _bytes_of(bits: Tensor) -> Tensor:
    """Pack flags into bytes, the first into the lowest bit."""
    flat = bits.reshape(-1).to(torch.uint8)
    missing = -flat.numel() % BYTE
    if missing:
        flat = torch.cat((flat, flat.new_zeros(missing)))
    bits = flat.unflatten(0, (-1, BYTE)) << _places(flat)
    return bits.sum(1, dtype=torch.uint8)


def _bits_of(packed: Tensor, shape: torch.Size) -> Tensor:
    """The reverse of `_bytes_of`."""
    bits = (packed.unsqueeze(1) >> _places(packed)) & 1
    return (bits != 0).reshape(-1)[: shape.numel()].reshape(shape)


def _places(like: Tensor) -> Tensor:
    """Return the places of the bits of a byte, made on the device: a copy from the host would wait."""
    return torch.arange(BYTE, dtype=torch.uint8, device=like.device)
