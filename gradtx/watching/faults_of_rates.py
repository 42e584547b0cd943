"""Faults of the rate over a run: too small, too large, 0, unequal between groups."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradtx.watching.faults_of_links import decay_that_outweighs_the_step
from gradtx.watching.faults_of_schedules import SHORT, schedules_that_do_not_fit
from gradtx.watching.figures import STEP
from gradtx.watching.findings import (
    PULLS_BACK,
    Evidence,
    Finding,
    about,
    finite_median,
    largest_first,
    named,
    percent,
    quantile,
)


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
    if any(decay_that_outweighs_the_step(evidence)):  # and points anywhere
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
    # Steps of one length, as Lion's, may carry weights far away before they have become a small part of these.
    has_grown = first > 0.15 and evidence.growth_of_matrices() > 10
    if (first > 0.5 or has_grown) and not large:
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
    if any(evidence.links_named("outer")):  # a round may end where it is
        return
    ratios = [finite_median(ratios) for ratios in evidence.ratios_of_matrices()]
    # The mean: near the end, steps of a run that has converged are far smaller than the first.
    ratio = sum(ratios) / max(1, len(ratios))
    steps = evidence.whole_run
    total = ratio * steps
    if steps < SHORT or not 0 < total < 3e-3:
        return
    text = (
        f"a step changes matrices by {ratio:.1g} of the weights in the mean, and all {steps} steps together by at "
        f"most {percent(total)}"
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
