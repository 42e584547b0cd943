import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE, first_update


def pid(s, t, g, p, lr, momentum=0.0, dampening=0.0, integral=5.0, derivative=10.0, weight_decay=0.0):
    g = g + weight_decay * p
    if momentum == 0:
        return p - lr * g
    s.i = g if t == 1 else momentum * s.i + (1 - dampening) * g
    s.d = 0 * g if t == 1 else momentum * s.d + (1 - momentum) * (g - s.last)
    s.last = g
    return p - lr * (g + integral * s.i + derivative * s.d)


OPTIONS = [    (gradtx.pid, pid, {"lr": 0.1, "weight_decay": 0.2}),
    (gradtx.pid, pid, {"lr": 0.002, "momentum": 0.9}),
    (gradtx.pid, pid, {"lr": 0.02, "momentum": 0.6, "dampening": 0.3, "integral": 0.5, "derivative": 2.0,
                       "weight_decay": 0.2}),
    (gradtx.pid, pid, {"lr": RATE, "momentum": BETA, "dampening": DECAY, "integral": BETA, "weight_decay": DECAY}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


# PID.


def test_a_literal_momentum_of_zero_is_plain_descent_and_a_tensor_follows_the_formula():
    off, on = gradtx.scale_by_pid(0.0), gradtx.scale_by_pid(torch.tensor(0.0))
    assert off.init({"w": torch.zeros(1)}).keys() <= {"step"}
    assert first_update(off, [2.0]) == [2.0]
    assert first_update(on, [2.0]) == [12.0]  # 2 + 5 * 2
