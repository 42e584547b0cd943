import pytest
import torch

import gradtx


def test_a_rank_three_leaf_is_factored_in_its_last_two_dimensions():
    state = gradtx.scale_by_factored_rms().init({"w": torch.zeros(2, 3, 4)})["scale_by_factored_rms"]
    assert {slot: tuple(x["w"].shape) for slot, x in state.items()} == {
        "exp_avg_sq_row": (2, 3),
        "exp_avg_sq_col": (2, 4),
    }


def test_two_small_averages_do_not_multiply_to_zero_in_float32():
    grads, tx = {"w": torch.full((2, 2), 1e-14)}, gradtx.scale_by_factored_rms()
    assert tx.update(grads, tx.init(grads))[0]["w"].mean() == pytest.approx(0.995, rel=1e-2)  # eps is 1% of g^2
