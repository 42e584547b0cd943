import contextlib
import copy
import math
import pickle

import pytest
import torch
from torch.optim import lr_scheduler

import gradtx
from tests.conformance import assert_same
from tests.references import WeightsLoop, first_update, follows, named, rates_left_by

LR = 0.3
SCHEDULES = [  # factory, its numbers, the rest
    (gradtx.constant_schedule, {"lr": LR}, {}),
    (gradtx.constant_schedule, {"lr": LR, "factor": 0.2}, {"total_iters": 4}),
    (gradtx.linear_schedule, {"lr": LR}, {}),
    (gradtx.linear_schedule, {"lr": LR, "start_factor": 0.2, "end_factor": 0.9}, {"total_iters": 7}),
    (gradtx.cosine_schedule, {"lr": LR, "eta_min": 0.02}, {"T_max": 6}),
    (gradtx.warmup_cosine_schedule, {"max_lr": LR, "min_lr": 0.02, "init_lr": 0.05}, {"t_max": 9, "warmup_steps": 3}),
    (gradtx.warmup_cosine_schedule, {"max_lr": LR}, {"t_max": 5, "warmup_steps": 5}),
    (gradtx.ranger21_schedule, {"lr": LR, "beta2": 0.9, "warm_down_min_lr": 0.02}, {"num_iterations": 20}),
    (gradtx.ranger21_schedule, {"lr": LR}, {"num_iterations": 20, "num_warm_up_iterations": 2, "chebyshev_epochs": 6}),
    (gradtx.polynomial_schedule, {"lr": LR, "power": 1.5}, {"total_iters": 7}),
    (gradtx.sigmoid_schedule, {"start": LR, "end": 0.02, "center": 0.4, "width": 0.1}, {"total_steps": 9}),
    (gradtx.exponential_schedule, {"lr": LR, "gamma": 0.9}, {}),
    (gradtx.step_schedule, {"lr": LR, "gamma": 0.5}, {"step_size": 3}),
    (gradtx.multistep_schedule, {"lr": LR, "gamma": 0.5}, {"milestones": [2, 7, 7]}),
    (gradtx.multistep_schedule, {"lr": LR}, {"milestones": ()}),
    (gradtx.piecewise_constant_schedule, {"lr": LR}, {"boundaries_and_scales": {2: 0.5, 7: 0.3}}),
    (
        gradtx.piecewise_interpolate_schedule,
        {"lr": LR},
        {"interpolate_type": "cosine", "boundaries_and_scales": {2: 0.5, 7: 0.3}},
    ),
    (gradtx.linear_schedule, {"lr": LR, "start_factor": 0.0}, {"total_iters": 4}),
    (gradtx.cosine_warm_restarts_schedule, {"lr": LR, "eta_min": 0.02}, {"T_0": 3}),
    (gradtx.cosine_warm_restarts_schedule, {"lr": LR}, {"T_0": 2, "T_mult": 3}),
    (
        gradtx.one_cycle_schedule,
        {"max_lr": LR, "pct_start": 0.4, "div_factor": 5.0, "final_div_factor": 7.0},
        {"total_steps": 9},
    ),
    (gradtx.one_cycle_schedule, {"max_lr": LR, "pct_start": 0.4}, {"total_steps": 9, "anneal_strategy": "linear"}),
    (gradtx.one_cycle_schedule, {"max_lr": LR}, {"total_steps": 11, "three_phase": True}),
    (gradtx.cyclic_schedule, {"base_lr": 0.1, "max_lr": LR}, {"step_size_up": 3, "step_size_down": 2}),
    (gradtx.cyclic_schedule, {"base_lr": 0.1, "max_lr": LR}, {"step_size_up": 3, "mode": "triangular2"}),
    (gradtx.cyclic_schedule, {"base_lr": 0.1, "max_lr": LR, "gamma": 0.9}, {"step_size_up": 2, "mode": "exp_range"}),
    (gradtx.warmup_linear_schedule, {"max_lr": LR, "min_lr": 0.02, "init_lr": 0.05}, {"t_max": 9, "warmup_steps": 3}),
    (
        gradtx.warmup_poly_schedule,
        {"max_lr": LR, "min_lr": 0.02, "init_lr": 0.05, "poly_order": -0.7},
        {"t_max": 9, "warmup_steps": 3},
    ),
    (
        gradtx.cosine_warmup_restarts_schedule,
        {"max_lr": LR, "min_lr": 0.02, "gamma": 0.8},
        {"first_cycle_steps": 4, "cycle_mult": 1.5, "warmup_steps": 2},
    ),
    (
        gradtx.proportion_schedule,
        {"max_lr": LR, "min_lr": 0.05, "max_value": 0.4, "min_value": 0.2},
        {"lr_schedule": gradtx.cosine_schedule(LR, 6)},
    ),
    (gradtx.explore_exploit_schedule, {"peak_lr": LR}, {"warmup_steps": 2, "explore_steps": 3, "total_steps": 9}),
    *(
        (
            gradtx.wsd_schedule,
            {"lr": LR, "min_lr_ratio": 0.1, "num_cycles": 0.7},
            {"num_warmup_steps": 2, "num_stable_steps": 3, "num_decay_steps": 4, "cooldown_type": form},
        )
        for form in ("1-sqrt", "linear", "1-square", "cosine")
    ),
    (gradtx.untuned_linear_warmup, {"lr": LR, "beta2": 0.9}, {}),
    (gradtx.untuned_exponential_warmup, {"lr": LR, "beta2": 0.9}, {}),
    (gradtx.ademamix_alpha_schedule, {"alpha": LR}, {"warmup_steps": 4}),
    (gradtx.half_life_schedule, {"end": 0.99, "start": 0.5}, {"warmup_steps": 4}),
    (gradtx.restart_warmup_schedule, {"lr": LR}, {"every": 5, "warmup_steps": 4}),
    (gradtx.rectification_schedule, {"lr": LR, "beta2": 0.9}, {"silent": False}),
    (gradtx.chebyshev_schedule, {"lr": LR, "small_m": 0.2, "big_m": 0.9}, {"num_epochs": 7}),
]
JOINED = gradtx.join_schedules([factory(**numbers, **rest) for factory, numbers, rest in SCHEDULES[1:6:2]], [5, 11])
MADE = [*(factory(**numbers, **rest) for factory, numbers, rest in SCHEDULES), JOINED]


def test_every_schedule_is_in_the_table():
    made = {getattr(gradtx, name) for name in gradtx.schedules.__all__ if hasattr(getattr(gradtx, name), "arguments")}
    assert made - {gradtx.join_schedules} == {factory for factory, _, _ in SCHEDULES}


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (gradtx.constant_schedule(LR, 0.2, 4), lambda o: lr_scheduler.ConstantLR(o, 0.2, 4)),
        (gradtx.constant_schedule(LR, 1 / 3, 5), lr_scheduler.ConstantLR),
        (gradtx.linear_schedule(LR), lr_scheduler.LinearLR),
        (gradtx.linear_schedule(LR, 0.2, 0.9, 7), lambda o: lr_scheduler.LinearLR(o, 0.2, 0.9, 7)),
        (gradtx.linear_schedule(LR, 1.0, 0.0, 7), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 7)),
        (gradtx.cosine_schedule(LR, 6), lambda o: lr_scheduler.CosineAnnealingLR(o, 6)),
        (gradtx.cosine_schedule(LR, 7, 0.02), lambda o: lr_scheduler.CosineAnnealingLR(o, 7, 0.02)),
        (gradtx.polynomial_schedule(LR), lr_scheduler.PolynomialLR),
        (gradtx.polynomial_schedule(LR, 7, 2.5), lambda o: lr_scheduler.PolynomialLR(o, 7, 2.5)),
        (gradtx.exponential_schedule(LR, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        (gradtx.step_schedule(LR, 3), lambda o: lr_scheduler.StepLR(o, 3)),
        (gradtx.step_schedule(LR, 7, 0.7), lambda o: lr_scheduler.StepLR(o, 7, 0.7)),
        (gradtx.multistep_schedule(LR, [9, 2, 5, 5], 0.7), lambda o: lr_scheduler.MultiStepLR(o, [9, 2, 5, 5], 0.7)),
        (gradtx.cosine_warm_restarts_schedule(LR, 6), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6)),
        (
            gradtx.cosine_warm_restarts_schedule(LR, 3, 2, 0.01),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
        ),
        (gradtx.one_cycle_schedule(LR, 50), lambda o: lr_scheduler.OneCycleLR(o, LR, 50)),
        (
            gradtx.one_cycle_schedule(LR, 41, 0.25, "linear", 10.0, 100.0),
            lambda o: lr_scheduler.OneCycleLR(
                o, LR, 41, pct_start=0.25, anneal_strategy="linear", div_factor=10.0, final_div_factor=100.0
            ),
        ),
        (
            gradtx.one_cycle_schedule(LR, 50, 0.4, three_phase=True),
            lambda o: lr_scheduler.OneCycleLR(o, LR, 50, pct_start=0.4, three_phase=True),
        ),
        (
            gradtx.one_cycle_schedule(LR, 60, 0.0, "linear"),
            lambda o: lr_scheduler.OneCycleLR(o, LR, 60, pct_start=0.0, anneal_strategy="linear"),
        ),
        (gradtx.cyclic_schedule(0.01, LR, 5), lambda o: lr_scheduler.CyclicLR(o, 0.01, LR, 5)),
        (
            gradtx.cyclic_schedule(0.01, LR, 3, 4, "triangular2"),
            lambda o: lr_scheduler.CyclicLR(o, 0.01, LR, 3, 4, "triangular2"),
        ),
        (
            gradtx.cyclic_schedule(0.01, LR, 3, 4, "exp_range", 0.95),
            lambda o: lr_scheduler.CyclicLR(o, 0.01, LR, 3, 4, "exp_range", 0.95),
        ),
        (
            gradtx.join_schedules(
                [gradtx.constant_schedule(LR, 0.2, 3), gradtx.linear_schedule(LR, 0.5), gradtx.cosine_schedule(LR, 9)],
                [5, 11],
            ),
            lambda o: lr_scheduler.SequentialLR(
                o,
                [
                    lr_scheduler.ConstantLR(o, 0.2, 3),
                    lr_scheduler.LinearLR(o, 0.5),
                    lr_scheduler.CosineAnnealingLR(o, 9),
                ],
                [5, 11],
            ),
        ),
    ],
    ids=named,
)
def test_every_step_equals_the_scheduler_of_torch(schedule, make):
    # torch's are recursive: each step adds a rounding of 1e-16 to the last value
    assert [schedule(step) for step in range(40)] == pytest.approx(rates_left_by(make, 40, LR), rel=0, abs=1e-14)


def warmup_cosine(s, t_max, max_lr, min_lr=0.0, init_lr=0.0, warmup_steps=0):
    w = warmup_steps
    if s < w:
        return init_lr + (max_lr - init_lr) * s / w
    if s == w:
        return max_lr
    if s >= t_max:
        return min_lr
    return min_lr + (max_lr - min_lr) * (1 + math.cos(math.pi * (s - w) / (t_max - w))) / 2


@pytest.mark.parametrize(
    "options",
    [
        {"t_max": 1, "max_lr": 0.3},
        {"t_max": 12, "max_lr": 0.3},
        {"t_max": 12, "max_lr": 0.3, "min_lr": 0.02, "warmup_steps": 5},
        {"t_max": 12, "max_lr": 0.3, "min_lr": 0.02, "init_lr": 0.1, "warmup_steps": 1},
        {"t_max": 12, "max_lr": 0.3, "min_lr": 0.02, "init_lr": 0.5, "warmup_steps": 11},
        {"t_max": 5, "max_lr": 0.1, "min_lr": 0.3, "warmup_steps": 2},  # "falls" upwards
    ],
    ids=str,
)
def test_every_step_of_warmup_cosine_follows_the_loop(options):
    schedule = gradtx.warmup_cosine_schedule(**options)
    expected = [warmup_cosine(s, **options) for s in range(30)]
    assert [schedule(s) for s in range(30)] == pytest.approx(expected, rel=1e-15, abs=1e-16)


def test_every_step_of_the_sigmoid_follows_the_formula():
    for start, end, n, c, w in ((0.25, -0.25, 20, 0.3, 0.04), (-1.0, 2.0, 1, 2.0, 0.5)):
        schedule = gradtx.sigmoid_schedule(start, end, n, c, w)
        expected = [end + (start - end) / (1 + math.exp((s / n - c) / w)) for s in range(30)]
        assert [schedule(s) for s in range(30)] == pytest.approx(expected, rel=1e-13, abs=1e-16)
    assert [gradtx.sigmoid_schedule(1.0, 2.0, 10, 0.5, 1e-9)(s) for s in (0, 4, 5, 6, 10**9)] == [1, 1, 1.5, 2, 2]
    with pytest.raises(ValueError, match=r"sigmoid_schedule: width must be in \(0, inf\), got 0.0"):
        gradtx.sigmoid_schedule(1.0, 2.0, 10, 0.5, 0.0)


def chebyshev_factors(T, m=0.1, M=1.0):
    """Inverse nodes in fractal order: the permutation is refined, each x by (x, its mirror image)."""
    factors = [1 / ((M + m) / 2 - (M - m) / 2 * math.cos(math.pi * (i + 0.5) / T)) for i in range(T)]
    order = [0]
    while len(order) < T:
        n = len(order)
        order = [place for x in order for place in (x, 2 * n - 1 - x)]
    return [factors[x] for x in order if x < T]


def ranger21_rate(
    s, lr, num_iterations, beta2=0.999, num_warm_up_iterations=None, num_warm_down_iterations=None,
    warm_down_min_lr=3e-5, chebyshev_epochs=None,
):  # fmt: skip
    N, t, up, down = num_iterations, s + 1, num_warm_up_iterations, num_warm_down_iterations
    if up is None:
        up = math.ceil(2 / (1 - beta2))
        if up > 0.45 * N:
            up = int(0.22 * N)
    if down is None:
        down = N - int(0.72 * N)
    start = N - down
    if t >= start:
        return max(lr - (lr - warm_down_min_lr) * min((t + 1 - start) / (down + 1), 1), warm_down_min_lr)
    if t <= up:
        return lr * t / up
    if chebyshev_epochs is None:
        return lr
    E = chebyshev_epochs
    return lr * chebyshev_factors(E - 2)[min(max(t // (N // E) - 1, 0), E - 3)]


RANGER21 = [
    {"num_iterations": 50},
    {"num_iterations": 50, "beta2": 0.9},
    {"num_iterations": 44, "beta2": 0.9},  # 20 of 44 are more than 45 %
    {"num_iterations": 45, "beta2": 0.9},
    {"num_iterations": 1},
    {"num_iterations": 30, "num_warm_up_iterations": 0, "num_warm_down_iterations": 0},
    {"num_iterations": 30, "num_warm_up_iterations": 20, "num_warm_down_iterations": 25},
    {"num_iterations": 30, "num_warm_up_iterations": 5, "num_warm_down_iterations": 9, "warm_down_min_lr": 0.7},
    {"num_iterations": 50, "num_warm_up_iterations": 5, "num_warm_down_iterations": 5, "chebyshev_epochs": 10},
    {"num_iterations": 50, "num_warm_up_iterations": 3, "num_warm_down_iterations": 0, "chebyshev_epochs": 3},
    {"num_iterations": 60, "num_warm_up_iterations": 0, "num_warm_down_iterations": 9, "chebyshev_epochs": 13},
]


@pytest.mark.parametrize("options", RANGER21, ids=str)
def test_every_step_of_ranger21s_rate_follows_the_loop(options):
    schedule = gradtx.ranger21_schedule(LR, **options)
    expected = [ranger21_rate(s, LR, **options) for s in range(80)]
    assert [schedule(s) for s in range(80)] == pytest.approx(expected, rel=1e-14)


def test_more_epochs_than_iterations_are_an_error():
    with pytest.raises(
        ValueError, match="ranger21_schedule: chebyshev_epochs must be at most num_iterations = 4, got 5"
    ):
        gradtx.ranger21_schedule(0.1, 4, chebyshev_epochs=5)


def test_with_no_step_to_fall_in_the_lowest_rate_holds_after_the_highest():
    schedule = gradtx.warmup_cosine_schedule(5, 0.5, min_lr=0.25, warmup_steps=5)
    assert [schedule(step) for step in (4, 5, 6, 7, 100)] == [0.4, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("schedule", MADE, ids=str)
def test_a_python_step_gives_a_float_and_a_tensor_step_the_same_as_a_float64_tensor(schedule):
    for step in (0, 3, 5, 11, 1000):
        value = schedule(step)
        assert type(value) is float
        for dtype in (torch.int64, torch.int32):
            result = schedule(torch.tensor(step, dtype=dtype))
            assert (result.shape, result.dtype) == ((), torch.float64)
            assert result.item() == value


def test_the_derivative_with_respect_to_a_number_is_that_of_the_formula():
    def value(lr):
        return gradtx.warmup_cosine_schedule(10, lr, min_lr=0.1, warmup_steps=4)(7)  # half-way down

    assert torch.func.grad(value)(torch.tensor(0.3, dtype=torch.float64)).item() == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", MADE, ids=str)
def test_a_copy_and_a_pickle_and_the_repr_make_the_same_schedule(schedule):
    names = {name: getattr(gradtx, name) for name in gradtx.schedules.__all__}
    copies = [
        copy.deepcopy(schedule),
        pickle.loads(pickle.dumps(schedule)),
        eval(repr(schedule), {**names, "join_schedules": gradtx.join_schedules}),
    ]
    for other in copies:
        assert isinstance(other, gradtx.Schedule)
        assert repr(other) == repr(schedule)
        assert [other(step) for step in range(15)] == [schedule(step) for step in range(15)]


def sgd(s, t, g, p, lr, momentum, weight_decay):
    g = g + weight_decay * p
    s.b = g if t == 1 else momentum * s.b + g
    return p - lr * s.b


def test_schedules_in_an_alias_follow_a_loop_in_which_update_t_uses_step_t_minus_1():
    made = {"lr": JOINED, "momentum": gradtx.linear_schedule(0.9), "weight_decay": gradtx.cosine_schedule(0.2, 20)}
    step = gradtx.Schedule(lambda step: step)

    def rule(s, t, g, p, step):
        assert step == t - 1
        return sgd(s, t, g, p, **{name: schedule(t - 1) for name, schedule in made.items()})

    follows(gradtx.sgd(**made), WeightsLoop(rule, step=step))


def test_the_first_update_uses_step_zero():
    tx = gradtx.sgd(lr=gradtx.Schedule(lambda step: 10.0 ** (step + 1)))
    assert [first_update(tx, [1.0], steps=n) for n in (1, 2, 3)] == [[-10.0], [-100.0], [-1000.0]]


def test_a_schedule_may_select_by_torch_where_from_the_construction_on():
    half = gradtx.Schedule(lambda step: torch.where(step >= 2, 0.5, 1.0))
    listed = gradtx.Schedule(lambda step: torch.tensor([1.0, 1.0, 0.5])[step.long()])
    for schedule in (half, listed):
        assert [first_update(gradtx.sgd(lr=schedule), [1.0], steps=n) for n in (1, 3)] == [[-1.0], [-0.5]]


MISTAKES = [
    (gradtx.warmup_cosine_schedule, (5, 0.1, 0.0, 0.0, 6), "warmup_steps must be at most t_max = 5, got 6"),
    (gradtx.warmup_linear_schedule, (5, 0.1, 0.0, 0.0, 6), "warmup_steps must be at most t_max = 5, got 6"),
    (gradtx.warmup_poly_schedule, (5, 0.1, 0.0, 0.0, 6), "warmup_steps must be at most t_max = 5, got 6"),
    (
        gradtx.cosine_warmup_restarts_schedule,
        (5, 1.0, 0.1, 0.0, 5),
        "warmup_steps must be below first_cycle_steps = 5, got 5",
    ),
    (
        gradtx.cosine_warmup_restarts_schedule,
        (5, torch.tensor(2.0)),
        r"cycle_mult must be a plain number, got tensor\(2\)",
    ),
    (
        gradtx.explore_exploit_schedule,
        (0.1, 3, 2, 4),
        r"total_steps must be at least warmup_steps \+ explore_steps = 5, got 4",
    ),
    (gradtx.multistep_schedule, (0.1, [1, -2]), r"milestones\[1\] must be in \[0, inf\), got -2"),
    (gradtx.multistep_schedule, (0.1, [1.5]), r"milestones\[0\] must be an int, got 1.5"),
    (gradtx.multistep_schedule, (0.1, 3), "milestones must be a list of ints, got 3"),
    (gradtx.chebyshev_schedule, (1.0, 5.5), "num_epochs must be an int, got 5.5"),
    (gradtx.get_chebyshev_schedule, (5, 2.0), "needs small_m <= big_m, got 2.0 and 1.0"),
    (gradtx.join_schedules, (MADE[:2], []), "2 schedules need 1 milestones, got 0"),
    (gradtx.join_schedules, (MADE[:2], [2, 3]), "2 schedules need 1 milestones, got 2"),
    (gradtx.join_schedules, (MADE[:3], [3, 3]), r"milestones must be positive and increasing, got \[3, 3\]"),
    (gradtx.join_schedules, (MADE[:2], [0]), r"milestones must be positive and increasing, got \[0\]"),
    (gradtx.join_schedules, ([MADE[0], 0.1], [2]), r"schedules\[1\] must be a gradtx.Schedule, got 0.1"),
    (gradtx.proportion_schedule, (0.1, 1.0), "lr_schedule must be a gradtx.Schedule, got 0.1"),
]


@pytest.mark.parametrize(("factory", "arguments", "message"), MISTAKES)
def test_what_does_not_fit_together_and_what_is_no_schedule_is_named(factory, arguments, message):
    with pytest.raises((ValueError, TypeError), match=f"^{factory.__name__}: {message}$"):
        factory(*arguments)


def test_no_schedules_to_join_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"^join_schedules: .*at least one"):
        gradtx.join_schedules([], [])


@pytest.mark.parametrize(
    ("common", "own"),
    [
        (
            lambda: gradtx.warmup_linear_schedule(lr=0.5, total_steps=9, warmup_steps=2, min_lr=0.1),
            lambda: gradtx.warmup_linear_schedule(9, 0.5, 0.1, warmup_steps=2),
        ),
        (
            lambda: gradtx.warmup_poly_schedule(lr=0.5, total_steps=9, warmup_steps=2, min_lr=0.1),
            lambda: gradtx.warmup_poly_schedule(9, 0.5, 0.1, warmup_steps=2),
        ),
        (lambda: gradtx.cosine_schedule(0.5, total_steps=7, min_lr=0.2), lambda: gradtx.cosine_schedule(0.5, 7, 0.2)),
        (
            lambda: gradtx.cosine_warm_restarts_schedule(0.5, 3, min_lr=0.2),
            lambda: gradtx.cosine_warm_restarts_schedule(0.5, 3, eta_min=0.2),
        ),
        (lambda: gradtx.linear_schedule(0.5, total_steps=7), lambda: gradtx.linear_schedule(0.5, total_iters=7)),
        (lambda: gradtx.polynomial_schedule(0.5, total_steps=7), lambda: gradtx.polynomial_schedule(0.5, 7)),
        (lambda: gradtx.constant_schedule(0.5, 0.1, total_steps=3), lambda: gradtx.constant_schedule(0.5, 0.1, 3)),
        (lambda: gradtx.one_cycle_schedule(lr=0.5, total_steps=8), lambda: gradtx.one_cycle_schedule(0.5, 8)),
        (lambda: gradtx.cyclic_schedule(lr=0.5, min_lr=0.1), lambda: gradtx.cyclic_schedule(0.1, 0.5)),
        (
            lambda: gradtx.explore_exploit_schedule(lr=0.5, total_steps=8, warmup_steps=2),
            lambda: gradtx.explore_exploit_schedule(0.5, 2, 0, 8),
        ),
        (
            lambda: gradtx.wsd_schedule(lr=0.5, warmup_steps=2, num_stable_steps=3, num_decay_steps=4),
            lambda: gradtx.wsd_schedule(0.5, 2, 3, 4),
        ),
        (
            lambda: gradtx.cosine_warmup_restarts_schedule(5, lr=0.5, min_lr=0.1, warmup_steps=2),
            lambda: gradtx.cosine_warmup_restarts_schedule(5, max_lr=0.5, min_lr=0.1, warmup_steps=2),
        ),
        (lambda: gradtx.chebyshev_schedule(0.5, total_steps=8), lambda: gradtx.chebyshev_schedule(0.5, 8)),
        (
            lambda: gradtx.ranger21_schedule(0.5, total_steps=90, warmup_steps=20, min_lr=0.1),
            lambda: gradtx.ranger21_schedule(0.5, 90, num_warm_up_iterations=20, warm_down_min_lr=0.1),
        ),
    ],
)
def test_schedules_take_one_vocabulary(common, own):
    assert repr(common()) == repr(own())
    assert [common()(step) for step in range(12)] == [own()(step) for step in range(12)]


@pytest.mark.parametrize("form", ["1-sqrt", "linear", "1-square", "cosine"])
@pytest.mark.parametrize("rest", [{"num_decay_steps": 4}, {"num_stable_steps": 3}])
def test_wsd_takes_the_total_and_the_least_rate_of_the_vocabulary(rest, form):
    s = gradtx.wsd_schedule(lr=0.5, total_steps=9, warmup_steps=2, min_lr=0.1, cooldown_type=form, **rest)
    expected = gradtx.wsd_schedule(0.5, 2, 3, 4, 0.2, cooldown_type=form)
    assert [s(step) for step in range(12)] == pytest.approx([expected(step) for step in range(12)])
    assert s(11) == 0.1
    again = eval(repr(s), vars(gradtx))
    assert [s(step) for step in range(12)] == [again(step) for step in range(12)]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, TypeError, "pass two of num_stable_steps, num_decay_steps and total_steps"),
        ({"num_stable_steps": 1, "num_decay_steps": 1, "total_steps": 4}, TypeError, "pass two of"),
        ({"num_stable_steps": 4, "total_steps": 4}, ValueError, "total_steps=4 is less than the total of the phases"),
        ({"num_stable_steps": 1, "total_steps": 4, "min_lr": 0.1, "min_lr_ratio": 0.1}, TypeError, "got both min_lr"),
    ],
)
def test_wsd_names_the_phases_that_do_not_add_up(options, error, text):
    with pytest.raises(error, match=text):
        gradtx.wsd_schedule(0.5, 2, **options)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_takes_the_warmup_and_the_least_rate_of_the_vocabulary(strategy, three_phase):
    options = {"anneal_strategy": strategy, "three_phase": three_phase}
    s = gradtx.one_cycle_schedule(
        lr=0.5, total_steps=10, warmup_steps=3, min_lr=0.5 / 4 / 10, div_factor=4.0, **options
    )
    expected = gradtx.one_cycle_schedule(0.5, 10, 0.4, div_factor=4.0, final_div_factor=10.0, **options)
    assert [s(step) for step in range(13)] == pytest.approx([expected(step) for step in range(13)])
    again = eval(repr(s), vars(gradtx))
    assert [s(step) for step in range(13)] == [again(step) for step in range(13)]


def test_one_cycle_without_warmup_starts_at_its_peak():
    assert gradtx.one_cycle_schedule(0.5, 10, warmup_steps=0)(0) == 0.5


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"warmup_steps": 2, "pct_start": 0.4}, TypeError, "got both warmup_steps and pct_start"),
        ({"min_lr": 0.1, "final_div_factor": 10.0}, TypeError, "got both min_lr and final_div_factor"),
        ({"warmup_steps": 10}, ValueError, "warmup_steps must be at most 9 with total_steps=10, got 10"),
        ({"warmup_steps": 5, "three_phase": True}, ValueError, "warmup_steps must be at most 4 with total_steps=10"),
    ],
)
def test_one_cycle_names_what_does_not_fit(options, error, text):
    with pytest.raises(error, match=text):
        gradtx.one_cycle_schedule(0.5, 10, **options)


def test_schedulers_by_name_take_the_vocabulary_too():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = gradtx.load_lr_scheduler("warmup_cosine")(optimizer, total_steps=10, lr=0.2, warmup_steps=5)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.04])
    decaying = gradtx.load_lr_scheduler("cosine")(optimizer, total_steps=10, min_lr=0.1)
    assert decaying.get_last_lr() == pytest.approx([0.5])


# Where warm-ups start.


def of_nanogpt(step, peak, least, warmup, decay):
    """The rate of nanoGPT's train.py: a warm-up from 1/(n + 1), a cosine, a constant."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step > decay:
        return least
    share = (step - warmup) / (decay - warmup)
    return least + 0.5 * (1 + math.cos(math.pi * share)) * (peak - least)


def test_init_lr_gives_the_warm_up_of_nanogpt():
    s = gradtx.warmup_cosine_schedule(40, max_lr=0.6, min_lr=0.06, init_lr=0.6 / 11, warmup_steps=10)
    for step in range(45):
        assert s(step) == pytest.approx(of_nanogpt(step, 0.6, 0.06, 10, 40), rel=1e-12)


@pytest.mark.parametrize("init_lr", [0.0, 0.125, 0.5])
def test_the_warm_up_of_wsd_starts_at_init_lr(init_lr):
    s = gradtx.wsd_schedule(0.5, 3, 2, 2, init_lr=init_lr)
    assert [s(step) for step in range(5)] == pytest.approx(
        [init_lr + (0.5 - init_lr) * min(step / 3, 1) for step in range(5)], rel=1e-12
    )
    without = gradtx.wsd_schedule(0.5, 0, 2, 2, init_lr=init_lr)
    assert without(0) == 0.5


@pytest.mark.parametrize("schedule", MADE, ids=repr)
def test_a_value_does_not_depend_on_the_step_at_which_training_resumed(schedule):
    """Values of several steps are computed at once, and those of a step are the same bits in any order."""
    forwards = [schedule(step) for step in range(70)]
    other = pickle.loads(pickle.dumps(schedule))
    assert [other(step) for step in reversed(range(70))] == forwards[::-1]


@pytest.mark.parametrize("schedule", MADE, ids=repr)
def test_values_of_several_steps_at_once_are_those_of_single_steps(schedule):
    one_at_a_time = [float(schedule(torch.tensor(float(step), dtype=torch.float64))) for step in range(70)]
    # Powers differ in the last bit, since torch computes those of vectors by other code.
    assert [schedule(step) for step in range(70)] == pytest.approx(one_at_a_time, rel=1e-15, abs=0)


@pytest.mark.parametrize(
    "make",
    [gradtx.piecewise_constant_schedule, lambda lr, at: gradtx.piecewise_interpolate_schedule("linear", lr, at)],
    ids=["constant", "interpolate"],
)
def test_a_schedule_keeps_the_boundaries_with_which_it_was_made(make):
    boundaries = {30: 0.5, 500: 0.2}
    schedule, expected = make(1.0, boundaries), [make(1.0, dict(boundaries))(t) for t in range(600)]
    assert schedule(40) == expected[40]  # whose neighbours it keeps
    boundaries[30] = 0.1
    assert [schedule(t) for t in range(600)] == expected


def test_a_schedule_of_a_tensor_follows_the_tensor():
    rate = torch.tensor(0.5, dtype=torch.float64)
    schedule = gradtx.exponential_schedule(rate, 0.5)
    before = float(schedule(1))
    rate.fill_(1.0)
    assert (before, float(schedule(1))) == (0.25, 0.5)


def test_a_schedule_of_a_users_function_follows_the_function():
    numbers = {"rate": 0.5}
    inner = gradtx.Schedule(lambda step: numbers["rate"])
    weight = torch.nn.Parameter(torch.zeros(2))
    joined = gradtx.join_schedules([inner, gradtx.constant_schedule(0.1)], [50])
    optimizer = gradtx.as_optimizer(gradtx.sgd(joined), [weight])
    for rate in (0.5, 1.0, 2.0):
        numbers["rate"] = rate
        weight.grad = -torch.ones(2)
        before = weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(weight.detach() - before, torch.full((2,), rate))


# One count for schedules: the updates in which any leaf had a gradient.

HALVING = gradtx.Schedule(lambda step: 0.5**step)
ALTERNATING = [("a",), ("b",), ("a",), ("a", "b"), (), ("b",)]
DO_NOTHING = {
    "alone": lambda tx: tx,
    "skip_nonfinite": gradtx.skip_nonfinite,
    "accumulate": lambda tx: gradtx.accumulate(tx, 1),
    "apply_if": lambda tx: gradtx.apply_if(tx, lambda step: step >= 0),
    "masked": lambda tx: gradtx.masked(tx, "*"),
    "partition": lambda tx: gradtx.partition({"all": tx}, {"all": "*"}),
    "chain": lambda tx: gradtx.chain(gradtx.scale(1.0), tx),
}


@pytest.mark.parametrize("line_by_line", [False, True])
@pytest.mark.parametrize("counts", ["calls", "leaves"])
@pytest.mark.parametrize("wrapper", DO_NOTHING)
def test_a_schedule_follows_the_updates_in_which_any_leaf_had_a_gradient(wrapper, counts, line_by_line):
    tx = DO_NOTHING[wrapper](gradtx.sgd(lr=HALVING))
    params = {name: torch.zeros(1) for name in "ab"}
    state, rates = tx.init(params, counts=counts), []
    with gradtx.eagerly() if line_by_line else contextlib.nullcontext():
        for present in ALTERNATING:
            grads = {name: torch.ones(1) if name in present else None for name in params}
            updates, state = tx.update(grads, state, params)
            rates.append([-updates[name].item() for name in present])
    assert rates == [[1.0], [0.5], [0.25], [0.125, 0.125], [], [0.0625]]
    assert state["step"] == 5


@pytest.mark.parametrize("line_by_line", [False, True])
def test_a_gradient_of_a_frozen_leaf_alone_counts_no_update(line_by_line):
    tx = gradtx.chain(gradtx.sgd(lr=HALVING, momentum=0.5), gradtx.freeze("b"))
    params = {name: torch.zeros(1) for name in "ab"}
    state = tx.init(params)
    with gradtx.eagerly() if line_by_line else contextlib.nullcontext():
        for names, rate in ((("a", "b"), 1.0), (("b",), None), (("a",), 0.75)):
            grads = {name: torch.ones(1) if name in names else None for name in params}
            before = state
            updates, state = tx.update(grads, state, params)
            assert "b" not in names or updates["b"].tolist() == [0.0]
            if rate is None:
                assert_same(state, before)
            else:
                assert updates["a"].item() == -rate
    assert state["step"] == 2
