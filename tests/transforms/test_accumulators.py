import pytest
import torch

import gradtx


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_initial_value_has_the_dtype_of_its_slot_also_if_it_is_a_tensor_or_the_leaf_is_0d(dtype):
    value = torch.tensor(0.5, dtype=torch.float64)
    for tx, of_slot in (
        (gradtx.scale_by_rss(initial_accumulator_value=value), torch.float32),  # a sum, to which little is added
        (gradtx.scale_by_rms(initial_accumulator_value=value), torch.float32 if dtype == torch.float16 else dtype),
    ):
        state = tx.init({"w": torch.zeros(2, dtype=dtype), "s": torch.zeros((), dtype=dtype)})
        (slots,) = (entry for key, entry in state.items() if key != "step")
        (slot,) = slots.values()
        assert {value.dtype for value in slot.values()} == {of_slot}
