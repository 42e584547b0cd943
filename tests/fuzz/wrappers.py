"""Random chains inside combinators that do nothing: each is the chain, also in calls without any gradient."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Callable
from typing import Any

import gradtx
from gradtx import GradientTransformation
from tests.fuzz import chains, wide
from tests.fuzz.chains import Adapted, Case, Gradients, functional

NEVER = 10**6
COUNTING = ("accumulate", "graft", "restart", "restart, its clock kept", "skip_nonfinite")

# Combinators with arguments for which they do nothing.
WRAPPERS: dict[str, Callable[[GradientTransformation], GradientTransformation]] = {
    "accumulate": lambda tx: gradtx.accumulate(tx, every=1),
    "blocks": lambda tx: gradtx.blocks(tx, lambda name, param: param.ndim > 0 and param.numel() > 0, heads=1),
    "cautious_decay_after": lambda tx: gradtx.cautious_decay_after(tx, weight_decay=0.0),
    "graft": lambda tx: gradtx.graft(tx, tx),
    "masked": lambda tx: gradtx.masked(tx, "*"),
    "partition": lambda tx: gradtx.partition({"all": tx}, {"all": "*"}),
    "restart": lambda tx: gradtx.restart(tx, every=NEVER),
    "restart, its clock kept": lambda tx: gradtx.restart(tx, every=NEVER, keep_clock=True),
    "skip_nonfinite": lambda tx: gradtx.skip_nonfinite(tx),
}


def case_of(seed: int) -> Case:
    """A random chain, whose leaves miss calls; in some calls no leaf has a gradient."""
    case = chains.drawn_case(seed)
    if case.takes_closure:
        return case  # whose calls all have gradients
    rng = random.Random(f"idle {seed}")
    gradients: Gradients = []
    for step in case.gradients:
        is_idle = rng.random() < 0.2
        gradients.append({name: None if is_idle or rng.random() < 0.3 else gradient for name, gradient in step.items()})
    return dataclasses.replace(case, gradients=gradients)


def check(seed: int) -> int:
    """Check all wrappers; return how many accept the chain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a random chain may have its links in an order that gets a warning
        return _accepting(seed)


def _accepting(seed: int) -> int:
    try:
        case = case_of(seed)
    except (TypeError, ValueError):  # two owners of the learning rate, for example
        return 0
    expected = functional(case)
    sensitivity = wide.Sensitivity(case, expected)
    accepted = 0
    for name, wrapper in WRAPPERS.items():
        if name in COUNTING and "accumulate(" in repr(case.tx):
            # A leaf without a gradient, which an inner `accumulate` accepts, is no update for clocks around it.
            continue
        if name.startswith("restart") and case.takes_closure:
            continue  # which restarts refuse
        try:
            tx = wrapper(case.tx)
        except (TypeError, ValueError):
            continue  # a combinator says which chains it does not support
        accepted += 1
        wrapped = dataclasses.replace(case, tx=tx)
        ways: dict[str, Callable[..., Any]] = {
            "pure use": functional,
            "an optimizer": lambda case: Adapted(case).steps(),
        }
        for way, run in ways.items():
            sensitivity.check(run(wrapped), f"{seed}: {name}, {way}, around {case!r}")
    return accepted
