import pytest

import gradtx
from tests.references import Loop, first_update, follows

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
