"""FSDP2: parameters are DTensors, of which some processes have nothing."""

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor

import gradtx
from gradtx.base.dtensor import local
from tests.distributed.problems import (
    CHAINS,
    WITH_CLOSURES,
    Model,
    assert_close,
    batch,
    loss_of,
    sharded,
    states,
    train,
    weights,
)
from tests.tiers import by_day

each_engine = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])


def made(tx, model, compile=False):
    return gradtx.as_optimizer(tx, model.named_parameters(), compile=compile)


def pieces_differ():
    return [param.to_local().numel() for param in sharded().parameters()]


def test_sizes_are_odd_and_some_pieces_are_empty(two):
    first, second = two.run(pieces_differ)
    assert any(a != b > 0 for a, b in zip(first, second, strict=True))
    assert 0 in second


def run(name, model, compile=False):
    """Losses, weights, states and weights to evaluate with after training, and the optimizer."""
    closure = name in WITH_CLOSURES
    optimizer = made({**CHAINS, **WITH_CLOSURES}[name], model, compile)
    found = [train(model, optimizer, closure=closure), weights(model), states(model, optimizer)]
    with optimizer.eval_params():
        found.append(weights(model))
    return found, optimizer


def sharded_run(name, compile):
    found, optimizer = run(name, sharded(), compile)
    for state in optimizer.state.values():
        for key, value in state.items():
            assert isinstance(value, DTensor) == (value.ndim > 0), key
    return found


@by_day(
    "clip and adamw-compiled", "centralize-eager", "cautious-compiled", "regenerate-eager", "accumulate-compiled",
    "skip-eager", "freeze-compiled", "lookahead-eager", "plain functions-eager", "divided otherwise-eager",
)  # fmt: skip
@each_engine
@pytest.mark.parametrize("name", [*CHAINS, *WITH_CLOSURES])
def test_a_sharded_run_equals_that_of_one_process(name, compile, two):
    expected, _ = run(name, Model())
    assert any(not torch.equal(a, b) for a, b in zip(expected[1], weights(Model()), strict=True))
    for found in two.run(sharded_run, name, compile):
        assert_close(found, expected)


def a_scaler_finds_what_is_infinite_elsewhere(name, compile):
    plain, divided = Model(), sharded()
    found = []
    for model, optimizer in ((plain, made(CHAINS[name], plain)), (divided, made(CHAINS[name], divided, compile))):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for t in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch(t))).backward()
            if t == 1 and (model is plain or distributed.get_rank() == 0):
                local(next(model.parameters()).grad).view(-1)[0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
        found.append((weights(model), states(model, optimizer), scaler.get_scale()))
    assert_close(found[1][0], found[0][0])
    assert_close(found[1][1], found[0][1])
    assert found[0][2] == found[1][2] == 2.0


@each_engine
@pytest.mark.parametrize("name", ["clip and adamw", "adamp"])
def test_a_grad_scaler_skips_a_step_that_is_infinite_on_one_process(name, compile, two):
    two.run(a_scaler_finds_what_is_infinite_elsewhere, name, compile)


def evaluated_between_steps(model, end=lambda: None):
    """Losses of training steps and of evaluations between them."""
    optimizer = made(gradtx.schedule_free_adamw(lr=1e-2), model)
    losses = []
    for t in range(3):
        losses += train(model, optimizer, steps=1, start=t)
        optimizer.eval()
        with torch.no_grad():
            losses.append(loss_of(model, batch(9)).item())
        end()
        optimizer.train()
    return losses


def sharded_evaluations():
    model = sharded()
    return evaluated_between_steps(model, model.reshard)


def test_modules_that_are_resharded_see_the_weights_to_evaluate_with_and_to_train_with(two):
    expected = evaluated_between_steps(Model())
    for losses in two.run(sharded_evaluations):
        assert_close(losses, expected)
