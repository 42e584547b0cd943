"""Counts of more steps than float32 has whole numbers for."""

import contextlib
import copy
import pickle

import pytest
import torch

import gradtx
from tests.optim.problems import saved_and_loaded
from tests.optim.tape import Tape

LAST = 2**24  # up to which float32 has every whole number


def halved_at_odd_counts(count):
    return 1.0 - 0.5 * (count % 2)


def made(**options):
    params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    return params, gradtx.optim.SGD(params, lr=gradtx.Schedule(halved_at_odd_counts), momentum=0.5, **options)


def step(params, optimizer):
    for param in params:
        param.grad = torch.ones_like(param)
    if optimizer._step_supports_amp_scaling:
        optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
    optimizer.step()


def advanced(optimizer, count):
    """The optimizer as it would be after that many steps."""
    for state in optimizer.state.values():
        state["step"] = torch.full_like(state["step"], count)
    return optimizer


def counts(optimizer):
    return [int(entry["step"]) for entry in optimizer.state_dict()["state"].values()]


MODES = [{}, {"compile": True}, {"capturable": True}, {"amp_scaling": True}, {"amp_scaling": True, "compile": True}]


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("options", MODES, ids=str)
def test_counts_go_on_past_the_whole_numbers_of_float32(options, eagerly):
    params, optimizer = made(**options)
    with gradtx.eagerly() if eagerly else contextlib.nullcontext():
        step(params, optimizer)
        assert [state["step"].dtype for state in optimizer.state.values()] == [torch.float32] * 2  # as in torch
        advanced(optimizer, LAST - 3)
        for count in range(LAST - 2, LAST + 4):
            weight = params[0][0].item()
            momentum = optimizer.state[params[0]]["momentum_buffer"][0].item()
            step(params, optimizer)
            rate = halved_at_odd_counts(count - 1)
            assert params[0][0].item() == pytest.approx(weight - rate * (0.5 * momentum + 1))
            assert counts(optimizer) == [count] * 2
            assert [int(state["step"]) for state in optimizer.state.values()] == [count] * 2


@pytest.mark.parametrize("options", MODES, ids=str)
def test_large_counts_survive_loading_pickling_copying_and_new_groups(options):
    params, optimizer = made(**options)
    step(params, optimizer)
    advanced(optimizer, LAST)
    for _ in range(3):
        step(params, optimizer)
    _, loaded = made(**options)
    loaded.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), loaded]
    for number, twin in enumerate(copies):
        twin.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
        own = twin.param_groups[0]["params"]
        assert counts(twin)[:2] == [LAST + 3] * 2, number
        step(own, twin)
        assert counts(twin)[:2] == [LAST + 4] * 2, number
        assert twin.param_groups[0]["lr"] == halved_at_odd_counts(LAST + 4)


@pytest.mark.parametrize("count", [LAST + 1, float(LAST + 1)])
def test_a_large_count_that_is_a_number_is_loaded_and_stepped(count):
    params, optimizer = made()
    step(params, optimizer)
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        entry["step"] = count
    optimizer.load_state_dict(saved)
    assert counts(optimizer) == [LAST + 1] * 2
    for state in optimizer.state.values():
        state["step"] = count
    step(params, optimizer)
    assert counts(optimizer) == [LAST + 2] * 2


def test_a_large_count_loads_into_torch_and_back():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = gradtx.optim.AdamW([param])
    step([param], optimizer)
    advanced(optimizer, LAST)
    step([param], optimizer)
    theirs = torch.optim.AdamW([param])
    theirs.load_state_dict(optimizer.state_dict())
    theirs.step()
    optimizer.load_state_dict(theirs.state_dict())
    assert counts(optimizer) == [LAST + 2]


def test_a_replayed_graph_counts_past_the_whole_numbers_of_float32():
    params, optimizer = made(capturable=True)
    step(params, optimizer)
    advanced(optimizer, LAST - 4)
    step(params, optimizer)
    with Tape() as tape:
        optimizer.step()
    for _ in range(5):
        tape.replay()
    assert counts(optimizer) == [LAST + 3] * 2
