"""What rules declare of their slots: a gradient of 0 multiplies one with a declared `fading` by exactly that."""

import pytest
import torch

import gradtx
from gradtx.base import tree
from gradtx.base.exact import exact
from gradtx.execution.leaf_rule import RuleOperation
from gradtx.pure.tree_run import TreeRun
from gradtx.state.nested import NestedState
from tests.conformance import extras, field
from tests.tiers import each_case

STEPS = 4
# Of a slot that stays or fades, one product; the next one of a sum has another rounding.
TOLERANCE = 1e-12


def slots_with_factors(tx, params, state):
    """The slots with a declared fading, as (path, slot, leaf, value, factor)."""
    _, unflatten = tree.flatten(params, "params")
    run = TreeRun(tx, params, unflatten, state)
    values = NestedState(state, run.stages)
    rules = {x.path: x.rule for x in run.route.walk() if isinstance(x, RuleOperation)}
    for path, rule in rules.items():
        for slot, leaves in values.tree(path).items() if rule.init else ():
            fading = rule.slot(slot).fading
            if isinstance(leaves, dict) and fading is not None:
                for leaf, value in leaves.items():
                    yield path, slot, leaf, value, exact(fading, value.device)


@each_case
def test_a_gradient_of_0_multiplies_a_slot_by_its_declared_fading(case):
    tx, params = case.make(), case.noise(1)
    state = tx.init(params)
    if not list(slots_with_factors(tx, params, state)):
        pytest.skip("no declared fading")
    for _ in range(STEPS):
        updates, state = tx.update(field(params), state, params, **extras(tx, params))
        params = gradtx.apply_updates(params, updates)
    zeros = {name: torch.zeros_like(param) for name, param in params.items()}
    for _ in range(2):
        before = list(slots_with_factors(tx, params, state))
        updates, state = tx.update(zeros, state, params, **extras(tx, params))
        after = list(slots_with_factors(tx, params, state))
        for (*place, old, factor), (*_, new, _) in zip(before, after, strict=True):
            if factor == 1:
                assert torch.equal(new, old), place
            torch.testing.assert_close(new, old * factor, rtol=TOLERANCE, atol=0, msg=lambda m, at=place: f"{at}: {m}")
