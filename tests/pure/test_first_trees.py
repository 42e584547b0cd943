"""The first state of a tree follows from layouts where it is zeros: later calls of `init` return what rules would."""

import collections

import pytest
import torch

import gradtx
from gradtx.pure import tree_run
from tests.conformance import all_cases, assert_own_memory, assert_same, layout, noise
from tests.tiers import by_day

SHAPES = {"a": (4, 3), "b": (5,), "c": (2, 3, 2, 2)}


@pytest.fixture
def definitions(monkeypatch):
    """The calls that the definition has run."""
    made = []
    started = tree_run.started

    def counted(tx, *arguments):
        made.append(tx)
        return started(tx, *arguments)

    monkeypatch.setattr(tree_run, "started", counted)
    return made


def outcome(tx, params, **options):
    try:
        return tx.init(params, **options)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("case", all_cases(), ids=str)
@by_day("adamw", "adafactor*", "lbfgs", "muon", "prodigy*", "schedule_free_adamw", "scale_by_*", "sam", "skip*", "sgd*")
def test_each_call_returns_what_rules_return_line_by_line(case):
    tx = case.make()
    for params in (noise(1, SHAPES), noise(2, SHAPES), {name: torch.zeros(shape) for name, shape in SHAPES.items()}):
        for tree in (params, {name: x.bfloat16() for name, x in params.items()}) * 2:
            state = outcome(tx, tree)
            with gradtx.eagerly():
                expected = outcome(tx, tree)
            if isinstance(expected, str):
                assert state == expected
                continue
            assert_same(state, expected)
            assert layout(state) == layout(expected)
            assert_own_memory(state, tree)


def test_a_known_structure_runs_no_rule(definitions):
    params = noise(0, SHAPES)
    for rate in (0.1, 0.2, 0.3):
        gradtx.adamw(rate).init(params)
    assert len(definitions) <= 1


def test_states_share_nothing():
    tx, params = gradtx.adamw(), noise(0, SHAPES)
    tx.init(params)
    state, other = tx.init(params), tx.init(params)
    gradtx.get(state, "exp_avg")["a"].fill_(1.0)
    state["scale_by_adam"]["exp_avg"].clear()
    with gradtx.eagerly():
        assert_same(other, tx.init(params))


@pytest.mark.parametrize("counts", ["calls", "leaves"])
def test_layouts_containers_and_absent_leaves_stay_what_they_are(counts):
    tx = gradtx.adamw()
    pair = collections.namedtuple("Pair", "a b")
    leaf = torch.randn(4, 3)
    trees = [
        {"a": leaf, "b": leaf.mT},
        {"a": leaf.mT, "b": leaf},
        {"a": leaf, "b": None},
        pair(leaf, leaf.double()),
        pair(leaf.double(), leaf),
        [leaf[:, 0], {"b": leaf[::2]}],
        {"a": torch.nn.Parameter(leaf), "b": torch.zeros(())},
        {"a": torch.randn(3, dtype=torch.complex64), "b": torch.randn(0, 2)},
        {"a": leaf.to("meta"), "b": leaf.to("meta")},
        leaf,
    ]
    for tree in trees * 3:
        state = tx.init(tree, counts=counts)
        with gradtx.eagerly():
            expected = tx.init(tree, counts=counts)
        assert layout(state) == layout(expected)
        if tree is not trees[-2]:
            assert_same(state, expected)


def test_a_slot_that_is_a_copy_of_weights_holds_those_of_the_call():
    tx = gradtx.chain(gradtx.sgd(0.1), gradtx.average())
    for seed in range(4):
        params = noise(seed, SHAPES)
        slots = gradtx.get(tx.init(params), "average")
        kept = slots.get("average", slots) if isinstance(slots, dict) else slots
        for name, weight in params.items():
            assert torch.equal(kept[name].to(weight.dtype), weight)


def test_a_selector_sees_the_weights_of_each_call():
    tx = gradtx.masked(gradtx.sgd(0.1, momentum=0.9), lambda name, param: bool(param.sum() > 0))
    for sign in (1.0, -1.0, 1.0, 1.0, -1.0):
        state = tx.init({"a": sign * torch.ones(3), "b": torch.ones(3)})
        with gradtx.eagerly():
            assert_same(state, tx.init({"a": sign * torch.ones(3), "b": torch.ones(3)}))


def test_numbers_that_leave_out_a_slot_are_another_structure():
    params = noise(0, SHAPES)
    for _ in range(3):
        for momentum in (0.0, 0.9):
            state = gradtx.sgd(0.1, momentum=momentum).init(params)
            assert ("momentum_buffer" in str(state)) == bool(momentum)


def test_the_first_update_from_such_a_state_is_that_of_torch():
    tx, weight = gradtx.adamw(0.1), torch.nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    params = {"w": weight.detach().clone()}
    tx.init(params)
    state = tx.init(params)
    for seed in range(3):
        weight.grad = noise(seed, {"w": (4, 3)})["w"].float()
        updates, state = tx.update({"w": weight.grad}, state, params)
        params = gradtx.apply_updates(params, updates)
        optimizer.step()
    torch.testing.assert_close(params["w"], weight.detach())
