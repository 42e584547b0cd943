import math

import pytest
import torch

import gradtx
from tests.references import Loop, Transformed, follows

FALLING = gradtx.linear_schedule(0.9, start_factor=1.0, end_factor=0.2, total_iters=20)


def test_a_literal_momentum_of_zero_leaves_the_link_out():
    tx = gradtx.trace(0.0, dampening=0.5)
    follows(tx, gradtx.chain(), rate=-0.1, tolerance=0.0)
    assert tx.init({"w": torch.zeros(2)}).keys() <= {"step"}


def ema(s, t, g, p, decay, debias=False):
    s.m = decay * s.m + (1 - decay) * g
    return s.m / (1 - decay**t) if debias else s.m


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9, FALLING], ids=str)
def test_ema_follows_the_loop(decay, debias):
    options = {"decay": decay, "debias": debias}
    follows(gradtx.ema(**options), Loop(ema, **options), rate=-0.1)


def trace_ema(s, t, g, p, beta, nesterov=False):
    s.b = beta * s.b + (1 - beta) * g
    return beta * s.b + (1 - beta) * g if nesterov else s.b


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.9, FALLING], ids=str)
def test_trace_ema_follows_the_loop(beta, nesterov):
    options = {"beta": beta, "nesterov": nesterov}
    follows(gradtx.trace_ema(**options), Loop(trace_ema, **options), rate=-0.1)


def test_trace_ema_keeps_its_average_as_a_momentum_buffer():
    tx = gradtx.trace_ema(0.75, nesterov=True)
    _, state = tx.update({"w": torch.tensor([8.0])}, tx.init({"w": torch.zeros(1)}))
    assert state["trace_ema"]["momentum_buffer"]["w"].tolist() == [2.0]


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}], ids=str)
def test_nesterov_without_momentum_or_with_dampening_is_an_error(options):
    with pytest.raises(ValueError, match=r"^trace: nesterov needs a momentum above 0 and a dampening of 0$"):
        gradtx.trace(nesterov=True, **options)


# EMA-Nesterov.


def test_ema_nesterov_is_the_lookahead_of_a_plain_loop():
    rates = gradtx.Schedule(lambda step: 0.5 * 0.9**step)
    for options in ({}, {"decay": 0.7, "step_size": rates}, {"decay": 0.8, "step_size": rates, "start": 3, "stop": 9}):
        decay, step_size = options.get("decay", 0.99), options.get("step_size", 0.3)
        start, stop = options.get("start", 0), options.get("stop") or math.inf
        tx = gradtx.chain(gradtx.scale_by_adam((0.5, 0.8)), gradtx.scale(-0.05), gradtx.ema_nesterov(**options))
        inner = Transformed(gradtx.chain(gradtx.scale_by_adam((0.5, 0.8)), gradtx.scale(-0.05)))

        def reach(t, step_size=step_size, start=start, stop=stop):
            size = step_size(t - 1) if isinstance(step_size, gradtx.Schedule) else step_size
            return size if start < t <= stop else 0.0

        for seed in (0, 1):
            x = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            params, state = {"w": x}, tx.init({"w": x})
            average = torch.zeros_like(x)
            inner.state = None
            for t in range(1, 14):
                y = x + reach(t) * average
                torch.testing.assert_close(params["w"], y, rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(tx.eval_params(state, params)["w"], x, rtol=1e-12, atol=1e-12)
                grad = y.sin() + 0.1 * t
                last, x = x, y + inner({"w": grad}, {"w": y})["w"]
                average = decay * average + (1 - decay) * (x - last)
                updates, state = tx.update({"w": grad}, state, params)
                params = gradtx.apply_updates(params, updates)


@pytest.mark.parametrize("compile", [False, True])
def test_ema_nesterov_sees_the_next_number_of_a_schedule_in_an_optimizer_too(compile):
    tx = gradtx.chain(
        gradtx.sgd(lr=0.1), gradtx.ema_nesterov(0.5, gradtx.Schedule(lambda step: 1.0 / (1 + step)), stop=6)
    )
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = gradtx.as_optimizer(tx, [("w", weight)], compile=compile)
    params = {"w": weight.detach().clone()}
    state = tx.init(params)
    for _ in range(8):
        grads = {"w": params["w"].sin()}
        weight.grad = grads["w"].clone()
        optimizer.step()
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        torch.testing.assert_close(weight.detach(), params["w"], rtol=1e-12, atol=1e-12)
    with optimizer.eval_params():
        torch.testing.assert_close(weight.detach(), tx.eval_params(state, params)["w"], rtol=1e-12, atol=1e-12)
