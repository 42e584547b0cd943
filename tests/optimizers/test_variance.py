import math

import pytest
import torch

import gradtx
from tests.references import BETA, RATE, Loop, follows, named, problem, run

RISING = gradtx.linear_schedule(10.0, start_factor=0.5, total_iters=25)
ROUNDING = 1e-12
# M-SVAG's first step subtracts equal numbers and divides by 1e-4.
CANCELLED = 1e-11

loop = Loop


def msvag(s, t, g, p, lr, beta=0.9):
    s.m = beta * s.m + (1 - beta) * g
    s.v = beta * s.v + (1 - beta) * g**2
    m, v = s.m / (1 - beta**t), s.v / (1 - beta**t)
    rho = min(0.9999, (1 - beta) ** 2 * (1 - beta ** (2 * t)) / ((1 - beta**t) ** 2 * (1 - beta**2)))
    variance = (v - m**2) / (1 - rho)
    f = torch.nan_to_num(m**2 / (m**2 + rho * variance), nan=0.0).clamp(0, 1)
    s.seen.update((f < 0.5).flatten().tolist())
    return -lr * f * m


def a2grad(s, t, g, p, variant="uni", beta=10.0, lips=10.0, rho=0.5):
    k = t - 1
    x = p if k == 0 else s.x
    s.mean = (k * s.mean + g) / (k + 1)
    delta = g - s.mean
    gamma, alpha, following = 2 * lips / (k + 1), 2 / (k + 2), 2 / (k + 3)
    if variant == "uni":
        s.v = s.v + delta**2
        h = s.v.sqrt()
    elif variant == "inc":
        s.v = (k / (k + 1)) ** 2 * s.v + delta**2
        h = s.v.sqrt()
    else:
        s.w = delta**2 if k == 0 else rho * s.w + (1 - rho) * delta**2
        s.v = torch.maximum(s.v + 0 * g, s.w)
        h = ((k + 1) * s.v).sqrt()
    c = 1 / (gamma + beta * h)
    s.x = x - c * g
    return -following * p + following * s.x - (1 - following) * alpha * c * g


OPTIONS = [
    (gradtx.msvag, msvag, {"lr": 0.1}),
    (gradtx.msvag, msvag, {"lr": 0.1, "beta": 0.6}),
    (gradtx.msvag, msvag, {"lr": 0.1, "beta": 0.0}),
    (gradtx.msvag, msvag, {"lr": RATE, "beta": BETA}),
    (gradtx.a2grad, a2grad, {}),
    (gradtx.a2grad, a2grad, {"beta": 3.0, "lips": 2.0}),
    (gradtx.a2grad, a2grad, {"beta": 0.0, "lips": 2.0}),
    (gradtx.a2grad, a2grad, {"variant": "inc"}),
    (gradtx.a2grad, a2grad, {"variant": "inc", "beta": 30.0, "lips": 2.0}),
    (gradtx.a2grad, a2grad, {"variant": "exp"}),
    (gradtx.a2grad, a2grad, {"variant": "exp", "beta": 3.0, "lips": 2.0, "rho": 0.8}),
    (gradtx.a2grad, a2grad, {"variant": "exp", "beta": RISING, "lips": RISING, "rho": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_updates_follow_the_loop(alias, rule, options):
    follows(alias(**options), loop(rule, **options), tolerance=CANCELLED if rule is msvag else ROUNDING)


def test_msvag_shortens_some_steps_a_lot_and_others_little():
    reference = loop(msvag, lr=0.1)
    run(reference)
    assert reference.seen == {True, False}


@pytest.mark.slow
def test_a2grad_works_as_a_torch_optimizer_although_it_has_no_learning_rate():
    weights = [torch.nn.Parameter(x) for x in problem().values()]
    optimizer = gradtx.optim.A2Grad(weights, lips=2.0)
    before = math.sqrt(sum(w.square().sum().item() for w in weights))
    for _ in range(5):
        optimizer.zero_grad()
        sum(w.square().sum() for w in weights).backward()
        optimizer.step()
    assert math.sqrt(sum(w.square().sum().item() for w in weights)) < before
