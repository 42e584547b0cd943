import math

import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def grams(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0):
    b1, b2 = betas
    ref.adam_moments(s, t, g, betas)
    s.seen.update((g * s.m < 0).flatten().tolist())
    size = math.sqrt(1 - b2**t) / (1 - b1**t) * s.m.abs() / (s.v.sqrt() + eps)
    return p - lr * g.sign() * size - lr * weight_decay * p


BOTH = {True, False}
SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.3}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
OPTIONS = [
    *((gradtx.grams, grams, options, set()) for options in ({}, SOME, SCHEDULED)),
    (gradtx.grams, grams, {"lr": 0.02}, BOTH),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options", "seen"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options, seen):
    reference = ref.WeightsLoop(rule, **options)
    ref.follows(alias(**options), reference)
    assert reference.seen >= seen
