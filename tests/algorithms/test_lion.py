import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE, Loop, follows


def lion(s, t, g, p, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    b1, b2 = betas
    d = (b1 * s.m + (1 - b1) * g).sign()
    s.seen.update((d != g.sign()).flatten().tolist())
    s.m = b2 * s.m + (1 - b2) * g
    return p * (1 - lr * weight_decay) - lr * d


OPTIONS = [
    (gradtx.lion, lion, {}),
    (gradtx.lion, lion, {"lr": 0.02, "betas": (0.6, 0.9), "weight_decay": 0.3}),
    (gradtx.lion, lion, {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def lion_direction(s, t, g, p, betas=(0.9, 0.99)):
    u = torch.sign(betas[0] * s.m + (1 - betas[0]) * g)
    s.m = betas[1] * s.m + (1 - betas[1]) * g
    s.seen.update((u == g.sign()).flatten().tolist())
    return u


def test_two_literal_zeros_keep_nothing():
    follows(gradtx.scale_by_lion((0.0, 0.0)), Loop(lion_direction, betas=(0.0, 0.0)), rate=-0.02)
    assert list(gradtx.scale_by_lion((0.0, 0.0)).init({"w": torch.zeros(2)})) == ["step"]
    assert list(gradtx.scale_by_lion((0.0, 0.5)).init({"w": torch.zeros(2)})["scale_by_lion"]) == ["exp_avg"]
