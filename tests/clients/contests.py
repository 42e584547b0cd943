"""What trains in every client: an optimizer of ours, and the one that it has to equal."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import adamp
import torch

import gradtx

CLIP = 0.1  # the norm of gradients; all losses here have larger ones at first
RATE = 3e-2
DECAY = 0.8  # of the rate, each step

# Sums in float64 in another order, over a dozen steps of a small network.
TOLERANCE = 1e-10


class Contest(NamedTuple):
    """`clips`: whether our chain clips gradients itself, so that the client must not."""

    ours: Callable[[torch.nn.Module], torch.optim.Optimizer]
    theirs: Callable[[torch.nn.Module], torch.optim.Optimizer]
    clips: bool


CHAIN = gradtx.chain(gradtx.clip_by_global_norm(CLIP), gradtx.adamp(lr=RATE, weight_decay=0.1))

CONTESTS = {
    "AdamW": Contest(
        lambda model: gradtx.optim.AdamW(model.parameters(), lr=RATE),
        lambda model: torch.optim.AdamW(model.parameters(), lr=RATE),
        False,
    ),
    "a chain that clips, with AdamP": Contest(
        lambda model: gradtx.as_optimizer(CHAIN, model.named_parameters()),
        lambda model: adamp.AdamP(model.parameters(), lr=RATE, weight_decay=0.1),
        True,
    ),
}


def decaying(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)


def counting_steps(optimizer: torch.optim.Optimizer) -> Any:
    """The optimizer, which counts in `steps_taken` what this process does: a resumed run must not start over."""
    optimizer.steps_taken = 0

    def count(optimizer, args, kwargs):
        optimizer.steps_taken += 1

    optimizer.register_step_post_hook(count)
    return optimizer


class Lazily:
    """A module that is imported when it is used: a client takes seconds, and every worker collects its tests."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # what pytest asks of everything in a module that it collects
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)
