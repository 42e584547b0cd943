"""Updates of weights that require gradients: a graph where their values matter, programs where they do not."""

import pytest
import torch

import gradtx
from gradtx.pure import tree_run as definition
from tests.conformance import noise
from tests.optim.problems import assert_equal

SHAPES = {"weight": (3, 4), "bias": (4,)}


@pytest.fixture
def definitions(monkeypatch):
    """The calls that run the definition, leaf by leaf."""
    calls, update = [], definition._update
    monkeypatch.setattr(definition, "_update", lambda *args: calls.append(args) or update(*args))
    return calls


def weights():
    return {name: torch.nn.Parameter(x) for name, x in noise(0, SHAPES, torch.float32).items()}


@pytest.mark.parametrize("make", [gradtx.adam, lambda: gradtx.sgd(0.1, momentum=0.9)], ids=["adam", "sgd"])
def test_a_rule_that_reads_no_weights_records_nothing_and_runs_programs(make, definitions):
    tx, params = make(), weights()
    detached = {name: param.detach() for name, param in params.items()}
    state = expected_state = tx.init(detached)
    for step in range(1, 4):
        grads = noise(step, SHAPES, torch.float32)
        expected, expected_state = tx.update(grads, expected_state, detached)
        updates, state = tx.update(grads, state, params)
        assert not any(update.requires_grad for update in updates.values())
        if step > 1:
            assert_equal(updates, expected)
            assert_equal(state, expected_state)
            state = expected_state
        else:
            torch.testing.assert_close(updates, expected)
            state = expected_state
    assert len(definitions) == 1


@pytest.mark.parametrize("calls", [1, 3])
def test_a_decay_keeps_its_derivative_by_the_weights(calls):
    tx, params = gradtx.adamw(lr=0.1, weight_decay=0.5), weights()
    state, grads = tx.init(params), noise(1, SHAPES, torch.float32)
    for _ in range(calls):
        updates, _ = tx.update(grads, state, params)
    (slope,) = torch.autograd.grad(updates["bias"].sum(), params["bias"])
    torch.testing.assert_close(slope, torch.full((4,), -0.05))


def test_a_decay_has_a_derivative_beside_a_chain_of_the_same_structure_without_one():
    params, grads = weights(), noise(1, SHAPES, torch.float32)
    for decay in (0.0, 0.0, 0.0, 0.5):
        tx = gradtx.adamw(lr=0.1, weight_decay=decay)
        for _ in range(2):
            updates, _ = tx.update(grads, tx.init(params), params)
    (slope,) = torch.autograd.grad(updates["bias"].sum(), params["bias"])
    torch.testing.assert_close(slope, torch.full((4,), -0.05))


def test_gradients_with_a_graph_have_derivatives_after_calls_without():
    tx, params = gradtx.sgd(0.5), weights()
    state, grads = tx.init(params), noise(1, SHAPES, torch.float32)
    for _ in range(3):
        tx.update(grads, state, params)
    updates, _ = tx.update({name: 3 * param for name, param in params.items()}, state, params)
    (slope,) = torch.autograd.grad(updates["bias"].sum(), params["bias"])
    torch.testing.assert_close(slope, torch.full((4,), -1.5))


def test_a_rate_that_learns_has_a_derivative_after_calls_without():
    params, rate = weights(), torch.tensor(0.5, requires_grad=True)
    grads = noise(1, SHAPES, torch.float32)
    for lr in (torch.tensor(0.5), torch.tensor(0.5), rate):
        tx = gradtx.sgd(lr)
        updates, _ = tx.update(grads, tx.init(params), params)
    (slope,) = torch.autograd.grad(updates["bias"].sum(), rate)
    torch.testing.assert_close(slope, -grads["bias"].sum(), check_dtype=False)


def test_an_update_under_no_grad_has_the_bits_of_detached_weights(definitions):
    tx, params = gradtx.adamw(), weights()
    detached = {name: param.detach() for name, param in params.items()}
    state, grads = tx.init(detached), noise(1, SHAPES, torch.float32)
    expected = tx.update(grads, state, detached)
    with torch.no_grad():
        assert_equal(tx.update(grads, state, params), expected)
    assert not definitions


def train(tx, params, steps=110):
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(noise(step, SHAPES, torch.float32), state, params)
        for name, param in params.items():
            param.data.add_(updates[name].detach())
        state = torch.utils._pytree.tree_map(torch.Tensor.detach, state)


def test_a_long_loop_that_records_each_update_says_once_what_that_costs():
    with pytest.warns(UserWarning, match=r"was recorded for autograd.*torch\.no_grad") as caught:
        train(gradtx.adamw(), weights())
    assert len(caught) == 1


def test_a_long_loop_without_recording_warns_of_nothing(recwarn):
    with torch.no_grad():
        train(gradtx.adamw(), weights())
    assert not recwarn.list
