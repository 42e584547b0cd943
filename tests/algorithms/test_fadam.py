import math

import pytest

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows_along


def root_mean_square(x):
    return math.sqrt(x.square().sum().item() / x.numel())


def fadam(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, clip=1.0, _p=0.5, eps2=0.01):
    b1, b2 = betas
    b2t = (b2**t - b2) / (b2**t - 1)
    s.f = b2t * s.f + (1 - b2t) * g**2
    size = root_mean_square(g)
    B = s.f**_p + (min(eps, eps2 * size) if size else eps) ** (2 * _p)
    u, w = g / B, p / B
    u, w = u / max(1.0, root_mean_square(u) / clip), w / max(1.0, root_mean_square(w) / clip)
    s.m = b1 * s.m + (1 - b1) * u
    return p - lr * (s.m + weight_decay * w)


def fadam_loop(p=0.5, **options):
    return WeightsLoop(fadam, _p=p, **options)


FADAM = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.01, "weight_decay": 0.3, "clip": 0.6, "p": 0.4, "eps2": 0.5},
    {"lr": 0.02, "eps": 0.1, "eps2": 10.0},
    {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY},
]


@pytest.mark.parametrize("options", FADAM, ids=str)
def test_the_weights_of_fadam_follow_the_loop(options):
    follows_along(gradtx.fadam(**options), fadam_loop(**options))
