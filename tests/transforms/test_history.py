import pytest
import torch

import gradtx
from tests.references import Transformed, problem

DOUBLE = {"dtype": torch.float64}


def tensor(*numbers):
    return torch.tensor(numbers, **DOUBLE)


def averages(tx, *grads):
    step = Transformed(tx)
    for grad in grads:
        step({"w": grad}, {"w": torch.zeros_like(grad)})
    return {slot: value["w"] for slot, value in step.state["scale_by_adanorm"].items()}


def test_a_zero_gradient_stays_zero_and_counts_in_the_average_norm():
    kept = averages(gradtx.scale_by_adanorm((0.0, 0.0), r=0.5), tensor(8.0), tensor(0.0))
    assert (kept["exp_avg"].tolist(), kept["exp_grad_norm"].item()) == ([0.0], 2.0)


def test_the_average_norm_is_one_float64_a_leaf():
    params = {name: param.bfloat16() for name, param in problem().items()}
    kept = gradtx.scale_by_adanorm().init(params)["scale_by_adanorm"]["exp_grad_norm"]
    assert {(x.shape, x.dtype) for x in kept.values()} == {((), torch.float64)}


def path(tx, places, grads=None):
    """The updates of one weight that is moved to `places`, with a gradient of 1."""
    step = Transformed(tx)
    step.state = tx.init({"w": tensor(0.0)})
    return [step({"w": tensor(1.0)}, {"w": tensor(place)})["w"].item() for place in places], step.state


FAST, SLOW = 0.25, 1 / 16  # c of betas (0.5, 0.75): (1 - 0.5)**2 and (1 - 0.75)**2


def test_where_the_parameter_stood_before_the_first_call_is_no_movement():
    tx = gradtx.scale_by_adasmooth((0.5, 0.75), eps=0.0)
    got, state = path(tx, [5.0, 5.0])
    assert got[0] == pytest.approx(SLOW**-0.5)
    assert state["scale_by_adasmooth"]["abs_sum"]["w"].item() == 0.0


@pytest.mark.parametrize("betas", [(0.9, 0.5), (0.5, 0.5)], ids=str)
def test_betas_that_do_not_rise_are_an_error(betas):
    message = rf"^scale_by_adasmooth: betas must be increasing \(fast decay first\), got \({betas[0]}, {betas[1]}\)$"
    with pytest.raises(ValueError, match=message):
        gradtx.scale_by_adasmooth(betas)
