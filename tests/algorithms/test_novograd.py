import math

import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, LONG, RATE


def novograd(s, t, g, p, lr=1e-3, betas=(0.95, 0.98), eps=1e-8, weight_decay=0.0, grad_averaging=False, amsgrad=False):
    b1, b2 = betas
    n = (g**2).sum().item()
    s.v = n if s.v == 0 else b2 * s.v + (1 - b2) * n
    s.top = max(s.top, s.v)
    s.seen.add(s.top > s.v)
    d = g / (math.sqrt(s.top if amsgrad else s.v) + eps) + weight_decay * p
    s.m = b1 * s.m + ((1 - b1) * d if grad_averaging else d)
    return p - lr * s.m


OPTIONS = [
    (gradtx.novograd, novograd, {}),
    (gradtx.novograd, novograd, {"lr": 0.02, "betas": (0.8, 0.6), "eps": 0.1, "weight_decay": 0.3}),
    (gradtx.novograd, novograd, {"lr": 0.02, "betas": (0.8, 0.6), "weight_decay": 0.3, "grad_averaging": True}),
    (gradtx.novograd, novograd, {"lr": 0.02, "betas": (0.8, 0.6), "weight_decay": 0.3, "amsgrad": True}),
    (gradtx.novograd, novograd, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options", "seen"),
    [(novograd, {"lr": 0.02, "betas": (0.8, 0.6), "amsgrad": True}, {True, False})],
    ids=ref.named,
)
def test_the_options_above_take_both_branches(rule, options, seen):
    loop = ref.WeightsLoop(rule, **options)
    ref.run(loop, steps=LONG)
    assert loop.seen == seen


# What papers promise, and where they are silent.


def test_decay_stays_out_of_novograds_division():
    # the norm is 5: 3 / 5 + 2 and 4 / 5, times the rate
    assert ref.first_update(
        gradtx.novograd(lr=0.1, weight_decay=1.0, eps=0.0), [3.0, 4.0], [2.0, 0.0]
    ) == pytest.approx([-0.26, -0.08])
