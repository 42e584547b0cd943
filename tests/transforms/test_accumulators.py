import pytest
import torch

import gradtx


def test_the_maximum_of_adamax_is_not_corrected_and_eps_fades_with_it():
    tx = gradtx.scale_by_adamax(betas=(0.0, 0.5), eps=1.0)
    state, updates = tx.init({"w": torch.zeros(1)}), []
    for grad in (7.0, 1.0, 0.0):
        update, state = tx.update({"w": torch.tensor([grad])}, state)
        updates.append(update["w"].item())
    assert updates == [7 / 8, 1 / 4, 0.0]
    assert state["scale_by_adamax"]["exp_inf"]["w"].item() == 2.0


def test_adadelta_remembers_directions_not_steps():
    after = []
    for lr in (1.0, 100.0):
        tx = gradtx.chain(gradtx.scale_by_adadelta(), gradtx.scale_by_learning_rate(lr))
        _, state = tx.update({"w": torch.ones(2)}, tx.init({"w": torch.zeros(2)}))
        after.append(state["scale_by_adadelta"]["acc_delta"]["w"].tolist())
    assert after[0] == after[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_initial_value_has_the_dtype_of_the_leaf_also_if_it_is_a_tensor_or_the_leaf_is_0d(dtype):
    value = torch.tensor(0.5, dtype=torch.float64)
    for tx in (
        gradtx.scale_by_rss(initial_accumulator_value=value),
        gradtx.scale_by_rms(initial_accumulator_value=value),
    ):
        state = tx.init({"w": torch.zeros(2, dtype=dtype), "s": torch.zeros((), dtype=dtype)})
        (slots,) = (entry for key, entry in state.items() if key != "step")
        (slot,) = slots.values()
        assert {value.dtype for value in slot.values()} == {dtype}
