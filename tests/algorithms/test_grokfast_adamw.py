import pytest

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, adam_moments, follows, named


def amplified(s, t, g, alpha, lamb):
    s.e = g if t == 1 else alpha * s.e + (1 - alpha) * g
    return g + lamb * s.e


def grokfast_adamw(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, alpha=0.98, lamb=2.0):
    m, v = adam_moments(s, t, amplified(s, t, g, alpha, lamb), betas)
    return p - lr * (m / (v.sqrt() + eps) + weight_decay * p)


SOME = {"lr": 0.02, "eps": 0.05, "weight_decay": 0.3}
OPTIONS = [
    (gradtx.grokfast_adamw, grokfast_adamw, {}),
    (gradtx.grokfast_adamw, grokfast_adamw, {**SOME, "betas": (0.8, 0.95), "alpha": 0.7, "lamb": 5.0}),
    (gradtx.grokfast_adamw, grokfast_adamw, {**SOME, "alpha": 0.0, "lamb": 0.0}),
    (gradtx.grokfast_adamw, grokfast_adamw, {"lr": RATE, "alpha": BETA, "lamb": BETA, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))
