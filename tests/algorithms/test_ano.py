import math

import pytest

import gradtx
from tests import references as ref
from tests.references import DECAY, PUBLISHED, RATE

STEPS = 30


def ano(s, t, g, p, lr=1e-4, betas=(0.92, 0.99), eps=1e-8, weight_decay=0.0, logarithmic=False):
    b1 = 1 - 1 / math.log(max(2, t)) if logarithmic else betas[0]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = (betas[1] * s.v + (1 - betas[1]) * (g**2 - s.v).sign() * g**2).clamp(min=0)
    d = g.abs() * s.m.sign() / ((s.v / (1 - betas[1] ** t)).sqrt() + eps)
    return p - lr * (d + weight_decay * p)


@pytest.mark.parametrize(
    "options",
    [{}, {"lr": RATE, "betas": (0.8, 0.7), "eps": 0.1, "weight_decay": DECAY}, {"logarithmic": True, "lr": 0.01},
     {"betas": (0.5, 0.3), "lr": 0.01}],
    ids=ref.named,
)  # fmt: skip
def test_ano_follows_the_loop(options):
    ref.weights_follow(gradtx.ano(**options), ref.WeightsLoop(ano, **options), steps=STEPS)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_ano_is_that_of_pytorch_optimizer(logarithmic):
    from pytorch_optimizer import Ano

    published = ref.Published(Ano, lr=0.01, weight_decay=0.1, weight_decouple=True, logarithmic_schedule=logarithmic)
    tx = gradtx.ano(0.01, weight_decay=0.1, logarithmic=logarithmic)
    ref.weights_follow(tx, published, steps=STEPS, tolerance=PUBLISHED)
