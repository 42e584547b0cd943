import pytest

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows_along, named


def sgd_sai(s, t, g, p, lr=1e-2, momentum=0.9, eps=1e-8, weight_decay=1e-2):
    if t == 1:
        s.q = g.norm()
        if g.ndim > 1 and g.shape[0] != 1 and g.std() != 0:
            s.q = s.q / (g.std() + eps)
    s.m = momentum * s.m + (1 - momentum) * g
    return p - lr * (s.q * s.m + weight_decay * p)


OPTIONS = [
    (gradtx.sgd_sai, sgd_sai, {}),
    (gradtx.sgd_sai, sgd_sai, {"lr": 0.05, "momentum": 0.5, "eps": 0.1, "weight_decay": 0.2}),
    (gradtx.sgd_sai, sgd_sai, {"lr": RATE, "momentum": BETA, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))
