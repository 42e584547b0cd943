import pytest
import torch

import gradtx
from tests.algorithms.loops import with_decay
from tests.algorithms.shared_with_torch import SHARED
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows, named


def adamax(s, t, g, p, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False):
    def direction(s, t, g, p):
        s.m = betas[0] * s.m + (1 - betas[0]) * g
        s.u = torch.maximum(betas[1] * s.u + 0 * g, g.abs() + eps)
        return s.m / s.u / (1 - betas[0] ** t)

    return with_decay(direction)(s, t, g, p, lr, weight_decay, decoupled_weight_decay)


DECOUPLED = {"weight_decay": 0.2, "decoupled_weight_decay": True}
OPTIONS = [
    *((gradtx.adamax, adamax, options) for options in SHARED["Adamax"]),
    (gradtx.adamax, adamax, {"lr": 0.02, **DECOUPLED}),
    (gradtx.adamax, adamax, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))
