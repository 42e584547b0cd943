import math

import pytest
import torch

import gradtx
from tests.references import (
    TOLERANCE,
    Loop,
    Transformed,
    adam_moments,
    difference,
    first_update,
    friction,
    softplus,
    yogi_moments,
)

RISING = gradtx.linear_schedule(0.99, start_factor=0.5, total_iters=20)


def adam_hat(s, t, g, p, betas=(0.9, 0.999), eps=1e-8, amsgrad=False, debias_first=True, softplus=None, partial=0.5):
    b1, b2 = betas
    adam_moments(s, t, g, betas)
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    s.seen.update((s.top > s.v).flatten().tolist())
    root = (s.top if amsgrad else s.v).sqrt()
    m = s.m / (1 - b1**t) if debias_first else s.m
    divisor = root + eps if softplus is None else smooth(root, softplus)
    return m * math.sqrt(1 - b2**t) / divisor ** (2 * partial)


smooth = softplus  # whose name is that of an option as well


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 0.05},
        {"betas": (0.8, 0.7), "eps": 0.05, "amsgrad": True},
        {"betas": (0.8, 0.95), "eps": 0.05, "debias_first": False},
        {"betas": (0.8, 0.95), "eps": 0.05, "softplus": 50.0},
        {"betas": (0.8, 0.7), "amsgrad": True, "softplus": 300.0, "debias_first": False},  # 300 |g| is often above 20
        {"betas": (RISING, RISING), "eps": RISING},
        {"betas": (RISING, RISING), "softplus": RISING},
        {"betas": (0.8, 0.95), "eps": 0.05, "partial": 0.25},
        {"betas": (0.8, 0.7), "amsgrad": True, "partial": 0.0},
        {"betas": (RISING, RISING), "softplus": RISING, "partial": gradtx.Schedule(lambda step: 0.01 * step)},
    ],
    ids=str,
)
def test_scale_by_adam_hat_follows_the_loop(options):
    reference = Loop(adam_hat, **options)
    assert difference(gradtx.scale_by_adam_hat(**options), reference, rate=-0.02) < TOLERANCE
    assert True in reference.seen or not options.get("amsgrad")


def yogi(s, t, g, p, betas=(0.9, 0.999), eps=1e-3, initial_accumulator_value=1e-6):
    b1, b2 = betas
    m, v = yogi_moments(s, t, g, betas, initial_accumulator_value)
    return m / (1 - b1**t) * math.sqrt(1 - b2**t) / (v.sqrt() + eps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.7), "eps": 0.05},
        {"betas": (0.0, 0.5), "eps": 0.0, "initial_accumulator_value": 0.01},
        {"betas": (RISING, RISING), "eps": RISING, "initial_accumulator_value": 0.0},
    ],
    ids=str,
)
def test_scale_by_yogi_follows_the_loop(options):
    reference = Loop(yogi, **options)
    assert difference(gradtx.scale_by_yogi(**options), reference, rate=-0.02) < TOLERANCE
    assert reference.seen == {True, False}


def diffgrad(s, t, g, p, betas=(0.9, 0.999), eps=1e-8):
    b1, b2 = betas
    adam_moments(s, t, g, betas)
    return friction(s, g) * s.m / (1 - b1**t) * math.sqrt(1 - b2**t) / (s.v.sqrt() + eps)


@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.8, 0.95), "eps": 0.05}, {"betas": (RISING, RISING), "eps": RISING}], ids=str
)
def test_scale_by_diffgrad_follows_the_loop(options):
    assert difference(gradtx.scale_by_diffgrad(**options), Loop(diffgrad, **options), rate=-0.02) < TOLERANCE


@pytest.mark.parametrize(
    ("tx", "updates"),
    [
        (gradtx.scale_by_adam_hat((0.9, 0.99), eps=0.0), [1.0, 1.0]),
        (gradtx.scale_by_adam_hat((0.5, 0.75), eps=2.0), [0.5, 4 * (7 / 16) ** 0.5 / (7**0.5 + 2)]),  # v = 4, then 7
        (gradtx.scale_by_adam_hat((0.5, 0.75), eps=0.0, debias_first=False), [0.5, 0.75]),
        (gradtx.scale_by_adam_hat((0.5, 0.75), softplus=100.0), [1.0, 1.0]),  # 100 * 2 is above 20
        (gradtx.scale_by_adam_hat((0.5, 0.75), softplus=0.5), [1 / math.log1p(math.e), None]),  # b sqrt(v) = 1
        # v = 1, then 1 + 0.25 * 16, then 5 + 4
        (gradtx.scale_by_yogi((0.5, 0.75), eps=1.0, initial_accumulator_value=1.0), [2 / (5**0.5 + 1), 7**0.5 / 4]),
        (gradtx.scale_by_diffgrad((0.9, 0.99), eps=0.0), [1 / (1 + math.exp(-4)), 0.5]),
    ],
    ids=str,
)
def test_two_steps_with_a_gradient_of_four_equal_the_hand_computed_values(tx, updates):
    for n, expected in enumerate(updates, start=1):
        if expected is not None:
            assert first_update(tx, [4.0], steps=n)[0] == pytest.approx(expected, rel=1e-12)


def test_softplus_is_the_identity_above_torchs_threshold():
    # One step: sqrt(v) = |g| / 2, and b sqrt(v) on both sides of 20, where log(1 + exp(x)) - x is 2e-9.
    below, above = (
        first_update(gradtx.scale_by_adam_hat((0.0, 0.75), softplus=b), [2.0])[0] for b in (19.9999, 20.0001)
    )
    assert above == pytest.approx(1.0, rel=1e-15)
    assert 1 - below == pytest.approx(math.log1p(math.exp(-19.9999)) / 19.9999, rel=1e-4)


def test_softplus_of_large_roots_has_finite_gradients():
    def first(scale):
        tx = gradtx.scale_by_adam_hat(softplus=50.0)
        grads = {"w": scale * torch.tensor([0.0, 1e-3, 1e8], dtype=torch.float64)}
        return tx.update(grads, tx.init(grads))[0]["w"].sum()

    assert torch.func.grad(first)(torch.tensor(1.0, dtype=torch.float64)).isfinite()


def test_yogi_leaves_its_square_alone_where_it_equals_the_new_one():
    step = Transformed(gradtx.scale_by_yogi((0.0, 0.5), initial_accumulator_value=4.0))
    grad = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)
    step({"w": grad}, {"w": grad})
    assert step.state["scale_by_yogi"]["exp_avg_sq"]["w"].tolist() == [4.0, 4.0, 4.0]


def test_yogi_keeps_its_square_above_zero():
    step = Transformed(gradtx.scale_by_yogi((0.0, 0.0), initial_accumulator_value=1e-6))
    for t in range(50):
        grad = torch.tensor([1e-3, 0.9e-3, 1e-3 * 0.5**t], dtype=torch.float64)
        assert step({"w": grad}, {"w": grad})["w"].isfinite().all()
    assert (step.state["scale_by_yogi"]["exp_avg_sq"]["w"] >= 0).all()


def test_diffgrad_remembers_a_gradient_of_its_own():
    # A training loop that writes gradients in place must not change what they are compared with.
    tx = gradtx.scale_by_diffgrad()
    grad = torch.tensor([1.0])
    _, state = tx.update({"w": grad}, tx.init({"w": grad}))
    grad.fill_(9.0)
    assert state["scale_by_diffgrad"]["previous_grad"]["w"].item() == 1.0
