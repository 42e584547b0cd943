"""A step that is taken if the loss falls as the model of it predicts: the gain ratio."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base.exact import exact_dtype
from gradtx.curvature.problem import CurvatureProblem

LEAST, MOST = 1e-300, 1e32  # bounds of a damping that adapts


class TriedStep(NamedTuple):
    """A step that was tried.

    Attributes:
        gain: The decrease of the loss divided by the predicted one, 0-d float64; -inf if the loss is not finite.
        taken: Whether the step is taken.
        idle: Whether there is nothing to gain: the predicted decrease is below the rounding errors of the loss.
        update: The step, or 0 if it is not taken.
    """

    gain: Tensor
    taken: Tensor
    idle: Tensor
    update: Tensor

    def report(self) -> dict[str, Tensor]:
        """Return what `watch` shows."""
        return {"gain": self.gain, "rejected": ~self.taken & ~self.idle}


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner product, in float64."""
    dtype = exact_dtype(x)
    return (x.to(dtype) * y.to(dtype)).sum()


def tried(
    problem: CurvatureProblem,
    step: Tensor,
    predicted: Tensor,
    refused: Tensor,
    accept: Any = 0.0,
) -> TriedStep:
    """Try a step.

    Args:
        problem: The loss at the present parameters.
        step: The step, a vector.
        predicted: The decrease of the loss that the model of it predicts, 0-d.
        refused: Whether the step is not to be taken, whatever the loss, 0-d bool.
        accept: The gain above which it is taken.
    """
    loss = problem.loss
    epsilon = torch.finfo(problem.jacobian.value.dtype).eps
    refused = refused | ~step.isfinite().all() | ~loss.isfinite()
    idle = ~refused & (predicted <= 2 * epsilon * loss)
    safe = torch.where(refused, 0.0, step)
    if _torch.readable(idle) and idle.device.type == "cpu" and bool(idle | refused):
        after = loss  # no trial is needed
    else:
        after = problem.loss_after(safe)
    ratio = (loss - after) / torch.where(predicted > 0, predicted, 1.0)
    gain = torch.where(after.isfinite() & ~refused, ratio, -torch.inf)
    taken = (gain > accept) & ~refused & ~idle
    return TriedStep(gain, taken, idle, torch.where(taken, safe, 0.0))
