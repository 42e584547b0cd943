"""Find out whether the program of a leaf depends on the leaf's shape."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

PRIMES = (3, 7, 5, 11)


def representatives(shapes: Collection[torch.Size]) -> list[torch.Size]:
    """Return the smallest shape, and the largest one for each number of dimensions."""
    by_size = sorted(shapes, key=torch.Size.numel)
    largest: dict[int, torch.Size] = {}
    for shape in by_size:
        largest[len(shape)] = shape
    return list(dict.fromkeys((by_size[0], *largest.values())))


def probes(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the arguments of a leaf in other shapes: with more columns than rows, and with more rows than columns.

    A rule that reads no shape has the same program for them; one that reads, for example, `numel()` has another one.
    """
    shape = tensors[0].shape
    sizes = tuple(itertools.islice(itertools.cycle(PRIMES), len(shape)))
    for probe in dict.fromkeys((sizes, sizes[::-1])):
        if shape[-1:] == (
            2,
        ):  # perhaps the real and imaginary parts of complex numbers
            probe = (*probe[:-1], 2)
        if probe:
            yield [_resized(tensor, shape, probe) for tensor in tensors]


def _resized(tensor: Tensor, shape: torch.Size, probe: Sequence[int]) -> Tensor:
    return tensor.new_empty(probe) if tensor.shape == shape else tensor
