"""How often each leaf had a gradient, also in the steps between those that are measured."""

from __future__ import annotations

import itertools
from collections import Counter

from gradtx.optim.step import Step


class CallsWithGradient:
    """Counts the calls of `step` in which each leaf had a gradient. No tensor is read."""

    def __init__(self) -> None:
        self._complete = 0  # calls in which all leaves had one
        self._others: Counter[str] = Counter()

    def note(self, step: Step) -> None:
        """Count a call."""
        have_gradients = step.have_gradients
        if all(have_gradients):
            self._complete += 1
            return
        members = itertools.compress(step.core.members.every, have_gradients)
        self._others.update(member.name for member in members)

    def of(self, leaf: str) -> int:
        """Return the number of calls in which a leaf had a gradient."""
        return self._complete + self._others[leaf]
