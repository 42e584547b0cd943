import math

import pytest
import torch

import gradtx
from tests.references import finite_without_gradient, first_update, follows


def test_without_decay_it_is_adam():
    tx = gradtx.scale_by_adam_stable_decay((0.8, 0.95), eps=1e-3, weight_decay=0.0)
    follows(tx, gradtx.scale_by_adam((0.8, 0.95), eps=1e-3), rate=-0.02)


def test_the_mean_is_over_entries_of_leaves_with_a_gradient():
    tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0, eps=0.0)
    params = {"large": torch.ones(9, dtype=torch.float64), "small": torch.ones((), dtype=torch.float64)}
    params["frozen"] = torch.ones(1000, dtype=torch.float64)
    grads = {"large": torch.zeros_like(params["large"]) + 1, "small": torch.tensor(11.0).double(), "frozen": None}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["small"].item() == pytest.approx(1 + 1 / math.sqrt((9 + 121) / 10), rel=1e-14)
    assert updates["frozen"] is None


def test_zero_gradients_skip_the_decay():
    tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0)
    assert finite_without_gradient(tx)
    assert first_update(tx, [0.0, 0.0], [1.0, 2.0], steps=3) == [0.0, 0.0]


def test_zero_gradients_have_finite_derivatives():
    def first(scale):
        tx = gradtx.scale_by_adam_stable_decay(weight_decay=1.0)
        params = {"w": torch.ones(2, dtype=torch.float64)}
        return tx.update({"w": scale * params["w"]}, tx.init(params), params)[0]["w"].sum()

    assert torch.func.grad(first)(torch.tensor(0.0, dtype=torch.float64)).isfinite()
