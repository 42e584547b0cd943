import pytest
import torch

import gradtx
from tests.references import (
    difference,
    first_update,
)


def test_the_ends_of_nu_are_the_gradient_and_its_average_and_beta_is_nesterov():
    def same(a, b):
        return difference(a, b, rate=-0.1) < 1e-13  # other orders of the same products

    assert same(gradtx.scale_by_qhm(0.8, nu=0.0), gradtx.chain())
    assert same(gradtx.scale_by_qhm(0.8, nu=1.0), gradtx.ema(0.8))
    assert same(gradtx.scale_by_qhm(0.8, nu=0.8), gradtx.trace_ema(0.8, nesterov=True))
    assert same(gradtx.scale_by_qhadam(), gradtx.scale_by_adam())


@pytest.mark.parametrize(
    ("tx", "updates"),
    [
        (gradtx.scale_by_qhm(0.75, nu=0.5), [4 + 1, 4 + 1.75]),
        (gradtx.scale_by_qhadam((0.5, 0.75), (0.25, 0.5), eps=8.0), [0.5, 0.5]),  # constant gradients: 8 / (8 + 8)
    ],
    ids=str,
)
def test_two_steps_with_a_gradient_of_eight_equal_the_hand_computed_values(tx, updates):
    assert [first_update(tx, [8.0], steps=n)[0] for n in (1, 2)] == pytest.approx(updates, rel=1e-14)


def test_a_gradient_whose_square_overflows_stops_its_entry_as_in_adam():
    tx = gradtx.scale_by_qhadam()
    params = {"w": torch.zeros(2)}
    updates, state = tx.update({"w": torch.tensor([1e25, 1.0])}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.tensor([0.0, 1.0]))
    assert state["scale_by_qhadam"]["exp_avg_sq"]["w"].isinf().tolist() == [True, False]
