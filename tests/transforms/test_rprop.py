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


def test_later_learning_rates_are_not_read():
    falling = gradtx.Schedule(lambda step: 0.5 / (1 + step))
    assert steps(gradtx.scale_by_rprop(falling), [1.0] * 4) == steps(gradtx.scale_by_rprop(0.5), [1.0] * 4)


def test_the_state_starts_with_the_rate_in_the_dtype_of_each_leaf():
    lr = torch.tensor(0.25, dtype=torch.float64)
    params = {"w": torch.zeros(2, 2, dtype=torch.bfloat16), "s": torch.zeros((), dtype=torch.float32)}
    state = gradtx.scale_by_rprop(lr).init(params)["scale_by_rprop"]
    assert state["step_size"]["w"].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    for slot in ("prev", "step_size"):
        assert [state[slot][name].dtype for name in "ws"] == [torch.bfloat16, torch.float32]


def test_factors_and_bounds_may_be_mapped_over_and_differentiated():
    def walk(*numbers):
        lr, shrink, grow, least, most = numbers
        tx = gradtx.scale_by_rprop(lr, (shrink, grow), (least, most))
        state, place = tx.init({"w": torch.zeros(1, dtype=torch.float64)}), 0.0
        for grad in (1.0, 1.0, -1.0, -1.0):
            updates, state = tx.update({"w": torch.tensor([grad], dtype=torch.float64)}, state)
            place = place + updates["w"].sum()
        return place

    numbers = [torch.tensor(x, dtype=torch.float64) for x in (1.0, 0.5, 2.0, 0.1, 9.0)]
    assert walk(*numbers) == -1.0 - 2.0 + 1.0  # -lr - lr * grow + lr * grow * shrink
    slopes = torch.func.grad(walk, argnums=(0, 1, 2, 3, 4))(*numbers)
    assert [slope.item() for slope in slopes] == [-2.0, 2.0, -0.5, 0.0, 0.0]
    many = torch.vmap(walk)(*(torch.stack([x, x]) for x in numbers))
    assert many.tolist() == [-2.0, -2.0]
