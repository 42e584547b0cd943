"""Faults of schedules and memories: those that do not fit the run, and betas in the wrong order."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradtx.base.exact import Schedule
from gradtx.watching.findings import (
    Evidence,
    Finding,
    about,
    called,
    curve,
    percent,
)
from gradtx.watching.links import Link

SHORT = 50  # steps: what a shorter run has not reached says little


def schedules_that_do_not_fit(evidence: Evidence) -> Iterator[Finding]:
    """Schedules that end before the run, or never leave their warm-up: of the chain, of torch, or written by a loop."""
    steps = evidence.whole_run
    if steps < SHORT:
        return
    for name, measured in evidence.rates().items():
        schedule = evidence.schedules.get(name)
        values = list(filter(math.isfinite, measured))
        if schedule is not None:
            values = curve(schedule, steps)
        highest = max(values, default=0.0)
        if highest <= 0:
            continue
        # Schedulers of steps and plateaus rest at small rates on purpose.
        ended = 1e-3 if schedule is not None else 1e-6
        yield from _schedule_that_ended(evidence, name, values, ended * highest)
        yield from _schedule_that_rose_again(evidence, name, values, highest)
        if schedule is None:
            yield from _written_warm_up(evidence, name, values)
        elif values[-1] >= 0.999 * highest and values[0] < 0.5 * highest:
            share = highest / _peak(schedule, steps, highest)
            yield from _warm_up_that_never_ends(evidence, name, share)


def _written_warm_up(
    evidence: Evidence, name: str, values: list[float]
) -> Iterator[Finding]:
    """A rate that a scheduler of torch, or a loop, raises from the first to the last step."""
    if len(values) > 1 and values[0] > values[1]:  # written after the first step
        values = values[1:]
    third = -(-len(values) // 3)
    rises = values == sorted(values) and len(values) >= 4
    is_rising = rises and len({*values[-third:]}) == third
    if not (is_rising and values[-1] > 2 * values[0]):
        return
    group = evidence.group_named(name)
    # torch's schedulers keep the rate that they were given, and OneCycleLR the largest of its own.
    peak = group.get("max_lr", group.get("initial_lr", math.nan))
    share = values[-1] / peak if isinstance(peak, float) else math.nan
    if not share >= 0.95:
        yield from _warm_up_that_never_ends(evidence, name, share)


def _warm_up_that_never_ends(
    evidence: Evidence, name: str, share: float
) -> Iterator[Finding]:
    if share >= 0.95:
        return
    text = f"the schedule of {name} still rose when the run ended"
    if math.isfinite(share):
        text += f", at {percent(share)} of its largest value"
    length = about(max(1, evidence.whole_run / 10))
    remedy = f"shorten the warm-up to a tenth of the run, about {length} steps"
    yield Finding(
        "never left warm-up", 66, name, (), evidence.steps, share, text, remedy
    )


def _peak(schedule: Schedule, steps: int, peak: float) -> float:
    """Return the largest value of a schedule that has risen so far, in at most a million times as many steps."""
    last = 0.0
    for _ in range(20):
        if peak == last:
            break
        steps *= 2
        try:
            peak, last = max(peak, *curve(schedule, steps)), peak
        except Exception:  # a user's function may end with the run
            break
    return peak


def _schedule_that_ended(
    evidence: Evidence, name: str, values: list[float], ended: float
) -> Iterator[Finding]:
    """A rate that stays at one value, less than some small value."""
    tail = 0
    while (
        tail < len(values)
        and values[-1 - tail] < ended
        and values[-1 - tail] == values[-1]
    ):
        tail += 1
    share = tail / len(values)
    if share < 0.1:
        return
    text = f"the schedule of {name} had ended for the last {percent(share)} of the run, at {values[-1]:.1g}"
    remedy = f"let it last {evidence.whole_run} steps"
    yield Finding("schedule ended", 81, name, (), evidence.steps, share, text, remedy)


def _schedule_that_rose_again(
    evidence: Evidence, name: str, values: list[float], highest: float
) -> Iterator[Finding]:
    """A rate that fell to about 0 and rose again, as that of a cosine after its T_max.

    Restarts rise at once, and cycles start at their smallest rate.
    """
    # torch's CosineAnnealingLR returns to its largest rate but for rounding.
    top = next(i for i, value in enumerate(values) if value > 0.999 * highest)
    lowest = min(range(top, len(values)), key=values.__getitem__)
    after = values[lowest + 1 :]
    around = values[max(lowest - 1, 0) : lowest + 2]
    is_valley = values[lowest] < 1e-2 * highest and max(around) < 0.1 * highest
    rises = max(after, default=0.0) > 0.1 * highest
    if not (is_valley and rises) or values[0] < 0.1 * highest:
        return
    share = len(after) / len(values)
    step = round((1 - share) * evidence.whole_run)
    text = (
        f"the schedule of {name} had fallen to {values[lowest]:.1g} at about step {step}, and rose again for the last "
        f"{percent(share)} of the run"
    )
    remedy = f"let it fall over {evidence.whole_run} steps"
    yield Finding("schedule ended", 81, name, (), evidence.steps, share, text, remedy)


def memories_longer_than_the_run(evidence: Evidence) -> Iterator[Finding]:
    """Averages whose memory is several times the run, and warm-ups much shorter than that of the second moment."""
    steps = evidence.whole_run
    if steps < SHORT:
        return
    for path, link in evidence.links.items():
        for name, value in link.values().items():
            is_average = name.partition("[")[0] in (
                "betas",
                "beta",
                "beta1",
                "beta2",
                "decay",
                "momentum",
                "beta3",
            )
            if not is_average or not 0 < value < 1:
                continue
            memory = 1 / (1 - value)
            is_long = memory > 20 * steps  # bias corrections make up for less
            if is_long and not link.is_default(name):
                text = (
                    f"{name}={value:g} of {called(path, link)} averages {memory:.3g} steps, and the run has "
                    f"{steps}"
                )
                remedy = f"use about {1 - 5 / steps:.3g}"
                yield Finding(
                    "memory longer than the run",
                    40,
                    path,
                    (),
                    evidence.steps,
                    memory,
                    text,
                    remedy,
                )
            elif name == "betas[1]":
                yield from _warm_up_too_short(evidence, path, memory)


def betas_in_the_wrong_order(evidence: Evidence) -> Iterator[Finding]:
    """Two averages of which the first is far longer than the second, though the rule has it the other way."""
    visited: list[
        Link
    ] = []  # a rule that waits for other leaves has a row on both sides
    for path, link in evidence.links.items():
        if link in visited:
            continue
        visited.append(link)
        pair, usual = link.pair_of("betas"), link.pair_of("betas", of_default=True)
        if pair is None or usual is None or usual[0] > usual[1]:
            continue
        first, second = (1 / (1 - beta) if beta < 1 else math.inf for beta in pair)
        if first < 5 * second:
            continue
        text = (
            f"betas=({pair[0]:g}, {pair[1]:g}) of {called(path, link)} averages the gradient over {first:.3g} steps, "
            f"and its squares over {second:.3g}: old gradients are divided by the size of the last ones, and the loss "
            "rises again once gradients shrink"
        )
        remedy = f"write the shorter memory first: betas=({pair[1]:g}, {pair[0]:g})"
        yield Finding(
            "betas in the wrong order",
            82,
            path,
            (),
            evidence.steps,
            first / second,
            text,
            remedy,
        )


def _warm_up_too_short(
    evidence: Evidence, path: str, memory: float
) -> Iterator[Finding]:
    for name, schedule in evidence.schedules.items():
        length = warm_up_of(schedule, evidence.whole_run)
        if (
            name.rpartition(".")[2] != "lr"
            or not 0 < length < memory / 50
            or evidence.whole_run < memory / 2
        ):
            continue
        text = (
            f"the schedule of {name} warms up in {length} steps, and the second moment of {path} averages "
            f"{memory:.3g}: the rate is at its full size while the second moment is that of a few batches"
        )
        remedy = (
            f"warm up for about {about(memory / 5)} steps or more, or lower betas[1]"
        )
        yield Finding(
            "warm-up too short",
            30,
            path,
            (),
            evidence.steps,
            float(length),
            text,
            remedy,
        )


def warm_up_of(schedule: Schedule, steps: int) -> int:
    """Return the number of steps in which a schedule rises from its start; 0 if it does not begin with a rise."""
    values = curve(schedule, min(steps, 1000), most=1000)
    length = 0
    while length + 1 < len(values) and values[length + 1] > values[length]:
        length += 1
    return length
