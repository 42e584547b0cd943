"""The links of a chain by their stages, and which entries of an update a bound or an eps decides."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtx.base.errors import Path
from gradtx.base.exact import python_scalar
from gradtx.transform import GradientTransformation

# In place of eps: so small that it decides no entry, and its inverse is finite in float32.
TINY = 1e-30


class Link:
    """A link of a chain: the transformation as it was typed, and its arguments by name."""

    def __init__(self, tx: GradientTransformation):
        self.tx = tx
        self.name = tx._name
        self.arguments: dict[str, Any] = {
            name: value for name, value, _ in tx._own_entries()
        }

    def number(self, name: str, default: float = math.nan) -> float:
        """Return an argument as a number; NaN for a schedule, whose value differs from step to step."""
        value = python_scalar(self.arguments.get(name, default))
        return value if isinstance(value, int | float) else math.nan

    @property
    def bounds(self) -> bool:
        """Whether it is a clip: it shortens the updates that exceed a bound, and passes the others."""
        return self.tx._length == "bounds"

    @property
    def sets_length(self) -> bool:
        """Whether the length of its updates does not depend on that of what it receives."""
        return self.tx._length == "sets"

    def decided(
        self, before: Tensor, after: Tensor, without_eps: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return which entries a bound or eps may decide, and which it does; None if the link has neither.

        Args:
            before: The update before the link.
            after: The update after it.
            without_eps: The update after the same link with almost no eps, if it has one.
        """
        if self.bounds:
            free = before != 0
            return free, free & (after != before)
        if self.name == "scale_by_atan2":
            largest = self.arguments["a"] * (math.pi / 4 * 1.001)
            # Where the mean exceeds the root, the arc tangent bounds the step.
            return after != 0, after.abs() > largest
        if (
            self.name == "scale_by_trust_ratio"
        ):  # a ratio of 1 is a bound, or stands for none
            free = before != 0
            return free, free & (after == before)
        if without_eps is None:
            return None
        free = (without_eps != 0) & ~without_eps.isnan()
        return free, free & (after.abs() < without_eps.abs() / 2)


def links_by_stage(
    tx: GradientTransformation, stages: Mapping[Path, str]
) -> dict[Path, Link]:
    """Return the link of each stage: the n-th link of a name has the n-th stage of this name."""
    links: dict[str, list[GradientTransformation]] = defaultdict(list)
    for link in tx._every_link():
        links[link._name].append(link)
    seen: Counter[str] = Counter()
    by_stage: dict[Path, Link] = {}
    for path, name in stages.items():
        number = seen[name]
        seen[name] += 1
        if number < len(links[name]):
            by_stage[path] = Link(links[name][number])
    return by_stage


def without_eps(tx: GradientTransformation) -> GradientTransformation | None:
    """Return a chain with almost no eps; None if no link has any."""
    values: dict[Any, Any] = {}
    for entry in tx._entries():
        _, name = entry.place
        value = entry.value
        if name != "eps" or not isinstance(value, float | Tensor):
            continue
        # A literal 0.0 may leave a link out, and stays.
        if isinstance(value, Tensor):
            values[entry.place] = torch.full_like(value, TINY)
        elif value > 0:
            values[entry.place] = TINY
    return tx._replaced(values, checked=False) if values else None
