"""Factors and measurements that a function of the user's computes."""

import pytest
import torch

import gradtx


def slower_where_steep(state, norm, value, epoch):
    usual = torch.where(epoch > 0, 0.5 * state["usual"] + 0.5 * norm, state["usual"])
    return torch.where(value > 1.0, 1.0, 0.5) / usual, {"usual": usual, "calls": state["calls"] + 1}


START = {"usual": 1.0, "calls": 0}
LOSSES, EPOCHS = [2.0, 0.5, 3.0, 0.1], [0, 1, 1, 2]


def by_loop(gradients):
    usual = 1.0
    for gradient, loss, epoch in zip(gradients, LOSSES, EPOCHS, strict=True):
        norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
        usual = 0.5 * usual + 0.5 * norm if epoch > 0 else usual
        yield {name: g * (1.0 if loss > 1.0 else 0.5) / usual for name, g in gradient.items()}


def gradients():
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    return [{"a": draw(3), "b": draw(2, 2)} for _ in LOSSES]


def test_a_factor_of_the_loss_of_norms_and_of_extras_follows_the_loop():
    tx = gradtx.scale_by_stateful(slower_where_steep, START)
    assert set(tx.needs) == {"value", "epoch"}
    params = {name: torch.zeros_like(g) for name, g in gradients()[0].items()}
    state = tx.init(params)
    for grads, expected, loss, epoch in zip(gradients(), by_loop(gradients()), LOSSES, EPOCHS, strict=True):
        updates, state = tx.update(grads, state, params, value=loss, epoch=epoch)
        torch.testing.assert_close(updates, expected)
    assert state["scale_by_stateful"]["calls"] == 4


@pytest.mark.parametrize("compile", [False, True])
def test_an_optimizer_takes_the_same_steps(compile):
    tx = gradtx.scale_by_stateful(slower_where_steep, START)
    weights = {name: torch.nn.Parameter(torch.zeros_like(g)) for name, g in gradients()[0].items()}
    optimizer = gradtx.as_optimizer(tx, weights.items(), compile=compile)
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for grads, expected, loss, epoch in zip(gradients(), by_loop(gradients()), LOSSES, EPOCHS, strict=True):
        for name, weight in weights.items():
            weight.grad, total[name] = grads[name], total[name] + expected[name]
        optimizer.step(value=loss, epoch=epoch)
    for name, weight in weights.items():
        torch.testing.assert_close(weight.detach(), total[name].detach())


@pytest.mark.parametrize("debias", [True, False])
def test_a_measurement_is_the_running_average_of_a_function(debias):
    tx = gradtx.chain(
        gradtx.scale(2.0), gradtx.measure("share", lambda updates: (updates["a"] > 0).double().mean(), 0.8, debias)
    )
    state, mean = tx.init(gradients()[0]), 0.0
    for t, grads in enumerate(gradients(), 1):
        updates, state = tx.update(grads, state)
        torch.testing.assert_close(updates["a"], 2 * grads["a"])
        mean = 0.8 * mean + 0.2 * float((grads["a"] > 0).double().mean())
        expected = mean / (1 - 0.8**t) if debias else mean
        assert gradtx.recorded(state) == {"measure/share": pytest.approx(expected)}


def test_an_optimizer_shows_measurements():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = gradtx.as_optimizer(gradtx.chain(gradtx.measure("count", len), gradtx.sgd(lr=0.1)), [("w", weight)])
    weight.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.recorded() == {"measure/count": 1.0}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradtx.scale_by_stateful(1.0, {}), TypeError, "step must be a function of a state, got 1.0"),
        (lambda: gradtx.scale_by_stateful(len, {"a": "b"}), TypeError, "start must be a dict of numbers"),
        (lambda: gradtx.measure("step", len), ValueError, "name must be an identifier other than 'step'"),
        (lambda: gradtx.measure("size", 3), TypeError, "fn must be a function of updates, got 3"),
    ],
)
def test_bad_options_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_another_state_and_a_missing_loss_are_named():
    params = {"w": torch.ones(2)}
    tx = gradtx.scale_by_stateful(lambda state: (1.0, {}), {"a": 1.0})
    with pytest.raises(TypeError, match=r"must return \(factor, state\) with the state \['a'\]"):
        tx.update(params, tx.init(params))
    tx = gradtx.scale_by_stateful(lambda state, value: (value, state), {})
    with pytest.raises(ValueError, match="scale_by_stateful needs value"):
        tx.update(params, tx.init(params))
