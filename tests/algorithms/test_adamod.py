import math

import pytest
import torch

import gradtx
from tests.references import BETA, DECAY, RATE, Loop, adam_moments, follows, named, run


def adamod(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), beta3=0.999, eps=1e-8, weight_decay=0.0, decoupled_weight_decay=True
):
    b1, b2 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    adam_moments(s, t, g, betas)
    rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t) / (s.v.sqrt() + eps)
    s.n = beta3 * s.n + (1 - beta3) * rate
    s.seen.update((rate < s.n).flatten().tolist())
    step = -torch.minimum(rate, s.n) * s.m
    return step - lr * weight_decay * p if decoupled_weight_decay else step


OPTIONS = [
    (gradtx.adamod, adamod, {}),
    (gradtx.adamod, adamod, {"lr": 0.02, "betas": (0.8, 0.95), "beta3": 0.7, "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adamod, adamod, {"lr": 0.02, "beta3": 0.9, "weight_decay": 0.2, "decoupled_weight_decay": False}),
    (gradtx.adamod, adamod, {"lr": RATE, "betas": (BETA, BETA), "beta3": BETA, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), Loop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options", "branches"), [(adamod, {"lr": 0.02, "beta3": 0.7}, {True, False})], ids=named
)
def test_the_options_above_take_every_branch(rule, options, branches):
    reference = Loop(rule, **options)
    run(reference)
    assert reference.seen == branches
