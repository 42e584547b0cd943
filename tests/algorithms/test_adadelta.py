import pytest

import gradtx
from tests.algorithms.loops import with_decay
from tests.algorithms.shared_with_torch import SHARED
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows, named


def adadelta(s, t, g, p, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False):
    def direction(s, t, g, p):
        s.q = rho * s.q + (1 - rho) * g**2
        step = (s.a + 0 * g + eps).sqrt() / (s.q + eps).sqrt() * g
        s.a = rho * s.a + (1 - rho) * step**2
        return step

    return with_decay(direction)(s, t, g, p, lr, weight_decay, decoupled_weight_decay)


DECOUPLED = {"weight_decay": 0.2, "decoupled_weight_decay": True}
OPTIONS = [
    *((gradtx.adadelta, adadelta, options) for options in SHARED["Adadelta"]),
    (gradtx.adadelta, adadelta, {"lr": 0.7, **DECOUPLED}),
    (gradtx.adadelta, adadelta, {"lr": RATE, "rho": BETA, "weight_decay": DECAY, "eps": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))
