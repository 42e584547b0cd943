import pytest
import torch

import gradtx


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_product_is_a_float64_number_of_every_leaf_in_any_dtype(dtype):
    params = {"w": torch.ones(2, dtype=dtype), "s": torch.ones((), dtype=dtype)}
    tx = gradtx.scale_by_nadam(betas=(0.5, 0.9), momentum_decay=0.0)
    state = tx.init(params)
    assert {x.item() for x in state["scale_by_nadam"]["mu_product"].values()} == {1.0}
    for _ in range(2):
        _, state = tx.update(params, state)
    for product in state["scale_by_nadam"]["mu_product"].values():
        assert (product.shape, product.dtype, product.item()) == ((), torch.float64, 1 / 16)
