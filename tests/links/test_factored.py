import pytest
import torch

import gradtx


def test_two_small_averages_do_not_multiply_to_zero_in_float32():
    grads, tx = {"w": torch.full((2, 2), 1e-14)}, gradtx.scale_by_factored_rms()
    assert tx.update(grads, tx.init(grads))[0]["w"].mean() == pytest.approx(0.995, rel=1e-2)  # eps is 1% of g^2
