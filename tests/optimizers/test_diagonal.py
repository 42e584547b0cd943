"""ACProp, KATE, BCOS and FAdam against loops for one leaf, and against pytorch_optimizer."""

import math

import pytest
import torch

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows_along, named


def acprop(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0, decoupled_weight_decay=True, amsgrad=False,
    momentum_update=False,
):  # fmt: skip
    b1, b2 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    s.m = b1 * s.m + (1 - b1) * g
    d = s.m / (1 - b1**t) if momentum_update else g
    u = d
    if t > 1:
        old = s.top if amsgrad else s.s
        u = d / ((old / (1 - b2 ** (t - 1))).sqrt() + eps)
    s.s = b2 * s.s + (1 - b2) * (g - s.m) ** 2 + eps
    s.top = torch.maximum(s.top + 0 * s.s, s.s)
    if decoupled_weight_decay:
        u = u + weight_decay * p
    return p - lr * u


def kate(s, t, g, p, lr=1e-3, delta=0.0, eps=1e-8, weight_decay=0.0):
    s.b2 = s.b2 + g**2 + eps
    s.m2 = s.m2 + delta * g**2 + g**2 / s.b2
    return p - lr * (s.m2.sqrt() * g / s.b2 + weight_decay * p)


def bcos(
    s, t, g, p, lr=1e-3, beta=0.9, beta2=None, eps=1e-6, weight_decay=0.1, mode="c", simple_cond=False,
    decoupled_weight_decay=True,
):  # fmt: skip
    if t == 1:
        s.m, s.v = g, g**2  # raw: before a coupled decay
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    old = s.m
    s.m = beta * s.m + (1 - beta) * g
    if mode == "c" and simple_cond:
        b = 1 - (1 - beta) ** 2 if beta2 is None else beta2
        d, v = s.m, b * old**2 + (1 - b) * g**2
    elif mode == "c":
        d = s.m
        v = (3 * beta**2 - 2 * beta**3) * old**2 + (1 - beta) ** 2 * g**2 + 2 * beta * (1 - beta) ** 2 * old * g
    else:
        d, b = s.m if mode == "m" else g, beta if beta2 is None else beta2
        v = s.v = b * s.v + (1 - b) * d**2
    u = d / (v.sqrt() + eps)
    if decoupled_weight_decay:
        u = u + weight_decay * p
    return p - lr * u


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


COUPLED = {"decoupled_weight_decay": False, "weight_decay": 0.2}
OPTIONS = [
    (gradtx.acprop, acprop, {"lr": 0.02}),
    (gradtx.acprop, acprop, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.acprop, acprop, {"lr": 0.02, "betas": (0.8, 0.5), "eps": 1e-4, "amsgrad": True, **COUPLED}),
    (gradtx.acprop, acprop, {"lr": 0.02, "momentum_update": True, "eps": 1e-4}),
    (gradtx.acprop, acprop, {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY, "amsgrad": True}),
    (gradtx.kate, kate, {}),
    (gradtx.kate, kate, {"lr": 0.02, "delta": 0.3, "eps": 0.01, "weight_decay": 0.2}),
    (gradtx.kate, kate, {"lr": RATE, "delta": DECAY, "weight_decay": DECAY}),
    (gradtx.bcos, bcos, {}),
    (gradtx.bcos, bcos, {"lr": 0.02, "beta": 0.7, "eps": 0.01, "weight_decay": 0.2}),
    (gradtx.bcos, bcos, {"lr": 0.02, "simple_cond": True}),
    (gradtx.bcos, bcos, {"lr": 0.02, "simple_cond": True, "beta2": 0.6, **COUPLED}),
    (gradtx.bcos, bcos, {"lr": 0.02, "mode": "m"}),
    (gradtx.bcos, bcos, {"lr": 0.02, "mode": "m", "beta2": 0.95, **COUPLED}),
    (gradtx.bcos, bcos, {"lr": 0.02, "mode": "g", "beta": 0.5}),
    (gradtx.bcos, bcos, {"lr": 0.02, "mode": "g", "beta2": 0.95, **COUPLED}),
    (gradtx.bcos, bcos, {"lr": RATE, "beta": BETA, "weight_decay": DECAY}),
    (gradtx.bcos, bcos, {"lr": RATE, "beta": BETA, "beta2": BETA, "mode": "m", **COUPLED}),
]
FADAM = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.01, "weight_decay": 0.3, "clip": 0.6, "p": 0.4, "eps2": 0.5},
    {"lr": 0.02, "eps": 0.1, "eps2": 10.0},
    {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY},
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))


@pytest.mark.parametrize("options", FADAM, ids=str)
def test_the_weights_of_fadam_follow_the_loop(options):
    follows_along(gradtx.fadam(**options), fadam_loop(**options))


# Edges.


def test_bcos_has_finite_updates_where_squares_underflow():
    tx, param = gradtx.bcos(weight_decay=0.0), torch.tensor(0.5)
    state = tx.init(param)
    for grad in (1e-30, -1e-30, 1e-30):
        update, state = tx.update(torch.tensor(grad), state, param)
        assert abs(update) < 1e-20
