"""FOCUS, TAM, AdaTAM and SGD-SaI against loops for one leaf, and against pytorch_optimizer."""

import pytest

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows_along, named


def focus(s, t, g, p, lr=1e-2, betas=(0.9, 0.999), gamma=0.1, weight_decay=0.0):
    b1, b2 = betas
    s.m = b1 * s.m + (1 - b1) * g
    s.place = b2 * s.place + (1 - b2) * p
    usual = s.place / (1 - b2**t)
    pull = (p - usual).sign() if t > 1 else 0.0
    return p - lr * (s.m.sign() + gamma * pull + weight_decay * usual)


def along_rows(x):
    return x / (x.abs() if x.ndim == 0 else x.norm(dim=0, keepdim=True)).clamp(min=1e-12)


def agreement(s, m, g, decay_rate):
    s.s = decay_rate * s.s + (1 - decay_rate) * along_rows(m) * along_rows(g)
    return s.s


def tam(s, t, g, p, lr=1e-3, momentum=0.9, decay_rate=0.9, eps=1e-8, weight_decay=0.0):
    d = ((1 + agreement(s, s.m + 0 * g, g, decay_rate)) / 2 + eps) * g
    s.m = momentum * s.m + d
    return p - lr * (s.m + weight_decay * p)


def adatam(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), decay_rate=0.9, eps=1e-8, weight_decay=0.0):
    b1, b2 = betas
    d = ((1 + agreement(s, s.m + 0 * g, g, decay_rate)) / 2 + eps) * g
    s.m = b1 * s.m + d
    s.v = b2 * s.v + (1 - b2) * g**2
    return p - lr * (s.m / (s.v.sqrt() + eps) + weight_decay * p)


def sgd_sai(s, t, g, p, lr=1e-2, momentum=0.9, eps=1e-8, weight_decay=1e-2):
    if t == 1:
        s.q = g.norm()
        if g.ndim > 1 and g.shape[0] != 1 and g.std() != 0:
            s.q = s.q / (g.std() + eps)
    s.m = momentum * s.m + (1 - momentum) * g
    return p - lr * (s.q * s.m + weight_decay * p)


OPTIONS = [
    (gradtx.focus, focus, {}),
    (gradtx.focus, focus, {"lr": 0.02, "betas": (0.7, 0.9), "gamma": 0.4, "weight_decay": 0.3}),
    (gradtx.focus, focus, {"lr": RATE, "betas": (BETA, 0.9), "gamma": DECAY, "weight_decay": DECAY}),
    (gradtx.tam, tam, {}),
    (gradtx.tam, tam, {"lr": 0.05, "momentum": 0.7, "decay_rate": 0.5, "eps": 0.1, "weight_decay": 0.2}),
    (gradtx.tam, tam, {"lr": RATE, "momentum": BETA, "decay_rate": BETA, "weight_decay": DECAY}),
    (gradtx.adatam, adatam, {}),
    (gradtx.adatam, adatam, {"lr": 0.02, "betas": (0.7, 0.9), "decay_rate": 0.5, "eps": 0.1, "weight_decay": 0.2}),
    (gradtx.adatam, adatam, {"lr": RATE, "betas": (BETA, 0.9), "decay_rate": BETA, "weight_decay": DECAY}),
    (gradtx.sgd_sai, sgd_sai, {}),
    (gradtx.sgd_sai, sgd_sai, {"lr": 0.05, "momentum": 0.5, "eps": 0.1, "weight_decay": 0.2}),
    (gradtx.sgd_sai, sgd_sai, {"lr": RATE, "momentum": BETA, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))
