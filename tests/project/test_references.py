"""What a failing comparison says: leaf, step, both values."""

import math
import re

import pytest
import torch

import gradtx
from gradtx.pure import tree_plan as trees
from tests import matrix_problem
from tests.references import (
    COMPILER_DIFFERS,
    RULE_DIFFERS,
    Loop,
    compare,
    compare_trees,
    follows,
    follows_along,
    run,
    weights_follow,
)


def tree(*values, **others):
    return {"rows": torch.tensor(values, dtype=torch.float64), **others}


def test_the_first_step_and_leaf_that_differ_are_told_with_both_values():
    expected = [tree(1.0, 2.0), tree(1.0, 0.012), tree(5.0, 5.0)]
    history = [tree(1.0, 2.0), tree(1.0, 0.013), tree(0.0, 0.0)]
    message = "leaf 'rows' at step 2: 0.013 instead of 0.012 (entry (1,); 1 of 2 entries differ; tolerance 1e-10)"
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}$"):
        compare(history, expected)


def test_values_that_differ_late_are_told_with_enough_digits():
    with pytest.raises(AssertionError, match=r"^leaf 'rows': 1\.0000000011 instead of 1 \(entry \(0,\); 1 of 1"):
        compare_trees(tree(1.0000000011), tree(1.0))


def test_the_entry_that_is_furthest_off_is_told_and_the_other_leaves_by_name():
    zeros = {"scalar": torch.tensor(0.0), "bias": torch.zeros(2)}
    ones = {"scalar": torch.tensor(1.0), "bias": torch.ones(2)}
    message = r"^leaf 'rows': 3 instead of 2 \(entry \(1,\); 2 of 3 .*\); also 'scalar', 'bias'$"
    with pytest.raises(AssertionError, match=message):
        compare_trees(tree(1.1, 3.0, 3.0, **zeros), tree(1.0, 2.0, 3.0, **ones))
    with pytest.raises(AssertionError, match=r"^leaf 'scalar': 0 instead of 1 \(tolerance 0\.5\); also 'bias'$"):
        compare_trees(zeros, ones, 0.5)


@pytest.mark.parametrize("values", [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan), (math.inf, math.inf)])
def test_what_is_no_finite_number_differs(values):
    found, expected = values
    with pytest.raises(AssertionError, match=f"^leaf 'rows': {found:g} instead of {expected:g} .entry .1,.; "):
        compare_trees(tree(2.0, found), tree(2.0, expected))


def test_tolerances_are_relative_unless_they_are_absolute_and_0_asks_for_the_same_bits():
    compare_trees(tree(100.0, 1.05), tree(100.0, 1.0), 1e-3)
    with pytest.raises(AssertionError, match="1 of 2 entries"):
        compare_trees(tree(100.0, 1.05), tree(100.0, 1.0), 1e-3, absolute=True)
    compare_trees(tree(1.0), tree(1.0), 0.0)
    with pytest.raises(AssertionError, match=r"1\.0000000000000002 instead of 1 "):
        compare_trees(tree(1.0000000000000002), tree(1.0), 0.0)
    with pytest.raises(AssertionError, match="1e-30 instead of 0"):  # relative to 0
        compare_trees(tree(1e-30), tree(0.0))


def test_leaves_and_layouts_are_compared():
    with pytest.raises(AssertionError, match=r"^leaves: \['rows'\] instead of \['rows', 'bias'\]$"):
        compare_trees(tree(1.0), tree(1.0, bias=torch.zeros(2)))
    with pytest.raises(AssertionError, match=r"^leaf 'rows': torch.float64 \(1,\) instead of torch.float32 \(2,\)$"):
        compare_trees(tree(1.0), {"rows": torch.zeros(2)})


WAYS = {
    "updates": follows,
    "weights": weights_follow,
    "along": lambda step, reference: follows_along(step, lambda g, p: {n: -0.1 * x for n, x in g.items()}),
    "matrices": lambda step, reference: matrix_problem.follows(step, reference, 0, tolerance=1e-10),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_rate_that_changes_at_the_third_step_is_found_there(way):
    late = gradtx.Schedule(lambda t: 0.1 if t < 2 else 0.11)
    WAYS[way](gradtx.sgd(lr=0.1), gradtx.sgd(lr=0.1))
    with pytest.raises(
        AssertionError, match=r"^leaf '(matrix|wide)' at step 3: -?\d.* instead of -?\d.*tolerance 1e-10"
    ):
        WAYS[way](gradtx.sgd(lr=late), gradtx.sgd(lr=0.1))


def half_a_step(slots, t, g, p, lr):
    return -0.5 * lr * g


def test_a_rule_that_differs_is_told_from_a_compiler_that_does(monkeypatch):
    with pytest.raises(AssertionError, match=f"(?s)leaf 'matrix' at step 1: .*{RULE_DIFFERS}"):
        follows(gradtx.sgd(lr=0.1), Loop(half_a_step, lr=0.1))

    def half(call):
        result = update(call)
        if result is None:  # as line by line
            return None
        updates, state = result
        return {name: 0.5 * value for name, value in updates.items()}, state

    update = trees.update
    monkeypatch.setattr(trees, "update", half)
    with pytest.raises(AssertionError, match=f"(?s)leaf 'matrix' at step 1: .*{COMPILER_DIFFERS}"):
        weights_follow(gradtx.sgd(lr=0.2), Loop(half_a_step, lr=0.4))


def test_the_first_slot_in_which_the_compiler_differs_is_told(monkeypatch):
    def moved(call):
        result = update(call)
        if result is None:  # as line by line
            return None
        updates, state = result
        slots = state["scale_by_adam"]
        slots["exp_avg_sq"] = {name: 2 * value for name, value in slots["exp_avg_sq"].items()}
        return updates, state

    update = trees.update
    monkeypatch.setattr(trees, "update", moved)
    with gradtx.eagerly():
        expected = run(gradtx.adam(lr=0.1))
    told = re.escape(f"{COMPILER_DIFFERS}; first in ['scale_by_adam']['exp_avg_sq']['matrix'] of the state, at step 1")
    with pytest.raises(AssertionError, match=f"(?s)leaf 'matrix' at step 2: .*{told}"):
        follows(gradtx.adam(lr=0.1), Recorded(expected))


class Recorded:
    """A stepper that gives known updates."""

    def __init__(self, updates):
        self.updates, self.t = updates, 0

    def __call__(self, grads, params):
        self.t += 1
        return self.updates[self.t - 1]
