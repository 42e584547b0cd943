import math

import pytest
import torch

import gradtx
from tests.references import LONG, Loop, Transformed, arguments, first_update, follows


def test_a_constant_gradient_keeps_the_centered_form_finite():
    # q - a^2 tends to 0, and rounding takes it below
    tx = gradtx.scale_by_rms(alpha=0.5, centered=True)
    assert all(torch.tensor(first_update(tx, [0.1, 0.7, -1.3], steps=n)).isfinite().all() for n in (1, 30, 60))


def held(s, t, g, p, t0):
    s.b = 0.9 * s.b + g
    return s.b if t >= t0 else 0 * g


@pytest.mark.parametrize("t0", [0, 1, 2, 7, 100])
def test_hold_until_passes_nothing_before_its_step_while_momentum_collects(t0):
    tx = gradtx.chain(gradtx.trace(0.9), gradtx.hold_until(t0))
    follows(tx, Loop(held, t0=t0), rate=-0.1)


def test_held_updates_are_zero_even_where_they_were_not_finite():
    assert first_update(gradtx.hold_until(2), [math.inf, -1.0]) == [0.0, 0.0]
    assert first_update(gradtx.hold_until(2), [math.inf, -1.0], steps=2) == [math.inf, -1.0]


def test_the_average_starts_from_the_first_gradient_that_is_not_zero():
    step, params = Transformed(gradtx.scale_by_layer_rms(beta=0.5, eps=1e-8)), {"w": torch.zeros(2)}
    seen = []
    for grad in ([0.0, 0.0], [3.0, 4.0], [0.0, 1.0]):
        step({"w": torch.tensor(grad)}, params)
        seen.append(step.state["scale_by_layer_rms"]["exp_avg_sq"]["w"].item())
    assert seen == [0.0, 25.0, 13.0]


def test_the_average_of_half_precision_gradients_is_exact_and_cannot_overflow():
    params = {"w": torch.full((2, 2), 300.0, dtype=torch.float16)}
    tx = gradtx.scale_by_layer_rms()
    updates, state = tx.update(params, tx.init(params))
    assert state["scale_by_layer_rms"]["exp_avg_sq"]["w"].item() == 4 * 300.0**2
    assert updates["w"].tolist() == [[0.5, 0.5], [0.5, 0.5]]


RISING = gradtx.linear_schedule(0.4, start_factor=0.25, total_iters=10)


@pytest.mark.parametrize("factor", [-0.3, 2.5, RISING], ids=str)
def test_scale_multiplies_every_update(factor):
    reference = Loop(lambda s, t, g, p, factor: factor * g, factor=factor)
    follows(gradtx.scale(factor), reference, rate=-0.1)


@pytest.mark.parametrize("lr", [0.0, 0.3, RISING], ids=str)
def test_scale_by_learning_rate_multiplies_by_minus_the_rate_of_the_step(lr):
    reference = Loop(lambda s, t, g, p, lr: -lr * g, lr=lr)
    follows(gradtx.scale_by_learning_rate(lr), reference)


def inverse_time(s, t, g, p, lr_decay):
    return g / (1 + (t - 1) * lr_decay)


@pytest.mark.parametrize("lr_decay", [0.0, 0.3, RISING], ids=str)
def test_scale_by_inverse_time_divides_by_the_steps_that_were_done(lr_decay):
    reference = Loop(inverse_time, lr_decay=lr_decay)
    follows(gradtx.scale_by_inverse_time(lr_decay), reference, rate=-0.1)
    assert [first_update(gradtx.scale_by_inverse_time(0.5), [6.0], steps=n) for n in (1, 2, 3)] == [[6.0], [4.0], [3.0]]


def test_the_first_update_uses_the_schedule_at_step_zero():
    tx = gradtx.scale_by_learning_rate(gradtx.Schedule(lambda step: 1.0 + step))
    assert [first_update(tx, [1.0], steps=n) for n in (1, 2, 3)] == [[-1.0], [-2.0], [-3.0]]


def trust_ratio(s, t, g, p, clip=False, weight_decay=0.0, always_adapt=True):
    ratio = (p.norm() / g.norm()).item()
    s.seen.add(ratio > 1)
    if clip:
        ratio = min(ratio, 1.0)
    return (ratio if always_adapt or weight_decay != 0 else 1.0) * g


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": True},
        {"always_adapt": False},
        {"always_adapt": False, "weight_decay": 0.1, "clip": True},
        {"always_adapt": False, "weight_decay": torch.tensor(0.0)},
        {"always_adapt": False, "weight_decay": gradtx.Schedule(lambda step: 0.1 * (step % 2))},
    ],
    ids=str,
)
def test_scale_by_trust_ratio_follows_the_loop(options):
    loop = Loop(trust_ratio, **options)
    follows(gradtx.scale_by_trust_ratio(**options), loop, rate=-0.1, steps=LONG)
    assert loop.seen == {True, False} or not options.get("clip")
    assert arguments(gradtx.scale_by_trust_ratio) == arguments(trust_ratio)


@pytest.mark.parametrize(
    "tx", [gradtx.scale_by_trust_ratio(), gradtx.scale_by_lars(eps=0.0), gradtx.scale_by_lars(1.0)], ids=str
)
def test_the_ratio_is_one_where_a_norm_is_zero(tx):
    assert first_update(tx, [3.0, 4.0], [0.0, 0.0]) == [3.0, 4.0]
    assert first_update(tx, [0.0, 0.0], [3.0, 4.0]) == [0.0, 0.0]


def test_an_empty_leaf_passes():
    empty = {"w": torch.zeros(0, 3)}
    for tx in (gradtx.scale_by_trust_ratio(), gradtx.scale_by_lars()):
        assert tx.update(empty, tx.init(empty), empty)[0]["w"].shape == (0, 3)


def power_step(s, t, g, p, power, momentum):
    s.b = momentum * s.b + g
    entries = [math.copysign(abs(x) ** power, x) for x in s.b.flatten().tolist()]
    return torch.tensor(entries, dtype=g.dtype).reshape(g.shape)


@pytest.mark.parametrize(("power", "momentum"), [(1.2, 0.0), (0.3, 0.9), (1.0, 0.9), (2.0, 0.0)])
def test_powers_of_entries_follow_the_loop(power, momentum):
    tx = gradtx.chain(gradtx.trace(momentum), gradtx.power_entries(power))
    follows(tx, Loop(power_step, power=power, momentum=momentum), rate=-0.02)


def test_a_power_has_a_finite_derivative_at_0():
    def update(entry):
        tx = gradtx.power_entries(0.5)
        return tx.update({"w": entry}, tx.init({}))[0]["w"].sum()

    assert torch.func.grad(update)(torch.tensor([0.0, 4.0])).tolist() == [0.0, 0.25]


@pytest.mark.parametrize("power", [0.0, -1.0])
def test_a_power_of_0_or_below_is_named(power):
    with pytest.raises(ValueError, match=rf"power_entries: power must be in \(0, inf\), got {power}"):
        gradtx.power_entries(power)
