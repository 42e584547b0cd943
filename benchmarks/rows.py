"""Rows of tables: contestants that take turns, and ratios of their times.

Import this module first, as it imports `common`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from common import SEED, Shapes, seconds  # first, because it sets the allocator
from torch.nn import Parameter
from tqdm import tqdm

import gradtx

Params: TypeAlias = list[Parameter]
# Makes an optimizer of parameters, or of groups of these.
Make: TypeAlias = Callable[[Any], Any]
# Takes one measurement, of which it returns the seconds.
Contestant: TypeAlias = Callable[[], float]
Contestants: TypeAlias = dict[str, Contestant]

SMALL: Shapes = [(16, 16)] * 4
LINEAR = (64, 64)


@dataclass
class Extent:
    """How much is measured.

    Attributes:
        share: The share of each row's rounds.
        entries: The entries of the weights whose memory is measured.
    """

    share: float = 1.0
    entries: int = 20_000_000


class Comparison(NamedTuple):
    """A contestant, and that with which it is compared."""

    contestant: str
    reference: str


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        title: What is measured.
        contestants: Makes the contestants.
        rounds: How often each is measured.
    """

    title: str
    contestants: Callable[[], Contestants]
    rounds: int


MODES = [Comparison("default", "foreach"), Comparison("compiled", "fused")]


def four_ways(
    ours: Callable[..., Any], theirs: Callable[..., Any], **options: Any
) -> dict[str, Make]:
    """Return both modes of gradtx's optimizer, and both of torch's."""
    return {
        "default": lambda params: ours(params, **options),
        "compiled": lambda params: ours(params, compile=True, **options),
        "foreach": lambda params: theirs(params, foreach=True, **options),
        "fused": lambda params: theirs(params, fused=True, **options),
    }


ADAMW = four_ways(gradtx.optim.AdamW, torch.optim.AdamW)


def weights(shapes: Shapes, dtype: torch.dtype = torch.float32) -> Params:
    """Return parameters with gradients."""
    generator = torch.Generator().manual_seed(SEED)
    params: Params = []
    for shape in shapes:
        param = Parameter(torch.randn(shape, generator=generator).to(dtype))
        param.grad = torch.randn(shape, generator=generator).to(dtype)
        params.append(param)
    return params


def timed(call: Callable[[], object]) -> Contestant:
    """Return a contestant that measures a call."""
    return lambda: seconds(call)


def times_of(row: Row, extent: Extent) -> dict[str, list[float]]:
    """Return the seconds of each contestant, round after round."""
    contestants = row.contestants()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    warm, rounds = 2, max(3, round(row.rounds * extent.share))
    gc.collect()
    gc.disable()
    for i in tqdm(range(warm + rounds), desc=row.title, disable=None, leave=False):
        for name, measure in contestants.items():
            duration = measure()
            if i >= warm:
                times[name].append(duration)
    gc.enable()
    return times


def each(
    makers: dict[str, Make], contestant: Callable[[Make], Contestant]
) -> Contestants:
    return {name: contestant(make) for name, make in makers.items()}
