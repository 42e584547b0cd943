"""`diagnose`: train for a number of steps, and say what is wrong in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gradtx.base.inputs import check_count
from gradtx.base.messages import describe
from gradtx.watching.faults import findings_of
from gradtx.watching.findings import Findings
from gradtx.watching.watch import optimizer_of, watch

__all__ = ["diagnose"]


def diagnose(
    optimizer: Any,
    step: Callable[[], Any],
    steps: int = 100,
    *,
    every: int | None = None,
    model: nn.Module | None = None,
) -> Findings:
    """Train for a number of steps, and say what is wrong with the run in plain words.

    The weights and the state are trained as by a loop of `step()`; one step of `every` is measured. What it looks for
    is listed in the how-to "My loss does not fall". A parameter in two groups is an error of its own when the optimizer
    is created, and torch warns of one that is twice in a group; two parameters over the same memory are a finding, and
    tied weights, which are one parameter, are none.

    Args:
        optimizer: An optimizer of gradtx, or a trainer's wrapper around one.
        step: One step of training: `optimizer.zero_grad()`, forward and backward pass, `optimizer.step()`. It may
            return the loss.
        steps: The number of calls, >= 1.
        every: As for `watch`; a fiftieth of the steps by default.
        model: The model, from which the roles of its matrices are known; by default the modules in memory that hold
            the parameters. Without any, names tell the roles.

    Returns:
        The findings, the worst first: a list of `Finding`. A healthy run has none.

    Raises:
        TypeError: If `optimizer` is not an optimizer of gradtx, or `step` is not callable.
        ValueError: If `steps` or `every` is below 1, or if `step` calls no step of the optimizer.

    Example:
        >>> model = torch.nn.Linear(3, 3, bias=False)
        >>> optimizer = gradtx.optim.Adam(model.named_parameters(), lr=0.1, eps=10.0)
        >>> def step():
        ...     optimizer.zero_grad()
        ...     model(torch.eye(3)).sub(1).square().mean().backward()
        ...     optimizer.step()
        >>> [finding.kind for finding in gradtx.diagnose(optimizer, step, 20)]
        ['eps decides']
    """
    optimizer_of("diagnose", optimizer)
    if not callable(step):
        raise TypeError(
            f"diagnose: step must be a function that trains for one step, got {describe(step)}"
        )
    check_count("diagnose: steps", steps)
    with watch(optimizer, max(1, steps // 50) if every is None else every) as seen:
        seen.notes_come_first = False
        for _ in range(steps):
            loss = step()
            seen.rounds += 1
            if _is_loss(loss):
                seen.note(loss)
    if not seen.calls:
        raise ValueError(
            f"diagnose: {steps} calls of `step` called no step of the optimizer; it must call optimizer.step(), which "
            "a GradScaler leaves out as long as gradients are not finite"
        )
    return findings_of(seen, model)


def _is_loss(loss: Any) -> bool:
    if isinstance(loss, Tensor):
        return loss.numel() == 1
    return isinstance(loss, float) and not math.isnan(loss)
