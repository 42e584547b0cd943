import torch

import gradtx


def test_a_rate_of_zero_leaves_sums_and_weights_although_eps_is_added_to_rates():
    params = {"w": torch.tensor([1.0])}
    for lr in (0.0, torch.tensor(0.0)):
        tx = gradtx.scale_by_madgrad(lr=lr, eps=0.5)
        updates, state = tx.update({"w": torch.tensor([3.0])}, tx.init(params), params)
        assert updates["w"] == 0
        assert state["scale_by_madgrad"]["s"]["w"] == 0


def test_without_eps_an_entry_moves_with_its_first_gradient_only():
    for momentum in (0.0, 0.5):
        tx = gradtx.scale_by_madgrad(lr=0.125, momentum=momentum, eps=0.0)
        params = {"w": torch.tensor([1.0, 1.0])}
        state = tx.init(params)
        for grad in ([0.0, 8.0], [0.0, 0.0], [8.0, 0.0]):
            updates, state = tx.update({"w": torch.tensor(grad)}, state, params)
            assert updates["w"].isfinite().all()
            assert (updates["w"][0] == 0) == (grad[0] == 0)
