import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def ftrl(s, t, g, p, lr=1e-3, lr_power=-0.5, beta=0.0, l1=0.0, l2=0.0, initial_accumulator_value=0.0):
    q = -lr_power
    n = torch.full_like(g, initial_accumulator_value) if t == 1 else s.n
    s.n = n + g**2
    s.z = s.z + g - (s.n**q - n**q) / lr * p
    s.seen.update((s.z.abs() <= l1).flatten().tolist())
    moved = (s.z.sign() * l1 - s.z) / ((beta + s.n**q) / lr + l2)
    return torch.where(s.z.abs() <= l1, 0.0, moved)


BOTH = {True, False}
OPTIONS = [    (gradtx.ftrl, ftrl, {"lr": 0.1}, {False}),
    (gradtx.ftrl, ftrl, {"lr": 0.1, "beta": 0.5, "l1": 0.05, "l2": 0.3}, BOTH),
    (gradtx.ftrl, ftrl, {"lr": 0.1, "lr_power": -0.8, "l1": 0.02, "initial_accumulator_value": 0.1}, BOTH),
    (gradtx.ftrl, ftrl, {"lr": 0.1, "lr_power": 0.0}, {False}),
    (gradtx.ftrl, ftrl, {"lr": RATE, "beta": BETA, "l1": BETA, "l2": DECAY}, BOTH),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options", "seen"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options, seen):
    reference = ref.WeightsLoop(rule, **options)
    ref.follows(alias(**options), reference)
    assert reference.seen >= seen


def test_ftrl_makes_a_weight_without_gradients_zero():
    assert ref.first_update(gradtx.ftrl(), [0.0, 0.0], [3.0, -1.0]) == [-3.0, 1.0]
