"""What the scripts share: comparisons, a checkpoint on disk, and a small network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch

EXACT = 1e-10  # of a loss: sums in float64 in another order, over some dozen steps


def assert_same_losses(ours: Sequence[float], theirs: Sequence[float], tolerance: float = EXACT) -> None:
    """The losses are equal, and the run went somewhere, so that equal losses mean equal steps."""
    ours, theirs = torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0.0)
    assert (theirs[0] - theirs[-1]).abs() > 1e-3 * theirs[0].abs()


def through_a_file(checkpoint: Any) -> Any:
    """What `torch.load` reads by its defaults after `torch.save`."""
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file)


def perceptron(inputs: int = 3, outputs: int = 1, seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    hidden = 8
    layers = torch.nn.Linear(inputs, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, outputs)
    return torch.nn.Sequential(*layers).double()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
