import copy

import pytest
import pytorch_optimizer
import schedulefree
import torch

import gradtx
from tests import references as ref

FALLING = gradtx.linear_schedule(0.3, start_factor=1.0, end_factor=0.1, total_iters=25)
WARM_UP = gradtx.Schedule(lambda step: 0.1 * min(step / 8, 1.0))  # from 0
CLOSE = 1e-12


def schedule_free(s, t, p, direction, lr, beta, warmup_steps=0, r=0.0, weight_lr_power=2.0, decoupling_c=0.0):
    """All three sequences, as the paper has them."""
    if t == 1:
        s.z = s.x = p
        s.L = -1.0
    eta = lr * min(1, t / warmup_steps) if warmup_steps else lr
    s.L = max(s.L, eta)
    w = t**r * s.L**weight_lr_power
    s.W = s.W + w
    a = w / s.W if s.W else 0.0
    if decoupling_c > 0:
        a = min(1.0, a * (1 - beta) * decoupling_c)
    s.z = s.z - eta * direction
    s.x = (1 - a) * s.x + a * s.z
    return (1 - beta) * s.z + beta * s.x


def schedule_free_sgd(
    s, t, g, p, lr=1.0, momentum=0.9, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0, decoupling_c=0.0
):
    direction = g + weight_decay * p
    return schedule_free(s, t, p, direction, lr, momentum, warmup_steps, r, weight_lr_power, decoupling_c)


def schedule_free_adamw(
    s, t, g, p, lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0,
    decoupling_c=0.0,
):  # fmt: skip
    b1, b2 = betas
    s.v = b2 * s.v + (1 - b2) * g**2
    direction = g / ((s.v / (1 - b2**t)).sqrt() + eps) + weight_decay * p
    return schedule_free(s, t, p, direction, lr, b1, warmup_steps, r, weight_lr_power, decoupling_c)


def schedule_free_radam(
    s, t, g, p, lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, r=0.0, weight_lr_power=2.0,
    silent_sgd_phase=True, decoupling_c=0.0,
):  # fmt: skip
    b1, b2 = betas
    s.v = b2 * s.v + (1 - b2) * g**2
    factor = ref.rectifier(t, b2, 4.0)
    s.seen.add(factor is None)
    if factor is None:
        rate, direction = 0.0 if silent_sgd_phase else lr, g
    else:
        rate, direction = lr * factor, g / ((s.v / (1 - b2**t)).sqrt() + eps)
    direction = direction + weight_decay * p
    return schedule_free(s, t, p, direction, rate, b1, 0, r, weight_lr_power, decoupling_c)


OPTIONS = [
    (gradtx.schedule_free_sgd, schedule_free_sgd, {}),
    (gradtx.schedule_free_sgd, schedule_free_sgd, {"lr": 0.3, "momentum": 0.6, "weight_decay": 0.2, "warmup_steps": 9}),
    (gradtx.schedule_free_sgd, schedule_free_sgd, {"lr": 0.3, "r": 1.5, "weight_lr_power": 0.0, "warmup_steps": 9}),
    (gradtx.schedule_free_sgd, schedule_free_sgd, {"lr": WARM_UP, "weight_lr_power": 1.0, "weight_decay": FALLING}),
    (gradtx.schedule_free_sgd, schedule_free_sgd, {"lr": WARM_UP, "weight_lr_power": 0.0, "r": FALLING}),
    (gradtx.schedule_free_sgd, schedule_free_sgd, {"lr": 0.3, "momentum": 0.6, "decoupling_c": 12.0}),
    (gradtx.schedule_free_adamw, schedule_free_adamw, {}),
    (gradtx.schedule_free_adamw, schedule_free_adamw, {"lr": 0.05, "betas": (0.6, 0.9), "eps": 0.05, "r": 1.0}),
    (gradtx.schedule_free_adamw, schedule_free_adamw, {"lr": 0.05, "weight_decay": 0.2, "warmup_steps": 50}),
    (gradtx.schedule_free_adamw, schedule_free_adamw, {"lr": FALLING, "betas": (0.6, 0.9), "weight_decay": FALLING}),
    (gradtx.schedule_free_adamw, schedule_free_adamw, {"lr": 0.05, "decoupling_c": 50.0, "warmup_steps": 3}),
    (gradtx.schedule_free_adamw, schedule_free_adamw, {"lr": 0.05, "decoupling_c": 2.0}),
    (gradtx.schedule_free_radam, schedule_free_radam, {}),
    (gradtx.schedule_free_radam, schedule_free_radam, {"lr": 0.05, "betas": (0.6, 0.9), "eps": 0.05, "r": 1.0}),
    (gradtx.schedule_free_radam, schedule_free_radam, {"lr": 0.05, "weight_decay": 0.2, "silent_sgd_phase": False}),
    (gradtx.schedule_free_radam, schedule_free_radam, {"lr": 0.05, "weight_lr_power": 0.0, "betas": (0.9, 0.98)}),
    (gradtx.schedule_free_radam, schedule_free_radam, {"lr": FALLING, "betas": (0.6, 0.9), "weight_decay": FALLING}),
    (gradtx.schedule_free_radam, schedule_free_radam, {"lr": 0.05, "betas": (0.9, 0.98), "decoupling_c": 30.0}),
]


@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=ref.named)
def test_trained_and_evaluated_weights_follow_the_loop(make, rule, options):
    step, reference = ref.Transformed(make(**options)), ref.WeightsLoop(rule, **options)
    ref.weights_follow(step, reference, tolerance=CLOSE)
    weights = ref.run(ref.WeightsLoop(rule, **options), weights=True)[-1]
    found = step.tx.eval_params(step.state, weights)
    expected = {name: slots.x for name, slots in reference.slots.items()}
    ref.compare_trees(found, expected, CLOSE)


CLASSES = [
    (gradtx.optim.ScheduleFreeSGD, schedule_free_sgd, {"weight_decay": 0.1, "momentum": 0.7}),
    (gradtx.optim.ScheduleFreeAdamW, schedule_free_adamw, {"weight_decay": 0.1, "warmup_steps": 4}),
    (gradtx.optim.ScheduleFreeRAdam, schedule_free_radam, {"weight_decay": 0.1, "betas": (0.9, 0.95)}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "rule", "options"), CLASSES, ids=["ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam"]
)
def test_groups_have_rates_of_their_own_and_warm_up_from_zero(cls, rule, options):
    rates = dict(zip(ref.problem(), (0.1, 0.05, 0.0, 0.2, 0.1, 0.03), strict=True))

    def make(params):
        optimizer = cls([{"params": [p], "lr": lr} for p, lr in zip(params, rates.values(), strict=True)], **options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 5, 1.0))
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    def loop(s, t, g, p):
        return rule(s, t, g, p, lr=rates[s.name] * min((t - 1) / 5, 1.0), **options)

    step, reference = ref.Published(make), ref.WeightsLoop(loop)
    ref.weights_follow(step, reference, tolerance=CLOSE)
    with step.optimizer.eval_params():
        found = {name: param.detach().clone() for name, param in step.params.items()}
    expected = {name: slots.x for name, slots in reference.slots.items()}
    ref.compare_trees(found, expected, CLOSE)


@pytest.mark.parametrize(
    "make", [gradtx.schedule_free_sgd, gradtx.schedule_free_adamw, gradtx.schedule_free_radam], ids=ref.named
)
def test_before_the_first_step_the_weights_to_evaluate_with_are_the_parameters_bit_for_bit(make):
    params = {name: param.float() for name, param in ref.problem().items()}
    for options in ({}, {"state_dtype": torch.bfloat16}):
        tx = make(**options)
        state = tx.init(params)
        found = tx.eval_params(state, params)
        assert all(torch.equal(found[name], params[name]) for name in params)
        assert all(found[name] is not params[name] for name in params)


def test_a_constant_share_keeps_no_numbers_and_is_an_average_of_its_own():
    params = {"w": torch.tensor([8.0], dtype=torch.float64)}
    tx = gradtx.schedule_free(gradtx.chain(), lr=1.0, beta=0.5, averaging=0.25)
    state = tx.init(params)
    assert list(state["schedule_free"]) == ["z"]
    assert torch.equal(tx.eval_params(state, params)["w"], params["w"])
    for average in (7.5, 6.625):  # z: 6, 4; x: 0.75 * 8 + 0.25 * 6, 0.75 * 7.5 + 0.25 * 4
        updates, state = tx.update({"w": torch.full_like(params["w"], 2.0)}, state, params)
        params = gradtx.apply_updates(params, updates)
        assert tx.eval_params(state, params)["w"].item() == average
    with pytest.raises(ValueError, match=r"schedule_free: averaging must be in \[0, 1\], got 1.5"):
        gradtx.schedule_free(gradtx.chain(), lr=1.0, beta=0.5, averaging=1.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda c: gradtx.schedule_free_sgd(lr=0.3, momentum=0.75, decoupling_c=c),
        lambda c: gradtx.schedule_free_adamw(lr=0.05, betas=(0.75, 0.9), decoupling_c=c),
        lambda c: gradtx.schedule_free_radam(lr=0.05, betas=(0.75, 0.98), decoupling_c=c),
        lambda c: gradtx.schedule_free(gradtx.chain(), lr=0.3, beta=0.75, decoupling_c=c),
    ],
    ids=["sgd", "adamw", "radam", "around a chain"],
)
def test_a_decoupling_of_one_over_one_minus_beta_changes_nothing_and_another_does(make):
    expected = ref.run(make(0.0))
    ref.compare(ref.run(make(4.0)), expected, tolerance=1e-13)  # a quarter of four times the share
    ref.compare(ref.run(make(torch.tensor(0.0))), expected, tolerance=0)
    assert ref.distance(ref.run(make(20.0))[-1:], expected[-1:]) > 1e-3


@pytest.mark.slow
def test_decoupled_steps_are_those_of_pytorch_optimizer():
    options = {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1, "decoupling_c": 12}
    published = ref.Published(pytorch_optimizer.ScheduleFreeAdamW, **options)
    # They add 1e-15 inside the root.
    ref.weights_follow(gradtx.schedule_free_adamw(**options), published, tolerance=1e-8)


def test_a_constant_average_has_no_share_to_decouple():
    with pytest.raises(ValueError, match="decoupling_c changes the weights of Schedule-Free, but averaging replaces"):
        gradtx.schedule_free(gradtx.chain(), lr=1.0, beta=0.5, averaging=0.25, decoupling_c=5.0)
    with pytest.raises(ValueError, match=r"schedule_free_adamw: decoupling_c must be in \[0, inf\), got -1.0"):
        gradtx.schedule_free_adamw(decoupling_c=-1.0)


# Their memory, and checkpoints of the authors' package.


def test_each_method_keeps_as_many_bytes_as_its_authors():
    params = {"w": torch.zeros(1000)}
    for tx, slots in (
        (gradtx.schedule_free_sgd(), {"z": 4}),
        (gradtx.schedule_free_adamw(), {"z": 4, "exp_avg_sq": 4}),
        (gradtx.schedule_free_radam(), {"z": 4, "exp_avg_sq": 4}),
    ):
        sizes = gradtx.memory(tx, params).slots
        assert {name: size / 1000 for name, size in sizes.items() if size >= 1000} == slots


AUTHORS = {
    "ScheduleFreeSGD": (schedulefree.SGDScheduleFree, {"lr": 0.1, "weight_decay": 0.1}),
    "ScheduleFreeAdamW": (schedulefree.AdamWScheduleFree, {"lr": 0.05, "weight_decay": 0.1, "warmup_steps": 4}),
    "ScheduleFreeRAdam": (schedulefree.RAdamScheduleFree, {"lr": 0.05, "weight_decay": 0.1, "betas": (0.9, 0.95)}),
}


def _steps(optimizer, param, first, count):
    for t in range(first, first + count):
        param.grad = torch.sin(torch.arange(6.0, dtype=torch.float64) + t)
        optimizer.step()


@pytest.mark.parametrize("name", AUTHORS)
def test_a_checkpoint_of_the_authors_package_continues(name):
    make, options = AUTHORS[name]
    twin = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    theirs = make([twin], **options)
    theirs.train()
    _steps(theirs, twin, 0, 9)
    param = torch.nn.Parameter(twin.detach().clone())
    ours = getattr(gradtx.optim, name)([param], **options)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state[param]["step"] == 9
    _steps(theirs, twin, 9, 5)
    _steps(ours, param, 9, 5)
    torch.testing.assert_close(param, twin, rtol=1e-9, atol=1e-9)


def test_a_checkpoint_of_the_authors_package_with_the_weights_for_evaluation_is_refused():
    param = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    theirs = schedulefree.AdamWScheduleFree([param])
    theirs.train()
    _steps(theirs, param, 0, 2)
    theirs.eval()
    with pytest.raises(ValueError, match=r"eval mode, whose weights are the average; load it there, call train\(\)"):
        gradtx.optim.ScheduleFreeAdamW([param]).load_state_dict(theirs.state_dict())


def test_a_checkpoint_with_the_last_gradient_as_average_names_it_and_continues_without():
    param = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    optimizer = gradtx.optim.ScheduleFreeAdamW([param])
    _steps(optimizer, param, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg"] = param.grad.clone()
    with pytest.raises(ValueError, match=r"has 'exp_avg', which this chain does not use; .*strict=False"):
        optimizer.load_state_dict(saved)
    optimizer.load_state_dict(saved, strict=False)
    _steps(optimizer, param, 2, 1)
    assert optimizer.state[param]["step"] == 3
