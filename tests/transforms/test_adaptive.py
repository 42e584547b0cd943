import pytest
import torch

import gradtx
from tests.references import (
    TOLERANCE,
    Loop,
    Published,
    adam_moments,
    difference,
    difference_of_weights,
    first_update,
)

RISING = gradtx.linear_schedule(0.99, start_factor=0.5, total_iters=20)


def adam(s, t, g, p, betas=(0.9, 0.999), eps=1e-8, amsgrad=False, nesterov=False):
    b1, b2 = betas
    m, v = adam_moments(s, t, g, betas)
    if amsgrad:
        s.top = torch.maximum(s.top + 0 * s.v, s.v)
        s.seen.update((s.top > s.v).flatten().tolist())
        v = s.top / (1 - b2**t)
    if nesterov:
        m = (b1 * s.m + (1 - b1) * g) / (1 - b1**t)
    return m / (v.sqrt() + eps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 1e-3},
        {"betas": (0.0, 0.9), "eps": 0.0},
        {"betas": (0.8, 0.7), "amsgrad": True},
        {"betas": (0.8, 0.95), "eps": 0.1, "nesterov": True},
        {"betas": (0.8, 0.7), "amsgrad": True, "nesterov": True},
        {"betas": (RISING, RISING), "eps": RISING},
    ],
    ids=str,
)
def test_scale_by_adam_follows_the_loop(options):
    reference = Loop(adam, **options)
    assert difference(gradtx.scale_by_adam(**options), reference, rate=-0.02) < TOLERANCE
    assert reference.seen == ({True, False} if options.get("amsgrad") else set())


def rms(s, t, g, p, alpha=0.99, eps=1e-8, eps_in_root=False, centered=False, initial_accumulator_value=0.0):
    s.q = alpha * (initial_accumulator_value if t == 1 else s.q) + (1 - alpha) * g**2
    q = s.q
    if centered:
        s.a = alpha * s.a + (1 - alpha) * g
        q = s.q - s.a**2
    return g / (q + eps).sqrt() if eps_in_root else g / (q.sqrt() + eps)


RMS = [
    {},
    {"alpha": 0.8, "eps": 0.05},
    {"alpha": 0.8, "eps": 0.05, "eps_in_root": True},
    {"alpha": 0.8, "centered": True, "eps": 1e-3},
    {"alpha": 0.8, "centered": True, "eps_in_root": True, "eps": 1e-3, "initial_accumulator_value": 0.1},
    {"alpha": 0.9, "initial_accumulator_value": 1.0},
    {"alpha": RISING, "eps": RISING},
]


@pytest.mark.parametrize("options", RMS, ids=str)
def test_scale_by_rms_follows_the_loop(options):
    assert difference(gradtx.scale_by_rms(**options), Loop(rms, **options), rate=-0.02) < TOLERANCE


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.8, "eps": 1e-3}, {"alpha": 0.9, "centered": True}], ids=str)
def test_with_a_trace_and_a_learning_rate_it_is_torch_rmsprop(options, momentum):
    tx = gradtx.chain(gradtx.scale_by_rms(**options), gradtx.trace(momentum), gradtx.scale_by_learning_rate(0.01))
    # rounding, more of it in the root of q - a^2 where that nearly cancels
    assert difference_of_weights(tx, Published(torch.optim.RMSprop, lr=0.01, momentum=momentum, **options)) < 1e-12


def test_a_constant_gradient_keeps_the_centered_form_finite():
    # q - a^2 tends to 0, and rounding takes it below
    tx = gradtx.scale_by_rms(alpha=0.5, centered=True)
    assert all(torch.tensor(first_update(tx, [0.1, 0.7, -1.3], steps=n)).isfinite().all() for n in (1, 30, 60))


def adopt(s, t, g, p, betas=(0.9, 0.9999), eps=1e-6, clip_exponent=0.25):
    b1, b2 = betas
    if t == 1:
        s.v = g**2
        return 0 * g
    n = g / s.v.sqrt().clamp(min=eps)
    if clip_exponent is not None:
        limit = (t - 1) ** clip_exponent
        s.seen.update((n.abs() > limit).flatten().tolist())
        n = n.clamp(-limit, limit)
    s.m = b1 * s.m + (1 - b1) * n
    s.v = b2 * s.v + (1 - b2) * g**2
    return s.m


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.9), "eps": 0.05},
        {"betas": (0.0, 0.5), "clip_exponent": 0.1},
        {"betas": (0.8, 0.9), "clip_exponent": None},
        {"betas": (RISING, RISING), "clip_exponent": 0.5},
    ],
    ids=str,
)
def test_scale_by_adopt_follows_the_loop(options):
    reference = Loop(adopt, **options)
    assert difference(gradtx.scale_by_adopt(**options), reference, rate=-0.02) < TOLERANCE
    assert reference.seen == (set() if options.get("clip_exponent", 0.25) is None else {True, False})


@pytest.mark.parametrize(
    ("tx", "updates"),
    [
        # any constant gradient: m and v without bias are g and g^2
        (gradtx.scale_by_adam((0.9, 0.99), eps=0.0), [1.0, 1.0]),
        (gradtx.scale_by_adam((0.5, 0.75), eps=4.0), [0.5, 0.5]),  # 4 / (4 + 4)
        # (0.5 * 2 + 0.5 * 4) / 0.5 / 4, then (0.5 * 3 + 0.5 * 4) / 0.75 / 4
        (gradtx.scale_by_adam((0.5, 0.75), eps=0.0, nesterov=True), [1.5, 3.5 / 3]),
        (gradtx.scale_by_rms(0.75, eps=2.0), [1.0, 4 / (2 + 7**0.5)]),  # q = 4, then 7
        (gradtx.scale_by_rms(0.75, eps=9.0, eps_in_root=True), [4 / 13**0.5, 1.0]),
        (gradtx.scale_by_rms(0.75, eps=0.0, centered=True), [4 / 3**0.5, 4 / (7 - 1.75**2) ** 0.5]),  # a = 1, 1.75
        (gradtx.scale_by_rms(0.75, eps=0.0, initial_accumulator_value=16.0), [1.0, 1.0]),
        (gradtx.scale_by_adopt((0.5, 0.75)), [0.0, 0.5]),  # n = 4 / 4 at t = 2
        (gradtx.scale_by_adopt((0.5, 0.75), eps=8.0), [0.0, 0.25]),  # n = 4 / 8
    ],
    ids=str,
)
def test_two_steps_with_a_gradient_of_four_equal_the_hand_computed_values(tx, updates):
    assert [first_update(tx, [4.0], steps=n)[0] for n in (1, 2)] == pytest.approx(updates, rel=1e-14)


def test_adopt_divides_by_the_square_of_earlier_gradients_only():
    tx = gradtx.scale_by_adopt(betas=(0.0, 0.75), clip_exponent=None)
    state, updates = tx.init({"w": torch.zeros(1)}), []
    for grad in (2.0, 8.0, 1.0):
        update, state = tx.update({"w": torch.tensor([grad])}, state)
        updates.append(update["w"].item())
    # 8 / 2; then v = 0.75 * 4 + 0.25 * 64 = 19
    assert updates == pytest.approx([0.0, 4.0, 1 / 19**0.5])
