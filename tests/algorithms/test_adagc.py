import math

import pytest

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def history_clipped(s, t, grads, lambda_rel, lambda_abs, beta, warmup_steps, eps):
    clipped, whole = {}, ref.global_norm(grads)
    for name, g in grads.items():
        own, n = s[name], g.norm().item()
        gamma = own.gamma if t > 1 else math.inf
        if t == 1 or t < warmup_steps:
            clipped[name] = g * min(1.0, lambda_abs / (whole + eps))
            own.gamma = min(gamma, clipped[name].norm().item())
        else:
            clipped[name] = g * min(1.0, lambda_rel * max(gamma, eps) / max(n, eps))
            own.seen.add(clipped[name].norm().item() < n * (1 - 1e-12))
            own.gamma = beta * gamma + (1 - beta) * clipped[name].norm().item()
    return clipped


def adagc(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, beta=0.98, lambda_abs=1.0, lambda_rel=1.05,
    warmup_steps=100,
):  # fmt: skip
    new = {}
    for name, c in history_clipped(s, t, g, lambda_rel, lambda_abs, beta, warmup_steps, eps).items():
        m, v = ref.adam_moments(s[name], t, c, betas)
        new[name] = p[name] - lr * (m / (v.sqrt() + eps) + weight_decay * p[name])
    return new


BOTH = {True, False}
GC = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}
ADAGC = [
    ({}, set()),
    ({**GC, "beta": 0.7, "lambda_abs": 0.3, "lambda_rel": 1.02, "warmup_steps": 6}, BOTH),
    ({**GC, "warmup_steps": 0, "lambda_rel": 1.5}, BOTH),
    ({**GC, "warmup_steps": 1, "lambda_abs": 0.05, "lambda_rel": 1.3, "beta": 0.0}, BOTH),
    (
        {"lr": RATE, "beta": BETA, "lambda_abs": BETA, "lambda_rel": BETA, "weight_decay": DECAY, "warmup_steps": 5},
        BOTH,
    ),
]


@pytest.mark.parametrize(("options", "seen"), ADAGC, ids=ref.named)
def test_adagc_follows_the_loop(options, seen):
    reference = ref.TreeLoop(adagc, **options)
    ref.follows(gradtx.adagc(**options), reference)
    assert reference.seen >= seen
