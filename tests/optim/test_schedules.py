"""The library's schedules in an optimizer: shown in advance, overridden by written values, and on their own clock."""

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, descend, functional, made, parameters, saved_and_loaded, twins

SCHEDULE = gradtx.Schedule(lambda step: 0.5 ** (step + 1))  # exact even where torch computes it in float32
TOLERANCE = 1e-12  # the same float64 sums in a different order


def lr_at_each_step(optimizer, params, steps):
    shown = []
    for t in range(steps):
        shown.append(optimizer.param_groups[0]["lr"])
        descend(optimizer, params, 1, start=t)
    return shown


def test_a_group_shows_the_value_that_the_next_step_will_use():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    assert lr_at_each_step(optimizer, params, 3) == [SCHEDULE(0), SCHEDULE(1), SCHEDULE(2)]
    expected, _ = functional(gradtx.sgd(lr=SCHEDULE), parameters(), 3)
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_a_schedule_inside_a_tuple_is_shown_there():
    beta = gradtx.linear_schedule(0.9, start_factor=0.5, total_iters=4)
    optimizer, params = made(gradtx.adam(betas=(beta, 0.99)))
    descend(optimizer, params, 2)
    assert optimizer.param_groups[0]["betas"] == (beta(2), 0.99)


def test_schedules_follow_the_largest_step_of_the_parameters():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    descend(optimizer, params, 3, skip=lambda name, t: name != "body.bias")
    before = params["head.scale"].detach().clone()
    descend(optimizer, params, 1, start=3)
    moved = params["head.scale"].detach() - before
    assert_close([moved], [-SCHEDULE(3) * params["head.scale"].grad], TOLERANCE)


def test_another_value_written_over_a_schedule_is_a_lasting_override():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    descend(optimizer, params, 2)
    optimizer.param_groups[0]["lr"] = 0.7
    assert lr_at_each_step(optimizer, params, 3) == [0.7, 0.7, 0.7]


@pytest.mark.parametrize("earlier", [0.3, SCHEDULE], ids=["number", "schedule"])
def test_a_schedule_written_into_a_group_is_followed_from_the_next_step(earlier):
    rising = gradtx.linear_schedule(0.9, start_factor=0.2, total_iters=6)
    optimizer, params = made(gradtx.sgd(lr=earlier))
    descend(optimizer, params, 2)
    optimizer.param_groups[0]["lr"] = rising
    descend(optimizer, params, 1, start=2)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == rising(3)
    before = params["head.scale"].detach().clone()
    descend(optimizer, params, 1, start=3)
    assert_close([params["head.scale"].detach() - before], [-rising(3) * params["head.scale"].grad], TOLERANCE)


def test_an_override_concerns_its_own_group():
    params = list(parameters().items())
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=SCHEDULE), [{"params": params[:2]}, {"params": params[2:]}])
    optimizer.param_groups[1]["lr"] = 0.7
    descend(optimizer, dict(params), 2)
    assert [group["lr"] for group in optimizer.param_groups] == [SCHEDULE(2), 0.7]


def test_the_shown_value_written_back_is_no_override():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    for group in optimizer.param_groups:
        group["lr"] = float(group["lr"])
    assert lr_at_each_step(optimizer, params, 3) == [SCHEDULE(0), SCHEDULE(1), SCHEDULE(2)]


def test_a_group_may_have_a_schedule_of_its_own():
    params = list(parameters().items())
    halved = gradtx.Schedule(lambda step: 0.25**step)
    optimizer = gradtx.as_optimizer(
        gradtx.sgd(lr=SCHEDULE), [{"params": params[:2]}, {"params": params[2:], "lr": halved}]
    )
    descend(optimizer, dict(params), 2)
    assert [group["lr"] for group in optimizer.param_groups] == [SCHEDULE(2), 0.0625]


@pytest.mark.parametrize("steps", [4, 5, 6])
def test_a_schedule_inside_accumulate_follows_its_clock(steps):
    tx = gradtx.accumulate(gradtx.sgd(lr=SCHEDULE), every=3)
    optimizer, params = made(tx)
    shown = lr_at_each_step(optimizer, params, steps)
    assert shown == [SCHEDULE(t // 3) for t in range(steps)]
    expected, _ = functional(tx, parameters(), steps)
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_a_loaded_value_equal_to_the_schedule_at_the_loaded_count_is_no_override():
    optimizer, params = made(gradtx.adamw(lr=SCHEDULE))
    descend(optimizer, params, 3)
    again, own = made(gradtx.adamw(lr=SCHEDULE))
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert lr_at_each_step(again, own, 3) == [SCHEDULE(3), SCHEDULE(4), SCHEDULE(5)]


def test_a_hyperparameter_that_the_checkpoint_lacks_keeps_its_schedule():
    optimizer, params = made(gradtx.sgd(lr=SCHEDULE))
    descend(optimizer, params, 2)
    saved = saved_and_loaded(optimizer.state_dict())
    del saved["param_groups"][0]["lr"]
    again, own = made(gradtx.sgd(lr=SCHEDULE))
    again.load_state_dict(saved)
    assert lr_at_each_step(again, own, 2) == [SCHEDULE(2), SCHEDULE(3)]


def test_a_group_of_a_schedule_is_saved_as_plain_numbers():
    optimizer, params = made(gradtx.adamw(lr=gradtx.cosine_schedule(0.1, T_max=9)))
    descend(optimizer, params, 2)
    assert type(optimizer.state_dict()["param_groups"][0]["lr"]) is float


def test_a_schedule_of_a_plain_function_is_as_exact_as_under_a_scheduler_of_torch():
    def rate(step):
        return 0.1 / (step + 1)

    optimizer, params = made(gradtx.sgd(lr=gradtx.Schedule(rate)))
    other = twins(params)
    reference = torch.optim.SGD(other.values(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(reference, rate)
    descend(optimizer, params, 5)
    descend(reference, other, 5, after=scheduler.step)
    assert_close(params.values(), other.values(), TOLERANCE)
