import pytest

import gradtx
from tests.references import DECAY, RATE, WeightsLoop, follows_along, named


def kate(s, t, g, p, lr=1e-3, delta=0.0, eps=1e-8, weight_decay=0.0):
    s.b2 = s.b2 + g**2 + eps
    s.m2 = s.m2 + delta * g**2 + g**2 / s.b2
    return p - lr * (s.m2.sqrt() * g / s.b2 + weight_decay * p)


OPTIONS = [
    (gradtx.kate, kate, {}),
    (gradtx.kate, kate, {"lr": 0.02, "delta": 0.3, "eps": 0.01, "weight_decay": 0.2}),
    (gradtx.kate, kate, {"lr": RATE, "delta": DECAY, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))
