"""Faults of leaves and calls: no gradient, no step, the wrong rule, averages that no evaluation uses."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

import torch
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import local
from gradtx.watching.faults_of_links import DECAYS
from gradtx.watching.figures import STEP
from gradtx.watching.findings import (
    PULLS_BACK,
    Evidence,
    Finding,
    called,
    finite_median,
    named,
    percent,
)
from gradtx.watching.kept_gradients import cosine_of
from gradtx.watching.sample import ALL

# Names of weights that read or write tokens, whose rows are not directions of a matrix.
TABLES = re.compile(
    r"(^|[._])(emb|embed|embedding|embeddings|wte|wpe|tok|token|pos|lm_head|head|classifier)s?([._]|$)"
)
NOT_MATRICES = ("embedding", "head", "norm", "bias", "scalar")
# How likely a run of gradients of 0 may be by chance at most.
DEAD_BY_CHANCE = 1e-2
# Links that make a matrix orthogonal, or the like.
ORTHOGONAL = ("orthogonalize", "scale_by_polar", "orthogonalize_exactly")


def leaves_without_a_gradient(evidence: Evidence) -> Iterator[Finding]:
    """Leaves that require a gradient and never had one, also between the measured steps."""
    missing = set.intersection(
        *(set(sample.without_gradient) for sample in evidence.samples)
    )
    leaves = tuple(
        name
        for name, param in evidence.params.items()
        if param.requires_grad
        and name in missing
        and not evidence.with_gradient.of(name)
    )
    if not leaves:
        return
    share = len(leaves) / len(evidence.params)
    text = f"{len(leaves)} of {len(evidence.params)} leaves had no gradient in any step ({named(leaves)})"
    remedy = "use them in the forward pass, look for detach() and no_grad(), or give them to no optimizer"
    if len(leaves) == len(evidence.params):
        remedy = "call loss.backward() before step(), and pass the parameters of the model that computes the loss"
    yield Finding("no gradient", 85, "", leaves, evidence.steps, share, text, remedy)


def dead_leaves(evidence: Evidence) -> Iterator[Finding]:
    """Leaves whose gradient is 0 in all steps, or in all steps from one on."""
    rows_of = evidence.leaf_rows.get(STEP, {})
    since = {leaf: _dead_since(evidence, leaf) for leaf in rows_of}
    never = tuple(leaf for leaf, number in since.items() if number == 0)
    if never:
        share = len(never) / len(rows_of)
        text = f"the gradients of {len(never)} leaves were 0 in every measured step ({named(never)})"
        remedy = "look for a product with 0, a unit that is never active, or a loss that does not depend on them"
        yield Finding("dead leaves", 84, "", never, evidence.steps, share, text, remedy)
    died = tuple(leaf for leaf, number in since.items() if number)
    if not died or _has_converged(evidence, len(died) / len(rows_of)):
        return
    first = min(since[leaf] or 0 for leaf in died)
    steps = evidence.steps[first:]
    share = len(died) / len(rows_of)
    text = (
        f"the gradients of {len(died)} leaves were 0 in every measured step from step {steps[0]} on ({named(died)}): "
        "no unit that they reach is active"
    )
    remedy = "lower the rate or warm it up, clip gradients, or use units that stay active, such as GELU or leaky ReLU"
    yield Finding("dead leaves", 84, "", died, steps, share, text, remedy)


def _dead_since(evidence: Evidence, leaf: str) -> int | None:
    """Return the index of the sample from which on the gradient of a leaf is 0; None if it is not.

    Experts have gradients of 0 whenever nothing is sent to them. A leaf has died if it was so for longer than chance
    explains, with the share of such steps before.
    """
    rows = evidence.leaf_rows[STEP][leaf]
    is_active = [
        row["norm_before"] != 0 or leaf in evidence.samples[number].active_before
        for number, row in rows.items()
    ]
    if not any(is_active):
        return None if _remembers(evidence, leaf) else 0
    tail = is_active[::-1].index(True)
    before = is_active[: len(is_active) - tail]
    idle_before = (before.count(False) + 1) / (len(before) + 2)
    if tail < 4 or tail < 0.3 * len(is_active) or idle_before**tail > DEAD_BY_CHANCE:
        return None
    return list(rows)[len(before)]


def _remembers(evidence: Evidence, leaf: str) -> bool:
    """Whether a link moves a leaf whose gradient is 0, as an average does of gradients between the measured steps."""
    return any(
        row["norm_before"] == 0 and row["norm_after"] > 0
        for path, link in evidence.links.items()
        if link.name not in DECAYS
        for row in evidence.leaf_rows[path].get(leaf, {}).values()
    )


def _has_converged(evidence: Evidence, share: float) -> bool:
    """Whether all leaves rest because the loss has fallen to a small part of what it was, or may have."""
    losses = evidence.losses
    return share == 1 and not (losses and abs(losses[-1]) > 0.1 * abs(losses[0]))


def gradients_that_add_up(evidence: Evidence) -> Iterator[Finding]:
    """Gradients that nothing resets, so that each is the sum of those since the start."""
    cosines = [cosine_of(sample.kept) for sample in evidence.samples[1:]]
    kept = list(filter(math.isfinite, cosines))
    cosine = finite_median(kept)
    # Other code may write each gradient into one tensor; such gradients differ from step to step.
    if not (len(kept) >= 0.9 * len(cosines) and cosine > 0.7):
        return
    text = (
        f"in {percent(len(kept) / len(cosines))} of the measured steps, gradients were added to those of the step "
        f"before, with which they have a cosine of {cosine:.2f}: nothing has reset them"
    )
    remedy = "call optimizer.zero_grad() in each step, before backward"
    yield Finding(
        "gradients add up", 93, "", (), evidence.steps[1:], cosine, text, remedy
    )


def leaves_that_never_move(evidence: Evidence) -> Iterator[Finding]:
    """Leaves with a gradient and without a step, such as those that freeze covers."""
    if any(evidence.links_named("outer")):  # a round may end where it is
        return
    covered = {leaf for sample in evidence.samples for leaf, _ in sample.rows}
    missing = set().union(*(sample.without_gradient for sample in evidence.samples))
    # A frozen leaf passes no link.
    stuck = tuple(
        leaf
        for leaf, param in evidence.params.items()
        if param.requires_grad and leaf not in covered | missing
    )
    if ALL in covered:
        stuck = ()
    stuck += tuple(
        leaf
        for leaf, rows in evidence.leaf_rows.get(STEP, {}).items()
        if all(row["norm_after"] == 0 for row in rows.values())
        and any(row["norm_before"] > 0 for row in rows.values())
    )
    moving = [leaf for leaf in evidence.leaf_rows.get(STEP, {}) if leaf not in stuck]
    if stuck and moving:
        share = len(stuck) / (len(stuck) + len(moving))
        text = f"{len(stuck)} leaves had a gradient and never moved ({named(stuck)})"
        remedy = "if that is not intended, look at freeze and masked, and at rates of 0"
        yield Finding("never moved", 79, "", stuck, evidence.steps, share, text, remedy)


def leaves_that_require_no_gradient(evidence: Evidence) -> Iterator[Finding]:
    """A few leaves that require no gradient; adapters and new heads freeze most of a model on purpose."""
    params = evidence.params
    frozen = tuple(name for name, param in params.items() if not param.requires_grad)
    entries = sum(params[leaf].numel() for leaf in frozen)
    is_few = 2 * entries < evidence.entries_of(ALL)
    if not frozen or not is_few or 2 * len(frozen) >= len(params):
        return
    share = len(frozen) / len(params)
    text = (
        f"{len(frozen)} of {len(params)} leaves require no gradient ({named(frozen)})"
    )
    remedy = "if that is not intended, call requires_grad_(True); else leave them out of the optimizer"
    yield Finding("frozen", 10, "", frozen, evidence.steps, share, text, remedy)


def leaves_with_the_same_memory(evidence: Evidence) -> Iterator[Finding]:
    """Parameters over the same memory, as of weights that were to be tied; both their steps move it."""
    leaves_at: dict[tuple[torch.device, int], list[str]] = {}
    for leaf, param in evidence.params.items():
        values = local(param.detach())
        address = 0 if is_lazy(param) or values.numel() == 0 else values.data_ptr()
        if address:  # 0 without memory, as on the device "meta"
            leaves_at.setdefault((values.device, address), []).append(leaf)
    shared = [leaves for leaves in leaves_at.values() if len(leaves) > 1]
    if not shared:
        return
    leaves = tuple(itertools.chain.from_iterable(shared))
    text = f"{named(shared[0])} are different parameters over the same memory, which moves by the steps of all of them"
    remedy = "tie weights by one parameter, as head.weight = embedding.weight does, not by nn.Parameter(...) or .data"
    share = len(leaves) / len(evidence.params)
    yield Finding("leaves twice", 83, "", leaves, evidence.steps, share, text, remedy)


def matrices_with_the_wrong_rule(evidence: Evidence) -> Iterator[Finding]:
    """Embeddings and heads that are orthogonalized, and matrices that are not although others are."""
    orthogonal: dict[str, str] = {}
    for path, link in evidence.links.items():
        if link.name in ORTHOGONAL:
            orthogonal.update(dict.fromkeys(evidence.leaf_rows[path], path))
    if not orthogonal:
        return
    tables = tuple(leaf for leaf in orthogonal if _is_table(evidence, leaf))
    if tables:
        path = orthogonal[tables[0]]
        share = len(tables) / len(orthogonal)
        text = f"{path} makes {named(tables)} orthogonal, whose rows are tokens or classes, not directions"
        remedy = "send embeddings and heads to AdamW, as muon_for(model) does"
        yield Finding(
            "embedding with Muon", 58, path, tables, evidence.steps, share, text, remedy
        )
    others = tuple(
        leaf
        for leaf in evidence.leaf_rows.get(STEP, {})
        if leaf not in orthogonal and _is_hidden_matrix(evidence, leaf)
    )
    if others:
        are = "is a matrix" if len(others) == 1 else "are matrices"
        text = f"{named(others)} {are} and not with Muon, as others are"
        remedy = "send all matrices but embeddings and heads to Muon, as muon_for(model) does"
        yield Finding(
            "matrix without Muon",
            57,
            "",
            others,
            evidence.steps,
            len(others),
            text,
            remedy,
        )


def _is_table(evidence: Evidence, leaf: str) -> bool:
    role = evidence.role_of(leaf)
    return TABLES.search(leaf) is not None if role is None else role in NOT_MATRICES


def _is_hidden_matrix(evidence: Evidence, leaf: str) -> bool:
    role = evidence.role_of(leaf)
    if role is not None:
        return role == "matrix"
    param = evidence.params.get(leaf)
    return param is not None and param.ndim == 2 and TABLES.search(leaf) is None


def averages_without_an_evaluation(evidence: Evidence) -> Iterator[Finding]:
    """Averages of weights (EMA, schedule-free) that no evaluation of the run has used."""
    if evidence.evaluations or evidence.updates < 100:
        return
    for path, link in evidence.links.items():
        if "averages" not in link.tx._effects or link.name in PULLS_BACK:
            continue
        text = f"{called(path, link)} keeps weights for evaluation, which nothing asked for in {evidence.updates} steps"
        remedy = "evaluate inside `with optimizer.eval_params():`, or between optimizer.eval() and optimizer.train()"
        yield Finding(
            "averages not evaluated", 45, path, (), evidence.steps, 0.0, text, remedy
        )
        return


def calls_without_an_update(evidence: Evidence) -> Iterator[Finding]:
    """Steps that a GradScaler skips, and accumulation that never completes."""
    expected = max(evidence.calls, evidence.rounds)
    skipped = expected - evidence.updates
    if evidence.updates and expected >= 10 and skipped > 0.1 * expected:
        share = skipped / expected
        text = f"{percent(share)} of {expected} steps were skipped, as a GradScaler does if a gradient is not finite"
        remedy = (
            "train in bfloat16, lower the rate, or look for an overflow in the loss"
        )
        yield Finding("scaler skips", 90, "", (), evidence.steps, share, text, remedy)
    if not evidence.samples and evidence.uncounted:
        text = f"no weights moved in {evidence.calls} calls of step: they all collected gradients"
        remedy = "call step at least `every` times, or lower accumulate(every=...)"
        yield Finding(
            "accumulation never completes",
            95,
            "accumulate",
            (),
            (),
            float(evidence.calls),
            text,
            remedy,
        )
