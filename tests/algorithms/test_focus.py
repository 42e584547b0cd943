import pytest

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows_along, named


def focus(s, t, g, p, lr=1e-2, betas=(0.9, 0.999), gamma=0.1, weight_decay=0.0):
    b1, b2 = betas
    s.m = b1 * s.m + (1 - b1) * g
    s.place = b2 * s.place + (1 - b2) * p
    usual = s.place / (1 - b2**t)
    pull = (p - usual).sign() if t > 1 else 0.0
    return p - lr * (s.m.sign() + gamma * pull + weight_decay * usual)


OPTIONS = [
    (gradtx.focus, focus, {}),
    (gradtx.focus, focus, {"lr": 0.02, "betas": (0.7, 0.9), "gamma": 0.4, "weight_decay": 0.3}),
    (gradtx.focus, focus, {"lr": RATE, "betas": (BETA, 0.9), "gamma": DECAY, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))
