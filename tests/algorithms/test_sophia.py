import pytest

import gradtx
from tests.algorithms.hessians import RISING, diagonal, with_hessian
from tests.references import RATE, WeightsLoop, follows, named


def sophia_direction(s, t, g, p, betas=(0.96, 0.99), gamma=0.01, eps=1e-12, update_period=10):
    b1, b2 = betas
    s.m = b1 * s.m + (1 - b1) * g
    s.h = s.h + 0 * p
    if (t - 1) % update_period == 0:
        s.h = b2 * s.h + (1 - b2) * diagonal(p, t)
    ratio = s.m / (gamma * s.h).clamp(min=eps)
    s.seen.update((ratio.abs() > 1).flatten().tolist())
    s.seen.update({"negative"} if (s.h < 0).any() else set())
    return ratio.clamp(-1, 1)


def sophia(s, t, g, p, lr=6e-4, betas=(0.96, 0.99), gamma=0.01, eps=1e-12, weight_decay=0.1, update_period=10):
    return p * (1 - lr * weight_decay) - lr * sophia_direction(s, t, g, p, betas, gamma, eps, update_period)


OPTIONS = [
    (gradtx.sophia, sophia, {}),
    (gradtx.sophia, sophia, {"lr": 0.02, "betas": (0.8, 0.5), "gamma": 0.5, "eps": 0.02, "update_period": 3}),
    (gradtx.sophia, sophia, {"lr": RATE, "gamma": RISING, "weight_decay": RISING, "update_period": 1}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    # an update of 1e-4 as the difference of two weights: 1e-12 of rounding
    follows(with_hessian(alias, options), WeightsLoop(rule, **options))
