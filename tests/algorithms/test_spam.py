import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, LONG, RATE


def cut(s, t, g, threshold, clip_after, every):
    if t >= clip_after and t % every >= clip_after:
        spike = g**2 > threshold * s.v
        s.seen.update(spike.flatten().tolist())
        return torch.where(spike, g.sign() * (threshold * (s.v + 0 * g)).sqrt(), g)
    return g


def after_restart(t, every, warmup_steps):
    c = t % every
    if t < every or c >= warmup_steps:
        return 1.0
    return 1 - 0.99 * (1 + math.cos(math.pi * c / (warmup_steps + 1))) / 2


def spam(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, threshold=5000.0, clip_after=20, every=500,
    warmup_steps=150,
):  # fmt: skip
    b1, b2 = betas
    if t % every == 0:
        s.m = s.v = 0.0
    ref.adam_moments(s, t, cut(s, t, g, threshold, clip_after, every), betas)
    f = after_restart(t, every, warmup_steps)
    return p - lr * f * math.sqrt(1 - b2**t) / (1 - b1**t) * s.m / (s.v.sqrt() + eps) - lr * weight_decay * p


def stable_spam(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, gammas=(0.7, 0.9), theta=0.999, every=1000,
    total_steps=None, eta_min=0.5,
):  # fmt: skip
    (b1, b2), (g1, g2) = betas, gammas
    if total_steps is not None:
        share = eta_min + (1 - eta_min) * (1 + math.cos(math.pi * min(t, total_steps + 1) / (total_steps + 1))) / 2
        b1, g1 = b1 * share, g1 * share
    top = g.abs().max().item()
    s.M = theta * s.M + (1 - theta) * top
    usual = s.M / (1 - theta**t)
    g = torch.where(g.abs() > usual, g * usual / top, g)
    n = g.norm().item()
    s.n1 = g1 * s.n1 + (1 - g1) * n
    s.n2 = g2 * s.n2 + (1 - g2) * n**2
    g = g / n * (s.n1 / (1 - g1**t)) / (math.sqrt(s.n2 / (1 - g2**t)) + eps)
    if t % every == 0:
        s.m = s.v = s.count = 0.0
    s.count += 1
    m, v = ref.adam_moments(s, s.count, g, (b1, b2))
    return p - lr * (m / (v.sqrt() + eps) + weight_decay * p)


SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.3}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
SPAM = [
    ({}, {False}),
    ({**SOME, "threshold": 2.0, "clip_after": 3, "every": 9, "warmup_steps": 4}, {True, False}),
    ({**SOME, "threshold": 3.0, "clip_after": 0, "every": 30, "warmup_steps": 0}, {True}),
    ({**SOME, "threshold": 3.0, "clip_after": 2, "every": 7, "warmup_steps": 20}, {True, False}),
    ({"lr": 0.02, "clip_after": 0, "every": 1, "warmup_steps": 1}, {True}),
    ({**SCHEDULED, "threshold": 2.0, "clip_after": 4, "every": 10, "warmup_steps": 5}, {True, False}),
]
STABLE = [
    {},
    {**SOME, "gammas": (0.6, 0.8), "theta": 0.9, "every": 9},
    {**SOME, "total_steps": 20, "eta_min": 0.3, "every": 8},
    {**SOME, "total_steps": 40, "every": 1},
    {"lr": 0.02, "theta": 0.0, "gammas": (0.0, 0.0), "total_steps": 1},
    {**SCHEDULED, "gammas": (BETA, BETA), "theta": BETA, "every": 11, "total_steps": 25, "eta_min": BETA},
]


@pytest.mark.parametrize(("options", "seen"), SPAM, ids=ref.named)
def test_spam_follows_the_loop(options, seen):
    reference = ref.WeightsLoop(spam, **options)
    ref.follows(gradtx.spam(**options), reference, steps=LONG)
    assert reference.seen >= seen


@pytest.mark.parametrize("options", STABLE, ids=str)
def test_stable_spam_follows_the_loop(options):
    ref.follows(gradtx.stable_spam(**options), ref.WeightsLoop(stable_spam, **options))


def direction(s, t, g, p, betas=(0.9, 0.999), eps=1e-6, threshold=5000.0, clip_after=20, every=500):
    b1, b2 = betas
    ref.adam_moments(s, t, cut(s, t, g, threshold, clip_after, every), betas)
    return math.sqrt(1 - b2**t) / (1 - b1**t) * s.m / (s.v.sqrt() + eps)


@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.8, 0.9), "threshold": 2.0, "clip_after": 2, "every": 9, "eps": 0.05}], ids=str
)
def test_scale_by_spam_is_clip_spikes_before_adam(options):
    one = gradtx.scale_by_spam(**options)
    ref.follows(one, ref.Loop(direction, **options), rate=-0.02)
    betas, eps = options.pop("betas", (0.9, 0.999)), options.pop("eps", 1e-6)
    two = gradtx.chain(gradtx.clip_spikes(beta2=betas[1], **options), gradtx.scale_by_adam_hat(betas, eps))
    ref.follows(one, two, rate=-0.02)
    assert ref.arguments(gradtx.scale_by_spam) == ref.arguments(direction)
