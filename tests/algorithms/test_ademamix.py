import math

import pytest

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, adam_moments, follows, named


def half_life(t, end, steps, start):
    def h(b):
        return math.log(0.5) / math.log(b + 1e-8) - 1

    if steps is None or t >= steps:
        return end
    a = t / steps
    return 0.5 ** (1 / ((1 - a) * h(start) + a * h(end) + 1))


def rising_alpha(t, alpha, steps):
    return alpha if steps is None or t >= steps else alpha * t / steps


def ademamix(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999, 0.9999), alpha=2.0, eps=1e-8, weight_decay=0.0, alpha_warmup=None,
    beta3_warmup=None,
):  # fmt: skip
    b1, b2, b3 = betas
    m, v = adam_moments(s, t, g, (b1, b2))
    b3 = half_life(t, b3, beta3_warmup, b1)
    s.slow = b3 * s.slow + (1 - b3) * g
    direction = (m + rising_alpha(t, alpha, alpha_warmup) * s.slow) / (v.sqrt() + eps)
    return p - lr * (direction + weight_decay * p)


def simplified_ademamix(
    s, t, g, p, lr=1e-3, betas=(0.99, 0.95), alpha=0.0, eps=1e-8, weight_decay=0.0, min_beta1=0.9, beta1_warmup=None,
    bias_correction1=False, bias_correction2=True,
):  # fmt: skip
    b1, b2 = betas
    b1 = half_life(t, b1, beta1_warmup, min_beta1)
    s.m = b1 * s.m + g
    s.n = b1 * s.n + 1
    s.v = b2 * s.v + (1 - b2) * g**2
    c2 = 1 - b2**t
    d = alpha * g + s.m
    if bias_correction1:
        d = d / s.n
    d = d / ((s.v / c2).sqrt() + eps) if bias_correction2 else d / (s.v.sqrt() + eps * math.sqrt(c2))
    return p - lr * (d + weight_decay * p)


SOME = {"lr": 0.02, "eps": 0.05, "weight_decay": 0.3}
THREE = (0.8, 0.95, 0.99)
OPTIONS = [
    (gradtx.ademamix, ademamix, {}),
    (gradtx.ademamix, ademamix, {**SOME, "betas": THREE, "alpha": 5.0}),
    (gradtx.ademamix, ademamix, {**SOME, "betas": THREE, "alpha_warmup": 20}),
    (gradtx.ademamix, ademamix, {**SOME, "betas": THREE, "beta3_warmup": 20}),
    (gradtx.ademamix, ademamix, {**SOME, "betas": (0.0, 0.95, 0.9999), "alpha_warmup": 40, "beta3_warmup": 25}),
    (gradtx.ademamix, ademamix, {**SOME, "betas": THREE, "alpha_warmup": 1, "beta3_warmup": 1}),
    (gradtx.ademamix, ademamix, {**SOME, "betas": THREE, "alpha_warmup": 0, "beta3_warmup": 0}),
    (gradtx.ademamix, ademamix, {**SOME, "betas": (0.0, 0.0, 0.0), "alpha": 0.0}),
    (gradtx.ademamix, ademamix, {"lr": RATE, "betas": (BETA, BETA, BETA), "alpha": BETA, "weight_decay": DECAY}),
    (gradtx.simplified_ademamix, simplified_ademamix, {}),
    (gradtx.simplified_ademamix, simplified_ademamix, {**SOME, "betas": (0.8, 0.9), "alpha": 10.0}),
    (gradtx.simplified_ademamix, simplified_ademamix, {**SOME, "alpha": 2.0, "bias_correction1": True}),
    (gradtx.simplified_ademamix, simplified_ademamix, {**SOME, "bias_correction2": False}),
    (
        gradtx.simplified_ademamix,
        simplified_ademamix,
        {**SOME, "alpha": 2.0, "beta1_warmup": 20, "min_beta1": 0.5, "bias_correction1": True},
    ),
    (
        gradtx.simplified_ademamix,
        simplified_ademamix,
        {**SOME, "beta1_warmup": 40, "min_beta1": 0.0, "bias_correction1": True, "bias_correction2": False},
    ),
    (
        gradtx.simplified_ademamix,
        simplified_ademamix,
        {"lr": RATE, "betas": (BETA, BETA), "alpha": BETA, "weight_decay": DECAY, "bias_correction1": True},
    ),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))


def test_a_half_life_below_one_step_is_refused():
    with pytest.raises(ValueError, match=r"^half_life_schedule: end must be in \[0, 1\), got 1.0$"):
        gradtx.half_life_schedule(end=1.0, warmup_steps=2, start=0.0)
