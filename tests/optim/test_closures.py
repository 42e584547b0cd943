"""Closures: the loss, gradients at other points, and other extras reach the links that need them."""

import pytest
import torch

import gradtx
from tests.optim.problems import (
    assert_close,
    assert_equal,
    descend,
    loss_of,
    made,
    parameters,
    set_gradients,
    unchanged,
    values,
    whole,
)

TOLERANCE = 1e-12  # the same float64 sums in a different order


@gradtx.whole_tree(needs=("grad_fn", "params"))
def sam(rho: gradtx.Scalar = 0.05):
    """Foret et al. 2020: the gradient at a nearby point uphill."""

    def update(updates, state, params, ctx):
        norm = torch.stack([u.square().sum().to(torch.float64) for u in updates.values()]).sum().sqrt()
        return ctx.grad_fn({name: params[name] + rho * u / (norm + 1e-12) for name, u in updates.items()}), state

    return update


@gradtx.per_tensor(needs=("value",))
def scale_by_value():
    def update(update, state, param, ctx):
        return -ctx.value * update, state

    return update


def closure_of(optimizer, params, calls=None, fail_at=None):
    def closure():
        calls is not None and calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        if calls is not None and len(calls) == fail_at:
            raise RuntimeError("out of memory")
        return loss

    return closure


def ones(params):
    for param in params.values():
        param.grad = torch.ones_like(param)


def moved(params, before):
    return [param.detach() - old for param, old in zip(params.values(), before, strict=True)]


def test_step_runs_the_closure_once_with_grad_enabled_and_returns_the_loss():
    optimizer, params = made(gradtx.sgd(lr=0.1))
    calls = []
    expected = loss_of(params)
    with torch.no_grad():
        loss = optimizer.step(closure_of(optimizer, params, calls))
    assert calls == [True]
    assert_equal(loss.detach(), expected.detach())


def test_a_closure_gives_the_trajectory_of_torch():
    results = []
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        optimizer = module.AdamW(params.values(), lr=0.1)
        for _ in range(10):
            optimizer.step(closure=closure_of(optimizer, params))
        results.append(params.values())
    assert_close(*results, tolerance=TOLERANCE)


@pytest.mark.parametrize("value", [3.0, 3, torch.tensor(3.0), torch.tensor(3.0, dtype=torch.bfloat16)], ids=str)
def test_the_loss_reaches_a_link_that_needs_it(value):
    optimizer, params = made(scale_by_value())
    for step in (lambda: optimizer.step(lambda: value), lambda: optimizer.step(value=value)):
        ones(params)
        before = values(params)
        step()
        assert_close(moved(params, before), [torch.full_like(p, -3.0) for p in before], TOLERANCE)


def test_sam_in_the_adapter_equals_the_functional_loop():
    tx = gradtx.chain(sam(0.1), gradtx.clip_by_global_norm(1.0), gradtx.adam(lr=0.1))
    optimizer, params = made(tx)
    calls = []
    closure = closure_of(optimizer, params, calls)

    def grads_at(at):
        at = {name: value.detach().requires_grad_() for name, value in at.items()}
        return dict(zip(at, torch.autograd.grad(loss_of(at), list(at.values())), strict=True))

    expected = {name: param.detach() for name, param in parameters().items()}
    state = tx.init(expected)
    for _ in range(6):
        optimizer.step(closure)
        updates, state = tx.update(grads_at(expected), state, expected, grad_fn=grads_at)
        expected = gradtx.apply_updates(expected, updates)
    assert len(calls) == 12
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_sam_inside_a_chain_with_frozen_leaves_and_a_partition_moves_the_others_only():
    branches = {"bias": gradtx.sgd(lr=0.1), "weight": gradtx.adamw(lr=0.1)}
    tx = gradtx.chain(sam(), gradtx.partition(branches, {"bias": "*.bias", "weight": "*"}), gradtx.freeze("head.*"))
    optimizer, params = made(tx)
    before = values(params)
    optimizer.step(closure_of(optimizer, params))
    changed = [not torch.equal(param, old) for param, old in zip(params.values(), before, strict=True)]
    assert changed == [True, True, False, False]


def test_sam_puts_half_precision_weights_back_bit_for_bit():
    optimizer, params = made(gradtx.chain(sam(), gradtx.scale(0.0)), parameters(torch.bfloat16))
    before = values(params)
    optimizer.step(closure_of(optimizer, params))
    assert_equal(values(params), before)


def test_gradients_after_a_step_of_sam_are_those_of_the_first_call():
    optimizer, params = made(gradtx.chain(sam(), gradtx.sgd(lr=0.1)))
    expected = torch.autograd.grad(loss_of(params), list(params.values()))
    optimizer.step(closure_of(optimizer, params))
    assert_equal([param.grad for param in params.values()], list(expected))


def test_weights_state_and_gradients_are_put_back_when_the_closure_raises():
    optimizer, params = made(gradtx.chain(sam(), gradtx.sgd(lr=0.1, momentum=0.9)))
    optimizer.step(closure_of(optimizer, params))
    before = whole(optimizer, grads=False)
    expected = torch.autograd.grad(loss_of(params), list(params.values()))
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure_of(optimizer, params, calls=[], fail_at=2))
    assert_equal(whole(optimizer, grads=False), before)
    assert_equal([param.grad for param in params.values()], list(expected))


def test_a_closure_that_raises_at_once_changes_nothing():
    optimizer, params = made(gradtx.adam())
    descend(optimizer, params, 2)

    def closure():
        raise RuntimeError("out of data")

    with unchanged(optimizer), pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(closure)


def test_a_closure_may_itself_take_a_step():
    optimizer, params = made(gradtx.sgd(lr=1.0))
    before = values(params)

    def closure():
        ones(params)
        optimizer.step()
        return torch.tensor(2.0)

    assert optimizer.step(closure) == 2.0
    assert_close(moved(params, before), [torch.full_like(p, -2.0) for p in before], TOLERANCE)


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (sam(), r"sam needs grad_fn: call step\(closure\)$"),
        (scale_by_value(), r"scale_by_value needs value: call step\(closure"),
    ],
    ids=["sam", "value"],
)
def test_a_missing_closure_is_an_error_that_says_what_to_call_and_changes_nothing(tx, message):
    optimizer, params = made(gradtx.chain(tx, gradtx.trace(0.9)))
    set_gradients(params)
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step()


def test_a_closure_that_returns_nothing_gives_no_value():
    optimizer, params = made(scale_by_value())
    set_gradients(params)
    with unchanged(optimizer), pytest.raises(ValueError, match="scale_by_value needs value"):
        optimizer.step(lambda: None)


def test_a_loss_that_is_no_single_number_is_an_error_where_a_link_needs_it():
    optimizer, params = made(scale_by_value())
    set_gradients(params)
    with unchanged(optimizer), pytest.raises(ValueError, match="value"):
        optimizer.step(lambda: torch.ones(3))


@pytest.mark.parametrize("tx", [gradtx.sam(gradtx.sgd(lr=0.1)), gradtx.line_search(gradtx.sgd(lr=0.1))], ids=repr)
def test_a_closure_without_backward_is_an_error_where_a_link_calls_it_again(tx):
    optimizer, params = made(tx)
    with (
        unchanged(optimizer),
        pytest.raises(RuntimeError, match="the closure computed no gradients; it must call zero_grad"),
    ):
        optimizer.step(lambda: loss_of(params))
