import pytest
import torch

import gradtx
from tests.references import Transformed, difference, first_update, problem, run

FALLING = gradtx.linear_schedule(0.2, end_factor=0.1, start_factor=1.0, total_iters=10)


def test_amsgrad_bounds_with_the_largest_square_so_far():
    tx = gradtx.scale_by_adabound(1.0, 1.0, (0.0, 0.5), eps=0.0, gamma=1e-9, amsgrad=True)
    state = tx.init({"w": torch.zeros(1, dtype=torch.float64)})
    for grad in (4.0, 0.0, 1.0):
        updates, state = tx.update({"w": torch.tensor([grad], dtype=torch.float64)}, state)
    # v was 8, 4, 2.5: sqrt(7/8) / sqrt(8)
    assert updates["w"].item() == pytest.approx((7 / 64) ** 0.5, rel=1e-6)
    assert state["scale_by_adabound"]["max_exp_avg_sq"]["w"].item() == 8.0


@pytest.mark.parametrize("lr", [0.2, FALLING, torch.tensor(0.2, dtype=torch.float64)], ids=str)
def test_the_first_rate_is_kept_in_a_slot_of_every_leaf_and_never_changes(lr):
    step = Transformed(gradtx.scale_by_adabound(lr))
    run(step, rate=-0.01)
    kept = step.state["scale_by_adabound"]["initial_lr"]
    assert kept.keys() == problem().keys()
    assert {(lr.item(), lr.shape, lr.dtype) for lr in kept.values()} == {(0.2, (), torch.float64)}


def test_a_schedule_moves_the_whole_band_of_adabound():
    options = {"final_lr": 0.5, "gamma": 0.1}
    by_schedule = gradtx.chain(gradtx.scale_by_adabound(FALLING, **options), gradtx.scale_by_learning_rate(FALLING))
    by_number = gradtx.chain(gradtx.scale_by_adabound(0.2, **options), gradtx.scale_by_learning_rate(FALLING))
    assert difference(by_schedule, by_number) == 0


def test_adamod_averages_the_rates_of_its_schedule():
    # betas of 0 and a gradient of 1: the rate is the schedule's, 1 and then 0.1; n = 0.5, then 0.3
    lr = gradtx.linear_schedule(1.0, start_factor=1.0, end_factor=0.1, total_iters=1)
    tx = gradtx.scale_by_adamod(lr, (0.0, 0.0), 0.5, eps=0.0)
    step = Transformed(tx)
    got = [step({"w": torch.ones(1, dtype=torch.float64)}, {"w": torch.zeros(1)})["w"].item() for _ in range(2)]
    assert got == pytest.approx([-0.5, -0.1])
    assert step.state["scale_by_adamod"]["exp_avg_lr"]["w"].item() == pytest.approx(0.3)


def test_adabound_may_have_no_eps():
    assert first_update(gradtx.scale_by_adabound(1e-3, eps=0.0), [0.0, 1.0])[0] == 0.0  # the band is finite


@pytest.mark.parametrize("lr", [0.0, gradtx.linear_schedule(0.0)], ids=str)
def test_a_learning_rate_that_starts_at_zero_is_a_named_error(lr):
    with pytest.raises(
        ValueError, match=r"^scale_by_adabound: final_lr is divided by the initial learning rate, which is 0"
    ):
        gradtx.scale_by_adabound(lr).init(problem())
