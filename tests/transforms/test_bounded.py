import pytest
import torch

import gradtx
from tests.references import Transformed, first_update, problem, run

FALLING = gradtx.linear_schedule(0.2, end_factor=0.1, start_factor=1.0, total_iters=10)


@pytest.mark.parametrize("lr", [0.2, FALLING, torch.tensor(0.2, dtype=torch.float64)], ids=str)
def test_the_first_rate_is_kept_in_a_slot_of_every_leaf_and_never_changes(lr):
    step = Transformed(gradtx.scale_by_adabound(lr))
    run(step, rate=-0.01)
    kept = step.state["scale_by_adabound"]["initial_lr"]
    assert kept.keys() == problem().keys()
    assert {(lr.item(), lr.shape, lr.dtype) for lr in kept.values()} == {(0.2, (), torch.float64)}


def test_adabound_may_have_no_eps():
    assert first_update(gradtx.scale_by_adabound(1e-3, eps=0.0), [0.0, 1.0])[0] == 0.0  # the band is finite
