"""Optimistic gradient descent and Adam against loops for one leaf, and optimistic Adam against torch's Adam."""

import pytest

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, adam_moments, follows_along, named


def look_ahead(s, t, u, alpha, beta):
    old = u if t == 1 else s.old
    s.old = u
    return (alpha + beta) * u - beta * old


def optimistic_gradient_descent(s, t, g, p, lr, alpha=1.0, beta=1.0):
    return p - lr * look_ahead(s, t, g, alpha, beta)


def optimistic_adam(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, alpha=1.0, beta=1.0, weight_decay=0.0):
    m, v = adam_moments(s, t, g, betas)
    return p - lr * (look_ahead(s, t, m / (v.sqrt() + eps), alpha, beta) + weight_decay * p)


OPTIONS = [
    (gradtx.optimistic_gradient_descent, optimistic_gradient_descent, {"lr": 0.05}),
    (gradtx.optimistic_gradient_descent, optimistic_gradient_descent, {"lr": 0.05, "alpha": -0.5, "beta": 2.5}),
    (gradtx.optimistic_gradient_descent, optimistic_gradient_descent, {"lr": RATE, "alpha": BETA, "beta": DECAY}),
    (gradtx.optimistic_adam, optimistic_adam, {}),
    (gradtx.optimistic_adam, optimistic_adam, {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.1, "alpha": 1.5}),
    (gradtx.optimistic_adam, optimistic_adam, {"lr": 0.02, "beta": -0.5, "weight_decay": 0.3}),
    (gradtx.optimistic_adam, optimistic_adam, {"lr": RATE, "alpha": BETA, "beta": DECAY, "weight_decay": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))
