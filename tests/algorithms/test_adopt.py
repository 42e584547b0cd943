import adam_atan2_pytorch
import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, PUBLISHED, RATE


def adopt(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.9999), eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False,
    clip_exponent=0.25,
):  # fmt: skip
    b1, b2 = betas
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    if t == 1:
        s.v = g**2
        return p
    n = g / s.v.sqrt().clamp(min=eps)
    if clip_exponent is not None:
        n = n.clamp(-((t - 1) ** clip_exponent), (t - 1) ** clip_exponent)
    s.m = b1 * s.m + (1 - b1) * n
    s.v = b2 * s.v + (1 - b2) * g**2
    return (p * (1 - lr * weight_decay) if decoupled_weight_decay else p) - lr * s.m


def adopt_atan2(
    s, t, g, p, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, regen_reg_rate=0.0, decoupled_wd=True,
    cautious_factor=1.0, a=1.27, b=1.0,
):  # fmt: skip
    b1, b2 = betas
    if t == 1:
        s.initial, s.initial_lr = p, lr if decoupled_wd else 1.0
    x = p + lr * regen_reg_rate / s.initial_lr * (s.initial - p)
    x = x * (1 - lr * weight_decay / s.initial_lr)
    if t == 1:
        s.v = g**2
        return x
    w = ref.caution_weights(s.m + 0 * g, g, cautious_factor) if cautious_factor < 1 else 1.0
    s.m = b1 * s.m + (1 - b1) * torch.atan2(g, b * s.v.sqrt())
    s.v = b2 * s.v + (1 - b2) * g**2
    return x - lr * a * w * s.m


OPTIONS = [
    (gradtx.adopt, adopt, {}),
    (gradtx.adopt, adopt, {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.05, "weight_decay": 0.3}),
    (gradtx.adopt, adopt, {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.3, "decoupled_weight_decay": True}),
    (gradtx.adopt, adopt, {"lr": 0.02, "betas": (0.8, 0.9), "clip_exponent": None}),
    (gradtx.adopt, adopt, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "clip_exponent": 0.1}),
    (gradtx.adopt_atan2, adopt_atan2, {}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": 0.02, "betas": (0.8, 0.9), "a": 0.7, "b": 3.0, "weight_decay": 0.01}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": 0.02, "weight_decay": 0.3, "decoupled_wd": False}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": 0.02, "regen_reg_rate": 0.1, "cautious_factor": 0.3}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": 0.02, "cautious_factor": 0.0}),
    (gradtx.adopt_atan2, adopt_atan2, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.02, "betas": (0.8, 0.95), "a": 0.7, "b": 3.0, "weight_decay": 0.01},
        {"lr": 0.02, "weight_decay": 0.3, "decoupled_wd": False, "cautious_factor": 0.3},
        {"lr": 0.02, "regen_reg_rate": 0.1, "cautious_factor": 0.0},
    ],
    ids=str,
)
def test_the_weights_are_those_of_the_adopt_of_adam_atan2_pytorch(options):
    published = ref.Published(adam_atan2_pytorch.AdoptAtan2, **options)
    ref.weights_follow(gradtx.adopt_atan2(**options), published, tolerance=PUBLISHED)


@pytest.mark.parametrize("alias", [gradtx.adopt_atan2], ids=ref.named)
def test_decay_and_regeneration_together_are_an_error_that_names_the_optimizer(alias):
    with pytest.raises(ValueError, match=f"^{alias.__name__}: weight_decay and regen_reg_rate are mutually exclusive"):
        alias(weight_decay=0.1, regen_reg_rate=0.1)
