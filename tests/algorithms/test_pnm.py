import math

import pytest
import torch

import gradtx
from tests.references import BETA, RATE, WeightsLoop, follows, named

TOLERANCE = 1e-11  # the same roundings in another order, fed back through the weights for 32 steps


def mixed(s, t, g, beta, weight):
    """Two averages by the parity of the step."""
    name = "odd" if t % 2 else "even"
    setattr(s, name, beta**2 * getattr(s, name) + (1 - beta**2) * g)
    pos, neg = (s.odd, s.even) if t % 2 else (s.even, s.odd)
    return ((1 + weight) * pos - weight * neg) / math.sqrt((1 + weight) ** 2 + weight**2)


def pnm(s, t, g, p, lr, betas=(0.9, 1.0), weight_decay=0.0, decoupled_weight_decay=True):
    if decoupled_weight_decay:
        return (1 - lr * weight_decay) * p - lr * mixed(s, t, g, *betas)
    return p - lr * mixed(s, t, g + weight_decay * p, *betas)


def adapnm(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999, 1.0), eps=1e-8, weight_decay=0.0, amsgrad=True,
    decoupled_weight_decay=True,
):  # fmt: skip
    b1, b2, b3 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    n = mixed(s, t, g, b1, b3)
    s.v = b2 * s.v + (1 - b2) * g**2
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    s.seen.update((s.top > s.v).flatten().tolist())
    v = s.top if amsgrad else s.v
    if decoupled_weight_decay:
        p = (1 - lr * weight_decay) * p
    return p - lr / (1 - b1**t) * n / (v.sqrt() / math.sqrt(1 - b2**t) + eps)


OPTIONS = [
    (gradtx.pnm, pnm, {"lr": 0.1}),
    (gradtx.pnm, pnm, {"lr": 0.1, "betas": (0.7, 0.4), "weight_decay": 0.3}),
    (gradtx.pnm, pnm, {"lr": 0.1, "betas": (0.7, 0.0), "weight_decay": 0.3, "decoupled_weight_decay": False}),
    (gradtx.pnm, pnm, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": BETA}),
    (gradtx.adapnm, adapnm, {}),
    (gradtx.adapnm, adapnm, {"lr": 0.02, "betas": (0.7, 0.9, 0.4), "eps": 1e-3, "weight_decay": 0.3}),
    (gradtx.adapnm, adapnm, {"lr": 0.02, "betas": (0.7, 0.9, 0.4), "eps": 0.1, "amsgrad": False}),
    (gradtx.adapnm, adapnm, {"lr": 0.02, "weight_decay": 0.3, "decoupled_weight_decay": False}),
    (gradtx.adapnm, adapnm, {"lr": RATE, "betas": (BETA, 0.9, BETA), "weight_decay": BETA}),
]


@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=named)
def test_follows_the_loop(make, rule, options):
    reference = WeightsLoop(rule, **options)
    follows(make(**options), reference, tolerance=TOLERANCE)
    assert reference.seen == (set() if rule is pnm else {True, False})
