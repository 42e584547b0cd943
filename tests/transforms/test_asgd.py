import pytest
import torch

import gradtx
from tests.references import TOLERANCE, Transformed, arguments, difference

# Loops and torch's own: tests/optimizers/test_sgd.py, tests/optim/test_equals_torch.py.


def test_without_decay_it_is_gradient_descent():
    assert difference(gradtx.scale_by_asgd(lr=0.1, lambd=0.0), gradtx.scale_by_learning_rate(0.1)) < TOLERANCE


def test_rates_are_kept_in_float64_beside_float32_weights():
    params = {"w": torch.ones(3)}
    tx = gradtx.scale_by_asgd(lr=0.1, lambd=0.3, alpha=0.5, t0=0.0)
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    kept = {name: leaves["w"] for name, leaves in state["scale_by_asgd"].items()}
    assert kept["eta"].item() == pytest.approx(0.1 / (1 + 0.3 * 0.1 * 3) ** 0.5, rel=1e-15)
    assert kept["mu"].item() == pytest.approx(1 / 3, rel=1e-15)
    assert {name: slot.dtype for name, slot in kept.items()} == {
        "ax": torch.float32,
        "eta": torch.float64,
        "mu": torch.float64,
    }


def test_a_rate_acts_one_step_after_it_was_given():
    step, params, sizes = Transformed(gradtx.scale_by_asgd(lr=gradtx.Schedule(lambda t: 1.0 + t))), torch.zeros(1), []
    for _ in range(4):
        sizes.append(-step({"w": torch.ones(1)}, {"w": params})["w"].item())
    # with a decay of 1e-4 per step and unit of the rate
    assert sizes == pytest.approx([1.0, 1.0, 2.0, 3.0], rel=2e-3)


def test_the_average_before_the_first_step_is_the_weights():
    params = {"w": torch.tensor([3.0])}
    tx = gradtx.scale_by_asgd()
    assert tx.eval_params(tx.init(params), params)["w"].tolist() == [3.0]


def test_defaults_are_those_of_torch():
    decay = ("weight_decay", 0.0)
    assert [pair for pair in arguments(gradtx.asgd) if pair != decay] == arguments(gradtx.scale_by_asgd)
