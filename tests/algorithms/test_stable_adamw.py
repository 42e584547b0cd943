import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def stable_adamw(s, t, g, p, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-2):
    m, v = ref.adam_moments(s, t, g, betas)
    r = (g**2 / v.clamp(min=eps**2)).mean().sqrt().item()
    s.seen.add(r > 1)
    return p - lr / max(1.0, r) * (m / (v.sqrt() + eps) + weight_decay * p)


BOTH = {True, False}
SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.3}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
OPTIONS = [
    *((gradtx.stable_adamw, stable_adamw, options, set()) for options in ({}, SOME, SCHEDULED)),
    (gradtx.stable_adamw, stable_adamw, {"lr": 0.02, "betas": (0.5, 0.7), "weight_decay": 0.3}, BOTH),
    (gradtx.stable_adamw, stable_adamw, {"lr": 0.02, "betas": (0.5, 0.7), "weight_decay": 0.0, "eps": 0.2}, BOTH),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options", "seen"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options, seen):
    reference = ref.WeightsLoop(rule, **options)
    ref.follows(alias(**options), reference)
    assert reference.seen >= seen


def test_the_decay_of_stable_adamw_is_shortened_too():
    tx = gradtx.stable_adamw(lr=1.0, betas=(0.0, 0.99), weight_decay=0.5)
    step = ref.Transformed(tx)
    for grad in (1.0, 100.0):
        update = step({"w": torch.tensor([grad])}, {"w": torch.tensor([2.0])})["w"]
    v = (0.01 * 0.99 + 100) / (1 - 0.99**2)
    r = 100 / math.sqrt(v)
    assert update.item() == pytest.approx(-(r + 1) / r, rel=1e-5)
