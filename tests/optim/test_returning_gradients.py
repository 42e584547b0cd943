"""Steps whose gradients come and go: plans of patterns that return are kept, and hold nothing that is gone."""

import copy
import weakref

import pytest
import torch

import gradtx
from gradtx.optim.engine.base import KEPT_PLANS, Engine

SIZES = (3, 4, 5, 6)


def parameters():
    return [torch.nn.Parameter(torch.linspace(1.0, 2.0, size, dtype=torch.float64)) for size in SIZES]


def step(optimizer, params, present):
    for i, param in enumerate(params):
        param.grad = torch.full_like(param, 1.0 + i) if i in present else None
    optimizer.step()


@pytest.fixture
def planned(monkeypatch):
    """The number of plans that have been made."""
    made, make = [], Engine._make_plan

    def counted(self, fingerprint, members, *others):
        made.append(len(members))
        return make(self, fingerprint, members, *others)

    monkeypatch.setattr(Engine, "_make_plan", counted)
    return made


@pytest.mark.parametrize("compile", [False, True])
def test_patterns_of_gradients_that_return_are_planned_once_and_step_as_in_torch(compile, planned):
    ours, theirs = parameters(), parameters()
    optimizer = gradtx.optim.AdamW(ours, lr=0.1, compile=compile)
    reference = torch.optim.AdamW(theirs, lr=0.1)
    for turn in range(6):
        present = ({0, 1}, {2, 3}, {1, 2})[turn % 3]
        step(optimizer, ours, present)
        step(reference, theirs, present)
    before = len(planned)
    for turn in range(6):
        present = ({0, 1}, {2, 3}, {1, 2})[turn % 3]
        step(optimizer, ours, present)
        step(reference, theirs, present)
        assert {way.name for way in optimizer.explain() if way.way != "not yet"} >= set(map(str, present))
    assert len(planned) == before
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_slots_and_weights_that_have_been_replaced_are_freed_at_the_next_plan():
    params = parameters()
    optimizer = gradtx.optim.AdamW(params, lr=0.1)
    for present in ({0, 1}, {2, 3}, {0, 1}):
        step(optimizer, params, present)
    slots = [weakref.ref(optimizer.state[param]["exp_avg"]) for param in params]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(optimizer, params, {0, 1})
    assert [slot() for slot in slots] == [None] * 4


def test_a_parameter_that_leaves_the_optimizer_is_freed_at_the_next_plan():
    params = parameters()
    optimizer = gradtx.optim.AdamW(params, lr=0.1)
    for present in ({0, 1}, {2, 3}):
        step(optimizer, params, present)
    gone = weakref.ref(params[3])
    del optimizer.param_groups[0]["params"][3]
    optimizer.state.pop(params[3], None)
    del params[3]
    step(optimizer, params, {0, 1, 2})
    step(optimizer, params, {0, 1})
    assert gone() is None


def test_few_plans_are_kept():
    params = parameters()
    optimizer = gradtx.optim.AdamW(params, lr=0.1)
    for turn in range(20):
        step(optimizer, params, {i for i in range(4) if (turn + 1) >> i & 1})
    (engine,) = optimizer._core.back_ends
    assert len(engine._kept) == KEPT_PLANS
