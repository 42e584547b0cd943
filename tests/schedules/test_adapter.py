import copy
import io
import pickle

import pytest
import torch
from torch.optim import lr_scheduler

import gradtx

RATE = gradtx.warmup_cosine_schedule(9, 0.3, min_lr=0.01, warmup_steps=3)


def weight(value=1.0):
    return torch.nn.Parameter(torch.full((2,), value))


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def advance(optimizer, scheduler, steps=1):
    seen = []
    for _ in range(steps):
        seen.append(rates(optimizer))
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.step()
        scheduler.step()
    return seen


OPTIMIZERS = {
    "torch": lambda params: torch.optim.AdamW(params, lr=0.5),
    "gradtx": lambda params: gradtx.optim.AdamW(params, lr=0.5),
    "gradtx with a schedule of its own": lambda params: gradtx.optim.AdamW(
        params, lr=gradtx.exponential_schedule(1.0, 0.5)
    ),
    "a rate as a tensor": lambda params: torch.optim.SGD(params, lr=torch.tensor(0.5, dtype=torch.float64)),
}
each = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


@each
def test_every_update_has_the_rate_of_its_step(make):
    optimizer = make([weight()])
    scheduler = gradtx.as_lr_scheduler(optimizer, RATE)
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    for step in range(14):
        assert rates(optimizer) == scheduler.get_last_lr() == [RATE(step)]
        advance(optimizer, scheduler)


def test_the_weights_follow_the_rates():
    schedule = gradtx.linear_schedule(1.0, 0.5, total_iters=2)
    for make in (torch.optim.SGD, gradtx.optim.SGD):
        param = weight(0.0)
        optimizer = make([param], lr=7.0)
        advance(optimizer, gradtx.as_lr_scheduler(optimizer, schedule), 3)
        assert param.tolist() == [-2.25, -2.25]


@each
def test_a_list_has_a_schedule_for_every_group(make):
    optimizer = make([{"params": [weight()]}, {"params": [weight()]}])
    other = gradtx.step_schedule(0.2, 2)
    scheduler = gradtx.as_lr_scheduler(optimizer, [RATE, other])
    assert advance(optimizer, scheduler, 6) == [[RATE(step), other(step)] for step in range(6)]


def test_one_schedule_is_for_all_groups_and_for_those_that_come_later():
    optimizer = torch.optim.SGD([{"params": [weight()]}, {"params": [weight()]}], lr=0.1)
    scheduler = gradtx.as_lr_scheduler(optimizer, RATE)
    advance(optimizer, scheduler, 2)
    optimizer.add_param_group({"params": [weight()], "lr": 3.0})
    advance(optimizer, scheduler)
    assert rates(optimizer) == scheduler.get_last_lr() == [RATE(3)] * 3


def test_one_schedule_for_groups_of_different_rates_is_a_warning():
    params = [torch.nn.Parameter(torch.eye(2)), weight()]
    message = r"^as_lr_scheduler: the groups have different learning rates \(0\.02, 0\.001\).*one schedule per group$"
    optimizer = gradtx.optim.Muon(params, lr=0.02, fallback=gradtx.adamw(lr=1e-3))
    with pytest.warns(UserWarning, match=message):
        gradtx.as_lr_scheduler(optimizer, RATE)
    optimizer = gradtx.optim.Muon(params, lr=0.02, fallback=gradtx.adamw(lr=1e-3))
    gradtx.as_lr_scheduler(optimizer, [RATE, gradtx.constant_schedule(1e-3)])  # warnings are errors in these tests
    # A group whose chain has no rate shows 0.0.
    tx = gradtx.partition({"a": gradtx.cocob(), "b": gradtx.sgd(lr=0.1)}, {"a": "a", "b": "b"})
    gradtx.as_lr_scheduler(gradtx.as_optimizer(tx, [("a", weight()), ("b", weight())]), RATE)


def test_a_list_that_no_longer_fits_is_an_error_at_the_next_step():
    optimizer = torch.optim.SGD([weight()], lr=0.1)
    scheduler = gradtx.as_lr_scheduler(optimizer, [RATE, RATE][:1])
    scheduler.schedules = (RATE, RATE)
    optimizer.step()
    with pytest.raises(
        ValueError,
        match=r"^as_lr_scheduler: the number of schedules must equal the number of parameter groups, got 2 and 1$",
    ):
        scheduler.step()


@each
def test_a_saved_scheduler_goes_on_where_it_was(make):
    optimizer = make([weight()])
    scheduler = gradtx.as_lr_scheduler(optimizer, RATE)
    advance(optimizer, scheduler, 4)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    expected = advance(optimizer, scheduler, 5)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert "schedules" not in saved["scheduler"]
    resumed = make([weight()])
    again = gradtx.as_lr_scheduler(resumed, RATE)
    resumed.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["scheduler"])
    assert again.last_epoch == 4
    assert again.get_last_lr() == rates(resumed) == [RATE(4)]
    assert advance(resumed, again, 5) == expected


def test_a_copy_and_a_pickle_have_the_schedule():
    optimizer = torch.optim.SGD([weight()], lr=0.1)
    scheduler = gradtx.as_lr_scheduler(optimizer, RATE)
    advance(optimizer, scheduler)  # torch wraps `step`, which copies do not have, and asks for that at the first
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        advance(other.optimizer, other, 2)
        assert other.get_last_lr() == [RATE(3)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, RATE), TypeError, "optimizer must be a torch.optim.Optimizer, got None"),
        ((0.1,), TypeError, "schedule must be a gradtx.Schedule, got 0.1"),
        ((max,), TypeError, r"schedule must be a gradtx.Schedule, got max; wrap it: gradtx.Schedule\(...\)"),
        (([RATE, 0.1],), TypeError, r"schedule\[1\] must be a gradtx.Schedule, got 0.1"),
        (([RATE, RATE],), ValueError, "the number of schedules must equal the number of parameter groups, got 2 and 1"),
        (([],), ValueError, "the number of schedules must equal the number of parameter groups, got 0 and 1"),
    ],
)
def test_what_does_not_fit_is_an_error_that_changes_nothing(arguments, error, message):
    optimizer = torch.optim.SGD([weight()], lr=0.1)
    arguments = arguments if len(arguments) == 2 else (optimizer, *arguments)
    with pytest.raises(error, match=f"^as_lr_scheduler: {message}$"):
        gradtx.as_lr_scheduler(*arguments)
    assert rates(optimizer) == [0.1]
    assert "initial_lr" not in optimizer.param_groups[0]
