import math

import pytest
import torch

import gradtx
from tests.references import (
    BETA,
    TOLERANCE,
    Loop,
    Transformed,
    arguments,
    difference,
    first_update,
)


def layer_rms(s, t, g, p, beta=0.98, eps=1e-8, amsgrad=False):
    n = (g**2).sum().item()
    s.v = n if s.v == 0 else beta * s.v + (1 - beta) * n
    s.top = max(s.top, s.v)
    return g / (math.sqrt(s.top if amsgrad else s.v) + eps)


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.6, "eps": 0.1}, {"beta": 0.6, "amsgrad": True}, {"beta": BETA, "eps": BETA}], ids=str
)
def test_it_follows_the_loop(options):
    assert difference(gradtx.scale_by_layer_rms(**options), Loop(layer_rms, **options), rate=-0.1) < TOLERANCE
    assert arguments(gradtx.scale_by_layer_rms) == arguments(layer_rms)


def test_eps_is_outside_the_root():
    assert first_update(gradtx.scale_by_layer_rms(eps=5.0), [3.0, 4.0]) == pytest.approx([0.3, 0.4])


def test_the_average_starts_from_the_first_gradient_that_is_not_zero():
    step, params = Transformed(gradtx.scale_by_layer_rms(beta=0.5, eps=1e-8)), {"w": torch.zeros(2)}
    seen = []
    for grad in ([0.0, 0.0], [3.0, 4.0], [0.0, 1.0]):
        step({"w": torch.tensor(grad)}, params)
        seen.append(step.state["scale_by_layer_rms"]["exp_avg_sq"]["w"].item())
    assert seen == [0.0, 25.0, 13.0]


def test_the_average_of_half_precision_gradients_is_exact_and_cannot_overflow():
    params = {"w": torch.full((2, 2), 300.0, dtype=torch.float16)}
    tx = gradtx.scale_by_layer_rms()
    updates, state = tx.update(params, tx.init(params))
    assert state["scale_by_layer_rms"]["exp_avg_sq"]["w"].item() == 4 * 300.0**2
    assert updates["w"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
