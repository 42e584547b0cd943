"""Faults that the loss shows: it has risen many-fold, or starts far above that of guessing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradtx.watching.findings import Evidence, Finding, finite_median

FEWEST = 8  # measured losses, of which the last few tell whether the loss has risen
MANY_FOLD = 10.0


def loss_that_has_risen(evidence: Evidence) -> Iterator[Finding]:
    """A loss that ends many times above its lowest value, and about where it began, or far above that."""
    losses = evidence.losses
    if len(losses) < FEWEST or min(losses) <= 0:
        return
    # Medians over a few steps: a loss that approaches 0 goes up and down by large factors.
    width = max(3, len(losses) // 8)
    smooth = [
        finite_median(losses[i : i + width]) for i in range(len(losses) - width + 1)
    ]
    lowest, last = min(smooth), smooth[-1]
    is_above = last > MANY_FOLD * losses[0]
    has_returned = last > MANY_FOLD * lowest and last > 0.3 * losses[0]
    if not (is_above or has_returned):
        return
    start = min(lowest, losses[0])
    text = f"the loss has risen from {start:.2g} to {last:.2g}, {last / start:.1g} times as much"
    remedy = (
        "lower the rate from there on, by a schedule or for the whole run, clip gradients, and see whether the data "
        "changes at that step; gradtx.range_test finds the largest stable rate"
    )
    yield Finding(
        "loss has risen", 76, "", (), evidence.steps, last / start, text, remedy
    )


def loss_that_starts_high(evidence: Evidence) -> Iterator[Finding]:
    """A cross-entropy that is many times that of guessing: initial outputs are far too large."""
    if not evidence.losses or evidence.classes is None or evidence.classes < 2:
        return
    first, of_guessing = evidence.losses[0], math.log(evidence.classes)
    if first < MANY_FOLD * of_guessing:
        return
    text = (
        f"the cross-entropy starts at {first:.3g}, and that of guessing among {evidence.classes} classes is "
        f"{of_guessing:.2g}: the model is certain of wrong answers before it has learned any"
    )
    remedy = "scale inputs to a mean of 0 and a deviation of 1, and start the last layer with smaller weights"
    yield Finding(
        "loss starts high",
        82,
        "",
        (),
        evidence.steps[:1],
        first / of_guessing,
        text,
        remedy,
    )
