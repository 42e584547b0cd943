"""Hooks: all of torch.optim's, at the same points, with the same effects."""

import copy

import pytest
import torch
from torch.optim import optimizer as torch_optimizer

import gradtx
from tests.optim.problems import assert_equal, descend, parameters, set_gradients, values, whole


def made(module=gradtx.optim, **options):
    params = parameters()
    return module.AdamW(params.values(), **options), params


def log_of(module):
    """Record the arguments with which the hooks of an optimizer are called, in order."""
    optimizer, params = made(module)
    log = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: log.append(("step pre", o is optimizer, args[1:], kwargs)))
    optimizer.register_step_post_hook(
        lambda o, args, kwargs: log.append(("step post", o is optimizer, args[1:], kwargs))
    )
    optimizer.register_state_dict_pre_hook(lambda o: log.append("state_dict pre"))
    optimizer.register_state_dict_post_hook(lambda o, state: log.append(("state_dict post", sorted(state))))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: log.append(("load pre", sorted(state))))
    optimizer.register_load_state_dict_post_hook(lambda o: log.append("load post"))
    handles = [
        torch_optimizer.register_optimizer_step_pre_hook(lambda o, args, kwargs: log.append("global pre")),
        torch_optimizer.register_optimizer_step_post_hook(lambda o, args, kwargs: log.append("global post")),
    ]
    try:
        descend(optimizer, params, 2)
        optimizer.step(closure=None)
    finally:
        for handle in handles:
            handle.remove()
    optimizer.load_state_dict(optimizer.state_dict())
    descend(optimizer, params, 1)
    return log


def test_every_hook_is_called_as_torch_calls_it():
    assert log_of(gradtx.optim) == log_of(torch.optim)


def test_a_removed_hook_is_not_called():
    optimizer, params = made()
    log = []
    optimizer.register_step_post_hook(lambda *args: log.append(1)).remove()
    descend(optimizer, params, 1)
    assert not log


def test_a_step_pre_hook_may_change_the_arguments():
    optimizer, params = made()
    set_gradients(params)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((args[0], lambda: torch.tensor(3.0)), {}))
    assert optimizer.step().item() == 3.0


def test_a_step_pre_hook_may_change_gradients_and_hyperparameters():
    (hooked, params), (plain, others) = made(lr=0.1), made(lr=0.05)

    def halve(optimizer, args, kwargs):
        optimizer.param_groups[0]["lr"] = 0.05
        for param in optimizer.param_groups[0]["params"]:
            param.grad = param.grad / 2

    hooked.register_step_pre_hook(halve)
    set_gradients(params)
    for param, other in zip(params.values(), others.values(), strict=True):
        other.grad = param.grad / 2
    hooked.step()
    plain.step()
    assert_equal(values(params), values(others))


def test_a_step_post_hook_sees_the_finished_step():
    optimizer, params = made()
    steps = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: steps.append(o.state[params["body.bias"]]["step"].item()))
    descend(optimizer, params, 2)
    assert steps == [1.0, 2.0]


def failing(*args):
    raise RuntimeError("hook")


def test_a_post_hook_that_raises_leaves_a_finished_step():
    (optimizer, params), (plain, others) = made(), made()
    descend(plain, others, 1)
    handle = optimizer.register_step_post_hook(failing)
    with pytest.raises(RuntimeError, match="hook"):
        descend(optimizer, params, 1)
    assert_equal(whole(optimizer), whole(plain))
    handle.remove()
    descend(optimizer, params, 1, start=1)


def test_state_dict_hooks_may_replace_what_is_saved_and_loaded():
    optimizer, params = made()
    descend(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "version": 7})
    assert optimizer.state_dict()["version"] == 7
    again, own = made()
    again.register_load_state_dict_pre_hook(lambda o, state: saved)
    again.load_state_dict({"nothing": "of use"})
    assert again.state[own["body.bias"]]["step"].item() == 3


def test_state_dict_hooks_see_all_that_is_saved_and_may_replace_all_of_it():
    matrix = torch.nn.Parameter(torch.ones(64, 64))

    def fresh():
        options = {"lr": gradtx.cosine_schedule(0.1, 9), "state_dtype": "int8"}
        return gradtx.optim.Muon([matrix], fallback=gradtx.adamw(), **options)

    optimizer = fresh()
    matrix.grad = torch.ones_like(matrix)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25  # over the schedule
    expected = optimizer.state_dict()
    saved = []
    optimizer.register_state_dict_post_hook(lambda o, state: saved.append(copy.deepcopy(state)))
    optimizer.register_state_dict_post_hook(lambda o, state: {"optimizer": state})
    assert_equal(optimizer.state_dict(), {"optimizer": expected})
    assert_equal(saved, [expected])
    again = fresh()
    again.load_state_dict(saved[0])
    assert again.param_groups[0]["lr"] == 0.25
