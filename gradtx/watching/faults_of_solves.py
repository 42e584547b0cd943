"""Faults of links that solve linear systems: trials that are rejected, dampings at a bound, CG that ends too early."""

from __future__ import annotations

from collections.abc import Iterator

from gradtx.curvature.trials import LEAST, MOST
from gradtx.watching.findings import Evidence, Finding

Records = list[tuple[int, dict[str, float]]]
RECENT, SHARE = 10, 0.8  # steps, and the share of them
# Of the right-hand side, below which an inexact step is as good as an exact one.
SMALL = 0.1


def has_trials(evidence: Evidence) -> bool:
    """Whether a link decides after each trial how long the next step is."""
    return any(
        "gain" in measured
        for sample in evidence.samples
        for measured in sample.solves.values()
    )


def trials_that_are_rejected(evidence: Evidence) -> Iterator[Finding]:
    """Most of the last trials did not decrease the loss as predicted."""
    for link, records in _by_link(evidence).items():
        recent = [record for record in records if "rejected" in record[1]][-RECENT:]
        rejected = [step for step, measured in recent if measured["rejected"]]
        if len(recent) < RECENT or len(rejected) < SHARE * RECENT:
            continue
        text = (
            f"{link} rejected {len(rejected)} of the last {len(recent)} measured trials"
        )
        remedy = (
            "check that residuals are finite and do not change between calls (dropout, new batches, noise); start "
            "with more damping or a smaller radius, or compute in float64"
        )
        figure = len(rejected) / len(recent)
        yield Finding(
            "trials rejected", 70, link, (), tuple(rejected), figure, text, remedy
        )


def dampings_at_a_bound(evidence: Evidence) -> Iterator[Finding]:
    """The damping has reached the largest or the smallest value that it may have."""
    for link, records in _by_link(evidence).items():
        step, measured = records[-1]
        damping = measured.get("damping")
        if damping is None or LEAST < damping < MOST:
            continue
        if damping == 0:  # before the first step
            continue
        text = f"the damping of {link} is at its bound, {damping:.0e}"
        remedy = (
            "no step decreases the loss: check that residuals are finite and depend smoothly on the parameters"
            if damping >= MOST
            else "the problem is solved, or nearly linear: use gauss_newton with a damping of your own"
        )
        yield Finding(
            "damping at its bound", 60, link, (), (step,), damping, text, remedy
        )


def products_that_end_too_early(evidence: Evidence) -> Iterator[Finding]:
    """The inner iteration used all its steps in most of the measured ones, and left a large residual."""
    for link, records in _by_link(evidence).items():
        ended = [
            (step, measured)
            for step, measured in records
            if measured.get("products", 0.0) >= measured.get("max_steps", float("inf"))
            and measured.get("relative_residual", 0.0) > SMALL
        ]
        if not ended or len(ended) < 0.5 * len(records):
            continue
        residual = ended[-1][1]["relative_residual"]
        text = (
            f"the inner iteration of {link} used all its steps in {len(ended)} of {len(records)} measured steps "
            f"(residual {residual:.1g})"
        )
        yield Finding(
            "inner iteration ends early",
            45,
            link,
            (),
            tuple(step for step, _ in ended),
            residual,
            text,
            "raise max_steps or damping",
        )


def _by_link(evidence: Evidence) -> dict[str, Records]:
    records: dict[str, Records] = {}
    for sample in evidence.samples:
        for link, measured in sample.solves.items():
            records.setdefault(link, []).append((sample.step, measured))
    return records
