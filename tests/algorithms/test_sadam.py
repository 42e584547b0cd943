import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.algorithms.loops import decayed, stepped
from tests.references import BETA, DECAY, RATE


def sadam(
    s, t, g, p, lr=0.1, betas=(0.9, 0.999), beta_softplus=50.0, weight_decay=0.0, decoupled_weight_decay=False,
    amsgrad=False,
):  # fmt: skip
    b1, b2 = betas
    ref.adam_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas)
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    divisor = ref.softplus((s.top if amsgrad else s.v).sqrt(), beta_softplus)
    direction = math.sqrt(1 - b2**t) / (1 - b1**t) * s.m / divisor
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


COUPLED = {"weight_decay": 0.3}
DECOUPLED = {"weight_decay": 0.3, "decoupled_weight_decay": True}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
OPTIONS = [    (gradtx.sadam, sadam, {}),
    (gradtx.sadam, sadam, {"lr": 0.02, "betas": (0.8, 0.95), "beta_softplus": 200.0, **COUPLED}),
    (gradtx.sadam, sadam, {"lr": 0.02, "betas": (0.8, 0.7), "beta_softplus": 5.0, **DECOUPLED, "amsgrad": True}),
    (gradtx.sadam, sadam, {**SCHEDULED, "beta_softplus": BETA}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))
