import torch

import gradtx


def test_a_gradient_whose_square_overflows_stops_its_entry_as_in_adam():
    tx = gradtx.scale_by_qhadam()
    params = {"w": torch.zeros(2)}
    updates, state = tx.update({"w": torch.tensor([1e25, 1.0])}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.tensor([0.0, 1.0]))
    assert state["scale_by_qhadam"]["exp_avg_sq"]["w"].isinf().tolist() == [True, False]
