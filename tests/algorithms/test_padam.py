import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.algorithms.loops import decayed, stepped
from tests.references import BETA, DECAY, RATE


def padam(
    s, t, g, p, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, partial=0.25, amsgrad=True,
    decoupled_weight_decay=False,
):  # fmt: skip
    b1, b2 = betas
    ref.adam_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas)
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    divisor = ((s.top if amsgrad else s.v).sqrt() + eps) ** (2 * partial)
    direction = math.sqrt(1 - b2**t) / (1 - b1**t) * s.m / divisor
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


COUPLED = {"weight_decay": 0.3}
DECOUPLED = {"weight_decay": 0.3, "decoupled_weight_decay": True}
SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
OPTIONS = [    (gradtx.padam, padam, {}),
    (gradtx.padam, padam, {**SOME, **COUPLED, "betas": (0.8, 0.7), "partial": 0.125}),
    (gradtx.padam, padam, {**SOME, **DECOUPLED, "amsgrad": False, "partial": 0.4}),
    (gradtx.padam, padam, {**SOME, "partial": 0.0}),
    (gradtx.padam, padam, {**SOME, "partial": 0.5, "amsgrad": False}),
    (gradtx.padam, padam, {**SCHEDULED, "partial": gradtx.Schedule(lambda step: 0.01 * step)}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))
