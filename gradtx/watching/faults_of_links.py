"""Faults of single links: bounds, decay, eps, codes of state, and links in the wrong order."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradtx.watching.findings import (
    Evidence,
    Finding,
    about,
    called,
    finite_median,
    named,
    percent,
    quantile,
)
from gradtx.watching.links import Link

# A bound acts in a step that it shortens by more than rounding.
ACTS = 0.999
DECAYS = ("add_decayed_weights", "decay_after_step")
RATES = "scale_by_learning_rate"


def bounds_that_always_or_never_act(evidence: Evidence) -> Iterator[Finding]:
    """Clips that set the length of almost every step, and those that are far above all norms."""
    for path, link in evidence.links.items():
        if not link.bounds or link.typed != link.name:
            continue
        rows = evidence.of_link(path)
        lengths = [row["change"] for row in rows if not math.isnan(row["change"])]
        if not lengths:
            continue
        acting = sum(length < ACTS for length in lengths) / len(lengths)
        length = finite_median(lengths)
        if acting >= 0.95 and length < 0.3:
            yield _bound_that_always_acts(evidence, path, link, acting, length)
        elif acting == 0:
            yield from _bound_never_acts(evidence, path, link)


def _bound_that_always_acts(
    evidence: Evidence, path: str, link: Link, acting: float, length: float
) -> Finding:
    norms = [row["norm_before"] for row in evidence.of_link(path)]
    severity, does, rise = 65, "sets the length of the steps", "raise it"
    rule = _rule_behind(evidence, path)
    if rule is not None:  # many clip so on purpose
        severity = 25
        does = f"gives all gradients one length, before {called(*rule)} sets that of the steps"
        rise = "if it is to stop spikes only, raise it"
    if link.name == "clip_by_global_norm":
        usual = quantile(norms, 0.9)
        rise += f" to about {usual:.2g}, the 90th percentile of the norms"
    text = f"{_typed(link)} shortened {percent(acting)} of the steps, to {length:.2g} of their length in the median"
    remedy = f"the bound {does}; {rise}"
    return Finding(
        "bound always acts", severity, path, (), evidence.steps, length, text, remedy
    )


def _rule_behind(evidence: Evidence, path: str) -> tuple[str, Link] | None:
    """Return a later link in the same branch whose updates do not depend on the length of what it receives."""
    paths = list(evidence.links)
    for later in paths[paths.index(path) + 1 :]:
        link = evidence.links[later]
        is_behind = later.rpartition(".")[0].startswith(path.rpartition(".")[0])
        if is_behind and link.sets_length and not link.bounds:
            return later, link
    return None


def _bound_never_acts(evidence: Evidence, path: str, link: Link) -> Iterator[Finding]:
    # Of all leaves together, which exceeds that of each leaf and each entry.
    largest = max(row["norm_before"] for row in evidence.of_link(path))
    bound = _bound(link)
    if not bound > 100 * largest > 0:  # a guard against rare spikes is a little above
        return
    text = (
        f"{_typed(link)} never acted: the largest of the measured norms is {largest:.2g}, and the bound is "
        f"{bound / largest:.2g} times that"
    )
    lower = "lower it"
    if link.name == "clip_by_global_norm":
        lower += f" to about {about(3 * largest)}"
    remedy = f"remove it, or {lower}, so that it stops spikes"
    yield Finding(
        "bound never acts", 20, path, (), evidence.steps, largest, text, remedy
    )


def clips_behind_the_rule(evidence: Evidence) -> Iterator[Finding]:
    """Clips that bound steps of a rule that sets their length, in place of gradients."""
    rules: dict[str, tuple[str, Link]] = {}  # the last one of each branch
    for path, link in evidence.links.items():
        branch = path.rpartition(".")[0]
        if link.sets_length and not link.bounds:
            rules[branch] = path, link
        rule = rules.get(branch)
        if rule is None or not link.bounds or link.typed != link.name:
            continue
        lengths = [row["change"] for row in evidence.of_link(path)]
        acting = sum(length < ACTS for length in lengths) / max(1, len(lengths))
        if acting < 0.5:
            continue
        length = finite_median(lengths)
        first = called(*rule)
        text = (
            f"{link.name} follows {first}, whose updates do not depend on the length of the gradient, and shortened "
            f"{percent(acting)} of the steps to {length:.2g} of their length in the median: it lowers the rate and "
            "stops no spike of the gradient"
        )
        remedy = f"move {link.name} before {first}"
        yield Finding(
            "clip behind the rule", 70, path, (), evidence.steps, length, text, remedy
        )


def decay_that_outweighs_the_step(evidence: Evidence) -> Iterator[Finding]:
    """Decay that makes most of the update."""
    for path, link in evidence.links_named(*DECAYS):
        # Where the gradient is 0, decay is all that moves a leaf.
        change = finite_median(row["change"] for row in evidence.of_trained(path))
        leaves = evidence.leaf_rows[path]
        rate = finite_median(evidence.rate_behind(path, leaf) for leaf in leaves)
        shrunk = _decay(link) * rate
        if change > 2:
            text = (
                f"{path} makes the update {change:.3g} times as long in the median: the step shrinks weights more "
                "than it follows the gradient"
            )
            remedy = f"divide weight_decay by about {about(10 * change)}"
        elif shrunk > 0.008:
            change = shrunk
            text = (
                f"{path} shrinks the weights by {percent(shrunk)} in each step, so that they forget what is "
                f"{1 / shrunk:.2g} steps old"
            )
            remedy = f"divide weight_decay by about {about(1000 * shrunk)}"
        else:
            continue
        yield Finding(
            "decay outweighs the step",
            68,
            path,
            (),
            evidence.steps,
            change,
            text,
            remedy,
        )


def decay_of_norms_and_biases(evidence: Evidence) -> Iterator[Finding]:
    """Decay of vectors, if it has pulled them visibly toward 0."""
    for path, link in evidence.links_named(*DECAYS):
        vectors = [
            leaf for leaf in evidence.leaf_rows[path] if not evidence.is_matrix(leaf)
        ]
        others = [leaf for leaf in evidence.leaf_rows[path] if evidence.is_matrix(leaf)]
        rates = finite_median(
            evidence.rate_behind(path, leaf) * evidence.updates_of(leaf)
            for leaf in vectors
        )
        shrunk = 1 - math.exp(-_decay(link) * rates)
        if not (vectors and others and shrunk > 0.1):
            continue
        text = (
            f"{path} decays {len(vectors)} vectors, such as norms and biases ({named(vectors)}), and alone would have "
            f"shrunk them by {percent(shrunk)} in this run"
        )
        remedy = (
            'give them no decay: partition({"no_decay": ..., "decay": ...}, ...), the argument mask of '
            "add_decayed_weights, or a group with weight_decay=0.0"
        )
        yield Finding(
            "decay of norms and biases",
            35,
            path,
            tuple(vectors),
            evidence.steps,
            shrunk,
            text,
            remedy,
        )


def eps_that_decides(evidence: Evidence) -> Iterator[Finding]:
    """Entries whose update eps more than halves, because it exceeds the root of their second moment."""
    visited: list[
        Link
    ] = []  # a combinator has a row where it begins and one where it ends
    for path, link in evidence.links.items():
        if "eps" not in link.arguments or link.bounds or link in visited:
            continue
        visited.append(link)
        eps, name = link.value_of("eps"), called(path, link)
        figure = evidence.median(path, "decided")
        text = (
            f"eps={eps:.1g} of {name} more than halves the update of {percent(figure)} of the entries: it exceeds the "
            "size of their gradients, so the rule acts like one without a second moment"
        )
        if not figure > 0.3:
            # Where all leaves are needed at once, or the state has kept eps, the update without it is not known.
            figure = eps / _received(evidence, path, link)
            if not (figure > 10 and link.exceeds_default("eps", 10)):
                continue
            what = "each entry" if link.is_elementwise else "a leaf"
            text = (
                f"eps={eps:.1g} of {name} is {figure:.2g} times the size of {what} that it receives, so the rule acts "
                "like one without a second moment"
            )
        remedy = "lower eps, or use scale_by_atan2, which has none; if gradients vanish, look at the loss first"
        yield Finding("eps decides", 72, path, (), evidence.steps, figure, text, remedy)


def _received(evidence: Evidence, path: str, link: Link) -> float:
    """Return the size of what a link receives: of an entry if its entries are independent, else of a leaf."""
    sizes: list[float] = []
    for leaf, rows in evidence.leaf_rows[path].items():
        entries = evidence.entries_of(leaf) if link.is_elementwise else 1
        sizes += [row["norm_before"] / math.sqrt(entries) for row in rows.values()]
    return finite_median(size for size in sizes if size > 0)


def codes_that_saturate(evidence: Evidence) -> Iterator[Finding]:
    """Coded slots with the smallest code: another entry of their block sets a scale that is far too large for them."""
    for path, link in evidence.links.items():
        share = evidence.median(path, "crushed")
        if not share > 0.3:
            continue
        text = (
            f"{percent(share)} of the entries in the state of {called(path, link)} have the smallest code: others in "
            "their blocks are much larger"
        )
        remedy = "keep these leaves in float32: state_dtype for the others only, by partition or patterns"
        yield Finding(
            "codes saturate", 74, path, (), evidence.steps, share, text, remedy
        )


def _decay(link: Link) -> float:
    """Return the decay of a link without the factors of later links."""
    return link.value_of("weight_decay") * link.value_of("lr", 1.0)


def _bound(link: Link) -> float:
    return link.value_of("max_norm", link.value_of("max_value"))


def _typed(link: Link) -> str:
    bound = _bound(link)
    return f"{link.name}({bound:.4g})" if math.isfinite(bound) else link.name
