import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def accsgd(s, t, g, p, lr, kappa=1000.0, xi=10.0, small_const=0.7, weight_decay=0.0):
    c = small_const
    alpha = 1 - c**2 * xi / kappa
    zeta = c / (c + 1 - alpha)
    g = g + weight_decay * p
    s.avg = alpha * (p if t == 1 else s.avg) + (1 - alpha) * (p - lr * kappa / c * g)
    return zeta * (p - lr * g) + (1 - zeta) * s.avg


OPTIONS = [
    (gradtx.accsgd, accsgd, {"lr": 0.01}),
    (gradtx.accsgd, accsgd, {"lr": 0.02, "kappa": 50.0, "xi": 4.0, "small_const": 0.5, "weight_decay": 0.2}),
    (gradtx.accsgd, accsgd, {"lr": RATE, "kappa": 4.0, "xi": BETA, "small_const": BETA, "weight_decay": DECAY}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))
