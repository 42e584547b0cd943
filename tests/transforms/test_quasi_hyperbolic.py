import torch

import gradtx
from tests.references import difference


def test_the_ends_of_nu_are_the_gradient_and_its_average_and_beta_is_nesterov():
    def same(a, b):
        return difference(a, b, rate=-0.1) < 1e-13  # other orders of the same products

    assert same(gradtx.scale_by_qhm(0.8, nu=0.0), gradtx.chain())
    assert same(gradtx.scale_by_qhm(0.8, nu=1.0), gradtx.ema(0.8))
    assert same(gradtx.scale_by_qhm(0.8, nu=0.8), gradtx.trace_ema(0.8, nesterov=True))
    assert same(gradtx.scale_by_qhadam(), gradtx.scale_by_adam())


def test_a_gradient_whose_square_overflows_stops_its_entry_as_in_adam():
    tx = gradtx.scale_by_qhadam()
    params = {"w": torch.zeros(2)}
    updates, state = tx.update({"w": torch.tensor([1e25, 1.0])}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.tensor([0.0, 1.0]))
    assert state["scale_by_qhadam"]["exp_avg_sq"]["w"].isinf().tolist() == [True, False]
