import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def laprop(
    s, t, g, p, lr=4e-4, betas=(0.9, 0.999), eps=1e-15, weight_decay=0.0, amsgrad=False, centered=False,
    fixed_decay=False,
):  # fmt: skip
    b1, b2 = betas
    v = s.v = b2 * s.v + (1 - b2) * g**2
    if centered:
        s.a = b2 * s.a + (1 - b2) * g
        if t > 10:
            v = (v - s.a**2).clamp(min=0)
    if amsgrad and (not centered or t > 10):
        s.top = torch.maximum(s.top + 0 * v, v)
        s.seen.update((s.top > v).flatten().tolist())
        v = s.top
    s.m = b1 * s.m + (1 - b1) * g / ((v / (1 - b2**t)).sqrt() + eps)
    return p - lr * s.m / (1 - b1**t) - (1 if fixed_decay else lr) * weight_decay * p


SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.3}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
BOTH = {True, False}
OPTIONS = [
    *((gradtx.laprop, laprop, options, set()) for options in ({}, SOME, SCHEDULED)),
    (gradtx.laprop, laprop, {**SOME, "weight_decay": 0.01, "fixed_decay": True}, set()),
    (gradtx.laprop, laprop, {**SOME, "betas": (0.8, 0.7), "amsgrad": True}, BOTH),
    (gradtx.laprop, laprop, {**SOME, "betas": (0.8, 0.99), "centered": True}, set()),
    (gradtx.laprop, laprop, {**SOME, "betas": (0.8, 0.9), "centered": True, "amsgrad": True}, BOTH),
    (gradtx.laprop, laprop, {**SCHEDULED, "centered": True, "amsgrad": True, "fixed_decay": True}, BOTH),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options", "seen"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options, seen):
    reference = ref.WeightsLoop(rule, **options)
    ref.follows(alias(**options), reference)
    assert reference.seen >= seen
