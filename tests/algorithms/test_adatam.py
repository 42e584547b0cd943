import pytest

import gradtx
from tests.algorithms.loops import agreement
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows_along, named


def adatam(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), decay_rate=0.9, eps=1e-8, weight_decay=0.0):
    b1, b2 = betas
    d = ((1 + agreement(s, s.m + 0 * g, g, decay_rate)) / 2 + eps) * g
    s.m = b1 * s.m + d
    s.v = b2 * s.v + (1 - b2) * g**2
    return p - lr * (s.m / (s.v.sqrt() + eps) + weight_decay * p)


OPTIONS = [
    (gradtx.adatam, adatam, {}),
    (gradtx.adatam, adatam, {"lr": 0.02, "betas": (0.7, 0.9), "decay_rate": 0.5, "eps": 0.1, "weight_decay": 0.2}),
    (gradtx.adatam, adatam, {"lr": RATE, "betas": (BETA, 0.9), "decay_rate": BETA, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))
