import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.algorithms.loops import COMMON, decayed, stepped
from tests.references import BETA, DECAY, RATE, first_update


def adam(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled_weight_decay=False,
    correct_bias=True,
):  # fmt: skip
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    m, v = ref.adam_moments(s, t, g, betas)
    if amsgrad:
        s.top = torch.maximum(s.top + 0 * s.v, s.v)
        v = s.top / (1 - betas[1] ** t)
    if not correct_bias:
        m, v = s.m, s.top if amsgrad else s.v
    step = m / (v.sqrt() + eps)
    return p - lr * (step + weight_decay * p if decoupled_weight_decay else step)


def adamw(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, correct_bias=True):
    return adam(s, t, g, p, lr, betas, eps, weight_decay, amsgrad, True, correct_bias)


def adamd(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False):
    ref.adam_moments(s, t, decayed(g, p, weight_decay, decoupled_weight_decay), betas)
    direction = math.sqrt(1 - betas[1] ** t) * s.m / (s.v.sqrt() + eps)
    return stepped(p, lr, direction, weight_decay, decoupled_weight_decay)


OPTIONS = [
    *((gradtx.adamd, adamd, options) for options in COMMON),
    (gradtx.adam, adam, {}),
    (gradtx.adam, adam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adam, adam, {"lr": 0.02, "betas": (0.8, 0.7), "weight_decay": 0.2, "amsgrad": True}),
    (gradtx.adam, adam, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "eps": 0.01}),
    (gradtx.adamw, adamw, {}),
    (gradtx.adamw, adamw, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.adamw, adamw, {"lr": 0.02, "betas": (0.8, 0.7), "amsgrad": True}),
    (gradtx.adamw, adamw, {"lr": RATE, "betas": (BETA, 0.9), "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def test_decoupled_adam_is_adamw():
    options = {"lr": 0.02, "weight_decay": 0.2, "amsgrad": True}
    ref.follows(gradtx.adam(**options, decoupled_weight_decay=True), gradtx.adamw(**options), tolerance=0.0)


def test_softplus_is_the_identity_above_torchs_threshold():
    # One step: sqrt(v) = |g| / 2, and b sqrt(v) on both sides of 20, where log(1 + exp(x)) - x is 2e-9.
    below, above = (
        first_update(gradtx.scale_by_adam_hat((0.0, 0.75), softplus=b), [2.0])[0] for b in (19.9999, 20.0001)
    )
    assert above == pytest.approx(1.0, rel=1e-15)
    assert 1 - below == pytest.approx(math.log1p(math.exp(-19.9999)) / 19.9999, rel=1e-4)


def test_softplus_of_large_roots_has_finite_gradients():
    def first(scale):
        tx = gradtx.scale_by_adam_hat(softplus=50.0)
        grads = {"w": scale * torch.tensor([0.0, 1e-3, 1e8], dtype=torch.float64)}
        return tx.update(grads, tx.init(grads))[0]["w"].sum()

    assert torch.func.grad(first)(torch.tensor(1.0, dtype=torch.float64)).isfinite()
