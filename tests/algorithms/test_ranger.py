import math

import pytest
import torch

import gradtx
from tests.algorithms.loops import centralized
from tests.references import RATE, WeightsLoop, adam_moments, follows

RISING = gradtx.linear_schedule(0.95, start_factor=0.7, total_iters=25)


def ranger(
    s, t, g, p, lr=1e-3, betas=(0.95, 0.999), eps=1e-5, weight_decay=0.0, alpha=0.5, k=6, n_sma_threshold=5.0,
    use_gc=True, gc_conv_only=False,
):  # fmt: skip
    b2 = betas[1]
    if t == 1:
        s.slow = p
    if use_gc and (not gc_conv_only or g.ndim > 3):
        g = centralized(g)
    m, _ = adam_moments(s, t, g, betas)
    limit = 2 / (1 - b2) - 1
    rho = limit - 2 * t * b2**t / (1 - b2**t)
    s.seen.add(rho > n_sma_threshold)
    d = m
    if rho > n_sma_threshold:
        r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        d = r * math.sqrt(1 - b2**t) * m / (s.v.sqrt() + eps)
    p = p - lr * (d + weight_decay * p)
    if t % k == 0:
        p = s.slow = s.slow + alpha * (p - s.slow)
    return p


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.02},
        {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.05, "weight_decay": 0.3, "alpha": 0.8, "k": 3},
        {"lr": 0.02, "gc_conv_only": True, "n_sma_threshold": 4.0, "k": 1},
        {"lr": 0.02, "use_gc": False, "n_sma_threshold": 7.5, "betas": (0.8, 0.95)},
        {"lr": RATE, "betas": (RISING, RISING), "weight_decay": RISING, "alpha": RISING},
    ],
    ids=str,
)
def test_ranger_follows_the_loop(options):
    reference = WeightsLoop(ranger, **options)
    follows(gradtx.ranger(**options), reference)
    assert reference.seen == {True, False}


def test_before_it_rectifies_ranger_goes_downhill():
    tx = gradtx.ranger(lr=0.1)
    params = {"w": torch.tensor([1.0])}
    updates, _ = tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.tensor([-0.2]))


def test_slow_weights_are_what_to_evaluate_with():
    for tx in (gradtx.ranger(), gradtx.ranger21(num_iterations=10)):
        params = {"w": torch.tensor([1.0])}
        updates, state = tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)
        assert tx.eval_params(state, gradtx.apply_updates(params, updates))["w"].item() == 1.0
