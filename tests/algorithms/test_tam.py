import pytest

import gradtx
from tests.algorithms.loops import agreement
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows_along, named


def tam(s, t, g, p, lr=1e-3, momentum=0.9, decay_rate=0.9, eps=1e-8, weight_decay=0.0):
    d = ((1 + agreement(s, s.m + 0 * g, g, decay_rate)) / 2 + eps) * g
    s.m = momentum * s.m + d
    return p - lr * (s.m + weight_decay * p)


OPTIONS = [
    (gradtx.tam, tam, {}),
    (gradtx.tam, tam, {"lr": 0.05, "momentum": 0.7, "decay_rate": 0.5, "eps": 0.1, "weight_decay": 0.2}),
    (gradtx.tam, tam, {"lr": RATE, "momentum": BETA, "decay_rate": BETA, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))
