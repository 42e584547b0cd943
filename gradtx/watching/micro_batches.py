"""The gradients that `accumulate` averages, as a watch sees them: their squared norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gradtx.optim.step import Step
from gradtx.watching.figures import LeafSums, Measured, Row, names_of
from gradtx.watching.links import Link

ENTER = "accumulate.enter"  # the link that receives a gradient and passes on the mean


@dataclass
class Cycle:
    """The calls of a cycle of `accumulate`, from the first one on.

    Attributes:
        calls: Their number.
        squares: The squared norms of each leaf's gradients, added up.
    """

    calls: int = 0
    squares: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, step: Step) -> None:
        """Add the gradients of a call, if it has any."""
        self.calls += any(step.have_gradients)
        for member in step.members:
            gradient = member.param.grad
            if gradient is None:
                continue
            wide = torch.promote_types(gradient.dtype, torch.float32)
            gradient = gradient.detach().to(wide)
            if step.scaling is not None:
                inverse, _ = step.scaling.on(gradient.device)
                gradient = gradient * inverse
            square = LeafSums(member.param).square(gradient)
            sum_before = self.squares.get(member.name)
            self.squares[member.name] = (
                square if sum_before is None else sum_before + square
            )

    def note(
        self, rows: Mapping[tuple[Measured, str], Row], links: Mapping[str, Link]
    ) -> int:
        """Put the squares into the rows of `accumulate`, where it averages and comes first; return the cycle's calls.

        Not where a watch has seen a part of the cycle, or where another link changes gradients before: 1 then.
        """
        noted, begun = 1, set[Measured]()
        for (leaves, name), row in rows.items():
            is_first, link = leaves not in begun, links.get(name)
            begun.add(leaves)
            names = names_of(leaves)
            if not is_first or link is None or not self.squares.keys() >= set(names):
                continue
            if self._is_whole(name, link):
                noted = self.calls
                squares = [self.squares[leaf] for leaf in names]
                is_alone = isinstance(leaves, str)
                row["micro"] = squares[0] if is_alone else torch.stack(squares)
        return noted

    def _is_whole(self, name: str, link: Link) -> bool:
        """Whether a link passes on the mean of the gradients of all these calls."""
        averages = bool(link.arguments.get("use_grad_mean"))
        is_accumulate = f".{name}".endswith(f".{ENTER}") and averages
        return is_accumulate and link.value_of("every") == self.calls
