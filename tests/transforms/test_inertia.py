import torch

import gradtx
from tests.references import finite_without_gradient, first_update

# Loops and published code: tests/optimizers/test_inertia.py.


def test_leaves_without_a_gradient_and_empty_ones_do_not_enter_the_mean():
    params = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(0)}
    grads = {"a": torch.tensor([1.0, 3.0]), "b": None, "c": torch.zeros(0)}
    tx = gradtx.scale_by_adai(betas=(0.1, 0.0))
    _, state = tx.update(grads, tx.init(params))
    # the mean is 5
    torch.testing.assert_close(state["scale_by_adai"]["beta1_prod"]["a"], torch.tensor([0.98, 0.82]))


def test_all_gradients_zero_give_zero():
    assert first_update(gradtx.scale_by_adai(), [0.0, 0.0], steps=3) == [0.0, 0.0]
    assert finite_without_gradient(gradtx.scale_by_adai(dampening=0.5))
