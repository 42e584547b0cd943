"""What is known of trees is kept for later calls, without a cliff at any number of structures, and within a limit."""

import pytest
import torch

import gradtx
from gradtx.base import recent
from gradtx.base.recent import Recent, SharedPrograms
from gradtx.pure import known_trees, tree_plan


@pytest.fixture
def plans(monkeypatch):
    """The plans that are made."""
    made, init = [], tree_plan.TreePlan.__init__
    monkeypatch.setattr(tree_plan, "_SHARED", tree_plan.SharedTrees())
    monkeypatch.setattr(tree_plan.TreePlan, "__init__", lambda *args: made.append(1) or init(*args))
    return made


def updated(tx, shape=(2, 3), name="w"):
    params = {name: torch.ones(shape)}
    return tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("what", ["shape", "name"])
def test_trees_of_many_shapes_or_structures_in_turn_are_planned_once(what, plans):
    tx = gradtx.adamw()
    for _ in range(2):
        for i in range(150):
            updated(tx, **({"shape": (2, i + 1)} if what == "shape" else {"name": f"w{i}"}))
    assert len(plans) == 150


def test_plans_that_were_used_long_ago_are_dropped_and_made_again(plans, monkeypatch):
    tx = gradtx.adamw()
    monkeypatch.setattr(known_trees, "MOST_TENSORS", 50)  # a tree of one leaf has 5
    for i in range(30):
        updated(tx, (2, i + 1))
        updated(tx, (2, 1))  # used all the time
    assert len(plans) == 30
    ((*kept,),) = tree_plan.plans_of(tx).values()
    assert len(kept) <= 10
    updated(tx, (2, 2))
    assert len(plans) == 31
    for i in range(30):
        updated(tx, name=f"w{i}")
    assert sum(map(len, tree_plan.plans_of(tx).values())) <= 10
    assert len(tree_plan.plans_of(tx)) <= 10


def test_structures_without_a_program_are_forgotten_too(monkeypatch):
    monkeypatch.setattr(tree_plan, "_SHARED", tree_plan.SharedTrees())
    monkeypatch.setattr(known_trees, "MOST_TENSORS", 50)
    tx = gradtx.noisy_sgd(lr=0.1)
    for i in range(30):
        updated(tx, name=f"w{i}")
    assert len(tree_plan.plans_of(tx)) <= 15


def test_the_programs_of_a_table_have_a_limit(monkeypatch):
    monkeypatch.setattr(recent, "MOST", 20)
    table = SharedPrograms()
    for key in range(50):
        table.of(key)["program"] = key
    assert table.of(49) == {"program": 49}
    assert table.of(0) == {}  # long ago
    for shape in range(100):
        table.of("one chain")[shape] = shape
    assert len(table.of("one chain")) <= 20
    assert 99 in table.of("one chain")


def test_the_value_that_was_used_longest_ago_is_dropped_first():
    recent = Recent()
    for key in "abc":
        assert recent.put(key, key.upper(), most=3) == []
    assert recent.get("a") == "A"
    assert recent.put("d", "D", most=3) == [("b", "B")]
    assert recent.get("b") is None
    assert recent.put("large", "L", size=9, most=3) == [("c", "C"), ("a", "A"), ("d", "D")]
    assert recent.get("large") == "L"
    recent.drop("large")
    assert recent.put("e", "E", most=1) == []
