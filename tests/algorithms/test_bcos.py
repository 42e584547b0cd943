import pytest
import torch

import gradtx
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows_along, named


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


COUPLED = {"decoupled_weight_decay": False, "weight_decay": 0.2}
OPTIONS = [
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


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows_along(alias(**options), WeightsLoop(rule, **options))


# Edges.


def test_bcos_has_finite_updates_where_squares_underflow():
    tx, param = gradtx.bcos(weight_decay=0.0), torch.tensor(0.5)
    state = tx.init(param)
    for grad in (1e-30, -1e-30, 1e-30):
        update, state = tx.update(torch.tensor(grad), state, param)
        assert abs(update) < 1e-20
