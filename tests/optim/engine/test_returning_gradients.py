"""Steps whose gradients come and go: one plan serves all patterns, and holds nothing that is gone."""

import copy
import weakref

import pytest
import torch

import gradtx
from gradtx.optim.engine.base import Engine

SIZES = (3, 4, 5, 6)


def parameters():
    return [torch.nn.Parameter(torch.linspace(1.0, 2.0, size, dtype=torch.float64)) for size in SIZES]


def step(optimizer, params, present):
    for i, param in enumerate(params):
        param.grad = torch.full_like(param, 1.0 + i) if i in present else None
    optimizer.step()


class BesideTorch:
    """An optimizer and torch's of the same name, which take the same steps."""

    def __init__(self, compile, name="AdamW", **options):
        self.ours, self.theirs = parameters(), parameters()
        self.optimizer = getattr(gradtx.optim, name)(self.ours, lr=0.1, compile=compile, **options)
        self.reference = getattr(torch.optim, name)(self.theirs, lr=0.1, foreach=False, **options)

    def step(self, *patterns):
        for present in patterns:
            step(self.optimizer, self.ours, present)
            step(self.reference, self.theirs, present)

    def change(self, edit):
        edit(self.optimizer, self.ours)
        edit(self.reference, self.theirs)

    def check(self):
        torch.testing.assert_close(self.ours, self.theirs, rtol=1e-12, atol=0)


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
    pair = BesideTorch(compile)
    for turn in range(6):
        present = ({0, 1}, {2, 3}, {1, 2})[turn % 3]
        pair.step(present)
    before = len(planned)
    for turn in range(6):
        present = ({0, 1}, {2, 3}, {1, 2})[turn % 3]
        pair.step(present)
        assert {way.name for way in pair.optimizer.explain() if way.way != "not yet"} >= set(map(str, present))
    assert len(planned) == before
    pair.check()


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


@pytest.mark.parametrize("compile", [False, True])
def test_once_all_parameters_have_stepped_no_pattern_of_gradients_makes_a_plan(compile, planned):
    params = parameters()
    optimizer = gradtx.optim.AdamW(params, lr=0.1, compile=compile)
    step(optimizer, params, {0, 1, 2, 3})
    planned.clear()
    for turn in range(20):
        step(optimizer, params, {i for i in range(4) if (turn + 1) >> i & 1})
    assert not planned


@pytest.fixture
def looked_at(monkeypatch):
    """The names of the parameters whose kinds were found out."""
    names, find_out = [], Engine.leaf_kind

    def noted(self, member, *others):
        names.append(member.name)
        return find_out(self, member, *others)

    monkeypatch.setattr(Engine, "leaf_kind", noted)
    monkeypatch.setattr(Engine, "_precedents", lambda *_: None)  # whose kinds are known
    return names


@pytest.mark.parametrize("compile", [False, True])
def test_a_new_pattern_is_planned_without_a_look_at_parameters_that_are_as_before(compile, looked_at):
    pair = BesideTorch(compile)
    pair.step({0, 1, 2, 3}, {0, 1}, {1, 2}, {0, 2, 3}, {3}, {1, 3}, {0, 3})
    assert sorted(looked_at) == ["0", "1", "2", "3"]
    pair.check()


def moved(optimizer, params):
    params[1].data = params[1].data.clone()


def wider(optimizer, params):
    params[1].data = params[1].data.to(torch.complex128)
    optimizer.state[params[1]].clear()


def strided(optimizer, params):
    params[1].data = params[1].data.repeat_interleave(2)[::2]


def replaced(optimizer, params):
    state = optimizer.state[params[1]]
    state["exp_avg"] = state["exp_avg"].clone()


def loaded(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("change", [wider, strided, replaced])
@pytest.mark.parametrize("compile", [False, True])
def test_a_parameter_that_has_changed_is_looked_at_again(compile, change, looked_at):
    pair = BesideTorch(compile)
    pair.step({0, 1, 2, 3}, {0, 1})
    looked_at.clear()
    pair.change(change)
    pair.step({1, 2}, {0, 1, 3}, {1, 3})
    assert "1" in looked_at
    pair.check()


@pytest.mark.parametrize("change", [moved, loaded])
@pytest.mark.parametrize("compile", [False, True])
def test_parameters_and_slots_in_other_memory_are_found_there_without_another_look(compile, change, looked_at):
    pair = BesideTorch(compile)
    pair.step({0, 1, 2, 3}, {0, 1})
    looked_at.clear()
    pair.change(change)
    pair.step({0, 2}, {1, 2}, {0, 1, 3}, {1, 3})
    assert not looked_at
    pair.check()


@pytest.mark.parametrize("compile", [False, True])
def test_parameters_that_come_to_share_memory_later_step_one_after_another(compile):
    """With the later gradient applied to what the earlier one has written, as in torch."""

    def tied(optimizer, params):
        params[2].data = params[3].data[:5]

    pair = BesideTorch(compile, "SGD", weight_decay=0.5)
    pair.step({0, 1}, {2, 3}, {1, 2})
    pair.change(tied)
    pair.step({2, 3}, {0, 1, 2, 3}, {1, 3}, {2})
    pair.check()
