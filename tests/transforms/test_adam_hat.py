import math

import pytest
import torch

import gradtx
from tests.references import Transformed, first_update


def test_softplus_is_the_identity_above_torchs_threshold():
    # One step: sqrt(v) = |g| / 2, and b sqrt(v) on both sides of 20, where log(1 + exp(x)) - x is 2e-9.
    below, above = (
        first_update(gradtx.scale_by_adam_hat((0.0, 0.75), softplus=b), [2.0])[0] for b in (19.9999, 20.0001)
    )
    assert above == pytest.approx(1.0, rel=1e-15)
    assert 1 - below == pytest.approx(math.log1p(math.exp(-19.9999)) / 19.9999, rel=1e-4)


def test_softplus_of_large_roots_has_finite_gradients():
    def first(scale):
        tx = gradtx.scale_by_adam_hat(softplus=50.0)
        grads = {"w": scale * torch.tensor([0.0, 1e-3, 1e8], dtype=torch.float64)}
        return tx.update(grads, tx.init(grads))[0]["w"].sum()

    assert torch.func.grad(first)(torch.tensor(1.0, dtype=torch.float64)).isfinite()


def test_yogi_keeps_its_square_above_zero():
    step = Transformed(gradtx.scale_by_yogi((0.0, 0.0), initial_accumulator_value=1e-6))
    for t in range(50):
        grad = torch.tensor([1e-3, 0.9e-3, 1e-3 * 0.5**t], dtype=torch.float64)
        assert step({"w": grad}, {"w": grad})["w"].isfinite().all()
    assert (step.state["scale_by_yogi"]["exp_avg_sq"]["w"] >= 0).all()
