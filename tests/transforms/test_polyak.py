import pytest
import torch

import gradtx
from tests.references import problem


def test_the_norm_is_that_of_the_gradient_before_the_chain():
    params = {"w": torch.tensor([3.0, 4.0])}
    tx = gradtx.chain(gradtx.scale(10.0), gradtx.scale_by_polyak(eps=0.0))
    updates, _ = tx.update(params, tx.init(params), params, value=5.0)
    torch.testing.assert_close(updates["w"], torch.tensor([-6.0, -8.0]))


def test_a_gradient_of_zero_gives_no_step_even_without_eps():
    params = {"w": torch.zeros(2)}
    tx = gradtx.scale_by_polyak(eps=0.0)
    assert not tx.update(params, tx.init(params), params, value=2.0)[0]["w"].any()


def test_a_loss_in_float64_counts_with_all_its_digits():
    params = {"w": torch.ones(1, dtype=torch.float64)}
    tx = gradtx.scale_by_polyak(eps=0.0)
    for value in (1 / 3, torch.tensor(1 / 3, dtype=torch.float64)):
        assert tx.update(params, tx.init(params), params, value=value)[0]["w"].item() == -1 / 3


def test_the_last_link_puts_all_weights_on_the_ball_and_leaves_those_within_alone():
    params = problem()
    grads = {name: 3 * p for name, p in params.items()}
    size = torch.stack([(p + 3 * p).square().sum() for p in params.values()]).sum().sqrt()
    tx = gradtx.project_l2_ball(size.item() / 4)
    updates, _ = tx.update(grads, tx.init(params), params)
    torch.testing.assert_close(gradtx.apply_updates(params, updates), params)  # four times as far, a quarter of it
    small = {name: 1e-3 * p.sin() for name, p in params.items()}  # of which p + u - p loses digits
    tx = gradtx.project_l2_ball(size.item())
    updates, _ = tx.update(small, tx.init(params), params)
    assert all(torch.equal(updates[name], small[name]) for name in small)


def test_a_leaf_without_gradient_neither_counts_in_the_ball_nor_moves():
    params = {"a": torch.tensor([6.0]), "b": torch.tensor([100.0])}
    tx = gradtx.project_l2_ball(3.0)
    updates, _ = tx.update({"a": torch.tensor([0.0]), "b": None}, tx.init(params), params)
    assert updates["a"] == -3
    assert updates["b"] is None


def test_an_infinite_ball_and_weights_of_zero_change_nothing():
    params, grads = {"w": torch.zeros(2)}, {"w": torch.zeros(2)}
    for radius in (float("inf"), 1.0):
        tx = gradtx.project_l2_ball(radius)
        assert torch.equal(tx.update(grads, tx.init(params), params)[0]["w"], grads["w"])


def test_momentum_and_the_ball_may_follow_the_step_size_a_learning_rate_may_not():
    gradtx.chain(gradtx.scale_by_polyak(), gradtx.trace(0.9, nesterov=True), gradtx.project_l2_ball(1.0))
    with pytest.raises(ValueError, match="scale_by_polyak owns the learning rate"):
        gradtx.chain(gradtx.scale_by_polyak(), gradtx.scale_by_learning_rate(0.1))


def test_missing_params_and_a_missing_loss_are_errors():
    params = problem()
    with pytest.raises(ValueError, match="project_l2_ball needs params"):
        gradtx.project_l2_ball(1.0).update(params, gradtx.project_l2_ball(1.0).init(params))
    with pytest.raises(ValueError, match="scale_by_polyak needs value"):
        gradtx.scale_by_polyak().update(params, gradtx.scale_by_polyak().init(params), params)
