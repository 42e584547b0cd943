"""Faults of leaves and calls: no gradient, no step, the wrong rule, averages that no evaluation uses."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

import torch
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import local
from gradtx.watching.figures import STEP
from gradtx.watching.findings import (
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
# Links that make a matrix orthogonal, or the like.
ORTHOGONAL = ("orthogonalize", "scale_by_polar", "orthogonalize_exactly")


def leaves_without_a_gradient(evidence: Evidence) -> Iterator[Finding]:
    """Leaves that require a gradient and never had one, or one of zeros."""
    missing = set.intersection(
        *(set(sample.without_gradient) for sample in evidence.samples)
    )
    if missing:
        leaves = tuple(name for name in evidence.params if name in missing)
        share = len(leaves) / len(evidence.params)
        text = f"{len(leaves)} of {len(evidence.params)} leaves had no gradient in any measured step ({named(leaves)})"
        remedy = "use them in the forward pass, look for detach() and no_grad(), or give them to no optimizer"
        if len(leaves) == len(evidence.params):
            remedy = "call loss.backward() before step(), and pass the parameters of the model that computes the loss"
        yield Finding(
            "no gradient", 85, "", leaves, evidence.steps, share, text, remedy
        )
    norms = evidence.leaf_rows.get(STEP, {})
    dead = tuple(
        leaf
        for leaf, rows in norms.items()
        if all(row["norm_before"] == 0 for row in rows)
    )
    if dead:
        share = len(dead) / len(norms)
        text = f"the gradients of {len(dead)} leaves were 0 in every measured step ({named(dead)})"
        remedy = "look for a product with 0, a unit that is never active, or a loss that does not depend on them"
        yield Finding("dead leaves", 84, "", dead, evidence.steps, share, text, remedy)


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
    """Leaves with a gradient and without a step, such as those that freeze covers, and leaves that require none."""
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
        if all(row["norm_after"] == 0 for row in rows)
        and any(row["norm_before"] > 0 for row in rows)
    )
    moving = [leaf for leaf in evidence.leaf_rows.get(STEP, {}) if leaf not in stuck]
    if stuck and moving:
        share = len(stuck) / (len(stuck) + len(moving))
        text = f"{len(stuck)} leaves had a gradient and never moved ({named(stuck)})"
        remedy = "if that is not intended, look at freeze and masked, and at rates of 0"
        yield Finding("never moved", 79, "", stuck, evidence.steps, share, text, remedy)
    frozen = tuple(
        name for name, param in evidence.params.items() if not param.requires_grad
    )
    # Adapters freeze most of a model on purpose.
    if frozen and 2 * len(frozen) < len(evidence.params):
        share = len(frozen) / len(evidence.params)
        text = f"{len(frozen)} of {len(evidence.params)} leaves require no gradient ({named(frozen)})"
        remedy = "if that is not intended, call requires_grad_(True); else leave them out of the optimizer"
        yield Finding("frozen", 50, "", frozen, evidence.steps, share, text, remedy)


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
        if "averages" not in link.tx._effects or link.name == "lookahead":
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
