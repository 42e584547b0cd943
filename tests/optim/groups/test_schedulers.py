"""Every scheduler of torch drives our optimizers as it drives torch's."""

import adam_atan2_pytorch
import pytest
import torch
from torch.optim import lr_scheduler

import gradtx
from tests.optim.problems import assert_close, assert_equal, descend, hyperparameters, parameters, set_gradients

TOLERANCE = 1e-12  # the same float64 sums in a different order
STEPS = 24

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (epoch + 1)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 5, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 11], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 9),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10, 1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, STEPS + 1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, 4, base_momentum=0.7, max_momentum=0.95),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.3, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 5), lr_scheduler.ExponentialLR(o, 0.9)], [6]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 5), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}

# With momentum 0.0, a scheduler that cycles momentum overwrites a literal 0.0.
OPTIMIZERS = {
    "SGD": {"lr": 0.05},
    "SGD with momentum": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.05, "amsgrad": True},
    "AdamW": {"lr": 0.05},
}


def groups(params, name):
    params = list(params.values())
    other = {"momentum": 0.5} if "momentum" in name else {}
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.01, **other}]


def trajectory(module, name, make, steps=STEPS):
    """Return the final parameters and the hyperparameters of every step."""
    params, seen = parameters(), []
    optimizer = getattr(module, name.split()[0])(groups(params, name), **OPTIMIZERS[name])
    scheduler = make(optimizer)

    def after():
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([abs(5 - len(seen))] if plateau else []))
        keys = ("lr", "momentum", "betas")
        seen.append([{key: group[key] for key in keys if key in group} for group in optimizer.param_groups])

    descend(optimizer, params, steps, after=after)
    return params, seen


def test_the_table_names_every_scheduler_of_torch():
    assert set(SCHEDULERS) == set(lr_scheduler.__all__) - {"LRScheduler"}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_scheduler_gives_the_trajectory_of_torch(name, scheduler):
    ours, seen = trajectory(gradtx.optim, name, SCHEDULERS[scheduler])
    theirs, expected = trajectory(torch.optim, name, SCHEDULERS[scheduler])
    assert seen == expected
    assert_close(ours.values(), theirs.values(), TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "CyclicLR"])
def test_schedulers_fill_a_learning_rate_that_is_a_tensor_as_in_torch(name, dtype):
    results = []
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        optimizer = module.AdamW(params.values(), lr=torch.tensor(0.05, dtype=dtype))
        scheduler = SCHEDULERS[name](optimizer)
        descend(optimizer, params, STEPS, after=scheduler.step)
        results.append(params.values())
    # torch rounds the rate to its own dtype before applying it; our rate stays in float64.
    assert_close(*results, tolerance=1e-6 if dtype is torch.float32 else TOLERANCE)


def test_an_optimizer_and_its_scheduler_resume_from_checkpoints():
    def made():
        params = parameters()
        optimizer = gradtx.optim.SGD(params.values(), lr=0.05)
        return params, optimizer, lr_scheduler.OneCycleLR(optimizer, 0.1, STEPS + 1)

    params, optimizer, scheduler = made()
    descend(optimizer, params, 10, after=scheduler.step)
    own, again, driver = made()
    with torch.no_grad():
        for a, b in zip(own.values(), params.values(), strict=True):
            a.copy_(b)
    again.load_state_dict(optimizer.state_dict())
    driver.load_state_dict(scheduler.state_dict())
    descend(optimizer, params, 10, start=10, after=scheduler.step)
    descend(again, own, 10, start=10, after=driver.step)
    assert_equal([param.detach() for param in own.values()], [param.detach() for param in params.values()])
    assert hyperparameters(again.param_groups[0]) == hyperparameters(optimizer.param_groups[0])


def test_a_scheduler_drives_every_group_of_a_partition():
    tx = gradtx.partition(
        {"bias": gradtx.sgd(lr=0.1), "weight": gradtx.adamw(lr=0.2)}, {"bias": "*.bias", "weight": "*"}
    )
    params = parameters()
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    descend(optimizer, params, 2, after=scheduler.step)
    assert {group["label"]: group["lr"] for group in optimizer.param_groups} == {"bias": 0.025, "weight": 0.05}


@pytest.mark.parametrize("make", [SCHEDULERS["OneCycleLR"], SCHEDULERS["CyclicLR"]])
def test_a_momentum_is_cycled_in_the_groups_of_a_partition_that_have_one(make):
    """torch cycles `momentum` or `betas`, if the defaults contain it, and reads `betas` in every group."""

    def made(weight):
        params = parameters()
        chains = {"bias": gradtx.adamw(lr=0.1, betas=(0.9, 0.95)), "weight": weight}
        tx = gradtx.partition(chains, {"bias": "*.bias", "weight": "*"})
        optimizer = gradtx.as_optimizer(tx, list(params.items()))
        scheduler = make(optimizer)
        seen = []
        descend(optimizer, params, 8, after=lambda: (scheduler.step(), seen.append(optimizer.param_groups[-1].copy())))
        return params, optimizer, seen

    params, optimizer, seen = made(gradtx.sgd(lr=0.2, momentum=0.9))
    assert len({group["momentum"] for group in seen}) > 4
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    again = parameters()
    twin = torch.optim.SGD([p for name, p in again.items() if "bias" not in name], lr=0.2, momentum=0.9)
    scheduler = make(twin)
    descend(twin, again, 8, after=scheduler.step)
    matrices = [name for name in params if "bias" not in name]
    assert_close([params[name] for name in matrices], [again[name] for name in matrices], TOLERANCE)

    _, optimizer, seen = made(gradtx.adamw(lr=0.2))  # all groups have betas
    assert "momentum" not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["betas"][0] == seen[-1]["betas"][0] != 0.9


def test_a_scheduler_written_by_a_user_may_write_ints_and_numpy_numbers():
    numpy = pytest.importorskip("numpy")
    values = [1, numpy.float32(0.5), numpy.float64(0.25), numpy.int64(1), torch.tensor(0.125)]
    ours, theirs = parameters(), parameters()
    optimizer, reference = gradtx.optim.SGD(ours.values()), torch.optim.SGD(theirs.values())
    for t, value in enumerate(values):
        optimizer.param_groups[0]["lr"] = value
        reference.param_groups[0]["lr"] = float(value)
        descend(optimizer, ours, 1, start=t)
        descend(reference, theirs, 1, start=t)
    assert_close(ours.values(), theirs.values(), TOLERANCE)


def test_the_initial_rate_is_the_groups_at_construction_whatever_a_warm_up_writes_before_the_first_step():
    def made(cls):
        params = parameters()
        optimizer = cls(groups(params, ""), lr=0.1, weight_decay=0.1, decoupled_wd=True)
        descend(optimizer, params, 10, after=lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / 10).step)
        return optimizer, params

    optimizer, params = made(gradtx.optim.AdamAtan2)
    assert [optimizer.state[param]["initial_lr"].item() for param in params.values()] == [0.1, 0.1, 0.01, 0.01]
    one, own = adam_atan2_pytorch.AdamAtan2, parameters()
    pair = [one(groups(own, "")[:1], lr=0.1, weight_decay=0.1, decoupled_wd=True)]
    pair.append(one(groups(own, "")[1:], lr=0.01, weight_decay=0.1, decoupled_wd=True))
    schedulers = [lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / 10) for optimizer in pair]
    for t in range(10):
        set_gradients(own, t)
        for optimizer, scheduler in zip(pair, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
    assert_close(params.values(), own.values(), TOLERANCE)


# The literal-0.0 rule.


def test_momentum_written_over_0_makes_fresh_buffers_at_the_next_step_as_torch():
    # Without dampening: torch does not dampen a buffer's first step, and ours does not dampen a parameter's
    # (docs/design.md).
    results = []
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        optimizer = module.SGD(params.values(), lr=0.05)
        descend(optimizer, params, 3)
        optimizer.param_groups[0]["momentum"] = 0.9
        descend(optimizer, params, 3, start=3)
        results.append(params.values())
    assert_close(*results, tolerance=TOLERANCE)


def test_momentum_written_over_0_in_one_group_adds_slots_to_that_group_only():
    params = parameters()
    optimizer = gradtx.optim.SGD(groups(params, "SGD"), lr=0.05)
    optimizer.param_groups[1]["momentum"] = 0.9
    descend(optimizer, params, 1)
    assert ["momentum_buffer" in optimizer.state[param] for param in params.values()] == [False, False, True, True]


SCHEDULERS_OF_RATES = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.5),
    "LinearLR": lr_scheduler.LinearLR,
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 4),
}


@pytest.mark.parametrize("make", SCHEDULERS_OF_RATES.values(), ids=SCHEDULERS_OF_RATES)
@pytest.mark.parametrize(
    ("name", "message", "options"),
    [
        ("AdaFactor", "relative_step sets the rate .* pass relative_step=False and lr=", {"relative_step": False}),
        ("AliG", "the rule computes the rate .* pass lr=..., its upper bound, or no scheduler", {}),
    ],
)
def test_a_scheduler_of_an_optimizer_that_sets_its_rate_itself_is_told_what_to_pass(name, message, options, make):
    cls, param = getattr(gradtx.optim, name), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = cls([param])
    with pytest.raises(ValueError, match=f"{name}: lr is None, because {message}"):
        make(optimizer)
    optimizer.step(lambda: torch.tensor(1.0))  # as before
    optimizer = cls([param], lr=0.1, **options)
    scheduler = make(optimizer)
    optimizer.step(lambda: torch.tensor(1.0))
    scheduler.step()


def test_a_schedule_of_numbers_bounds_the_rate_that_an_optimizer_computes_itself_or_is_refused():
    schedule, param = gradtx.constant_schedule(0.125), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = gradtx.optim.AliG([param])
    gradtx.as_lr_scheduler(optimizer, schedule)
    param.grad = torch.ones(2, 2)
    optimizer.step(lambda: torch.tensor(1.0))
    assert_equal(param.detach(), torch.full((2, 2), 0.875))
    optimizer = gradtx.optim.AdaFactor([param])
    gradtx.as_lr_scheduler(optimizer, schedule)
    with pytest.raises(ValueError, match="relative_step sets the rate itself; omit lr, or pass relative_step=False"):
        optimizer.step()
