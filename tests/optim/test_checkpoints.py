"""Our own checkpoints: saved runs continue bit for bit; a checkpoint that does not fit changes nothing."""

import copy

import pytest
import torch

import gradtx
from tests.optim.chains import CHAINS, WARM_UP
from tests.optim.problems import (
    assert_equal,
    descend,
    parameters,
    saved_and_loaded,
    set_gradients,
    twins,
    unchanged,
    values,
    whole,
)


def trained(tx, steps=7, dtype=torch.float32):
    params = parameters(dtype)
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, steps)
    return optimizer, params


def assert_resumes(tx, dtype=torch.float32):
    """Assert that an optimizer that has taken other steps continues like the first one after loading its state."""
    optimizer, params = trained(tx, dtype=dtype)
    again, own = trained(tx, steps=2, dtype=dtype)
    checkpoint = saved_and_loaded({"optimizer": optimizer.state_dict(), "params": params})
    again.load_state_dict(checkpoint["optimizer"])
    with torch.no_grad():
        for name, param in own.items():
            param.copy_(checkpoint["params"][name])
    set_gradients(params, 6)
    set_gradients(own, 6)
    assert_equal(whole(again), whole(optimizer))
    descend(optimizer, params, 7, start=7)
    descend(again, own, 7, start=7)
    assert_equal(whole(again), whole(optimizer))


@pytest.mark.parametrize("name", CHAINS)
def test_a_saved_run_resumes_bit_for_bit(name):
    assert_resumes(CHAINS[name])


@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_a_saved_run_of_bfloat16_parameters_resumes_bit_for_bit(state_dtype):
    assert_resumes(gradtx.adamw(lr=WARM_UP, state_dtype=state_dtype), torch.bfloat16)


def test_state_keeps_its_dtype_where_torch_would_cast_it_to_the_parameters():
    optimizer, _ = trained(gradtx.adamw(state_dtype=torch.float32), dtype=torch.bfloat16)
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}


def test_a_state_dict_has_the_format_of_torchs():
    optimizer, params = trained(gradtx.adamw())
    theirs = torch.optim.AdamW(params.values())
    descend(theirs, params, 1)
    own, expected = optimizer.state_dict(), theirs.state_dict()
    assert own.keys() == expected.keys()
    assert list(own["state"]) == list(expected["state"])
    assert own["state"][0].keys() == expected["state"][0].keys()
    assert own["param_groups"][0]["params"] == expected["param_groups"][0]["params"]


def test_loading_neither_changes_the_given_state_dict_nor_ties_it_to_the_optimizer():
    optimizer, params = trained(CHAINS["record"])
    saved = saved_and_loaded(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    for _ in range(2):  # loading twice is the same as loading once
        optimizer.load_state_dict(saved)
        descend(optimizer, params, 2)
        assert_equal(saved, kept)


def test_a_state_dict_loads_into_the_optimizer_that_it_came_from():
    optimizer, _ = trained(CHAINS["design"])
    with unchanged(optimizer):
        optimizer.load_state_dict(optimizer.state_dict())


def test_a_list_in_place_of_a_parameters_number_is_an_error_that_changes_nothing():
    optimizer, _ = trained(CHAINS["design"])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["params"] = [[]]
    with unchanged(optimizer), pytest.raises(TypeError, match=r"entry of 'params' of loaded group 0 .*, got \[\]"):
        optimizer.load_state_dict(saved)


def test_an_older_checkpoint_takes_everything_back():
    optimizer, params = trained(CHAINS["accumulate"])
    saved, old = saved_and_loaded(optimizer.state_dict()), values(params)
    descend(optimizer, params, 4, start=7)
    expected = values(params)
    descend(optimizer, params, 4, start=11)
    optimizer.load_state_dict(saved)
    with torch.no_grad():
        for param, value in zip(params.values(), old, strict=True):
            param.copy_(value)
    descend(optimizer, params, 4, start=7)
    assert_equal(values(params), expected)


def test_hyperparameters_come_from_the_checkpoint_as_in_torch():
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        saved = module.AdamW(params.values(), lr=0.5, betas=(0.1, 0.2)).state_dict()
        optimizer = module.AdamW(params.values(), lr=0.3)
        optimizer.load_state_dict(saved)
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (0.5, (0.1, 0.2))


@pytest.mark.parametrize(("saved", "built"), [(0.0, 0.9), (0.9, 0.0), (0.9, 0.5)])
def test_momentum_comes_from_the_checkpoint_whatever_the_optimizer_was_built_with(saved, built):
    params = parameters()
    optimizer = gradtx.optim.SGD(params.values(), lr=0.1, momentum=saved)
    descend(optimizer, params, 3)
    own = twins(params)
    again = gradtx.optim.SGD(own.values(), momentum=built)
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    descend(optimizer, params, 3, start=3)
    descend(again, own, 3, start=3)
    assert_equal(values(own), values(params))


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ["SGD", "RMSprop"])
def test_a_momentum_that_was_written_since_the_last_step_is_saved_with_its_buffers(name, steps):
    params = parameters()
    optimizer = getattr(gradtx.optim, name)(params.values(), lr=0.1)
    descend(optimizer, params, steps)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)  # writes a momentum
    saved = saved_and_loaded(optimizer.state_dict())
    own = twins(params)
    again = getattr(gradtx.optim, name)(own.values(), lr=0.1)
    again.load_state_dict(saved)
    descend(optimizer, params, 3, start=steps)
    descend(again, own, 3, start=steps)
    assert_equal(values(own), values(params))


def test_a_parameter_without_any_entry_starts_again_with_its_next_gradient():
    optimizer, _ = trained(gradtx.adam(lr=0.1))
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][1]
    again, own = trained(gradtx.adam(lr=0.1), steps=2)
    again.load_state_dict(saved)
    assert own["body.bias"] not in again.state
    again.state_dict()
    state = again.state[own["body.bias"]]
    assert_equal(dict(state), {"step": torch.tensor(0.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)})
    assert again.state[own["body.weight"]]["step"].item() == 7


def test_shared_state_is_fresh_too_where_the_checkpoint_has_none():
    optimizer, _ = trained(gradtx.accumulate(gradtx.sgd(lr=1.0), every=2), steps=1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"] = {}
    optimizer.load_state_dict(saved)
    assert {entry["mini_step"].item() for entry in optimizer.state_dict()["state"].values()} == {0}


def test_state_that_belongs_to_no_parameter_is_kept_as_in_torch():
    optimizer, _ = trained(gradtx.adam())
    optimizer.state["note"] = {"epoch": 3}
    again, _ = trained(gradtx.adam())
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert again.state["note"] == {"epoch": 3}


def test_parameters_may_be_numbered_by_anything_as_in_torch():
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        optimizer = module.AdamW(params.values())
        descend(optimizer, params, 2)
        saved = saved_and_loaded(optimizer.state_dict())
        saved["state"] = {f"p{i}": entry for i, entry in saved["state"].items()}
        saved["param_groups"][0]["params"] = [f"p{i}" for i in range(4)]
        again = module.AdamW(params.values())
        again.load_state_dict(saved)
        assert set(again.state) == set(params.values())
        assert again.state[params["body.bias"]]["step"].item() == 2


def test_the_state_of_a_lazy_parameter_is_loaded_after_its_first_forward_pass():
    source = torch.nn.Linear(3, 2)
    optimizer = gradtx.optim.AdamW(source.parameters())
    source(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    lazy = torch.nn.LazyLinear(2)
    again = gradtx.optim.AdamW(lazy.parameters())
    with pytest.raises(ValueError, match=r"'0' has no values yet.*; load it after the first forward pass"):
        again.load_state_dict(optimizer.state_dict())
    lazy(torch.ones(1, 3)).sum().backward()
    again.load_state_dict(optimizer.state_dict())
    again.step()
    assert again.state[lazy.weight]["step"].item() == 2


def named(names, steps):
    params = [(name, torch.nn.Parameter(torch.ones(3))) for name in names]
    optimizer = gradtx.optim.AdamW(params)
    for i in range(steps):
        for k, (_, param) in enumerate(params):
            param.grad = torch.full((3,), 1.0 + i + k)
        optimizer.step()
    return optimizer


def test_names_in_another_order_than_in_the_checkpoint_warn_since_state_goes_by_position():
    saved = named(["a", "b", "c"], 2).state_dict()
    loaded = named(["a", "c", "b"], 0)
    message = (
        "^AdamW: the checkpoint has 'b' where this optimizer has 'c'; state is loaded by position, as in torch.optim"
    )
    with pytest.warns(UserWarning, match=message):
        loaded.load_state_dict(saved)
