import pytest
import torch

import gradtx
from tests.references import Loop, follows

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
