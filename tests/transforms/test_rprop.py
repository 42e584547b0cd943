import pytest
import torch

import gradtx


def steps(tx, grads, dtype=torch.float64):
    state, updates = tx.init({"w": torch.zeros(1, dtype=dtype)}), []
    for grad in grads:
        update, state = tx.update({"w": torch.tensor([grad], dtype=dtype)}, state)
        updates.append(update["w"].item())
    return updates


def test_a_product_of_gradients_that_underflows_still_has_its_sign():
    assert steps(gradtx.scale_by_rprop(1.0), [1e-30, 1e-30], torch.float32) == pytest.approx([-1.0, -1.2])
    assert steps(gradtx.scale_by_rprop(1.0), [1e-200, -1e-200]) == [-1.0, 0.0]


def test_the_state_starts_with_the_rate_in_the_dtype_of_each_leaf():
    lr = torch.tensor(0.25, dtype=torch.float64)
    params = {"w": torch.zeros(2, 2, dtype=torch.bfloat16), "s": torch.zeros((), dtype=torch.float32)}
    state = gradtx.scale_by_rprop(lr).init(params)["scale_by_rprop"]
    assert state["step_size"]["w"].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    for slot in ("prev", "step_size"):
        assert [state[slot][name].dtype for name in "ws"] == [torch.bfloat16, torch.float32]
