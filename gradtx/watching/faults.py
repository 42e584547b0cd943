"""All faults that are looked for, and the findings of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from gradtx.watching import (
    faults_of_leaves,
    faults_of_links,
    faults_of_losses,
    faults_of_rates,
    faults_of_schedules,
    faults_of_solves,
)
from gradtx.watching.findings import Evidence, Finding, Findings

# What needs a measured step.
FAULTS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    faults_of_rates.updates_that_are_not_finite,
    faults_of_rates.steps_uphill,
    faults_of_rates.rate_too_small_for_the_dtype,
    faults_of_rates.rate_too_large,
    faults_of_rates.rate_too_small,
    faults_of_rates.rate_zero,
    faults_of_rates.rates_unequal,
    faults_of_schedules.schedules_that_do_not_fit,
    faults_of_schedules.memories_longer_than_the_run,
    faults_of_schedules.betas_in_the_wrong_order,
    faults_of_losses.loss_that_has_risen,
    faults_of_losses.loss_that_starts_high,
    faults_of_links.bounds_that_always_or_never_act,
    faults_of_links.clips_behind_the_rule,
    faults_of_links.decay_that_outweighs_the_step,
    faults_of_links.decay_of_norms_and_biases,
    faults_of_links.eps_that_decides,
    faults_of_links.codes_that_saturate,
    faults_of_solves.trials_that_are_rejected,
    faults_of_solves.dampings_at_a_bound,
    faults_of_solves.products_that_end_too_early,
    faults_of_leaves.gradients_that_add_up,
    faults_of_leaves.leaves_without_a_gradient,
    faults_of_leaves.dead_leaves,
    faults_of_leaves.leaves_that_never_move,
    faults_of_leaves.leaves_that_require_no_gradient,
    faults_of_leaves.leaves_with_the_same_memory,
    faults_of_leaves.matrices_with_the_wrong_rule,
    faults_of_leaves.averages_without_an_evaluation,
)

# What no rate of the user decides: a trial that is rejected is a step of 0, and the first ones may be long.
OF_RATES = (
    faults_of_rates.rate_too_large,
    faults_of_rates.rate_too_small,
    faults_of_rates.rate_zero,
    faults_of_rates.rates_unequal,
)

# Kinds that may merely follow a worse fault, and are found again once that is mended.
FOLLOW = ("decay of norms and biases",)
A_CAUSE = 55.0  # the least severity of such a fault


def findings_of(seen: Any, model: nn.Module | None = None) -> Findings:
    """Return the findings of a run; see `Seen.diagnose`."""
    evidence = Evidence(seen, model)
    findings = list(faults_of_leaves.calls_without_an_update(evidence))
    if not (seen.samples or findings):
        seen._check_measured("diagnose")
    if seen.samples:
        has_trials = faults_of_solves.has_trials(evidence)
        for fault in FAULTS:
            if not (has_trials and fault in OF_RATES):
                findings += fault(evidence)
    if any(finding.severity >= A_CAUSE for finding in findings):
        findings = [finding for finding in findings if finding.kind not in FOLLOW]
    return Findings(findings, len(seen.samples))
