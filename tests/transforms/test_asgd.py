import pytest
import torch

import gradtx

# Loops and torch's own: tests/optimizers/test_sgd.py, tests/optim/test_equals_torch.py.


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
