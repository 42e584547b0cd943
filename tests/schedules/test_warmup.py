"""The schedules that torch does not have, against the formulas of their sources and against published code."""

import math

import pytest
import torch
from pytorch_optimizer import lr_scheduler as theirs

import gradtx
from tests.references import rates_left_by

LR = 0.3
EXACT = {"rel": 1e-14, "abs": 1e-16}  # the same formula in float64, rounded in another order


def sgd(lr=LR):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def first(schedule, steps):
    return [schedule(step) for step in range(steps)]


def warmed_up(s, t_max, max_lr, min_lr=0.0, init_lr=0.0, warmup_steps=0, *, form, q=None):
    w, T = warmup_steps, t_max
    if s < w:
        return init_lr + (max_lr - init_lr) * s / w
    if s == w:
        return max_lr
    if form == "linear":
        return min_lr if s >= T else max_lr + (min_lr - max_lr) * (s - w) / (T - w)
    s = min(s, T)
    return max_lr if s == w else min_lr + (max_lr - min_lr) * (s - w) ** q


OPTIONS = [
    {"t_max": 1, "max_lr": 0.3},
    {"t_max": 12, "max_lr": 0.3, "min_lr": 0.02, "warmup_steps": 5},
    {"t_max": 12, "max_lr": 0.3, "min_lr": 0.02, "init_lr": 0.1, "warmup_steps": 1},
    {"t_max": 12, "max_lr": 0.3, "min_lr": 0.02, "init_lr": 0.5, "warmup_steps": 11},
    {"t_max": 5, "max_lr": 0.3, "min_lr": 0.1, "warmup_steps": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_linear_and_polynomial_decay_after_a_warm_up_follow_the_loop(options):
    expected = [warmed_up(s, **options, form="linear") for s in range(30)]
    assert first(gradtx.warmup_linear_schedule(**options), 30) == pytest.approx(expected, **EXACT)
    for q in (-0.5, -1.3, 0.5):
        expected = [warmed_up(s, **options, form="poly", q=q) for s in range(30)]
        assert first(gradtx.warmup_poly_schedule(**options, poly_order=q), 30) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize(
    ("factory", "cls", "more"),
    [
        (gradtx.warmup_linear_schedule, theirs.LinearScheduler, {}),
        (gradtx.warmup_cosine_schedule, theirs.CosineScheduler, {}),
        (gradtx.warmup_poly_schedule, theirs.PolyScheduler, {"poly_order": 0.5}),
    ],
    ids=["linear", "cosine", "poly"],
)
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_up_to_the_end_warm_ups_equal_those_of_pytorch_optimizer(factory, cls, more, options):
    scheduler = cls(sgd(), **options, **more)
    expected = [scheduler.step() for _ in range(options["t_max"] + 1)]
    assert first(factory(**options, **more), options["t_max"] + 1) == pytest.approx(expected, **EXACT)


def test_a_proportion_equals_that_of_pytorch_optimizer():
    optimizer, rate = sgd(), gradtx.warmup_cosine_schedule(9, LR, min_lr=0.05, warmup_steps=3)
    scheduler = theirs.CosineScheduler(optimizer, 9, LR, min_lr=0.05, warmup_steps=3)
    scheduler.step()
    rho = theirs.ProportionScheduler(scheduler, max_lr=LR, min_lr=0.05, max_value=0.4, min_value=0.1)
    expected = [rho.last_lr[0]]
    for _ in range(9):
        scheduler.step()
        expected.append(rho.step())
    schedule = gradtx.proportion_schedule(rate, LR, 0.05, 0.4, 0.1)
    assert first(schedule, 10) == pytest.approx(expected, **EXACT)


RESTARTS = [
    {"first_cycle_steps": 7, "warmup_steps": 2, "max_lr": 0.3, "min_lr": 0.01},
    {"first_cycle_steps": 5, "cycle_mult": 1.5, "warmup_steps": 1, "max_lr": 0.3, "min_lr": 0.0, "gamma": 0.5},
    {"first_cycle_steps": 9, "cycle_mult": 0.5, "warmup_steps": 3, "max_lr": 0.3, "min_lr": 0.02, "gamma": 0.9},
    {"first_cycle_steps": 4, "cycle_mult": 1.2, "warmup_steps": 1, "max_lr": 0.3, "min_lr": 0.02},  # int(3.6) is 3
    {"first_cycle_steps": 4, "cycle_mult": 2.0, "warmup_steps": 0, "max_lr": 0.3, "min_lr": 0.02},
]


@pytest.mark.parametrize("options", RESTARTS, ids=str)
def test_cosine_with_warm_up_and_restarts_equals_the_class_of_pytorch_optimizer(options):
    expected = rates_left_by(lambda o: theirs.CosineAnnealingWarmupRestarts(o, **options), 90)
    schedule = gradtx.cosine_warmup_restarts_schedule(**options)
    if options["warmup_steps"] == 0:
        assert expected[0] == 0.02  # the class leaves the lowest rate for the first update
        expected[0] = 0.3
    assert first(schedule, 90) == pytest.approx(expected, rel=1e-13, abs=1e-16)


def test_restarts_are_defined_for_every_step():
    for length, mult in ((50, 0.5), (50, 1.0), (50, 1.001), (50, 2.0), (10**6, 1.000001)):
        schedule = gradtx.cosine_warmup_restarts_schedule(length, mult, 0.3, 0.1, 10, 1.0)
        assert all(0.1 <= schedule(10**n) <= 0.3 for n in range(15))


def explored(s, peak_lr, warmup_steps=0, explore_steps=0, total_steps=0):
    t, w, e, N = s + 1, warmup_steps, explore_steps, total_steps
    if t <= w:
        return peak_lr * t / w
    if t <= w + e:
        return peak_lr
    return 0.0 if t >= N else max(0.0, peak_lr * (1 - (t - w - e) / (N - w - e)))


@pytest.mark.parametrize("steps", [(0, 0, 0), (0, 0, 6), (3, 0, 3), (0, 4, 4), (3, 4, 12), (1, 0, 5)], ids=str)
def test_explore_exploit_follows_the_loop(steps):
    expected = [explored(s, LR, *steps) for s in range(20)]
    assert first(gradtx.explore_exploit_schedule(LR, *steps), 20) == pytest.approx(expected, **EXACT)


def wsd(s, w, stable, decay, r, k, form):
    if s < w:
        return LR * s / w
    if s < w + stable:
        return LR
    if s >= w + stable + decay:
        return LR * r
    x = (s - w - stable) / decay
    shapes = {"1-sqrt": 1 - math.sqrt(x), "linear": 1 - x, "1-square": 1 - x * x}
    shape = shapes.get(form, max(0.0, (1 + math.cos(2 * math.pi * k * x)) / 2))
    return LR * (r + (1 - r) * shape)


@pytest.mark.parametrize("form", ["1-sqrt", "linear", "1-square", "cosine"])
@pytest.mark.parametrize("steps", [(3, 4, 8), (0, 0, 5), (4, 0, 0), (0, 0, 0)], ids=str)
def test_wsd_follows_the_loop_and_with_a_final_0_pytorch_optimizer(steps, form):
    expected = [wsd(s, *steps, 0.2, 0.8, form) for s in range(25)]
    assert first(gradtx.wsd_schedule(LR, *steps, 0.2, 0.8, form), 25) == pytest.approx(expected, **EXACT)
    r = 0.2 if form == "cosine" else 0.0
    made = rates_left_by(lambda o: theirs.get_wsd_schedule(o, *steps, r, 0.8, form), 25)
    assert first(gradtx.wsd_schedule(LR, *steps, r, 0.8, form), 25) == pytest.approx(made, **EXACT)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.9, 0.999])
def test_untuned_warm_ups_follow_their_formulas_and_are_not_rounded(beta2):
    linear = [LR * min(1, (s + 1) * (1 - beta2) / 2) for s in range(3000)]
    exponential = [LR * (1 - math.exp(-(1 - beta2) * (s + 1))) for s in range(3000)]
    for schedule, expected in (
        (gradtx.untuned_linear_warmup(LR, beta2), linear),
        (gradtx.untuned_exponential_warmup(LR, beta2), exponential),
    ):
        values = torch.vmap(schedule)(torch.arange(3000)).tolist()
        assert values == pytest.approx(expected, rel=1e-12)  # 1 - exp(-x) loses 1e-13 of a small x


def test_an_untuned_warm_up_goes_in_front_of_any_schedule():
    rate = gradtx.cosine_schedule(LR, 50, 0.01)
    for made in (rate, gradtx.Schedule(lambda step: rate(step))):
        schedule = gradtx.untuned_linear_warmup(made, 0.9)
        assert first(schedule, 50) == pytest.approx([rate(s) * min(1, (s + 1) * 0.05) for s in range(50)], **EXACT)
        assert type(schedule(3)) is float


@pytest.mark.parametrize("beta2", [0.999, 0.95, 0.6, 0.0])
@pytest.mark.parametrize("silent", [True, False])
def test_the_rectified_rate_follows_the_formula(beta2, silent):
    expected = []
    for t in range(1, 41):
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 4:
            top, bottom = (rho - 4) * (rho - 2) * rho_inf, (rho_inf - 4) * (rho_inf - 2) * rho
            expected.append(LR * math.sqrt(top / bottom))
        else:
            expected.append(0.0 if silent else LR)
    # differences of numbers near 2000
    assert first(gradtx.rectification_schedule(LR, beta2, silent), 40) == pytest.approx(expected, rel=1e-11)
