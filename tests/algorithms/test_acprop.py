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


COUPLED = {"decoupled_weight_decay": False, "weight_decay": 0.2}
OPTIONS = [
    (gradtx.acprop, acprop, {"lr": 0.02}),
    (gradtx.acprop, acprop, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.acprop, acprop, {"lr": 0.02, "betas": (0.8, 0.5), "eps": 1e-4, "amsgrad": True, **COUPLED}),
    (gradtx.acprop, acprop, {"lr": 0.02, "momentum_update": True, "eps": 1e-4}),
    (gradtx.acprop, acprop, {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY, "amsgrad": True}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))
