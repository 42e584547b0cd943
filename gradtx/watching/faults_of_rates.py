"""Faults of the rate over a run: too small, too large, 0, unequal; schedules and memories that do not fit the run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradtx.base.exact import Schedule
from gradtx.watching.figures import STEP
from gradtx.watching.findings import (
    Evidence,
    Finding,
    about,
    called,
    curve,
    finite_median,
    largest_first,
    named,
    percent,
    quantile,
)

SHORT = 50  # steps: what a shorter run has not reached says little
# Links that pull weights back at every k-th step, against the steps before.
PULLS_BACK = ("lookahead", "outer")


def updates_that_are_not_finite(evidence: Evidence) -> Iterator[Finding]:
    """The first link whose result is not finite, or a gradient that is not."""
    for sample in evidence.samples:
        bad = {
            leaf
            for (leaf, link), norm in zip(
                sample.rows, sample.figures["norm_before"], strict=True
            )
            if link == STEP and not math.isfinite(norm)
        }
        for link, row in sample.of_links.items():
            if math.isfinite(row["norm_after"]) and math.isfinite(row["norm_before"]):
                continue
            is_input = not math.isfinite(row["norm_before"])
            what = "the gradient" if is_input else f"the update after {link}"
            text = f"{what} is not finite at step {sample.step}"
            remedy = (
                'gradtx.eagerly(nan="raise") names the line; skip_nonfinite(tx) goes on with the next batch, and a '
                "lower rate or a clip may prevent it"
            )
            yield Finding(
                "not finite",
                100,
                "" if is_input else link,
                tuple(sorted(bad)),
                (sample.step,),
                math.nan,
                text,
                remedy,
            )
            return


def rate_too_small_for_the_dtype(evidence: Evidence) -> Iterator[Finding]:
    """Steps that rounding of the weights loses."""
    share = evidence.median(STEP, "lost")
    if not share > 0.5 or any(link.tx._rounds for link in evidence.links.values()):
        return
    if any(rate_too_large(evidence)):  # weights have grown until no step changes them
        return
    lost = evidence.leaf_medians("lost")
    leaves = largest_first({leaf: lost[leaf] for leaf in lost if lost[leaf] > 0.5})
    params = evidence.params
    dtypes = sorted({str(params[leaf].dtype) for leaf in leaves if leaf in params})
    text = (
        f"{percent(share)} of the moving entries keep their weight, because the step is below the resolution of "
        f"{' and '.join(dtypes) or 'the weights'} ({named(leaves)})"
    )
    remedy = (
        "raise the rate, round at random (stochastic_rounding), keep the lost part (kahan summation), or train float32 "
        "weights under autocast"
    )
    yield Finding(
        "steps lost in rounding", 75, "", leaves, evidence.steps, share, text, remedy
    )


def steps_uphill(evidence: Evidence) -> Iterator[Finding]:
    """Steps along the gradient, which raise the loss: a sign is missing, or there twice."""
    if any(evidence.links_named(*PULLS_BACK)):
        return
    measured = [row["cos_grad"] for row in evidence.of_link(STEP)]
    cosines = list(filter(math.isfinite, measured))
    share = sum(cosine > 0 for cosine in cosines) / max(1, len(cosines))
    cosine = finite_median(cosines)
    # Momentum may overshoot for a few steps.
    if not (len(cosines) >= 5 and cosine > 0.1 and share > 0.9):
        return
    text = (
        f"{percent(share)} of the steps go along the gradient, with a cosine of {cosine:.2f} in the median: they raise "
        "the loss"
    )
    link, remedy = _wrong_sign(evidence)
    yield Finding(
        "uphill",
        92,
        link,
        (),
        evidence.steps,
        cosine,
        text,
        f"{remedy}; if this is meant, pass maximize=True",
    )


def _wrong_sign(evidence: Evidence) -> tuple[str, str]:
    """Return the link to which the wrong sign is due, if one is, and the remedy."""
    factors = {
        path: link.value_of("factor") for path, link in evidence.links_named("scale")
    }
    flips = [
        path
        for path, link in evidence.links.items()
        if link.tx._sign == "flips" or factors.get(path, 1.0) < 0
    ]
    if len(flips) == 2:
        return flips[1], f"{flips[0]} and {flips[1]} both flip the sign: remove one"
    rates = [path for path, factor in factors.items() if 0 < factor != 1]
    if not flips and rates:
        rate = f"{factors[rates[-1]]:g}"
        return rates[-1], (
            f"replace scale({rate}) by scale_by_learning_rate({rate}), which flips the sign"
        )
    return "", "end the chain with scale_by_learning_rate(lr), which flips the sign"


def rate_too_large(evidence: Evidence) -> Iterator[Finding]:
    """Steps of a tenth of the weights, and steps that undo each other."""
    if any(evidence.links_named("outer")):  # its steps cover those since the last round
        return
    ratios = {
        leaf: ratio
        for leaf, ratio in evidence.leaf_medians("update_to_weight").items()
        if evidence.is_matrix(leaf)
    }
    large = largest_first({leaf: ratios[leaf] for leaf in ratios if ratios[leaf] > 0.1})
    # Weights that have grown hide how large the first steps were; those that start at 0 double in their first.
    first = max(
        (quantile(rows, 0.4) for rows in evidence.ratios_of_matrices()), default=0.0
    )
    # An adapter has matrices that start at 0, whose steps only all leaves together show; half of their norm is healthy.
    of_all = [row["update_to_weight"] for row in evidence.of_link(STEP)[:1]]
    first = max(first, *(ratio for ratio in of_all if ratio > 1), 0.0)
    if first > 0.5 and not large:
        text = (
            f"a step changed the weights by {percent(first)}, and they have grown since"
        )
        remedy = f"divide the rate by about {about(round(100 * first))}, so that a step changes weights by 1%"
        yield Finding("rate too large", 78, "", (), evidence.steps, first, text, remedy)
    if 2 * len(large) >= len(ratios) > 0 and large:
        ratio = finite_median(ratios[leaf] for leaf in large)
        text = f"a step changes {named(large)} by {percent(ratio)} of the weights in the median"
        factor = max(2, round(100 * ratio))
        remedy = f"divide the rate by about {about(factor)}, so that a step changes weights by 1%"
        yield Finding(
            "rate too large", 78, "", large, evidence.steps, ratio, text, remedy
        )
    cosine = evidence.median(STEP, "cos_last")
    if cosine < -0.7 and not any(evidence.links_named(*PULLS_BACK)):
        text = (
            f"each step undoes most of the one before: their cosine is {cosine:.2f} in the median, so the weights "
            "oscillate"
        )
        remedy = (
            "halve the rate, or warm it up; gradtx.sharpness says which rate is stable"
        )
        yield Finding("oscillation", 77, "", (), evidence.steps, cosine, text, remedy)


def rate_too_small(evidence: Evidence) -> Iterator[Finding]:
    """Steps so small that all steps of the run together hardly change the weights."""
    ratios = [finite_median(ratios) for ratios in evidence.ratios_of_matrices()]
    # The mean: near the end, steps of a run that has converged are far smaller than the first.
    ratio = sum(ratios) / max(1, len(ratios))
    total = ratio * evidence.run
    if evidence.run < SHORT or not 0 < total < 3e-3:
        return
    text = (
        f"a step changes matrices by {ratio:.1g} of the weights in the mean, and all {evidence.run} steps together by "
        f"at most {percent(total)}"
    )
    remedy = "raise the rate; gradtx.range_test finds the largest stable one"
    yield Finding("rate too small", 60, "", (), evidence.steps, ratio, text, remedy)


def rate_zero(evidence: Evidence) -> Iterator[Finding]:
    """Links that made the update zero in part of the run, though they received one."""
    is_of_schedule = any(schedules_that_do_not_fit(evidence))  # which says more
    for path in evidence.links:
        rows = [
            (sample.step, sample.of_links[path])
            for sample in evidence.samples
            if path in sample.of_links
        ][1:]  # a warm-up may start at 0
        zero = [
            step
            for step, row in rows
            if row["norm_before"] > 0 and row["norm_after"] == 0
        ]
        # At the end of many schedules, the last step has the rate 0.
        is_end_of_schedule = len(rows) > 1 and zero == [rows[-1][0]]
        if not zero or len(zero) < 0.1 * len(rows) or is_end_of_schedule:
            continue
        share = len(zero) / len(rows)
        text = f"{path} made the update 0 in {percent(share)} of the measured steps, from step {zero[0]} on"
        is_at_end = zero == [step for step, _ in rows[-len(zero) :]]
        kind, remedy = "rate zero", "set a rate above 0"
        if is_at_end and len(zero) < len(rows):
            kind, remedy = "schedule ended", "let the schedule last as long as the run"
        if not (kind == "schedule ended" and is_of_schedule):
            yield Finding(kind, 80, path, (), tuple(zero), share, text, remedy)


def rates_unequal(evidence: Evidence) -> Iterator[Finding]:
    """Groups whose steps differ by orders of magnitude, relative to their weights."""
    of_group: dict[int, list[float]] = {}
    leaves_of: dict[int, list[str]] = {}
    for leaf, ratio in evidence.leaf_medians("update_to_weight").items():
        group = evidence.group_of(leaf)
        if group is not None and evidence.is_matrix(leaf) and ratio > 0:
            of_group.setdefault(group, []).append(ratio)
            leaves_of.setdefault(group, []).append(leaf)
    medians = {group: finite_median(ratios) for group, ratios in of_group.items()}
    if len(medians) < 2:
        return
    low, high = (
        min(medians, key=medians.__getitem__),
        max(medians, key=medians.__getitem__),
    )
    ratio = medians[high] / medians[low]
    if ratio < 300:
        return
    text = (
        f"a step changes the weights of group {high} ({named(leaves_of[high])}) by {medians[high]:.1g} and those of "
        f"group {low} ({named(leaves_of[low])}) by {medians[low]:.1g}, {ratio:.1g} times less"
    )
    remedy = f"raise the rate of group {low}, or lower that of group {high}"
    yield Finding(
        "groups unequal",
        62,
        "",
        tuple(leaves_of[low]),
        evidence.steps,
        ratio,
        text,
        remedy,
    )


def schedules_that_do_not_fit(evidence: Evidence) -> Iterator[Finding]:
    """Schedules that end before the run, never leave their warm-up, or warm up in too few steps."""
    for name, schedule in evidence.schedules.items():
        if name.rpartition(".")[2] != "lr" or evidence.run < SHORT:
            continue
        values = curve(schedule, evidence.run)
        highest = max(values)
        if highest <= 0:
            continue
        yield from _schedule_that_ended(evidence, name, values, highest)
        yield from _schedule_that_rose_again(evidence, name, values, highest)
        if not (values[-1] >= 0.999 * highest and values[0] < 0.5 * highest):
            continue
        share = highest / _peak(schedule, evidence.run, highest)
        if share < 0.95:
            text = f"the schedule of {name} still rose when the run ended, at {percent(share)} of its largest value"
            remedy = f"shorten the warm-up to a tenth of the run, about {max(1, evidence.run // 10)} steps"
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
    evidence: Evidence, name: str, values: list[float], highest: float
) -> Iterator[Finding]:
    tail = 0
    while (
        tail < len(values)
        and values[-1 - tail] < 1e-3 * highest
        and values[-1 - tail] == values[-1]
    ):
        tail += 1
    share = tail / len(values)
    if share < 0.1:
        return
    text = f"the schedule of {name} had ended for the last {percent(share)} of the run, at {values[-1]:.1g}"
    remedy = f"let it last {evidence.run} steps"
    yield Finding("schedule ended", 81, name, (), evidence.steps, share, text, remedy)


def _schedule_that_rose_again(
    evidence: Evidence, name: str, values: list[float], highest: float
) -> Iterator[Finding]:
    """A rate that fell to about 0 and rose again, as that of a cosine after its T_max.

    Restarts rise at once, and cycles start at their smallest rate.
    """
    top = values.index(highest)
    lowest = min(range(top, len(values)), key=values.__getitem__)
    after = values[lowest + 1 :]
    around = values[max(lowest - 1, 0) : lowest + 2]
    is_valley = values[lowest] < 1e-2 * highest and max(around) < 0.1 * highest
    rises = max(after, default=0.0) > 0.1 * highest
    if not (is_valley and rises) or values[0] < 0.1 * highest:
        return
    share = len(after) / len(values)
    step = round((1 - share) * evidence.run)
    text = (
        f"the schedule of {name} had fallen to {values[lowest]:.1g} at about step {step}, and rose again for the last "
        f"{percent(share)} of the run"
    )
    remedy = f"let it fall over {evidence.run} steps"
    yield Finding("schedule ended", 81, name, (), evidence.steps, share, text, remedy)


def memories_longer_than_the_run(evidence: Evidence) -> Iterator[Finding]:
    """Averages whose memory is several times the run, and warm-ups much shorter than that of the second moment."""
    if evidence.run < SHORT:
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
            if memory > 20 * evidence.run:  # bias corrections make up for less
                text = (
                    f"{name}={value:g} of {called(path, link)} averages {memory:.3g} steps, and the run has "
                    f"{evidence.run}"
                )
                remedy = f"use about {1 - 5 / evidence.run:.3g}"
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


def _warm_up_too_short(
    evidence: Evidence, path: str, memory: float
) -> Iterator[Finding]:
    for name, schedule in evidence.schedules.items():
        length = warm_up_of(schedule, evidence.run)
        if (
            name.rpartition(".")[2] != "lr"
            or not 0 < length < memory / 50
            or evidence.run < memory / 2
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
